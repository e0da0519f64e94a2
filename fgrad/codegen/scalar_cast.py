"""How each dtype looks in memory and in registers of generated code, and conversion between dtypes."""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np

from fgrad import dtypes
from fgrad.codegen import target
from fgrad.codegen.mathbase import V, element_type, intrinsic, like, splat, where

_FLOAT, _DOUBLE, _HALF, _I1, _I8, _I16, _I32 = (
    ir.FloatType(),
    ir.DoubleType(),
    ir.HalfType(),
    ir.IntType(1),
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
)


def kind(dtype: np.dtype) -> str | None:
    """b, i, u or f; None for what generated code does not compute with (complex)."""
    if dtypes.is_float(dtype):
        return "f"
    return dtype.kind if dtype.kind in "biu" else None


def llvm_type(dtype: np.dtype) -> ir.Type:
    """The type of a value of `dtype` in a register: i1, iN, float (also float16 and bfloat16) or double."""
    dtype = np.dtype(dtype)
    k = kind(dtype)
    if k is None:
        raise NotImplementedError(
            f"scalar.llvm_type: generated code has no {dtype}; let NumPy run this operation"
        )
    if k == "f":
        return _DOUBLE if dtype.itemsize == 8 else _FLOAT
    return _I1 if k == "b" else ir.IntType(8 * dtype.itemsize)


def memory_type(dtype: np.dtype) -> ir.Type:
    """The type of an element of `dtype` in memory: bool is i8, float16 is half, bfloat16 is i16."""
    dtype = np.dtype(dtype)
    if dtype == dtypes.bool_:
        return _I8
    if dtype == dtypes.bfloat16:
        return _I16
    return _HALF if dtype == dtypes.float16 else llvm_type(dtype)


def _native_half() -> bool:
    """Whether the machine converts float16. Where it does not, LLVM would call C functions that may not be there."""
    return target.host().half


