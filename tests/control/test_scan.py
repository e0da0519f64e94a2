"""`scan`, `map` and `fori_loop` against JAX: values, derivatives of every order, batching, compiled and not."""

import itertools

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from tests.peer import agree, assert_same, vec

pytestmark = pytest.mark.usefixtures("jax")


def rnn(lib, w, h, xs):
    """Pytrees in carry, xs and ys; a captured weight."""

    def step(carry, x):
        state, count = carry["h"], carry["n"]
        new = lib.np.tanh(x["a"] @ w + state * x["b"])
        return {"h": new, "n": count + 1}, (new.sum(), {"y": new * 2.0})

    return lib.scan(step, {"h": h, "n": 0}, xs)


def rnn_args():
    return vec(3, 4), vec(4, seed=1), {"a": vec(5, 3, seed=2), "b": vec(5, 4, seed=3)}


def rnn_loss(lib, w, h, xs):
    carry, (s, y) = rnn(lib, w, h, xs)
    return lib.np.sum(carry["h"] ** 2) + lib.np.sum(s) + lib.np.mean(y["y"] ** 3)


def test_values_of_pytrees():
    agree(rnn, *rnn_args())


def test_reverse_keeps_the_order_of_outputs():
    agree(lambda lib, xs: lib.scan(lambda c, x: (c * 0.5 + x, c - x), 1.0, xs, reverse=True), vec(6))


@pytest.mark.parametrize("reverse", [False, True])
def test_zero_length(reverse):
    def f(lib, c, xs):
        return lib.scan(lambda c, x: (c * x.sum(), c + 1), c, xs, reverse=reverse)

    agree(f, vec(3), vec(0, 2))
    agree(lambda lib, c, xs: lib.grad(lambda c: f(lib, c, xs)[0].sum() * 2)(c), vec(3), vec(0, 2))


def test_length_only():
    def f(lib, x):
        return lib.scan(lambda c, _: (c * x, c + x), x, None, length=4)

    agree(f, vec(3))
    agree(lambda lib, x: lib.jacrev(lambda x: f(lib, x)[1])(x), vec(3))


def test_gradients_of_weights_state_and_inputs():
    agree(lambda lib, *a: lib.grad(lambda *a: rnn_loss(lib, *a), argnums=(0, 1))(*a), *rnn_args())
    agree(lambda lib, w, h, xs: lib.grad(lambda xs: rnn_loss(lib, w, h, xs))(xs), *rnn_args())


def test_forward_mode():
    def f(lib, w, h, xs):
        return lib.jvp(lambda w, h: rnn_loss(lib, w, h, xs), (w, h), (w * 2, h * 0 + 1))

    agree(f, *rnn_args())


def test_gradient_twice():
    def f(lib, w, h, xs):
        inner = lib.grad(lambda w: rnn_loss(lib, w, h, xs))
        return lib.grad(lambda w: (inner(w) ** 2).sum())(w)

    agree(f, *rnn_args(), rtol=1e-4)


def cubic(lib, x):
    carry, ys = lib.scan(lambda c, t: (lib.np.sin(c) * t + c, c * c), x, lib.np.asarray(vec(4, 3)))
    return carry.sum() + (ys * x).sum()


def test_hessian_of_a_scan():
    agree(lambda lib, x: lib.hessian(lambda x: cubic(lib, x))(x), vec(3), rtol=1e-4)


def test_third_derivative():
    def f(lib, x):
        g = lambda s: cubic(lib, x * s)
        return lib.grad(lib.grad(lib.grad(g)))(0.7)

    agree(f, vec(3), rtol=1e-4)


def test_jvp_of_vjp():
    def f(lib, x):
        def back(x):
            y, pull = lib.vjp(lambda x: cubic(lib, x), x)
            return pull(y)[0]

        return lib.jvp(back, (x,), (x * 0.5,))

    agree(f, vec(3), rtol=1e-4)


