"""Sums, products, means, extremes and their like over axes; `where=` leaves elements out."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.numpy.axes import Axis, axes_of, axis_of, broadcast_to, dtype_of, insert_axes
from fgrad.numpy.elementwise import add, divide, isnan, maximum, minimum, multiply, sqrt, subtract, to_bool
from fgrad.numpy.elementwise import where as choose
from fgrad.ops import elementwise as ew
from fgrad.ops import reduce as rd
from fgrad.ops.builders import full, full_like
from fgrad.ops.structure import reshape, transpose

HALF = (dtypes.float16, dtypes.bfloat16)


def _keep(out: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return insert_axes(out, axes) if keepdims and axes else out


def _accumulator(dtype: np.dtype) -> np.dtype:
    """What sums of `dtype` are of: 64 bits for integers and bools."""
    if dtype == dtypes.bool_ or dtype.kind == "i":
        return dtypes.int64
    return dtypes.uint64 if dtype.kind == "u" else dtype


def _only(x: Array, mask: Any, other: Any) -> Array:
    """`x`, with `other` where `mask` is False."""
    return (
        x
        if mask is None
        else choose(broadcast_to(to_bool(as_array(mask, "where")), x.shape), x, full_like(x, other))
    )


def sum(
    x: Any,
    axis: Axis = None,
    dtype: Any = None,
    keepdims: bool = False,
    initial: Any = None,
    where: Any = None,
) -> Array:
    """The sum over `axis` (all axes if None). Small integers and bools are summed in int64, half precision in float32."""
    a = as_array(x, "sum")
    axes = axes_of(axis, a.ndim, "sum")
    a = ew.convert(a, dtype_of(dtype) if dtype is not None else _accumulator(a.dtype))
    out = _keep(rd.reduce_sum(_only(a, where, 0), axes), axes, keepdims)
    return out if initial is None else add(out, initial)


def prod(
    x: Any,
    axis: Axis = None,
    dtype: Any = None,
    keepdims: bool = False,
    initial: Any = None,
    where: Any = None,
) -> Array:
    """The product over `axis`. Small integers and bools are multiplied in int64."""
    a = as_array(x, "prod")
    axes = axes_of(axis, a.ndim, "prod")
    a = ew.convert(a, dtype_of(dtype) if dtype is not None else _accumulator(a.dtype))
    out = _keep(rd.reduce_prod(_only(a, where, 1), axes), axes, keepdims)
    return out if initial is None else multiply(out, initial)


def lowest(dtype: np.dtype) -> Any:
    """The identity of max."""
    if dtypes.is_float(dtype):
        return -math.inf
    return ml_dtypes.iinfo(dtype).min if dtype != dtypes.bool_ else False


def highest(dtype: np.dtype) -> Any:
    """The identity of min."""
    if dtypes.is_float(dtype):
        return math.inf
    return ml_dtypes.iinfo(dtype).max if dtype != dtypes.bool_ else True


def _extreme(call: str, x: Any, axis: Axis, keepdims: bool, initial: Any, mask: Any, largest: bool) -> Array:
    a = as_array(x, call)
    axes = axes_of(axis, a.ndim, call)
    if mask is not None and initial is None:
        raise FgradValueError(
            message(
                call,
                "where= needs initial=: there may be nothing left",
                f"pass initial={'-' if largest else ''}fgrad.numpy.inf or the like",
            )
        )
    if mask is not None:
        a = _only(a, mask, lowest(a.dtype) if largest else highest(a.dtype))
    empty = builtins.any(a.shape[i] == 0 for i in axes)
    if empty and initial is None:
        raise FgradValueError(
            message(
                call,
                f"the {'largest' if largest else 'smallest'} element of nothing: {a.type} along axis {axis}",
                "pass initial=, or check the shape first",
            )
        )
    if empty:
        shape = tuple(n for i, n in enumerate(a.shape) if i not in axes)
        out = full(shape, lowest(a.dtype) if largest else highest(a.dtype), a.dtype)
    elif a.dtype == dtypes.bool_:
        out = (rd.reduce_or if largest else rd.reduce_and)(a, axes)
    else:
        out = (rd.reduce_max if largest else rd.reduce_min)(a, axes)
    out = _keep(out, axes, keepdims)
    return out if initial is None else (maximum if largest else minimum)(out, initial)


def max(x: Any, axis: Axis = None, keepdims: bool = False, initial: Any = None, where: Any = None) -> Array:
    """The largest element over `axis`; NaN if there is one. The gradient is shared by equal largest elements."""
    return _extreme("max", x, axis, keepdims, initial, where, True)


def min(x: Any, axis: Axis = None, keepdims: bool = False, initial: Any = None, where: Any = None) -> Array:
    """The smallest element over `axis`; NaN if there is one. The gradient is shared by equal smallest elements."""
    return _extreme("min", x, axis, keepdims, initial, where, False)


amax, amin = max, min


def ptp(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """Peak to peak: max - min."""
    return subtract(max(x, axis, keepdims), min(x, axis, keepdims))


def any(x: Any, axis: Axis = None, keepdims: bool = False, where: Any = None) -> Array:
    """Whether some element over `axis` is not zero."""
    a = to_bool(as_array(x, "any"))
    axes = axes_of(axis, a.ndim, "any")
    return _keep(rd.reduce_or(_only(a, where, False), axes), axes, keepdims)


def all(x: Any, axis: Axis = None, keepdims: bool = False, where: Any = None) -> Array:
    """Whether no element over `axis` is zero."""
    a = to_bool(as_array(x, "all"))
    axes = axes_of(axis, a.ndim, "all")
    return _keep(rd.reduce_and(_only(a, where, True), axes), axes, keepdims)


def count_nonzero(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """How many elements over `axis` are not zero (int64)."""
    return sum(to_bool(as_array(x, "count_nonzero")), axis, keepdims=keepdims)


# ------------------------------------------------------------------------------------------------ means


def _count(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    return math.prod(shape[a] for a in axes)


def _moment_input(call: str, x: Any, dtype: Any) -> tuple[Array, np.dtype]:
    """`x` in the dtype to compute in (float32 for half precision), and the result's dtype."""
    a = as_array(x, call)
    out = dtype_of(dtype) if dtype is not None else dtypes.to_inexact(a.dtype)
    return ew.convert(a, dtypes.float32 if out in HALF else out), out


