"""`cond` and `switch` against JAX."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from tests.peer import agree, vec

pytestmark = pytest.mark.usefixtures("jax")


def piecewise(lib, p, x, y):
    """Branches capture different outer values, and use different operands."""
    scale = lib.np.sin(y)
    return lib.cond(
        p > 1, lambda a, b: (a * scale, {"s": b.sum()}), lambda a, b: (a + b * y, {"s": a[0]}), x, x * 2
    )


def total(lib, p, x, y):
    out, rest = piecewise(lib, p, x, y)
    return (out**2).sum() + rest["s"]


@pytest.mark.parametrize("p", [0.0, 2.0])
def test_values_and_derivatives(p):
    args = np.float32(p), vec(3), vec(3, seed=1)
    agree(piecewise, *args)
    agree(lambda lib, *a: lib.grad(lambda *a: total(lib, *a), argnums=(0, 1, 2))(*a), *args)
    agree(lambda lib, p, x, y: lib.jvp(lambda x, y: total(lib, p, x, y), (x, y), (y, x)), *args)
    agree(lambda lib, p, x, y: lib.hessian(lambda y: total(lib, p, x, y))(y), *args, rtol=1e-4)


@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0), (0, None, 1)])
def test_vmap(axes):
    shapes = ((), (3,), (3,))
    args = []
    for i, (axis, shape) in enumerate(zip(axes, shapes, strict=True)):
        full = shape if axis is None else shape[:axis] + (4,) + shape[axis:]
        args.append(vec(*full, seed=i))
    args[0] = args[0] * 2
    agree(lambda lib, *a: lib.vmap(lambda *a: piecewise(lib, *a), in_axes=axes)(*a), *args)
    gradient = lambda lib, *a: lib.vmap(lib.grad(lambda *a: total(lib, *a), argnums=(1, 2)), in_axes=axes)(*a)
    agree(gradient, *args)


def test_predicates_of_other_types():
    for p in (True, 0, 1, 0.5, np.int8(3)):
        taken = fgrad.cond(p, lambda: 1.0, lambda: 2.0)
        assert float(taken) == (1.0 if p else 2.0)


def test_only_one_side_is_carried_out():
    calls = []

    def noisy(x):
        calls.append("called")
        return x

    op = fgrad.numba_op(noisy, out=lambda x: fgrad.ShapeDtype(x.shape, x.dtype))
    f = fgrad.jit(lambda p, x: fgrad.cond(p, lambda x: op(x), lambda x: x * 2, x))
    f(False, vec(2))
    assert calls == []
    f(True, vec(2))
    assert calls == ["called"]


@pytest.mark.parametrize("index", [-3, 0, 1, 2, 9])
def test_switch_clamps(index):
    def f(lib, i, x):
        return lib.switch(i, [lambda x: x, lambda x: x * 2, lambda x: lib.np.sin(x)], x)

    agree(f, np.int32(index), vec(3))
    agree(lambda lib, i, x: lib.grad(lambda x: f(lib, i, x).sum())(x), np.int32(index), vec(3))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_switch_vmap(axes):
    def f(lib, i, x):
        return lib.switch(i, [lambda x: x, lambda x: x * 2, lambda x: lib.np.sin(x)], x)

    i = np.array([2, 0, 5, -1], "int32") if axes[0] == 0 else np.int32(1)
    x = vec(4, 3) if axes[1] == 0 else vec(3)
    agree(lambda lib, i, x: lib.vmap(lambda i, x: f(lib, i, x), in_axes=axes)(i, x), i, x)


def test_nested():
    def f(lib, x):
        inner = lambda v: lib.cond(v.sum() > 1.5, lambda v: v * 2, lambda v: v * v, v)
        return lib.cond(x[0] > 0.5, inner, lambda v: v - 1, x)

    for seed in range(3):
        agree(f, vec(3, seed=seed))
        agree(lambda lib, x: lib.grad(lambda x: f(lib, x).sum())(x), vec(3, seed=seed), compiled=seed == 0)


def test_gradient_where_one_branch_is_constant():
    def f(lib, p, x):
        return lib.cond(p > 0, lambda x: x * 3, lambda x: lib.np.zeros_like(x), x).sum()

    for p in (1.0, -1.0):
        agree(lambda lib, p, x: lib.grad(lambda x: f(lib, p, x))(x), np.float32(p), vec(2))


def test_untaken_branch_makes_no_nan():
    """The point of `cond` against `where`: the gradient of the side not taken does not leak in."""

    def f(lib, x):
        return lib.cond(x > 0, lambda x: lib.np.sqrt(x), lambda x: x * 0, x)

    agree(lambda lib, x: lib.grad(lambda x: f(lib, x))(x), np.float32(0.0))


def test_weak_operands():
    half = fnp.ones(2, "float16")
    out = fgrad.cond(True, lambda s: half * s, lambda s: half + s, 2.0)
    assert out.dtype == np.float16


def test_while_inside_cond():
    def f(lib, p, x):
        grow = lambda x: lib.while_loop(lambda c: c.sum() < 20, lambda c: c * 2, x)
        return lib.cond(p > 0, grow, lambda x: -x, x)

    for p in (1.0, -1.0):
        agree(f, np.float32(p), vec(3))
