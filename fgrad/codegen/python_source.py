"""Kernels as plain Python: the readable form, and a slow executable one that tests compare the others with.

    def fused_div(y, x):
        # float32[64,10] = exp float32[64,10]  # model.py:12
        for i in range(64):  # parallel
            m = float32(-inf)
            for j in range(10):  # vector
                m = maximum(m, x[10*i + j])

`compile_python(kernel)` gives a function over flat NumPy arrays, one for each buffer of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.codegen import loops
from fgrad.codegen.loops import (
    Acc,
    Affine,
    Buffer,
    Check,
    Const,
    Expr,
    Init,
    Kernel,
    Load,
    Loop,
    LoopVar,
    Op,
    Stmt,
    Store,
    Update,
)

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
}
DEEPEST = 12  # nested calls on one line


def literal(value: Any, dtype: np.dtype) -> str:
    """`float32(0.5)`; inf and nan by name."""
    if dtype == dtypes.bool_:
        return str(bool(value))
    if dtypes.is_integer(dtype):
        return f"{dtype.name}({int(value)})"
    return f"{dtype.name}({float(value)!r})"


def index_text(e: Expr, term: Callable[[Expr], str]) -> str:
    const, terms = loops.affine_terms(e)
    parts = [term(t) if c == 1 else f"{c}*{term(t)}" for t, c in terms]
    text = " + ".join([*parts, *([str(const)] if const or not parts else [])])
    return text.replace("+ -", "- ")


class Printer:
    """Statements to lines. Values used more than once, and deep ones, get names; a name lives in the scope that made it."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.lines: list[str] = []
        self.references: dict[int, int] = {}
        self.temporaries = 0
        self.names: dict[int, str] = {}
        self.taken = {b.name for b in kernel.buffers}
        seen: set[int] = set()
        stack = [e for s in loops.statements(kernel.body) for e in loops.expressions(s)]
        for e in stack:
            self.references[id(e)] = self.references.get(id(e), 0) + 1
        while stack:
            e = stack.pop()
            if id(e) in seen:
                continue
            seen.add(id(e))
            for c in loops.children(e):
                self.references[id(c)] = self.references.get(id(c), 0) + 1
                stack.append(c)

    # What a target overrides.

    def op(self, e: Op, args: list[str]) -> str:
        if e.name == "cast":
            return f"cast({args[0]}, {e.dtype.name})"
        if e.name == "bitcast":
            return f"bitcast({args[0]}, {e.dtype.name})"
        infix = _INFIX.get(e.name)
        if infix and not (e.args[0].dtype == dtypes.bool_ and infix in "+-*"):
            return f"({args[0]} {infix} {args[1]})"
        return f"{e.name}({', '.join(args)})"

    def fold(self, op: str, old: str, value: str, dtype: np.dtype) -> str:
        infix = _INFIX.get(op)
        return f"{old} {infix} {value}" if infix and dtype != dtypes.bool_ else f"{op}({old}, {value})"

    def const(self, value: Any, dtype: np.dtype) -> str:
        return literal(value, dtype)

    def load(self, buffer: Buffer, index: str) -> str:
        return f"{buffer.name}[{index}]"

    def stored(self, value: str, dtype: np.dtype) -> str:
        """A value as it is put into memory."""
        return value

    def loop_head(self, loop: Loop, depth: int) -> str:
        return f"for {self.var(loop.var)} in range({loop.var.extent}):" + (
            f"  # {loop.kind}" if loop.kind != "seq" else ""
        )

    def check(self, stmt: Check, ok: str, pad: str) -> list[str]:
        status = stmt.status.name
        return [f"{pad}if not {ok} and {status}[0] == 0:", f"{pad}    {status}[0] = {stmt.code}"]

    # Names.

    def fresh(self, base: str) -> str:
        name, n = base, 0
        while name in self.taken:
            n += 1
            name = f"{base}{n}"
        self.taken.add(name)
        return name

    def var(self, v: LoopVar | Acc) -> str:
        name = self.names.get(id(v))
        if name is None:
            name = self.names[id(v)] = self.fresh(v.name if v.name.isidentifier() else "v")
        return name

    # Expressions.

    def expr(self, e: Expr, scope: dict[int, tuple[str, Expr]], pad: str) -> tuple[str, int]:
        """Text and nesting depth of `e`."""
        if not isinstance(e, (LoopVar, Acc, Const)) and id(e) not in scope:
            self._name_deep(e, scope, pad)
        return self._text(e, scope, pad)

    def _name_deep(self, e: Expr, scope: dict[int, tuple[str, Expr]], pad: str) -> None:
        """Name what lies deep below `e`, deepest first, so that no text nests further than `DEEPEST`."""
        depth: dict[int, int] = {}
        pending = [e]
        while pending:
            node = pending[-1]
            children = [c for c in loops.children(node) if id(c) not in depth and id(c) not in scope]
            if id(node) not in depth and children:
                pending.extend(children)
                continue
            pending.pop()
            if id(node) in depth:
                continue
            depth[id(node)] = 1 + max((depth.get(id(c), 0) for c in loops.children(node)), default=0)
            if depth[id(node)] > DEEPEST and isinstance(node, Op) and node is not e:
                self.references[id(node)] = max(2, self.references.get(id(node), 0))
                self._text(node, scope, pad)
                depth[id(node)] = 0

    def _text(self, e: Expr, scope: dict[int, tuple[str, Expr]], pad: str) -> tuple[str, int]:
        if isinstance(e, (LoopVar, Acc)):
            return self.var(e), 0
        if isinstance(e, Const):
            return self.const(e.value, e.dtype), 1
        known = scope.get(id(e))
        if known is not None:
            return known[0], 0
        if isinstance(e, Affine):
            return "(" + index_text(e, lambda t: self._text(t, scope, pad)[0]) + ")", 1
        text, depth = self._compound(e, scope, pad)
        if self.references.get(id(e), 0) > 1 or depth > DEEPEST:
            self.temporaries += 1
            name = self.fresh(f"t{self.temporaries}")
            self.lines.append(f"{pad}{name} = {text}")
            scope[id(e)] = (name, e)
            return name, 0
        return text, depth

    def _compound(self, e: Expr, scope: dict[int, tuple[str, Expr]], pad: str) -> tuple[str, int]:
        if isinstance(e, Load):
            text = self.load(e.buffer, self.index(e.index, scope, pad))
            if e.mask is None:
                return text, 1
            assert e.other is not None
            mask, d = self._text(e.mask, scope, pad)
            return f"({text} if {mask} else {self._text(e.other, scope, pad)[0]})", d + 1
        assert isinstance(e, Op)
        args = [self._text(a, scope, pad) for a in e.args]
        return self.op(e, [a for a, _ in args]), 1 + max(d for _, d in args)

    def index(self, e: Expr, scope: dict[int, tuple[str, Expr]], pad: str) -> str:
        return index_text(e, lambda t: self.expr(t, scope, pad)[0])

    # Statements.

    def body(self, stmts: Sequence[Stmt], pad: str, scope: dict[int, tuple[str, Expr]], depth: int) -> None:
        for s in stmts:
            if isinstance(s, Loop):
                self._forget(scope, s.body)
                self.lines.append(pad + self.loop_head(s, depth))
                self.body(s.body, pad + "    ", dict(scope), depth + 1)
                self._forget(scope, s.body)
                continue
            if isinstance(s, Init):
                self.lines.append(f"{pad}{self.var(s.acc)} = {self.expr(s.value, scope, pad)[0]}")
            elif isinstance(s, Update):
                value, acc = self.expr(s.value, scope, pad)[0], self.var(s.acc)
                self.lines.append(
                    f"{pad}{acc} = {value if s.op == 'set' else self.fold(s.op, acc, value, s.acc.dtype)}"
                )
            elif isinstance(s, Store):
                value = self.expr(s.value, scope, pad)[0]
                index = self.index(s.index, scope, pad)
                if s.op is not None:
                    value = self.fold(s.op, self.load(s.buffer, index), value, s.buffer.dtype)
                guard = "" if s.mask is None else f"if {self.expr(s.mask, scope, pad)[0]}: "
                stored = self.stored(value, s.buffer.dtype)
                self.lines.append(f"{pad}{guard}{s.buffer.name}[{index}] = {stored}")
            elif isinstance(s, Check):
                self.lines.extend(self.check(s, self.expr(s.ok, scope, pad)[0], pad))
            self._forget(scope, [s])

    def _forget(self, scope: dict[int, tuple[str, Expr]], stmts: Sequence[Stmt]) -> None:
        """Names whose value the statements change: those that read an accumulator or buffer assigned there."""
        changed = {id(s.acc) for s in loops.statements(stmts) if isinstance(s, (Init, Update))}
        changed |= {id(s.buffer) for s in loops.statements(stmts) if isinstance(s, Store)}
        if changed:
            for key in [k for k, (_, e) in scope.items() if _depends(e, changed)]:
                del scope[key]


