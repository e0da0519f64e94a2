"""Kernels as `numba.cuda` source: the same loop nests on a GPU.

    @cuda.jit
    def fused_div(y, x):
        shared_float32 = cuda.shared.array(128, float32)
        tid = cuda.threadIdx.x
        for i in range(cuda.blockIdx.x, 64, cuda.gridDim.x):      # parallel: one row a block
            m_part = float32(-math.inf)
            for j in range(tid, 10, 128):  m_part = maximum(m_part, x[10*i + j])     # vector: the block's threads
            ... tree over shared_float32 ...

A parallel loop with vector loops inside gives each block a row; any other independent loop is strided over the whole grid.
What is left (sums over everything, scatter) runs in one block: see `grid_size`. `compile_cuda(kernel)` needs `numba.cuda`;
with NUMBA_ENABLE_CUDASIM=1 it runs in Numba's simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.codegen import loops
from fgrad.codegen.loops import Acc, Check, Expr, Kernel, Loop, Op, Stmt, Store, Update
from fgrad.codegen.python_source import Printer, literal

THREADS = 128
Scope = dict[int, tuple[str, Expr]]

_MATH = frozenset(
    [
        "exp",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "sqrt",
        "erf",
        "erfc",
        "lgamma",
        "atan2",
        "hypot",
        "copysign",
        "isnan",
        "isinf",
        "isfinite",
    ]
)
# Infix, or helpers defined in PRELUDE.
_INFIX = {
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
    "floordiv": "//",
    "remainder": "%",
    "shift_left": "<<",
    "shift_right_arithmetic": ">>",
}

PRELUDE = """
import math
from numba import cuda, boolean, float32, float64, int8, int16, int32, int64, uint8, uint16, uint32, uint64

@cuda.jit(device=True)
def maximum(a, b):  # NaN wins
    return a if a > b or a != a else b

@cuda.jit(device=True)
def minimum(a, b):
    return a if a < b or a != a else b

@cuda.jit(device=True)
def fmax(a, b):
    return a if a > b or b != b else b

@cuda.jit(device=True)
def fmin(a, b):
    return a if a < b or b != b else b

@cuda.jit(device=True)
def sign(x):
    return x - x + (x > 0) - (x < 0) if abs(x) < math.inf else (x > 0) - (x < 0) + (x - x if x != x else 0)
