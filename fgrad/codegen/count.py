"""What running a loop nest takes: floating-point operations by kind, and the distinct bytes that it reads and writes.

    for i in 64:  for j in 10:  y[10*i + j] = div(exp(sub(x[10*i + j], m[i])), s[i])

counts 1280 arithmetic operations (sub, div), 640 transcendental ones, reads of 4 * (640 + 64 + 64) bytes and writes of 4 * 640. An
expression counts as often as the printers compute it: once per iteration of the innermost loop on which it depends, however many
statements use it. Comparisons, selects, casts and moves are not counted as floating-point operations, as is usual; integer arithmetic
(random bits) is counted apart, and index arithmetic not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgrad import dtypes
from fgrad.codegen import mathlib
from fgrad.codegen.loops import (
    Acc,
    Affine,
    Buffer,
    Expr,
    Kernel,
    Load,
    Loop,
    LoopVar,
    Op,
    Stmt,
    Store,
    Update,
    children,
    expressions,
)
from fgrad.codegen.nestinfo import changed_by, nodes

TRANSCENDENTAL = frozenset({*mathlib.UNARY, *mathlib.BINARY})
ARITHMETIC = frozenset(
    {
        *("add", "sub", "mul", "div", "neg", "abs", "square", "sqrt", "rsqrt", "reciprocal"),
        *("maximum", "minimum", "fmax", "fmin", "fmod", "remainder", "floordiv"),
        *("floor", "ceil", "round", "trunc"),
    }
)
_INTEGER = frozenset(
    {
        *("bitwise_and", "bitwise_or", "bitwise_xor", "shift_left"),
        *("shift_right_arithmetic", "shift_right_logical", "popcount", "clz"),
    }
)


@dataclass(frozen=True)
class Work:
    """Operations and bytes. `contraction` counts a multiply-add as two; `integer` is not part of `flops`."""

    contraction: int = 0
    arithmetic: int = 0
    transcendental: int = 0
    integer: int = 0
    read: int = 0
    written: int = 0

    @property
    def flops(self) -> int:
        return self.contraction + self.arithmetic + self.transcendental

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple())))

    def __mul__(self, times: int) -> Work:
        return Work(*(times * a for a in self.as_tuple()))

    def as_tuple(self) -> tuple[int, ...]:
        return (
            self.contraction,
            self.arithmetic,
            self.transcendental,
            self.integer,
            self.read,
            self.written,
        )


def kernel_work(kernel: Kernel) -> Work:
    """The work of one run of `kernel`. What a mask leaves out is counted as if it were done."""
    counter = _Counter()
    counter.block(kernel.body, [])
    kinds = counter.kinds
    return Work(0, kinds["f"], kinds["t"], kinds["i"], _distinct(counter.reads), _distinct(counter.writes))


def _kind(op: str, dtype: np.dtype) -> str | None:
    if op in TRANSCENDENTAL:
        return "t" if dtypes.is_float(dtype) else "i"
    if op in ARITHMETIC:
        return "f" if dtypes.is_float(dtype) else "i"
    return "i" if op in _INTEGER else None


class _Counter:
    def __init__(self) -> None:
        self.kinds = {"f": 0, "t": 0, "i": 0}
        self.reads: dict[
            Buffer, dict[int, int]
        ] = {}  # buffer -> index expression -> how many elements it takes
        self.writes: dict[Buffer, dict[int, int]] = {}
        self.seen: set[tuple[int, int]] = set()
        self.changed: dict[int, set] = {}

    def block(self, body: Sequence[Stmt], path: list[Loop]) -> None:
        """`path`: the loops around, outermost first."""
        depths: dict[int, int] = {}
        for stmt in body:
            if isinstance(stmt, Loop):
                self.block(stmt.body, [*path, stmt])
                continue
            for e in self.values(stmt):
                self.expression(e, path, depths)
            times = math.prod(loop.var.extent for loop in path)
            if isinstance(stmt, Store):
                self.touch(self.writes, stmt.buffer, stmt.index)
                if stmt.op is not None:
                    self.touch(self.reads, stmt.buffer, stmt.index)
                    self.add(stmt.op, stmt.buffer.dtype, times)
            elif isinstance(stmt, Update):
                self.add(stmt.op, stmt.acc.dtype, times)

    @staticmethod
    def values(stmt: Stmt) -> list[Expr]:
        """All expressions of a statement except the arithmetic of addresses."""
        found: dict[int, Expr] = {}
        stack = list(expressions(stmt))
        if isinstance(stmt, Store):
            stack.remove(stmt.index)
            stack.extend(e for e in nodes([stmt.index]) if isinstance(e, Load))
        while stack:
            e = stack.pop()
            if id(e) in found:
                continue
            found[id(e)] = e
            if isinstance(e, Load):
                stack.extend(x for x in (e.mask, e.other) if x is not None)
                stack.extend(x for x in nodes([e.index]) if isinstance(x, Load))
            elif not isinstance(e, Affine):
                stack.extend(children(e))
        return list(found.values())

    def expression(self, e: Expr, path: list[Loop], depths: dict[int, int]) -> None:
        if isinstance(e, Load):
            self.touch(self.reads, e.buffer, e.index)
        if not isinstance(e, Op):
            return
        depth = self.depth(e, path, depths)
        key = (id(e), id(path[depth - 1]) if depth else 0)
        if key not in self.seen:
            self.seen.add(key)
            self.add(e.name, e.dtype, math.prod(loop.var.extent for loop in path[:depth]))

    def add(self, op: str, dtype: np.dtype, times: int) -> None:
        kind = _kind(op, dtype)
        if kind is not None:
            self.kinds[kind] += times

    def depth(self, root: Expr, path: list[Loop], depths: dict[int, int]) -> int:
        """How many of the loops around must have begun before `root` can be computed."""
        pending = [root]
        while pending:
            e = pending[-1]
            missing = [c for c in children(e) if id(c) not in depths]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            depth = max((depths[id(c)] for c in children(e)), default=0)
            if isinstance(e, LoopVar):
                depth = next((n + 1 for n, loop in enumerate(path) if loop.var is e), 0)
            elif isinstance(e, (Acc, Load)):
                changes = e if isinstance(e, Acc) else e.buffer
                for n in range(len(path), depth, -1):
                    if changes in self.changes(path[n - 1]):
                        depth = n
                        break
            depths[id(e)] = depth
        return depths[id(root)]

    def changes(self, loop: Loop) -> set:
        found = self.changed.get(id(loop))
        if found is None:
            found = self.changed[id(loop)] = changed_by(loop)
        return found

    @staticmethod
    def touch(where: dict[Buffer, dict[int, int]], buffer: Buffer, index: Expr) -> None:
        extents = [e.extent for e in nodes([index]) if isinstance(e, LoopVar)]
        where.setdefault(buffer, {})[id(index)] = math.prod(extents)


def _distinct(touched: dict[Buffer, dict[int, int]]) -> int:
    """Bytes: an index takes at most one element for each value of the loop variables in it, a buffer has so many."""
    return sum(b.dtype.itemsize * min(b.size, sum(indices.values())) for b, indices in touched.items())
