"""Logarithms, pow and the inverse hyperbolic functions, for values of generated code.

The reduction and the way the terms are summed follow fdlibm (Sun Microsystems, 1993; `e_log.c`, `s_log1p.c`) and
FreeBSD's `e_log2.c`; the coefficients are our own Chebyshev fits (`mpmath.chebyfit`, 50 digits).
"""

from __future__ import annotations

import numpy as np

from fgrad.codegen.mathbase import (
    V,
    clamp,
    copysign,
    fast_two_sum,
    fma,
    in_f64,
    poly,
    rarely,
    rint,
    scale,
    sqrt,
    two_prod,
    two_sum,
    where,
)
from fgrad.codegen.mathlib_exp import LN2_HI_32, LN2_HI_64, LN2_LO_32, LN2_LO_64, exp, exp_parts

LN2 = 0.6931471805599453
INF, NAN = float("inf"), float("nan")
# log((1+s)/(1-s)) = 2*s + s*z*Q(z), z = s*s, for (1+s)/(1-s) in [sqrt(1/2), sqrt(2)]
LOG_32 = (
    0.6666668516,
    0.3998873183,
    0.2958215895,
)
LOG_64 = (
    0.666666666666666973,
    0.399999999998981919,
    0.285714286265702036,
    0.222222110378165877,
    0.181828961834830866,
    0.153314872358657332,
    0.146193434535126151,
)
# the same without its first term: 2*s + s*z*(2/3 + z*Q(z))
LOG_DD_64 = (
    0.399999999999999998,
    0.285714285714293778,
    0.222222222216488214,
    0.181818183369925696,
    0.153845947917623506,
    0.133348139712920043,
    0.117059881565009075,
    0.117257712218111451,
)
# 1/ln(2), 1/ln(10), log10(2) and 2/3 as sums of two
INV_LN2 = (float.fromhex("0x1.71547652b82fep+0"), float.fromhex("0x1.777d0ffda0d24p-56"))
INV_LN10 = (float.fromhex("0x1.bcb7b1526e50ep-2"), float.fromhex("0x1.95355baaafad3p-57"))
LOG10_2 = (float.fromhex("0x1.34413509f7800p-2"), float.fromhex("0x1.fef311f12b358p-46"))
TWO_THIRDS = (float.fromhex("0x1.5555555555555p-1"), float.fromhex("0x1.5555555555555p-55"))


def _mantissa(x: V) -> tuple[V, V]:
    """x = 2**k * m with m in [sqrt(1/2), sqrt(2)), for positive finite x; k as an integer. Subnormal x too."""
    f = x.format
    tiny = x < 2.0 ** (1 - f.bias)
    up = f.mantissa + 2
    k, m = _normal_mantissa(where(tiny, x * 2.0**up, x).bits())
    return k - where(tiny, k.const(up), k.const(0)), m


def _normal_mantissa(bits: V) -> tuple[V, V]:
    f = bits.format
    # Subtracting the bits of sqrt(1/2) carries into the exponent exactly where the mantissa is at least sqrt(2).
    pivot = 0x3F3504F3 if f.width == 32 else 0x3FE6A09E667F3BCD
    k = (bits - pivot) >> f.mantissa
    return k, (bits - (k << f.mantissa)).as_float()


def _special(x: V, result: V) -> V:
    """The logarithm of 0, of negative numbers, infinity and NaN."""
    result = where(x.eq(0.0), -INF, result)
    result = where(x < 0.0, NAN, result)
    # x + x passes on infinity, and NaN with its payload; negative infinity is already decided.
    return where((abs(x) < INF) | (x < 0.0), result, x + x)


def _terms(m: V) -> tuple[V, V, V]:
    """f, f*f/2 and s*(f*f/2 + R): log(m) = f - (hfsq - tail)."""
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    r = z * poly(z, LOG_32 if m.f32 else LOG_64)
    hfsq = f * f * 0.5
    return f, hfsq, s * (hfsq + r)


