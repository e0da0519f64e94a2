"""Joining arrays, and cutting them into parts."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fgrad.array import Array
from fgrad.convert import as_array, promote
from fgrad.errors import FgradShapeError, FgradTypeError, FgradValueError, message
from fgrad.numpy.axes import axis_of, dtype_of, insert_axes
from fgrad.numpy.manipulation import atleast_1d, atleast_2d, atleast_3d, ravel, slice_axis
from fgrad.ops import structure as st
from fgrad.ops.elementwise import convert


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
    return arrays if dtype is None else [convert(a, dtype_of(dtype)) for a in arrays]


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
    return [slice_axis(a, at, lo, max(lo, hi)) for lo, hi in pairwise(cuts)]


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
    return tuple(st.reshape(slice_axis(a, at, i, i + 1), rest) for i in range(a.shape[at]))
