"""Arithmetic, comparison, logic, selection and conversion, element by element.

Functions here are raw: operands of one shape and dtype. `fgrad.numpy` broadcasts and promotes before it calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradTypeError, message
from fgrad.ir import Linear, Type
from fgrad.ops.builders import (
    MINUS_ONE,
    ONE,
    Binary,
    Unary,
    add_p,
    binary_function,
    elementwise,
    full_like,
    is_number,
    mul_p,
    neg_p,
    real_number,
    same_types,
    unary_function,
)
from fgrad.trace import bind


def add(x: Array, y: Array) -> Array:
    return bind(add_p, x, y)


def mul(x: Array, y: Array) -> Array:
    return bind(mul_p, x, y)


def neg(x: Array) -> Array:
    return bind(neg_p, x)


# ------------------------------------------------------------------------------------------------ arithmetic


def _sub_transpose(cts: Sequence[Array], x: Any, y: Any) -> tuple[Any, Any]:
    return (cts[0] if isinstance(x, Linear) else None, neg(cts[0]) if isinstance(y, Linear) else None)


def _div_transpose(cts: Sequence[Array], x: Any, y: Any) -> tuple[Any, Any]:
    return (div(cts[0], y), None)


sub_p = elementwise(
    "sub", np.subtract, partials=(ONE, MINUS_ONE), transpose=_sub_transpose, accepts=is_number
)
div_p = elementwise(
    "div",
    np.divide,
    # Both by one reciprocal, which costs nothing where y is broadcast: division is the slowest of the common operations.
    partials=(lambda out, x, y: reciprocal(y), lambda out, x, y: neg(mul(out, reciprocal(y)))),
    transpose=_div_transpose,
    accepts=dtypes.is_inexact,
)
floordiv_p = elementwise("floordiv", np.floor_divide, partials=(None, None), accepts=real_number)
remainder_p = elementwise(
    "remainder", np.remainder, partials=(ONE, lambda out, x, y: neg(floordiv(x, y))), accepts=real_number
)
fmod_p = elementwise(
    "fmod", np.fmod, partials=(ONE, lambda out, x, y: neg(trunc(div(x, y)))), accepts=real_number
)
abs_p = elementwise("abs", np.abs, partials=(lambda out, x: sign(x),), accepts=real_number)
sign_p = elementwise("sign", np.sign, accepts=real_number)
square_p = elementwise(
    "square", np.square, partials=(lambda out, x: mul(full_like(x, 2), x),), accepts=is_number
)
reciprocal_p = elementwise(
    "reciprocal", np.reciprocal, partials=(lambda out, x: neg(square(out)),), accepts=dtypes.is_inexact
)


def _integer_pow_scalar(emit: Any, x: Any, *, n: int) -> Any:
    if n < 0:
        return emit("reciprocal", _integer_pow_scalar(emit, x, n=-n))
    result, power = None, x
    while n:
        if n & 1:
            result = power if result is None else emit("mul", result, power)
        n >>= 1
        if n:
            power = emit("mul", power, power)
    return result if result is not None else emit("const", 1, dtype=x.dtype)


def _integer_pow_impl(x: np.ndarray, *, n: int) -> np.ndarray:
    """Square and multiply, in the order of the compiled kernels, so that both round alike."""
    if n < 0:
        return np.reciprocal(_integer_pow_impl(x, n=-n))
    result, power = None, x
    while n:
        if n & 1:
            result = power if result is None else result * power
        n >>= 1
        if n:
            power = power * power
    return result if result is not None else np.ones_like(x)


def _integer_pow_type(x: Type, *, n: int) -> Type:
    same_types("integer_pow", (x,), is_number)
    if n < 0 and not dtypes.is_inexact(x.dtype):
        raise FgradTypeError(
            message("integer_pow", f"{x.dtype} to the negative power {n}", "convert to a float first")
        )
    return x


integer_pow_p = elementwise(
    "integer_pow",
    _integer_pow_impl,
    partials=(
        lambda out, x, *, n: mul(full_like(x, n), integer_pow(x, n - 1)) if n != 0 else full_like(x, 0),
    ),
    type_rule=_integer_pow_type,
    scalar=_integer_pow_scalar,
)


def _extreme_partial(wins: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """1 where this operand wins, one half where both are equal (the mean of the one-sided derivatives)."""

    def partial(out: Array, x: Array, y: Array) -> Array:
        tie = select(eq(x, y), full_like(x, 0.5), full_like(x, 0))
        return select(wins(x, y), full_like(x, 1), tie)

    return partial


def _chosen_partial(which: int) -> Callable[..., Array]:
    """As above for fmax and fmin, which ignore a NaN beside a number: whoever equals the result has won."""

    def partial(out: Array, x: Array, y: Array) -> Array:
        share = select(eq(x, y), full_like(x, 0.5), full_like(x, 1))
        return select(eq((x, y)[which], out), share, full_like(x, 0))

    return partial


def _greater(x: Array, y: Array) -> Array:
    return gt(x, y)


def _less(x: Array, y: Array) -> Array:
    return lt(x, y)


maximum_p = elementwise(
    "maximum", np.maximum, partials=(_extreme_partial(_greater), _extreme_partial(_less)), accepts=real_number
)
minimum_p = elementwise(
    "minimum", np.minimum, partials=(_extreme_partial(_less), _extreme_partial(_greater)), accepts=real_number
)
fmax_p = elementwise("fmax", np.fmax, partials=(_chosen_partial(0), _chosen_partial(1)), accepts=real_number)
fmin_p = elementwise("fmin", np.fmin, partials=(_chosen_partial(0), _chosen_partial(1)), accepts=real_number)
copysign_p = elementwise(
    "copysign",
    np.copysign,
    partials=(lambda out, x, y: mul(sign(x), sign(out)), None),
    accepts=dtypes.is_float,
)
nextafter_p = elementwise(
    "nextafter", np.nextafter, partials=(None, None), accepts=lambda d: d in (dtypes.float32, dtypes.float64)
)
floor_p = elementwise("floor", np.floor, accepts=real_number)
ceil_p = elementwise("ceil", np.ceil, accepts=real_number)
round_p = elementwise("round", np.rint, accepts=real_number)
trunc_p = elementwise("trunc", np.trunc, accepts=real_number)

# ------------------------------------------------------------------------------------------------ predicates


def _to_bool(_: np.dtype) -> np.dtype:
    return dtypes.bool_


eq_p = elementwise("eq", np.equal, out_dtype=_to_bool)
ne_p = elementwise("ne", np.not_equal, out_dtype=_to_bool)
lt_p = elementwise("lt", np.less, out_dtype=_to_bool)
le_p = elementwise("le", np.less_equal, out_dtype=_to_bool)
gt_p = elementwise("gt", np.greater, out_dtype=_to_bool)
ge_p = elementwise("ge", np.greater_equal, out_dtype=_to_bool)
isnan_p = elementwise("isnan", np.isnan, out_dtype=_to_bool, accepts=dtypes.is_inexact)
isinf_p = elementwise("isinf", np.isinf, out_dtype=_to_bool, accepts=dtypes.is_inexact)
isfinite_p = elementwise("isfinite", np.isfinite, out_dtype=_to_bool, accepts=dtypes.is_inexact)
signbit_p = elementwise("signbit", np.signbit, out_dtype=_to_bool, accepts=dtypes.is_float)

# ------------------------------------------------------------------------------------------------ bits


def _bitty(d: np.dtype) -> bool:
    return d in dtypes.INTS or d == dtypes.bool_


def _shift(op: Any, fill_sign: bool) -> Any:
    """Shifts by at least the width give 0 (or the sign), on every processor alike."""

    def impl(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        bits = x.dtype.itemsize * 8
        unsigned_y = y.astype(np.uint64)
        over = unsigned_y >= bits
        shifted = op(x, np.where(over, 0, y).astype(x.dtype))
        beyond = (
            np.where(x < 0, -1, 0).astype(x.dtype) if fill_sign and x.dtype.kind == "i" else np.zeros_like(x)
        )
        return np.where(over, beyond, shifted)

    return impl


def _logical_right(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    return np.right_shift(x.view(unsigned), y.astype(unsigned)).view(x.dtype)


def _popcount(x: np.ndarray) -> np.ndarray:
    return np.bitwise_count(x.view(np.dtype(f"u{x.dtype.itemsize}"))).astype(x.dtype)


def _clz(x: np.ndarray) -> np.ndarray:
    bits = x.dtype.itemsize * 8
    u = np.ascontiguousarray(x).view(np.dtype(f"u{x.dtype.itemsize}"))
    n = np.full(u.shape, bits, dtype=x.dtype)
    for k in range(bits):
        n = np.where((u >> np.asarray(k, u.dtype)) & np.asarray(1, u.dtype) != 0, bits - 1 - k, n).astype(
            x.dtype
        )
    return n


bitwise_and_p = elementwise("bitwise_and", np.bitwise_and, accepts=_bitty)
bitwise_or_p = elementwise("bitwise_or", np.bitwise_or, accepts=_bitty)
bitwise_xor_p = elementwise("bitwise_xor", np.bitwise_xor, accepts=_bitty)
bitwise_not_p = elementwise("bitwise_not", np.bitwise_not, accepts=dtypes.is_integer)
logical_not_p = elementwise("logical_not", np.logical_not, accepts=lambda d: d == dtypes.bool_)
shift_left_p = elementwise("shift_left", _shift(np.left_shift, False), accepts=dtypes.is_integer)
shift_right_arithmetic_p = elementwise(
    "shift_right_arithmetic", _shift(np.right_shift, True), accepts=dtypes.is_integer
)
shift_right_logical_p = elementwise(
    "shift_right_logical", _shift(_logical_right, False), accepts=dtypes.is_integer
)
popcount_p = elementwise("popcount", _popcount, accepts=dtypes.is_integer)
clz_p = elementwise("clz", _clz, accepts=dtypes.is_integer)

# ------------------------------------------------------------------------------------------------ selection, conversion


def _select_type(c: Type, a: Type, b: Type) -> Type:
    if c.dtype != dtypes.bool_ or c.shape != a.shape:
        raise FgradTypeError(message("select", f"the condition must be bool{list(a.shape)}, got {c}"))
    return same_types("select", (a, b))


def _select_transpose(cts: Sequence[Array], c: Array, a: Any, b: Any) -> tuple[Any, ...]:
    zero = full_like(cts[0], 0)
    return (
        None,
        select(c, cts[0], zero) if isinstance(a, Linear) else None,
        select(c, zero, cts[0]) if isinstance(b, Linear) else None,
    )


def _select_jvp(primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any) -> Array:
    c, a, b = primals
    ta = tangents[1] if tangents[1] is not None else full_like(a, 0)
    tb = tangents[2] if tangents[2] is not None else full_like(b, 0)
    return select(c, ta, tb)


select_p = elementwise(
    "select",
    lambda c, a, b: np.where(c, a, b),
    partials=(None, None, None),
    type_rule=_select_type,
    transpose=_select_transpose,
)
select_p.jvp = _select_jvp


def _cast_impl(x: np.ndarray, *, dtype: np.dtype) -> np.ndarray:
    if x.dtype in dtypes.COMPLEX and dtype not in dtypes.COMPLEX and dtype != dtypes.bool_:
        x = x.real
    if x.size > 1 and not any(
        x.strides
    ):  # one value, broadcast: it stays so, as numbers may go to any device
        one = _cast_impl(x[(0,) * x.ndim], dtype=dtype)
        return np.broadcast_to(one, x.shape)
    if dtypes.is_integer(dtype) and dtypes.is_inexact(x.dtype):
        return _saturated(x, dtype)
    return x.astype(dtype)


def _saturated(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats out of an integer's range become its ends and NaN 0, as in compiled programs. C, and so NumPy, leaves it open."""
    if x.dtype.itemsize < 4:
        x = x.astype(np.float32)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    inside = (x > float(least) - 1) & (x < float(most) + 1)
    with np.errstate(invalid="ignore"):
        result = x.astype(dtype)
    if not inside.all():
        ends = np.array(
            [least, 0, most], dtype
        )  # not Python integers: NumPy 2.5 refuses those beyond int64 here
        result = np.where(inside, result, ends[np.where(x > 0, 2, np.where(x < 0, 0, 1))])
    return result