def _half_to_float(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    if _native_half():
        return builder.fpext(raw, like(raw.type, _FLOAT))
    short = builder.bitcast(raw, like(raw.type, _I16))
    bits = V(builder, builder.zext(short, like(raw.type, _I32)))
    magnitude, sign = bits & 0x7FFF, (bits & 0x8000) << 16
    # The exponent moves to its new place; multiplying by 2**112 corrects its bias, for subnormal numbers too.
    scaled = ((magnitude << 13).as_float() * 2.0**112).bits()
    return (where(magnitude >= 0x7C00, scaled | 0x7F800000, scaled) | sign).as_float().v


def _float_to_half(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    half = like(value.type, _HALF)
    if _native_half():
        # Without the fence LLVM may see a double behind the float and convert that at once, by a C function that may not be there.
        return builder.fptrunc(intrinsic(builder, "arithmetic.fence", value.type, [value]), half)
    bits = V(builder, value).bits()
    magnitude, sign = bits & 0x7FFFFFFF, bits.lshr(16) & 0x8000
    normal = (magnitude + ((magnitude.lshr(13) & 1) + (0xFFF - ((127 - 15) << 23)))).lshr(13)
    # Adding 1/2 lines the bits of a subnormal result up with the end of the word, and rounds them.
    small = (magnitude.as_float() + 0.5).bits() - 0x3F000000
    result = where(magnitude < 0x38800000, small, where(magnitude >= 0x477FF000, 0x7C00, normal))
    result = where(magnitude > 0x7F800000, 0x7E00, result) | sign
    return builder.bitcast(builder.trunc(result.v, like(value.type, _I16)), half)


def from_memory(builder: ir.IRBuilder, raw: ir.Value, dtype: np.dtype) -> ir.Value:
    """A value (or vector) as it was loaded, in register form."""
    dtype = np.dtype(dtype)
    if dtype == dtypes.bool_:
        return builder.icmp_unsigned("!=", raw, splat(0, raw.type))
    if dtype == dtypes.bfloat16:
        wide = builder.zext(raw, like(raw.type, _I32))
        return builder.bitcast(builder.shl(wide, splat(16, wide.type)), like(raw.type, _FLOAT))
    return _half_to_float(builder, raw) if dtype == dtypes.float16 else raw


def to_memory(builder: ir.IRBuilder, value: ir.Value, dtype: np.dtype) -> ir.Value:
    """A register value (or vector) as it is stored; bfloat16 is rounded to nearest even."""
    dtype = np.dtype(dtype)
    if dtype == dtypes.bool_:
        return builder.zext(value, like(value.type, _I8))
    if dtype == dtypes.bfloat16:
        high = _bfloat16_bits(builder, value).lshr(16)
        return builder.trunc(high.v, like(value.type, _I16))
    return _float_to_half(builder, value) if dtype == dtypes.float16 else value


def load(builder: ir.IRBuilder, ptr: ir.Value, dtype: np.dtype) -> ir.Value:
    """The element at `ptr` (typed to the memory type, or a vector of it) in register form."""
    # A vector in an array has its elements' alignment only.
    return from_memory(builder, builder.load(ptr, align=np.dtype(dtype).itemsize), dtype)


def store(builder: ir.IRBuilder, ptr: ir.Value, value: ir.Value, dtype: np.dtype) -> None:
    """Store a register value at `ptr`, typed to the memory type."""
    builder.store(to_memory(builder, value, dtype), ptr, align=np.dtype(dtype).itemsize)


def constant(value: Any, dtype: np.dtype) -> ir.Constant:
    """The register constant `value`, exactly as NumPy would hold it in `dtype`."""
    dtype = np.dtype(dtype)
    if kind(dtype) == "f":
        with np.errstate(over="ignore"):
            return ir.Constant(llvm_type(dtype), float(np.asarray(value).astype(dtype)))
    return splat(bool(value) if dtype == dtypes.bool_ else int(value), llvm_type(dtype))


def _bfloat16_bits(builder: ir.IRBuilder, value: ir.Value) -> V:
    """The bits of a float rounded to the upper 16; NaN stays NaN (quiet)."""
    x = V(builder, value)
    bits = x.bits()
    rounded = bits + ((bits.lshr(16) & 1) + 0x7FFF)
    return where(x.isnan(), bits | 0x400000, rounded) & 0xFFFF0000


def round_to(builder: ir.IRBuilder, value: ir.Value, dtype: np.dtype) -> ir.Value:
    """A computed register value rounded to `dtype`: nothing to do but for float16 and bfloat16."""
    dtype = np.dtype(dtype)
    if dtype == dtypes.float16:
        return _half_to_float(builder, _float_to_half(builder, value))
    return _bfloat16_bits(builder, value).as_float().v if dtype == dtypes.bfloat16 else value


def _round_to_odd(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """double to float so that a second rounding, to half, is as good as one: towards zero, last bit set if inexact."""
    x = V(builder, value)
    near = x.to_f32()
    back = near.to_f64()
    bits = near.bits()
    # The comparisons must come out false for NaN; `ne` would not.
    inexact = (back < x) | (back > x)
    one, zero = bits.const(1), bits.const(0)
    bits = bits - where(abs(back) > abs(x), one, zero)
    return (bits | where(inexact, one, zero)).as_float().v


def cast(builder: ir.IRBuilder, value: ir.Value, source: np.dtype, goal: np.dtype) -> ir.Value:
    """`value` converted as ``astype`` does. Floats out of an integer's range saturate and NaN gives 0: never undefined."""
    source, goal = np.dtype(source), np.dtype(goal)
    if source == goal:
        return value
    have, want = kind(source), kind(goal)
    register = like(value.type, llvm_type(goal))
    if want == "b":
        if have == "f":
            return builder.fcmp_unordered("!=", value, splat(0.0, value.type))
        return builder.icmp_unsigned("!=", value, splat(0, value.type))
    if have == "f" and want == "f":
        if source.itemsize == 8:
            value = (
                _round_to_odd(builder, value)
                if goal == dtypes.float16
                else builder.fptrunc(value, like(value.type, _FLOAT))
            )
        elif goal.itemsize == 8:
            value = builder.fpext(value, register)
        return round_to(builder, value, goal)
    if have == "f":
        return intrinsic(
            builder, "fptosi.sat" if want == "i" else "fptoui.sat", register, [value], [register, value.type]
        )
    if want == "f":
        convert = builder.sitofp if have == "i" else builder.uitofp
        return round_to(builder, convert(value, register), goal)
    width, new_width = element_type(value.type).width, element_type(register).width
    if width == new_width:
        return value
    if new_width < width:
        return builder.trunc(value, register)
    return builder.sext(value, register) if have == "i" else builder.zext(value, register)
