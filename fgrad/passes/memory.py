"""Where every temporary lives: one arena for the whole program, planned before it runs.

    step                 x(in)  a      b      c      y(out)
    0  a = exp x           r    w
    1  b = reduce a             r      w
    2  c = div a b              r      r      w            c takes a's bytes: listed as in place, a is read here last
    3  y = matmul c                           r      w

What only the members of one chain touch needs no more room than a fraction of it for each worker (`program.Local`), and is
placed within a chain as whole buffers are in the program.

A buffer is live from its first touch to its last. Inside a loop body, what one iteration leaves for the next, or what is
also touched outside, stays for the whole loop. Buffers are then placed largest first, each at the tightest gap between
those that are live at the same time (the "greedy by size" of Pisarchyk and Lee, 2020, https://arxiv.org/abs/2001.03288).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fgrad.codegen.cuda.launch import LaunchStep
from fgrad.codegen.program import (
    Block,
    Buf,
    ChainStep,
    ContractStep,
    CopyStep,
    ForStep,
    KernelStep,
    Local,
    Program,
    Step,
    SwitchStep,
    WhileStep,
    walk,
)

ALIGNMENT = 64  # a cache line, and the widest vector


@dataclass
class Lifetime:
    """Touched from time `start` to `end`, both included. Times number the steps as they stand, nested ones too."""

    start: int
    end: int

    def overlaps(self, other: Lifetime) -> bool:
        return self.start <= other.end and other.start <= self.end


@dataclass
class Liveness:
    """`lifetimes` of every root buffer, the step at each time, and of each chain its times and in-place pairs.

    Lifetimes take the members of a chain one after another, as one piece sees them; see `_together`.
    """

    lifetimes: dict[Buf, Lifetime] = field(default_factory=dict)
    steps: list[Step | None] = field(default_factory=list)
    chains: list[tuple[int, int, ChainStep]] = field(default_factory=list)
    touched_by: dict[Buf, set[ChainStep | None]] = field(default_factory=dict)  # None: by a step in no chain
    pairs: dict[int, tuple[tuple[KernelStep | ContractStep | LaunchStep, Buf, Buf], ...]] = field(
        default_factory=dict
    )


class _Recorder:
    """Numbers the steps and notes first and last touches, and for each loop its times and what it carries."""

    def __init__(self) -> None:
        self.live = Liveness()
        self.inside: ChainStep | None = None
        self.loops: list[tuple[int, int, set[Buf]]] = []  # inner ones first

    def touch(self, step: Step | None, reads: tuple[Buf, ...], writes: tuple[Buf, ...]) -> None:
        t = len(self.live.steps)
        self.live.steps.append(step)
        for buf in (*reads, *writes):
            self.live.lifetimes.setdefault(buf.root, Lifetime(t, t)).end = t
            self.live.touched_by.setdefault(buf.root, set()).add(self.inside)

    def block(self, block: Block) -> None:
        for step in block.steps:
            if isinstance(step, SwitchStep):
                self.touch(None, (step.index,), ())
                for branch in step.branches:
                    self.block(branch)
            elif isinstance(step, (WhileStep, ForStep)):
                self.loop(step)
            elif isinstance(step, ChainStep):
                self.chain(step)
            else:
                if isinstance(step, (KernelStep, ContractStep, LaunchStep)) and step.in_place:
                    self.live.pairs[len(self.live.steps)] = tuple((step, w, r) for w, r in step.in_place)
                self.touch(step, step.reads, step.writes)

    def chain(self, step: ChainStep) -> None:
        start = len(self.live.steps)
        self.inside = step
        for member in step.body.steps:
            self.live.pairs[len(self.live.steps)] = tuple(p for p in step.in_place if p[0] is member)
            self.touch(member, member.reads, member.writes)
        self.inside = None
        self.live.chains.append((start, len(self.live.steps) - 1, step))

    def loop(self, step: WhileStep | ForStep) -> None:
        start = len(self.live.steps)
        if isinstance(step, WhileStep):
            self.block(step.cond)
            self.touch(None, (step.pred,), ())
        self.block(step.body)
        moving = {view.root for view in step.moving} if isinstance(step, ForStep) else set()
        end = len(self.live.steps) - 1
        if end >= start:
            self.loops.append((start, end, _read_first(step) | moving))


def _read_first(loop: WhileStep | ForStep) -> set[Buf]:
    """Roots that one iteration reads (or may read) before it has written them: the previous iteration's values."""
    seen: set[Buf] = set()
    found: set[Buf] = set()

    def visit(reads: tuple[Buf, ...], writes: tuple[Buf, ...]) -> None:
        found.update(b.root for b in reads if b.root not in seen)
        seen.update(b.root for b in (*reads, *writes))

    for block in (loop.cond, loop.body) if isinstance(loop, WhileStep) else (loop.body,):
        for step in walk(block):
            if isinstance(step, SwitchStep):
                visit((step.index,), ())
            elif isinstance(step, WhileStep):
                continue
            elif not isinstance(step, ForStep):
                visit(step.reads, step.writes)
        if isinstance(loop, WhileStep) and block is loop.cond:
            visit((loop.pred,), ())
    return found


