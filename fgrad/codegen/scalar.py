"""The scalar operations of generated code: from an operation's name and dtypes to LLVM instructions.

`emit(builder, "add", [a, b], [float32, float32], float32)` prints ``fadd contract nsz``. All code is inline and without
branches, and works for vectors as for scalars (`fmod`, `remainder` and `floordiv` of floats alone call C's fmod).

Values in registers have the *register type* of their dtype: bool is ``i1``; float16 and bfloat16 are computed in ``float``, and
each result is rounded to its dtype, so that a fused kernel agrees with NumPy's array-by-array evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import llvmlite.ir as ir
import numpy as np

from fgrad import dtypes
from fgrad.codegen import mathlib
from fgrad.codegen.mathbase import V, copysign, intrinsic, like, rint, splat, sqrt, where
from fgrad.codegen.scalar_cast import (
    cast,
    constant,
    from_memory,
    kind,
    llvm_type,
    load,
    memory_type,
    round_to,
    store,
    to_memory,
)
from fgrad.codegen.scalar_int import FLOORED, int_pow, shift

__all__ = [
    "FAST",
    "constant",
    "emit",
    "from_memory",
    "llvm_type",
    "load",
    "memory_type",
    "store",
    "supports",
    "to_memory",
]

# Flags of plain additions, subtractions and multiplications. Never nnan or ninf: NaN and infinity are values.
FAST = ("contract", "nsz")

_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_ROUNDING = ("floor", "ceil", "round", "trunc")

# name -> (number of arguments, kinds of dtype: b bool, i signed, u unsigned, f float)
_TABLE: dict[str, tuple[int, str]] = {
    **dict.fromkeys((*mathlib.UNARY, "rsqrt", "sqrt", "reciprocal"), (1, "f")),
    **dict.fromkeys(("isnan", "isinf", "isfinite", "signbit"), (1, "f")),
    **dict.fromkeys(("neg", "abs", "sign", "square", *_ROUNDING), (1, "iuf")),
    **dict.fromkeys(("popcount", "clz"), (1, "iu")),
    "bitwise_not": (1, "iub"),
    "logical_not": (1, "b"),
    **dict.fromkeys(mathlib.BINARY, (2, "f")),
    **dict.fromkeys(("copysign", "nextafter", "div"), (2, "f")),
    "pow": (2, "iuf"),
    **dict.fromkeys(("add", "mul", "maximum", "minimum", "fmax", "fmin"), (2, "biuf")),
    **dict.fromkeys(("sub", "floordiv", "remainder", "fmod"), (2, "iuf")),
    **dict.fromkeys(_COMPARE, (2, "biuf")),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor"), (2, "biu")),
    **dict.fromkeys(("shift_left", "shift_right_arithmetic", "shift_right_logical"), (2, "iu")),
    "select": (3, "biuf"),
    "cast": (1, "biuf"),
    "bitcast": (1, "biuf"),
}
_TO_BOOL = frozenset({*_COMPARE, "isnan", "isinf", "isfinite", "signbit", "logical_not"})
# Results that are one of the arguments, or integers, or exact: nothing to round for float16 and bfloat16.
_EXACT = frozenset(
    {"neg", "abs", "sign", *_ROUNDING, "maximum", "minimum", "fmax", "fmin", "copysign", "select"}
)


def supports(op: str, in_dtypes: Sequence[np.dtype], out_dtype: np.dtype) -> bool:
    """Whether `emit` has code for `op` from `in_dtypes` to `out_dtype`. Complex numbers, for one, are left to NumPy."""
    entry = _TABLE.get(op)
    dtypes_ = [np.dtype(d) for d in in_dtypes]
    out = np.dtype(out_dtype)
    if entry is None or len(dtypes_) != entry[0] or kind(out) is None:
        return False
    kinds = [kind(d) for d in dtypes_]
    if any(k is None for k in kinds):
        return False
    if op in ("cast", "bitcast"):
        return op == "cast" or dtypes_[0].itemsize == out.itemsize
    if op == "select":
        return kinds[0] == "b" and dtypes_[1] == dtypes_[2] == out
    if op == "nextafter" and dtypes_[0].itemsize < 4:
        return False
    same = all(d == dtypes_[0] for d in dtypes_)
    return same and kinds[0] in entry[1] and (out == dtypes.bool_ if op in _TO_BOOL else out == dtypes_[0])  # type: ignore[operator]


def emit(
    builder: ir.IRBuilder,
    op: str,
    args: Sequence[ir.Value],
    in_dtypes: Sequence[np.dtype],
    out_dtype: np.dtype,
) -> ir.Value:
    """The value of `op` on `args`, register values of `in_dtypes`, as a register value of `out_dtype`.

    Arguments may be scalars or LLVM vectors of one length. Raises NotImplementedError where `supports` is False.
    """
    if not supports(op, in_dtypes, out_dtype):
        names = ", ".join(str(np.dtype(d)) for d in in_dtypes)
        raise NotImplementedError(
            f"scalar.emit: no code for {op}({names}) -> {np.dtype(out_dtype)}; let NumPy run this operation"
        )
    dtype, out = np.dtype(in_dtypes[0]), np.dtype(out_dtype)
    if op == "select":
        return builder.select(*args)
    if op == "cast":
        return cast(builder, args[0], dtype, out)
    if op == "bitcast":
        raw = to_memory(builder, args[0], dtype)
        return from_memory(builder, builder.bitcast(raw, like(raw.type, memory_type(out))), out)
    values = [V(builder, a) for a in args]
    if op in _COMPARE:
        return _compare(op, dtype, *values).v
    if kind(dtype) == "f":
        result = _float(op, dtype, values)
        return result.v if op in _TO_BOOL or op in _EXACT else round_to(builder, result.v, out)
    return _integer(op, dtype, values).v


def _compare(op: str, dtype: np.dtype, a: V, b: V) -> V:
    if kind(dtype) in "bu":  # type: ignore[operator]
        return V(a.b, a.b.icmp_unsigned(_COMPARE[op], a.v, b.v))
    return a._compare(_COMPARE[op], b)


# ------------------------------------------------------------------------------------------------ floats


def _float(op: str, dtype: np.dtype, args: list[V]) -> V:
    if op in mathlib.UNARY:
        return mathlib.UNARY[op](args[0])
    if op in mathlib.BINARY:
        return mathlib.BINARY[op](args[0], args[1])
    if op in ("add", "sub", "mul"):
        a, b = args
        return V(a.b, getattr(a.b, "f" + op)(a.v, b.v, flags=FAST))
    if op == "rsqrt":
        # NumPy rounds the root too.
        root = V(args[0].b, round_to(args[0].b, sqrt(args[0]).v, dtype))
        return 1.0 / root
    return _FLOAT[op](*args)


def _sign(x: V) -> V:
    # The last line keeps NaN and gives +0 for -0, as NumPy does.
    return where(x > 0.0, 1.0, where(x < 0.0, -1.0, where(x.isnan(), x, 0.0)))


def _not_nan(x: V) -> bool:
    return isinstance(x.v, ir.Constant) and isinstance(x.v.constant, float) and x.v.constant == x.v.constant


def _extreme(op: str) -> Callable[[V, V], V]:
    """maximum (">") or minimum ("<"); NaN if either is."""

    def extreme(a: V, b: V) -> V:
        if _not_nan(a):
            # One maxps: a false comparison gives b, and that may be NaN. relu(x) is maximum(x, 0).
            return where(a._compare(op, b), a, b)
        if _not_nan(b):
            return where(b._compare(op, a), b, a)
        return where(a.isnan(), a, where(a._compare(op, b), a, b))

    return extreme


def _fextreme(op: str) -> Callable[[V, V], V]:
    """fmax or fmin: the other one if either is NaN."""
    return lambda a, b: where(b.isnan(), a, where(a._compare(op, b), a, b))


def _frem(a: V, b: V) -> V:
    return V(a.b, a.b.frem(a.v, b.v))


def _remainder(a: V, b: V) -> V:
    r = _frem(a, b)
    moved = where(r.ne(0.0) & ((r < 0.0) ^ (b < 0.0)), r + b, r)
    return where(r.eq(0.0), copysign(r, b), moved)


def _floordiv(a: V, b: V) -> V:
    """NumPy's `npy_floor_divide`: from the remainder, so that floordiv(a, b)*b + remainder(a, b) is a."""
    r = _frem(a, b)
    q = (a - r) / b
    q = where(r.ne(0.0) & ((r < 0.0) ^ (b < 0.0)), q - 1.0, q)
    down = q.call("floor")
    down = where(q - down > 0.5, down + 1.0, down)
    plain = a / b
    return where(b.eq(0.0), plain, where(q.eq(0.0), copysign(q, plain), down))


