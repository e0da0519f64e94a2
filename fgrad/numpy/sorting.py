"""Sorting, order statistics, and binary search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array, promote
from fgrad.device import beside_arguments, constant
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.numpy.axes import Axis, axes_of, axis_of, broadcast_shapes, insert_axes, stretch
from fgrad.numpy.elementwise import add, clip, isnan, logical_and, logical_not, multiply, subtract, where
from fgrad.numpy.manipulation import ravel
from fgrad.numpy.reductions import any as any_over
from fgrad.numpy.reductions import sum as sum_over
from fgrad.ops import elementwise as ew
from fgrad.ops import sort as so
from fgrad.ops import structure as st
from fgrad.ops.builders import full, full_like
from fgrad.ops.index import gather, scatter
from fgrad.trace import Tracer


def _flat(call: str, x: Any, axis: int | None) -> tuple[Array, int]:
    a = as_array(x, call)
    if axis is None:
        return ravel(a), 0
    return a, axis_of(axis, a.ndim, call)


def sort(
    x: Any, axis: int | None = -1, descending: bool = False, stable: bool = True, kind: Any = None
) -> Array:
    """`x` in ascending order along `axis` (flattened if None); NaN last. Sorting is always stable."""
    a, at = _flat("sort", x, axis)
    out = so.sort([a], at)[0]
    return st.flip(out, [at]) if descending else out


def argsort(
    x: Any, axis: int | None = -1, descending: bool = False, stable: bool = True, kind: Any = None
) -> Array:
    """The positions (int64) that sort `x` along `axis`; equal elements keep their order; NaN last."""
    a, at = _flat("argsort", x, axis)
    if descending:  # reversed before and after, so that equal elements keep their order
        back = so.sort([st.flip(a, [at]), st.iota(a.shape, dtypes.int64, at, a)], at)[1]
        return subtract(a.shape[at] - 1, st.flip(back, [at]))
    return so.sort([a, st.iota(a.shape, dtypes.int64, at, a)], at)[1]


def lexsort(keys: Sequence[Any], axis: int = -1) -> Array:
    """The positions that sort by several keys: by the last one, equal ones by the one before, and so on."""
    arrays = [as_array(k, "lexsort") for k in keys]
    if not arrays:
        raise FgradTypeError(message("lexsort", "needs at least one key"))
    at = axis_of(axis, arrays[0].ndim, "lexsort")
    return so.sort([*arrays[::-1], st.iota(arrays[0].shape, dtypes.int64, at, arrays[0])], at, len(arrays))[
        -1
    ]


def partition(x: Any, kth: Any, axis: int | None = -1) -> Array:
    """`x` with its `kth` smallest element in place, smaller ones before it: here by sorting."""
    return sort(x, axis)


def argpartition(x: Any, kth: Any, axis: int | None = -1) -> Array:
    """The positions that partition `x`: here those that sort it."""
    return argsort(x, axis)


# ------------------------------------------------------------------------------------------------ elements along an axis


def _along(call: str, a: Array, indices: Any, axis: int) -> tuple[Array, list[Array]]:
    """`a` and, for each of its axes, index arrays of one shape: `indices` along `axis`, the own position along the others."""
    i = as_array(indices, call)
    if not dtypes.is_integer(i.dtype):
        raise FgradTypeError(message(call, f"indices must be integers, got {i.type}"))
    if i.ndim != a.ndim:
        raise FgradValueError(message(call, f"indices {i.type} and array {a.type} must have as many axes"))
    others = [1 if d == axis else n for d, n in enumerate(a.shape)]
    shape = broadcast_shapes(i.shape, tuple(others), call=call)
    a = stretch(a, tuple(n if d == axis else shape[d] for d, n in enumerate(a.shape)))
    i = stretch(ew.convert(i, dtypes.int64), shape)
    return a, [i if d == axis else st.iota(shape, dtypes.int64, d, a) for d in range(a.ndim)]


def take_along_axis(x: Any, indices: Any, axis: int | None = -1) -> Array:
    """`out[..., i, ...] = x[..., indices[..., i, ...], ...]`: picks what `argsort` or `argmax` (with keepdims) point at."""
    a, at = _flat("take_along_axis", x, axis)
    a, positions = _along("take_along_axis", a, indices, at)
    return gather(a, positions, range(a.ndim))


def put_along_axis(x: Any, indices: Any, values: Any, axis: int | None = -1) -> Array:
    """A copy of `x` with `values` at `indices` along `axis` (NumPy writes into `x`; arrays here are immutable)."""
    a, at = _flat("put_along_axis", x, axis)
    shape = a.shape if axis is not None else as_array(x).shape
    a, positions = _along("put_along_axis", a, indices, at)
    updates = stretch(as_array(values, "put_along_axis", a.dtype), positions[0].shape)
    return st.reshape(scatter(a, updates, positions, range(a.ndim), "set"), shape)


# ------------------------------------------------------------------------------------------------ binary search


@beside_arguments
def searchsorted(a: Any, v: Any, side: str = "left", sorter: Any = None) -> Array:
    """Where to insert `v` into the sorted 1-d `a` (int64, shape of `v`): before equal elements ("left") or after ("right")."""
    if side not in ("left", "right"):
        raise FgradValueError(message("searchsorted", f"side={side!r}", 'use "left" or "right"'))
    table, values = promote(a, v, call="searchsorted")
    if table.ndim != 1:
        raise FgradValueError(
            message("searchsorted", f"the first argument must be 1-dimensional, got {table.type}")
        )
    n = table.shape[0]
    if sorter is not None:
        table = gather(table, [as_array(sorter, "searchsorted", dtypes.int64)], [0])
    low, high = full(values.shape, 0, dtypes.int64), full(values.shape, n, dtypes.int64)
    for _ in range(n.bit_length()):
        middle = ew.shift_right_arithmetic(ew.add(low, high), full_like(low, 1))
        there = gather(table, [clip(middle, 0, n - 1)], [0])
        beyond = logical_and(_before(there, values, side == "right"), ew.lt(low, high))
        low, high = ew.select(beyond, ew.add(middle, full_like(low, 1)), low), ew.select(beyond, high, middle)
    return low


def _before(x: Array, v: Array, or_equal: bool) -> Array:
    """Whether `x` comes before `v` (or is equal) in the order of sorting, in which NaN is last."""
    if not dtypes.is_float(x.dtype):
        return (ew.le if or_equal else ew.lt)(x, v)
    if or_equal:
        return logical_not(_after(x, v))
    return _after(v, x)


def _after(x: Array, v: Array) -> Array:
    """Whether `x` comes strictly after `v`, NaN being last."""
    return ew.bitwise_or(ew.gt(x, v), ew.bitwise_and(ew.isnan(x), ew.logical_not(ew.isnan(v))))


@beside_arguments
def digitize(x: Any, bins: Any, right: bool = False) -> Array:
    """The number of the bin that each element falls into; `bins` are the 1-d edges, ascending or (known values) descending."""
    edges = as_array(bins, "digitize")
    descending = edges.size > 1 and bool(edges[0] > edges[-1]) if not _traced(edges) else False  # type: ignore[index]
    if descending:
        found = searchsorted(st.flip(edges, [0]), x, "left" if right else "right")
        return subtract(edges.size, found)
    return searchsorted(edges, x, "left" if right else "right")


def _traced(x: Array) -> bool:
    """Whether the values are not known yet."""
    return isinstance(x, Tracer) and x.value is None


# ------------------------------------------------------------------------------------------------ order statistics

_METHODS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "linear": lambda low, high, t: where(
        ew.eq(t, full_like(t, 0)), low, add(multiply(low, subtract(1, t)), multiply(high, t))
    ),
    "lower": lambda low, high, t: low,
    "higher": lambda low, high, t: high,
    "midpoint": lambda low, high, t: where(ew.eq(t, full_like(t, 0)), low, multiply(add(low, high), 0.5)),
    "nearest": lambda low, high, t: high,  # the position is rounded before
}


def _last(call: str, x: Any, axis: Axis) -> tuple[Array, tuple[int, ...]]:
    """The reduced axes moved to the end as one."""
    a = as_array(x, call)
    a = ew.convert(a, dtypes.to_inexact(a.dtype))
    axes = axes_of(axis, a.ndim, call)
    kept = [i for i in range(a.ndim) if i not in axes]
    a = st.transpose(a, [*kept, *axes])
    n = int(np.prod([a.shape[len(kept) + j] for j in range(len(axes))], dtype=np.int64))
    return st.reshape(a, (*a.shape[: len(kept)], n)), axes


@beside_arguments
def _quantile(
    call: str, x: Any, q: Any, axis: Axis, method: str, keepdims: bool, skip_nan: bool, scale: float = 1.0
) -> Array:
    if method not in _METHODS:
        raise FgradValueError(
            message(call, f"method={method!r} is not supported", f"use one of {', '.join(_METHODS)}")
        )
    a, axes = _last(call, x, axis)
    if a.shape[-1] == 0:
        raise FgradValueError(message(call, "of nothing: the reduced axes are empty"))
    if isinstance(q, (list, tuple)) and not any(isinstance(level, Array) for level in q):
        q = constant(np.asarray(q, a.dtype))
    levels = as_array(q, call, a.dtype) if not isinstance(q, Array) else ew.convert(q, a.dtype)
    if scale != 1.0:
        levels = ew.div(levels, full_like(levels, scale))
    ordered = so.sort([a], a.ndim - 1)[0]
    missing = isnan(a)
    counted = (
        sum_over(logical_not(missing), -1) if skip_nan else full(a.shape[:-1], a.shape[-1], dtypes.int64)
    )
    shape = (*levels.shape, *a.shape[:-1])
    top = st.broadcast(ew.convert(subtract(counted, 1), a.dtype), shape, range(levels.ndim, len(shape)))
    position = multiply(st.broadcast(levels, shape, range(levels.ndim)), top)
    if method == "nearest":
        position = ew.round(position)
    floor = ew.floor(position)
    low = clip(ew.convert(floor, dtypes.int64), 0, a.shape[-1] - 1)
    high = clip(ew.convert(ew.ceil(position), dtypes.int64), 0, a.shape[-1] - 1)
    where_else = [st.iota(shape, dtypes.int64, levels.ndim + i, a) for i in range(a.ndim - 1)]

    def at(i: Array) -> Array:
        return gather(ordered, [*where_else, i], range(a.ndim))

    out = _METHODS[method](at(low), at(high), subtract(position, floor))
    bad = ew.le(counted, full_like(counted, 0)) if skip_nan else any_over(missing, -1)
    out = where(st.broadcast(bad, shape, range(levels.ndim, len(shape))), full_like(out, float("nan")), out)
    return insert_axes(out, [levels.ndim + i for i in axes]) if keepdims else out


def quantile(x: Any, q: Any, axis: Axis = None, method: str = "linear", keepdims: bool = False) -> Array:
    """The values below which fractions `q` of the elements over `axis` lie; the axes of `q` come first.

    method: "linear", "lower", "higher", "midpoint" or "nearest", between two elements. NaN if an element is.
    """
    return _quantile("quantile", x, q, axis, method, keepdims, False)


def percentile(x: Any, q: Any, axis: Axis = None, method: str = "linear", keepdims: bool = False) -> Array:
    """`quantile` with `q` in per cent."""
    return _quantile("percentile", x, q, axis, method, keepdims, False, 100.0)


def nanquantile(x: Any, q: Any, axis: Axis = None, method: str = "linear", keepdims: bool = False) -> Array:
    """`quantile` of what is not NaN."""
    return _quantile("nanquantile", x, q, axis, method, keepdims, True)


def nanpercentile(x: Any, q: Any, axis: Axis = None, method: str = "linear", keepdims: bool = False) -> Array:
    """`percentile` of what is not NaN."""
    return _quantile("nanpercentile", x, q, axis, method, keepdims, True, 100.0)


def median(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """The middle element over `axis`, or the mean of the two middle ones."""
    return _quantile("median", x, 0.5, axis, "midpoint", keepdims, False)


def nanmedian(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """`median` of what is not NaN."""
    return _quantile("nanmedian", x, 0.5, axis, "midpoint", keepdims, True)
