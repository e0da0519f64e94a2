"""exp and its family, for float32 and float64 values of generated code.

Polynomials are minimax to within one bit: interpolation at Chebyshev nodes with 50 digits (`mpmath.chebyfit`).
"""

from __future__ import annotations

from fgrad.codegen.mathbase import (
    V,
    clamp,
    copysign,
    fma,
    in_f64,
    poly,
    pow2,
    rint,
    scale,
    scale_by,
    small_int,
    where,
)

LOG2E = 1.4426950408889634
# ln 2 in two parts; the first has so few bits that n * LN2_HI is exact for every exponent n.
LN2_HI_32, LN2_LO_32 = float.fromhex("0x1.62e4p-1"), float.fromhex("0x1.7f7d1cp-20")
LN2_HI_64, LN2_LO_64 = float.fromhex("0x1.62e42fefa3800p-1"), float.fromhex("0x1.ef35793c76730p-45")

# exp(r) = 1 + r + r*r*Q(r), |r| <= ln(2)/2
EXP_32 = (
    0.5,
    0.1666657698,
    0.0416665546,
    0.00836318108,
    0.001392618612,
)
EXP_64 = (
    0.500000000000000102,
    0.166666666666666675,
    0.0416666666666241163,
    0.00833333333333006094,
    0.00138888889172194828,
    0.00019841269863058051,
    0.0000248015212869954396,
    2.75572684531075249e-6,
    2.76200927066506648e-7,
    2.51003887724506466e-8,
)
# 2**r = 1 + r*Q(r), |r| <= 1/2
EXP2_32 = (
    0.693147188,
    0.2402265076,
    0.05550357114,
    0.009618082557,
    0.001339086336,
    0.0001545316295,
)
EXP2_64 = (
    0.693147180559945309,
    0.240226506959100712,
    0.055504108664821627,
    0.00961812910762847949,
    0.00133335581464064707,
    0.000154035303933707334,
    0.0000152527338415567726,
    1.32154868087055628e-6,
    1.01780570877339411e-7,
    7.05489730415549928e-9,
    4.45581790833606449e-10,
    2.57293241773623042e-11,
)
# tanh(x) = x + x*z*Q(z), z = x*x, |x| <= 0.625
TANH_32 = (
    -0.3333333317,
    0.1333330353,
    -0.05395925338,
    0.02176886821,
    -0.00834378037,
    0.002292557699,
)
TANH_64 = (
    -0.333333333333333329,
    0.13333333333333041,
    -0.0539682539678963639,
    0.0218694885189814288,
    -0.00886323510265348432,
    0.00359212174369598563,
    -0.00145577535320962958,
    0.000589660360655267137,
    -0.000237589688521170122,
    0.0000925692358851203249,
    -0.0000311989266677348746,
    6.48410498240547888e-6,
)
# sinh(x) = x + x*z*Q(z), z = x*x, |x| <= 1
SINH_64 = (
    0.166666666666666667,
    0.00833333333333329936,
    0.000198412698413241979,
    2.7557319191381817e-6,
    2.50521176959078236e-8,
    1.60576796238016377e-10,
    7.74617859301882749e-13,
)


def _reduce(x: V) -> tuple[V, V, V]:
    """x = n*ln(2) + r + c, |r| <= ln(2)/2, c the rounding of r; n integral (as a float)."""
    hi, lo = (LN2_HI_32, LN2_LO_32) if x.f32 else (LN2_HI_64, LN2_LO_64)
    n = rint(x * LOG2E)
    head = fma(n, -hi, x)
    r = fma(n, -lo, head)
    return n, r, fma(n, -lo, head - r)


def _range(x: V) -> V:
    """x limited to where exp(x) is neither surely zero nor surely infinite; NaN stays."""
    return clamp(x, -104.0, 89.0) if x.f32 else clamp(x, -746.0, 710.0)


def _tail_parts(x: V, low: V | None = None) -> tuple[V, V]:
    """`exp_tail_parts` with n as a float."""
    hi, lo = (LN2_HI_32, LN2_LO_32) if x.f32 else (LN2_HI_64, LN2_LO_64)
    n = rint(x * LOG2E)
    r = fma(n, -lo, fma(n, -hi, x))
    if low is not None:
        r = r + low
    q = poly(r, EXP_32 if x.f32 else EXP_64)
    return fma(r * r, q, r), n


