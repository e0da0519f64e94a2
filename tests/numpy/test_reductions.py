"""Reductions, running sums and order statistics against NumPy."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp

RNG = np.random.default_rng(0)
DATA = {
    "float32": RNG.standard_normal((3, 4, 5)).astype(np.float32),
    "float64": RNG.standard_normal((3, 4, 5)),
    "int32": RNG.integers(-5, 6, (3, 4, 5)).astype(np.int32),
    "uint8": RNG.integers(0, 255, (3, 4, 5)).astype(np.uint8),
    "bool": RNG.integers(0, 2, (3, 4, 5)).astype(bool),
}
AXES = [None, 0, 1, -1, (0, 2), (-1, 0), ()]


def same(ours, expected, dtype):
    expected = np.asarray(expected)
    assert ours.shape == expected.shape
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(
        np.asarray(ours).astype(expected.dtype), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", DATA)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    "name", ["sum", "prod", "mean", "var", "std", "max", "min", "amax", "amin", "any", "all", "count_nonzero"]
)
def test_reductions(name, axis, dtype):
    x = DATA[dtype]
    for keepdims in (False, True):
        expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
        ours = getattr(fnp, name)(x, axis=axis, keepdims=keepdims)
        same(ours, expected, dtype)
        if expected.dtype.kind == "f" and x.dtype.kind != "f":
            assert ours.dtype == np.float32
        else:
            assert ours.dtype == expected.dtype


@pytest.mark.parametrize("name", ["ptp", "median", "average"])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2)])
def test_more_reductions(name, axis):
    for dtype in ("float32", "float64", "int32"):
        same(getattr(fnp, name)(DATA[dtype], axis=axis), getattr(np, name)(DATA[dtype], axis=axis), dtype)


@pytest.mark.parametrize("dtype", DATA)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_positions_of_extremes(axis, dtype):
    x = DATA[dtype]
    for name in ("argmax", "argmin"):
        for keepdims in (False, True):
            ours = getattr(fnp, name)(x, axis, keepdims=keepdims)
            assert ours.dtype == np.int64
            np.testing.assert_array_equal(ours, getattr(np, name)(x, axis, keepdims=keepdims))


def test_arguments():
    x, mask = DATA["float32"], DATA["bool"]
    same(fnp.sum(x, 0, where=mask), np.sum(x, 0, where=mask), "float32")
    same(fnp.mean(x, 1, where=mask), np.mean(x, 1, where=mask), "float32")
    same(fnp.var(x, 1, where=mask, ddof=1), np.var(x, 1, where=mask, ddof=1), "float32")
    same(fnp.max(x, 0, initial=0.5, where=mask), np.max(x, 0, initial=0.5, where=mask), "float32")
    same(fnp.sum(x, initial=3), np.sum(x, initial=3), "float32")
    same(fnp.std(x, 0, ddof=1), np.std(x, 0, ddof=1), "float32")
    same(fnp.var(x, 0, correction=1), np.var(x, 0, ddof=1), "float32")
    assert fnp.sum(x, dtype="float64").dtype == np.float64
    assert fnp.sum(DATA["uint8"], dtype="uint8").dtype == np.uint8
    same(fnp.average(x, 1, weights=[1, 2, 3, 4]), np.average(x, 1, weights=[1, 2, 3, 4]), "float32")
    ours, theirs = (
        fnp.average(x, weights=np.abs(x), returned=True),
        np.average(x, weights=np.abs(x), returned=True),
    )
    same(ours[0], theirs[0], "float32")
    same(ours[1], theirs[1], "float32")


def test_nothing_to_reduce():
    empty = np.zeros((0, 3), np.float32)
    assert fnp.sum(empty) == 0 and fnp.prod(empty) == 1 and not fnp.any(empty) and fnp.all(empty)
    assert np.isnan(np.asarray(fnp.mean(empty)))
    assert fnp.max(empty, initial=-1) == -1
    for f in (fnp.max, fnp.min, fnp.argmax):
        with pytest.raises(ValueError):
            f(empty)
    with pytest.raises(ValueError, match="axis 2 is out of bounds"):
        fnp.sum(empty, 2)
    with pytest.raises(ValueError, match="twice"):
        fnp.sum(empty, (0, 0))


def test_half_precision_is_averaged_in_float32():
    x = fnp.full(4000, 60.0, "float16")
    assert x.mean() == 60 and x.mean().dtype == np.float16
    assert x.var() == 0


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize(
    "name", ["nansum", "nanprod", "nanmean", "nanvar", "nanstd", "nanmax", "nanmin", "nanmedian"]
)
def test_without_nan(name, axis):
    x = DATA["float32"].copy()
    x[0, 1, 2] = x[2, 3, :2] = np.nan
    same(getattr(fnp, name)(x, axis=axis), getattr(np, name)(x, axis=axis), "float32")


def test_positions_without_nan():
    x = DATA["float32"].copy()
    x[0, 1, 2] = x[2, 3, :2] = np.nan
    np.testing.assert_array_equal(fnp.nanargmax(x, 1), np.nanargmax(x, 1))
    np.testing.assert_array_equal(fnp.nanargmin(x), np.nanargmin(x))
    assert np.isnan(np.asarray(fnp.nanmax(fnp.array([np.nan, np.nan]))))


@pytest.mark.parametrize("name", ["cumsum", "cumprod", "nancumsum", "nancumprod"])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "bool"])
def test_running(name, axis, dtype):
    expected = getattr(np, name)(DATA[dtype], axis)
    ours = getattr(fnp, name)(DATA[dtype], axis)
    same(ours, expected, dtype)
    assert ours.dtype == expected.dtype


def test_cumulative_sum_with_initial():
    x = DATA["float32"]
    same(
        fnp.cumulative_sum(x, axis=1, include_initial=True),
        np.cumulative_sum(x, axis=1, include_initial=True),
        "float32",
    )
    same(
        fnp.cumulative_prod(x, axis=1, include_initial=True),
        np.cumulative_prod(x, axis=1, include_initial=True),
        "float32",
    )


@pytest.mark.parametrize("method", ["linear", "lower", "higher", "midpoint", "nearest"])
@pytest.mark.parametrize("axis", [None, 1, (0, 2)])
def test_quantiles(method, axis):
    x = DATA["float64"]
    q = np.array([[0.0, 0.25], [0.61, 1.0]])
    same(fnp.quantile(x, q, axis, method=method), np.quantile(x, q, axis, method=method), "float64")
    same(
        fnp.percentile(x, 30, axis, method=method, keepdims=True),
        np.percentile(x, 30, axis, method=method, keepdims=True),
        "float64",
    )
    y = x.copy()
    y[1, 2, 3] = np.nan
    same(
        fnp.nanquantile(y, q[1], axis, method=method), np.nanquantile(y, q[1], axis, method=method), "float64"
    )
    same(
        fnp.nanpercentile(y, 70, axis, method=method), np.nanpercentile(y, 70, axis, method=method), "float64"
    )
    same(fnp.median(y, axis), np.median(y, axis), "float64")


def test_derivatives():
    x = fnp.array([3.0, 1.0, 3.0, 2.0])
    np.testing.assert_allclose(fgrad.grad(fnp.max)(x), [0.5, 0, 0.5, 0])  # equal ones share
    np.testing.assert_allclose(fgrad.grad(fnp.median)(x), [0.25, 0, 0.25, 0.5], atol=0.3)
    np.testing.assert_allclose(fgrad.grad(fnp.prod)(fnp.array([2.0, 0.0, 3.0])), [0, 6, 0])
    np.testing.assert_allclose(fgrad.grad(fnp.var)(x), 2 * (np.asarray(x) - 2.25) / 4)
    np.testing.assert_allclose(fgrad.grad(fnp.nanmean)(fnp.array([1.0, np.nan, 2.0])), [0.5, 0, 0.5])
    np.testing.assert_allclose(fgrad.grad(lambda x: fnp.cumsum(x)[1])(x), [1, 1, 0, 0])


@pytest.mark.parametrize("name", ["diff", "gradient", "trapezoid", "ediff1d", "unwrap"])
def test_differences(name):
    for x in (DATA["float64"], DATA["float64"][0, 0]):
        ours, theirs = getattr(fnp, name)(x), getattr(np, name)(x)
        if not isinstance(ours, list):
            ours, theirs = [ours], [theirs]
        for a, b in zip(ours, theirs, strict=True):
            same(a, b, "float64")


def test_arguments_of_differences():
    x = DATA["float64"]
    same(fnp.diff(x, 2, axis=0), np.diff(x, 2, axis=0), "float64")
    same(
        fnp.diff(x, axis=1, prepend=0, append=x[:, :1]),
        np.diff(x, axis=1, prepend=0, append=x[:, :1]),
        "float64",
    )
    same(fnp.diff(DATA["bool"]), np.diff(DATA["bool"]), "bool")
    at = np.array([0.0, 1, 3, 4, 7])
    same(fnp.gradient(x, at, axis=2), np.gradient(x, at, axis=2), "float64")
    same(fnp.gradient(x, 0.5, axis=2, edge_order=2), np.gradient(x, 0.5, axis=2, edge_order=2), "float64")
    same(fnp.gradient(x, at, axis=2, edge_order=2), np.gradient(x, at, axis=2, edge_order=2), "float64")
    same(fnp.trapezoid(x, at), np.trapezoid(x, at), "float64")
    same(fnp.trapezoid(x, dx=0.1, axis=0), np.trapezoid(x, dx=0.1, axis=0), "float64")
    same(
        fnp.ediff1d(at, to_end=[9.0], to_begin=[1.0, 2.0]),
        np.ediff1d(at, to_end=[9.0], to_begin=[1.0, 2.0]),
        "float64",
    )
