"""Factorisations and solvers: gradients against PyTorch, errors, and what has no derivative."""

import numpy as np
import pytest

import fgrad
from fgrad.array import from_numpy
from fgrad.ops import linalg

_rng = np.random.default_rng(6)
A = _rng.normal(size=(2, 4, 4)) + 2 * np.eye(4)
TALL, WIDE = _rng.normal(size=(2, 5, 3)), _rng.normal(size=(2, 3, 5))
B = _rng.normal(size=(2, 4, 3))
SYMMETRIC = A @ A.swapaxes(-1, -2) + np.eye(4)


def _symmetric(x):
    return (x + linalg.matrix_transpose(x)) * 0.5 if isinstance(x, fgrad.Array) else (x + x.mT) * 0.5


# name: (ours, PyTorch's, arguments); outputs are made independent of the signs that a factorisation leaves open
CASES = {
    "solve": (linalg.solve, lambda t: t.linalg.solve, [A, B]),
    "inv": (linalg.inv, lambda t: t.linalg.inv, [A]),
    "det": (linalg.det, lambda t: t.linalg.det, [A]),
    "slogdet": (lambda a: linalg.slogdet(a)[1], lambda t: lambda a: t.linalg.slogdet(a)[1], [A]),
    "lower": (
        lambda a, b: linalg.triangular_solve(a, b, True),
        lambda t: lambda a, b: t.linalg.solve_triangular(a, b, upper=False),
        [A, B],
    ),
    "upper": (
        lambda a, b: linalg.triangular_solve(a, b, False, False, True),
        lambda t: lambda a, b: t.linalg.solve_triangular(a, b, upper=True, unitriangular=True),
        [A, B],
    ),
    "cholesky": (
        lambda a: linalg.cholesky(_symmetric(a)),
        lambda t: lambda a: t.linalg.cholesky(_symmetric(a)),
        [SYMMETRIC],
    ),
    "qr": (
        lambda a: [x**2 for x in linalg.qr(a)],
        lambda t: lambda a: [x**2 for x in t.linalg.qr(a)],
        [TALL],
    ),
    "svd tall": (
        lambda a: [x**2 for x in linalg.svd(a, False)],
        lambda t: lambda a: [x**2 for x in t.linalg.svd(a, full_matrices=False)],
        [TALL],
    ),
    "svd wide": (
        lambda a: [x**2 for x in linalg.svd(a, False)],
        lambda t: lambda a: [x**2 for x in t.linalg.svd(a, full_matrices=False)],
        [WIDE],
    ),
    "svdvals": (linalg.svdvals, lambda t: t.linalg.svdvals, [TALL]),
    "eigh": (
        lambda a: [x**2 for x in linalg.eigh(_symmetric(a))],
        lambda t: lambda a: [x**2 for x in t.linalg.eigh(_symmetric(a))],
        [SYMMETRIC],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_pytorchs(name, torch):
    ours, theirs, args = CASES[name]
    outs, pull = fgrad.vjp(ours, *map(from_numpy, args))
    many = isinstance(outs, list)
    cts = [_rng.normal(size=o.shape) for o in (outs if many else [outs])]
    grads = pull([from_numpy(c) for c in cts] if many else from_numpy(cts[0]))
    tensors = [torch.tensor(a, requires_grad=True) for a in args]
    expected = theirs(torch)(*tensors)
    expected = list(expected) if many else [expected]
    for got, want in zip(outs if many else [outs], expected, strict=True):
        np.testing.assert_allclose(np.asarray(got), want.detach().numpy(), rtol=1e-9, atol=1e-9)
    sum((y * torch.tensor(c)).sum() for y, c in zip(expected, cts, strict=True)).backward()
    for got, t in zip(grads, tensors, strict=True):
        np.testing.assert_allclose(np.asarray(got), t.grad.numpy(), rtol=1e-7, atol=1e-8)


def test_determinant_of_a_singular_matrix_has_a_gradient():
    a = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 1.0, 5.0]])
    cofactors = np.array([[14.0, -10.0, 2.0], [-7.0, 5.0, -1.0], [0.0, 0.0, 0.0]])  # worked by hand
    np.testing.assert_allclose(np.asarray(fgrad.grad(linalg.det)(from_numpy(a))), cofactors, atol=1e-12)


def test_equal_eigenvalues_give_finite_gradients():
    """The trace of a power is smooth there: the undetermined directions must cancel, not become NaN."""
    g = fgrad.grad(lambda a: (linalg.eigh(a)[0] ** 3).sum())(from_numpy(2 * np.eye(3)))
    np.testing.assert_allclose(np.asarray(g), 12 * np.eye(3), atol=1e-12)


def test_failures_are_fgrad_errors():
    with pytest.raises(fgrad.FgradValueError, match="cholesky: Matrix is not positive definite"):
        linalg.cholesky(from_numpy(-np.eye(2)))
    with pytest.raises(fgrad.FgradValueError, match="solve: Singular matrix"):
        linalg.solve(from_numpy(np.zeros((2, 2))), from_numpy(np.ones((2, 1))))
    with pytest.raises(fgrad.FgradValueError, match="zero on the diagonal"):
        linalg.triangular_solve(from_numpy(np.zeros((2, 2))), from_numpy(np.ones((2, 1))), True)
    with pytest.raises(fgrad.FgradTypeError, match=r"square matrices.*float64\[2,3\]"):
        linalg.inv(from_numpy(np.ones((2, 3))))
    with pytest.raises(fgrad.FgradTypeError, match="float16"):
        linalg.inv(from_numpy(np.ones((2, 2), np.float16)))


def test_undefined_derivatives_say_so():
    with pytest.raises(NotImplementedError, match="at least as many rows as columns"):
        fgrad.grad(lambda a: linalg.qr(a)[1].sum())(from_numpy(np.ones((2, 3))))
    with pytest.raises(NotImplementedError, match="full_matrices"):
        fgrad.grad(lambda a: linalg.svd(a, True)[0].sum())(from_numpy(np.ones((2, 3))))
