"""`x[index]` and `x.at[index]`, with NumPy's rules.

An index is read once into a `Selection`: a strided block of the array, index arrays for some of the block's axes, and the
shape of the result. Reading is then slice, flip, gather, transpose, reshape (each only where needed); writing runs the same
steps backwards, with a scatter in the middle.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, ConcreteArray, concrete
from fgrad.convert import as_array, known
from fgrad.device import backend_of, beside, beside_arguments, constant, is_number
from fgrad.errors import (
    FgradDeviceError,
    FgradError,
    FgradIndexError,
    FgradTypeError,
    FgradValueError,
    describe,
    message,
)
from fgrad.numpy.axes import axes_of, broadcast_shapes, stretch
from fgrad.numpy.elementwise import clip, remainder
from fgrad.numpy.reductions import sum as sum_over
from fgrad.ops import structure as st
from fgrad.ops.elementwise import convert
from fgrad.ops.index import gather


@dataclass
class Selection:
    """What an index picks from an array of `shape`.

    start, stop, step   the block, one entry an axis (steps positive); `flips`: the axes of it that are then reversed
    axes, idx           axes of the block that index arrays (int64, all of shape `lead`) pick from
    before              how many of the other axes come in front of the axes of `lead` in the result
    result              the shape of the result: axes picked by an integer are gone, those made by None are there
    """

    shape: tuple[int, ...]
    start: list[int]
    stop: list[int]
    step: list[int]
    flips: list[int] = field(default_factory=list)
    axes: tuple[int, ...] = ()
    idx: tuple[Array, ...] = ()
    lead: tuple[int, ...] = ()
    before: int = 0
    result: tuple[int, ...] = ()

    @property
    def block(self) -> tuple[int, ...]:
        return tuple(-(-(b - a) // s) for a, b, s in zip(self.start, self.stop, self.step, strict=True))

    @property
    def is_whole(self) -> bool:
        return self.block == self.shape

    @property
    def rest(self) -> tuple[int, ...]:
        """The lengths of the block's axes that no index array picks from."""
        return tuple(n for i, n in enumerate(self.block) if i not in self.axes)

    def order(self) -> list[int]:
        """The transposition from (lead, rest) to the order of the result."""
        n, k = len(self.lead), self.before
        total = n + len(self.rest)
        return [*range(n, n + k), *range(n), *range(n + k, total)]


@beside_arguments
def select_from(x: Array, index: Any) -> Array:
    """`x[index]`."""
    return read(x, parse(index, x))


def read(x: Array, s: Selection) -> Array:
    x = block_of(x, s)
    if s.axes:
        x = st.transpose(gather(x, s.idx, s.axes), s.order())
    return st.reshape(x, s.result)


def block_of(x: Array, s: Selection) -> Array:
    return st.flip(st.slice_(x, s.start, s.stop, s.step), s.flips)


# ------------------------------------------------------------------------------------------------ reading an index


def _is_array_like(item: Any) -> bool:
    return isinstance(item, (Array, np.ndarray, np.bool_, list, tuple))


def _index_array(item: Any) -> Array:
    """An index that is an array, a (nested) list or a bool, as an Array of ints or bools."""
    if isinstance(item, (list, tuple)) and not item:
        return concrete(np.zeros(0, np.int64))
    a = as_array(item, "index")
    if not (dtypes.is_integer(a.dtype) or a.dtype == dtypes.bool_):
        raise FgradIndexError(
            message(
                "x[index]",
                f"arrays used as indices must be of integers or bools, got {a.type}",
                "convert with .astype('int64')",
            )
        )
    return a


def _static_int(item: Any) -> int | None:
    """A plain integer index, if `item` is one whose value is known without a trace."""
    if isinstance(item, (bool, np.bool_)):
        return None
    if isinstance(item, (int, np.integer)):
        return int(item)
    if isinstance(item, (ConcreteArray, np.ndarray)) and item.ndim == 0 and item.dtype.kind in "iu":
        return int(item)
    if not isinstance(item, (Array, np.ndarray, slice)) and hasattr(item, "__index__"):
        return operator.index(item)
    return None


def _mask_indices(mask: Array) -> list[Array]:
    fix = "use fgrad.numpy.where(mask, x, other), which keeps the shape; x.at[mask].set(scalar); or nonzero(mask, size=n)"
    return [constant(i) for i in np.nonzero(known("x[mask]", mask, fix))]