def mean(x: Any, axis: Axis = None, dtype: Any = None, keepdims: bool = False, where: Any = None) -> Array:
    """The arithmetic mean over `axis`: float32 for integers."""
    a, out = _moment_input("mean", x, dtype)
    return ew.convert(_mean(a, axes_of(axis, a.ndim, "mean"), keepdims, where), out)


def _mean(a: Array, axes: tuple[int, ...], keepdims: bool, mask: Any) -> Array:
    total = _keep(rd.reduce_sum(_only(a, mask, 0), axes), axes, keepdims)
    if mask is None:
        return ew.div(total, full_like(total, _count(a.shape, axes)))
    return divide(total, ew.convert(_keep(rd.reduce_sum(_counted(mask, a), axes), axes, keepdims), a.dtype))


def _counted(mask: Any, a: Array) -> Array:
    return ew.convert(broadcast_to(to_bool(as_array(mask, "where")), a.shape), dtypes.int64)


def var(
    x: Any,
    axis: Axis = None,
    dtype: Any = None,
    ddof: float = 0,
    keepdims: bool = False,
    where: Any = None,
    correction: float | None = None,
) -> Array:
    """The variance over `axis`: the mean of squared deviations, with n - ddof in the denominator (`correction` is another name)."""
    a, out = _moment_input("var", x, dtype)
    ddof = ddof if correction is None else correction
    axes = axes_of(axis, a.ndim, "var")
    deviation = subtract(a, _mean(a, axes, True, where))
    total = _keep(rd.reduce_sum(_only(ew.square(deviation), where, 0), axes), axes, keepdims)
    if where is None:
        return ew.convert(ew.div(total, full_like(total, builtins.max(_count(a.shape, axes) - ddof, 0))), out)
    n = ew.convert(_keep(rd.reduce_sum(_counted(where, a), axes), axes, keepdims), a.dtype)
    return ew.convert(divide(total, maximum(subtract(n, ddof), 0)), out)


def std(
    x: Any,
    axis: Axis = None,
    dtype: Any = None,
    ddof: float = 0,
    keepdims: bool = False,
    where: Any = None,
    correction: float | None = None,
) -> Array:
    """The standard deviation over `axis`: the root of `var`."""
    return sqrt(var(x, axis, dtype, ddof, keepdims, where, correction))


