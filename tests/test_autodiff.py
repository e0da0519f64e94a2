"""The derivative functions as users call them: argnums, aux, pytrees, keywords, orders, errors. Compared with JAX."""

import collections

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from tests.peer import agree, assert_same, vec

X = np.float32([1, 2, 3])
Params = collections.namedtuple("Params", "w b")


def loss(lib, p, x, *, power=2):
    return lib.np.mean(lib.np.tanh(x @ p["w"] + p["b"]) ** power)


P = {"w": vec(3, 2), "b": vec(2, seed=1)}
BATCH = vec(4, 3, seed=2)


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize("argnums", [0, 1, (0,), (0, 1), (1, 0), -1, (-2,)])
def test_argnums(jax, argnums):
    agree(lambda lib, p, x: lib.grad(lambda p, x: loss(lib, p, x), argnums=argnums)(p, x), P, BATCH)


def test_keywords_pass_through(jax):
    agree(lambda lib, p, x: lib.grad(lambda *a, **k: loss(lib, *a, **k))(p, x, power=3), P, BATCH)


def test_aux(jax):
    def f(lib, p, x):
        y = x @ p["w"]
        return (y**2).sum(), {"y": y, "n": 3, "none": None}

    agree(lambda lib, p, x: lib.value_and_grad(lambda p, x: f(lib, p, x), has_aux=True)(p, x), P, BATCH)
    agree(lambda lib, p, x: lib.grad(lambda p, x: f(lib, p, x), has_aux=True)(p, x), P, BATCH)
    agree(lambda lib, p, x: lib.vjp(lambda p, x: f(lib, p, x), p, x, has_aux=True)[2], P, BATCH)
    agree(lambda lib, x: lib.jvp(lambda x: (x * 2, x + 1), (x,), (x,), has_aux=True), X)


def test_aux_of_other_kinds_and_its_own_gradient():
    value, aux = fgrad.value_and_grad(lambda x: (x**2, "label"), has_aux=True)(3.0)[0]
    assert aux == "label" and float(value) == 9.0

    def outer(x):
        _, aux = fgrad.grad(lambda y: (y * y, y * x), has_aux=True)(x)
        return aux

    assert float(fgrad.grad(outer)(3.0)) == 6.0


def test_pytrees_come_back_as_they_went_in():
    p = {"l": [X, (X * 2,)], "n": None, "t": Params(X, 1.5), "e": {}}
    f = lambda p: (p["l"][0] * p["l"][1][0] * p["t"].w * p["t"].b).sum()
    for g in (fgrad.grad(f)(p), fgrad.jit(fgrad.grad(f))(p)):
        assert type(g["t"]) is Params and g["n"] is None and g["e"] == {} and type(g["l"][1]) is tuple
        np.testing.assert_allclose(g["t"].b, (X * 2 * X * X).sum())


def test_unused_arguments_have_zero_gradients():
    g = fgrad.grad(lambda a, b: (a * 2).sum(), argnums=(0, 1))(X, {"k": X})
    np.testing.assert_array_equal(g[1]["k"], np.zeros(3))
    np.testing.assert_array_equal(fgrad.grad(lambda x: 3.0)(X), np.zeros(3))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_gradients_have_the_dtype_of_their_argument(dtype):
    x = fnp.asarray(X).astype(dtype)
    assert fgrad.grad(lambda x: (x * x).sum())(x).dtype == x.dtype
    wide = fgrad.grad(lambda x: (x.astype("float32") ** 2).sum())(x)
    assert wide.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(wide, "float32"), 2 * X, rtol=1e-2)


def test_numpy_python_and_list_arguments():
    f = lambda x: (fnp.asarray(x) ** 2).sum()
    assert float(fgrad.grad(f)(3.0)) == 6.0
    assert float(fgrad.grad(f)(np.float64(3.0))) == 6.0
    np.testing.assert_allclose(fgrad.grad(f)(X), 2 * X)
    assert [float(g) for g in fgrad.grad(lambda p: p[0] ** 2 + p[1] * 3)([1.0, 2.0])] == [2.0, 3.0]


def test_integer_arguments_beside_floats():
    _y, pull = fgrad.vjp(lambda x, n: x * n, X, np.array([1, 2, 3]))
    gx, gn = pull(np.ones(3, "float32"))
    np.testing.assert_allclose(gx, [1, 2, 3])
    np.testing.assert_array_equal(gn, np.zeros(3))


# ------------------------------------------------------------------------------------------------ composition

SCALARS = [
    lambda np_, x: np_.sin(x) * x**3,
    lambda np_, x: np_.exp(-x * x) / (1 + x),
    lambda np_, x: np_.tanh(x) * np_.log(x + 2),
    lambda np_, x: np_.where(x > 0.5, x**4, np_.cos(x)),
    lambda np_, x: np_.sqrt(x + 1) ** 3,
]


