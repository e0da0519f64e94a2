"""NumPy's ufuncs on fgrad arrays: operands are promoted and broadcast here, then one primitive does the work."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes

from fgrad import dtypes
from fgrad.array import Array, is_scalar
from fgrad.convert import as_array, promote
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.numpy.axes import broadcast_all, operands
from fgrad.numpy.ufuncs import BOOL, binary, unary
from fgrad.ops import elementwise as ew
from fgrad.ops import transcendental as tr
from fgrad.ops.builders import full_like
from fgrad.ops.complex import complex_abs


def _no_bool(op: str, instead: str) -> Callable[..., Array]:
    def f(*_: Array) -> Array:
        raise FgradTypeError(message(op, "bool arrays have no such operation", instead))

    return f


# ------------------------------------------------------------------------------------------------ arithmetic

add = binary("add", ew.add, "x + y. Bools: logical or.", on_bool=ew.bitwise_or)
subtract = binary(
    "subtract", ew.sub, "x - y.", on_bool=_no_bool("subtract", "use logical_xor (^), or convert with astype")
)
multiply = binary("multiply", ew.mul, "x * y. Bools: logical and.", on_bool=ew.bitwise_and)
divide = binary("divide", ew.div, "x / y, true division: integers become float32.", inexact=True)
floor_divide = binary(
    "floor_divide", ew.floordiv, "The largest integer (or integral float) at most x / y.", on_bool=dtypes.int8
)
remainder = binary(
    "remainder", ew.remainder, "x - y * floor(x / y): the sign of y, as Python's %.", on_bool=dtypes.int8
)
fmod = binary("fmod", ew.fmod, "The remainder with the sign of x, as C's fmod.", on_bool=dtypes.int8)
maximum = binary("maximum", ew.maximum, "The larger of x and y; NaN if either is.", on_bool=ew.bitwise_or)
minimum = binary("minimum", ew.minimum, "The smaller of x and y; NaN if either is.", on_bool=ew.bitwise_and)
fmax = binary("fmax", ew.fmax, "The larger of x and y; a NaN loses against a number.", on_bool=ew.bitwise_or)
fmin = binary(
    "fmin", ew.fmin, "The smaller of x and y; a NaN loses against a number.", on_bool=ew.bitwise_and
)
true_divide, mod = divide, remainder


def divmod(x: Any, y: Any, /) -> tuple[Array, Array]:
    """`(floor_divide(x, y), remainder(x, y))`."""
    return floor_divide(x, y), remainder(x, y)


def modf(x: Any, /) -> tuple[Array, Array]:
    """Fractional and integral parts, both with the sign of `x`."""
    a = _inexact(x, "modf")
    whole = ew.trunc(a)
    part = ew.select(ew.isinf(a), full_like(a, 0), ew.sub(a, whole))
    return ew.copysign(part, a), whole


def _modulus(x: Array) -> Array:
    return x if x.dtype == BOOL else complex_abs(x) if dtypes.is_complex(x.dtype) else ew.absolute(x)


negative = unary("negative", ew.neg, "-x.", inexact=False)
absolute = unary("absolute", _modulus, "|x|.", inexact=False)
fabs = unary("fabs", ew.absolute, "|x| in floating point.")
sign = unary("sign", ew.sign, "-1, 0 or 1 by the sign of x.", inexact=False)
square = unary("square", ew.square, "x * x.", inexact=False, on_bool=dtypes.int8)
reciprocal = unary("reciprocal", ew.reciprocal, "1 / x; integers become float32.")
abs = absolute


def positive(x: Any, /) -> Array:
    """+x: the value itself."""
    return as_array(x, "positive")


_LARGEST_UNROLLED_POWER = 64


def power(x: Any, y: Any, /) -> Array:
    """x ** y. A Python integer exponent is carried out by multiplications: exact for integers, and differentiable at 0.

    Raises a ValueError for integers to a negative Python integer.
    """
    if is_scalar(y) and not isinstance(y, complex) and not is_scalar(x):
        a = as_array(x, "power")
        if a.dtype == BOOL:
            a = ew.convert(a, dtypes.weak_promote(a.dtype, y) if not isinstance(y, bool) else dtypes.int8)
        if isinstance(y, int) and y < 0 and dtypes.is_integer(a.dtype):
            raise FgradValueError(
                message(
                    "power",
                    f"{a.dtype} to the negative power {y} is not an integer",
                    f"write x ** {float(y)}, or convert x to a float",
                )
            )
        if isinstance(y, float) and not dtypes.is_inexact(a.dtype):
            a = ew.convert(a, dtypes.default_float)
        if y == 2:
            return ew.square(a)
        if isinstance(y, float) and y == 0.5:
            return tr.sqrt(a)
        small = (
            math.isfinite(y)
            and y == int(y)
            and (-_LARGEST_UNROLLED_POWER <= y <= _LARGEST_UNROLLED_POWER or dtypes.is_integer(a.dtype))
        )
        if small:
            return ew.integer_pow(a, int(y))
        x = a
    a, b = operands("power", x, y)
    if a.dtype == BOOL:
        a, b = ew.convert(a, dtypes.int8), ew.convert(b, dtypes.int8)
    return tr.pow(a, b)


pow = power


def float_power(x: Any, y: Any, /) -> Array:
    """x ** y in floating point (float32 for integers), so that negative exponents of integers are allowed."""
    return tr.pow(*operands("float_power", x, y, inexact=True))


# ------------------------------------------------------------------------------------------------ functions

sqrt = unary("sqrt", tr.sqrt, "The non-negative square root; NaN below 0.")
cbrt = unary("cbrt", tr.cbrt, "The cube root, of negative numbers too.")
exp = unary("exp", tr.exp, "e ** x.")
exp2 = unary("exp2", tr.exp2, "2 ** x.")
expm1 = unary("expm1", tr.expm1, "exp(x) - 1, accurate near 0.")
log = unary("log", tr.log, "The natural logarithm.")
log2 = unary("log2", tr.log2, "The logarithm to base 2.")
log10 = unary("log10", tr.log10, "The logarithm to base 10.")
log1p = unary("log1p", tr.log1p, "log(1 + x), accurate near 0.")
sin = unary("sin", tr.sin, "The sine of x radians.")
cos = unary("cos", tr.cos, "The cosine of x radians.")
tan = unary("tan", tr.tan, "The tangent of x radians.")
arcsin = unary("arcsin", tr.asin, "The inverse sine, in [-pi/2, pi/2].")
arccos = unary("arccos", tr.acos, "The inverse cosine, in [0, pi].")
arctan = unary("arctan", tr.atan, "The inverse tangent, in [-pi/2, pi/2].")
sinh = unary("sinh", tr.sinh, "The hyperbolic sine.")
cosh = unary("cosh", tr.cosh, "The hyperbolic cosine.")
tanh = unary("tanh", tr.tanh, "The hyperbolic tangent.")
arcsinh = unary("arcsinh", tr.asinh, "The inverse hyperbolic sine.")
arccosh = unary("arccosh", tr.acosh, "The inverse hyperbolic cosine.")
arctanh = unary("arctanh", tr.atanh, "The inverse hyperbolic tangent.")
asin, acos, atan, asinh, acosh, atanh = arcsin, arccos, arctan, arcsinh, arccosh, arctanh
arctan2 = binary(
    "arctan2", tr.atan2, "The angle of the point (y, x), in [-pi, pi]: arctan2(y, x).", inexact=True
)
hypot = binary("hypot", tr.hypot, "sqrt(x² + y²) without overflow.", inexact=True)
logaddexp = binary("logaddexp", tr.logaddexp, "log(exp(x) + exp(y)) without overflow.", inexact=True)
copysign = binary("copysign", ew.copysign, "The size of x with the sign of y.", inexact=True)
nextafter = binary("nextafter", ew.nextafter, "The next float after x towards y.", inexact=True)
atan2 = arctan2


def _inexact(x: Any, call: str) -> Array:
    a = as_array(x, call)
    return ew.convert(a, dtypes.to_inexact(a.dtype))


def _scaled(name: str, factor: float, doc: str) -> Callable[..., Array]:
    return unary(name, lambda x: ew.mul(x, full_like(x, factor)), doc)


deg2rad = _scaled("deg2rad", math.pi / 180, "Degrees to radians.")
rad2deg = _scaled("rad2deg", 180 / math.pi, "Radians to degrees.")
radians, degrees = deg2rad, rad2deg


def logaddexp2(x: Any, y: Any, /) -> Array:
    """log2(2**x + 2**y) without overflow."""
    a, b = operands("logaddexp2", x, y, inexact=True)
    ln2 = full_like(a, math.log(2))
    return ew.div(tr.logaddexp(ew.mul(a, ln2), ew.mul(b, ln2)), ln2)


def sinc(x: Any, /) -> Array:
    """sin(pi x) / (pi x), and 1 at 0. Near 0 it is its Taylor series, so that derivatives of any order exist there."""
    a = _inexact(x, "sinc")
    t = ew.mul(full_like(a, math.pi), a)
    one, zero = full_like(a, 1), full_like(a, 0)
    near = ew.lt(ew.absolute(t), full_like(a, 0.5))
    square = ew.square(ew.select(near, t, zero))
    series = one
    for n in range(16, 0, -2):  # 1 - t^2/(2*3) (1 - t^2/(4*5) (1 - ...))
        term = ew.mul(square, full_like(a, 1 / (n * (n + 1))))
        series = ew.sub(one, ew.mul(term, series))
    far = ew.select(near, one, t)
    return ew.select(near, series, ew.div(tr.sin(far), far))


def heaviside(x: Any, at_zero: Any, /) -> Array:
    """0 below 0, `at_zero` at 0, 1 above; NaN where `x` is."""
    a, h = operands("heaviside", x, at_zero, inexact=True)
    zero, one = full_like(a, 0), full_like(a, 1)
    step = ew.select(ew.lt(a, zero), zero, ew.select(ew.eq(a, zero), h, one))
    return ew.select(ew.ne(a, a), a, step)


def ldexp(x: Any, n: Any, /) -> Array:
    """x * 2**n."""
    a = _inexact(x, "ldexp")
    return multiply(a, tr.exp2(ew.convert(as_array(n, "ldexp"), a.dtype)))


# ------------------------------------------------------------------------------------------------ rounding


def _rounding(name: str, op: Callable[[Array], Array], doc: str) -> Callable[..., Array]:
    return unary(
        name,
        lambda x: op(x) if dtypes.is_inexact(x.dtype) else x,
        doc + " Integers stay as they are.",
        inexact=False,
    )


floor = _rounding("floor", ew.floor, "The largest integral value at most x.")
ceil = _rounding("ceil", ew.ceil, "The smallest integral value at least x.")
trunc = _rounding("trunc", ew.trunc, "x rounded towards 0.")
fix = trunc
rint = unary("rint", ew.round, "The nearest integral value, ties to even.")


def round(x: Any, decimals: int = 0) -> Array:
    """`x` rounded to `decimals` places, ties to even (as NumPy: scaled, rounded, scaled back)."""
    a = as_array(x, "round")
    if not dtypes.is_inexact(a.dtype):
        if decimals >= 0:
            return a
        wide = ew.convert(a, dtypes.float64)
        scale = full_like(wide, 10.0**-decimals)
        return ew.convert(ew.mul(ew.round(ew.div(wide, scale)), scale), a.dtype)
    if decimals == 0:
        return ew.round(a)
    scale = full_like(a, 10.0 ** builtins.abs(decimals))
    if decimals > 0:
        return ew.div(ew.round(ew.mul(a, scale)), scale)
    return ew.mul(ew.round(ew.div(a, scale)), scale)


around = round

# ------------------------------------------------------------------------------------------------ comparison and logic


def _comparison(name: str, op: Callable[..., Array], doc: str) -> Callable[..., Array]:
    return binary(name, op, doc)


equal = _comparison("equal", ew.eq, "x == y, as bools.")
not_equal = _comparison("not_equal", ew.ne, "x != y, as bools.")
less = _comparison("less", ew.lt, "x < y, as bools.")
less_equal = _comparison("less_equal", ew.le, "x <= y, as bools.")
greater = _comparison("greater", ew.gt, "x > y, as bools.")
greater_equal = _comparison("greater_equal", ew.ge, "x >= y, as bools.")


def to_bool(x: Array) -> Array:
    """True where `x` is not zero."""
    return x if x.dtype == BOOL else ew.ne(x, full_like(x, 0))


def _logical(name: str, op: Callable[..., Array], doc: str) -> Callable[..., Array]:
    def f(x: Any, y: Any, /) -> Array:
        a, b = broadcast_all(name, [to_bool(as_array(v, name)) for v in (x, y)])
        return op(a, b)

    f.__name__ = f.__qualname__ = name
    f.__doc__ = doc
    return f


logical_and = _logical("logical_and", ew.bitwise_and, "True where both are not zero.")
logical_or = _logical("logical_or", ew.bitwise_or, "True where either is not zero.")
logical_xor = _logical("logical_xor", ew.bitwise_xor, "True where exactly one is not zero.")


def logical_not(x: Any, /) -> Array:
    """True where `x` is zero."""
    return ew.logical_not(to_bool(as_array(x, "logical_not")))


def _predicate(name: str, op: Callable[[Array], Array], of_integers: bool, doc: str) -> Callable[..., Array]:
    def f(x: Any, /) -> Array:
        a = as_array(x, name)
        if dtypes.is_inexact(a.dtype):
            return op(a)
        same = ew.eq(a, a)
        return same if of_integers else ew.logical_not(same)

    f.__name__ = f.__qualname__ = name
    f.__doc__ = doc
    return f


isnan = _predicate("isnan", ew.isnan, False, "True where x is NaN.")
isinf = _predicate("isinf", ew.isinf, False, "True where x is an infinity.")
isfinite = _predicate("isfinite", ew.isfinite, True, "True where x is neither NaN nor an infinity.")


def isposinf(x: Any, /) -> Array:
    """True where `x` is +infinity."""
    a = _inexact(x, "isposinf")
    return ew.eq(a, full_like(a, math.inf))


def isneginf(x: Any, /) -> Array:
    """True where `x` is -infinity."""
    a = _inexact(x, "isneginf")
    return ew.eq(a, full_like(a, -math.inf))


def signbit(x: Any, /) -> Array:
    """True where the sign bit is set: below 0, and -0.0."""
    a = as_array(x, "signbit")
    return ew.signbit(a) if dtypes.is_float(a.dtype) else ew.lt(a, full_like(a, 0))


# ------------------------------------------------------------------------------------------------ choice


def where(condition: Any, x: Any = None, y: Any = None, /) -> Array:
    """`x` where `condition`, else `y`, elementwise; the three broadcast, `x` and `y` are promoted."""
    if x is None or y is None:
        raise FgradTypeError(
            message(
                "where",
                "x and y are both needed here",
                "for the positions of True values call fgrad.numpy.nonzero",
            )
        )
    c = to_bool(as_array(condition, "where"))
    c, a, b = broadcast_all("where", [c, *promote(x, y, call="where")])
    return ew.select(c, a, b)


def clip(x: Any, min: Any = None, max: Any = None) -> Array:
    """`x` limited to [min, max]; either bound may be None."""
    result = as_array(x, "clip")
    if min is not None:
        result = maximum(result, min)
    return result if max is None else minimum(result, max)


def nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Array:
    """`x` with NaN, +inf and -inf replaced (infinities by the largest finite numbers unless given)."""
    a = as_array(x, "nan_to_num")
    if not dtypes.is_float(a.dtype):
        return a
    largest = float(ml_dtypes.finfo(a.dtype).max)
    high, low = largest if posinf is None else posinf, -largest if neginf is None else neginf
    a = ew.select(ew.isnan(a), full_like(a, nan), a)
    a = ew.select(ew.eq(a, full_like(a, math.inf)), full_like(a, high), a)
    return ew.select(ew.eq(a, full_like(a, -math.inf)), full_like(a, low), a)
