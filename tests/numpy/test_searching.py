"""Sorting, searching, counting, statistics and comparisons against NumPy; with `size=` also under jit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fgrad
import fgrad.numpy as fnp

RNG = np.random.default_rng(5)
X = RNG.integers(-4, 5, (4, 6)).astype(np.float32)
NANS = np.where(X == 2, np.nan, X)
V = X[0]


def equal(ours, theirs, rtol=1e-6):
    if isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            equal(a, b, rtol)
        return
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(np.asarray(ours).astype(theirs.dtype), theirs, rtol=rtol, atol=rtol)


SORTED = np.array([-2.0, -2.0, 0.0, 1.0, 1.0, 3.5])
QUERIES = np.array([[-3.0, -2.0, -1.0], [1.0, 3.5, 9.0]])

CASES = {
    "sort": lambda np: np.sort(NANS),
    "sort along": lambda np: np.sort(X, 0),
    "sort flat": lambda np: np.sort(X, None),
    "argsort": lambda np: np.argsort(NANS, stable=True),
    "argsort along": lambda np: np.argsort(X, 0, stable=True),
    "argsort flat": lambda np: np.argsort(X, None, stable=True),
    "lexsort": lambda np: np.lexsort((X[0], X[1], X[2])),
    "lexsort along": lambda np: np.lexsort((X, -X), 0),
    "partition": lambda np: np.partition(np.sort(X), 2),
    "searchsorted": lambda np: np.searchsorted(SORTED, QUERIES),
    "searchsorted right": lambda np: np.searchsorted(SORTED, QUERIES, "right"),
    "searchsorted nan": lambda np: np.searchsorted(
        np.append(SORTED, np.nan), np.array([np.nan, 9.0, np.inf])
    ),
    "searchsorted nan right": lambda np: np.searchsorted(
        np.append(SORTED, np.nan), np.array([np.nan, 9.0]), "right"
    ),
    "searchsorted in nothing": lambda np: np.searchsorted(np.array([1.0])[:0], QUERIES),
    "searchsorted sorter": lambda np: np.searchsorted(SORTED[::-1], QUERIES, sorter=np.arange(5, -1, -1)),
    "digitize": lambda np: np.digitize(QUERIES, SORTED),
    "digitize right": lambda np: np.digitize(QUERIES, SORTED, right=True),
    "digitize descending": lambda np: np.digitize(QUERIES, SORTED[::-1]),
    "digitize descending right": lambda np: np.digitize(QUERIES, SORTED[::-1], right=True),
    "nonzero": lambda np: np.nonzero(X),
    "argwhere": lambda np: np.argwhere(X > 0),
    "flatnonzero": lambda np: np.flatnonzero(X),
    "extract": lambda np: np.extract(X > 0, X),
    "compress": lambda np: np.compress([True, False, True], X, 1),
    "unique": lambda np: np.unique(X),
    "unique nan": lambda np: np.unique(NANS),
    "unique all": lambda np: np.unique(X, return_index=True, return_inverse=True, return_counts=True),
    "unique_values": lambda np: np.sort(np.unique_values(X)),
    "isin": lambda np: np.isin(X, [1, 3, 9]),
    "isin inverted": lambda np: np.isin(X, [1, 3, 9], invert=True),
    "union1d": lambda np: np.union1d(X[0], X[1]),
    "intersect1d": lambda np: np.intersect1d(X[0], X[1]),
    "setdiff1d": lambda np: np.setdiff1d(X[0], X[1]),
    "setxor1d": lambda np: np.setxor1d(X[0], X[1]),
    "bincount": lambda np: np.bincount(np.array([1, 3, 3, 0])),
    "bincount longer": lambda np: np.bincount(np.array([1, 3, 3, 0]), minlength=7),
    "bincount weights": lambda np: np.bincount(np.array([1, 3, 3, 0]), weights=np.array([0.5, 1, 2, 3])),
    "histogram": lambda np: np.histogram(X),
    "histogram of bins": lambda np: np.histogram(X, 4, (-2, 3)),
    "histogram of edges": lambda np: np.histogram(X, np.array([-3.0, 0.0, 1.0, 4.0])),
    "histogram weights": lambda np: np.histogram(X, 5, weights=abs(X)),
    "histogram density": lambda np: np.histogram(X, 5, density=True),
    "histogram of one value": lambda np: np.histogram(np.ones(3), 4),
    "histogram_bin_edges": lambda np: np.histogram_bin_edges(X, 7),
    "interp": lambda np: np.interp(QUERIES, np.array([-2.0, 0, 1, 4]), np.array([1.0, 3, 2, 5])),
    "interp beyond": lambda np: np.interp(
        QUERIES, np.array([-2.0, 0, 1, 2]), np.array([1.0, 3, 2, 5]), left=-7, right=7
    ),
    "cov": lambda np: np.cov(X),
    "cov of two": lambda np: np.cov(X[0], X[1]),
    "cov of columns": lambda np: np.cov(X, rowvar=False, ddof=0),
    "cov of one": lambda np: np.cov(V),
    "cov biased": lambda np: np.cov(X, bias=True),
    "cov weights": lambda np: np.cov(X, fweights=np.array([1, 2, 1, 3, 1, 1])),
    "cov weights 2": lambda np: np.cov(X, aweights=np.array([1.0, 2, 1, 3, 1, 1])),
    "corrcoef": lambda np: np.corrcoef(X),
    "corrcoef of two": lambda np: np.corrcoef(X[0], X[1]),
    "polyval": lambda np: np.polyval(V, QUERIES / 3),
    "polyder": lambda np: np.polyder(V, 2),
    "polyint": lambda np: np.polyint(V, 2),
    "polyadd": lambda np: np.polyadd(V, V[:3]),
    "polysub": lambda np: np.polysub(V[:3], V),
    "polymul": lambda np: np.polymul(np.array([1.0, 2, 3]), np.array([4.0, 5])),
    "isclose": lambda np: np.isclose(
        [1.0, np.nan, np.inf, 2.0, np.inf], [1.0 + 1e-6, np.nan, np.inf, 2.1, 1.0]
    ),
    "isclose nan": lambda np: np.isclose([np.nan, 1.0], [np.nan, 2.0], equal_nan=True),
    "allclose": lambda np: np.allclose(X, X + 1e-9),
    "array_equal": lambda np: np.array_equal(X, X),
    "array_equal of shapes": lambda np: np.array_equal(X, V),
    "array_equal nan": lambda np: np.array_equal(NANS, NANS, equal_nan=True),
    "array_equiv": lambda np: np.array_equiv(X, X[:1]),
    "array_equiv of shapes": lambda np: np.array_equiv(X, V[:2]),
}
for _mode in ("full", "same", "valid"):
    for _m in (1, 2, 3, 6):
        CASES[f"convolve {_mode} {_m}"] = lambda np, mode=_mode, m=_m: np.convolve(V, X[1, :m], mode)
        CASES[f"convolve short {_mode} {_m}"] = lambda np, mode=_mode, m=_m: np.convolve(X[1, :m], V, mode)
        CASES[f"correlate {_mode} {_m}"] = lambda np, mode=_mode, m=_m: np.correlate(V, X[1, :m], mode)
        CASES[f"correlate short {_mode} {_m}"] = lambda np, mode=_mode, m=_m: np.correlate(X[1, :m], V, mode)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_like_numpy(case):
    equal(case(fnp), case(np))


def test_descending_order_is_stable():
    v = fnp.array([1, 3, 1, 3, 2])
    equal(fnp.sort(v, descending=True), [3, 3, 2, 1, 1])
    equal(fnp.argsort(v, descending=True), [1, 3, 4, 0, 2])


@given(hnp.arrays(np.int64, st.integers(0, 20), elements=st.integers(-3, 3)))
def test_unique_of_anything(x):
    ours = fnp.unique(x, True, True, True)
    equal(ours, np.unique(x, True, True, True))


@given(
    hnp.arrays(np.float32, st.integers(0, 12), elements=st.floats(-3, 3, width=16)),
    hnp.arrays(np.float32, 5, elements=st.floats(-4, 4, width=16)),
)
def test_search_of_anything(table, values):
    table = np.sort(table)
    for side in ("left", "right"):
        equal(fnp.searchsorted(table, values, side), np.searchsorted(table, values, side))


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_sizes_under_jit(size):
    x = fnp.array(X)
    flat = np.flatnonzero(X)
    padded = np.concatenate([flat, np.full(40, -1)])[:size]
    equal(fgrad.jit(lambda x: fnp.flatnonzero(x, size=size, fill_value=-1))(x), padded)
    rows = np.concatenate([np.nonzero(X)[0], np.full(40, 99)])[:size]
    equal(fgrad.jit(lambda x: fnp.nonzero(x, size=size, fill_value=99))(x)[0], rows)
    values, counts = np.unique(X, return_counts=True)
    ours = fgrad.jit(lambda x: fnp.unique(x, return_counts=True, size=size, fill_value=-100))(x)
    equal(ours[0], np.concatenate([values, np.full(40, -100)])[:size])
    equal(
        ours[1],
        np.concatenate([counts, np.zeros(40)])[: min(size, len(counts))]
        if size <= len(counts)
        else np.concatenate([counts, np.zeros(size - len(counts))]),
    )


def test_without_sizes_jit_says_what_to_do():
    x = fnp.array(X)
    for f in (fnp.nonzero, fnp.unique, fnp.flatnonzero):
        with pytest.raises(TypeError, match="size="):
            fgrad.jit(f)(x)
    with pytest.raises(TypeError, match="length="):
        fgrad.jit(fnp.bincount)(fnp.array([1, 2]))
    equal(fgrad.jit(lambda v: fnp.bincount(v, length=4))(fnp.array([1, 2, 2])), [0, 1, 2, 0])
    equal(
        fgrad.jit(lambda r: fnp.repeat(fnp.array([5.0, 6.0, 7.0]), r, total_repeat_length=6))(
            fnp.array([2, 0, 3])
        ),
        [5, 5, 7, 7, 7, 7],
    )


def test_derivatives():
    x = fnp.array([3.0, 1.0, 2.0])
    equal(fgrad.grad(lambda x: (fnp.sort(x) * fnp.array([1.0, 10.0, 100.0])).sum())(x), [100, 1, 10])
    at, xp = fnp.array([0.5, 1.5]), fnp.array([0.0, 1.0, 2.0])
    equal(fgrad.grad(lambda fp: fnp.interp(at, xp, fp).sum())(x), [0.5, 1, 0.5])
    equal(fgrad.grad(lambda q: fnp.interp(q, xp, x).sum())(at), [-2, 1])
    equal(fgrad.grad(lambda a: fnp.convolve(a, fnp.array([1.0, 2.0])).sum())(x), [3, 3, 3])


def test_gcd_and_lcm_under_jit():
    a, b = np.array([12, 0, -8, 35]), np.array([18, 5, 12, 64])
    equal(fgrad.jit(fnp.gcd)(a, b), np.gcd(a, b))
    equal(fgrad.jit(fnp.lcm)(a, b), np.lcm(a, b))
    least = np.array([-128, -128, -7], np.int8)  # which has no absolute value
    equal(
        fnp.gcd(least, np.array([-7, -128, -128], np.int8)),
        np.gcd(least, np.array([-7, -128, -128], np.int8)),
    )