def _nextafter(x: V, y: V) -> V:
    """One step in the order of bit patterns (Zimmermann and others: sign and magnitude, like the format)."""
    bits = x.bits()
    away = (x < y) ^ (bits < 0)
    stepped = where(away, bits + 1, bits - 1).as_float()
    smallest = copysign(bits.const(1).as_float(), y)
    result = where(x.eq(y), y, where(x.eq(0.0), smallest, stepped))
    return where(x.isnan() | y.isnan(), x + y, result)


_FLOAT: dict[str, Callable[..., V]] = {
    "neg": lambda x: -x,
    "abs": abs,
    "sign": _sign,
    "floor": lambda x: x.call("floor"),
    "ceil": lambda x: x.call("ceil"),
    "trunc": lambda x: x.call("trunc"),
    "round": rint,
    "sqrt": sqrt,
    "reciprocal": lambda x: 1.0 / x,
    "square": lambda x: V(x.b, x.b.fmul(x.v, x.v, flags=FAST)),
    "isnan": lambda x: x.isnan(),
    "isinf": lambda x: abs(x).eq(float("inf")),
    "isfinite": lambda x: abs(x) < float("inf"),
    "signbit": lambda x: x.bits() < 0,
    "div": lambda a, b: a / b,
    "copysign": copysign,
    "nextafter": _nextafter,
    "maximum": _extreme(">"),
    "minimum": _extreme("<"),
    "fmax": _fextreme(">"),
    "fmin": _fextreme("<"),
    "fmod": _frem,
    "remainder": _remainder,
    "floordiv": _floordiv,
}

