"""Reverse mode against JAX, to the third order and through every nesting of the transforms."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.ir import check
from fgrad.trace import trace
from fgrad.transforms.transpose import vjp_graph


def test_value_and_grad(scalar, jax64, close):
    got = fgrad.value_and_grad(scalar.f, scalar.argnums)(*scalar.args)
    close(got, jax64.jit(jax64.value_and_grad(scalar.g, scalar.argnums))(*scalar.args))


def test_hessian_vector_products(scalar, jax64, close):
    """Forward over reverse and reverse over forward give the same, and JAX's."""
    rng = np.random.default_rng(1)
    t = tuple(rng.normal(size=np.shape(a)) for a in scalar.args)
    args = tuple(scalar.args)

    def forward_over_reverse(lib, f):
        return lib.jvp(lib.grad(f, scalar.argnums), args, t)[1]

    def reverse_over_forward(lib, f):
        return lib.grad(lambda *xs: lib.jvp(f, xs, t)[1], scalar.argnums)(*args)

    want = jax64.jit(lambda: forward_over_reverse(jax64, scalar.g))()
    close(forward_over_reverse(fgrad, scalar.f), want)
    close(reverse_over_forward(fgrad, scalar.f), want)


def test_reverse_over_reverse(scalar, jax64, close):
    def total(lib, xp, f):
        def g(x):
            return sum(xp.sum(xp.sin(p)) for p in lib.grad(f, scalar.argnums)(x, *scalar.args[1:]))

        return lib.grad(g)(scalar.args[0])

    import jax.numpy as jnp

    close(total(fgrad, fnp, scalar.f), jax64.jit(lambda: total(jax64, jnp, scalar.g))())


def test_third_derivative():
    def f(x):
        return fnp.sin(x) * fnp.exp(x / 2) + x**5

    x = 0.7
    third = fgrad.grad(fgrad.grad(fgrad.grad(f)))
    # e^(x/2) ((1/8 - 3/2) sin x + (3/4 - 1) cos x) + 60 x^2
    want = np.exp(x / 2) * ((1 / 8 - 3 / 2) * np.sin(x) + (3 / 4 - 1) * np.cos(x)) + 60 * x**2
    np.testing.assert_allclose(np.asarray(third(np.float64(x))), want, rtol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "exp", "sin", "log1p", "sqrt", "arctan", "sinh"])
def test_fourth_derivatives(name, jax64):
    import jax.numpy as jnp

    ours, theirs = getattr(fnp, name), getattr(jnp, name)
    for _ in range(4):
        ours, theirs = fgrad.grad(ours), jax64.grad(theirs)
        x = np.float64(0.6)
        np.testing.assert_allclose(np.asarray(ours(x)), np.asarray(jax64.jit(theirs)(x)), rtol=1e-10)


def test_jacobians(jax64, close):
    import jax.numpy as jnp

    def make(xp):
        def f(p):
            return {"u": xp.sin(p["a"])[:, None] * p["b"], "v": xp.sum(p["b"] ** 3)}

        return f

    p = {"a": np.array([0.1, 0.7, -0.4]), "b": np.array([1.0, 2.0])}
    want = jax64.jacrev(make(jnp))(p)
    close(fgrad.jacrev(make(fnp))(p), want)
    close(fgrad.jacfwd(make(fnp))(p), want)


def test_hessian(scalar, jax64, close):
    want = jax64.jit(jax64.hessian(scalar.g))(*scalar.args)
    close(fgrad.hessian(scalar.f)(*scalar.args), want)
    close(fgrad.jacrev(fgrad.jacrev(scalar.f))(*scalar.args), want)
    close(fgrad.jacrev(fgrad.jacfwd(scalar.f))(*scalar.args), want)


def test_vjp_of_vjp(jax64, close):
    import jax.numpy as jnp

    x, c = np.array([0.3, -0.2, 0.9]), np.array([1.0, -2.0, 0.5])

    def twice(lib, xp):
        def pulled(x, c):
            return lib.vjp(lambda y: xp.cumsum(xp.sin(y)) * y, x)[1](c)[0]

        y, pull = lib.vjp(pulled, x, c)
        return y, pull(xp.ones(3, y.dtype))

    close(twice(fgrad, fnp), jax64.jit(lambda: twice(jax64, jnp))())


def test_linear_transpose(jax64, close):
    import jax.numpy as jnp

    a = np.arange(12.0).reshape(3, 4)

    def make(xp):
        return lambda x, y: xp.flip(a @ x, 0) + 2 * y[xp.array([0, 0, 1])]

    x, y, ct = np.ones(4), np.ones(2), np.array([1.0, 2.0, 4.0])
    close(fgrad.linear_transpose(make(fnp), x, y)(ct), jax64.linear_transpose(make(jnp), x, y)(ct))


def test_graphs_are_well_formed(scalar):
    arrays = [fnp.array(a) for a in scalar.args]
    traced = trace(lambda *xs: [scalar.f(*xs)], [a.type for a in arrays])
    active = [True] * len(arrays) + [False] * len(traced.captured)
    check(vjp_graph(traced.graph, active)[0].graph)


def test_unused_arguments_get_zeros():
    g = fgrad.grad(lambda x, y: fnp.sum(x), (0, 1))(fnp.ones(2), fnp.ones((3, 1)))
    assert np.asarray(g[1]).shape == (3, 1) and not np.asarray(g[1]).any()


def test_python_control_flow_under_grad():
    def f(x):
        total = x * 0
        while total < 10:  # the number of steps depends on the value
            total = total + x * x
        return total

    np.testing.assert_allclose(float(fgrad.grad(f)(2.0)), 12.0)  # three steps of x^2


def test_stop_gradient():
    assert float(fgrad.grad(lambda x: x * fgrad.stop_gradient(x))(3.0)) == 3.0


def test_vector_valued_grad_says_what_to_do():
    with pytest.raises(fgrad.FgradTypeError, match="jacrev"):
        fgrad.grad(fnp.sin)(fnp.ones(3))
