"""Running sums and products, and differences of neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array, promote
from fgrad.device import beside_arguments
from fgrad.errors import FgradValueError, message
from fgrad.numpy.axes import axis_of, dtype_of, stretch
from fgrad.numpy.elementwise import (
    absolute,
    add,
    divide,
    equal,
    greater,
    isnan,
    less,
    logical_and,
    multiply,
    not_equal,
    remainder,
    subtract,
    where,
)
from fgrad.numpy.joining import concatenate
from fgrad.numpy.manipulation import ravel
from fgrad.numpy.reductions import _accumulator
from fgrad.numpy.reductions import sum as sum_over
from fgrad.ops import cumulative as cu
from fgrad.ops import structure as st
from fgrad.ops.builders import full, full_like
from fgrad.ops.elementwise import convert


def _running(call: str, op: Callable[..., Array], x: Any, axis: int | None, dtype: Any) -> Array:
    a = as_array(x, call)
    if axis is None:
        a, axis = ravel(a), 0
    at = axis_of(axis, a.ndim, call)
    return op(convert(a, dtype_of(dtype) if dtype is not None else _accumulator(a.dtype)), at)


def cumsum(x: Any, axis: int | None = None, dtype: Any = None) -> Array:
    """Sums so far along `axis` (of the flattened array if None)."""
    return _running("cumsum", cu.cumsum, x, axis, dtype)


def cumprod(x: Any, axis: int | None = None, dtype: Any = None) -> Array:
    """Products so far along `axis` (of the flattened array if None)."""
    return _running("cumprod", cu.cumprod, x, axis, dtype)


def _with_initial(
    call: str, f: Callable[..., Array], x: Any, axis: int | None, dtype: Any, include: bool, start: int
) -> Array:
    a = as_array(x, call)
    if axis is None:
        if a.ndim > 1:
            raise FgradValueError(message(call, f"axis is needed for {a.type}"))
        axis = 0
    out = f(a, axis, dtype)
    if not include:
        return out
    at = axis_of(axis, a.ndim, call)
    first = full([1 if i == at else n for i, n in enumerate(out.shape)], start, out.dtype)
    return st.concatenate([first, out], at)


def cumulative_sum(
    x: Any, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Array:
    """`cumsum` along `axis`, beginning with 0 if `include_initial`."""
    return _with_initial("cumulative_sum", cumsum, x, axis, dtype, include_initial, 0)


def cumulative_prod(
    x: Any, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Array:
    """`cumprod` along `axis`, beginning with 1 if `include_initial`."""
    return _with_initial("cumulative_prod", cumprod, x, axis, dtype, include_initial, 1)


def nancumsum(x: Any, axis: int | None = None, dtype: Any = None) -> Array:
    """`cumsum`, NaN counted as 0."""
    a = as_array(x, "nancumsum")
    return cumsum(where(isnan(a), full_like(a, 0), a), axis, dtype)


def nancumprod(x: Any, axis: int | None = None, dtype: Any = None) -> Array:
    """`cumprod`, NaN counted as 1."""
    a = as_array(x, "nancumprod")
    return cumprod(where(isnan(a), full_like(a, 1), a), axis, dtype)


# ------------------------------------------------------------------------------------------------ differences


def _between(a: Array, axis: int, start: int, stop: int) -> Array:
    low, high = [0] * a.ndim, list(a.shape)
    low[axis], high[axis] = (
        min(start, a.shape[axis]),
        max(min(stop, a.shape[axis]), min(start, a.shape[axis])),
    )
    return st.slice_(a, low, high)


def diff(x: Any, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None) -> Array:
    """The n-th differences of neighbours along `axis`."""
    a = as_array(x, "diff")
    if n < 0:
        raise FgradValueError(message("diff", f"n={n} must not be negative"))
    at = axis_of(axis, a.ndim, "diff")
    parts = []
    for part in (prepend, a, append):
        if part is not None:
            p = as_array(part, "diff")
            parts.append(stretch(p, (*a.shape[:at], 1, *a.shape[at + 1 :])) if p.ndim == 0 else p)
    a = concatenate(parts, at)
    for _ in range(n):
        m = a.shape[at]
        after, before = _between(a, at, 1, m), _between(a, at, 0, max(m - 1, 0))
        a = not_equal(after, before) if a.dtype == dtypes.bool_ else subtract(after, before)
    return a


def ediff1d(x: Any, to_end: Any = None, to_begin: Any = None) -> Array:
    """Differences of neighbours of the flattened array, between `to_begin` and `to_end`."""
    a = ravel(x)
    parts = [diff(a)]
    if to_begin is not None:
        parts.insert(0, convert(ravel(to_begin), a.dtype))
    if to_end is not None:
        parts.append(convert(ravel(to_end), a.dtype))
    return concatenate(parts)


@beside_arguments
def gradient(f: Any, *spacing: Any, axis: Any = None, edge_order: int = 1) -> Any:
    """Central differences of samples `f` in the interior, one-sided ones (of first or second order) at the ends.

    `spacing`: nothing (1), one number, one number or coordinate array for each axis. One array an axis is returned as a list.
    """
    a = as_array(f, "gradient")
    a = convert(a, dtypes.to_inexact(a.dtype))
    axes = (
        list(range(a.ndim))
        if axis is None
        else [axis_of(i, a.ndim, "gradient") for i in (axis if isinstance(axis, (tuple, list)) else [axis])]
    )
    steps = list(spacing) if spacing else [1.0]
    if len(steps) == 1:
        steps = steps * len(axes)
    if len(steps) != len(axes):
        raise FgradValueError(message("gradient", f"{len(steps)} spacings for {len(axes)} axes"))
    if edge_order not in (1, 2):
        raise FgradValueError(message("gradient", f"edge_order={edge_order}", "use 1 or 2"))
    out = [_gradient_along(a, i, h, edge_order) for i, h in zip(axes, steps, strict=True)]
    return out[0] if len(out) == 1 else out


def _gradient_along(a: Array, axis: int, spacing: Any, edge_order: int) -> Array:
    n = a.shape[axis]
    if n < edge_order + 1:
        raise FgradValueError(
            message("gradient", f"axis {axis} of {a.type} is too short: it needs {edge_order + 1} elements")
        )
    h = as_array(spacing, "gradient", a.dtype)
    lined = [-1 if i == axis else 1 for i in range(a.ndim)]
    if h.ndim == 0:
        widths = stretch(st.reshape(h, [1] * a.ndim), tuple(n - 1 if i == axis else 1 for i in range(a.ndim)))
    else:
        widths = st.reshape(diff(h), [n - 1 if v == -1 else 1 for v in lined])
    slopes = divide(diff(a, axis=axis), widths)
    left, right = _between(slopes, axis, 0, n - 2), _between(slopes, axis, 1, n - 1)
    hl, hr = _between(widths, axis, 0, n - 2), _between(widths, axis, 1, n - 1)
    middle = divide(hr * left + hl * right, hl + hr)  # type: ignore[operator]
    first, last = _between(slopes, axis, 0, 1), _between(slopes, axis, n - 2, n - 1)
    if edge_order == 2:
        w0, w1 = _between(widths, axis, 0, 1), _between(widths, axis, 1, 2)
        v0, v1 = _between(widths, axis, n - 2, n - 1), _between(widths, axis, n - 3, n - 2)
        s1, t1 = _between(slopes, axis, 1, 2), _between(slopes, axis, n - 3, n - 2)
        first = subtract(first, multiply(divide(w0, w0 + w1), subtract(s1, first)))  # type: ignore[operator]
        last = subtract(last, multiply(divide(v0, v0 + v1), subtract(t1, last)))  # type: ignore[operator]
    return st.concatenate([first, middle, last], axis)


def trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Array:
    """The integral of samples `y` at points `x` (or `dx` apart) along `axis`, by the trapezoidal rule."""
    a = as_array(y, "trapezoid")
    at = axis_of(axis, a.ndim, "trapezoid")
    n = a.shape[at]
    if x is not None:
        dx = diff(x, axis=-1) if as_array(x, "trapezoid").ndim == 1 else diff(x, axis=at)
        if dx.ndim == 1:
            dx = st.reshape(dx, [n - 1 if i == at else 1 for i in range(a.ndim)])
    pairs = _between(a, at, 1, n) + _between(a, at, 0, max(n - 1, 0))  # type: ignore[operator]
    return sum_over(multiply(multiply(pairs, 0.5), dx), at)


# ------------------------------------------------------------------------------------------------ polynomials


def polyval(p: Any, x: Any) -> Array:
    """The polynomial with coefficients `p`, highest power first, at `x`, by Horner's rule."""
    coefficients, at = promote(p, x, call="polyval")
    out = full_like(at, 0)
    for i in range(coefficients.shape[0]):
        c = st.reshape(st.slice_(coefficients, (i,), (i + 1,)), ())
        out = multiply(out, at) + c  # type: ignore[operator]
    return out