@pytest.mark.parametrize("f", SCALARS)
def test_three_orders(jax, f):
    agree(lambda lib, x: lib.grad(lib.grad(lib.grad(lambda x: f(lib.np, x))))(x), np.float32(0.7), rtol=1e-4)


ORDERS = {
    "vmap grad": lambda lib, f, x: lib.vmap(lib.grad(f))(lib.np.stack([x, x * 2])),
    "grad vmap": lambda lib, f, x: lib.grad(lambda x: lib.vmap(f)(lib.np.stack([x, x * 2])).sum())(x),
    "jvp vjp": lambda lib, f, x: lib.jvp(lambda x: lib.vjp(f, x)[1](np.float32(1))[0], (x,), (x,)),
    "vjp jvp": lambda lib, f, x: lib.vjp(lambda x: lib.jvp(f, (x,), (x,))[1], x)[1](np.float32(1)),
    "jvp jvp": lambda lib, f, x: lib.jvp(lambda x: lib.jvp(f, (x,), (x,)), (x,), (x * 2,)),
    "hessian": lambda lib, f, x: lib.hessian(f)(x),
    "jacrev jacfwd": lambda lib, f, x: lib.jacrev(lib.jacfwd(f))(x),
    "jacrev jacrev": lambda lib, f, x: lib.jacrev(lib.jacrev(f))(x),
    "jacfwd jacfwd": lambda lib, f, x: lib.jacfwd(lib.jacfwd(f))(x),
    "vmap hessian": lambda lib, f, x: lib.vmap(lib.hessian(f))(lib.np.stack([x, x * 2])),
    "hessian vmap": lambda lib, f, x: lib.hessian(lambda x: lib.vmap(f)(lib.np.stack([x, x * 2])).sum())(x),
    "vmap vmap grad": lambda lib, f, x: lib.vmap(lib.vmap(lib.grad(f)))(lib.np.stack([x, x * 2])[None]),
    "linearize": lambda lib, f, x: lib.linearize(f, x)[1](x * 3),
    "grad linearize": lambda lib, f, x: lib.grad(lambda x: lib.linearize(f, x)[1](x))(x),
    "jit grad vmap jit": lambda lib, f, x: lib.jit(lib.grad(lambda x: lib.vmap(lib.jit(f))(x[None]).sum()))(
        x
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_transforms(jax, order):
    def f(lib):
        return lambda x: (lib.np.sin(x) * lib.np.cumsum(x) * x[::-1]).sum() ** 2 + lib.np.max(x * x)

    compiled = order in ("vmap vmap grad", "hessian", "jit grad vmap jit")
    agree(lambda lib, x: ORDERS[order](lib, f(lib), x), vec(3), rtol=1e-4, compiled=compiled)


def test_jacobians_of_pytrees(jax):
    def f(lib, p):
        return {"y": lib.np.sin(p["w"] @ p["b"]), "s": (p["w"] ** 2).sum()}

    agree(lambda lib, p: lib.jacrev(lambda p: f(lib, p))(p), P)
    agree(lambda lib, p: lib.jacfwd(lambda p: f(lib, p))(p), P, compiled=False)
    agree(lambda lib, w, b: lib.jacrev(lambda w, b: w @ b, (0, 1))(w, b), P["w"], P["b"], compiled=False)
    agree(lambda lib, w, b: lib.jacfwd(lambda w, b: w @ b, 1)(w, b), P["w"], P["b"], compiled=False)
    agree(lambda lib, p: lib.hessian(lambda p: f(lib, p)["s"] * p["b"].sum())(p), P, compiled=False)


def test_closures_over_tracers_of_outer_derivatives(jax):
    """Perturbation confusion: the inner derivative must not see the outer one's tangent."""
    agree(lambda lib, x: lib.grad(lambda x: x * lib.grad(lambda y: x + y)(1.0))(x), np.float32(2.0))
    agree(
        lambda lib, x: lib.jvp(lambda x: x * lib.jvp(lambda y: x * y, (1.0,), (1.0,))[1], (x,), (1.0,)),
        np.float32(2.0),
    )
    agree(lambda lib, x: lib.vmap(lambda x: lib.grad(lambda y: (x * y).sum() ** 2)(x))(x), vec(2, 3))
    agree(
        lambda lib, x: lib.grad(lambda x: lib.vmap(lambda y: (x * y).sum())(lib.np.stack([x, x])).sum())(x), X
    )


def test_pullback_and_pushforward_are_reusable(jax):
    _y, pull = fgrad.vjp(lambda x: fnp.sin(x) * x, X)
    one, two = pull(np.ones(3, "float32"))[0], pull(np.full(3, 2.0, "float32"))[0]
    np.testing.assert_allclose(two, 2 * np.asarray(one), rtol=1e-6)
    batch = fgrad.vmap(lambda c: pull(c)[0])(np.eye(3, dtype="float32"))
    np.testing.assert_allclose(batch, np.diag(np.asarray(one)), rtol=1e-6)
    np.testing.assert_allclose(fgrad.jit(lambda c: pull(c)[0])(np.ones(3, "float32")), one, rtol=1e-5)
    _, push = fgrad.linearize(lambda x: fnp.sin(x) * x, X)
    np.testing.assert_allclose(push(np.ones(3, "float32")), one, rtol=1e-6)
    np.testing.assert_allclose(fgrad.grad(lambda t: push(t).sum())(X), one, rtol=1e-6)


def test_forward_values_are_not_computed_again():
    """Outside jit the backward pass reuses what the forward pass recorded."""
    calls = []

    def noisy(x):
        calls.append(1)
        return x * 2

    op = fgrad.numba_op(noisy, out=lambda x: fgrad.ShapeDtype(x.shape, x.dtype))
    op.defvjp(lambda x: (op.plain(x), x), lambda x, ct: (ct * x,))
    _y, pull = fgrad.vjp(lambda x: fnp.sin(op.plain(fgrad.stop_gradient(x))) * x, X)
    pull(np.ones(3, "float32"))
    pull(np.ones(3, "float32"))
    assert len(calls) == 1


def test_linear_transpose(jax):
    a = vec(4, 3)
    f = lambda lib: lambda x: {"y": lib.np.asarray(a) @ x * 2, "z": x[::-1].sum()}

    def run(lib, x, y, z):
        return lib.linear_transpose(f(lib), x)({"y": y, "z": z})

    agree(run, X, vec(4, seed=3), np.float32(2))
    agree(lambda lib, x, y: lib.linear_transpose(lambda p: p[0] * 2 - p[1], (x, x))(y), X, X)


@pytest.mark.parametrize(
    "f",
    [
        fnp.sin,
        fnp.abs,
        lambda x: x * x,
        lambda x: x @ x,
        lambda x: 2 / x,
        lambda x: fnp.where(x > 0, x, 2 * x),
    ],
)
def test_linear_transpose_of_what_is_not_linear(f):
    with pytest.raises(fgrad.FgradError, match="linear_transpose: the function is not linear"):
        fgrad.linear_transpose(f, X)


def test_linear_transpose_checks_cotangents():
    transposed = fgrad.linear_transpose(lambda x: (x, 2 * x), X)
    with pytest.raises(TypeError, match="cotangents have structure"):
        transposed(X)
    with pytest.raises(TypeError, match=r"cotangent 1 is float32\[1\]"):
        transposed((X, X[:1]))


# ------------------------------------------------------------------------------------------------ vmap


@pytest.mark.parametrize("in_axes", [(0, 1), (-3, -1), (1, None), (None, 0)])
@pytest.mark.parametrize("out_axes", [0, 1, -1])
def test_in_and_out_axes(jax, in_axes, out_axes):
    def f(lib, a, b):
        return lib.vmap(lambda a, b: a * b.sum(), in_axes=in_axes, out_axes=out_axes)(a, b)

    agree(f, vec(2, 3, 4), vec(3, 2, seed=1), compiled=False)


def test_axes_as_prefixes_of_pytrees(jax):
    t = {"a": vec(2, 3), "b": (vec(2, 4), vec(3, 2))}
    f = lambda d, s: {"p": d["a"] * s, "q": (d["b"][0].sum(), d["b"][1])}
    agree(
        lambda lib, t, s: lib.vmap(f, in_axes=({"a": 0, "b": (0, 1)}, None), out_axes={"p": 1, "q": 0})(t, s),
        t,
        np.float32(2),
    )


def test_axis_size_and_unmapped_outputs(jax):
    agree(lambda lib, x: lib.vmap(lambda x: (x, 3.0), in_axes=None, axis_size=4)(x), X)
    agree(lambda lib, x: lib.vmap(lambda x: (x, 3.0), out_axes=(0, None))(x), X)
    agree(lambda lib, x: lib.vmap(lambda x, *, k: x * k)(x, k=x + 1), X)


def test_scalars_stay_weak_under_vmap():
    half = np.ones(3, "float16")
    assert fgrad.vmap(lambda x, s: x * s, in_axes=(0, None))(half, 2.0).dtype == np.float16


def test_empty_batch():
    out = fgrad.vmap(lambda x: (x * 2, x.sum()))(np.zeros((0, 3), "float32"))
    assert out[0].shape == (0, 3) and out[1].shape == (0,)


def test_values_against_value_and_grad():
    v, g = fgrad.value_and_grad(lambda x: (x**2).sum())(X)
    assert_same((v, g), (np.float32(14), 2 * X))


@pytest.mark.parametrize(
    "differentiate",
    [
        lambda z: fgrad.jvp(lambda z: z * z, (z,), (z,)),
        lambda z: fgrad.vjp(lambda z: z * z, z)[1](z),
        lambda z: fgrad.linearize(lambda z: z * z, z),
    ],
)
def test_complex_inputs_are_refused_not_given_zero_derivatives(differentiate):
    with pytest.raises(fgrad.FgradTypeError, match="complex derivatives are not supported"):
        differentiate(np.array([1 + 2j], "complex64"))
