"""Finding and counting: positions of non-zeros, unique values, sets, bins, choices.

Where the number of results depends on the values, these functions need to know them: they work eagerly and under `grad`. Under
`jit`, give `size=`, the length of the result; what is missing is filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, from_numpy
from fgrad.convert import as_array, known, promote
from fgrad.device import beside_arguments, constant
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.numpy.axes import broadcast_all
from fgrad.numpy.elementwise import (
    add,
    clip,
    equal,
    floor_divide,
    logical_or,
    multiply,
    remainder,
    subtract,
    to_bool,
    where,
)
from fgrad.numpy.indexing import take
from fgrad.numpy.joining import concatenate, stack
from fgrad.numpy.manipulation import ravel
from fgrad.numpy.reductions import max as largest_of
from fgrad.numpy.reductions import sum as sum_over
from fgrad.numpy.sorting import searchsorted
from fgrad.ops import elementwise as ew
from fgrad.ops import sort as so
from fgrad.ops import structure as st
from fgrad.ops.builders import full, full_like
from fgrad.ops.cumulative import cumsum
from fgrad.ops.index import gather, scatter

# ------------------------------------------------------------------------------------------------ positions


@beside_arguments
def flatnonzero(x: Any, size: int | None = None, fill_value: int = 0) -> Array:
    """The positions (int64) of non-zero elements in the flattened array; with `size`, that many, the missing ones `fill_value`."""
    a = ravel(x)
    if size is None:
        return from_numpy(np.flatnonzero(known("flatnonzero", a, "pass size=, or use a mask with where")))
    zero = ew.logical_not(to_bool(a))
    order = so.sort([ew.convert(zero, dtypes.int8), st.iota(a.shape, dtypes.int64, 0)], 0)[1]
    if size > a.size:
        order = st.pad(order, 0, [0], [size - a.size])
    order = st.slice_(order, (0,), (size,))
    count = sum_over(ew.logical_not(zero))
    return where(
        ew.lt(*broadcast_all("flatnonzero", [st.iota((size,), dtypes.int64, 0, count), count])),
        order,
        fill_value,
    )


def nonzero(x: Any, size: int | None = None, fill_value: int = 0) -> tuple[Array, ...]:
    """The positions of non-zero elements, one index array for each axis. See `flatnonzero` for `size`."""
    a = as_array(x, "nonzero")
    if a.ndim == 0:
        raise FgradValueError(message("nonzero", "0-dimensional array", "use atleast_1d(x).nonzero()"))
    if size is None:
        found = np.nonzero(
            known("nonzero", a, "pass size=, the number of positions, or use a mask with where")
        )
        return tuple(from_numpy(i) for i in found)
    flat = flatnonzero(a, size, -1)
    missing = ew.lt(flat, full_like(flat, 0))
    out = []
    for n in reversed(a.shape):
        out.append(where(missing, fill_value, remainder(flat, max(n, 1))))
        flat = floor_divide(flat, max(n, 1))
    return tuple(out[::-1])


def argwhere(x: Any, size: int | None = None, fill_value: int = 0) -> Array:
    """The positions of non-zero elements, one row each. See `flatnonzero` for `size`."""
    return stack(nonzero(x, size, fill_value), 1)


def unravel_index(indices: Any, shape: Sequence[int]) -> tuple[Array, ...]:
    """Positions in a flattened array as positions along each axis of `shape`."""
    i = as_array(indices, "unravel_index", dtypes.int64)
    out = []
    for n in reversed(tuple(shape)):
        out.append(remainder(i, n))
        i = floor_divide(i, n)
    return tuple(out[::-1])


def ravel_multi_index(multi_index: Sequence[Any], dims: Sequence[int]) -> Array:
    """Positions along each axis of an array of shape `dims` as positions in the flattened array."""
    out: Any = 0
    for i, n in zip(multi_index, dims, strict=True):
        out = add(multiply(out, n), as_array(i, "ravel_multi_index", dtypes.int64))
    return as_array(out)


def extract(condition: Any, x: Any) -> Array:
    """The elements of the flattened `x` where `condition` is not zero; its values must be known."""
    return take(ravel(x), flatnonzero(condition))


def compress(condition: Any, x: Any, axis: int | None = None) -> Array:
    """The slices of `x` along `axis` where the 1-d `condition` is not zero; its values must be known."""
    return take(x, flatnonzero(condition), axis)


@beside_arguments
def repeat(x: Any, repeats: Any, axis: int | None = None, total_repeat_length: int | None = None) -> Array:
    """Each element `repeats` times along `axis` (flattened if None).

    One number of repeats for each element must be known, or `total_repeat_length` given: the result is cut to that length, or
    filled up with the last element.
    """
    a = as_array(x, "repeat")
    if axis is None:
        a, axis = ravel(a), 0
    at = axis % a.ndim
    counts = as_array(repeats, "repeat", dtypes.int64)
    n = a.shape[at]
    if counts.size == 1 and total_repeat_length is None:
        k = int(st.reshape(counts, ()))  # type: ignore[call-overload]
        spread = st.broadcast(
            a, (*a.shape[: at + 1], k, *a.shape[at + 1 :]), [i if i <= at else i + 1 for i in range(a.ndim)]
        )
        return st.reshape(spread, (*a.shape[:at], n * k, *a.shape[at + 1 :]))
    if counts.ndim == 0:
        counts = st.broadcast(counts, (n,), ())
    if counts.shape != (n,):
        raise FgradValueError(message("repeat", f"{counts.size} repeats for an axis of {n}"))
    if total_repeat_length is None:
        where_from = np.repeat(np.arange(n), known("repeat", counts, "pass total_repeat_length="))
        return take(a, constant(where_from), at)
    ends = cumsum(counts, 0)
    chosen = searchsorted(ends, st.iota((total_repeat_length,), dtypes.int64, 0, ends), "right")
    return take(a, clip(chosen, 0, n - 1), at)


def insert(x: Any, index: int, values: Any, axis: int | None = None) -> Array:
    """`x` with `values` before position `index` along `axis` (flattened if None)."""
    a = as_array(x, "insert")
    if axis is None:
        a, axis = ravel(a), 0
    at = axis % a.ndim
    n = a.shape[at]
    i = int(index) + n if index < 0 else int(index)
    v = as_array(values, "insert", a.dtype)
    if v.ndim < a.ndim:
        others = [m for d, m in enumerate(a.shape) if d != at]
        v = st.reshape(v, (v.size,)) if a.ndim == 1 else st.reshape(full_like(v, 0) + v, v.shape)  # type: ignore[operator]
        if a.ndim > 1:
            v = st.broadcast(
                v, [*others[: len(others) - v.ndim], *v.shape], range(len(others) - v.ndim, len(others))
            )
            v = st.reshape(v, [1 if d == at else m for d, m in enumerate(a.shape)])
    low, high = [0] * a.ndim, list(a.shape)
    low[at] = high[at] = i
    before, after = st.slice_(a, [0] * a.ndim, high), st.slice_(a, low, a.shape)
    return concatenate([before, v, after], at)


@beside_arguments
def delete(x: Any, indices: Any, axis: int | None = None) -> Array:
    """`x` without the slices at `indices` (an int, a slice or a known array) along `axis`."""
    a = as_array(x, "delete")
    if axis is None:
        a, axis = ravel(a), 0
    at = axis % a.ndim
    if isinstance(indices, Array):
        indices = known("delete", indices, "use where or a mask")
    kept = np.delete(np.arange(a.shape[at]), indices)
    return take(a, constant(kept), at)


# ------------------------------------------------------------------------------------------------ choices


def select(condlist: Sequence[Any], choicelist: Sequence[Any], default: Any = 0) -> Array:
    """The element of the first choice whose condition is True, else `default`."""
    if len(condlist) != len(choicelist) or not condlist:
        raise FgradValueError(message("select", f"{len(condlist)} conditions and {len(choicelist)} choices"))
    values = promote(*choicelist, default, call="select")
    out = values[-1]
    for c, v in zip(reversed(condlist), reversed(values[:-1]), strict=True):
        out = where(c, v, out)
    return out


def choose(index: Any, choices: Sequence[Any], mode: str = "raise") -> Array:
    """The element of `choices[index]`, elementwise. mode "clip" and "wrap" bring the index into range."""
    i, *values = broadcast_all(
        "choose", [as_array(index, "choose", dtypes.int64), *promote(*choices, call="choose")]
    )
    n = len(values)
    i = clip(i, 0, n - 1) if mode == "clip" else remainder(i, n) if mode == "wrap" else i
    together = st.concatenate([st.reshape(v, (1, *v.shape)) for v in values], 0)
    return gather(
        together, [i, *[st.iota(i.shape, dtypes.int64, d, i) for d in range(i.ndim)]], range(i.ndim + 1)
    )


def piecewise(x: Any, condlist: Sequence[Any], funclist: Sequence[Any]) -> Array:
    """`funclist[i](x)` where `condlist[i]` (the last true one counts); one function more is for the rest. Numbers are constants."""
    a = as_array(x, "piecewise")
    functions = list(funclist)
    default = functions.pop() if len(functions) == len(condlist) + 1 else 0
    if len(functions) != len(condlist):
        raise FgradValueError(
            message("piecewise", f"{len(condlist)} conditions and {len(funclist)} functions")
        )

    def value(f: Any) -> Array:
        v = as_array(f(a) if callable(f) else f, "piecewise", a.dtype)
        return v if v.shape == a.shape else st.broadcast(v, a.shape, ())

    out = value(default)
    for c, f in zip(condlist, functions, strict=True):
        out = where(c, value(f), out)
    return out


# ------------------------------------------------------------------------------------------------ bins


@beside_arguments
def bincount(x: Any, weights: Any = None, minlength: int = 0, length: int | None = None) -> Array:
    """How often each of 0, 1, ... occurs in the 1-d integer `x` (or the sum of its weights).

    `length` fixes the length of the result and is needed under jit; without it, the largest value decides.
    """
    a = as_array(x, "bincount")
    if a.ndim != 1 or not (dtypes.is_integer(a.dtype) or a.dtype == dtypes.bool_):
        raise FgradTypeError(message("bincount", f"needs a 1-dimensional integer array, got {a.type}"))
    if length is None:
        values = known("bincount", a, "pass length=, the number of bins")
        if values.size and values.min() < 0:
            raise FgradValueError(message("bincount", "negative values"))
        length = max(int(values.max()) + 1 if values.size else 0, minlength)
    w = full(a.shape, 1, dtypes.int64) if weights is None else as_array(weights, "bincount")
    if weights is not None:
        w = ew.convert(w, dtypes.to_inexact(w.dtype))
        if w.shape != a.shape:
            raise FgradValueError(
                message("bincount", f"weights {w.type} and values {a.type} differ in shape")
            )
    return scatter(full((length,), 0, w.dtype), w, [ew.convert(a, dtypes.int64)], [0], "add")


@beside_arguments
def histogram_bin_edges(x: Any, bins: Any = 10, range: Any = None) -> Array:
    """The edges of `bins` equal bins between the extremes (or over `range`); given edges are returned."""
    a = ravel(x)
    a = ew.convert(a, dtypes.to_inexact(a.dtype))
    if not isinstance(bins, (int, np.integer)):
        return as_array(bins, "histogram")
    if range is not None:
        low, high = (as_array(v, "histogram", a.dtype) for v in range)
    elif a.size == 0:
        low, high = full((), 0, a.dtype), full((), 1, a.dtype)
    else:
        low, high = ew.neg(largest_of(ew.neg(a))), largest_of(a)
    flat = equal(low, high)
    low, high = where(flat, subtract(low, 0.5), low), where(flat, add(high, 0.5), high)
    n = int(bins)
    t = ew.div(ew.convert(st.iota((n + 1,), dtypes.int64, 0), a.dtype), full((n + 1,), n, a.dtype))
    return add(multiply(low, subtract(1, t)), multiply(high, t))


@beside_arguments
def histogram(
    x: Any, bins: Any = 10, range: Any = None, weights: Any = None, density: bool = False
) -> tuple[Array, Array]:
    """(counts, edges): how many elements fall between neighbouring edges; the last bin includes its right edge."""
    a = ravel(x)
    edges = histogram_bin_edges(a, bins, range)
    n = edges.shape[0] - 1
    number = subtract(searchsorted(edges, a, "right"), 1)
    last = st.reshape(st.slice_(edges, (n,), (n + 1,)), ())
    number = where(equal(a, last), n - 1, number)
    outside = logical_or(ew.lt(number, full_like(number, 0)), ew.ge(number, full_like(number, n)))
    counts = bincount(where(outside, n, number), None if weights is None else ravel(weights), length=n + 1)
    counts = st.slice_(counts, (0,), (n,))
    if density:
        widths = subtract(st.slice_(edges, (1,), (n + 1,)), st.slice_(edges, (0,), (n,)))
        counts = counts / widths / sum_over(counts)  # type: ignore[operator]
    return counts, edges


def interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None) -> Array:
    """The piecewise linear function through the points (xp, fp) at `x`; `xp` ascending; beyond the ends the end values (or
    `left`, `right`)."""
    at, px, py = promote(x, xp, fp, call="interp", inexact=True)
    if px.ndim != 1 or px.shape != py.shape or px.shape[0] == 0:
        raise FgradValueError(
            message(
                "interp", f"xp {px.type} and fp {py.type} must be 1-dimensional, of one length, not empty"
            )
        )
    n = px.shape[0]
    i = clip(searchsorted(px, at, "right"), 1, max(n - 1, 1))
    low, high = clip(subtract(i, 1), 0, n - 1), clip(i, 0, n - 1)
    x0, x1, y0, y1 = (gather(v, [j], [0]) for v, j in ((px, low), (px, high), (py, low), (py, high)))
    width = subtract(x1, x0)
    none = ew.eq(width, full_like(width, 0))
    t = where(none, 0.0, ew.div(subtract(at, x0), where(none, 1.0, width)))
    out = add(y0, multiply(t, subtract(y1, y0)))
    first, last = (st.reshape(st.slice_(v, (j,), (j + 1,)), ()) for v, j in ((px, 0), (px, n - 1)))
    y_first, y_last = (st.reshape(st.slice_(py, (j,), (j + 1,)), ()) for j in (0, n - 1))
    out = where(at < first, y_first if left is None else left, out)  # type: ignore[operator]
    return where(at > last, y_last if right is None else right, out)  # type: ignore[operator]
