"""Every differentiable public function under every transform: derivatives against differences, vmap against a loop, jit
against running eagerly. (Values against NumPy are tested beside this file.)"""

from __future__ import annotations

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.testing import assert_close, check_grads

_rng = np.random.default_rng(12)


def _n(*shape):
    return _rng.normal(size=shape)


def _p(*shape):
    return _rng.uniform(0.3, 2.0, size=shape)


X, Y, V = _n(3, 4), _n(3, 4), _n(5)
SQUARE = _n(3, 3) + 3 * np.eye(3)
WITH_NAN = np.where(np.arange(12).reshape(3, 4) % 5 == 3, np.nan, X)

CASES = {
    # arithmetic with broadcasting and promotion
    "add": (lambda x, y: x + y[0] - 2 * y + 1, [X, Y]),
    "divide": (lambda x, y: (x / y + 1 / y) ** 2, [X, _p(3, 4)]),
    "power": (lambda x, y: x**y + x**2.5 + x**-1 + 2.0**x, [_p(3, 4), Y]),
    "remainder": (lambda x, y: fnp.remainder(x, y) + x % 0.7, [_p(4) + 2, _p(4) / 4 + 1]),
    "clip": (lambda x: fnp.clip(x, -0.5, 0.5), [X]),
    "maximum": (lambda x, y: fnp.maximum(x, y) * fnp.minimum(x, 0.3), [X, Y]),
    "where": (lambda x, y: fnp.where(x > 0, x * y, y**2), [X, Y]),
    "select": (lambda x: fnp.select([x > 0.5, x < -0.5], [x**2, x**3], 2 * x), [X]),
    "sinc": (lambda x: fnp.sinc(x), [V]),
    "heaviside": (lambda x, y: fnp.heaviside(x, y) * y, [X, Y]),
    "logaddexp2": (lambda x, y: fnp.logaddexp2(x, y), [X, Y]),
    "nan_to_num": (lambda x: fnp.nan_to_num(x) * 2, [X]),
    "deg2rad": (lambda x: fnp.deg2rad(x) + fnp.degrees(x), [X]),
    "complex parts": (lambda x, y: fnp.abs(x + 1j * y) + fnp.real((x + 1j * y) ** 2), [X, Y]),
    # reductions and statistics
    "sum": (lambda x: fnp.sum(x, axis=1, keepdims=True) * x.sum(), [X]),
    "mean": (lambda x: fnp.mean(x, axis=(0, 1)) * fnp.mean(x, axis=0), [X]),
    "var": (lambda x: fnp.var(x, axis=0, ddof=1) + fnp.std(x, axis=0), [X]),
    "prod": (lambda x: fnp.prod(x, axis=1) + fnp.prod(x), [X]),
    "max": (lambda x: fnp.max(x, axis=1) * fnp.min(x) + fnp.ptp(x), [X]),
    "average": (lambda x, w: fnp.average(x, axis=1, weights=w), [X, _p(4)]),
    "median": (lambda x: fnp.median(x, axis=1) + fnp.median(x), [X]),
    "quantile": (lambda x: fnp.quantile(x, [0.2, 0.7], axis=1), [X]),
    "cov": (lambda x: fnp.cov(x) + fnp.corrcoef(x), [X]),
    "cumsum": (lambda x: fnp.cumsum(x, axis=1) * fnp.cumprod(x, axis=0), [X]),
    "cumsum flat": (lambda x: fnp.cumsum(x), [X]),
    "diff": (lambda x: fnp.diff(x, axis=1) ** 2, [X]),
    "gradient": (lambda x: fnp.gradient(x) ** 2, [V]),
    "trapezoid": (lambda y, x: fnp.trapezoid(y, x), [V, np.cumsum(_p(5))]),
    "interp": (lambda x, y: fnp.interp(x, np.arange(5.0), y), [_p(4) * 1.3, V]),
    "nansum": (lambda x: fnp.nansum(x * fnp.where(X > 5, fnp.nan, 1.0)), [X]),
    # shapes
    "reshape": (lambda x: fnp.reshape(x, (2, -1)) @ fnp.ravel(x)[:6], [X]),
    "transpose": (lambda x: fnp.transpose(x) @ x.T.T + fnp.swapaxes(x, 0, 1) @ x, [X]),
    "concatenate": (lambda x, y: fnp.concatenate([x, y, x * y], axis=1), [X, Y]),
    "stack": (lambda x, y: fnp.stack([x, y], axis=-1) * fnp.stack([y, x], axis=-1), [X, Y]),
    "split": (lambda x: fnp.split(x, [1, 3], axis=1)[1] ** 2, [X]),
    "pad": (lambda x: fnp.pad(x, ((1, 0), (0, 2)), constant_values=2.0) ** 2, [X]),
    "pad reflect": (lambda x: fnp.pad(x, 1, mode="reflect") ** 2, [X]),
    "tile": (lambda x: fnp.tile(x, (2, 1)) ** 2, [X]),
    "repeat": (lambda x: fnp.repeat(x, 2, axis=1) ** 2, [X]),
    "roll": (lambda x: fnp.roll(x, 1, axis=1) * x, [X]),
    "flip": (lambda x: fnp.flip(x) * fnp.rot90(x, 2), [X]),
    "broadcast_to": (lambda v: fnp.broadcast_to(v, (3, 5)) * fnp.arange(3.0)[:, None], [V]),
    "diag": (lambda x, v: fnp.diag(v) @ fnp.diag(v) + fnp.trace(x) * fnp.diagonal(x).sum(), [X, V]),
    "tril": (lambda x: fnp.tril(x) @ fnp.triu(x, 1).T, [X]),
    "meshgrid": (lambda v: fnp.meshgrid(v, v)[0] * fnp.meshgrid(v, v)[1], [V]),
    "squeeze": (lambda x: fnp.squeeze(x[None]) * fnp.expand_dims(x, 0), [X]),
    # indexing
    "slices": (lambda x: x[1:, ::2] * x[:2, ::-2], [X]),
    "integers": (lambda x: x[1] * x[-1] * x[..., 2].sum(), [X]),
    "arrays": (lambda x: x[np.array([0, 2, 0])] * x[np.array([1, 1, 1]), np.array([0, 3, 2])][:, None], [X]),
    "mixed": (lambda x: x[:, np.array([1, 3])] * x[np.array([[0], [2], [1]]), np.array([0, 1])], [X]),
    "at set": (lambda x, v: x.at[1, :3].set(v[:3]) ** 2, [X, V]),
    "at add": (lambda x, v: x.at[np.array([0, 0, 2]), 1].add(v[:3]) ** 2, [X, V]),
    "at mul": (lambda x, v: x.at[np.array([0, 0, 2]), 1].mul(v[:3]), [X, V]),
    "at max": (lambda x, v: x.at[np.array([0, 0, 2]), 1].max(v[:3]) ** 2, [X, V]),
    "take": (lambda x: fnp.take(x, np.array([0, 5, -1])) * fnp.take(x, np.array([1, 0, 2]), axis=1)[0], [X]),
    "take_along_axis": (lambda x: fnp.take_along_axis(x, np.array([[1], [0], [3]]), axis=1) ** 2, [X]),
    "sort": (lambda x: fnp.sort(x, axis=0) * fnp.arange(4.0), [X]),
    "argsort": (lambda x: fnp.take_along_axis(x**2, fnp.argsort(x, axis=1), axis=1), [X]),
    # products
    "matmul": (lambda x, y: x @ y.T @ x, [X, Y]),
    "matmul stacked": (lambda a, b: a @ b, [_n(2, 1, 3, 4), _n(5, 4, 2)]),
    "matmul vectors": (lambda x, v: (x @ v) @ x + v @ v, [X, _n(4)]),
    "dot": (lambda x, y: fnp.dot(x, y.T) + fnp.inner(x, y) + fnp.vdot(x, y), [X, Y]),
    "outer": (lambda x, v: fnp.outer(x, v) ** 2, [X, V]),
    "tensordot": (lambda x, y: fnp.tensordot(x, y, axes=([0], [0])), [X, Y]),
    "einsum": (
        lambda a, b: fnp.einsum("ijk,jkl->li", a, b) + fnp.einsum("ijk->", a),
        [_n(2, 3, 4), _n(3, 4, 2)],
    ),
    "einsum diagonal": (lambda a: fnp.einsum("ii->i", a) * fnp.einsum("ij,ij->i", a, a), [SQUARE]),
    "kron": (lambda x, y: fnp.kron(x[:2, :2], y[:2]), [X, Y]),
    "cross": (lambda a, b: fnp.cross(a, b), [_n(2, 3), _n(2, 3)]),
    "convolve": (lambda v, w: fnp.convolve(v, w, "same"), [V, _n(3)]),
    # linear algebra
    "norm": (
        lambda x, v: fnp.linalg.norm(x) + fnp.linalg.norm(v, 3) + fnp.linalg.norm(x, axis=1).sum(),
        [X, V],
    ),
    "solve": (lambda a, v: fnp.linalg.solve(a, v), [SQUARE, _n(3)]),
    "inv": (lambda a: fnp.linalg.inv(a) @ a.T, [SQUARE]),
    "det": (lambda a: fnp.linalg.det(a) + fnp.linalg.slogdet(a)[1], [SQUARE]),
    "cholesky": (lambda a: fnp.linalg.cholesky(a @ a.T + fnp.eye(3)), [SQUARE]),
    "eigh": (lambda a: fnp.linalg.eigh(a + a.T)[0] * fnp.linalg.eigvalsh(a @ a.T), [SQUARE]),
    "svdvals": (lambda x: fnp.linalg.svd(x, compute_uv=False), [X]),
    "pinv": (lambda x: fnp.linalg.pinv(x), [X]),
    "lstsq": (lambda a, v: fnp.linalg.lstsq(a, v)[0], [_n(5, 3), V]),
    "matrix_power": (lambda a: fnp.linalg.matrix_power(a, 3) + fnp.linalg.matrix_power(a, -1), [SQUARE]),
    "rfft": (lambda v: fnp.abs(fnp.fft.rfft(v)) ** 2 + fnp.fft.irfft(fnp.fft.rfft(v), 5)[:3], [V]),
    "fft2": (lambda x: fnp.real(fnp.fft.ifft2(fnp.fft.fft2(x) ** 2)), [X]),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name):
    f, args = CASES[name]
    check_grads(f, *args)