def _depends(e: Expr, changed: set[int]) -> bool:
    stack, seen = [e], set()
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if id(e) in changed or (isinstance(e, Load) and id(e.buffer) in changed):
            return True
        stack.extend(loops.children(e))
    return False


def python_source(kernel: Kernel) -> str:
    """The kernel as a Python function."""
    printer = Printer(kernel)
    head = [f"def {kernel.name}({', '.join(b.name for b in kernel.buffers)}):"]
    head += [f"    # {n}" for n in kernel.notes]
    printer.body(kernel.body, "    ", {}, 0)
    return "\n".join([*head, *(printer.lines or ["    pass"])]) + "\n"


# ------------------------------------------------------------------------------------------------ running it


def _bits(x: Any) -> int:
    return np.asarray(x).dtype.itemsize * 8


def _unsigned(x: Any) -> Any:
    return np.asarray(x).view(f"u{np.asarray(x).dtype.itemsize}")[()]


def _shift(op: Any, over: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Shifts by the width or more give 0 (or the sign)."""
    return lambda x, y: op(x, y) if 0 <= int(y) < _bits(x) else over(x)


def _special(name: str) -> Callable[..., Any]:
    def f(*args: Any) -> Any:
        dtype = np.asarray(args[0]).dtype
        try:
            value = getattr(math, name)(*map(float, args))
        except (ValueError, OverflowError):
            value = math.nan if name != "lgamma" else math.inf
        return dtype.type(value)

    return f


def _rsqrt(x: Any) -> Any:
    return np.reciprocal(np.sqrt(x))


def _sigmoid(x: Any) -> Any:
    return np.reciprocal(x.dtype.type(1) + np.exp(-x))


def _cast(x: Any, dtype: Any) -> Any:
    return np.asarray(x).astype(dtype)[()]


NAMESPACE: dict[str, Any] = {
    **{
        n: getattr(np, n)
        for n in [
            "exp",
            "exp2",
            "expm1",
            "log",
            "log2",
            "log10",
            "log1p",
            "sin",
            "cos",
            "tan",
            "sinh",
            "cosh",
            "tanh",
            "sqrt",
            "square",
            "cbrt",
        ]
    },
    **{
        n: getattr(np, n)
        for n in [
            "floor",
            "ceil",
            "trunc",
            "sign",
            "reciprocal",
            "isnan",
            "isinf",
            "isfinite",
            "signbit",
            "copysign",
            "hypot",
        ]
    },
    **{
        n: getattr(np, n)
        for n in [
            "nextafter",
            "maximum",
            "minimum",
            "fmax",
            "fmin",
            "logaddexp",
            "fmod",
            "remainder",
            "logical_not",
        ]
    },
    **{
        n: getattr(np, n)
        for n in "bitwise_and bitwise_or bitwise_xor add mul".replace("mul", "multiply").split()
    },
    **{f"a{n}": getattr(np, f"arc{n}") for n in ["sin", "cos", "tan", "sinh", "cosh", "tanh"]},
    **{n: _special(n) for n in ("erf", "erfc", "lgamma")},
    "mul": np.multiply,
    "sub": np.subtract,
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "round": np.rint,
    "pow": np.power,
    "atan2": np.arctan2,
    "floordiv": np.floor_divide,
    "bitwise_not": np.bitwise_not,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "rsqrt": _rsqrt,
    "sigmoid": _sigmoid,
    "shift_left": _shift(np.left_shift, lambda x: x.dtype.type(0)),
    "shift_right_arithmetic": _shift(np.right_shift, lambda x: x.dtype.type(-1 if x < 0 else 0)),
    "shift_right_logical": _shift(
        lambda x, y: np.right_shift(_unsigned(x), _unsigned(y)).view(x.dtype), lambda x: x.dtype.type(0)
    ),
    "popcount": lambda x: np.bitwise_count(_unsigned(x)).astype(x.dtype),
    "clz": lambda x: x.dtype.type(_bits(x) - int(_unsigned(x)).bit_length()),
    "select": lambda c, a, b: a if c else b,
    "cast": _cast,
    "bitcast": lambda x, dtype: np.asarray(x).view(dtype)[()],
    "inf": math.inf,
    "nan": math.nan,
    **{d.name: d.type for d in (dtypes.FLOATS | dtypes.INTS)},
    "bool": np.bool_,
}


def compile_python(kernel: Kernel) -> Callable[..., None]:
    """A function over flat NumPy arrays, bound as `kernel.buffers`. For checking; it runs at Python's speed."""
    scope = dict(NAMESPACE)
    exec(compile(python_source(kernel), f"<kernel {kernel.name}>", "exec"), scope)  # its text is all our own
    function = scope[kernel.name]

    def run(*arrays: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            function(*arrays)

    return run