def liveness(program: Program) -> Liveness:
    """Lifetimes of all buffers of `program`, loops taken into account."""
    recorder = _Recorder()
    recorder.block(program.body)
    for start, end, carried in recorder.loops:
        for root, life in recorder.live.lifetimes.items():
            inside = life.start <= end and life.end >= start
            if inside and (life.start < start or life.end > end or root in carried):
                life.start, life.end = min(life.start, start), max(life.end, end)
    return recorder.live


def plan_memory(program: Program) -> None:
    """Fill `program.placed`, `program.offsets` and `program.arena_bytes`.

    A donated input whose bytes cannot be written early enough gets its output by a copy at the very end.
    """
    live = liveness(program)
    if _place_donated(program, live):
        live = liveness(program)
    groups = _coalesce(program, live)
    program.offsets, program.local = {}, {}
    slots: list[tuple[list[tuple[Buf, int]], Lifetime, int]] = []
    local: dict[ChainStep, list[tuple[list[Buf], Lifetime]]] = {}
    for members, life in groups:
        chain = _only_chain(live, members)
        if chain is None:
            size = max(b.nbytes for b in members)
            slots.append(([(b, 0) for b in members], _together(live, life), _round_up(size)))
        else:
            local.setdefault(chain, []).append((members, life))
    for number, (start, end, chain) in enumerate(live.chains):
        if chain in local:
            found = [(m, life, _round_up(m[0].nbytes // chain.count)) for m, life in local[chain]]
            places, stride = _pack(found)
            inside = [(b, offset) for (members, *_), offset in zip(found, places) for b in members]
            for b, _ in inside:
                program.local[b] = Local(stride, b.nbytes // chain.count, number)
            slots.append((inside, Lifetime(start, end), stride * chain.count))
    offsets, program.arena_bytes = _pack(slots)
    for (inside, *_), offset in zip(slots, offsets):
        for buf, further in inside:
            program.offsets[buf] = offset + further


def _pack(slots: Sequence[tuple[Any, Lifetime, int]]) -> tuple[list[int], int]:
    """An offset for each (anything, lifetime, bytes), largest first, and the bytes of all."""
    offsets = [0] * len(slots)
    placed: list[tuple[int, int, Lifetime]] = []
    for n in sorted(range(len(slots)), key=lambda n: (-slots[n][2], slots[n][1].start)):
        _, life, size = slots[n]
        offsets[n] = _tightest_gap(size, sorted((o, o + s) for o, s, other in placed if other.overlaps(life)))
        placed.append((offsets[n], size, life))
    return offsets, max((o + s for o, s, _ in placed), default=0)


def _round_up(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _only_chain(live: Liveness, members: list[Buf]) -> ChainStep | None:
    """The chain of whose pieces each writes and reads a fraction of the buffers that nobody else touches; None if there is none."""
    owners = {owner for b in members for owner in live.touched_by[b]}
    chain = owners.pop() if len(owners) == 1 else None
    if chain is None or not chain.home.issuperset(members):
        return None
    before = {b.root for b in chain.reads}  # left there by an iteration of a loop around
    return chain if before.isdisjoint(members) else None


def peak_memory(program: Program) -> int:
    """Bytes that a call needs beside its inputs: the arena, the outputs that no donated input holds, the constants."""
    outputs = sum(buf.nbytes for j, buf in enumerate(program.outputs) if j not in program.placed)
    constants = {
        b.root for step in walk(program.body) for b in (*step.reads, *step.writes) if b.root.kind == "const"
    }
    return program.arena_bytes + outputs + sum(buf.nbytes for buf in constants)


def _tightest_gap(size: int, taken: list[tuple[int, int]]) -> int:
    best, best_room, cursor = None, 0, 0
    for low, high in taken:
        room = low - cursor
        if room >= size and (best is None or room < best_room):
            best, best_room = cursor, room
        cursor = max(cursor, high)
    return cursor if best is None else best


def _coalesce(program: Program, live: Liveness) -> list[tuple[list[Buf], Lifetime]]:
    """Temporaries grouped by in-place pairs: (buffers, lifetime of the group)."""
    group: dict[Buf, tuple[list[Buf], Lifetime]] = {
        root: ([root], Lifetime(life.start, life.end))
        for root, life in live.lifetimes.items()
        if root.kind == "temp"
    }
    for t, pairs in sorted(live.pairs.items()):
        for kernel, written, read in pairs:
            if written.root not in group or read.root not in group or not _may_share(kernel, written, read):
                continue
            ours, theirs = group[written.root], group[read.root]
            if (
                ours is not theirs
                and live.lifetimes[read.root].end == t == live.lifetimes[written.root].start
            ):
                if ours[1].start != t or theirs[1].end != t:
                    continue  # one of them already shares with another buffer that is live here
                theirs[0].extend(ours[0])
                theirs[1].end = ours[1].end
                for member in ours[0]:
                    group[member] = theirs
    return list({id(g): g for g in group.values()}.values())


def _together(live: Liveness, life: Lifetime) -> Lifetime:
    """What a chain touches is live in all of it: while one piece is at the last member, another may be at the first."""
    start, end = life.start, life.end
    for low, high, _ in live.chains:
        if life.start <= high and life.end >= low:
            start, end = min(start, low), max(end, high)
    return Lifetime(start, end)


def _may_share(step: KernelStep | ContractStep | LaunchStep, written: Buf, read: Buf) -> bool:
    """Whole buffers of the same number of equally wide elements, each bound to one parameter of the kernel."""
    args = (*step.reads, *step.writes) if isinstance(step, ContractStep) else step.args
    return (
        written.nbytes == written.root.nbytes == read.nbytes == read.root.nbytes
        and written.dtype.itemsize == read.dtype.itemsize
        and sum(a.root is written.root for a in args) == 1
        and sum(a.root is read.root for a in args) == 1
    )


def _place_donated(program: Program, live: Liveness) -> bool:
    """Decide each donation; True if copies were added to the program."""
    added = False
    for i, j in sorted(program.donated.items()):
        source, target = program.inputs[i], program.outputs[j]
        if j in program.placed or target.nbytes != source.nbytes or target.kind != "output":
            continue
        if any(other is target for k, other in enumerate(program.outputs) if k != j):
            continue
        if not _written_late_enough(live, source, target):
            # The old Buf becomes a temporary; a new one is the output, in the donated bytes.
            target.kind = "temp"
            final = Buf(target.name + "_donated", target.shape, target.dtype, kind="output")
            outputs = list(program.outputs)
            outputs[j] = final
            program.outputs = tuple(outputs)
            program.body.steps.append(CopyStep(final, target))
            added = True
        program.placed[j] = i
    return added


def _written_late_enough(live: Liveness, source: Buf, target: Buf) -> bool:
    last, first = live.lifetimes.get(source), live.lifetimes.get(target)
    if last is None or first is None or last.end < first.start:
        return True
    if last.end > first.start:
        return False
    step = live.steps[first.start]
    if isinstance(step, CopyStep):
        return step.dst is target and step.src is source
    pairs = live.pairs.get(first.start, ())
    return any(w is target and r is source and _may_share(k, w, r) for k, w, r in pairs)
