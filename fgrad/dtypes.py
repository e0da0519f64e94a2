"""Element types and promotion.

NumPy's rules with three stated differences, all for the sake of training in float32: Python floats make float32
arrays; an integer (or bool) array with a floating one takes the floating type; bfloat16 with float16 gives float32.
Python scalars are weak (NEP 50): they take the dtype of the array they meet.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from fgrad.errors import FgradTypeError, message

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float16, float32, float64 = np.dtype("float16"), np.dtype("float32"), np.dtype("float64")
int8, int16, int32, int64 = (np.dtype(f"int{b}") for b in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (np.dtype(f"uint{b}") for b in (8, 16, 32, 64))
bool_ = np.dtype("bool")
complex64, complex128 = np.dtype("complex64"), np.dtype("complex128")

default_float, default_int = float32, int64
FLOATS: frozenset[np.dtype] = frozenset({bfloat16, float16, float32, float64})
COMPLEX: frozenset[np.dtype] = frozenset({complex64, complex128})
INTS: frozenset[np.dtype] = frozenset({int8, int16, int32, int64, uint8, uint16, uint32, uint64})
ALL: frozenset[np.dtype] = FLOATS | COMPLEX | INTS | {bool_}


def is_float(dtype: np.dtype) -> bool:
    return dtype in FLOATS


def is_complex(dtype: np.dtype) -> bool:
    return dtype in COMPLEX


def is_inexact(dtype: np.dtype) -> bool:
    """Differentiable: floating or complex."""
    return dtype in FLOATS or dtype in COMPLEX


def is_integer(dtype: np.dtype) -> bool:
    return dtype in INTS


def canonical(dtype: Any) -> np.dtype:
    """`np.dtype` of anything that names one; `float` and `int` mean the defaults."""
    if dtype is float:
        return default_float
    if dtype is int:
        return default_int
    if dtype is complex:
        return complex64
    if isinstance(dtype, str) and dtype == "bfloat16":
        return bfloat16
    try:
        result = np.dtype(dtype)
    except TypeError:
        result = None
    if result not in ALL:
        names = "bool, (u)int8-64, float16, bfloat16, float32, float64, complex64 or complex128"
        raise FgradTypeError(message("dtype", f"{dtype!r} is not a supported dtype", f"use {names}"))
    return result


def of_scalar(value: Any) -> np.dtype:
    """The dtype that a bare Python scalar gets as an array."""
    if isinstance(value, bool):
        return bool_
    if isinstance(value, int):
        return default_int if -(2**63) <= value < 2**63 else uint64
    if isinstance(value, float):
        return default_float
    if isinstance(value, complex):
        return complex64
    raise TypeError(f"not a Python scalar: {type(value).__name__}")


@cache
def promote(a: np.dtype, b: np.dtype) -> np.dtype:
    """The dtype of an operation on arrays of dtypes `a` and `b`."""
    if a == b:
        return a
    for x, y in ((a, b), (b, a)):
        if x in FLOATS and (y in INTS or y == bool_):
            return x
        if x in COMPLEX and (y in INTS or y == bool_):
            return x
        if x == bfloat16 and y in FLOATS:
            return float32 if y == float16 else y
        if x == bfloat16 and y in COMPLEX:
            return y
    return np.promote_types(a, b)


def weak_promote(dtype: np.dtype, scalar: Any) -> np.dtype:
    """The dtype of an operation between an array of `dtype` and a Python scalar."""
    if isinstance(scalar, bool):
        return dtype
    if isinstance(scalar, int):
        return default_int if dtype == bool_ else dtype
    if isinstance(scalar, float):
        return dtype if is_inexact(dtype) else default_float
    if isinstance(scalar, complex):
        return dtype if dtype in COMPLEX else complex128 if dtype == float64 else complex64
    raise TypeError(f"not a Python scalar: {type(scalar).__name__}")


def to_inexact(dtype: np.dtype) -> np.dtype:
    """What `sin`, `/` and `mean` compute in: inexact types stay, the others become the default float."""
    return dtype if is_inexact(dtype) else default_float


@cache
def real_of(dtype: np.dtype) -> np.dtype:
    return float32 if dtype == complex64 else float64 if dtype == complex128 else dtype
