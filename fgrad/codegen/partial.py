"""Kernels that sum over what is to be cut, as one kernel that leaves partial sums and one that adds them in order.

    for c in parallel 6:                          for b in parallel 8:                    for c in parallel 6:
        s = 0                                         for c in 6:                             s = 0
        for n in 64:                        ->            t = 0                       and     for b in 8:
            for j in vector 784:                          for n in 8:                             s += parts[6*b + c]
                s += g[4704*n + 784*c + j]                    for j in vector 784:            out[c] = f(s)
        out[c] = f(s)                                             t += g[4704*(8*b + n) + ...]
                                                          parts[6*b + c] = t

The number of partial sums depends on the program alone, so results do not depend on who computes which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fgrad.codegen.cutting import index_reach, sum_of_parts
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
    expressions,
    index_add,
    index_scale,
    statements,
)
from fgrad.codegen.nestinfo import nodes
from fgrad.codegen.program import Buf, KernelStep


@dataclass
class Split:
    """`first` is one loop over the parts; `rest` adds them up."""

    first: KernelStep
    rest: list[KernelStep]


# ------------------------------------------------------------------------------------------------ rewriting


class _Rewrite:
    """Copies statements with other variables, accumulators, and places of some buffers."""

    def __init__(
        self,
        env: dict[LoopVar, Expr],
        accs: dict[Acc, Acc] | None = None,
        stores: Callable[[Store, Expr], tuple[Buffer, Expr]] | None = None,
    ):
        self.env, self.accs, self.stores = env, accs or {}, stores
        self.memo: dict[int, tuple[Expr, Expr]] = {}

    def expr(self, root: Expr) -> Expr:
        for e in _bottom_up(root, self.memo):
            self.memo[id(e)] = (e, self.one(e))
        return self.memo[id(root)][1]

    def one(self, e: Expr) -> Expr:
        if isinstance(e, LoopVar):
            return self.env.get(e, e)
        if isinstance(e, Acc):
            return self.accs.get(e, e)
        if isinstance(e, Affine):
            if all(self.done(t) is t for t, _ in e.terms):
                return e
            return index_add(Affine(e.const, ()), *(index_scale(self.done(t), c) for t, c in e.terms))
        if isinstance(e, Op):
            args = tuple(self.done(a) for a in e.args)
            return e if all(a is b for a, b in zip(args, e.args)) else Op(e.name, args, e.dtype)
        if isinstance(e, Load):
            mask = None if e.mask is None else self.done(e.mask)
            other = None if e.other is None else self.done(e.other)
            index = self.done(e.index)
            if index is e.index and mask is e.mask and other is e.other:
                return e
            return Load(e.buffer, index, mask, other)
        return e

    def done(self, e: Expr) -> Expr:
        return self.memo[id(e)][1]

    def body(self, body: Sequence[Stmt]) -> list[Stmt]:
        return [self.stmt(s) for s in body]

    def stmt(self, s: Stmt) -> Stmt:
        if isinstance(s, Loop):
            return Loop(s.var, self.body(s.body), "seq" if s.kind == "parallel" else s.kind)
        if isinstance(s, Store):
            buffer, index = s.buffer, self.expr(s.index)
            if self.stores is not None:
                buffer, index = self.stores(s, index)
            mask = None if s.mask is None else self.expr(s.mask)
            return Store(buffer, index, self.expr(s.value), s.op, mask)
        if isinstance(s, Init):
            return Init(self.accs.get(s.acc, s.acc), self.expr(s.value))
        if isinstance(s, Update):
            return Update(self.accs.get(s.acc, s.acc), s.op, self.expr(s.value))
        assert isinstance(s, Check)
        return Check(self.expr(s.ok), s.status, s.code)


def _bottom_up(root: Expr, known: dict[int, tuple[Expr, Expr]]) -> list[Expr]:
    from_root: list[Expr] = []
    seen: set[int] = set()
    pending: list[tuple[Expr, bool]] = [(root, False)]
    while pending:
        e, ready = pending.pop()
        if ready:
            from_root.append(e)
        elif id(e) not in known and id(e) not in seen:
            seen.add(id(e))
            pending.append((e, True))
            pending.extend((c, False) for c in _children(e))
    return from_root


def _children(e: Expr) -> tuple[Expr, ...]:
    if isinstance(e, Op):
        return e.args
    if isinstance(e, Affine):
        return tuple(t for t, _ in e.terms)
    if isinstance(e, Load):
        return tuple(x for x in (e.index, e.mask, e.other) if x is not None)
    return ()


def buffers_of(body: Sequence[Stmt]) -> set[Buffer]:
    found: set[Buffer] = set()
    roots: list[Expr] = []
    for s in statements(body):
        roots.extend(expressions(s))
        if isinstance(s, Store):
            found.add(s.buffer)
        elif isinstance(s, Check):
            found.add(s.status)
    found.update(e.buffer for e in nodes(roots) if isinstance(e, Load))
    return found


# ------------------------------------------------------------------------------------------------ finding the sum


@dataclass
class _Sum:
    """`kept` loops, inside them `prefix`, the summing loop, `suffix`. `accs` and `folds` are what the loop adds to."""

    kept: list[Loop]
    prefix: list[Stmt]
    loop: Loop
    suffix: list[Stmt]
    accs: list[Acc]
    folds: list[Buffer]


def _find(kernel: Kernel) -> _Sum | None:
    kept: list[Loop] = []
    body: list[Stmt] = kernel.body
    while len(body) == 1 and isinstance(body[0], Loop):
        kept.append(body[0])
        body = body[0].body
    at = next((n for n, s in enumerate(body) if isinstance(s, Loop) and _sums(s)), None)
    if at is None or at == 0 or (kept and kept[0].kind != "parallel"):
        return None
    loop = body[at]
    assert isinstance(loop, Loop)
    prefix, suffix = body[:at], body[at + 1 :]
    accs = [s.acc for s in prefix if isinstance(s, Init)]
    starts = [
        s for s in statements([s for s in prefix if not isinstance(s, Init)]) if not isinstance(s, Loop)
    ]
    folds = list(dict.fromkeys(s.buffer for s in starts if isinstance(s, Store)))
    zero = all(
        isinstance(s, Store) and s.op is None and isinstance(s.value, Const) and not s.value.value
        for s in starts
    )
    if not zero or (folds and suffix) or not (accs or folds):
        return None
    found = _Sum(kept, prefix, loop, suffix, accs, folds)
    return found if _independent(found) else None


def _sums(loop: Loop) -> bool:
    """Whether the loop adds to something from outside it."""
    own = {s.acc for s in statements(loop.body) if isinstance(s, Init)}
    return any(
        (isinstance(s, Update) and s.acc not in own) or (isinstance(s, Store) and s.op is not None)
        for s in statements(loop.body)
    )


def _independent(found: _Sum) -> bool:
    """Whether the summing loop's iterations do nothing to one another but add to the same sums."""
    inside = list(statements(found.loop.body))
    own = {s.acc for s in inside if isinstance(s, Init)}
    accs = set(found.accs)
    if own & accs:
        return False
    stores: dict[Buffer, list[Store]] = {}
    for s in inside:
        if isinstance(s, Update) and s.acc not in own and (s.op != "add" or s.acc not in accs):
            return False
        if isinstance(s, Store) and s.buffer in found.folds:
            if s.op != "add" or s.mask is not None:
                return False
        elif isinstance(s, Store):
            if s.op is not None or found.kept:
                return False
            stores.setdefault(s.buffer, []).append(s)
        elif isinstance(s, Check):
            return False
    exprs = nodes([e for s in inside for e in expressions(s)])
    if any(isinstance(e, Acc) and e in accs for e in exprs):
        return False
    loads: dict[Buffer, list[Load]] = {}
    for e in exprs:
        if isinstance(e, Load):
            loads.setdefault(e.buffer, []).append(e)
    if any(f in loads for f in found.folds):
        return False
    for buffer, where in stores.items():
        reaches = [index_reach(x.index, found.loop.var) for x in (*where, *loads.get(buffer, []))]  # type: ignore[attr-defined]
        if any(r is None or r.step <= 0 or r.low < 0 or r.high >= r.step for r in reaches):
            return False
        if len({r.step for r in reaches if r is not None}) > 1:
            return False
    return True


