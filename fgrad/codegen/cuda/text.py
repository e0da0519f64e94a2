"""Scalar expressions and serial statements as `numba.cuda` text, for every element type.

    y[i] = exp(x[i]) * float32(0.5)                      float32
    y[i] = to_half(round_half(from_half(x[i]) * ...))     float16: stored as its bits, computed in float32, rounded by operation
    k = uint32(a + b)                                    narrow integers: Numba widens sums, the text narrows them again
    j = quotient(i, 10)                                  a division of an index that is known to fit 32 bits

The kernels' loops over blocks and threads are written by `nests.py` and `product.py`, which build on this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.codegen import loops
from fgrad.codegen.loops import Buffer, Expr, Kernel, Op
from fgrad.codegen.python_source import Printer, literal

Scope = dict[int, tuple[str, Expr]]

INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "bitwise_and": "&",
    "bitwise_or": "|",
    "bitwise_xor": "^",
}
_COMPARE = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
_ON_BOOL = {"add": "|", "maximum": "|", "fmax": "|", "mul": "&", "minimum": "&", "fmin": "&"}
# What is exact, or one of its arguments: nothing to round for half precision.
_EXACT = frozenset(
    [
        "neg",
        "abs",
        "sign",
        "floor",
        "ceil",
        "round",
        "trunc",
        "maximum",
        "minimum",
        "fmax",
        "fmin",
        "copysign",
        "select",
        "isnan",
        "isinf",
        "isfinite",
        "signbit",
    ]
)
# Computed in float64, whatever the argument: rare, and what the adapter has is written for it.
_IN_DOUBLE = frozenset({"digamma"})
_WRAPPING = frozenset({"add", "sub", "mul", "neg", "square"})
_QUOTIENTS = frozenset({"reciprocal", "rsqrt", "sigmoid"})
_BY_KIND = frozenset({"pow", "floordiv", "remainder"})  # float_pow, int_pow
_ROUND = {dtypes.float16: "round_half", dtypes.bfloat16: "round_bfloat"}
_FROM = {dtypes.float16: "from_half", dtypes.bfloat16: "from_bfloat"}
_TO = {dtypes.float16: "to_half", dtypes.bfloat16: "to_bfloat"}


def type_name(dtype: np.dtype) -> str:
    """The name of the type that values of `dtype` have in registers."""
    if dtype == dtypes.bool_:
        return "boolean"
    return "float32" if dtype in _ROUND else dtype.name


def const_text(value: Any, dtype: np.dtype) -> str:
    """`float32(0.5)`, `-inf` as `float32(-inf)`, `True`."""
    return literal(value, dtypes.float32 if dtype in _ROUND else dtype)


def load_text(buffer: str, index: str, dtype: np.dtype) -> str:
    """The element as a value in a register."""
    return from_stored(f"{buffer}[{index}]", dtype)


def from_stored(text: str, dtype: np.dtype) -> str:
    """What is in memory (see `launch.stored_as`) as a value in a register."""
    if dtype == dtypes.bool_:
        return f"({text} != 0)"
    return f"{_FROM[dtype]}({text})" if dtype in _FROM else text


def to_stored(value: str, dtype: np.dtype) -> str:
    """A value in a register as it is put into memory."""
    if dtype == dtypes.bool_:
        return f"uint8({value})"
    return f"{_TO[dtype]}({value})" if dtype in _TO else value


def fold_text(op: str, old: str, value: str, dtype: np.dtype) -> str:
    """`op(old, value)` for the operations of `Update` and `Store`."""
    return op_text(op, [old, value], dtype, dtype)


def op_text(name: str, a: list[str], kind: np.dtype, out: np.dtype) -> str:
    """`name(*a)`, of arguments of dtype `kind`, as a value of dtype `out`."""
    if name == "select":
        return f"({a[1]} if {a[0]} else {a[2]})"
    if name == "cast":
        return _cast(a[0], kind, out)
    if name == "bitcast":
        return _bitcast(a[0], kind, out)
    if kind == dtypes.bool_ and name in _ON_BOOL:
        return f"({a[0]} {_ON_BOOL[name]} {a[1]})"
    if name in ("logical_not", "bitwise_not") and kind == dtypes.bool_:
        return f"(not {a[0]})"
    if name in _COMPARE:
        return f"({a[0]} {INFIX[name]} {a[1]})"
    if name in ("isnan", "isinf", "isfinite", "signbit"):
        return f"{name}({a[0]})"
    if kind == dtypes.int64 and name in _WRAPPING:
        # Signed, the compiler may take it that nothing overflows.
        terms = [f"uint64({x})" for x in a]
        text = {
            "neg": f"(uint64(0) - {terms[0]})",
            "square": f"({terms[0]} * {terms[0]})",
        }.get(name) or f"({terms[0]} {INFIX[name]} {terms[1]})"
        return f"int64{text}"
    if name in INFIX:
        text = f"({a[0]} {INFIX[name]} {a[1]})"
    elif name == "neg":
        text = f"(-{a[0]})"
    elif name == "bitwise_not":
        text = f"(~{a[0]})"
    elif name == "square":
        text = f"({a[0]} * {a[0]})"
    elif name in _QUOTIENTS:
        one = f"{type_name(kind)}(1)"
        root = f"sqrt({a[0]})"
        if kind in _ROUND:
            root = f"{_ROUND[kind]}({root})"  # NumPy rounds the root too
        below = {"reciprocal": a[0], "rsqrt": root, "sigmoid": f"({one} + exp(-{a[0]}))"}[name]
        text = f"({one} / {below})"
    elif name in _BY_KIND:
        text = f"{'float' if dtypes.is_float(kind) else 'int'}_{name}({a[0]}, {a[1]})"
    elif name == "fmod" and dtypes.is_integer(kind):
        text = f"int_fmod({a[0]}, {a[1]})"
    elif name in ("floor", "ceil", "round", "trunc") and not dtypes.is_float(kind):
        text = a[0]
    elif name in _IN_DOUBLE:
        text = f"{type_name(out)}({name}(float64({a[0]})))"
    else:
        text = f"{name}({', '.join(a)})"
    if kind in _ROUND:
        return text if name in _EXACT else f"{_ROUND[out]}({text})"
    if dtypes.is_integer(out) and out != dtypes.int64:
        return f"{out.name}({text})"
    return text


def _cast(x: str, kind: np.dtype, out: np.dtype) -> str:
    if kind == out:
        return x
    if out == dtypes.bool_:
        return f"({x} != 0)"
    if out in _ROUND:
        wide = x if kind == dtypes.float32 or kind in _ROUND else f"float32({x})"
        return f"{_ROUND[out]}({wide})"
    if dtypes.is_float(kind) and dtypes.is_integer(out):
        return f"to_{out.name}({x})"
    return x if kind in _ROUND and out == dtypes.float32 else f"{out.name}({x})"


def _bitcast(x: str, kind: np.dtype, out: np.dtype) -> str:
    bits = f"{_TO[kind]}({x})" if kind in _TO else x
    if kind == dtypes.bool_:
        bits = f"uint8({x})"
    if out in _FROM:
        return f"{_FROM[out]}({bits if kind in _TO or kind == dtypes.uint16 else f'uint16({bits})'})"
    if out == dtypes.bool_:
        return f"({bits} != 0)"
    source = dtypes.uint16 if kind in _TO else dtypes.uint8 if kind == dtypes.bool_ else kind
    return bits if source == out else f"bitcast({bits}, {out.name})"


def _fits_32_bits(e: Expr) -> bool:
    bounds = loops.index_range(e)
    return bounds is not None and bounds[0] >= 0 and bounds[1] < 2**31


class CudaText(Printer):
    """Prints the statements that one thread executes. Statements that threads share are printed by subclasses."""

    def __init__(self, kernel: Kernel):
        super().__init__(kernel)
        self.taken |= {"i", "tid", "lane", "row", "part"}

    def op(self, e: Op, args: list[str]) -> str:
        if e.name in ("floordiv", "remainder") and e.dtype == dtypes.int64:
            divisor = e.args[1]
            if isinstance(divisor, loops.Const) and divisor.value > 0 and _fits_32_bits(e.args[0]):
                name = "quotient" if e.name == "floordiv" else "modulo"
                return f"{name}({args[0]}, {int(divisor.value)})"
        kind = e.args[1].dtype if e.name == "select" else e.args[0].dtype
        return op_text(e.name, args, kind, e.dtype)

    def fold(self, op: str, old: str, value: str, dtype: np.dtype) -> str:
        return fold_text(op, old, value, dtype)

    def const(self, value: Any, dtype: np.dtype) -> str:
        return str(int(value)) if dtype == dtypes.int64 else const_text(value, dtype)

    def load(self, buffer: Buffer, index: str) -> str:
        return load_text(buffer.name, index, buffer.dtype)

    def stored(self, value: str, dtype: np.dtype) -> str:
        return to_stored(value, dtype)
