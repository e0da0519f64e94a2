"""Covariances, correlation, convolution of sequences, and comparisons up to tolerance."""

from __future__ import annotations

from typing import Any

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array, promote
from fgrad.device import beside_arguments
from fgrad.errors import FgradValueError, message
from fgrad.numpy.axes import operands
from fgrad.numpy.creation import array
from fgrad.numpy.elementwise import (
    absolute,
    add,
    clip,
    divide,
    equal,
    isfinite,
    isnan,
    less_equal,
    logical_and,
    logical_or,
    multiply,
    sqrt,
    subtract,
    where,
)
from fgrad.numpy.indexing import diagonal
from fgrad.numpy.joining import concatenate
from fgrad.numpy.products import matmul
from fgrad.numpy.reductions import all as all_over
from fgrad.numpy.reductions import average
from fgrad.numpy.reductions import sum as sum_over
from fgrad.ops import elementwise as ew
from fgrad.ops import structure as st
from fgrad.ops.builders import full
from fgrad.ops.conv import conv


def cov(
    m: Any,
    y: Any = None,
    rowvar: bool = True,
    bias: bool = False,
    ddof: int | None = None,
    fweights: Any = None,
    aweights: Any = None,
) -> Array:
    """The covariance matrix of variables in rows (columns if not `rowvar`), each column one observation."""
    a = array(m, ndmin=2)
    if as_array(m).ndim > 2:
        raise FgradValueError(message("cov", f"needs at most 2 axes, got {a.type}"))
    if not rowvar and as_array(m).ndim == 2:
        a = a.T  # type: ignore[attr-defined]
    if y is not None:
        b = array(y, ndmin=2)
        a = concatenate([a, b if rowvar or as_array(y).ndim < 2 else b.T])  # type: ignore[attr-defined]
    a = ew.convert(a, dtypes.to_inexact(a.dtype))
    ddof = (0 if bias else 1) if ddof is None else ddof
    w = None
    for given in (fweights, aweights):
        if given is not None:
            v = as_array(given, "cov", a.dtype)
            w = v if w is None else multiply(w, v)
    if w is None:
        total: Any = a.shape[1]
        centred = subtract(a, average(a, 1, keepdims=True))
        weighted = centred
        factor = total - ddof
    else:
        total = sum_over(w)
        centred = subtract(a, divide(sum_over(multiply(a, w), 1, keepdims=True), total))
        weighted = multiply(centred, w)
        if ddof == 0 or aweights is None:
            factor = subtract(total, ddof)
        else:
            aw = as_array(aweights, "cov", a.dtype)
            factor = subtract(total, multiply(ddof, divide(sum_over(multiply(w, aw)), total)))
    out = divide(matmul(weighted, centred.T), factor)  # type: ignore[attr-defined]
    return st.reshape(out, [n for n in out.shape if n != 1]) if 1 in out.shape else out


def corrcoef(x: Any, y: Any = None, rowvar: bool = True) -> Array:
    """The matrix of correlation coefficients: covariances divided by standard deviations, limited to [-1, 1]."""
    c = cov(x, y, rowvar)
    if c.ndim == 0:
        return divide(c, c)
    d = sqrt(diagonal(c))
    return clip(divide(divide(c, st.reshape(d, (d.size, 1))), st.reshape(d, (1, d.size))), -1, 1)


# ------------------------------------------------------------------------------------------------ convolution


def _sequences(call: str, x: Any, y: Any) -> list[Array]:
    a, b = promote(x, y, call=call)
    if a.ndim != 1 or b.ndim != 1 or not a.size or not b.size:
        raise FgradValueError(
            message(
                call,
                f"needs two non-empty 1-dimensional arrays, got {a.type} and {b.type}",
                "for images use fgrad_nn's Conv2d or fgrad.lax",
            )
        )
    return [a, b]


def _correlate(a: Array, w: Array, low: int, high: int) -> Array:
    """out[i] = sum_k padded_a[i + k] w[k]."""
    out = conv(st.reshape(a, (1, 1, a.size)), st.reshape(w, (1, 1, w.size)), (1,), ((low, high),), (1,), 1)
    return st.reshape(out, (out.size,))


def _window(call: str, mode: str, n: int) -> tuple[int, int]:
    """Zeros before and after the longer sequence, for a shorter one of length n."""
    if mode == "full":
        return n - 1, n - 1
    if mode == "valid":
        return 0, 0
    if mode == "same":
        return n // 2, n - n // 2 - 1
    raise FgradValueError(message(call, f"mode={mode!r}", 'use "full", "same" or "valid"'))


def convolve(a: Any, v: Any, mode: str = "full") -> Array:
    """sum_k a[k] v[i - k]: "full" has every overlap, "same" the length of the longer, "valid" only complete overlaps."""
    x, y = _sequences("convolve", a, v)
    if x.size < y.size:
        x, y = y, x
    return _correlate(x, st.flip(y, [0]), *_window("convolve", mode, y.size))


def correlate(a: Any, v: Any, mode: str = "valid") -> Array:
    """sum_k a[i + k] v[k], the modes as in `convolve`."""
    x, y = _sequences("correlate", a, v)
    if x.size < y.size:
        return st.flip(_correlate(y, x, *_window("correlate", mode, x.size)), [0])
    return _correlate(x, y, *_window("correlate", mode, y.size))


def polymul(p: Any, q: Any) -> Array:
    """The coefficients of the product of two polynomials."""
    return convolve(p, q)


# ------------------------------------------------------------------------------------------------ nearly equal


def isclose(x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Array:
    """|x - y| <= atol + rtol |y|, elementwise; infinities are close to themselves."""
    a, b = operands("isclose", x, y, inexact=True)
    near = less_equal(absolute(subtract(a, b)), add(multiply(absolute(b), rtol), atol))
    near = where(logical_and(isfinite(a), isfinite(b)), near, equal(a, b))
    return logical_or(near, logical_and(isnan(a), isnan(b))) if equal_nan else near


def allclose(x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Array:
    """Whether all elements are close, as a 0-d bool array."""
    return all_over(isclose(x, y, rtol, atol, equal_nan))


@beside_arguments
def array_equal(x: Any, y: Any, equal_nan: bool = False) -> Array:
    """Whether shapes and all elements are equal, as a 0-d bool array."""
    a, b = as_array(x, "array_equal"), as_array(y, "array_equal")
    if a.shape != b.shape:
        return full((), False, dtypes.bool_)
    same = equal(a, b)
    if equal_nan and dtypes.is_inexact(a.dtype) and dtypes.is_inexact(b.dtype):
        same = logical_or(same, logical_and(isnan(a), isnan(b)))
    return all_over(same)


@beside_arguments
def array_equiv(x: Any, y: Any) -> Array:
    """Whether the arrays broadcast together and are equal, as a 0-d bool array."""
    try:
        return all_over(equal(x, y))
    except FgradValueError:
        return full((), False, dtypes.bool_)
