"""Stages to kernels: each stage joins the latest group that its inputs allow, or starts one; then groups become kernels.

Every buffer is written by one stage or step, so a stage may move up to any place after the producers of what it reads.
A store that nothing reads (its readers took the value inside their own kernel) is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

from fgrad.codegen import loops
from fgrad.codegen.loops import Buffer, Expr, Kernel, Load, Loop, Stmt, Store
from fgrad.codegen.program import Buf, KernelStep, Step, nested_blocks, walk
from fgrad.ir import Eqn
from fgrad.passes.emit import Emitter
from fgrad.passes.exprs import loads
from fgrad.passes.group import Group
from fgrad.passes.lazy import Stage
from fgrad.passes.lowering import Shared
from fgrad.passes.nests import finish_kernel

MOST_STAGES = 24  # in one kernel
# How many places a stage may move up to join a kernel. What is computed early is kept long: a value that the backward
# pass computes again (a checkpoint) must not end up in the kernel that computed it the first time.
LOOK_BACK = 8


def schedule(items: Sequence[Stage | Step], shared: Shared, keep: set[Buf]) -> list[Step]:
    """The steps that compute `items`; stores to buffers outside `keep` and not read are dropped."""
    entries = _assign(_scalars_first(items, shared), shared, keep)
    bodies: list[tuple[Group, list[Stmt]] | Step] = [
        (e, Emitter(shared, e).body()) if isinstance(e, Group) else e for e in entries
    ]
    _drop_dead_stores(bodies, shared, keep)
    steps: list[Step] = []
    for entry in bodies:
        if isinstance(entry, Step):
            steps.append(entry)
        elif entry[1]:
            group, body = entry
            eqns = tuple(dict.fromkeys(e for s in group.stages() for e in s.eqns))
            kernel, args = finish_kernel(shared, _name(group, eqns), body, eqns)
            steps.append(KernelStep(kernel, tuple(args), eqns, in_place_pairs(kernel, args)))
    return steps


def _stage_loads(stage: Stage) -> list[Load]:
    exprs: list[Expr] = [e for _, index, value in stage.stores for e in (index, value)]
    exprs += [value for _, value in stage.inits]
    exprs += [e for u in stage.updates for e in loops.expressions(u)]
    return loads(exprs)


def _scalars_first(items: Sequence[Stage | Step], shared: Shared) -> list[Stage | Step]:
    """Single numbers made of the block's inputs alone, such as a learning rate, before all else: whoever needs one need not
    wait for what happens to stand before it."""
    early: list[Stage | Step] = []
    others: list[Stage | Step] = []
    late: set[Buf] = set()
    for item in items:
        if isinstance(item, Stage):
            if not item.dims and late.isdisjoint(shared.bufs[ld.buffer].root for ld in _stage_loads(item)):
                early.append(item)
                continue
            late.update(buf.root for buf, _, _ in item.stores)
        else:
            for inner in (item, *(s for block in nested_blocks(item) for s in walk(block))):
                late.update(buf.root for buf in inner.writes)
        others.append(item)
    return [*early, *others]


def _assign(items: Sequence[Stage | Step], shared: Shared, keep: set[Buf]) -> list[Group | Step]:
    entries: list[Group | Step] = []
    written_at: dict[Buf, int] = {}
    readers: dict[Buffer, list[int]] = {}
    for item in items:
        if isinstance(item, Step):
            for inner in (item, *(s for block in nested_blocks(item) for s in walk(block))):
                for buf in inner.writes:
                    written_at[buf.root] = len(entries)
            entries.append(item)
            continue
        stage_loads = _stage_loads(item)
        earliest = max((written_at.get(shared.bufs[ld.buffer].root, -1) for ld in stage_loads), default=-1)
        kept = all(buf.root in keep for buf, _, _ in item.stores)  # anyway, so it may be computed at any time
        nearest = max(earliest, 0 if kept and earliest >= 0 else len(entries) - LOOK_BACK, 0)
        candidates = {earliest} if earliest == nearest else set()
        for ld in stage_loads:
            if ld.buffer.size > 1:
                candidates.update(n for n in readers.get(ld.buffer, ())[-LOOK_BACK:] if n >= nearest)
        if not item.dims and entries:
            candidates.add(len(entries) - 1)
        place = -1
        for n in sorted(candidates, reverse=True):
            group = entries[n]
            if isinstance(group, Group) and group.size < MOST_STAGES and group.join(item, stage_loads):
                place = n
                break
        if place < 0:
            place = len(entries)
            entries.append(Group(shared, item, stage_loads))
        for buf, _, _ in item.stores:
            written_at[buf.root] = max(place, written_at.get(buf.root, -1))
        for ld in stage_loads:
            where = readers.setdefault(ld.buffer, [])
            if not where or where[-1] != place:
                where.append(place)
    return entries


def _drop_dead_stores(bodies: list, shared: Shared, keep: set[Buf]) -> None:
    """Remove stores to temporaries that no statement and no step reads."""
    fixed = set(keep)
    for entry in bodies:
        if isinstance(entry, Step):
            for inner in (entry, *(s for block in nested_blocks(entry) for s in walk(block))):
                fixed.update(b.root for b in inner.reads)
                index = getattr(inner, "index", None) or getattr(inner, "pred", None)
                if index is not None:
                    fixed.add(index.root)
    changed = True
    while changed:
        changed = False
        read = set(fixed)
        for entry in bodies:
            if not isinstance(entry, Step):
                exprs = [e for s in loops.statements(entry[1]) for e in loops.expressions(s)]
                read.update(shared.bufs[ld.buffer].root for ld in loads(exprs))
        for n, entry in enumerate(bodies):
            if isinstance(entry, Step):
                continue
            live = _without_dead(entry[1], read, shared)
            if live is not entry[1]:
                bodies[n] = (entry[0], live)
                changed = True


def _without_dead(body: list[Stmt], read: set[Buf], shared: Shared) -> list[Stmt]:
    result: list[Stmt] = []
    changed = False
    for s in body:
        if (
            isinstance(s, Store)
            and shared.bufs[s.buffer].root.kind == "temp"
            and shared.bufs[s.buffer].root not in read
        ):
            changed = True
            continue
        if isinstance(s, Loop):
            inner = _without_dead(s.body, read, shared)
            if inner is not s.body:
                changed = True
                if not inner:
                    continue
                s = Loop(s.var, inner, s.kind)
        result.append(s)
    return result if changed else body


def _name(group: Group, eqns: Sequence[Eqn]) -> str:
    """The last equation's name says most about a kernel; "fused" that there are others."""
    last = next(reversed(eqns), None)
    base = last.prim.name if last is not None else "copy"
    return base if len(eqns) <= 1 else f"fused_{base}"


