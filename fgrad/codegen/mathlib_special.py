"""erf and its family, the logarithm of gamma and its derivative, cbrt and hypot, for values of generated code.

erfc is exp(-x*x)/(1 + 2x) times a polynomial in (x - 4)/(x + 4) (the mapping of Shepherd and Laframboise, 1981);
erfinv is x times a polynomial in w = -log(1 - x*x) or sqrt(w) (the scheme of Giles, 2012); cbrt is FreeBSD's `s_cbrt.c`
(Evans). The other coefficients are our own Chebyshev fits (`mpmath.chebyfit`, 50 digits).
"""

from __future__ import annotations

from fgrad.codegen.mathbase import V, clamp, copysign, fma, in_f64, poly, rint, scale, sqrt, two_prod, where
from fgrad.codegen.mathlib_exp import LOG2E, exp2_moderate, exp_tail_parts
from fgrad.codegen.mathlib_log import INF, NAN, log
from fgrad.codegen.mathlib_trig import _cos, _sin

# erf(x) = x + x*Q(x*x): |x| <= 0.92 (float32), |x| <= 1 (float64)
ERF_32 = (
    0.1283791508,
    -0.3761250078,
    0.112818811,
    -0.026768711,
    0.004995951236,
    -0.0006003721979,
)
ERF_64 = (
    0.128379167095512574,
    -0.376126389031837481,
    0.112837916709548787,
    -0.0268661706450767932,
    0.00522397762481801447,
    -0.000854832698083378991,
    0.000120553311116427109,
    -0.0000149255952668311816,
    1.6461000484121368e-6,
    -1.6350312701054695e-7,
    1.46597752740474358e-8,
    -1.13728488567916737e-9,
    5.9571761477489114e-11,
)
# -log(erfc(x)), 0.92 <= x <= 4
ERF_TAIL_32 = (
    -0.0003204415313,
    1.130237616,
    0.6318145167,
    0.1100944808,
    -0.0264310176,
    0.004763575249,
    -0.000597743472,
    4.617791279e-5,
    -1.643569654e-6,
)
# (1 + 2x) exp(x*x) erfc(x) in t = (x - 4)/(x + 4), 0 <= x <= 28
ERFC_64 = (
    1.23299511862555251,
    -0.139621116840562894,
    0.0153796521026207413,
    0.0680970542547373239,
    -0.101039066036352132,
    0.0937328349967941159,
    -0.0663303658115293841,
    0.037167515562492866,
    -0.0161977340591150071,
    0.00503196975589542611,
    -0.000757773341413330045,
    -0.000199255507556149521,
    0.000150622243948302992,
    -0.000024403169244974075,
    -0.0000112247891351547007,
    5.7178872846321852e-6,
    3.01350499448753948e-7,
    -8.35161968869684708e-7,
    6.27072715719831088e-8,
    1.15349437457541573e-7,
    -7.71541861441783013e-9,
    -1.36709898633473824e-8,
    -1.82060986803086833e-9,
)
# erfinv(x)/x in w - 2.5 and sqrt(w) - 3 (float32); w - 3.125, sqrt(w) - 3.25, sqrt(w) - 5 (float64)
ERFINV_A_32 = (
    1.50140936,
    0.2466402791,
    -0.004177392875,
    -0.001252726392,
    0.0002183493862,
    -4.972419689e-6,
    -3.463985268e-6,
    4.681313481e-7,
    2.33359672e-8,
    -8.93192597e-9,
)
ERFINV_B_32 = (
    2.832976801,
    1.00167527,
    0.00944530946,
    -0.00764343086,
    0.00568771192,
    -0.003563479518,
    0.001474264898,
    -0.0001274394953,
    -0.0002742900305,
    0.0001657152167,
    -3.263531826e-5,
)
ERFINV_A_64 = (
    1.65365456268310271,
    0.240158182425588342,
    -0.00603367087142685108,
    -0.000740702534154643122,
    0.000186734208019811867,
    -0.0000138825233939574822,
    -1.36546917587856571e-6,
    4.23478816822245958e-7,
    -2.90703912756413195e-8,
    -4.1126604371632182e-9,
    1.05122337705042902e-9,
    -5.41430328391950441e-11,
    -1.29788053699325656e-11,
    2.63052683125951831e-12,
    -8.07192593899004068e-14,
    -4.00200310875584951e-14,
    6.52133351150223846e-15,
    -3.94018812230432014e-17,
    -1.22156371924041723e-16,
    1.55107870099025245e-17,
    6.07505070207241388e-19,
    -3.4734793888538035e-19,
    1.99925998886153488e-20,
    3.19401554813627109e-21,
    -3.59320289270206953e-22,
)
ERFINV_B_64 = (
    3.08388561049222068,
    1.00525896769416538,
    0.00537091455355503303,
    -0.00375120850822473403,
    0.00249144209795696039,
    -0.00168827553544885554,
    0.000953289341579413721,
    -0.000355037813785245177,
    0.0000240315128657583563,
    0.0000682871173925195572,
    -0.0000473206806654469684,
    0.0000124650282242174553,
    2.93257845538534997e-6,
    -3.98570594564817333e-6,
    1.48159778740225387e-6,
    -2.76171622381624125e-8,
    -2.45498189633398225e-7,
    1.3158663683192966e-7,
    -2.09145333477312597e-8,
    -1.53053979641525482e-8,
    7.68020047907705274e-9,
)
ERFINV_C_64 = (
    4.84990640140858434,
    1.01030046486454486,
    -0.000138719318380107402,
    -0.000215030119799113171,
    0.000075995278096014697,
    -0.0000196817711973768001,
    4.52605253023880629e-6,
    -9.93025484420144471e-7,
    2.29052819810405371e-7,
    -6.75727701928455222e-8,
    2.90185654691838239e-8,
    -1.52136260497642806e-8,
    7.82171572826621758e-9,
    -3.53412248190898703e-9,
    1.31558550851481268e-9,
    -3.80864720981122253e-10,
    6.98471402319368112e-11,
    1.48057052563937385e-11,
    -2.04647556878542689e-11,
    5.85952287969184981e-12,
)
# lgamma(2 + d)/d, |d| <= 1/2
LGAMMA_64 = (
    0.422784335098467136,
    0.32246703342411322,
    -0.0673523010531956387,
    0.0205808084277833798,
    -0.0073855510289355447,
    0.00289051033086590093,
    -0.00119275390099830869,
    0.000509669519652667278,
    -0.000223154977462927232,
    0.0000994576169215713313,
    -0.0000449237275642476526,
    0.0000205060197017476186,
    -9.45628851510171917e-6,
    4.38285453838466677e-6,
    -1.97431068884210674e-6,
    9.24285222516227674e-7,
    -5.8112777689212462e-7,
    2.74753900519096639e-7,
)
# lgamma(x) = (x - 1/2)(log(x) - 1) + 0.4189.. + Q(1/x**2)/x and
# digamma(x) = log(x) - 1/(2x) - Q(1/x**2)/x**2, x >= 8
STIRLING_64 = (
    0.0833333333333333333,
    -0.00277777777777767476,
    0.000793650793511728205,
    -0.000595238023429125341,
    0.000841732526802240465,
    -0.001914965912162907,
    0.00620813676622979336,
    -0.0208558208374631151,
)
DIGAMMA_64 = (
    0.0833333333333333331,
    -0.00833333333333166417,
    0.00396825396599970065,
    -0.00416666550151672457,
    0.00757545992036917607,
    -0.0210510609080477417,
    0.0800233746539775669,
    -0.299425370626735011,
)
PI = 3.141592653589793
CBRT = (
    1.87595182427177009643,
    -1.88497979543377169875,
    1.621429720105354466140,
    -0.758397934778766047437,
    0.145996192886612446982,
)


