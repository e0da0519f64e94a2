"""`pad`, by NumPy's modes, one axis after another."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from fgrad.array import Array
from fgrad.convert import as_array
from fgrad.errors import FgradValueError, message
from fgrad.numpy.axes import stretch
from fgrad.ops import reduce as rd
from fgrad.ops import structure as st
from fgrad.ops.elementwise import convert


def _pairs(value: Any, ndim: int, what: str) -> list[tuple[Any, Any]]:
    """NumPy's forms of a width: n, (before, after), or one pair an axis; dicts map axes to one of them."""
    if isinstance(value, dict):
        result: list[tuple[Any, Any]] = [(0, 0)] * ndim
        for axis, v in value.items():
            result[axis] = tuple(v) if isinstance(v, (tuple, list)) else (v, v)
        return result
    if (isinstance(value, (Array, np.ndarray)) and value.ndim == 0) or not isinstance(
        value, (tuple, list, np.ndarray)
    ):
        return [(value, value)] * ndim
    parts = [tuple(v) if isinstance(v, (tuple, list, np.ndarray)) else v for v in value]
    if all(isinstance(p, tuple) for p in parts):
        parts = [(p[0], p[0]) if len(p) == 1 else p for p in parts]
        parts = parts * ndim if len(parts) == 1 else parts
        if len(parts) == ndim and all(len(p) == 2 for p in parts):
            return parts
    elif len(parts) in (1, 2) and not any(isinstance(p, tuple) for p in parts):
        return [(parts[0], parts[-1])] * ndim
    raise FgradValueError(
        message(
            "pad",
            f"{what}={value!r} does not fit {ndim} axes",
            "give n, (before, after), or one such pair for each axis",
        )
    )


def _part(x: Array, axis: int, start: int, stop: int) -> Array:
    low, high = [0] * x.ndim, list(x.shape)
    low[axis], high[axis] = start, stop
    return st.slice_(x, low, high)


def _constant(x: Array, widths: list[tuple[int, int]], values: Any) -> Array:
    pairs = _pairs(values, x.ndim, "constant_values")
    given = [v for p in pairs for v in p]
    if not isinstance(given[0] if given else 0, Array) and all(v is given[0] or v == given[0] for v in given):
        fill = convert(as_array(given[0] if given else 0, "pad"), x.dtype)
        return st.pad(x, fill, [lo for lo, _ in widths], [hi for _, hi in widths])
    for axis, ((lo, hi), (a, b)) in enumerate(zip(widths, pairs, strict=True)):
        for n, v, before in ((lo, a, True), (hi, b, False)):
            edge = [0] * x.ndim
            edge[axis] = n
            none = [0] * x.ndim
            fill = convert(as_array(v, "pad"), x.dtype)
            x = st.pad(x, fill, edge if before else none, none if before else edge)
    return x


def _edge(x: Array, axis: int, lo: int, hi: int) -> Array:
    n = x.shape[axis]

    def side(at: int, width: int) -> Array:
        return stretch(_part(x, axis, at, at + 1), (*x.shape[:axis], width, *x.shape[axis + 1 :]))

    return st.concatenate([side(0, lo), x, side(n - 1, hi)], axis)


def _wrap(x: Array, axis: int, lo: int, hi: int) -> Array:
    """Copies of the axis on both sides, cut to the widths."""
    n = x.shape[axis]
    before, after = -(-lo // n), -(-hi // n)
    tiled = st.concatenate([x] * (before + 1 + after), axis)
    return _part(tiled, axis, before * n - lo, before * n + n + hi)


def _mirror(skip: int) -> Callable[[Array, int, int, int], Array]:
    """A period of the axis and its reflection (without the `skip` edge elements), wrapped."""

    def pad_axis(x: Array, axis: int, lo: int, hi: int) -> Array:
        n = x.shape[axis]
        if n == 1 and skip:
            return _edge(x, axis, lo, hi)
        back = st.flip(_part(x, axis, skip, n - skip), [axis])
        period = st.concatenate([x, back], axis)
        length = period.shape[axis]
        before, after = -(-lo // length), -(-max(hi - (length - n), 0) // length)
        tiled = st.concatenate([period] * (before + 1 + after), axis)
        return _part(tiled, axis, before * length - lo, before * length + n + hi)

    return pad_axis


def _statistic(reduce: Callable[[Array, tuple[int, ...]], Array]) -> Callable[[Array, int, int, int], Array]:
    def pad_axis(x: Array, axis: int, lo: int, hi: int) -> Array:
        value = st.reshape(reduce(x, (axis,)), [1 if i == axis else n for i, n in enumerate(x.shape)])

        def side(width: int) -> Array:
            return stretch(value, (*x.shape[:axis], width, *x.shape[axis + 1 :]))

        return st.concatenate([side(lo), x, side(hi)], axis)

    return pad_axis


_MODES: dict[str, Callable[[Array, int, int, int], Array]] = {
    "edge": _edge,
    "wrap": _wrap,
    "reflect": _mirror(1),
    "symmetric": _mirror(0),
    "maximum": _statistic(rd.reduce_max),
    "minimum": _statistic(rd.reduce_min),
}


def pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: Any = 0) -> Array:
    """`x` with elements added at its edges.

    Args:
        pad_width: n, (before, after), one pair an axis, or a dict from axes to those.
        mode: "constant" (`constant_values`), "edge", "reflect", "symmetric", "wrap", "maximum" or "minimum".
    """
    a = as_array(x, "pad")
    widths = [(operator.index(lo), operator.index(hi)) for lo, hi in _pairs(pad_width, a.ndim, "pad_width")]
    if any(w < 0 for pair in widths for w in pair):
        raise FgradValueError(
            message("pad", f"negative widths: pad_width={pad_width}", "slice the array to make it smaller")
        )
    if mode == "constant":
        return _constant(a, widths, constant_values)
    if mode not in _MODES:
        raise FgradValueError(
            message(
                "pad",
                f"mode={mode!r} is not supported",
                f"use one of {', '.join(map(repr, ['constant', *_MODES]))}",
            )
        )
    for axis, (lo, hi) in enumerate(widths):
        if lo or hi:
            if a.shape[axis] == 0:
                raise FgradValueError(
                    message("pad", f"axis {axis} of {a.type} is empty: mode={mode!r} has nothing to repeat")
                )
            a = _MODES[mode](a, axis, lo, hi)
    return a