def exp_tail_parts(x: V, low: V | None = None) -> tuple[V, V]:
    """exp(x + low) = (1 + e) * 2**n with |e| < 0.42: (e, n). `low` is a small correction to x; x within `_range`."""
    e, n = _tail_parts(x, low)
    return e, small_int(n)


def exp_parts(x: V, low: V | None = None) -> tuple[V, V]:
    """exp(x + low) = p * 2**n with p about 1."""
    e, n = exp_tail_parts(x, low)
    return e + 1.0, n


def exp(x: V) -> V:
    """e**x: at most 1 ulp in either precision, subnormal results correctly rounded."""
    e, n = _tail_parts(_range(x))
    return scale_by(e + 1.0, n)


def exp2_moderate(x: V) -> V:
    """2**x where the result is known to be neither subnormal nor infinite (no two-step scaling)."""
    n = rint(x)
    r = x - n
    return fma(r, poly(r, EXP2_32 if x.f32 else EXP2_64), 1.0) * pow2(small_int(n))


def exp2(x: V) -> V:
    """2**x; exact for integral x."""
    x = clamp(x, -151.0, 128.0) if x.f32 else clamp(x, -1076.0, 1024.0)
    n = rint(x)
    r = x - n
    return scale_by(fma(r, poly(r, EXP2_32 if x.f32 else EXP2_64), 1.0), n)


def expm1(x: V) -> V:
    """e**x - 1 without cancellation near 0."""
    limited = clamp(x, -20.0, 89.0) if x.f32 else clamp(x, -40.0, 710.0)
    n, r, c = _reduce(limited)
    tail = fma(r * r, poly(r, EXP_32 if x.f32 else EXP_64), c)
    # 2**n*(1 + p) - 1 with half the scale, so that 2**1024 is not needed: 2*(p*s + (s - 1/2)), s = 2**(n-1).
    s = pow2(small_int(n) - 1)
    s_minus = s - 0.5
    # n == 0 leaves s - 1/2 == 0; the sum r*s + (s - 1/2) is exact to a rounding, its error goes with the tail.
    head = fma(r, s, s_minus)
    error = fma(r, s, s_minus - head)
    result = (head + fma(tail, s, error)) * 2.0
    return where(abs(x) < (2.0**-25 if x.f32 else 2.0**-54), x, result)


def sigmoid(x: V) -> V:
    """1 / (1 + exp(-x)), without overflow and with the tiny results of very negative x."""
    e = exp(-abs(x))
    return where(x < 0.0, e, 1.0) / (e + 1.0)


def tanh(x: V) -> V:
    """A polynomial for |x| < 0.625, else 1 - 2/(exp(2|x|) + 1) (Cephes)."""
    a = abs(x)
    z = x * x
    small = fma(x * z, poly(z, TANH_32 if x.f32 else TANH_64), x)
    limit = 10.0 if x.f32 else 20.0
    limited = where(a.const(limit) < a, limit, a)
    # exp(2a) + 1, the doubling and the addition inside the exponential
    hi, lo = (LN2_HI_32, LN2_LO_32) if x.f32 else (LN2_HI_64, LN2_LO_64)
    n = rint(limited * (2.0 * LOG2E))
    r = fma(n, -0.5 * lo, fma(n, -0.5 * hi, limited))
    e = fma(r * r, poly(r, [c * 2.0**k for k, c in enumerate(EXP_32 if x.f32 else EXP_64, 2)]), r + r)
    big = 1.0 - 2.0 / fma(e + 1.0, pow2(small_int(n)), 1.0)
    # copysign, since the polynomial makes +0 of -0
    return copysign(where(a < 0.625, small, big), x)


def _half_exp(a: V) -> V:
    """exp(a)/2 for a >= 0: infinite only where sinh and cosh are."""
    p, n = exp_parts(clamp(a, 0.0, 712.0))
    return scale(p, n - 1)


@in_f64
def sinh(x: V) -> V:
    """A polynomial for |x| < 1, else (exp(|x|) - exp(-|x|))/2."""
    a, z = abs(x), x * x
    h = _half_exp(a)
    return where(a < 1.0, fma(x * z, poly(z, SINH_64), x), copysign(h - 0.25 / h, x))


@in_f64
def cosh(x: V) -> V:
    """(exp(|x|) + exp(-|x|))/2."""
    h = _half_exp(abs(x))
    return h + 0.25 / h
