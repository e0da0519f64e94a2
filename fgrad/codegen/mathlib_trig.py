"""Trigonometric functions of generated code, right over the whole range of their argument.

The argument is reduced as a fraction of a turn: x/(2 pi) mod 1 (Payne and Hanek, 1983). float32 multiplies x, exactly in
float64, with 29-bit pieces of 1/(2 pi), so it needs no table. float64 picks, by the exponent of x, a row of four doubles with the
bits of 1/(2 pi) that matter; products and sums are held in two parts. Polynomials are Chebyshev fits (`mpmath.chebyfit`).
"""

from __future__ import annotations

import math
from functools import cache

import llvmlite.ir as ir

from fgrad.codegen.mathbase import (
    V,
    copysign,
    exact_fma,
    fma,
    in_f64,
    poly,
    rarely,
    rint,
    small_int,
    sqrt,
    target_of,
    two_prod,
    two_sum,
    where,
)

# sin(x) = x + x*z*S(z), cos(x) = 1 - z/2 + z*z*C(z), z = x*x, |x| <= pi/4
SIN_32 = (
    -0.1666666466,
    0.008332747988,
    -0.0001958782977,
)
SIN_64 = (
    -0.166666666666666646,
    0.00833333333333094559,
    -0.000198412698367542,
    2.75573161002836939e-6,
    -2.50511313722186325e-8,
    1.59180952366962715e-10,
)
COS_32 = (
    0.04166666466,
    -0.001388830275,
    2.454788084e-5,
)
COS_64 = (
    0.0416666666666666654,
    -0.00138888888888873954,
    0.0000248015872987629515,
    -2.75573172703105073e-7,
    2.08761459726350809e-9,
    -1.13826111190256302e-11,
)
# asin(x) = x + x*z*Q(z), |x| <= 1/2; atan(x) = x + x*z*Q(z), |x| <= 1
ASIN_64 = (
    0.166666666666666678,
    0.0749999999999843293,
    0.0446428571463554298,
    0.0303819441385312473,
    0.0223721729421498879,
    0.0173523927208699729,
    0.0139712129735529333,
    0.0114791774151849059,
    0.0103228143501857793,
    0.0054575067186403583,
    0.0174008794426940224,
    -0.0148518870712472032,
    0.0287578513674215647,
)
ATAN_64 = (
    -0.333333333333333328,
    0.199999999999995532,
    -0.14285714285648404,
    0.11111111107234799,
    -0.0909090896955740314,
    0.0769230535467865481,
    -0.066666364357776927,
    0.0588207495637129457,
    -0.052612657357094544,
    0.0475208677357665614,
    -0.0430811965533047127,
    0.0387264021404263245,
    -0.0337501320016197343,
    0.0275679422973446767,
    -0.0202387069863935158,
    0.0127561729076942975,
    -0.00657568334415169863,
    0.00262297789190608902,
    -0.000751847252697382152,
    0.0001368724853148122,
    -0.0000118325054175556928,
)

PI_2_HI, PI_2_LO = float.fromhex("0x1.921fb54442d18p+0"), float.fromhex("0x1.1a62633145c07p-54")
TWO_PI_HI, TWO_PI_LO = 4.0 * PI_2_HI, 4.0 * PI_2_LO
TURN_PIECES = tuple(
    float.fromhex(h)
    for h in (
        "0x1.45f306d000000p-3",
        "0x1.9391054000000p-32",
        "0x1.4fe13ab000000p-61",
        "0x1.d1f534d000000p-90",
        "0x1.b81b6c5000000p-119",
        "0x1.5993c439041fep-150",
    )
)
# 1/(2 pi) * 2**1280, an integer
TURN_BITS = 1280
INV_TWO_PI = int(
    "28be60db9391054a7f09d5f47d4d377036d8a5664f10e4107f9458eaf7aef1586dc91b8e909374b8"
    "01924bba827464873f877ac72c4a69cfba208d7d4baed1213a671c09ad17df904e64758e60d4ce7d"
    "272117e2ef7e4a0ec7fe25fff7816603fbcbc462d6829b47db4d9fb3c9f2c26dd3d18fd9a797fa8b"
    "5d49eeb1faf97c5ecf41ce7de294a4ba9afed7ec47e357421580cc11bf1edaeafc33ef0826bd0d87",
    16,
)
ROWS, ROW_STEP = 61, 16