@pytest.mark.parametrize(
    "axes",
    [a for a in itertools.product((None, 0), (None, 0), (None, 0, 1)) if any(x is not None for x in a)],
)
def test_vmap_of_every_combination(axes):
    w_axis, c_axis, x_axis = axes

    def one(lib, w, c, xs):
        return lib.scan(lambda c, x: (lib.np.sin(c * w) + x, (c * x, w * 2)), c, xs)

    w = vec(2, 3) if w_axis == 0 else vec(3)
    c = vec(2, 3, seed=1) if c_axis == 0 else vec(3, seed=1)
    xs = {None: vec(4, 3, seed=2), 0: vec(2, 4, 3, seed=2), 1: vec(4, 2, 3, seed=2)}[x_axis]
    agree(lambda lib, *a: lib.vmap(lambda *a: one(lib, *a), in_axes=axes)(*a), w, c, xs)

    def loss(lib, *a):
        carry, (y, z) = one(lib, *a)
        return carry.sum() + (y * z).sum()

    gradient = lambda lib, *a: lib.vmap(lib.grad(lambda *a: loss(lib, *a), argnums=(0, 1, 2)), in_axes=axes)(
        *a
    )
    agree(gradient, w, c, xs, rtol=1e-4, compiled=axes in ((0, None, 1), (None, 0, 0)))


def test_closure_over_a_tracer_outside():
    def f(lib, x, y):
        outer = lib.np.cos(x)
        return lib.grad(lambda y: lib.scan(lambda c, t: (c * outer + t, None), y, outer * y)[0].sum())(y)

    agree(f, vec(3), vec(3, seed=1))
    agree(lambda lib, x, y: lib.grad(lambda x: f(lib, x, y).sum())(x), vec(3), vec(3, seed=1))


def test_captured_arrays_are_inputs():
    table = fnp.asarray(vec(5, 3))
    graph = fgrad.make_graph(lambda x: fgrad.scan(lambda c, t: (c + t * table[0], None), x, table)[0])(vec(3))
    assert len(graph.inputs) == 2


def test_cond_inside_scan():
    def f(lib, x):
        def step(c, t):
            new = lib.cond(t > 0.8, lambda c: lib.np.sin(c) * t, lambda c: c * c + x, c)
            return new, new * t

        carry, ys = lib.scan(step, x, lib.np.asarray(vec(6, seed=4)))
        return carry.sum() + ys.sum()

    agree(f, vec(3))
    agree(lambda lib, x: lib.grad(lambda x: f(lib, x))(x), vec(3))
    agree(lambda lib, x: lib.hessian(lambda x: f(lib, x))(x), vec(3), rtol=1e-4)


def test_scan_inside_scan():
    def f(lib, x):
        def inner(c, t):
            return lib.scan(lambda d, s: (d * s + x, d), c, lib.np.stack([t, t * 2, t * 3]))

        carry, ys = lib.scan(inner, x, lib.np.asarray(vec(3, 2)))
        return (carry**2).sum() + ys.sum()

    agree(f, vec(2))
    agree(lambda lib, x: lib.grad(lambda x: f(lib, x))(x), vec(2))
    agree(lambda lib, x: lib.vmap(lib.grad(lambda x: f(lib, x)))(x), vec(3, 2))


def test_scan_inside_vmap_inside_scan():
    def f(lib, x):
        def step(c, t):
            each = lib.vmap(lambda d: lib.scan(lambda e, s: (e * s, None), d, t)[0])
            return each(c), c.sum()

        return lib.scan(step, x, lib.np.asarray(vec(3, 4)))

    agree(f, vec(5))


def test_integer_and_boolean_carries():
    def f(lib, x):
        def step(c, t):
            i, flag, v = c
            return (i + 1, lib.np.logical_not(flag), lib.np.where(flag, v * t, v + t)), (i, flag)

        return lib.scan(step, (0, True, 1.5), x)

    agree(f, vec(5))
    agree(lambda lib, x: lib.grad(lambda x: f(lib, x)[0][2])(x), vec(5))


def test_unused_and_passed_through():
    def f(lib, a, b, xs):
        return lib.scan(lambda c, x: ((c[1], c[0]), None), (a, b), xs)

    agree(f, vec(2), vec(2, seed=1), vec(3))
    gradient = lambda lib, a, b, xs: lib.grad(
        lambda a, xs: (f(lib, a, b, xs)[0][0] * 3).sum(), argnums=(0, 1)
    )(a, xs)
    agree(gradient, vec(2), vec(2, seed=1), vec(3))


def test_map_applies_to_each():
    agree(lambda lib, x: lib.map(lambda r: (r.sum(), r * 2), x), vec(4, 3))
    agree(lambda lib, x: lib.grad(lambda x: lib.map(lambda r: (r**2).sum(), x).sum())(x), vec(4, 3))


