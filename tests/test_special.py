"""fgrad.special against SciPy-like references: mpmath, JAX, and their definitions."""

import math

import mpmath
import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import special

X = np.array([[-3.0, 0.0, 2.0, 100.0], [1.0, 1.0, -200.0, 0.5]], np.float32)


def reference(f, x):
    return np.array([float(f(mpmath.mpf(float(v)))) for v in np.ravel(x)]).reshape(np.shape(x))


@pytest.mark.parametrize("axis", [-1, 0, (0, 1)])
def test_softmax_and_its_logarithm(axis, jax):
    for name in ("softmax", "log_softmax"):
        ours, theirs = getattr(special, name), getattr(jax.nn, name)
        np.testing.assert_allclose(ours(X, axis), theirs(X, axis), rtol=1e-5, atol=1e-6)
        w = np.linspace(-1, 1, X.size, dtype=np.float32).reshape(X.shape)
        got = fgrad.grad(lambda x: (ours(x, axis) * w).sum())(fnp.array(X))
        np.testing.assert_allclose(
            got, jax.grad(lambda x: (theirs(x, axis) * w).sum())(X), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("keepdims", [False, True])
def test_logsumexp(axis, keepdims, jax):
    x = X.copy()
    x[:, 1] = -np.inf
    ours, theirs = special.logsumexp, jax.scipy.special.logsumexp
    np.testing.assert_allclose(
        ours(x, axis, keepdims=keepdims), theirs(x, axis, keepdims=keepdims), rtol=1e-6
    )
    b = np.abs(X)
    np.testing.assert_allclose(ours(X, axis, b), theirs(X, axis, b), rtol=1e-6)
    got = fgrad.grad(lambda x: ours(x, axis).sum())(fnp.array(X))
    np.testing.assert_allclose(got, jax.grad(lambda x: theirs(x, axis).sum())(X), rtol=1e-5, atol=1e-7)


def test_half_precision():
    x = fnp.array(np.linspace(-4, 4, 1000), dtype="bfloat16")
    p = special.softmax(x)
    assert p.dtype == fnp.bfloat16
    exact = np.exp(np.asarray(x, np.float64))
    np.testing.assert_allclose(np.asarray(p, np.float64), exact / exact.sum(), rtol=2**-8)


@pytest.mark.parametrize(
    "name, f, points",
    [
        ("sigmoid", lambda v: 1 / (1 + mpmath.exp(-v)), [-80.0, -1.0, 0.0, 2.5, 60.0]),
        ("expit", lambda v: 1 / (1 + mpmath.exp(-v)), [0.3]),
        ("erf", mpmath.erf, [-3.0, -0.2, 0.0, 1e-5, 1.5]),
        ("erfc", mpmath.erfc, [-3.0, 0.0, 2.0, 5.0]),
        ("erfinv", mpmath.erfinv, [-0.999, -0.3, 0.0, 0.7]),
        ("lgamma", lambda v: mpmath.log(abs(mpmath.gamma(v))), [0.1, 1.5, 2.0, 30.0, -2.5]),
        ("gammaln", mpmath.loggamma, [4.2]),
        ("digamma", mpmath.digamma, [0.1, 1.0, 7.3, -2.5]),
        ("softplus", lambda v: mpmath.log1p(mpmath.exp(v)), [-50.0, -1.0, 0.0, 3.0, 90.0]),
        ("log_sigmoid", lambda v: -mpmath.log1p(mpmath.exp(-v)), [-90.0, 0.0, 50.0]),
        ("logit", lambda v: mpmath.log(v / (1 - v)), [0.01, 0.5, 0.9]),
        ("ndtr", mpmath.ncdf, [-5.0, 0.0, 1.0]),
        ("entr", lambda v: -v * mpmath.log(v) if v else mpmath.mpf(0), [0.0, 0.3, 1.0]),
    ],
)
def test_values_and_slopes(name, f, points):
    x = np.array(points)
    ours = getattr(special, name)
    np.testing.assert_allclose(ours(x), reference(f, x), rtol=1e-9, atol=1e-12)
    inside = x[x != 0] if name == "entr" else x
    slopes = reference(lambda v: mpmath.diff(f, v), inside)
    np.testing.assert_allclose(
        fgrad.grad(lambda x: ours(x).sum())(fnp.asarray(inside)), slopes, rtol=1e-6, atol=1e-12
    )


def test_relu_has_slope_0_at_0():
    x = fnp.array([-1.0, 0.0, 2.0, math.nan])
    np.testing.assert_array_equal(special.relu(x), [0, 0, 2, np.nan])
    np.testing.assert_array_equal(fgrad.grad(lambda x: special.relu(x).sum())(x)[:3], [0, 0, 1])
    assert special.relu(fnp.array([-2, 3])).dtype == np.int64


def test_one_hot():
    y = fnp.array([[2, 0], [1, 5]])
    expected = np.eye(6, 3)[np.asarray(y)]
    np.testing.assert_array_equal(special.one_hot(y, 3), expected)
    np.testing.assert_array_equal(special.one_hot(y, 3, axis=0), np.moveaxis(expected, -1, 0))
    assert special.one_hot(y, 3, dtype="int8").dtype == np.int8
    with pytest.raises(TypeError, match="integer class numbers"):
        special.one_hot(fnp.array([0.5]), 3)


def test_xlogy_at_0():
    assert special.xlogy(0.0, 0.0) == 0
    np.testing.assert_allclose(special.xlogy(fnp.array([2.0]), 3.0), [2 * math.log(3)], rtol=1e-6)
    assert fgrad.grad(lambda x: special.xlogy(0.0, x))(0.0) == 0