def polyder(p: Any, m: int = 1) -> Array:
    """The coefficients of the m-th derivative."""
    a = as_array(p, "polyder")
    for _ in range(m):
        n = a.shape[0]
        powers = st.flip(convert(st.iota((max(n - 1, 0),), dtypes.int64, 0, a), a.dtype), [0])
        a = multiply(_between(a, 0, 0, max(n - 1, 0)), add(powers, 1))
    return a


def polyadd(p: Any, q: Any) -> Array:
    """The coefficients of the sum of two polynomials."""
    a, b = promote(p, q, call="polyadd")
    n = max(a.shape[0], b.shape[0])
    return st.pad(a, 0, [n - a.shape[0]], [0]) + st.pad(b, 0, [n - b.shape[0]], [0])  # type: ignore[operator]


def polysub(p: Any, q: Any) -> Array:
    """The coefficients of the difference of two polynomials."""
    return polyadd(p, multiply(q, -1))


def polyint(p: Any, m: int = 1) -> Array:
    """The coefficients of the m-th integral, its constants 0."""
    a = as_array(p, "polyint")
    a = convert(a, dtypes.to_inexact(a.dtype))
    for _ in range(m):
        n = a.shape[0]
        powers = st.flip(convert(st.iota((n,), dtypes.int64, 0, a), a.dtype), [0])
        a = st.pad(divide(a, add(powers, 1)), 0, [0], [1])
    return a


def unwrap(x: Any, discont: float | None = None, axis: int = -1, period: float = 2 * math.pi) -> Array:
    """`x` with jumps of more than half a period between neighbours along `axis` taken out, by adding periods."""
    a = as_array(x, "unwrap")
    a = convert(a, dtypes.to_inexact(a.dtype))
    at = axis_of(axis, a.ndim, "unwrap")
    jump = diff(a, axis=at)
    half = period / 2
    wrapped = subtract(remainder(add(jump, half), period), half)
    wrapped = where(logical_and(equal(wrapped, -half), greater(jump, 0)), half, wrapped)
    correction = where(less(absolute(jump), half if discont is None else discont), 0, subtract(wrapped, jump))
    shift = cu.cumsum(correction, at)
    first = full([1 if i == at else n for i, n in enumerate(a.shape)], 0, a.dtype)
    return add(a, st.concatenate([first, shift], at))
