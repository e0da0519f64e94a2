"""Functions written once for NumPy's interface, so that fgrad and JAX can differentiate the same text."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp

_rng = np.random.default_rng(3)


def _normal(*shape):
    return _rng.normal(size=shape)


def _dense(xp):
    """One hidden layer, log-softmax, cross-entropy."""

    def f(w1, b1, w2, x):
        h = xp.tanh(x @ w1 + b1)
        logits = h @ w2
        top = xp.max(logits, axis=-1, keepdims=True)
        logp = logits - top - xp.log(xp.sum(xp.exp(logits - top), axis=-1, keepdims=True))
        return -xp.mean(logp[xp.arange(x.shape[0]), xp.array([0, 2, 1, 2])])

    return f


def _norms(xp):
    def f(x, scale):
        mean = xp.mean(x, axis=1, keepdims=True)
        var = xp.mean((x - mean) ** 2, axis=1, keepdims=True)
        return xp.sum(xp.sin((x - mean) / xp.sqrt(var + 1e-3) * scale))

    return f


def _shuffled(xp):
    """Indexing, reversal, concatenation, transposes and reshapes."""

    def f(x):
        y = xp.concatenate([x[::-1, ::2], x[1:3, :2], x[xp.array([0, -1, 0])][:, 1:3]], axis=0)
        z = xp.reshape(xp.transpose(y), (-1, 4)) * 0.5
        return xp.sum(xp.exp(z[:, 0]) * z[:, 1] ** 3) + xp.sum(
            x[xp.array([1, 1, 2]), xp.array([0, 0, 1])] ** 2
        )

    return f


def _products(xp):
    def f(x):
        return xp.sum(xp.prod(x, axis=0) * xp.cumsum(x, axis=1)[0]) + xp.sum(xp.cumprod(x, axis=1) ** 2)

    return f


def _ordered(xp):
    def f(x):
        y = xp.sort(x, axis=1)
        return xp.sum(y * xp.arange(4.0)) + xp.sum(xp.max(x, axis=0) ** 2) + xp.sum(xp.minimum(x, 0.1) ** 3)

    return f


def _selected(xp):
    def f(x):
        return xp.sum(xp.where(x > 0, xp.exp(-x) * x, xp.cos(x) * x**2)) + xp.sum(xp.abs(x) ** 1.5)

    return f


def _contracted(xp):
    def f(a, b):
        return xp.sum(xp.einsum("bij,bjk->bki", a, b) ** 2) + xp.sum(xp.einsum("bij,bij->b", a, a) ** 3)

    return f


def _matrices(xp):
    def f(a, b):
        s = a @ a.T + 2 * xp.eye(3)
        lower = xp.linalg.cholesky(s)
        return (
            xp.sum(xp.linalg.solve(s, b) ** 2) + xp.sum(lower**3) + xp.linalg.slogdet(s)[1] + xp.linalg.det(a)
        )

    return f


def _special(xp):
    def f(x):
        return xp.sum(
            xp.log1p(xp.exp(x)) * xp.arctan2(x, 1 + x**2) + xp.hypot(x, xp.sinh(x)) + xp.expm1(x) ** 2
        )

    return f


SCALAR = {
    "dense": (_dense, [_normal(3, 5), _normal(5), _normal(5, 3), _normal(4, 3)]),
    "norms": (_norms, [_normal(3, 4), _normal(4)]),
    "shuffled": (_shuffled, [_normal(3, 4)]),
    "products": (_products, [np.array([[0.0, 1.5, 0.3, -1], [0.5, 0.0, 2.0, 0.7], [1.2, 0.0, -0.4, 1.1]])]),
    "ordered": (_ordered, [_normal(3, 4)]),
    "selected": (_selected, [_normal(7)]),
    "contracted": (_contracted, [_normal(2, 3, 2), _normal(2, 2, 4)]),
    "matrices": (_matrices, [_normal(3, 3), _normal(3, 2)]),
    "special": (_special, [_normal(5)]),
}


@pytest.fixture(params=sorted(SCALAR))
def scalar(request):
    """A scalar-valued function and its arguments (float64): `.f` for fgrad, `.g` for JAX."""
    make, args = SCALAR[request.param]

    def g(*xs):
        import jax.numpy as jnp

        return make(jnp)(*xs)

    return SimpleNamespace(name=request.param, f=make(fnp), g=g, args=args, argnums=tuple(range(len(args))))


@pytest.fixture
def jax64(jax):
    """JAX in double precision for the length of a test."""
    with jax.enable_x64(True):
        yield jax


@pytest.fixture
def close():
    def compare(got, want, rtol=1e-9):
        a, b = fgrad.tree.leaves(got), fgrad.tree.leaves(want)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            x, y = np.asarray(x), np.asarray(y)
            assert x.shape == y.shape
            np.testing.assert_allclose(
                x, y, rtol=rtol, atol=rtol * max(1.0, float(np.max(np.abs(y), initial=0.0)))
            )

    return compare
