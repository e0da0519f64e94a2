"""From statements over stand-in buffers to a finished kernel: fewer loops, blocked sums, its own buffers, notes.

Loops are collapsed where every index runs through both as if they were one:

    for i in 64:                                for f in 640:
        for j in 10:  y[10*i + j] = ...   ->        y[f] = ...

Long float sums run in blocks, each with an accumulator of its own, so that the rounding error grows with the number of
blocks and the block length rather than with their product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fgrad import dtypes
from fgrad.codegen import loops
from fgrad.codegen.loops import (
    Acc,
    Affine,
    Buffer,
    Check,
    Expr,
    Init,
    Kernel,
    Load,
    Loop,
    LoopVar,
    Stmt,
    Store,
    Update,
)
from fgrad.codegen.program import Buf
from fgrad.ir import Eqn
from fgrad.passes.exprs import Builder
from fgrad.show import eqn_text

SUM_BLOCK = 4096
LARGEST_UNROLL = 4


class Rewriter:
    """Rewrites statements through `Builder.rewrite`; one memo for all of them."""

    def __init__(self, b: Builder, leaf: Any = None, on_load: Any = None):
        self.b = b
        self.memo: dict[int, tuple[Expr, Expr]] = {}
        self.leaf = leaf or (lambda e: e)
        self.on_load = on_load or b.load

    def expr(self, e: Expr) -> Expr:
        return self.b.rewrite(e, self.leaf, self.on_load, self.memo)

    def stmt(self, s: Stmt, buffer: Callable[[Buffer], Buffer] = lambda x: x) -> Stmt:
        if isinstance(s, Store):
            mask = None if s.mask is None else self.expr(s.mask)
            return Store(buffer(s.buffer), self.b.index(self.expr(s.index)), self.expr(s.value), s.op, mask)
        if isinstance(s, Init):
            return Init(s.acc, self.expr(s.value))
        if isinstance(s, Update):
            return Update(s.acc, s.op, self.expr(s.value))
        if isinstance(s, Check):
            return Check(self.expr(s.ok), buffer(s.status), s.code)
        assert isinstance(s, Loop)
        return Loop(s.var, [self.stmt(t, buffer) for t in s.body], s.kind)


def replace_vars(b: Builder, body: Sequence[Stmt], env: dict[LoopVar, Expr]) -> list[Stmt]:
    rewriter = Rewriter(b, lambda e: env.get(e, e))  # type: ignore[call-overload]
    return [rewriter.stmt(s) for s in body]


def _expressions(body: Sequence[Stmt]) -> list[Expr]:
    """Every expression below `body`, each object once."""
    seen: dict[int, Expr] = {}
    stack = [e for s in loops.statements(body) for e in loops.expressions(s)]
    while stack:
        e = stack.pop()
        if id(e) not in seen:
            seen[id(e)] = e
            stack.extend(loops.children(e))
    return list(seen.values())


def _run_as_one(body: Sequence[Stmt], outer: LoopVar, inner: LoopVar) -> bool:
    """Whether every use of the two variables is `c * (extent * outer + inner)`."""
    for e in _expressions(body):
        if isinstance(e, Affine):
            coefs = {id(t): c for t, c in e.terms}
            if coefs.get(id(outer), 0) != coefs.get(id(inner), 0) * inner.extent:
                return False
        elif any(c is outer or c is inner for c in loops.children(e)):
            return False
    # A variable that is itself a statement's expression (an index or a value) is a use of one alone.
    return not any(e is outer or e is inner for s in loops.statements(body) for e in loops.expressions(s))


def collapse(b: Builder, body: list[Stmt]) -> list[Stmt]:
    """Merge perfectly nested loops that run as one, innermost first."""
    result: list[Stmt] = []
    for s in body:
        if not isinstance(s, Loop):
            result.append(s)
            continue
        if s.var.extent == 1:
            result.extend(collapse(b, replace_vars(b, s.body, {s.var: loops.const_index(0)})))
            continue
        loop = Loop(s.var, collapse(b, s.body), s.kind)
        while len(loop.body) == 1 and isinstance(loop.body[0], Loop) and loop.kind != "unroll":
            inner = loop.body[0]
            if inner.kind == "unroll" or not _run_as_one(inner.body, loop.var, inner.var):
                break
            flat = LoopVar(loop.var.name, loop.var.extent * inner.var.extent)
            # outer = 0 leaves c * inner in every index, and inner = flat is then the merged index.
            env: dict[LoopVar, Expr] = {loop.var: loops.const_index(0), inner.var: flat}
            kind = inner.kind if inner.kind == "vector" else loop.kind
            loop = Loop(flat, replace_vars(b, inner.body, env), kind)
        result.append(loop)
    return result


def unroll_small(b: Builder, body: list[Stmt]) -> list[Stmt]:
    """Write out innermost vector loops of a few iterations inside another loop, which then is the vector loop."""
    result: list[Stmt] = []
    for s in body:
        if isinstance(s, Loop):
            inner = unroll_small(b, s.body)
            s = Loop(s.var, inner, s.kind)
            if len(inner) == 1 and isinstance(inner[0], Loop):
                last = inner[0]
                small = last.kind == "vector" and last.var.extent <= LARGEST_UNROLL < s.var.extent
                if small and all(isinstance(t, (Store, Update)) for t in last.body):
                    copies: list[Stmt] = []
                    for k in range(last.var.extent):
                        copies.extend(replace_vars(b, last.body, {last.var: loops.const_index(k)}))
                    s = Loop(s.var, copies, "vector")
        result.append(s)
    return result


def block_sums(b: Builder, body: list[Stmt], times: int = 1) -> list[Stmt]:
    """Give the float sums of innermost loops accumulators of their own: of each block of a long loop, and of a loop that
    adds to an accumulator started outside the loops around it (which run it `times` times)."""
    result: list[Stmt] = []
    started = {s.acc for s in body if isinstance(s, Init)}
    for s in body:
        if not isinstance(s, Loop):
            result.append(s)
            continue
        if any(isinstance(t, Loop) for t in s.body):
            result.append(Loop(s.var, block_sums(b, s.body, times * s.var.extent), s.kind))
            continue
        sums = _float_sums(s.body) if s.kind != "parallel" else []
        if s.var.extent <= 2 * SUM_BLOCK or not sums:
            outside = [acc for acc in sums if acc not in started]
            if times * s.var.extent > 2 * SUM_BLOCK and s.var.extent >= 16 and outside:
                result.extend(_with_own_accumulators(s, outside))
            else:
                result.append(s)
            continue
        blocks, rest = divmod(s.var.extent, SUM_BLOCK)
        for extent, offset in ((SUM_BLOCK, 0), (rest, blocks * SUM_BLOCK)):
            if not extent:
                continue
            inner = LoopVar(s.var.name, extent)
            block = LoopVar(s.var.name + "b", blocks)
            start = b.add(b.scale(block, SUM_BLOCK), inner) if not offset else b.add(inner, offset)
            loop = Loop(inner, replace_vars(b, s.body, {s.var: start}), s.kind)
            part = _with_own_accumulators(loop, sums)
            kind = "blocks" if s.kind == "vector" else "seq"
            result.extend([Loop(block, part, kind)] if not offset else part)
    return result


def _float_sums(body: Sequence[Stmt]) -> list[Acc]:
    found = [t.acc for t in body if isinstance(t, Update) and t.op == "add" and dtypes.is_float(t.acc.dtype)]
    return list(dict.fromkeys(found))


def _with_own_accumulators(loop: Loop, accs: Sequence[Acc]) -> list[Stmt]:
    fresh = {acc: Acc(f"{acc.name}_part", acc.dtype) for acc in accs}
    body: list[Stmt] = [
        Update(fresh[t.acc], t.op, t.value)
        if isinstance(t, Update) and t.op == "add" and t.acc in fresh
        else t
        for t in loop.body
    ]
    inits: list[Stmt] = [Init(f, loops.Const(acc.dtype.type(0), acc.dtype)) for acc, f in fresh.items()]
    adds: list[Stmt] = [Update(acc, "add", f) for acc, f in fresh.items()]
    return [*inits, Loop(loop.var, body, loop.kind), *adds]


def _count(body: Sequence[Stmt], times: int, memo: dict[int, int]) -> int:
    """Scalar operations performed by `body`."""
    total = 0
    for s in body:
        if isinstance(s, Loop):
            total += _count(s.body, times * s.var.extent, memo)
        else:
            seen: set[int] = set()
            stack = list(loops.expressions(s))
            n = int(isinstance(s, Update) or (isinstance(s, Store) and s.op is not None))
            while stack:
                e = stack.pop()
                if id(e) not in seen:
                    seen.add(id(e))
                    n += isinstance(e, loops.Op)
                    stack.extend(loops.children(e))
            total += n * times
    return total


def finish_kernel(shared: Any, name: str, body: list[Stmt], eqns: Sequence[Eqn]) -> tuple[Kernel, list[Buf]]:
    """A kernel over its own buffers, and the program buffers to bind to them: those written first."""
    b: Builder = shared.builder
    plain = collapse(b, body)
    body = unroll_small(b, plain)
    body = block_sums(b, body)
    stored: dict[Buffer, bool] = {}  # whether it is also read
    read: dict[Buffer, None] = {}
    for s in loops.statements(body):
        if isinstance(s, Store):
            stored[s.buffer] = stored.get(s.buffer, False) or s.op is not None or s.mask is not None
        elif isinstance(s, Check):
            stored[s.status] = True
    for e in _expressions(body):
        if isinstance(e, Load):
            read.setdefault(e.buffer)
    own: dict[Buffer, Buffer] = {}
    used: set[str] = set()
    for buffer in [*stored, *(r for r in read if r not in stored)]:
        role = "in" if buffer not in stored else "inout" if buffer in read or stored[buffer] else "out"
        label = buffer.name
        while label in used:
            label += "_"
        used.add(label)
        own[buffer] = Buffer(label, buffer.dtype, buffer.size, role)
    rewriter = Rewriter(b, on_load=lambda buffer, *rest: b.load(own[buffer], *rest))
    body = [rewriter.stmt(s, own.__getitem__) for s in body]
    meta = {
        "nest": [rewriter.stmt(s, own.__getitem__) for s in plain]
    }  # with no loop cut: what epilogues are made of
    notes = tuple(eqn_text(e, shared.namer) for e in dict.fromkeys(eqns))
    size = sum(x.size * x.dtype.itemsize * (2 if x.role == "inout" else 1) for x in own.values())
    kernel = Kernel(
        shared.kernel_name(name), tuple(own.values()), body, notes, _count(body, 1, {}), size, meta
    )
    return kernel, [shared.bufs[x] for x in own]
