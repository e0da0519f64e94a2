"""Continuous distributions, each by a function of a uniform number."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.device import beside_arguments
from fgrad.ops import elementwise as ew
from fgrad.ops import transcendental as tr
from fgrad.ops.builders import full, full_like
from fgrad.random.keys import Shape, draw_bits, float_dtype, joint_shape, spread, to_shape


def unit(call: str, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Uniform on [0, 1): random mantissas of numbers in [1, 2), less 1."""
    info = ml_dtypes.finfo(dtype)
    width, mantissa = dtype.itemsize * 8, info.nmant
    drawn = max(8, 8 if mantissa < 8 else width)  # bfloat16 has 7 bits to fill: JAX draws 8
    random = ew.convert(draw_bits(call, key, shape, np.dtype(f"uint{drawn}")), np.dtype(f"uint{width}"))
    random = ew.shift_right_logical(random, full_like(random, drawn - mantissa))
    one = np.ones((), dtype).view(random.dtype)
    return ew.sub(ew.bitcast(ew.bitwise_or(random, full_like(random, one)), dtype), full(shape, 1, dtype))


@beside_arguments
def scaled(call: str, u: Array, low: Any, high: Any) -> Array:
    """max(low, u * (high - low) + low) with one rounding, as JAX's compiled code (a fused multiply-add) has it."""
    shape, dtype = u.shape, u.dtype
    fixed = not isinstance(low, Array) and not isinstance(high, Array) and np.ndim(low) == np.ndim(high) == 0
    if fixed:
        a, b = np.asarray(low, dtype), np.asarray(high, dtype)
        width = np.asarray(b - a, dtype)
        if (float(a), float(width)) == (0.0, 1.0):
            return u
        exact = math.frexp(float(width))[0] in (0.5, -0.5)  # a power of two: the product needs no rounding
        lows, span = full(shape, a, dtype), full(shape, width, dtype)
    else:
        lows, exact = spread(call, low, shape, dtype), False
        span = ew.sub(spread(call, high, shape, dtype), lows)
    if dtype == dtypes.float32 and not exact:
        # The product of two float32 is exact in float64, so this rounds once whether or not a compiler fuses it.
        wide = [ew.convert(x, dtypes.float64) for x in (u, span, lows)]
        moved = ew.convert(ew.add(ew.mul(wide[0], wide[1]), wide[2]), dtype)
    else:
        moved = ew.add(ew.mul(u, span), lows)
    return ew.maximum(lows, moved)


def uniform(
    key: Array, shape: Shape = (), dtype: Any = dtypes.float32, minval: Any = 0.0, maxval: Any = 1.0
) -> Array:
    """Uniform on [minval, maxval); the bounds may be arrays that broadcast to `shape`."""
    call = "random.uniform"
    return scaled(call, unit(call, key, to_shape(call, shape), float_dtype(call, dtype)), minval, maxval)


def normal(key: Array, shape: Shape = (), dtype: Any = dtypes.float32) -> Array:
    """Standard normal numbers: sqrt(2) * erfinv(uniform on (-1, 1))."""
    call, dims, dtype = "random.normal", to_shape("random.normal", shape), float_dtype("random.normal", dtype)
    lowest = np.nextafter(np.asarray(-1, dtype), np.asarray(0, dtype))  # -1 itself would give -inf
    u = scaled(call, unit(call, key, dims, dtype), lowest, np.asarray(1, dtype))
    return ew.mul(full(dims, np.sqrt(2), dtype), tr.erfinv(u))


@beside_arguments
def truncated_normal(
    key: Array, lower: Any, upper: Any, shape: Shape | None = None, dtype: Any = dtypes.float32
) -> Array:
    """Standard normal numbers given that they lie in (lower, upper), which broadcast to `shape`."""
    call = "random.truncated_normal"
    dims, dtype = joint_shape(call, shape, lower, upper), float_dtype(call, dtype)
    root = full(dims, np.sqrt(2), dtype)
    low, high = (spread(call, x, dims, dtype) for x in (lower, upper))
    u = scaled(call, unit(call, key, dims, dtype), tr.erf(ew.div(low, root)), tr.erf(ew.div(high, root)))
    drawn = ew.mul(root, tr.erfinv(u))
    if dtype in (dtypes.float32, dtypes.float64):  # rounding must not reach the bounds, which are open
        inf = full(dims, np.inf, dtype)
        low, high = (
            ew.nextafter(ew.stop_gradient(low), inf),
            ew.nextafter(ew.stop_gradient(high), ew.neg(inf)),
        )
    return ew.minimum(ew.maximum(drawn, low), high)


def exponential(key: Array, shape: Shape = (), dtype: Any = dtypes.float32) -> Array:
    """Exponential with rate 1: -log(1 - uniform)."""
    call = "random.exponential"
    u = unit(call, key, to_shape(call, shape), float_dtype(call, dtype))
    return ew.neg(tr.log1p(ew.neg(u)))


def _positive_unit(call: str, key: Array, shape: Any, dtype: Any) -> Array:
    """Uniform on (0, 1)."""
    found = float_dtype(call, dtype)
    return scaled(
        call, unit(call, key, to_shape(call, shape), found), ml_dtypes.finfo(found).tiny, np.asarray(1, found)
    )


def gumbel(key: Array, shape: Shape = (), dtype: Any = dtypes.float32) -> Array:
    """Standard Gumbel: -log(-log(uniform))."""
    return ew.neg(tr.log(ew.neg(tr.log(_positive_unit("random.gumbel", key, shape, dtype)))))


def logistic(key: Array, shape: Shape = (), dtype: Any = dtypes.float32) -> Array:
    """Standard logistic: log(u / (1 - u)) of a uniform u."""
    u = _positive_unit("random.logistic", key, shape, dtype)
    return ew.sub(tr.log(u), tr.log1p(ew.neg(u)))


def laplace(key: Array, shape: Shape = (), dtype: Any = dtypes.float32) -> Array:
    """Standard Laplace (double exponential)."""
    call, found = "random.laplace", float_dtype("random.laplace", dtype)
    lowest = np.asarray(-1 + ml_dtypes.finfo(found).epsneg, found)
    u = scaled(call, unit(call, key, to_shape(call, shape), found), lowest, np.asarray(1, found))
    return ew.mul(ew.sign(u), tr.log1p(ew.neg(ew.absolute(u))))


def cauchy(key: Array, shape: Shape = (), dtype: Any = dtypes.float32) -> Array:
    """Standard Cauchy: tan(pi (u - 1/2)) of a uniform u."""
    call, found = "random.cauchy", float_dtype("random.cauchy", dtype)
    u = scaled(
        call, unit(call, key, to_shape(call, shape), found), ml_dtypes.finfo(found).eps, np.asarray(1, found)
    )
    return tr.tan(ew.mul(full_like(u, np.pi), ew.sub(u, full_like(u, 0.5))))