def test_fori_loop_with_static_bounds():
    def f(lib, x):
        return lib.fori_loop(1, 5, lambda i, c: c * 1.5 + x / i, x)

    agree(f, vec(3))
    agree(lambda lib, x: lib.grad(lambda x: f(lib, x).sum())(x), vec(3))
    agree(lambda lib, x: lib.fori_loop(5, 1, lambda i, c: c * 2, x), vec(3))


def test_fori_loop_with_dynamic_bounds():
    def f(lib, n, x):
        return lib.fori_loop(0, n, lambda i, c: c * 1.5 + i, x)

    agree(f, np.int32(4), vec(3))
    agree(lambda lib, n, x: lib.jvp(lambda x: f(lib, n, x), (x,), (x,)), np.int32(4), vec(3))
    agree(lambda lib, n, x: lib.vmap(lambda n, x: f(lib, n, x))(n, x), np.arange(3), vec(3))


@pytest.mark.parametrize("bound", [3, np.int64(3), np.array(3, "int32"), fnp.asarray(3)])
def test_fori_loop_whose_bounds_are_known_is_differentiable(bound):
    f = lambda x, n: fgrad.fori_loop(0, n, lambda i, c: c * 2, x)
    assert float(fgrad.grad(f)(1.0, bound)) == 8.0
    assert float(fgrad.vjp(f, 1.0, bound)[1](1.0)[0]) == 8.0  # traced, but its value is known outside jit
    assert float(fgrad.jit(lambda x: fgrad.grad(f)(x, bound))(1.0)) == 8.0


def test_fori_loop_bounds_must_be_integers():
    for bad in (2.5, np.arange(3)):
        with pytest.raises(fgrad.FgradTypeError, match="bounds must be integer scalars"):
            fgrad.fori_loop(0, bad, lambda i, c: c, 0.0)


def test_bare_scalars_in_the_carry_take_the_dtype_of_the_body():
    wide = np.arange(3, dtype="float64")
    for run in (lambda f: f(), lambda f: fgrad.jit(f)()):
        total = run(lambda: fgrad.scan(lambda c, x: (c + x, None), 0, wide)[0])
        assert total.dtype == np.float64 and float(total) == 3.0
        assert run(lambda: fgrad.fori_loop(0, 3, lambda i, c: c * 0.5, 8)).dtype == np.float32
        assert run(lambda: fgrad.while_loop(lambda c: c < 9, lambda c: c * wide[2], 1.0)).dtype == np.float64
    half = fgrad.jit(lambda s: fgrad.scan(lambda c, x: (c + x, None), s, wide)[0])(1.0)
    assert half.dtype == np.float64
    with pytest.raises(fgrad.FgradTypeError, match=r"\.astype"):
        fgrad.scan(lambda c, x: (c + x, None), fnp.asarray(0), wide)


def test_linear_transpose_of_a_scan():
    def f(lib, x, ct):
        linear = lambda x: lib.scan(lambda c, t: (c * 0.5 + t, c), x[0], x)
        return lib.linear_transpose(linear, x)((ct, ct + x))

    agree(f, vec(4), np.float32(2.0))


def test_native_loop():
    """The compiled program has a loop of its own, not one call of the NumPy definition."""
    from fgrad.codegen.program import ForStep, HostStep, walk

    low = fgrad.jit(lambda x: fgrad.scan(lambda c, t: (fnp.sin(c) + t, c * t), x[0], x)).lower(vec(5))
    steps = list(walk(low.program.body))
    assert any(isinstance(s, ForStep) for s in steps)
    assert not any(isinstance(s, HostStep) for s in steps)


def test_numpy_at_a_cut_inside_a_scan():
    """A body that needs NumPy (sorting) still runs compiled, and is differentiated."""

    def f(lib, x):
        return lib.scan(lambda c, t: (lib.np.sort(c * t)[::-1] + c, c[0]), x, lib.np.asarray(vec(3)))

    agree(f, vec(4))
    agree(lambda lib, x: lib.grad(lambda x: (f(lib, x)[0] ** 2).sum())(x), vec(4))


def test_mutated_carry_container_is_not_shared():
    def step(c, _):
        c["x"] = c["x"] + 1.0
        return c, c["x"]

    init = {"x": fnp.zeros(())}
    carry, ys = fgrad.scan(step, init, None, length=3)
    assert_same(ys, np.float32([1, 2, 3]))
    assert float(init["x"]) == 0.0 and float(carry["x"]) == 3.0
