"""`numba_op`: a user's compiled function inside graphs, eager, compiled, differentiated and batched."""

import numba
import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import ShapeDtype


def same(x):
    return ShapeDtype(x.shape, x.dtype)


@numba.njit
def smooth_loop(x):
    y = x.copy()
    for i in range(1, len(x) - 1):
        y[i] = (x[i - 1] + x[i] + x[i + 1]) / 3
    return y


@numba.njit
def smooth_transposed(g):
    x = np.zeros_like(g)
    x[0] += g[0]
    x[-1] += g[-1]
    for i in range(1, len(g) - 1):
        for j in range(i - 1, i + 2):
            x[j] += g[i] / 3
    return x


def make_smooth():
    """Linear: its derivative is its transpose, itself a compiled operation."""
    op = fgrad.numba_op(smooth_loop, out=same)
    back = fgrad.numba_op(smooth_transposed, out=same)
    op.defvjp(lambda x: (op.plain(x), None), lambda _, ct: (back(ct),))
    return op


def reference(x):
    y = fnp.concatenate([x[:1], (x[:-2] + x[1:-1] + x[2:]) / 3, x[-1:]])
    return y


X = np.random.default_rng(0).normal(size=9).astype("float32")


def test_eager_compiled_and_inside_other_operations():
    op = make_smooth()
    f = lambda x: fnp.sin(op(x * 2)) + x
    expected = np.sin(smooth_loop(X * 2)) + X
    np.testing.assert_allclose(f(fnp.asarray(X)), expected, rtol=1e-6)
    np.testing.assert_allclose(fgrad.jit(f)(X), expected, rtol=1e-5)


@pytest.mark.parametrize("wrap", [lambda f: f, fgrad.jit])
def test_gradient(wrap):
    op = make_smooth()
    g = wrap(fgrad.grad(lambda x: (op(x) ** 3).sum()))(X)
    expected = fgrad.grad(lambda x: (reference(x) ** 3).sum())(X)
    np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, fgrad.jit])
def test_vmap_and_gradient_of_a_batch(wrap):
    op = make_smooth()
    xs = np.stack([X, X[::-1], X * 2])
    np.testing.assert_allclose(
        wrap(fgrad.vmap(op))(xs), np.stack([smooth_loop(x.copy()) for x in xs]), rtol=1e-6
    )
    g = wrap(fgrad.vmap(fgrad.grad(lambda x: (op(x) ** 3).sum())))(xs)
    expected = fgrad.vmap(fgrad.grad(lambda x: (reference(x) ** 3).sum()))(xs)
    np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-6)
    twice = wrap(fgrad.vmap(fgrad.vmap(op)))(xs[None])
    np.testing.assert_allclose(twice[0], np.stack([smooth_loop(x.copy()) for x in xs]), rtol=1e-6)


def test_a_batched_version_of_its_own():
    calls = []

    def one(x):
        calls.append("one")
        return x * 2

    def many(x):
        calls.append("many")
        return x * 2

    op = fgrad.numba_op(one, out=same)
    op.defbatch(many)
    np.testing.assert_allclose(fgrad.vmap(op)(np.ones((4, 3), "float32")), 2)
    assert calls == ["many"]


def test_forward_rule():
    op = fgrad.numba_op(smooth_loop, out=same)
    op.defjvp(lambda primals, tangents: (op.plain(*primals), op.plain(*tangents)))
    y, dy = fgrad.jvp(op, (X,), (X * 2,))
    np.testing.assert_allclose(dy, 2 * np.asarray(y), rtol=1e-6)


def test_several_outputs_and_dtypes():
    @fgrad.numba_op(out=lambda x: (ShapeDtype((), "int64"), ShapeDtype((2,), x.dtype)))
    @numba.njit
    def extremes(x):
        return np.argmax(x), np.array([x.min(), x.max()], dtype=x.dtype)

    for run in (extremes, fgrad.jit(extremes)):
        at, ends = run(X)
        assert int(at) == X.argmax() and at.dtype == np.int64
        np.testing.assert_allclose(ends, [X.min(), X.max()])