@cache
def turn_rows() -> tuple[float, ...]:
    """Row r: (2**(16 r) / (2 pi)) mod 1 as four doubles that do not overlap."""
    values = []
    for r in range(ROWS):
        rest = (INV_TWO_PI << (ROW_STEP * r)) & ((1 << TURN_BITS) - 1)
        for _ in range(4):
            down = max(rest.bit_length() - 53, 0)
            head = rest >> down << down
            values.append(math.ldexp(head >> down, down - TURN_BITS))
            rest -= head
    return tuple(values)


def _table(builder: ir.IRBuilder) -> ir.GlobalVariable:
    name = "fgrad.turn_rows"
    module = builder.module
    found = module.globals.get(name)
    if found is None:
        ty = ir.ArrayType(ir.DoubleType(), 4 * ROWS)
        found = ir.GlobalVariable(module, ty, name)
        found.linkage, found.global_constant = "internal", True
        found.initializer = ir.Constant(ty, list(turn_rows()))
    return found


def _load(row: V, column: int) -> V:
    """turn_rows()[row, column] for an integer (or vector of them); LLVM makes a gather of it."""
    b, table = row.b, _table(row.b)
    index = (row << 2) + column
    zero = ir.Constant(ir.IntType(64), 0)

    def one(i: ir.Value) -> ir.Value:
        return b.load(b.gep(table, [zero, i], inbounds=True))

    if not isinstance(index.type, ir.VectorType):
        return V(b, one(index.v))
    result = ir.Constant(ir.VectorType(ir.DoubleType(), index.type.count), ir.Undefined)
    for lane in range(index.type.count):
        at = ir.Constant(ir.IntType(32), lane)
        result = b.insert_element(result, one(b.extract_element(index.v, at)), at)
    return V(b, result)


def _turn_f32(x: V) -> V:
    """x/(2 pi) mod 1 in [-1/2, 1/2] for a float32 x held as a float64: every product but the last is exact."""
    p = x * TURN_PIECES[0]
    turn = p - rint(p)
    for piece in TURN_PIECES[1:-1]:
        p = x * piece
        turn = turn + (p - rint(p))
    turn = fma(x, TURN_PIECES[-1], turn)
    return turn - rint(turn)


def _turn_f64(x: V) -> tuple[V, V]:
    """x/(2 pi) mod 1 as a sum of two, absolute error about 2**-115."""
    e = (x.bits().lshr(52) & 0x7FF) - (1023 + 52)
    row = where(e > 0, e, 0) >> 4
    scaled = x * ((1023 - (row << 4)) << 52).as_float()
    p0, e0 = two_prod(scaled, _load(row, 0))
    p1, e1 = two_prod(scaled, _load(row, 1))
    p2, e2 = two_prod(scaled, _load(row, 2))
    tail = exact_fma(scaled, _load(row, 3), e2)
    # The first three can exceed a turn; whole turns are dropped exactly.
    s, err0 = two_sum(p0 - rint(p0), e0 - rint(e0))
    s, err1 = two_sum(s, p1 - rint(p1))
    s = s - rint(s)
    g, gl = two_sum(e1, p2)
    err, errl = two_sum(err0, err1)
    g, hl = two_sum(g, err)
    s, sl = two_sum(s, g)
    s = s - rint(s)
    return s, sl + (gl + errl + hl + tail)


# pi/2 in three float32 parts
PI_2_PARTS_32 = tuple(map(float.fromhex, ("0x1.921fb6p+0", "-0x1.777a5cp-25", "-0x1.ee59dap-50")))
NEAR_32 = 100000.0


def _reduce_near(x: V) -> tuple[V, V]:
    """`_reduce` for a float32 up to `NEAR_32` (Cody and Waite). The first product and difference are exact: q has 16 bits, and
    the multiplication rounds once with the subtraction."""
    high, middle, low = PI_2_PARTS_32
    q = rint(x * (1.0 / PI_2_HI))
    head = fma(q, -high, x)
    r = fma(q, -middle, head)
    rest = fma(q, -low, fma(q, -middle, head - r))
    return r + rest, small_int(q)


def _reduce(x: V) -> tuple[V, V | None, V]:
    """x = q*(pi/2) + r + low mod 2 pi: (r, low or None, q as an integer), |r| <= pi/4."""
    if x.f32:
        turn = _turn_f32(x.to_f64())
        q = rint(turn * 4.0)
        r = fma(q, -0.25, turn) * TWO_PI_HI
        return r.to_f32(), None, small_int(q.to_f32())
    s, l = _turn_f64(x)
    q = rint(s * 4.0)
    f, fl = two_sum(fma(q, -0.25, s), l)
    r, low = two_prod(f, TWO_PI_HI)
    low = fma(f, TWO_PI_LO, fma(fl, TWO_PI_HI, low))
    near = abs(x) < 0.78
    return where(near, x, r), where(near, 0.0, low), small_int(where(near, 0.0, q))