# ------------------------------------------------------------------------------------------------ splitting it


def split_sum(step: KernelStep, count: int) -> Split | None:
    """`step` as a kernel over `count` parts of its summing loop, and the kernels that add up; None if it has no such loop."""
    kernel = step.kernel
    if "sum" not in kernel.meta:
        kernel.meta["sum"] = _find(kernel)
    found: _Sum | None = kernel.meta["sum"]
    if found is None or not found.loop.var.extent or found.loop.var.extent % count:
        return None
    loop, part = found.loop, found.loop.var.extent // count
    block, inner = LoopVar("part", count), LoopVar(loop.var.name, part)
    size = math.prod(k.var.extent for k in found.kept)
    place: Expr = index_scale(block, size)
    stride = size
    for k in found.kept:
        stride //= k.var.extent
        place = index_add(place, index_scale(k.var, stride))
    fresh = {acc: Acc(f"{acc.name}_part", acc.dtype) for acc in found.accs}
    parts = {acc: Buffer(f"parts_{acc.name}", acc.dtype, count * size, "out") for acc in found.accs}
    folds = {f: Buffer(f"parts_{f.name}", f.dtype, count * f.size, "inout") for f in found.folds}

    def moved(s: Store, index: Expr) -> tuple[Buffer, Expr]:
        if s.buffer in folds:
            return folds[s.buffer], index_add(index_scale(block, s.buffer.size), index)
        return s.buffer, index

    rewrite = _Rewrite({loop.var: index_add(index_scale(block, part), inner)}, fresh, moved)
    body: list[Stmt] = [Init(f, Const(acc.dtype.type(0), acc.dtype)) for acc, f in fresh.items()]
    body += [rewrite.stmt(s) for s in found.prefix if not isinstance(s, Init)]
    kind = "seq" if loop.kind in ("parallel", "blocks") else loop.kind
    body.append(Loop(inner, rewrite.body(loop.body), kind))
    body += [Store(parts[acc], place, f) for acc, f in fresh.items()]
    for k in reversed(found.kept):
        body = [Loop(k.var, body, "seq")]
    first = _step(
        step, kernel.name, [Loop(block, body, "parallel")], [*parts.values(), *folds.values()], {}, 0.99
    )
    bufs = dict(zip(first.kernel.buffers, first.args, strict=True))
    rest: list[KernelStep] = []
    if found.accs:
        rest.append(_totals(step, found, parts, bufs, count, size))
    args = dict(zip(kernel.buffers, step.args, strict=True))
    for f in found.folds:
        out, summed = args[f], bufs[folds[f]]
        rest.append(
            KernelStep(sum_of_parts(out, count, "partial sums, added in order"), (out, summed), step.eqns)
        )
    for added in rest:
        added.kernel.meta["sum"] = None  # short: not to be split again
    for pair in step.in_place:  # only where one of the kernels alone touches the bytes
        users = [s for s in (first, *rest) if pair[0] in s.args or pair[1] in s.args]
        if len(users) == 1:
            users[0].in_place += (pair,)
    return Split(first, rest)


