"""Distinct values and sets of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, from_numpy
from fgrad.convert import as_array, known, promote
from fgrad.device import beside_arguments
from fgrad.numpy.axes import broadcast_all
from fgrad.numpy.elementwise import clip, equal, isnan, logical_and, not_equal, subtract, where
from fgrad.numpy.joining import concatenate
from fgrad.numpy.manipulation import ravel
from fgrad.numpy.reductions import any as any_over
from fgrad.numpy.reductions import sum as sum_over
from fgrad.numpy.searching import bincount, extract, flatnonzero
from fgrad.numpy.sorting import argsort
from fgrad.ops import elementwise as ew
from fgrad.ops import structure as st
from fgrad.ops.builders import full
from fgrad.ops.cumulative import cumsum
from fgrad.ops.index import gather, scatter


@beside_arguments
def unique(
    x: Any,
    return_index: bool = False,
    return_inverse: bool = False,
    return_counts: bool = False,
    size: int | None = None,
    fill_value: Any = None,
) -> Any:
    """The sorted distinct elements of the flattened array; optionally with the position of the first of each, the position of each
    element among the distinct ones (in the shape of `x`), and how often each occurs.

    With `size` (needed under jit) that many values, filled up with `fill_value` (the smallest one if None).
    """
    a = as_array(x, "unique")
    flat = ravel(a)
    n = flat.size
    order = argsort(flat)
    ordered = gather(flat, [order], [0])
    if n == 0:
        first = full((0,), False, dtypes.bool_)
    else:
        after, before = st.slice_(ordered, (1,), (n,)), st.slice_(ordered, (0,), (n - 1,))
        new = not_equal(after, before)
        if dtypes.is_float(a.dtype):  # all NaN are one
            new = logical_and(new, ew.logical_not(logical_and(isnan(after), isnan(before))))
        first = st.concatenate([full((1,), True, dtypes.bool_), new], 0)
    number = subtract(cumsum(ew.convert(first, dtypes.int64), 0), 1)
    starts: Array
    if size is None:
        starts = from_numpy(
            np.flatnonzero(known("unique", first, "pass size=, the number of distinct values to return"))
        )
        found = None
    else:
        starts = flatnonzero(first, size)
        found = ew.lt(*broadcast_all("unique", [st.iota((size,), dtypes.int64, 0), sum_over(first)]))
    values = gather(ordered, [starts], [0])
    if found is not None and fill_value is not None:
        values = where(found, values, as_array(fill_value, "unique", a.dtype))
    results = [values]
    if return_index:
        results.append(gather(order, [starts], [0]))
    if return_inverse:
        results.append(st.reshape(scatter(full((n,), 0, dtypes.int64), number, [order], [0], "set"), a.shape))
    if return_counts:
        length = starts.shape[0]
        counts = bincount(clip(number, None, length) if length else number, length=length + 1)
        results.append(st.slice_(counts, (0,), (length,)))
    return results[0] if len(results) == 1 else tuple(results)


def unique_values(x: Any, size: int | None = None, fill_value: Any = None) -> Array:
    """`unique(x)`."""
    return unique(x, size=size, fill_value=fill_value)


def isin(element: Any, test_elements: Any, invert: bool = False) -> Array:
    """Whether each element occurs among `test_elements`."""
    a, b = promote(element, test_elements, call="isin")
    n = b.size
    spread = st.broadcast(a, (*a.shape, n), range(a.ndim))
    table = st.broadcast(ravel(b), (*a.shape, n), [a.ndim])
    out = any_over(equal(spread, table), -1)
    return ew.logical_not(out) if invert else out


def union1d(x: Any, y: Any, size: int | None = None, fill_value: Any = None) -> Array:
    """The sorted distinct elements of both."""
    return unique(concatenate([x, y], None), size=size, fill_value=fill_value)


def intersect1d(x: Any, y: Any) -> Array:
    """The sorted distinct elements that occur in both; their values must be known."""
    a = unique(x)
    return extract(isin(a, y), a)


def setdiff1d(x: Any, y: Any) -> Array:
    """The sorted distinct elements of `x` that do not occur in `y`; their values must be known."""
    a = unique(x)
    return extract(isin(a, y, invert=True), a)


def setxor1d(x: Any, y: Any) -> Array:
    """The sorted distinct elements that occur in exactly one; their values must be known."""
    return unique(concatenate([setdiff1d(x, y), setdiff1d(y, x)]))
