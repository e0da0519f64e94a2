"""Elementary and special functions, element by element.

NumPy has no erf, gamma or their kin; there `math` (or a published expansion, cited) is the definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.ops.builders import ONE, Binary, Unary, binary_function, elementwise, full_like, unary_function
from fgrad.ops.elementwise import add, div, eq, gt, logical_not, mul, neg, reciprocal, select, square, sub
from fgrad.ops.erfinv import erfinv as erfinv_impl


def _in_float64(f: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    """The scalar function `f` on every element, computed in float64 and rounded once."""
    vectorised = np.frompyfunc(f, 1, 1)

    def impl(x: np.ndarray) -> np.ndarray:
        return np.asarray(vectorised(x.astype(np.float64)), dtype=np.float64).astype(x.dtype)

    return impl


def _sigmoid_impl(x: np.ndarray) -> np.ndarray:
    half = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + half), half / (1 + half)).astype(x.dtype)


def _lgamma(x: float) -> float:
    if math.isnan(x) or math.isinf(x):
        return abs(x)
    try:
        return math.lgamma(x)
    except (ValueError, OverflowError):
        return math.inf


def _digamma(x: float) -> float:
    """Reflection, recurrence up to 10, then the asymptotic series (Abramowitz and Stegun 6.3.6, 6.3.7, 6.3.18)."""
    if math.isnan(x) or x == math.inf:
        return x
    if x == 0:
        return -math.copysign(math.inf, x)
    if x == -math.inf or (x < 0 and x == math.floor(x)):
        return math.nan
    if x < 0:
        return _digamma(1 - x) - math.pi / math.tan(math.pi * (x - math.floor(x)))
    result = 0.0
    while x < 10:
        result -= 1 / x
        x += 1
    f = 1 / (x * x)
    series = f * (
        1 / 12 - f * (1 / 120 - f * (1 / 252 - f * (1 / 240 - f * (1 / 132 - f * (691 / 32760 - f / 12)))))
    )
    return result + math.log(x) - 0.5 / x - series


def _logaddexp_partial(which: int) -> Any:
    def partial(out: Array, x: Array, y: Array) -> Array:
        mine = (x, y)[which]
        return select(eq(mine, out), full_like(mine, 1), exp(sub(mine, out)))

    return partial


def _pow_impl(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.power(x, y)


def _pow_dx(out: Array, x: Array, y: Array) -> Array:
    zero = eq(y, full_like(y, 0))
    return select(
        zero, full_like(x, 0), mul(y, pow(x, select(zero, full_like(y, 1), sub(y, full_like(y, 1)))))
    )


def _pow_dy(out: Array, x: Array, y: Array) -> Array:
    zero = eq(x, full_like(x, 0))
    return select(zero, full_like(x, 0), mul(log(select(zero, full_like(x, 1), x)), out))


def _one_minus(x: Array) -> Array:
    return sub(full_like(x, 1), x)


def _one_plus(x: Array) -> Array:
    return add(full_like(x, 1), x)


def _nonzero(x: Array) -> Array:
    """1 in place of 0: at the tip of the cone the derivative of a length is taken as 0, not 0/0."""
    return select(eq(x, full_like(x, 0)), full_like(x, 1), x)


_TWO_BY_ROOT_PI = 2 / math.sqrt(math.pi)


def _real(name: str, impl: Any, *partials: Any) -> Any:
    return elementwise(name, impl, partials=partials, accepts=dtypes.is_float)


def _inexact(name: str, impl: Any, *partials: Any) -> Any:
    return elementwise(name, impl, partials=partials, accepts=dtypes.is_inexact)


sqrt_p = _inexact("sqrt", np.sqrt, lambda out, x: div(full_like(x, 0.5), out))
rsqrt_p = _inexact(
    "rsqrt", lambda x: (1 / np.sqrt(x)).astype(x.dtype), lambda out, x: mul(full_like(x, -0.5), div(out, x))
)
cbrt_p = _real("cbrt", np.cbrt, lambda out, x: div(full_like(x, 1 / 3), square(out)))
exp_p = _inexact("exp", np.exp, lambda out, x: out)
exp2_p = _real("exp2", np.exp2, lambda out, x: mul(full_like(x, math.log(2)), out))
expm1_p = _real("expm1", np.expm1, lambda out, x: _one_plus(out))
log_p = _inexact("log", np.log, lambda out, x: reciprocal(x))
log2_p = _real("log2", np.log2, lambda out, x: div(full_like(x, 1 / math.log(2)), x))
log10_p = _real("log10", np.log10, lambda out, x: div(full_like(x, 1 / math.log(10)), x))
log1p_p = _real("log1p", np.log1p, lambda out, x: reciprocal(_one_plus(x)))
sin_p = _inexact("sin", np.sin, lambda out, x: cos(x))
cos_p = _inexact("cos", np.cos, lambda out, x: neg(sin(x)))
tan_p = _inexact("tan", np.tan, lambda out, x: _one_plus(square(out)))
asin_p = _real("asin", np.arcsin, lambda out, x: rsqrt(_one_minus(square(x))))
acos_p = _real("acos", np.arccos, lambda out, x: neg(rsqrt(_one_minus(square(x)))))
atan_p = _real("atan", np.arctan, lambda out, x: reciprocal(_one_plus(square(x))))
sinh_p = _real("sinh", np.sinh, lambda out, x: cosh(x))
cosh_p = _real("cosh", np.cosh, lambda out, x: sinh(x))
tanh_p = _inexact("tanh", np.tanh, lambda out, x: _one_minus(square(out)))
asinh_p = _real("asinh", np.arcsinh, lambda out, x: rsqrt(_one_plus(square(x))))
acosh_p = _real("acosh", np.arccosh, lambda out, x: rsqrt(sub(square(x), full_like(x, 1))))
atanh_p = _real("atanh", np.arctanh, lambda out, x: reciprocal(_one_minus(square(x))))
sigmoid_p = _real("sigmoid", _sigmoid_impl, lambda out, x: mul(out, _one_minus(out)))
erf_p = _real(
    "erf", _in_float64(math.erf), lambda out, x: mul(full_like(x, _TWO_BY_ROOT_PI), exp(neg(square(x))))
)
erfc_p = _real(
    "erfc", _in_float64(math.erfc), lambda out, x: mul(full_like(x, -_TWO_BY_ROOT_PI), exp(neg(square(x))))
)
erfinv_p = _real(
    "erfinv", erfinv_impl, lambda out, x: mul(full_like(x, 1 / _TWO_BY_ROOT_PI), exp(square(out)))
)
lgamma_p = _real("lgamma", _in_float64(_lgamma), lambda out, x: digamma(x))
digamma_p = _real("digamma", _in_float64(_digamma), lambda out, x: _trigamma(x))
pow_p = elementwise("pow", _pow_impl, partials=(_pow_dx, _pow_dy), accepts=lambda d: d != dtypes.bool_)
atan2_p = _real(
    "atan2",
    np.arctan2,
    lambda out, y, x: div(x, add(square(x), square(y))),
    lambda out, y, x: neg(div(y, add(square(x), square(y)))),
)
hypot_p = _real(
    "hypot", np.hypot, lambda out, x, y: div(x, _nonzero(out)), lambda out, x, y: div(y, _nonzero(out))
)
logaddexp_p = _real("logaddexp", np.logaddexp, _logaddexp_partial(0), _logaddexp_partial(1))
identity_p = elementwise(
    "identity",
    lambda x: x,
    partials=(ONE,),
    transpose=lambda cts, x: (cts[0],),
    scalar=lambda emit, x: x,
    doc="the value itself: a named place in the graph",
)


sqrt: Unary = unary_function(sqrt_p)
rsqrt: Unary = unary_function(rsqrt_p)
cbrt: Unary = unary_function(cbrt_p)
exp: Unary = unary_function(exp_p)
exp2: Unary = unary_function(exp2_p)
expm1: Unary = unary_function(expm1_p)
log: Unary = unary_function(log_p)
log2: Unary = unary_function(log2_p)
log10: Unary = unary_function(log10_p)
log1p: Unary = unary_function(log1p_p)
sin: Unary = unary_function(sin_p)
cos: Unary = unary_function(cos_p)
tan: Unary = unary_function(tan_p)
asin: Unary = unary_function(asin_p)
acos: Unary = unary_function(acos_p)
atan: Unary = unary_function(atan_p)
sinh: Unary = unary_function(sinh_p)
cosh: Unary = unary_function(cosh_p)
tanh: Unary = unary_function(tanh_p)
asinh: Unary = unary_function(asinh_p)
acosh: Unary = unary_function(acosh_p)
atanh: Unary = unary_function(atanh_p)
sigmoid: Unary = unary_function(sigmoid_p)
erf: Unary = unary_function(erf_p)
erfc: Unary = unary_function(erfc_p)
erfinv: Unary = unary_function(erfinv_p)
lgamma: Unary = unary_function(lgamma_p)
digamma: Unary = unary_function(digamma_p)
identity: Unary = unary_function(identity_p)
pow: Binary = binary_function(pow_p)
atan2: Binary = binary_function(atan2_p)
hypot: Binary = binary_function(hypot_p)
logaddexp: Binary = binary_function(logaddexp_p)


def _trigamma(x: Array) -> Array:
    """Recurrence by 8 steps, then the asymptotic series (Abramowitz and Stegun 6.4.6, 6.4.12), for x > 0; reflection below."""
    below = logical_not(gt(x, full_like(x, 0.5)))
    z = select(below, _one_minus(x), x)
    total = full_like(x, 0)
    for _ in range(8):
        total = add(total, reciprocal(square(z)))
        z = _one_plus(z)
    r = reciprocal(z)
    f = square(r)
    series = full_like(x, -1 / 30)
    for c in (1 / 42, -1 / 30, 1 / 6):  # Bernoulli numbers B8, B6, B4, B2
        series = add(full_like(x, c), mul(f, series))
    inner = add(r, add(mul(full_like(x, 0.5), f), mul(mul(r, f), series)))
    value = add(total, inner)
    s = sin(mul(full_like(x, math.pi), x))
    return select(below, sub(div(full_like(x, math.pi**2), square(s)), value), value)