"""


def has_code(op: str, dtype: np.dtype) -> bool:
    """Whether the printer knows `op` on `dtype`."""
    known = {
        "neg",
        "abs",
        "square",
        "reciprocal",
        "rsqrt",
        "sigmoid",
        "select",
        "cast",
        "logical_not",
        "pow",
        "sign",
    }
    known |= {"maximum", "minimum", "fmax", "fmin", "exp2", "bitwise_not", "shift_right_logical"}
    if dtype in (dtypes.float16, dtypes.bfloat16) or dtypes.is_complex(dtype):
        return False
    if op == "shift_right_logical" or (op in ("shift_left", "shift_right_arithmetic") and dtype.kind == "i"):
        return dtype.kind == "u"
    return op in known or op in _MATH or op in _INFIX


class CudaPrinter(Printer):
    """`cooperative` bodies are executed by all threads of a block together, the others by one thread."""

    def __init__(self, kernel: Kernel, threads: int):
        super().__init__(kernel)
        self.threads = threads
        self.shared: dict[str, None] = {}  # dtypes that a block reduction needs
        self.taken |= {"tid", "width"}

    # ------------------------------------------------------------------------------------ expressions

    def op(self, e: Op, args: list[str]) -> str:
        kind = e.args[0].dtype if e.name != "select" else e.dtype
        if not has_code(e.name, kind):
            raise NotImplementedError(
                f"cuda_source: kernel {self.kernel.name} uses {e.name} on {kind}, which has no CUDA form yet"
            )
        a, dtype = args, _type(e.dtype)
        if e.name in _INFIX:
            return f"({a[0]} {_INFIX[e.name]} {a[1]})"
        special = {
            "cast": lambda: f"{dtype}({a[0]})" if e.dtype != dtypes.bool_ else f"({a[0]} != 0)",
            "select": lambda: f"({a[1]} if {a[0]} else {a[2]})",
            "neg": lambda: f"(-{a[0]})",
            "abs": lambda: f"abs({a[0]})",
            "square": lambda: f"({a[0]} * {a[0]})",
            "reciprocal": lambda: f"({dtype}(1) / {a[0]})",
            "rsqrt": lambda: f"({dtype}(1) / math.sqrt({a[0]}))",
            "sigmoid": lambda: f"({dtype}(1) / ({dtype}(1) + math.exp(-{a[0]})))",
            "logical_not": lambda: f"(not {a[0]})",
            "bitwise_not": lambda: f"(~{a[0]})",
            "pow": lambda: f"({a[0]} ** {a[1]})",
            "exp2": lambda: f"({dtype}(2) ** {a[0]})",
            "shift_right_logical": lambda: f"({a[0]} >> {a[1]})",
        }
        if e.name in special:
            return special[e.name]()
        return f"math.{e.name}({', '.join(a)})" if e.name in _MATH else f"{e.name}({', '.join(a)})"

    def fold(self, op: str, old: str, value: str, dtype: np.dtype) -> str:
        infix = _INFIX.get(op)
        return f"{old} {infix} {value}" if infix else f"{op}({old}, {value})"

    def const(self, value: Any, dtype: np.dtype) -> str:
        return literal(value, dtype).replace("inf)", "math.inf)").replace("nan)", "math.nan)")

    def check(self, stmt: Check, ok: str, pad: str) -> list[str]:
        return [f"{pad}if not {ok}:", f"{pad}    {stmt.status.name}[0] = {stmt.code}"]

    # ------------------------------------------------------------------------------------ statements

    def top(self, pad: str) -> None:
        body = self.kernel.body
        if len(body) == 1 and isinstance(body[0], Loop) and _independent(body[0]):
            loop = body[0]
            rows = _has_vector(loop.body)
            start, step = (
                ("cuda.blockIdx.x", "cuda.gridDim.x") if rows else ("cuda.grid(1)", "cuda.gridsize(1)")
            )
            self.lines.append(
                f"{pad}for {self.var(loop.var)} in range({start}, {loop.var.extent}, {step}):  # {loop.kind}"
            )
            (self.cooperative if rows else self.serial)(loop.body, pad + "    ", {})
            return
        self.lines.append(f"{pad}if cuda.blockIdx.x == 0:")
        self.cooperative(body, pad + "    ", {})

    def serial(self, stmts: Sequence[Stmt], pad: str, scope: Scope) -> None:
        self.body(stmts, pad, scope, 0)

    def cooperative(self, stmts: Sequence[Stmt], pad: str, scope: Scope) -> None:
        for s in stmts:
            if isinstance(s, Loop):
                self._forget(scope, s.body)
                self._cooperative_loop(s, pad, scope)
                self._forget(scope, s.body)
            elif isinstance(s, (Store, Check)):
                # Values are computed by every thread, so that a name made here is known to all.
                for e in loops.expressions(s):
                    self._name(e, pad, scope)
                self.lines.append(f"{pad}if tid == 0:")
                self.serial([s], pad + "    ", scope)
                self.lines.append(f"{pad}cuda.syncthreads()")
            else:
                self.serial([s], pad, scope)
            self._forget(scope, [s])

    def _name(self, e: Expr, pad: str, scope: Scope) -> None:
        if isinstance(e, (Op, loops.Load)) and id(e) not in scope:
            text = self.expr(e, scope, pad)[0]
            if id(e) not in scope:
                name = self.fresh("t")
                self.lines.append(f"{pad}{name} = {text}")
                scope[id(e)] = (name, e)

    def _cooperative_loop(self, loop: Loop, pad: str, scope: Scope) -> None:
        inside = list(loops.statements(loop.body))
        updates = [s for s in inside if isinstance(s, Update)]
        if loop.kind != "vector":
            if _has_vector(loop.body) or updates:
                self.lines.append(pad + self.loop_head(loop, 0))
                self.cooperative(loop.body, pad + "    ", dict(scope))
            else:
                self.lines.append(f"{pad}if tid == 0:")
                self.serial([loop], pad + "    ", dict(scope))
                self.lines.append(f"{pad}cuda.syncthreads()")
            return
        if any(s.op == "set" for s in updates):  # not a sum of parts: every thread goes through all of it
            self.serial([loop], pad, dict(scope))
            return
        parts: dict[Acc, tuple[str, str]] = {}
        for s in updates:
            if s.acc not in parts:
                total, part = self.var(s.acc), self.fresh(f"{self.var(s.acc)}_part")
                parts[s.acc] = (total, part)
                self.lines.append(f"{pad}{part} = {self.const(_identity(s.op, s.acc.dtype), s.acc.dtype)}")
                self.names[id(s.acc)] = part
        self.lines.append(
            f"{pad}for {self.var(loop.var)} in range(tid, {loop.var.extent}, {self.threads}):  # vector"
        )
        self.serial(loop.body, pad + "    ", dict(scope))
        ops = {s.acc: s.op for s in updates}
        for acc, (total, part) in parts.items():
            self.names[id(acc)] = total
            self._tree(acc.dtype, ops[acc], total, part, pad)
        self.lines.append(f"{pad}cuda.syncthreads()")

    def _tree(self, dtype: np.dtype, op: str, total: str, part: str, pad: str) -> None:
        """total = op(total, all threads' parts), known to every thread."""
        shared = f"shared_{_type(dtype)}"
        self.shared.setdefault(_type(dtype))
        self.lines += [
            f"{pad}{shared}[tid] = {part}",
            f"{pad}cuda.syncthreads()",
            f"{pad}width = {self.threads // 2}",
            f"{pad}while width > 0:",
            f"{pad}    if tid < width:",
            f"{pad}        {shared}[tid] = {self.fold(op, f'{shared}[tid]', f'{shared}[tid + width]', dtype)}",
            f"{pad}    cuda.syncthreads()",
            f"{pad}    width //= 2",
            f"{pad}{total} = {self.fold(op, total, f'{shared}[0]', dtype)}",
            f"{pad}cuda.syncthreads()",
        ]


def _type(dtype: np.dtype) -> str:
    return "boolean" if dtype == dtypes.bool_ else dtype.name


def _identity(op: str, dtype: np.dtype) -> Any:
    if op in ("maximum", "minimum"):
        if dtypes.is_float(dtype):
            return -np.inf if op == "maximum" else np.inf
        info = np.iinfo(dtype)
        return info.min if op == "maximum" else info.max
    return {"add": 0, "bitwise_or": 0, "mul": 1, "bitwise_and": True if dtype == dtypes.bool_ else -1}[op]


def _has_vector(stmts: Sequence[Stmt]) -> bool:
    return any(isinstance(s, Loop) and s.kind == "vector" for s in loops.statements(stmts))


def _independent(loop: Loop) -> bool:
    """Iterations that may run anywhere: a parallel loop, or a vector loop that only stores."""
    return loop.kind == "parallel" or (loop.kind == "vector" and all(isinstance(s, Store) for s in loop.body))


def cuda_source(kernel: Kernel, threads: int = THREADS) -> str:
    """The kernel as source text for `numba.cuda`; launch it with blocks of `threads` (a power of two) threads.

    Raises NotImplementedError for element types or operations without a CUDA form.
    """
    if threads & (threads - 1):
        raise ValueError(f"cuda_source: threads must be a power of two, got {threads}")
    printer = CudaPrinter(kernel, threads)
    printer.top("    ")
    head = [PRELUDE, "@cuda.jit", f"def {kernel.name}({', '.join(b.name for b in kernel.buffers)}):"]
    head += [f"    # {n}" for n in kernel.notes]
    head += [f"    shared_{d} = cuda.shared.array({threads}, {d})" for d in printer.shared]
    head.append("    tid = cuda.threadIdx.x")
    return "\n".join([*head, *printer.lines]) + "\n"


def grid_size(kernel: Kernel, threads: int = THREADS, most: int = 1024) -> int:
    """How many blocks to launch."""
    body = kernel.body
    if not (len(body) == 1 and isinstance(body[0], Loop) and _independent(body[0])):
        return 1
    extent = body[0].var.extent
    return max(1, min(most, extent if _has_vector(body[0].body) else -(-extent // threads)))


def compile_cuda(kernel: Kernel, threads: int = THREADS) -> Callable[..., None]:
    """A function over flat device (or, in the simulator, NumPy) arrays, bound as `kernel.buffers`, that launches the kernel."""
    scope: dict[str, Any] = {}
    exec(
        compile(cuda_source(kernel, threads), f"<cuda kernel {kernel.name}>", "exec"), scope
    )  # its text is all our own
    jitted, blocks = scope[kernel.name], grid_size(kernel, threads)

    def launch(*arrays: Any) -> None:
        jitted[blocks, threads](*arrays)

    launch.jitted = jitted  # type: ignore[attr-defined]
    return launch


__all__ = ["THREADS", "compile_cuda", "cuda_source", "grid_size", "has_code"]