def log(x: V) -> V:
    """Natural logarithm."""
    f = x.format
    smallest = 2.0 ** (1 - f.bias)
    # Zero, subnormal and negative numbers, infinity and NaN
    odd = ~((x >= smallest) & (x < INF))

    def whole() -> V:
        return _special(x, _log(*_mantissa(x)))

    return rarely(odd, whole, _log(*_normal_mantissa(x.bits())))


def _log(k: V, m: V) -> V:
    f, hfsq, tail = _terms(m)
    n = k.to_float()
    hi, lo = (LN2_HI_32, LN2_LO_32) if m.f32 else (LN2_HI_64, LN2_LO_64)
    return n * hi - ((hfsq - fma(n, lo, tail)) - f)


def log1p(x: V) -> V:
    """log(1 + x): the rounding of 1 + x is put back as a correction c."""
    u = x + 1.0
    c = where(x >= 1.0, 1.0 - (u - x), x - (u - 1.0)) / u
    k, m = _mantissa(u)
    f, hfsq, tail = _terms(m)
    n = k.to_float()
    hi, lo = (LN2_HI_32, LN2_LO_32) if x.f32 else (LN2_HI_64, LN2_LO_64)
    result = n * hi - ((hfsq - (fma(n, lo, c) + tail)) - f)
    result = where(abs(x) < (2.0**-25 if x.f32 else 2.0**-54), x, result)
    result = where(u.eq(0.0), -INF, result)
    result = where(u < 0.0, NAN, result)
    return where((abs(x) < INF) | (u < 0.0), result, x + x)


def _log_base(x: V, inverse: tuple[float, float], exponent: tuple[float, float] | None) -> V:
    """log(x) * inverse, with log(m) and the factor each held as a sum of two so that no error is multiplied."""
    k, m = _mantissa(x)
    f, hfsq, tail = _terms(m)
    hi = f - hfsq
    lo = ((f - hi) - hfsq) + tail
    hi, lo = fast_two_sum(hi, lo)
    if x.f32:
        inverse = _pair32(inverse)
    head, error = two_prod(hi, inverse[0])
    error = error + fma(hi, inverse[1], lo * inverse[0])
    n = k.to_float()
    if exponent is not None:
        if x.f32:
            exponent = _LOG10_2_32
        error = fma(n, exponent[1], error)
        n = n * exponent[0]
    s, e = fast_two_sum(n, head)
    # n == 0 makes the sum above exact; else |n| >= |head|.
    return _special(x, s + (e + error))


def _pair32(pair: tuple[float, float]) -> tuple[float, float]:
    """The sum of two float64 constants as a float32 and the rest."""
    head = float(np.float32(pair[0]))
    return head, (pair[0] - head) + pair[1]


# log10(2) with a head of 15 bits, for exact multiples by a float32's exponent
_LOG10_2_32 = (float.fromhex("0x1.3440p-2"), 0.30102999566398119521 - float.fromhex("0x1.3440p-2"))


def log2(x: V) -> V:
    """Base-2 logarithm; exact for powers of two."""
    return _log_base(x, INV_LN2, None)


def log10(x: V) -> V:
    """Base-10 logarithm."""
    return _log_base(x, INV_LN10, LOG10_2)


@in_f64
def asinh(x: V) -> V:
    """sign(x) * log1p(a + a*a/(1 + sqrt(a*a + 1))), a = |x|; log(2a) for large a."""
    a = abs(x)
    z = where(a < 2.0**28, a, 1.0)
    z = z * z
    near = log1p(where(a < 2.0**28, a, 1.0) + z / (sqrt(z + 1.0) + 1.0))
    return copysign(where(a < 2.0**28, near, log(a) + LN2), x)


@in_f64
def acosh(x: V) -> V:
    """log1p(t + sqrt(2t + t*t)), t = x - 1; log(2x) for large x."""
    t = where(x < 2.0**28, x, 2.0) - 1.0
    near = log1p(t + sqrt(fma(t, t, t * 2.0)))
    return where(x < 1.0, NAN, where(x >= 2.0**28, log(x) + LN2, near + (x - x)))


