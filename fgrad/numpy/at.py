"""`x.at[index].set(v)` and its kin: a copy of `x` with some elements changed, `x` itself untouched."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array
from fgrad.device import beside_arguments
from fgrad.errors import FgradShapeError, FgradTypeError, message
from fgrad.numpy.axes import stretch
from fgrad.numpy.elementwise import divide, maximum, minimum, power
from fgrad.numpy.indexing import Selection, block_of, parse, select_from
from fgrad.numpy.reductions import highest, lowest
from fgrad.ops import structure as st
from fgrad.ops.builders import full
from fgrad.ops.elementwise import add, bitwise_and, bitwise_or, convert, mul, select
from fgrad.ops.index import scatter


class At:
    """`x.at`: index it."""

    __slots__ = ("array",)

    def __init__(self, array: Array):
        self.array = array

    def __getitem__(self, index: Any) -> Place:
        return Place(self.array, index)


class Place:
    """`x.at[index]`. Values broadcast to the shape of `x[index]` and are converted to the dtype of `x`.

    Where an index array names an element twice, `add`, `mul`, `min` and `max` combine all values; of `set` the last one stays.
    """

    __slots__ = ("array", "index")

    def __init__(self, array: Array, index: Any):
        self.array, self.index = array, index

    def __repr__(self) -> str:
        return f"{self.array!r}.at[{self.index!r}]"

    def get(self) -> Array:
        """`x[index]`."""
        return select_from(self.array, self.index)

    def set(self, values: Any) -> Array:
        """`x` with `x[index] = values`."""
        return _write(self.array, self.index, values, "set")

    def add(self, values: Any) -> Array:
        """`x` with `x[index] += values`."""
        return _write(self.array, self.index, values, "add")

    def subtract(self, values: Any) -> Array:
        """`x` with `x[index] -= values`."""
        return _write(self.array, self.index, -as_array(values, "at.subtract", self.array.dtype), "add")  # type: ignore[operator]

    def mul(self, values: Any) -> Array:
        """`x` with `x[index] *= values`."""
        return _write(self.array, self.index, values, "mul")

    def min(self, values: Any) -> Array:
        """`x` with `x[index] = minimum(x[index], values)`."""
        return _write(self.array, self.index, values, "minimum")

    def max(self, values: Any) -> Array:
        """`x` with `x[index] = maximum(x[index], values)`."""
        return _write(self.array, self.index, values, "maximum")

    def divide(self, values: Any) -> Array:
        """`x` with `x[index] /= values`, for an index that names no element twice."""
        return self.set(divide(self.get(), values))

    def power(self, values: Any) -> Array:
        """`x` with `x[index] **= values`, for an index that names no element twice."""
        return self.set(power(self.get(), values))

    def apply(self, function: Callable[[Array], Array]) -> Array:
        """`x` with `x[index] = function(x[index])`, for an index that names no element twice."""
        mask = _as_mask(self.array, self.index)
        if mask is not None:
            return select(mask, convert(function(self.array), self.array.dtype), self.array)
        return self.set(function(self.get()))

    multiply = mul


_COMBINE: dict[str, Callable[..., Array]] = {"add": add, "mul": mul, "minimum": minimum, "maximum": maximum}
_ON_BOOLS = {"add": "maximum", "mul": "minimum"}


def _neutral(mode: str, dtype: np.dtype) -> Any:
    """The value that changes nothing."""
    return {"add": 0, "mul": 1, "minimum": highest(dtype), "maximum": lowest(dtype)}[mode]


def _as_mask(x: Array, index: Any) -> Array | None:
    """`index` as a mask of the shape of `x`, if it is one bool array."""
    if not isinstance(index, (Array, np.ndarray)) or index.dtype != dtypes.bool_ or index.ndim == 0:
        return None
    if index.shape != x.shape[: index.ndim]:
        return None  # left to the error of the general path
    mask = as_array(index, "at")
    return st.broadcast(mask, x.shape, range(mask.ndim))


@beside_arguments
def _write(x: Array, index: Any, values: Any, mode: str) -> Array:
    v = as_array(values, f"at[...].{mode}")
    if dtypes.is_complex(v.dtype) and not dtypes.is_complex(x.dtype):
        raise FgradTypeError(
            message(
                f"at[...].{mode}", f"complex values do not fit into {x.type}", "take the .real part first"
            )
        )
    v = convert(v, x.dtype)
    if x.dtype == dtypes.bool_:
        mode = _ON_BOOLS.get(mode, mode)
    if v.size == 1 and v.ndim <= 1:  # a mask with one value for all keeps the shape, so it may be traced
        mask = _as_mask(x, index)
        if mask is not None:
            filled = stretch(st.reshape(v, ()), x.shape)
            return select(mask, filled if mode == "set" else _combine(mode, x, filled), x)
    s = parse(index, x)
    return _put(x, s, _fit(v, s, mode), mode)


def _combine(mode: str, x: Array, v: Array) -> Array:
    if x.dtype == dtypes.bool_:
        return (bitwise_or if mode == "maximum" else bitwise_and)(x, v)
    return _COMBINE[mode](x, v)


def _fit(v: Array, s: Selection, mode: str) -> Array:
    """`v` in the shape in which the scatter (or the block) takes it: lead axes, then the rest."""
    extra = v.ndim - len(s.result)
    if extra > 0 and math.prod(v.shape[:extra]) == 1:
        v = st.reshape(v, v.shape[extra:])
    lead = len(s.result) - v.ndim
    if lead < 0 or any(n not in (1, s.result[lead + i]) for i, n in enumerate(v.shape)):
        raise FgradShapeError(
            message(
                f"at[...].{mode}",
                f"values of shape {v.shape} do not broadcast to x[index], which has shape {s.result}",
            )
        )
    v = stretch(v, s.result)
    if not s.axes:
        return st.reshape(v, s.block)
    order = s.order()
    in_order = [(*s.lead, *s.rest)[i] for i in order]
    return st.transpose(st.reshape(v, in_order), [int(i) for i in np.argsort(order)])


def _put(x: Array, s: Selection, updates: Array, mode: str) -> Array:
    if not s.axes:
        return _put_block(x, s, updates, mode)
    inside = block_of(x, s)
    if x.dtype == dtypes.bool_ and mode != "set":  # combine as small integers
        wide = scatter(convert(inside, dtypes.int8), convert(updates, dtypes.int8), s.idx, s.axes, mode)
        changed = convert(wide, x.dtype)
    else:
        changed = scatter(inside, updates, s.idx, s.axes, mode)
    return _put_block(x, s, changed, "set")


def _put_block(x: Array, s: Selection, block: Array, mode: str) -> Array:
    """The block written into `x`: set or combined elementwise with a padded copy, so that it fuses and differentiates."""
    block = st.flip(block, s.flips)
    if s.is_whole:
        return block if mode == "set" else _combine(mode, x, block)
    if 0 in s.block:
        return x
    if mode == "set" and all(n == 1 or m == 1 for n, m in zip(s.step, s.block, strict=True)):
        starts = [full((), a, dtypes.int64) for a in s.start]
        return st.dynamic_update_slice(x, block, starts)
    widths = _widths(s)
    if mode == "set":
        inside = st.pad(full(s.block, True, dtypes.bool_), False, *widths)
        return select(inside, st.pad(block, 0, *widths), x)
    return _combine(mode, x, st.pad(block, _neutral(mode, x.dtype), *widths))


def _widths(s: Selection) -> tuple[list[int], list[int], list[int]]:
    gaps = [n - 1 for n in s.step]
    low = list(s.start)
    high = [n - a - (m + (m - 1) * g) for n, a, m, g in zip(s.shape, s.start, s.block, gaps, strict=True)]
    return low, high, gaps