def in_place_pairs(kernel: Kernel, args: Sequence[Buf]) -> tuple[tuple[Buf, Buf], ...]:
    """(written, read) buffers that may be the same memory: each element that is written is read only before, at the same
    index, inside the loop iteration that writes it."""
    stores: dict[Buffer, list[tuple[tuple[int, ...], Expr, int]]] = {}
    reads: dict[Buffer, list[tuple[tuple[int, ...], Expr, int]]] = {}
    number = 0

    def visit(body: Sequence[Stmt], path: tuple[int, ...]) -> None:
        nonlocal number
        seen: set[int] = set()  # a value used again in the same body is not loaded again
        for s in body:
            number += 1
            if isinstance(s, Loop):
                visit(s.body, (*path, number))
                continue
            for ld in loads(loops.expressions(s)):
                if id(ld) not in seen:
                    seen.add(id(ld))
                    reads.setdefault(ld.buffer, []).append((path, ld.index, number))
            if isinstance(s, Store):
                stores.setdefault(s.buffer, []).append((path, s.index, number))

    visit(kernel.body, ())
    bound = dict(zip(kernel.buffers, args, strict=True))
    pairs = []
    for out, where in stores.items():
        if out.role != "out":
            continue
        for source, used in reads.items():
            if source.role != "in" or source.size != out.size or source.dtype.itemsize != out.dtype.itemsize:
                continue
            # No element is stored twice, so only the store at a read's own index could come before it.
            if all(any(p[: len(at)] == at and i is j and n <= m for at, j, m in where) for p, i, n in used):
                pairs.append((bound[out], bound[source]))
    return tuple(pairs)