@in_f64
def atanh(x: V) -> V:
    """log1p(2a + 2a*a/(1 - a))/2 for a = |x| < 1/2, log1p(2a/(1 - a))/2 above."""
    a = abs(x)
    t = a + a
    inside = where(a < 0.5, fma(t, a / (1.0 - a), t), t / (1.0 - a))
    return copysign(log1p(inside) * 0.5, x)


def logaddexp(x: V, y: V) -> V:
    """log(exp(x) + exp(y)) = max + log1p(exp(-|x - y|))."""
    if x.f32:
        return logaddexp(x.to_f64(), y.to_f64()).to_f32()
    big = where(x > y, x, y)
    near = big + log1p(exp(-abs(x - y)))
    # Equal arguments, infinities among them, have no difference to speak of.
    return where(x.eq(y), x + LN2, near)


def _log_dd(x: V) -> tuple[V, V]:
    """log(x) as an unevaluated sum of two, relative error about 2**-66; positive finite x, float64."""
    k, m = _mantissa(x)
    f = m - 1.0
    # s = f / (2 + f) in two parts; 2 + f = m + 1 is itself a sum of two.
    d, dl = fast_two_sum(f.const(2.0), f)
    s = f / d
    p, pl = two_prod(s, d)
    sl = (((f - p) - pl) - s * dl) / d
    # z = s*s, in two parts
    z, zl = two_prod(s, s)
    zl = zl + s * sl * 2.0
    # w = z*(2/3 + z*Q(z)), in two parts
    q = poly(z, LOG_DD_64) * z
    c, cl = fast_two_sum(z.const(TWO_THIRDS[0]), q)
    cl = cl + TWO_THIRDS[1]
    w, wl = two_prod(z, c)
    wl = wl + (z * cl + zl * c)
    # log(m) = 2s + s*w
    t, tl = two_prod(s, w)
    tl = tl + (s * wl + sl * w)
    h, hl = fast_two_sum(s * 2.0, t)
    hl = hl + (tl + sl * 2.0)
    n = k.to_float()
    head, error = two_sum(n * LN2_HI_64, h)
    return fast_two_sum(head, error + fma(n, LN2_LO_64, hl))


def pow(x: V, y: V) -> V:
    """x**y with C99's special cases. float64 has log(x) as a sum of two: about 1 ulp over the whole range."""
    if x.f32:
        # float64's plain logarithm has 29 bits to spare.
        return _pow(x.to_f64(), y.to_f64(), plain=True).to_f32()
    return _pow(x, y, plain=False)


def _pow(x: V, y: V, plain: bool) -> V:
    a = abs(x)
    safe = where((a < INF) & (a > 0.0), a, 1.0)
    # |y| beyond 2**65 decides nothing new (the result is 0, 1 or infinite) and would overflow the product.
    ys = clamp(y, -(2.0**65), 2.0**65)
    if plain:
        head = ys * log(safe)
        low = None
    else:
        lh, ll = _log_dd(safe)
        head, low = two_prod(ys, lh)
        low = fma(ys, ll, low)
    limited = clamp(head, -746.0, 710.0)
    if low is not None:
        low = where(limited.eq(head), low, 0.0)
    p, n = exp_parts(limited, low)
    result = scale(p, n)
    # x = 0 and infinity: infinite where the exponent's sign says so.
    up = ((a > 1.0) & (y > 0.0)) | ((a < 1.0) & (y < 0.0))
    result = where(a.eq(0.0) | a.eq(INF), where(up, y.const(INF), y.const(0.0)), result)
    # Negative x: only integral y; odd y gives a negative result.
    integral = rint(y).eq(y)
    half = y * 0.5
    odd = integral & rint(half).ne(half) & (abs(y) < INF)
    negative = x.bits() < 0
    result = where(negative & odd, -result, result)
    result = where((x < 0.0) & ~integral & (a < INF), NAN, result)
    result = where(x.isnan() | y.isnan(), x + y, result)
    return where(x.eq(1.0) | y.eq(0.0) | (x.eq(-1.0) & abs(y).eq(INF)), 1.0, result)