def parse(index: Any, x: Array) -> Selection:
    """Read `index` for the array `x`. Raises FgradIndexError (an IndexError)."""
    there = None if type(x) is ConcreteArray else backend_of((x,))
    if there is None:
        return _parse(index, x.shape)
    for i in index if isinstance(index, tuple) else (index,):
        if isinstance(i, np.ndarray) or type(i) is ConcreteArray:
            _check_near(as_array(i, "index"), x, there.name)
    with beside(x):  # lists of Python's numbers go along, as numbers do
        return _parse(index, x.shape)


def _check_near(i: Array, x: Array, device: str) -> None:
    if not is_number(i):
        fix = f"move it: x[fgrad.device_put(index, {device!r})]; slices, numbers and lists of numbers go along by themselves"
        raise FgradDeviceError(
            message("x[index]", f"the index array {i.type} is on cpu, x ({x.type}) on {device}", fix)
        )


def _parse(index: Any, shape: tuple[int, ...]) -> Selection:
    items = list(index) if isinstance(index, tuple) else [index]
    listed = []  # arrays made of lists
    for k, i in enumerate(items):
        if _is_array_like(i) or isinstance(i, bool):
            items[k] = _index_array(i)
            if isinstance(i, (list, tuple)):
                listed.append(items[k])
    used = sum(_consumes(i) for i in items)
    if used > len(shape):
        raise FgradIndexError(message("x[index]", f"too many indices: {used} for an array of shape {shape}"))
    dots = [k for k, i in enumerate(items) if i is Ellipsis]
    if len(dots) > 1:
        raise FgradIndexError(message("x[index]", "an index can only have a single ellipsis ('...')"))
    fill = [slice(None)] * (len(shape) - used)
    at = dots[0] if dots else len(items)
    items = [*items[:at], *fill, *items[at + 1 :]]

    s = Selection(shape, [0] * len(shape), list(shape), [1] * len(shape))
    has_arrays = any(isinstance(i, Array) and not (i.ndim == 0 and _static_int(i) is not None) for i in items)
    arrays: list[tuple[int, Array]] = []  # axis (or -1 for a 0-d bool) and index array
    result: list[int] = []  # lengths of the result's axes other than those of the index arrays
    places: list[
        tuple[int, int, int]
    ] = []  # for each index array: its item, axes of the result and of the rest before it
    rest = axis = 0
    for k, item in enumerate(items):
        if item is None:
            result.append(1)
            continue
        if isinstance(item, slice):
            n = _take_slice(s, axis, item)
            result.append(n)
            rest += 1
            axis += 1
            continue
        value = _static_int(item)
        if value is not None and not has_arrays:
            i = _checked(value, shape, axis)
            s.start[axis], s.stop[axis] = i, i + 1
            rest += 1
            axis += 1
            continue
        places.append((k, len(result), rest))
        if value is not None:
            arrays.append((axis, concrete(np.asarray(_checked(value, shape, axis)))))
            axis += 1
        elif isinstance(item, Array) and item.dtype == dtypes.bool_:
            _check_mask(item, shape, axis)
            if item.ndim == 0:
                arrays.append((-1, concrete(np.zeros(int(bool(item)), np.int64))))
            else:
                arrays.extend((axis + j, p) for j, p in enumerate(_mask_indices(item)))
            axis += item.ndim
        elif isinstance(item, Array):
            _check_bounds(item, shape, axis)
            if isinstance(item, ConcreteArray) and any(item is i for i in listed):
                item = constant(item.data)
            arrays.append((axis, convert(item, dtypes.int64)))
            axis += 1
        else:
            raise FgradIndexError(
                message(
                    "x[index]",
                    f"{describe(item)} is not an index",
                    "use integers, slices, None, ..., or arrays of integers or bools",
                )
            )
    if places:
        _place_arrays(s, arrays, places, result)
    else:
        s.result = tuple(result)
    return s


def _consumes(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, Array) and item.dtype == dtypes.bool_ else 1


def _place_arrays(
    s: Selection, arrays: list[tuple[int, Array]], places: list[tuple[int, int, int]], result: list[int]
) -> None:
    """Broadcast the index arrays together, and put their axes where NumPy does: in place of the indices if those stand side
    by side, else in front."""
    lead = broadcast_shapes(*(a.shape for _, a in arrays), call="x[index]: index arrays")
    together = all(b[0] == a[0] + 1 for a, b in pairwise(places))
    _, at, s.before = places[0] if together else (0, 0, 0)
    s.lead = lead
    s.axes = tuple(axis for axis, _ in arrays if axis >= 0)
    s.idx = tuple(stretch(a, lead) for axis, a in arrays if axis >= 0)
    s.result = (*result[:at], *lead, *result[at:])
    if not s.axes:  # x[True], x[False]: a new axis of length 1 or 0
        n = lead[0]
        if n == 0 and s.shape:
            s.stop[0] = 0
        elif n == 0:
            raise FgradIndexError(message("x[False]", "of a 0-dimensional array"))