@in_f64
def erfc(x: V) -> V:
    """1 - erf(x), without cancellation for large x."""
    a = clamp(abs(x), 0.0, 28.0)
    t = (a - 4.0) / (a + 4.0)
    h, low = two_prod(a, a)
    e, n = exp_tail_parts(-h, -low)
    # The quotient q of the polynomial by 1 + 2a, with what its own rounding and those of both parts left over.
    rest = poly(t, ERFC_64[1:])
    top = fma(rest, t, ERFC_64[0])
    bottom = fma(a, 2.0, 1.0)
    q = top / bottom
    top_low = fma(rest, t, ERFC_64[0] - top)
    bottom_low = fma(a, 2.0, 1.0 - bottom)
    q_low = (fma(q, -bottom, top) + fma(q, -bottom_low, top_low)) / bottom
    upper = scale(q + fma(q, e, q_low), n)
    z = x * x
    inner = 1.0 - fma(x, poly(z, ERF_64), x)
    return where(abs(x) < 0.5, inner, where(x < 0.0, 2.0 - upper, upper))


def erf(x: V) -> V:
    """A polynomial near 0; 1 - exp(polynomial) (float32) or 1 - erfc (float64) in the tails."""
    a, z = abs(x), x * x
    small = fma(x, poly(z, ERF_32 if x.f32 else ERF_64), x)
    if x.f32:
        limited = where(a.const(4.0) < a, 4.0, a)
        tail = 1.0 - exp2_moderate(poly(limited, [-LOG2E * c for c in ERF_TAIL_32]))
    else:
        limited = where(a.const(6.0) < a, 6.0, a)
        tail = 1.0 - erfc(limited)
    return where(a < (0.92 if x.f32 else 1.0), small, copysign(tail, x))


def erfinv(x: V) -> V:
    """The inverse of erf; infinite at -1 and 1, NaN beyond."""
    w = -log((1.0 - x) * (x + 1.0))
    s = sqrt(w)
    if x.f32:
        p = where(w < 5.0, poly(w - 2.5, ERFINV_A_32), poly(s - 3.0, ERFINV_B_32))
    else:
        far = where(s < 4.0, poly(s - 3.25, ERFINV_B_64), poly(s - 5.0, ERFINV_C_64))
        p = where(w < 6.25, poly(w - 3.125, ERFINV_A_64), far)
    result = where(abs(x).eq(1.0), x * INF, x * p)
    return where(abs(x) > 1.0, NAN, result)