def _totals(
    step: KernelStep, found: _Sum, parts: dict[Acc, Buffer], bufs: dict[Buffer, Buf], count: int, size: int
) -> KernelStep:
    """The original with the summing loop replaced by one over the parts."""
    which = LoopVar("part", count)
    place: Expr = index_scale(which, size)
    stride = size
    for k in found.kept:
        stride //= k.var.extent
        place = index_add(place, index_scale(k.var, stride))
    inputs = {acc: Buffer(p.name, p.dtype, p.size, "in") for acc, p in parts.items()}
    adds: list[Stmt] = [Update(acc, "add", Load(p, place)) for acc, p in inputs.items()]
    body: list[Stmt] = [*found.prefix, Loop(which, adds, "seq"), *found.suffix]
    for k in reversed(found.kept):
        body = [Loop(k.var, body, k.kind)]
    given = {inputs[acc]: bufs[p] for acc, p in parts.items()}
    return _step(step, f"{step.kernel.name}_total", body, list(inputs.values()), given, 0.01)


def _step(
    step: KernelStep, name: str, body: list[Stmt], extra: list[Buffer], given: dict[Buffer, Buf], share: float
) -> KernelStep:
    """A kernel made of part of `step`'s, with buffers of its own (`given`, or new ones) after those it still uses."""
    kernel = step.kernel
    used = buffers_of(body)
    kept = [(b, a) for b, a in zip(kernel.buffers, step.args, strict=True) if b in used]
    bufs = [given.get(b) or Buf(b.name, (b.size,), b.dtype) for b in extra]
    own = sum(b.size * b.dtype.itemsize for b in extra)
    new = Kernel(
        name,
        (*(b for b, _ in kept), *extra),
        body,
        kernel.notes,
        int(kernel.flops * share) + sum(b.size for b in extra),
        int(kernel.bytes * share) + own,
    )
    return KernelStep(new, (*(a for _, a in kept), *bufs), step.eqns)


