"""Axis arguments, shapes and broadcasting: what nearly every function here needs before it calls a primitive."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array, promote
from fgrad.errors import FgradAxisError, FgradShapeError, FgradTypeError, FgradValueError, describe, message
from fgrad.ops.builders import broadcast_p
from fgrad.ops.structure import reshape
from fgrad.trace import bind

Axis = int | Sequence[int] | None
Shape = int | Sequence[int]


def axis_of(axis: Any, ndim: int, call: str) -> int:
    """One axis as a non-negative int."""
    try:
        i = operator.index(axis)
    except TypeError:
        raise FgradTypeError(message(call, f"axis must be an integer, got {describe(axis)}")) from None
    if not -ndim <= i < ndim:
        raise FgradAxisError(
            message(call, f"axis {i} is out of bounds for an array of {ndim} dimensions", _axis_fix(ndim))
        )
    return i % ndim


def _axis_fix(ndim: int) -> str:
    return f"use an axis from {-ndim} to {ndim - 1}" if ndim else "the array is 0-dimensional: it has no axes"


def axes_of(axis: Axis, ndim: int, call: str) -> tuple[int, ...]:
    """`axis=` of a reduction as a tuple: None means all axes."""
    if axis is None:
        return tuple(range(ndim))
    if isinstance(axis, (tuple, list)):
        axes = tuple(axis_of(a, ndim, call) for a in axis)
        if len(set(axes)) != len(axes):
            raise FgradValueError(message(call, f"axis={tuple(axis)} names an axis twice"))
        return axes
    return (axis_of(axis, ndim, call),)


def shape_of(shape: Any, call: str) -> tuple[int, ...]:
    """A shape argument as a tuple of ints; -1 is left to the caller."""
    if isinstance(shape, np.ndarray):
        shape = shape.tolist()
    if not isinstance(shape, (tuple, list)):
        shape = (shape,)
    try:
        return tuple(operator.index(s) for s in shape)
    except TypeError as e:
        if any(isinstance(s, Array) and s.ndim == 0 and s.dtype.kind in "iu" for s in shape):
            raise
        raise FgradTypeError(message(call, f"a shape is made of integers, got {shape!r}")) from e


def positive_shape(shape: Any, call: str) -> tuple[int, ...]:
    result = shape_of(shape, call)
    if any(s < 0 for s in result):
        raise FgradValueError(message(call, f"negative dimensions in shape {result}"))
    return result


def dtype_of(dtype: Any, default: Any = None) -> Any:
    """A `dtype=` argument, or `default`; `float` and `int` mean fgrad's defaults (float32, int64)."""
    if dtype is None:
        return default
    return dtypes.canonical(dtype)


def broadcast_shapes(*shapes: Shape, call: str = "broadcast_shapes") -> tuple[int, ...]:
    """The shape that arrays of these shapes broadcast to, by NumPy's rule."""
    tuples = [s if isinstance(s, tuple) else shape_of(s, call) for s in shapes]
    ndim = max((len(s) for s in tuples), default=0)
    result = [1] * ndim
    for s in tuples:
        for i, n in enumerate(s, ndim - len(s)):
            if n != 1 and n != result[i]:
                if result[i] != 1:
                    raise FgradShapeError(
                        message(
                            call,
                            f"shapes {_and(tuples)} cannot be broadcast together",
                            _broadcast_fix(tuples),
                        )
                    )
                result[i] = n
    return tuple(result)


def _and(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))


def _broadcast_fix(shapes: Sequence[tuple[int, ...]]) -> str:
    a, b = (*shapes, (), ())[:2]
    if len(shapes) == 2 and a and b and len(a) != len(b):
        short, long = sorted((a, b), key=len)
        for i in range(len(long)):
            if long[i : i + len(short)] == short:
                trailing = len(long) - i - len(short)
                return f"shapes align from the right: add {trailing} trailing axes to the operand of shape {short}, as in y[{'..., ' + ', '.join(['None'] * trailing)}]"
    return "aligned from the right, lengths must be equal or 1: reshape, transpose or slice one operand"


def stretch(x: Array, shape: tuple[int, ...]) -> Array:
    """`x` broadcast to `shape`, which its shape is known to fit. Stretched axes of length 1 are dropped first, so that the
    primitive only repeats."""
    if x.shape == shape:
        return x
    lead = len(shape) - x.ndim
    kept = [i for i in range(x.ndim) if x.shape[i] == shape[i + lead]]
    if len(kept) != x.ndim:
        x = reshape(x, [x.shape[i] for i in kept])
    axes = tuple(i + lead for i in kept)
    return bind(broadcast_p, x, shape=shape, axes=axes)


def operands(call: str, *xs: Any, inexact: bool = False, broadcast: bool = True) -> list[Array]:
    """Arrays of one dtype and (if `broadcast`) one shape, ready for an elementwise primitive."""
    first = xs[0]
    if (
        isinstance(first, Array)
        and not inexact
        and all(isinstance(x, Array) and x.type == first.type for x in xs[1:])
    ):
        return list(xs)
    arrays = promote(*xs, call=call, inexact=inexact)
    return broadcast_all(call, arrays) if broadcast else arrays


def broadcast_all(call: str, arrays: Sequence[Array]) -> list[Array]:
    shape = arrays[0].shape
    if all(x.shape == shape for x in arrays):
        return list(arrays)
    shape = broadcast_shapes(*(x.shape for x in arrays), call=call)
    return [stretch(x, shape) for x in arrays]


def broadcast_to(x: Any, shape: Shape) -> Array:
    """`x` repeated to `shape`."""
    x = as_array(x, "broadcast_to")
    target = positive_shape(shape, "broadcast_to")
    lead = len(target) - x.ndim
    if lead < 0 or any(n not in (1, target[i + lead]) for i, n in enumerate(x.shape)):
        raise FgradShapeError(
            message(
                "broadcast_to",
                f"{x.type} cannot be broadcast to shape {target}",
                "only axes of length 1 stretch; new axes come in front",
            )
        )
    return stretch(x, target)


def broadcast_arrays(*xs: Any) -> list[Array]:
    """The arrays, repeated to their common shape (dtypes stay)."""
    return broadcast_all("broadcast_arrays", [as_array(x, "broadcast_arrays") for x in xs]) if xs else []


def insert_axes(x: Array, axes: Sequence[int]) -> Array:
    """`x` with axes of length 1 at the (sorted) positions `axes` of the result: undoes the removal by a reduction."""
    shape = list(x.shape)
    for a in sorted(axes):
        shape.insert(a, 1)
    return reshape(x, shape)
