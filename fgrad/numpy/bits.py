"""Bitwise operations and shifts, on integers and bools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array
from fgrad.errors import FgradTypeError, describe, message
from fgrad.numpy.axes import operands
from fgrad.numpy.ufuncs import BOOL
from fgrad.ops import elementwise as ew


def _bits(name: str, op: Callable[..., Array], doc: str) -> Callable[..., Array]:
    def f(x: Any, y: Any, /) -> Array:
        a, b = operands(name, x, y)
        if dtypes.is_inexact(a.dtype):
            raise FgradTypeError(
                message(
                    name,
                    f"needs integers or bools, got {describe(x)} and {describe(y)}",
                    "convert with x.astype('int64'), or compare first: (x > 0) & (y > 0)",
                )
            )
        return op(a, b)

    f.__name__ = f.__qualname__ = name
    f.__doc__ = doc
    return f


def _as_int(op: Callable[..., Array]) -> Callable[..., Array]:
    return lambda a, b: (
        op(ew.convert(a, dtypes.int8), ew.convert(b, dtypes.int8)) if a.dtype == BOOL else op(a, b)
    )


bitwise_and = _bits("bitwise_and", ew.bitwise_and, "x & y, bit by bit (of bools: logical).")
bitwise_or = _bits("bitwise_or", ew.bitwise_or, "x | y, bit by bit (of bools: logical).")
bitwise_xor = _bits("bitwise_xor", ew.bitwise_xor, "x ^ y, bit by bit (of bools: logical).")
left_shift = _bits("left_shift", _as_int(ew.shift_left), "x << y; 0 where y is at least the width.")
right_shift = _bits(
    "right_shift",
    _as_int(
        lambda a, b: ew.shift_right_logical(a, b) if a.dtype.kind == "u" else ew.shift_right_arithmetic(a, b)
    ),
    "x >> y, keeping the sign.",
)
bitwise_left_shift, bitwise_right_shift = left_shift, right_shift


def invert(x: Any, /) -> Array:
    """~x: every bit flipped; of bools: logical not."""
    a = as_array(x, "invert")
    if dtypes.is_inexact(a.dtype):
        raise FgradTypeError(message("invert", f"needs integers or bools, got {a.type}"))
    return ew.logical_not(a) if a.dtype == BOOL else ew.bitwise_not(a)


bitwise_not = bitwise_invert = invert


def bitwise_count(x: Any, /) -> Array:
    """The number of set bits of |x|, as uint8."""
    a = as_array(x, "bitwise_count")
    a = ew.convert(a, dtypes.uint8) if a.dtype == BOOL else ew.absolute(a) if a.dtype.kind == "i" else a
    return ew.convert(ew.popcount(a), dtypes.uint8)