def test_sinc_has_every_derivative_at_zero():
    """sinc(x) = 1 - (pi x)^2/3! + (pi x)^4/5! - ..."""
    f, expected = fnp.sinc, [1, 0, -(np.pi**2) / 3, 0, np.pi**4 / 5]
    for value in expected:
        assert_close(f(np.float64(0.0)), np.float64(value), rtol=1e-12, atol=1e-12)
        f = fgrad.grad(f)
    assert np.isfinite(fgrad.grad(fnp.sinc)(1e25))


@pytest.mark.parametrize("name", CASES)
def test_vmap(name):
    f, args = CASES[name]
    batches = [np.stack([a * (1 + 0.02 * k) for k in range(2)]) for a in args]
    loop = np.stack([np.asarray(f(*[fnp.array(b[k]) for b in batches])) for k in range(2)])
    assert_close(fgrad.vmap(f)(*batches), loop, rtol=1e-9)
    if len(args) > 1:  # only the last argument mapped
        some = [*map(fnp.array, args[:-1])]
        loop = np.stack([np.asarray(f(*some, fnp.array(batches[-1][k]))) for k in range(2)])
        got = fgrad.vmap(f, (*[None] * len(some), 0))(*some, batches[-1])
        assert_close(got, loop, rtol=1e-9)


def test_jit():
    """All functions with their gradients in one compiled program."""

    def gradient(f, xs):
        return fgrad.grad(lambda *ys: fnp.sum(fnp.sin(f(*ys))), tuple(range(len(xs))))(*xs)

    def everything(groups):
        return {name: (CASES[name][0](*xs), gradient(CASES[name][0], xs)) for name, xs in groups.items()}

    groups = {name: tuple(map(fnp.array, args)) for name, (_, args) in CASES.items()}
    got, want = fgrad.jit(everything)(groups), everything(groups)
    for name in CASES:
        for a, b in zip(fgrad.tree.leaves(got[name]), fgrad.tree.leaves(want[name]), strict=True):
            assert_close(a, b, rtol=1e-9, what=name)
