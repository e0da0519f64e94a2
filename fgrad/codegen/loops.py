"""The loop nest: the one description of a kernel that every target prints.

    kernel softmax_rows(y: float32[64*10] out, x: float32[64*10] in):
        for i in parallel 64:
            m = -inf
            for j in vector 10:  m = maximum(m, x[10*i + j])
            s = 0
            for j in vector 10:  s = add(s, exp(sub(x[10*i + j], m)))
            for j in vector 10:  y[10*i + j] = div(exp(sub(x[10*i + j], m)), s)

Buffers are flat and addressed in elements. Expressions form a DAG of the classes below; a printer emits each node once
per innermost scope in which it is used. Names of scalar operations are those of `codegen.scalar`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgrad import dtypes

# ------------------------------------------------------------------------------------------------ expressions


class Expr:
    """A scalar value of `dtype`. Compared by identity."""

    __slots__ = ("dtype",)
    dtype: np.dtype


class Const(Expr):
    __slots__ = ("value",)

    def __init__(self, value: Any, dtype: np.dtype):
        self.dtype, self.value = dtype, value


class LoopVar(Expr):
    """An int64 loop index, 0 <= value < extent."""

    __slots__ = ("extent", "name")

    def __init__(self, name: str, extent: int):
        self.dtype, self.name, self.extent = dtypes.int64, name, extent


class Affine(Expr):
    """`const + sum(coef * term)`, int64. Terms are LoopVars or any other int64 expression; coefficients are not zero."""

    __slots__ = ("const", "terms")

    def __init__(self, const: int, terms: Sequence[tuple[Expr, int]]):
        self.dtype, self.const, self.terms = dtypes.int64, const, tuple(terms)


class Op(Expr):
    """`name(*args)`, a scalar operation of `codegen.scalar` (also `select`, `cast`, `bitcast`)."""

    __slots__ = ("args", "name")

    def __init__(self, name: str, args: Sequence[Expr], dtype: np.dtype):
        self.name, self.args, self.dtype = name, tuple(args), dtype


class Load(Expr):
    """`buffer[index]`; with a `mask` (bool expression) the load happens only where it holds, elsewhere the value is `other`."""

    __slots__ = ("buffer", "index", "mask", "other")

    def __init__(self, buffer: Buffer, index: Expr, mask: Expr | None = None, other: Expr | None = None):
        self.dtype, self.buffer, self.index, self.mask, self.other = buffer.dtype, buffer, index, mask, other


class Acc(Expr):
    """An accumulator (a mutable scalar in a register); as an expression, its value where it is read."""

    __slots__ = ("name",)

    def __init__(self, name: str, dtype: np.dtype):
        self.dtype, self.name = dtype, name


@dataclass(eq=False)
class Buffer:
    """A flat array parameter of a kernel: `size` elements of `dtype`. role: in, out or inout."""

    name: str
    dtype: np.dtype
    size: int
    role: str = "in"


# ------------------------------------------------------------------------------------------------ statements


class Stmt:
    __slots__ = ()


@dataclass(eq=False)
class Loop(Stmt):
    """kind: "seq", "parallel" (iterations independent; only outermost), "vector" (innermost, iterations independent or
    reductions into accumulators: the printer asks for vectorisation), "unroll", "blocks" (a vector loop cut into blocks:
    iterations are independent but for accumulators that each adds its own sum to)"""

    var: LoopVar
    body: list[Stmt]
    kind: str = "seq"


@dataclass(eq=False)
class Store(Stmt):
    """`buffer[index] = value`, or `buffer[index] = op(buffer[index], value)` with op add, mul, minimum, maximum ... ."""

    buffer: Buffer
    index: Expr
    value: Expr
    op: str | None = None
    mask: Expr | None = None  # store only where it holds


@dataclass(eq=False)
class Init(Stmt):
    acc: Acc
    value: Expr


@dataclass(eq=False)
class Update(Stmt):
    """`acc = op(acc, value)`; op add, mul, minimum, maximum, bitwise_and, bitwise_or may be reassociated. op "set" assigns."""

    acc: Acc
    op: str
    value: Expr


@dataclass(eq=False)
class Check(Stmt):
    """Unless `ok` holds, write `code` (> 0) to the program's status word (the kernel's `status` buffer); execution goes on,
    so indices must be made safe by the expressions that use them."""

    ok: Expr
    status: Buffer
    code: int


@dataclass(eq=False)
class Kernel:
    """`notes` are lines naming the graph equations the kernel came from, printed as comments."""

    name: str
    buffers: tuple[Buffer, ...]
    body: list[Stmt]
    notes: tuple[str, ...] = ()
    flops: int = 0
    bytes: int = 0
    meta: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ building indices


def const_index(value: int) -> Affine:
    return Affine(value, ())


def affine_terms(e: Expr) -> tuple[int, list[tuple[Expr, int]]]:
    if isinstance(e, Affine):
        return e.const, list(e.terms)
    if isinstance(e, Const):
        return int(e.value), []
    return 0, [(e, 1)]


def index_add(*parts: Expr) -> Expr:
    """Sum of int64 expressions as one flat `Affine`."""
    const = 0
    terms: dict[int, tuple[Expr, int]] = {}
    for p in parts:
        c, ts = affine_terms(p)
        const += c
        for term, coef in ts:
            old = terms.get(id(term))
            terms[id(term)] = (term, coef + (old[1] if old else 0))
    return Affine(const, [(t, c) for t, c in terms.values() if c])


def index_scale(e: Expr, factor: int) -> Expr:
    c, ts = affine_terms(e)
    return Affine(c * factor, [(t, k * factor) for t, k in ts] if factor else [])


def index_range(e: Expr) -> tuple[int, int] | None:
    """Smallest and largest value, if known."""
    if isinstance(e, LoopVar):
        return 0, max(e.extent - 1, 0)
    if isinstance(e, Const):
        return int(e.value), int(e.value)
    if isinstance(e, Affine):
        lo = hi = e.const
        for t, c in e.terms:
            r = index_range(t)
            if r is None:
                return None
            a, b = r[0] * c, r[1] * c
            lo, hi = lo + min(a, b), hi + max(a, b)
        return lo, hi
    if isinstance(e, Op) and e.name in ("floordiv", "remainder") and isinstance(e.args[1], Const):
        d = int(e.args[1].value)
        r = index_range(e.args[0])
        if e.name == "floordiv":
            return (r[0] // d, r[1] // d) if r else None
        return (0, d - 1)
    if (
        isinstance(e, Op) and e.name == "minimum" and isinstance(e.args[1], Const)
    ):  # a clamp: min(max(x, low), high)
        inner = e.args[0]
        if isinstance(inner, Op) and inner.name == "maximum" and isinstance(inner.args[1], Const):
            return int(inner.args[1].value), max(int(inner.args[1].value), int(e.args[1].value))
    if isinstance(e, Op) and e.name == "select":
        one, other = index_range(e.args[1]), index_range(e.args[2])
        return (min(one[0], other[0]), max(one[1], other[1])) if one and other else None
    return None


def _div_split(e: Expr, d: int) -> tuple[Expr, Expr] | None:
    """(quotient, rest) with `e = d * quotient + rest` and 0 <= rest < d known, or None."""
    c, ts = affine_terms(e)
    q, r = c // d, c % d
    whole = [(t, k // d) for t, k in ts if k % d == 0]
    rest = Affine(r, [(t, k) for t, k in ts if k % d])
    bounds = index_range(rest)
    if bounds is not None and bounds[0] >= 0 and bounds[1] < d:
        return Affine(q, whole), rest
    return None


def index_div(e: Expr, d: int) -> Expr:
    """`e // d` for a non-negative e, simplified where the ranges of the loop variables allow."""
    if d == 1:
        return e
    split = _div_split(e, d)
    return split[0] if split else Op("floordiv", (e, Const(d, dtypes.int64)), dtypes.int64)


def index_mod(e: Expr, d: int) -> Expr:
    if d == 1:
        return const_index(0)
    split = _div_split(e, d)
    return split[1] if split else Op("remainder", (e, Const(d, dtypes.int64)), dtypes.int64)


def ravel(indices: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """Row-major flat index."""
    flat: Expr = const_index(0)
    stride = 1
    for i, s in zip(reversed(indices), reversed(shape), strict=True):
        flat = index_add(flat, index_scale(i, stride))
        stride *= s
    return flat


def unravel(flat: Expr, shape: Sequence[int]) -> list[Expr]:
    """The indices of a row-major flat index."""
    out: list[Expr] = []
    stride = 1
    for n, s in enumerate(reversed(shape)):
        q = index_div(flat, stride)
        out.append(q if n == len(shape) - 1 else index_mod(q, s))
        stride *= s
    return out[::-1]


# ------------------------------------------------------------------------------------------------ walking


def children(e: Expr) -> tuple[Expr, ...]:
    if isinstance(e, Op):
        return e.args
    if isinstance(e, Affine):
        return tuple(t for t, _ in e.terms)
    if isinstance(e, Load):
        return tuple(x for x in (e.index, e.mask, e.other) if x is not None)
    return ()


def expressions(stmt: Stmt) -> tuple[Expr, ...]:
    """The expressions that a statement evaluates itself (not those of nested statements)."""
    if isinstance(stmt, Store):
        return tuple(x for x in (stmt.index, stmt.value, stmt.mask) if x is not None)
    if isinstance(stmt, (Init, Update)):
        return (stmt.value,)
    if isinstance(stmt, Check):
        return (stmt.ok,)
    return ()


def statements(body: Sequence[Stmt]) -> Iterator[Stmt]:
    for stmt in body:
        yield stmt
        if isinstance(stmt, Loop):
            yield from statements(stmt.body)
