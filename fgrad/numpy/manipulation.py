"""Changing shape and order: reshape, transpose, join, split, repeat, flip, roll."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array, promote
from fgrad.errors import FgradShapeError, FgradTypeError, FgradValueError, message
from fgrad.numpy.axes import Axis, Shape, axes_of, axis_of, insert_axes, shape_of
from fgrad.ops import structure as st
from fgrad.ops.elementwise import convert


def _slice_axis(x: Array, axis: int, start: int, stop: int) -> Array:
    low, high = [0] * x.ndim, list(x.shape)
    low[axis], high[axis] = start, stop
    return st.slice_(x, low, high)


# ------------------------------------------------------------------------------------------------ shape


def reshape(x: Any, shape: Shape, order: str = "C") -> Array:
    """`x` with another shape of as many elements, row-major; one entry may be -1 and is worked out."""
    a = as_array(x, "reshape")
    wanted = shape_of(shape, "reshape")
    if order != "C":
        raise FgradShapeError(
            message(
                "reshape",
                f"order={order!r} is not supported",
                "transpose first: reshape(x.T, shape[::-1]).T is order 'F'",
            )
        )
    if wanted.count(-1) == 1:
        rest = math.prod(n for n in wanted if n != -1)
        if rest == 0 or a.size % rest:
            raise FgradValueError(
                message(
                    "reshape",
                    f"{a.type} has {a.size} elements, which {wanted} cannot hold: {a.size} is not a multiple of {rest}",
                )
            )
        wanted = tuple(a.size // rest if n == -1 else n for n in wanted)
    if any(n < 0 for n in wanted) or math.prod(wanted) != a.size:
        raise FgradShapeError(
            message(
                "reshape",
                f"{a.type} has {a.size} elements, shape {wanted} has {math.prod(wanted)}",
                "use -1 for one axis to have it worked out",
            )
        )
    return st.reshape(a, wanted)


def ravel(x: Any) -> Array:
    """All elements in row-major order, as one axis."""
    a = as_array(x, "ravel")
    return st.reshape(a, (a.size,))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Array:
    """`x` with its axes reversed, or in the order `axes`."""
    a = as_array(x, "transpose")
    if axes is None:
        return st.transpose(a, range(a.ndim - 1, -1, -1))
    order = tuple(axis_of(i, a.ndim, "transpose") for i in axes)
    if sorted(order) != list(range(a.ndim)):
        raise FgradValueError(
            message("transpose", f"axes={tuple(axes)} is not a permutation of the {a.ndim} axes of {a.type}")
        )
    return st.transpose(a, order)


permute_dims = transpose


def matrix_transpose(x: Any) -> Array:
    """`x` with its last two axes exchanged."""
    a = as_array(x, "matrix_transpose")
    if a.ndim < 2:
        raise FgradValueError(message("matrix_transpose", f"needs at least 2 axes, got {a.type}"))
    return swapaxes(a, -1, -2)


def swapaxes(x: Any, axis1: int, axis2: int) -> Array:
    """`x` with two axes exchanged."""
    a = as_array(x, "swapaxes")
    i, j = axis_of(axis1, a.ndim, "swapaxes"), axis_of(axis2, a.ndim, "swapaxes")
    order = list(range(a.ndim))
    order[i], order[j] = j, i
    return st.transpose(a, order)


def moveaxis(x: Any, source: int | Sequence[int], destination: int | Sequence[int]) -> Array:
    """`x` with axes `source` moved to positions `destination`; the others keep their order."""
    a = as_array(x, "moveaxis")
    origin, target = axes_of(source, a.ndim, "moveaxis"), axes_of(destination, a.ndim, "moveaxis")
    if len(origin) != len(target):
        raise FgradValueError(
            message("moveaxis", f"source={source} and destination={destination} differ in length")
        )
    order = [i for i in range(a.ndim) if i not in origin]
    for to, i in sorted(zip(target, origin, strict=True)):
        order.insert(to, i)
    return st.transpose(a, order)


def rollaxis(x: Any, axis: int, start: int = 0) -> Array:
    """`x` with `axis` moved to lie before position `start`."""
    a = as_array(x, "rollaxis")
    i = axis_of(axis, a.ndim, "rollaxis")
    to = start + a.ndim if start < 0 else start
    return moveaxis(a, i, to - 1 if to > i else to)


def squeeze(x: Any, axis: Axis = None) -> Array:
    """`x` without its axes of length 1, or without those of `axis`."""
    a = as_array(x, "squeeze")
    axes = (
        tuple(i for i, n in enumerate(a.shape) if n == 1)
        if axis is None
        else axes_of(axis, a.ndim, "squeeze")
    )
    long = [i for i in axes if a.shape[i] != 1]
    if long:
        raise FgradValueError(
            message("squeeze", f"axis {long[0]} of {a.type} has length {a.shape[long[0]]}, not 1")
        )
    return st.reshape(a, [n for i, n in enumerate(a.shape) if i not in axes])


def expand_dims(x: Any, axis: int | Sequence[int]) -> Array:
    """`x` with new axes of length 1 at the positions `axis` of the result."""
    a = as_array(x, "expand_dims")
    n = a.ndim + (len(axis) if isinstance(axis, (tuple, list)) else 1)
    return insert_axes(a, axes_of(axis, n, "expand_dims"))


def _at_least(call: str, n: int, xs: Sequence[Any], widen: Any) -> Any:
    out = [st.reshape(a, widen(a.shape)) if a.ndim < n else a for a in (as_array(x, call) for x in xs)]
    return out[0] if len(out) == 1 else out


def atleast_1d(*xs: Any) -> Any:
    """Scalars as arrays of one axis; the rest unchanged."""
    return _at_least("atleast_1d", 1, xs, lambda s: (1,))


def atleast_2d(*xs: Any) -> Any:
    """Arrays of at least two axes: new ones in front."""
    return _at_least("atleast_2d", 2, xs, lambda s: (1,) * (2 - len(s)) + s)


def atleast_3d(*xs: Any) -> Any:
    """Arrays of at least three axes: (N,) becomes (1, N, 1), (M, N) becomes (M, N, 1)."""
    return _at_least("atleast_3d", 3, xs, lambda s: {0: (1, 1, 1), 1: (1, *s, 1), 2: (*s, 1)}[len(s)])


def size(x: Any, axis: int | None = None) -> int:
    """The number of elements, or the length of one axis."""
    a = as_array(x, "size")
    return a.size if axis is None else a.shape[axis_of(axis, a.ndim, "size")]


def shape(x: Any) -> tuple[int, ...]:
    """The lengths of the axes."""
    return as_array(x, "shape").shape


def ndim(x: Any) -> int:
    """The number of axes."""
    return as_array(x, "ndim").ndim


# ------------------------------------------------------------------------------------------------ join


def _sequence(xs: Any, call: str) -> list[Any]:
    if isinstance(xs, (Array, np.ndarray)):
        return [x for x in as_array(xs, call)]  # type: ignore[attr-defined]
    if not isinstance(xs, (list, tuple)) or not xs:
        raise FgradTypeError(
            message(call, "needs a non-empty list or tuple of arrays", f"write {call}([x, y])")
        )
    return list(xs)


def _one_dtype(xs: Any, call: str, dtype: Any) -> list[Array]:
    arrays = promote(*_sequence(xs, call), call=call)
    return arrays if dtype is None else [convert(a, dtypes.canonical(dtype)) for a in arrays]


def concatenate(xs: Sequence[Any], axis: int | None = 0, dtype: Any = None) -> Array:
    """The arrays one after another along an existing axis (`axis=None`: flattened first)."""
    arrays = _one_dtype(xs, "concatenate", dtype)
    if axis is None:
        return st.concatenate([ravel(a) for a in arrays], 0)
    first = arrays[0]
    if first.ndim == 0:
        raise FgradShapeError(
            message("concatenate", "0-dimensional arrays have no axis to be joined along", "use stack")
        )
    at = axis_of(axis, first.ndim, "concatenate")
    for a in arrays[1:]:
        if (
            a.ndim != first.ndim
            or a.shape[:at] != first.shape[:at]
            or a.shape[at + 1 :] != first.shape[at + 1 :]
        ):
            raise FgradShapeError(
                message(
                    "concatenate",
                    f"shapes {' and '.join(str(v.shape) for v in arrays)} differ outside axis {at}",
                    "all axes but the joined one must be equal",
                )
            )
    return st.concatenate(arrays, at)


concat = concatenate


def stack(xs: Sequence[Any], axis: int = 0, dtype: Any = None) -> Array:
    """Arrays of one shape along a new axis."""
    arrays = _one_dtype(xs, "stack", dtype)
    if any(a.shape != arrays[0].shape for a in arrays):
        raise FgradShapeError(
            message("stack", f"all shapes must be equal, got {', '.join(str(a.shape) for a in arrays)}")
        )
    at = axis_of(axis, arrays[0].ndim + 1, "stack")
    return st.concatenate([insert_axes(a, (at,)) for a in arrays], at)


def vstack(xs: Sequence[Any], dtype: Any = None) -> Array:
    """Rows below one another."""
    return concatenate([atleast_2d(a) for a in _one_dtype(xs, "vstack", dtype)], 0)


def hstack(xs: Sequence[Any], dtype: Any = None) -> Array:
    """Arrays side by side: along axis 1, or 0 if they have only one."""
    arrays = [atleast_1d(a) for a in _one_dtype(xs, "hstack", dtype)]
    return concatenate(arrays, 0 if arrays[0].ndim == 1 else 1)


def dstack(xs: Sequence[Any], dtype: Any = None) -> Array:
    """Arrays along a third axis."""
    return concatenate([atleast_3d(a) for a in _one_dtype(xs, "dstack", dtype)], 2)


def column_stack(xs: Sequence[Any]) -> Array:
    """1-d arrays as the columns of a matrix."""
    return concatenate(
        [a if a.ndim > 1 else st.reshape(a, (a.size, 1)) for a in _one_dtype(xs, "column_stack", None)], 1
    )


def append(x: Any, values: Any, axis: int | None = None) -> Array:
    """`x` followed by `values` (both flattened unless `axis` is given)."""
    return concatenate([x, values], axis)


def block(arrays: Any) -> Array:
    """An array made of nested lists of blocks: the innermost lists are joined along the last axis, the next along the one before."""

    def depth(b: Any) -> int:
        return 1 + depth(b[0]) if isinstance(b, list) else 0

    def join(b: Any, axis: int, n: int) -> Array:
        if not isinstance(b, list):
            a = as_array(b, "block")
            return st.reshape(a, (1,) * max(n - a.ndim, 0) + a.shape)
        return concatenate([join(v, axis + 1, n) for v in b], axis)

    def largest(b: Any) -> int:
        return max(*(largest(v) for v in b), 0) if isinstance(b, list) else as_array(b, "block").ndim

    n = max(depth(arrays), largest(arrays))
    return join(arrays, -depth(arrays), n)


# ------------------------------------------------------------------------------------------------ split


def array_split(x: Any, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Array]:
    """`x` in that many parts (the first ones longer by one), or cut before the given indices."""
    a = as_array(x, "array_split")
    at = axis_of(axis, a.ndim, "array_split")
    n = a.shape[at]
    if isinstance(indices_or_sections, (int, np.integer)):
        count = int(indices_or_sections)
        if count <= 0:
            raise FgradValueError(message("array_split", f"{count} sections"))
        small, longer = divmod(n, count)
        cuts = [i * small + min(i, longer) for i in range(count + 1)]
    else:
        cuts = [0, *[operator.index(i) for i in indices_or_sections], n]
    cuts = [i + n if i < 0 else i for i in cuts]
    cuts = [min(max(i, 0), n) for i in cuts]
    return [_slice_axis(a, at, lo, max(lo, hi)) for lo, hi in pairwise(cuts)]


def split(x: Any, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Array]:
    """`x` in that many equal parts, or cut before the given indices."""
    a = as_array(x, "split")
    at = axis_of(axis, a.ndim, "split")
    if isinstance(indices_or_sections, (int, np.integer)) and (
        indices_or_sections <= 0 or a.shape[at] % indices_or_sections
    ):
        raise FgradValueError(
            message(
                "split",
                f"axis {at} of {a.type} does not divide into {indices_or_sections} equal parts",
                "use array_split for parts that differ by one",
            )
        )
    return array_split(a, indices_or_sections, at)


def hsplit(x: Any, indices_or_sections: int | Sequence[int]) -> list[Array]:
    """`split` along axis 1 (0 if there is only one)."""
    a = as_array(x, "hsplit")
    return split(a, indices_or_sections, 0 if a.ndim == 1 else 1)


def vsplit(x: Any, indices_or_sections: int | Sequence[int]) -> list[Array]:
    """`split` along axis 0."""
    return split(x, indices_or_sections, 0)


def dsplit(x: Any, indices_or_sections: int | Sequence[int]) -> list[Array]:
    """`split` along axis 2."""
    return split(x, indices_or_sections, 2)


def unstack(x: Any, axis: int = 0) -> tuple[Array, ...]:
    """The slices of `x` along `axis`, without it."""
    a = as_array(x, "unstack")
    at = axis_of(axis, a.ndim, "unstack")
    rest = [n for i, n in enumerate(a.shape) if i != at]
    return tuple(st.reshape(_slice_axis(a, at, i, i + 1), rest) for i in range(a.shape[at]))


# ------------------------------------------------------------------------------------------------ repeat, flip, roll


def tile(x: Any, reps: int | Sequence[int]) -> Array:
    """`x` repeated as a whole, `reps[i]` times along axis i."""
    a = as_array(x, "tile")
    times = shape_of(reps, "tile")
    n = max(a.ndim, len(times))
    times = (1,) * (n - len(times)) + times
    lengths = (1,) * (n - a.ndim) + a.shape
    spread = st.broadcast(
        st.reshape(a, lengths),
        [v for pair in zip(times, lengths, strict=True) for v in pair],
        range(1, 2 * n, 2),
    )
    return st.reshape(spread, [t * m for t, m in zip(times, lengths, strict=True)])


def flip(x: Any, axis: Axis = None) -> Array:
    """`x` in reverse order along `axis` (all axes if None)."""
    a = as_array(x, "flip")
    return st.flip(a, sorted(axes_of(axis, a.ndim, "flip")))


def fliplr(x: Any) -> Array:
    """Left and right exchanged: axis 1 reversed."""
    return flip(x, 1)


def flipud(x: Any) -> Array:
    """Up and down exchanged: axis 0 reversed."""
    return flip(x, 0)


def rot90(x: Any, k: int = 1, axes: Sequence[int] = (0, 1)) -> Array:
    """`x` turned by k quarter turns in the plane of two axes, from the first towards the second."""
    a = as_array(x, "rot90")
    i, j = axes_of(tuple(axes), a.ndim, "rot90")
    k %= 4
    if k == 0:
        return a
    if k == 2:
        return flip(a, (i, j))
    return swapaxes(flip(a, j), i, j) if k == 1 else flip(swapaxes(a, i, j), j)


def _roll_axis(a: Array, shift: int, axis: int) -> Array:
    n = a.shape[axis]
    cut = -shift % n if n else 0
    return (
        a if cut == 0 else st.concatenate([_slice_axis(a, axis, cut, n), _slice_axis(a, axis, 0, cut)], axis)
    )


def roll(x: Any, shift: int | Sequence[int], axis: Axis = None) -> Array:
    """`x` shifted along `axis`; what leaves at one end comes back at the other (flattened if `axis` is None)."""
    a = as_array(x, "roll")
    if axis is None:
        shifts: list[Any] = list(shift) if isinstance(shift, (tuple, list)) else [shift]
        return st.reshape(_roll_axis(ravel(a), sum(operator.index(s) for s in shifts), 0), a.shape)
    axes = [axis_of(i, a.ndim, "roll") for i in (axis if isinstance(axis, (tuple, list)) else [axis])]
    shifts = list(shift) if isinstance(shift, (tuple, list)) else [shift] * len(axes)
    if len(axes) == 1:
        axes = axes * len(shifts)
    if len(axes) != len(shifts):
        raise FgradValueError(message("roll", f"shift={shift} and axis={axis} differ in length"))
    for s, i in zip(shifts, axes, strict=True):
        a = _roll_axis(a, operator.index(s), i)
    return a


def trim_zeros(x: Any, trim: str = "fb") -> Array:
    """A 1-d array without its leading ("f") and trailing ("b") zeros. The values decide the shape, so they must be known."""
    a = as_array(x, "trim_zeros")
    found = np.flatnonzero(np.asarray(a))
    if not found.size:
        return _slice_axis(a, 0, 0, 0)
    return _slice_axis(
        a, 0, int(found[0]) if "f" in trim else 0, int(found[-1]) + 1 if "b" in trim else a.size
    )


def resize(x: Any, new_shape: Shape) -> Array:
    """The elements of `x`, repeated or cut to fill `new_shape`."""
    a = ravel(x)
    wanted = shape_of(new_shape, "resize")
    count = math.prod(wanted)
    if a.size == 0:
        raise FgradValueError(message("resize", f"an empty array cannot fill {wanted}"))
    repeated = st.concatenate([a] * max(1, -(-count // a.size)), 0)
    return st.reshape(_slice_axis(repeated, 0, 0, count), wanted)