def _sin_pi(a: V) -> tuple[V, V]:
    """(sin(pi*f), cos(pi*f)) for f = a - rint(a), so up to the sign that the integer part gives."""
    f = a - rint(a)
    m = abs(f)
    steep = m > 0.25
    r = where(steep, 0.5 - m, m) * PI
    s, c = _sin(r, None), _cos(r, None)
    return copysign(where(steep, c, s), f), where(steep, s, c)


def _lgamma_positive(x: V) -> V:
    small, low = x < 1.5, x < 0.5
    # x = d + 2, d + 1 or d; or d + 2 plus up to six steps of the recurrence
    product = x.const(1.0)
    d = where(low, x, where(small, x - 1.0, x - 2.0))
    for i in range(1, 7):
        step = x > i + 1.5
        product = product * where(step, x - float(i), 1.0)
        d = where(step, x - float(i + 2), d)
    big = x >= 8.0
    argument = where(small, where(low, fma(x, x, x), x), where(big, x, product))
    l = log(argument)
    base = d * poly(d, LGAMMA_64)
    near = where(small, base - l, base + l)
    inverse = 1.0 / where(big, x, 8.0)
    w = fma(inverse, poly(inverse * inverse, STIRLING_64), 0.41893853320467274178)
    far = fma(x - 0.5, l - 1.0, w)
    return where(big, far, near)


@in_f64
def lgamma(x: V) -> V:
    """log|gamma(x)|: a polynomial about 2 with the recurrence, Stirling's series from 8, reflection below 0.

    The error is relative to max(1, |result|) near the zeros on the negative axis.
    """
    a = abs(x)
    positive = _lgamma_positive(a)
    s, _ = _sin_pi(a)
    reflected = log(PI / (a * abs(s))) - positive
    result = where((x < 0.0) & (a > 2.0**-60), reflected, positive)
    pole = x.eq(0.0) | ((x < 0.0) & rint(x).eq(x))
    return where(pole | a.eq(INF), INF, result)


@in_f64
def digamma(x: V) -> V:
    """The derivative of lgamma: recurrence up to 8, asymptotic series from there, reflection below 0. NaN at negative integers.

    The error is relative to max(1, |result|).
    """
    low = x < 0.0
    y = where(low, 1.0 - x, x)
    top, bottom = y.const(0.0), y.const(1.0)
    shifted = y
    for _ in range(8):
        step = shifted < 8.0
        factor = where(step, shifted, 1.0)
        top = where(step, fma(top, factor, bottom), top)
        bottom = bottom * factor
        shifted = where(step, shifted + 1.0, shifted)
    inverse = 1.0 / shifted
    z = inverse * inverse
    value = log(shifted) - fma(inverse, 0.5, z * poly(z, DIGAMMA_64)) - top / bottom
    s, c = _sin_pi(x)
    result = where(low, value - c / s * PI, value)
    result = where(low & rint(x).eq(x), NAN, result)
    # y was near 0 there: the recurrence's product would be subnormal.
    return where(abs(x) < 2.0**-60, -1.0 / x, result)


@in_f64
def cbrt(x: V) -> V:
    """Cube root: a guess from the exponent, a polynomial step to 23 bits and one of Newton's (FreeBSD)."""
    a = abs(x)
    tiny = a < 2.0**-1022
    h = where(tiny, a * 2.0**54, a).bits().lshr(32)
    # h/3 for h < 2**31, by multiplication
    t = ((((h * 0x55555556).lshr(32)) + where(tiny, h.const(696219795), h.const(715094163))) << 32).as_float()
    r = (t * t) * (t / a)
    t = t * fma(r * r * r, fma(r, CBRT[4], CBRT[3]), fma(r, fma(r, CBRT[2], CBRT[1]), CBRT[0]))
    t = ((t.bits() + 0x80000000) & 0xFFFFFFFFC0000000).as_float()
    r = a / (t * t)
    t = fma(t, (r - t) / (t + t + r), t)
    return where((a < INF) & (a > 0.0), copysign(t, x), x + x)


@in_f64
def hypot(x: V, y: V) -> V:
    """sqrt(x*x + y*y) without overflow; infinite where either is, even beside NaN."""
    a, b = abs(x), abs(y)
    big = where(a > b, a, b)
    e = big.bits().lshr(52)
    e = where(e < 1, 1, where(e > 2045, 2045, e))
    down, up = ((2046 - e) << 52).as_float(), (e << 52).as_float()
    a_scaled, b_scaled = a * down, b * down
    result = sqrt(fma(a_scaled, a_scaled, b_scaled * b_scaled)) * up
    return where(a.eq(INF) | b.eq(INF), INF, result)