# ------------------------------------------------------------------------------------------------ integers and bool

_LOGICAL = {"add": "or_", "mul": "and_", "maximum": "or_", "minimum": "and_", "fmax": "or_", "fmin": "and_"}


def _integer(op: str, dtype: np.dtype, args: list[V]) -> V:
    a = args[0]
    b, signed = a.b, kind(dtype) == "i"
    if op in _ROUNDING:
        return a
    if kind(dtype) == "b" and op in _LOGICAL:
        return V(b, getattr(b, _LOGICAL[op])(a.v, args[1].v))
    if op in ("add", "sub", "mul"):
        return V(b, getattr(b, op)(a.v, args[1].v))
    if op in ("maximum", "fmax", "minimum", "fmin"):
        compare = b.icmp_signed if signed else b.icmp_unsigned
        return V(b, b.select(compare(">" if "max" in op else "<", a.v, args[1].v), a.v, args[1].v))
    if op.startswith("bitwise_") and op != "bitwise_not":
        return V(b, getattr(b, {"and": "and_", "or": "or_", "xor": "xor"}[op[8:]])(a.v, args[1].v))
    if op in ("bitwise_not", "logical_not"):
        return ~a
    if op in FLOORED:
        return FLOORED[op](a, args[1], signed)
    if op.startswith("shift_"):
        return shift(op, a, args[1], signed)
    if op == "pow":
        return int_pow(a, args[1], signed)
    if op == "neg":
        return -a
    if op == "abs":
        return where(a < 0, -a, a) if signed else a
    if op == "sign":
        one = where(a.ne(0), 1, a.const(0))
        return where(a < 0, -1, one) if signed else one
    if op == "square":
        return a * a
    if op == "popcount":
        return a.call("ctpop")
    if op == "clz":
        return V(b, intrinsic(b, "ctlz", a.type, [a.v, splat(0, ir.IntType(1))]))
    raise AssertionError(op)