def split_blocks(step: KernelStep) -> Split | None:
    """`for block: part = sum of the block; total += part` as two kernels: one fills an array of parts, one adds them."""
    kernel = step.kernel
    body = kernel.body
    at = next((n for n, s in enumerate(body) if isinstance(s, Loop)), len(body))
    if at == len(body) or not all(isinstance(s, Init) for s in body[:at]):
        return None
    loop = body[at]
    assert isinstance(loop, Loop)
    if loop.kind != "blocks" or any(isinstance(s, Check) for s in statements(body)):
        return None
    totals = [s for s in loop.body if isinstance(s, Update)]
    rest = [s for s in loop.body if not isinstance(s, Update)]
    own = {s.acc for s in rest if isinstance(s, Init)}
    outer = {s.acc for s in body[:at] if isinstance(s, Init)}
    inner_statements = list(statements(rest))
    reads_outer = {e for s in inner_statements for e in nodes(expressions(s)) if isinstance(e, Acc)} & outer
    writes_outer = {s.acc for s in inner_statements if isinstance(s, Update)} - own
    fits = all(t.op == "add" and t.acc in outer and t.value in own for t in totals)
    if not totals or not fits or reads_outer or writes_outer or len({t.acc for t in totals}) < len(totals):
        return None
    extent = loop.var.extent
    parts = [Buffer(f"parts_{t.acc.name}", t.acc.dtype, extent, "out") for t in totals]
    stores: list[Stmt] = [
        Store(p, Affine(0, [(loop.var, 1)]), t.value) for p, t in zip(parts, totals, strict=True)
    ]
    share = extent / (extent + 1)
    first = _step(step, kernel.name, [Loop(loop.var, [*rest, *stores], "parallel")], parts, {}, share)
    bufs = dict(zip(first.kernel.buffers, first.args, strict=True))
    var = LoopVar(loop.var.name, extent)
    inputs = [Buffer(p.name, p.dtype, p.size, "in") for p in parts]
    adds: list[Stmt] = [
        Update(t.acc, "add", Load(p, Affine(0, [(var, 1)]))) for p, t in zip(inputs, totals, strict=True)
    ]
    given = {i: bufs[p] for i, p in zip(inputs, parts, strict=True)}
    second_body = [*body[:at], Loop(var, adds, "seq"), *body[at + 1 :]]
    second = _step(step, f"{kernel.name}_total", second_body, inputs, given, 0.001)
    second.kernel.meta["sum"] = None
    for pair in step.in_place:
        users = [s for s in (first, second) if pair[0] in s.args or pair[1] in s.args]
        if len(users) == 1:
            users[0].in_place += (pair,)
    return Split(first, [second])
