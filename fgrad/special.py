"""Functions beyond NumPy's: normalised exponentials, activations, error and gamma functions.

Half precision (float16, bfloat16) is computed in float32 where sums of exponentials are taken, and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array
from fgrad.errors import FgradTypeError, message
from fgrad.numpy.axes import Axis, axes_of, axis_of, dtype_of, insert_axes, operands
from fgrad.numpy.elementwise import add, log, multiply, subtract
from fgrad.ops import elementwise as ew
from fgrad.ops import reduce as rd
from fgrad.ops import transcendental as tr
from fgrad.ops.builders import full_like
from fgrad.ops.structure import broadcast, iota

_HALF = (dtypes.float16, dtypes.bfloat16)


def _float(x: Any, call: str) -> Array:
    a = as_array(x, call)
    if dtypes.is_complex(a.dtype):
        raise FgradTypeError(message(call, f"complex input {a.type} is not supported"))
    return ew.convert(a, dtypes.to_inexact(a.dtype))


def _wide(x: Any, call: str) -> tuple[Array, Any]:
    """`x` in the dtype to sum exponentials in, and the dtype of the result."""
    a = _float(x, call)
    return ew.convert(a, dtypes.float32 if a.dtype in _HALF else a.dtype), a.dtype


def _largest(a: Array, axes: tuple[int, ...]) -> Array:
    """The largest elements over `axes` (kept as length 1), without a derivative; 0 where that is infinite."""
    top = ew.stop_gradient(rd.reduce_max(a, axes))
    top = ew.select(ew.isfinite(top), top, full_like(top, 0))
    return insert_axes(top, axes)


# ------------------------------------------------------------------------------------------------ sums of exponentials


def logsumexp(x: Any, axis: Axis = None, b: Any = None, keepdims: bool = False) -> Array:
    """log(sum(b * exp(x))) over `axis`, without overflow. -inf over nothing but -inf.

    Shapes and axes as in `fgrad.numpy.sum`; `b` broadcasts with `x`.
    """
    a, out = _wide(x, "logsumexp")
    axes = axes_of(axis, a.ndim, "logsumexp")
    if b is not None:
        a, factor = operands("logsumexp", a, b)
    top = _largest(a, axes)
    terms = tr.exp(subtract(a, top))
    total = rd.reduce_sum(terms if b is None else ew.mul(factor, terms), axes)
    kept = add(tr.log(insert_axes(total, axes)), top)
    return ew.convert(kept if keepdims else _drop(kept, axes), out)


def _drop(x: Array, axes: tuple[int, ...]) -> Array:
    return x.reshape([n for i, n in enumerate(x.shape) if i not in axes])  # type: ignore[attr-defined]


def softmax(x: Any, axis: int | tuple[int, ...] = -1) -> Array:
    """exp(x) / sum(exp(x)) along `axis`; the shape of `x`."""
    a, out = _wide(x, "softmax")
    axes = axes_of(axis, a.ndim, "softmax")
    terms = tr.exp(subtract(a, _largest(a, axes)))
    total = insert_axes(rd.reduce_sum(terms, axes), axes)
    return ew.convert(ew.div(*operands("softmax", terms, total)), out)


def log_softmax(x: Any, axis: int | tuple[int, ...] = -1) -> Array:
    """log(softmax(x)) along `axis`, accurate where softmax underflows; the shape of `x`."""
    a, out = _wide(x, "log_softmax")
    axes = axes_of(axis, a.ndim, "log_softmax")
    shifted = subtract(a, _largest(a, axes))
    total = insert_axes(rd.reduce_sum(tr.exp(shifted), axes), axes)
    return ew.convert(subtract(shifted, tr.log(total)), out)


# ------------------------------------------------------------------------------------------------ activations and codes


def relu(x: Any) -> Array:
    """max(x, 0). Its derivative at 0 is 0."""
    a = as_array(x, "relu")
    zero = full_like(a, 0)
    return ew.select(ew.le(a, zero), zero, a)


def one_hot(x: Any, num_classes: int, dtype: Any = None, axis: int = -1) -> Array:
    """Ones at the positions `x` (integers) of a new axis of `num_classes`, zeros elsewhere; all zeros where `x` is out of range."""
    a = as_array(x, "one_hot")
    if not dtypes.is_integer(a.dtype):
        raise FgradTypeError(
            message("one_hot", f"needs integer class numbers, got {a.type}", "convert with .astype('int64')")
        )
    at = axis_of(axis, a.ndim + 1, "one_hot")
    shape = (*a.shape[:at], num_classes, *a.shape[at:])
    classes = iota(shape, dtypes.int64, at, a)
    chosen = broadcast(ew.convert(a, dtypes.int64), shape, [i for i in range(len(shape)) if i != at])
    return ew.convert(ew.eq(classes, chosen), dtype_of(dtype, dtypes.default_float))


def _unary(name: str, op: Callable[[Array], Array], doc: str) -> Callable[[Any], Array]:
    def f(x: Any) -> Array:
        return op(_float(x, name))

    f.__name__ = f.__qualname__ = name
    f.__doc__ = doc
    return f


sigmoid = _unary("sigmoid", tr.sigmoid, "1 / (1 + exp(-x)), without overflow.")
erf = _unary("erf", tr.erf, "The error function.")
erfc = _unary("erfc", tr.erfc, "1 - erf(x), accurate where that is small.")
erfinv = _unary("erfinv", tr.erfinv, "The inverse of erf, on [-1, 1].")
lgamma = _unary("lgamma", tr.lgamma, "log(|gamma(x)|).")
digamma = _unary("digamma", tr.digamma, "The derivative of lgamma.")
expit, gammaln = sigmoid, lgamma


def softplus(x: Any) -> Array:
    """log(1 + exp(x)), without overflow."""
    a = _float(x, "softplus")
    return tr.logaddexp(a, full_like(a, 0))


def log_sigmoid(x: Any) -> Array:
    """log(sigmoid(x)), without underflow."""
    return ew.neg(softplus(ew.neg(_float(x, "log_sigmoid"))))


def logit(p: Any) -> Array:
    """log(p / (1 - p)), the inverse of sigmoid."""
    a = _float(p, "logit")
    return ew.sub(tr.log(a), tr.log1p(ew.neg(a)))


def xlogy(x: Any, y: Any) -> Array:
    """x * log(y), and 0 where x is 0."""
    a, b = operands("xlogy", x, y, inexact=True)
    zero = ew.eq(a, full_like(a, 0))
    safe = ew.select(zero, full_like(b, 1), b)
    return ew.select(zero, full_like(a, 0), multiply(a, log(safe)))


def entr(x: Any) -> Array:
    """-x * log(x), and 0 at 0."""
    a = _float(x, "entr")
    return ew.neg(xlogy(a, a))


def ndtr(x: Any) -> Array:
    """The cumulative distribution function of the standard normal distribution."""
    a = _float(x, "ndtr")
    return ew.mul(full_like(a, 0.5), tr.erfc(ew.mul(a, full_like(a, -1 / math.sqrt(2)))))
