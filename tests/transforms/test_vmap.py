"""Batching against a Python loop and against JAX, alone and nested with differentiation."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp


def _stacked(args, n=3):
    return [np.stack([a * (1 + 0.1 * k) for k in range(n)]) for a in args]


def test_vmap_is_a_loop(scalar, close):
    batch = _stacked(scalar.args)
    close(fgrad.vmap(scalar.f)(*batch), fnp.stack([scalar.f(*[b[k] for b in batch]) for k in range(3)]))


def test_vmap_of_grad(scalar, jax64, close):
    """Per-example gradients: parameters shared, the last argument batched."""
    args = [*scalar.args[:-1], _stacked(scalar.args[-1:])[0]]
    axes = (None,) * (len(args) - 1) + (0,)
    got = fgrad.vmap(fgrad.grad(scalar.f, scalar.argnums), axes)(*args)
    close(got, jax64.jit(jax64.vmap(jax64.grad(scalar.g, scalar.argnums), axes))(*args))


def test_grad_of_vmap(scalar, jax64, close):
    args = [*scalar.args[:-1], _stacked(scalar.args[-1:])[0]]
    axes = (None,) * (len(args) - 1) + (0,)

    def total(lib, f):
        return lambda *xs: (lib.vmap(f, axes)(*xs) ** 2).sum()

    got = fgrad.grad(total(fgrad, scalar.f), scalar.argnums)(*args)
    close(got, jax64.jit(jax64.grad(total(jax64, scalar.g), scalar.argnums))(*args))


def test_vmap_of_vmap(close):
    x, y = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    inner = fgrad.vmap(lambda a, b: fnp.sum(a * b), (None, 1))
    close(fgrad.vmap(inner, (0, None))(x, y), x @ y)


def test_vmap_of_hessian(jax64, close):
    import jax.numpy as jnp

    def make(xp):
        return lambda x: xp.sum(xp.sin(x)) * xp.prod(x)

    x = np.random.default_rng(0).normal(size=(4, 3))
    close(fgrad.vmap(fgrad.hessian(make(fnp)))(x), jax64.jit(jax64.vmap(jax64.hessian(make(jnp))))(x))


@pytest.mark.parametrize("in_axis", [0, 1, 2, -1])
@pytest.mark.parametrize("out_axis", [0, 1, -1])
def test_axes(in_axis, out_axis, jax64, close):
    import jax.numpy as jnp

    x = np.arange(24.0).reshape(2, 3, 4)

    def make(xp):
        return lambda x: xp.cumsum(x, axis=0) * xp.max(x)

    close(fgrad.vmap(make(fnp), in_axis, out_axis)(x), jax64.vmap(make(jnp), in_axis, out_axis)(x))


def test_trees_and_prefix_axes(close):
    p = {"w": np.ones((3, 2)), "b": np.arange(3.0)}
    got = fgrad.vmap(lambda p, x: {"y": p["w"].sum() * x + p["b"]}, ({"w": None, "b": 0}, None))(p, 2.0)
    close(got, {"y": 12.0 + np.arange(3.0)})


def test_indexing_with_batched_indices(jax64, close):
    import jax.numpy as jnp

    x, i, v = np.arange(20.0).reshape(4, 5), np.array([0, -1, 2, 3]), np.array([5.0, 6.0, 7.0, 8.0])

    def make(xp):
        return lambda x, i, v: (x[i], x.at[i].set(v), x.at[i].add(v), xp.take(x, i + 1, mode="wrap"))

    close(fgrad.vmap(make(fnp))(x, i, v), jax64.vmap(make(jnp))(x, i, v))
    close(
        fgrad.vmap(make(fnp), (None, 0, None))(x[0], i, 3.0),
        jax64.vmap(make(jnp), (None, 0, None))(jnp.array(x[0]), i, 3.0),
    )


def test_what_is_not_mapped_is_computed_once():
    """The unbatched product keeps its own shape in the batched graph."""
    graph = fgrad.make_graph(fgrad.vmap(lambda x, w: x + w @ w, (0, None)))(
        fnp.ones((7, 2, 2)), fnp.ones((2, 2))
    )
    (dot,) = [e for e in graph.eqns if e.prim.name == "dot_general"]
    assert dot.outputs[0].type.shape == (2, 2)


def test_size_mismatch_names_both():
    with pytest.raises(fgrad.FgradTypeError, match="3 and 4"):
        fgrad.vmap(lambda x, y: x + y)(fnp.ones(3), fnp.ones(4))


def test_nothing_mapped():
    with pytest.raises(fgrad.FgradValueError, match="axis_size"):
        fgrad.vmap(lambda x: x, in_axes=None)(fnp.ones(3))
    assert fgrad.vmap(lambda x: x, in_axes=None, axis_size=2)(fnp.ones(3)).shape == (2, 3)


def test_no_examples():
    got = fgrad.vmap(fgrad.grad(lambda x: fnp.sum(fnp.tanh(x @ x.T)[0] ** 2)))(fnp.ones((0, 3, 2)))
    assert got.shape == (0, 3, 2)