def test_fixed_signatures_and_readonly_inputs():
    @fgrad.numba_op(out=same)
    @numba.njit("float32[::1](float32[::1])")
    def double(x):
        return x * np.float32(2)

    frozen = X.copy()
    frozen.flags.writeable = False
    for x in (X, frozen, X[::-1], np.stack([X, X], 1)[:, 0]):
        np.testing.assert_allclose(double(x), x * 2)
        np.testing.assert_allclose(fgrad.jit(lambda x: double(x + 0))(x), x * 2)
        np.testing.assert_allclose(fgrad.jit(double)(x), x * 2)


def test_inside_control_flow():
    op = make_smooth()
    f = lambda x: fgrad.scan(lambda c, _: (op(c), c.sum()), x, None, length=3)
    expected = smooth_loop(smooth_loop(smooth_loop(X)))
    np.testing.assert_allclose(f(X)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(fgrad.jit(f)(X)[0], expected, rtol=1e-6)
    ref = lambda x: fgrad.scan(lambda c, _: (reference(c), c.sum()), x, None, length=3)
    loss = lambda f: fgrad.grad(lambda x: (f(x)[0] ** 2).sum() + f(x)[1].sum())
    np.testing.assert_allclose(loss(f)(X), loss(ref)(X), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fgrad.jit(loss(f))(X), loss(ref)(X), rtol=1e-4, atol=1e-6)


def test_no_derivative_is_an_error_with_the_remedy():
    op = fgrad.numba_op(smooth_loop, out=same)
    with pytest.raises(NotImplementedError, match="smooth_loop: it has no derivative") as e:
        fgrad.grad(lambda x: op(x).sum())(X)
    assert "defvjp" in str(e.value) and "stop_gradient" in str(e.value) and "test_numba_op.py" in str(e.value)
    np.testing.assert_allclose(
        fgrad.grad(lambda x: (op(fgrad.stop_gradient(x)) * x).sum())(X), smooth_loop(X)
    )


def test_a_wrong_result_is_named():
    shape = fgrad.numba_op(lambda x: x[:2], out=same)
    dtype = fgrad.numba_op(lambda x: x.astype("float64"), out=same)
    count = fgrad.numba_op(lambda x: (x, x), out=same)
    for op, text in ((shape, r"float32\[2\]"), (dtype, r"float64\[9\]"), (count, "returned 2 arrays")):
        with pytest.raises(fgrad.FgradTypeError, match=text):
            op(X)
        with pytest.raises(fgrad.FgradTypeError, match=text):
            fgrad.jit(op)(X)
    with pytest.raises(fgrad.FgradValueError, match="`out` must return ShapeDtype"):
        fgrad.numba_op(lambda x: x, out=lambda x: x.shape)(X)


def test_inputs_may_not_be_written():
    def bad(x):
        x[0] = 99
        return x

    op = fgrad.numba_op(bad, out=same)
    x = X.copy()
    for run in (op, fgrad.jit(op)):
        with pytest.raises(ValueError, match="read-only"):
            run(x)
    assert x[0] == X[0]


def test_an_exception_inside_comes_through():
    def bad(x):
        raise ZeroDivisionError("inside")

    op = fgrad.numba_op(bad, out=same)
    for run in (op, fgrad.jit(op), fgrad.jit(op)):
        with pytest.raises(ZeroDivisionError, match="inside"):
            run(X)


def test_the_result_does_not_alias_what_the_function_keeps():
    """A function may return its input or a buffer that it writes again: the array handed out stays as it is."""
    buffer = np.zeros(9, "float32")

    def reuse(x):
        buffer[:] = x * 2
        return buffer

    op = fgrad.numba_op(reuse, out=same)
    first = op(X)
    op(X * 5)
    np.testing.assert_allclose(first, X * 2)
    same_op = fgrad.numba_op(lambda x: x, out=same)
    x = X.copy()
    y = same_op(x)
    np.testing.assert_allclose(y, X)