def _cast_jvp(
    primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, *, dtype: np.dtype
) -> Array | None:
    return convert(tangents[0], dtype) if dtypes.is_inexact(dtype) else None  # type: ignore[arg-type]


def _cast_scalar(emit: Any, x: Any, *, dtype: np.dtype) -> Any:
    return emit("cast", x, dtype=dtype)


convert_p = elementwise(
    "convert",
    _cast_impl,
    linear=True,
    type_rule=lambda x, *, dtype: Type(x.shape, dtype),
    transpose=lambda cts, x, *, dtype: (convert(cts[0], x.dtype),),
    scalar=_cast_scalar,
)
convert_p.jvp = _cast_jvp


def _bitcast_type(x: Type, *, dtype: np.dtype) -> Type:
    if x.dtype.itemsize != dtype.itemsize:
        raise FgradTypeError(message("bitcast", f"{x.dtype} and {dtype} differ in width"))
    return Type(x.shape, dtype)


bitcast_p = elementwise(
    "bitcast",
    lambda x, *, dtype: np.ascontiguousarray(x).view(dtype).reshape(x.shape),
    type_rule=_bitcast_type,
    scalar=lambda emit, x, *, dtype: emit("bitcast", x, dtype=dtype),
)
stop_gradient_p = elementwise("stop_gradient", lambda x: x, scalar=lambda emit, x: x)


