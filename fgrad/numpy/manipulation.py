"""Changing shape and order: reshape, transpose, join, split, repeat, flip, roll."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad.array import Array
from fgrad.convert import as_array, known
from fgrad.errors import FgradShapeError, FgradValueError, message
from fgrad.numpy.axes import Axis, Shape, axes_of, axis_of, insert_axes, shape_of
from fgrad.ops import structure as st


def slice_axis(x: Array, axis: int, start: int, stop: int) -> Array:
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
    return a if cut == 0 else st.concatenate([slice_axis(a, axis, cut, n), slice_axis(a, axis, 0, cut)], axis)


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
    found = np.flatnonzero(known("trim_zeros", a, "slice it: x[first : last + 1]"))
    if not found.size:
        return slice_axis(a, 0, 0, 0)
    return slice_axis(
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
    return st.reshape(slice_axis(repeated, 0, 0, count), wanted)