def _take_slice(s: Selection, axis: int, item: slice) -> int:
    try:
        picked = range(*item.indices(s.shape[axis]))
    except FgradError:  # a traced bound
        raise
    except (TypeError, ValueError) as e:  # a bound that is no integer, a step of zero
        cls = FgradTypeError if isinstance(e, TypeError) else FgradValueError
        text = f"{item} along axis {axis} of an array of shape {s.shape}: {e}"
        raise cls(message("x[index]", text, "use integers or None in slices, and no step of 0")) from e
    n = len(picked)
    if n == 0:
        s.start[axis] = s.stop[axis] = 0
        return 0
    low, high = min(picked[0], picked[-1]), max(picked[0], picked[-1])
    s.start[axis], s.stop[axis], s.step[axis] = low, high + 1, abs(picked.step) if n > 1 else 1
    if picked.step < 0 and n > 1:
        s.flips.append(axis)
    return n


def _checked(i: int, shape: tuple[int, ...], axis: int) -> int:
    n = shape[axis]
    if not -n <= i < n:
        raise FgradIndexError(
            message(
                "x[index]",
                f"index {i} is out of bounds for axis {axis} with size {n}",
                f"the shape is {shape}",
            )
        )
    return i + n if i < 0 else i


def _check_bounds(item: Array, shape: tuple[int, ...], axis: int) -> None:
    """Of index arrays whose values are known now; the others are checked when the program runs."""
    if isinstance(item, ConcreteArray) and item.size:
        low, high = int(item.data.min()), int(item.data.max())
        _checked(low, shape, axis)
        _checked(high, shape, axis)


def _check_mask(mask: Array, shape: tuple[int, ...], axis: int) -> None:
    for j, (n, m) in enumerate(zip(shape[axis:], mask.shape, strict=False)):
        if n != m:
            raise FgradIndexError(
                message(
                    "x[mask]",
                    f"boolean index did not match indexed array along axis {axis + j}; size of axis is {n} but size of corresponding boolean axis is {m}",
                )
            )


@beside_arguments
def take(x: Any, indices: Any, axis: int | None = None, mode: str = "raise") -> Array:
    """Elements of `x` at integer `indices` along `axis` (of the flattened array if None).

    mode: "raise" (out of bounds is an IndexError), "clip" or "wrap".
    """
    a = as_array(x, "take")
    if axis is None:
        a, axis = st.reshape(a, (a.size,)), 0
    at = axis % a.ndim if -a.ndim <= axis < a.ndim else _checked(axis, (a.ndim,), 0)
    i = convert(_index_array(indices if not isinstance(indices, tuple) else list(indices)), dtypes.int64)
    n = a.shape[at]
    if mode == "clip":
        i = clip(i, 0, n - 1)
    elif mode == "wrap":
        i = remainder(i, n)
    else:
        _check_bounds(i, a.shape, at)
    if isinstance(indices, (list, tuple)) and isinstance(i, ConcreteArray):
        i = constant(i.data)
    out = gather(a, [i], [at])
    lead = i.ndim
    return st.transpose(out, [*range(lead, lead + at), *range(lead), *range(lead + at, out.ndim)])


def diagonal_of(x: Array, i: int, j: int, offset: int = 0) -> Array:
    """The diagonal of axes i and j, as a new last axis: every (m + 1)-th element of the (n, m) plane read row by row."""
    x = st.transpose(x, [*(k for k in range(x.ndim) if k not in (i, j)), i, j])
    *lead, n, m = x.shape
    count = max(0, min(n, m - offset) if offset >= 0 else min(n + offset, m))
    first = offset if offset >= 0 else -offset * m
    zeros = [0] * len(lead)
    flat = st.reshape(x, (*lead, n * m))
    if count == 0:
        return st.slice_(flat, (*zeros, 0), (*lead, 0))
    return st.slice_(
        flat, (*zeros, first), (*lead, first + (count - 1) * (m + 1) + 1), (*[1] * len(lead), m + 1)
    )


def diagonal(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Array:
    """The diagonal of two axes, as a new last axis."""
    a = as_array(x, "diagonal")
    if a.ndim < 2:
        raise FgradTypeError(message("diagonal", f"needs at least 2 axes, got {a.type}"))
    i, j = axes_of((axis1, axis2), a.ndim, "diagonal")
    return diagonal_of(a, i, j, offset)


def trace(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None) -> Array:
    """The sum of the diagonal of two axes."""
    return sum_over(diagonal(x, offset, axis1, axis2), -1, dtype)