# ------------------------------------------------------------------------------------------------ functions


sub: Binary = binary_function(sub_p)
div: Binary = binary_function(div_p)
floordiv: Binary = binary_function(floordiv_p)
remainder: Binary = binary_function(remainder_p)
fmod: Binary = binary_function(fmod_p)
maximum: Binary = binary_function(maximum_p)
minimum: Binary = binary_function(minimum_p)
fmax: Binary = binary_function(fmax_p)
fmin: Binary = binary_function(fmin_p)
copysign: Binary = binary_function(copysign_p)
nextafter: Binary = binary_function(nextafter_p)
eq: Binary = binary_function(eq_p)
ne: Binary = binary_function(ne_p)
lt: Binary = binary_function(lt_p)
le: Binary = binary_function(le_p)
gt: Binary = binary_function(gt_p)
ge: Binary = binary_function(ge_p)
bitwise_and: Binary = binary_function(bitwise_and_p)
bitwise_or: Binary = binary_function(bitwise_or_p)
bitwise_xor: Binary = binary_function(bitwise_xor_p)
shift_left: Binary = binary_function(shift_left_p)
shift_right_arithmetic: Binary = binary_function(shift_right_arithmetic_p)
shift_right_logical: Binary = binary_function(shift_right_logical_p)
absolute: Unary = unary_function(abs_p)
sign: Unary = unary_function(sign_p)
square: Unary = unary_function(square_p)
reciprocal: Unary = unary_function(reciprocal_p)
floor: Unary = unary_function(floor_p)
ceil: Unary = unary_function(ceil_p)
round: Unary = unary_function(round_p)
trunc: Unary = unary_function(trunc_p)
isnan: Unary = unary_function(isnan_p)
isinf: Unary = unary_function(isinf_p)
isfinite: Unary = unary_function(isfinite_p)
signbit: Unary = unary_function(signbit_p)
bitwise_not: Unary = unary_function(bitwise_not_p)
logical_not: Unary = unary_function(logical_not_p)
popcount: Unary = unary_function(popcount_p)
clz: Unary = unary_function(clz_p)
stop_gradient: Unary = unary_function(stop_gradient_p)


def integer_pow(x: Array, n: int) -> Array:
    return bind(integer_pow_p, x, n=n)


def select(c: Array, a: Array, b: Array) -> Array:
    """`a` where `c`, else `b`; three arrays of one shape."""
    return bind(select_p, c, a, b)


def convert(x: Array, dtype: np.dtype) -> Array:
    """`x` as another dtype; `x` itself if it already is."""
    return x if x.dtype == dtype else bind(convert_p, x, dtype=dtype)


def bitcast(x: Array, dtype: np.dtype) -> Array:
    """The bits of `x` read as another dtype of the same width."""
    return bind(bitcast_p, x, dtype=dtype)