def _sin(r: V, low: V | None) -> V:
    z = r * r
    tail = r * z * poly(z, SIN_32 if r.f32 else SIN_64)
    if low is not None:
        tail = fma(low, fma(z, -0.5, 1.0), tail)
    return r + tail


def _cos(r: V, low: V | None) -> V:
    z = r * r
    half = z * 0.5
    w = 1.0 - half
    tail = fma(z * z, poly(z, COS_32 if r.f32 else COS_64), (1.0 - w) - half)
    if low is not None:
        tail = fma(r, -low, tail)
    return w + tail


def _pick(r: V, low: V | None, q: V) -> V:
    """sin(r + low + q*pi/2)."""
    value = where((q & 1).ne(0), _cos(r, low), _sin(r, low))
    sign = (q & 2) << (r.format.width - 2)
    return (value.bits() ^ sign).as_float()


def _wave(x: V, quarter: int) -> V:
    """sin(x + quarter*pi/2)"""

    def anywhere() -> V:
        r, low, q = _reduce(x)
        return _pick(r, low, q + quarter)

    if not (x.f32 and target_of(x.b).fma):
        return anywhere()
    r, q = _reduce_near(x)
    return rarely(~(abs(x) < NEAR_32), anywhere, _pick(r, None, q + quarter))


def sin(x: V) -> V:
    """Sine, of any finite argument."""
    return where(abs(x) < (2.0**-13 if x.f32 else 2.0**-28), x, _wave(x, 0))


def cos(x: V) -> V:
    """Cosine, of any finite argument."""
    return _wave(x, 1)


@in_f64
def tan(x: V) -> V:
    """sin/cos, or -cos/sin in odd quadrants."""
    r, low, q = _reduce(x)
    s, c = _sin(r, low), _cos(r, low)
    odd = (q & 1).ne(0)
    return where(abs(x) < 2.0**-28, x, where(odd, -c, s) / where(odd, s, c))


def _asin_core(a: V) -> tuple[V, V]:
    """(whether a > 1/2, asin(a) or else asin(sqrt((1 - a)/2))) for a = |x|."""
    big = a > 0.5
    z = where(big, (1.0 - a) * 0.5, a * a)
    s = where(big, sqrt(z), a)
    return big, fma(s * z, poly(z, ASIN_64), s)


@in_f64
def asin(x: V) -> V:
    """A polynomial up to 1/2, pi/2 - 2 asin(sqrt((1 - x)/2)) above (fdlibm)."""
    big, p = _asin_core(abs(x))
    return copysign(where(big, PI_2_HI - (p * 2.0 - PI_2_LO), p), x)


@in_f64
def acos(x: V) -> V:
    """pi/2 - asin(x) below 1/2 in magnitude; 2 asin(sqrt((1 - |x|)/2)) and its complement to pi above."""
    big, p = _asin_core(abs(x))
    signed = copysign(p, x)
    inner = PI_2_HI - (signed - PI_2_LO)
    outer = where(x < 0.0, 2.0 * PI_2_HI - (p * 2.0 - 2.0 * PI_2_LO), p * 2.0)
    return where(big, outer, inner)


def _atan_core(t: V) -> V:
    z = t * t
    return fma(t * z, poly(z, ATAN_64), t)


@in_f64
def atan(x: V) -> V:
    """A polynomial up to 1, pi/2 - atan(1/x) above."""
    a = abs(x)
    big = a > 1.0
    p = _atan_core(where(big, 1.0 / a, a))
    return copysign(where(big, PI_2_HI - (p - PI_2_LO), p), x)


@in_f64
def atan2(y: V, x: V) -> V:
    """The angle of the point (x, y), with C99's special cases."""
    a, b = abs(x), abs(y)
    steep = b > a
    top, bottom = where(steep, a, b), where(steep, b, a)
    t = where(top.eq(bottom), 1.0, top / bottom)
    t = where(bottom.eq(0.0), 0.0, t)
    p = _atan_core(t)
    p = where(steep, PI_2_HI - (p - PI_2_LO), p)
    p = where(x.bits() < 0, 2.0 * PI_2_HI - (p - 2.0 * PI_2_LO), p)
    return where(x.isnan() | y.isnan(), x + y, copysign(p, y))
