"""Applying functions along axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fgrad.array import Array
from fgrad.convert import as_array
from fgrad.numpy.axes import axis_of, insert_axes
from fgrad.numpy.manipulation import moveaxis
from fgrad.ops import structure as st
from fgrad.vectorize import vmap


def apply_along_axis(func1d: Callable[..., Any], axis: int, x: Any, *args: Any, **kwargs: Any) -> Array:
    """`func1d` (of a 1-d array) on all slices of `x` along `axis`; the axes of its result stand in place of that axis."""
    a = as_array(x, "apply_along_axis")
    at = axis_of(axis, a.ndim, "apply_along_axis")
    lead = [n for i, n in enumerate(a.shape) if i != at]
    rows = moveaxis(a, at, -1)
    count = 1
    for n in lead:
        count *= n
    out = vmap(lambda row: as_array(func1d(row, *args, **kwargs)))(st.reshape(rows, (count, a.shape[at])))
    new = out.ndim - 1
    out = st.reshape(out, (*lead, *out.shape[1:]))
    n = len(lead)
    return moveaxis(out, tuple(range(n, n + new)), tuple(range(at, at + new)))


def apply_over_axes(func: Callable[[Any, int], Any], x: Any, axes: int | Sequence[int]) -> Array:
    """`func(x, axis)` for one axis after the other; axes that it removes come back with length 1."""
    a = as_array(x, "apply_over_axes")
    for axis in axes if isinstance(axes, (tuple, list)) else [axes]:
        at = axis_of(axis, a.ndim, "apply_over_axes")
        out = as_array(func(a, at))
        a = out if out.ndim == a.ndim else insert_axes(out, (at,))
    return a