def average(
    x: Any, axis: Axis = None, weights: Any = None, returned: bool = False, keepdims: bool = False
) -> Any:
    """The mean weighted by `weights` (of the shape of `x`, or of its `axis`); with `returned` also the sum of weights."""
    a = as_array(x, "average")
    axes = axes_of(axis, a.ndim, "average")
    if weights is None:
        out = mean(a, axis, keepdims=keepdims)
        scale = full_like(out, _count(a.shape, axes))
    else:
        w = as_array(weights, "average")
        if w.shape != a.shape:
            if axis is None or w.shape != tuple(a.shape[i] for i in axes):
                raise FgradTypeError(
                    message("average", f"weights {w.type} fit neither {a.type} nor its axis {axis}")
                )
            order = np.argsort(axes)
            w = reshape(
                transpose(w, [int(i) for i in order]), [n if i in axes else 1 for i, n in enumerate(a.shape)]
            )
            w = broadcast_to(w, a.shape)
        scale = sum(w, axis, keepdims=keepdims)
        out = divide(sum(multiply(a, w), axis, keepdims=keepdims), scale)
    return (out, ew.convert(scale, out.dtype)) if returned else out


# ------------------------------------------------------------------------------------------------ positions of extremes


def _arg(call: str, op: Callable[..., Array], x: Any, axis: int | None, keepdims: bool) -> Array:
    a = as_array(x, call)
    ndim = a.ndim
    if axis is None:
        flat = reshape(a, (a.size,))
        if not a.size:
            raise FgradValueError(message(call, f"of an empty array {a.type}"))
        out = op(_countable(flat), 0)
        return reshape(out, (1,) * ndim) if keepdims else out
    at = axis_of(axis, ndim, call)
    out = op(_countable(a), at)
    return insert_axes(out, (at,)) if keepdims else out


def _countable(a: Array) -> Array:
    return ew.convert(a, dtypes.int8) if a.dtype == dtypes.bool_ else a


def argmax(x: Any, axis: int | None = None, keepdims: bool = False) -> Array:
    """The position (int64) of the first largest element along `axis`, or of the flattened array."""
    return _arg("argmax", rd.argmax, x, axis, keepdims)


def argmin(x: Any, axis: int | None = None, keepdims: bool = False) -> Array:
    """The position (int64) of the first smallest element along `axis`, or of the flattened array."""
    return _arg("argmin", rd.argmin, x, axis, keepdims)


# ------------------------------------------------------------------------------------------------ without NaN


def _filled(call: str, x: Any, value: Any) -> tuple[Array, Array]:
    a = as_array(x, call)
    missing = isnan(a)
    return choose(missing, full_like(a, value), a) if dtypes.is_inexact(a.dtype) else a, missing


def nansum(x: Any, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Array:
    """`sum`, NaN counted as 0."""
    return sum(_filled("nansum", x, 0)[0], axis, dtype, keepdims)


def nanprod(x: Any, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Array:
    """`prod`, NaN counted as 1."""
    return prod(_filled("nanprod", x, 1)[0], axis, dtype, keepdims)


def nanmean(x: Any, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Array:
    """`mean` of what is not NaN; NaN where nothing is left."""
    a, missing = _filled("nanmean", x, 0)
    return mean(a, axis, dtype, keepdims, where=ew.logical_not(missing))


def nanvar(x: Any, axis: Axis = None, dtype: Any = None, ddof: float = 0, keepdims: bool = False) -> Array:
    """`var` of what is not NaN; NaN where fewer than ddof + 1 elements are left."""
    a, missing = _filled("nanvar", x, 0)
    return var(a, axis, dtype, ddof, keepdims, where=ew.logical_not(missing))


def nanstd(x: Any, axis: Axis = None, dtype: Any = None, ddof: float = 0, keepdims: bool = False) -> Array:
    """`std` of what is not NaN."""
    return sqrt(nanvar(x, axis, dtype, ddof, keepdims))


def _nan_extreme(call: str, x: Any, axis: Axis, keepdims: bool, largest: bool) -> Array:
    a = as_array(x, call)
    if not dtypes.is_float(a.dtype):
        return (max if largest else min)(a, axis, keepdims)
    filled, missing = _filled(call, a, -math.inf if largest else math.inf)
    out = (max if largest else min)(filled, axis, keepdims)
    return choose(all(missing, axis, keepdims), full_like(out, math.nan), out)


def nanmax(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """The largest element that is not NaN; NaN where there is none."""
    return _nan_extreme("nanmax", x, axis, keepdims, True)


def nanmin(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """The smallest element that is not NaN; NaN where there is none."""
    return _nan_extreme("nanmin", x, axis, keepdims, False)


def nanargmax(x: Any, axis: int | None = None, keepdims: bool = False) -> Array:
    """The position of the first largest element that is not NaN (0 where all are)."""
    return argmax(_filled("nanargmax", x, -math.inf)[0], axis, keepdims)


def nanargmin(x: Any, axis: int | None = None, keepdims: bool = False) -> Array:
    """The position of the first smallest element that is not NaN (0 where all are)."""
    return argmin(_filled("nanargmin", x, math.inf)[0], axis, keepdims)
