"""Where a planned program's buffers are, and where it is cut into native segments and host steps.

The entry function addresses everything through one table of pointers; `Layout` numbers its slots, `Places` says which bytes of
which region each buffer takes, and so which kernel arguments overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from fgrad.codegen.llvm import Binding
from fgrad.codegen.program import (
    Block,
    Buf,
    ForStep,
    HostStep,
    KernelStep,
    Program,
    Step,
    SwitchStep,
    WhileStep,
    nested_blocks,
    walk,
)

# ------------------------------------------------------------------------------------------------ cutting at host steps


@dataclass(eq=False)
class Segment:
    """Steps that run as native code without a break; `index` is the entry's second argument."""

    index: int
    steps: list[Step]


@dataclass(eq=False)
class HostControl:
    """A control-flow step with a host step somewhere inside: the host decides, and runs the items of its blocks."""

    step: SwitchStep | WhileStep | ForStep
    blocks: tuple[list[Item], ...]


Item = Segment | HostStep | HostControl


def cut(program: Program) -> tuple[list[Item], list[Segment]]:
    """The program as items for the host to run in order, and all segments."""
    segments: list[Segment] = []

    def block(b: Block) -> list[Item]:
        items: list[Item] = []
        run: Segment | None = None
        for step in b.steps:
            if isinstance(step, HostStep):
                run = None
                items.append(step)
            elif any(isinstance(s, HostStep) for inner in nested_blocks(step) for s in walk(inner)):
                assert isinstance(step, (SwitchStep, WhileStep, ForStep))
                run = None
                items.append(HostControl(step, tuple(block(inner) for inner in nested_blocks(step))))
            else:
                if run is None:
                    run = Segment(len(segments), [])
                    segments.append(run)
                    items.append(run)
                run.steps.append(step)
        return items

    return block(program.body), segments


def host_loops(items: Sequence[Item]) -> Iterator[ForStep]:
    """The `ForStep`s that the host runs, outer ones first."""
    for item in items:
        if isinstance(item, HostControl):
            if isinstance(item.step, ForStep):
                yield item.step
            for block in item.blocks:
                yield from host_loops(block)


class Layout:
    """Which table slot holds which pointer."""

    STATUS, ARENA, POOL, FIRST = 0, 1, 2, 3

    def __init__(self, program: Program, items: Sequence[Item]):
        constants: dict[Buf, None] = {}
        for step in walk(program.body):
            touched = (*step.reads, *step.writes)
            if isinstance(step, SwitchStep):
                touched = (step.index,)
            elif isinstance(step, WhileStep):
                touched = (step.pred,)
            for buf in touched:
                if buf.root.kind == "const":
                    constants.setdefault(buf.root)
        self.constants = tuple(constants)
        self.loops = tuple(host_loops(items))
        self.inputs_at = self.FIRST + len(self.constants)
        self.outputs_at = self.inputs_at + len(program.inputs)
        self.loops_at = self.outputs_at + len(program.outputs)
        self.size = self.loops_at + len(self.loops)
        self.slots: dict[Buf, int] = {}
        for at, bufs in (
            (self.FIRST, self.constants),
            (self.inputs_at, program.inputs),
            (self.outputs_at, program.outputs),
        ):
            for n, buf in enumerate(bufs):
                self.slots.setdefault(buf, at + n)
        if program.status is not None:
            self.slots[program.status] = self.STATUS

    def slot(self, root: Buf) -> int:
        if root.kind == "status":
            return self.STATUS
        if root not in self.slots:
            raise ValueError(
                f"program buffer {root.name} ({root.kind}) is neither an input, an output nor a constant"
            )
        return self.slots[root]


# ------------------------------------------------------------------------------------------------ where buffers are


@dataclass(frozen=True)
class Place:
    """The bytes of a buffer: `low` to `high` within a region, over all iterations; `moves` are (loop, bytes an iteration)."""

    region: Any
    offset: int
    moves: tuple[tuple[int, int], ...]
    low: int
    high: int
    align: int

    @property
    def key(self) -> tuple[Any, ...]:
        return self.region, self.offset, self.moves

    def overlaps(self, other: Place) -> bool:
        return self.region == other.region and self.low < other.high and other.low < self.high


class Places:
    """Finds the `Place` of every buffer of a planned program."""

    def __init__(self, program: Program, layout: Layout):
        self.program, self.layout = program, layout
        self.cache: dict[Buf, Place] = {}
        self.users: Counter[Buf] = Counter()  # how many steps use a buffer or views of it
        for s in walk(program.body):
            decides = (getattr(s, "index", None), getattr(s, "pred", None))  # of a switch, of a loop
            self.users.update({b.root for b in (*s.reads, *s.writes, *decides) if b is not None})
        self.loop_of = {view: s for s in walk(program.body) if isinstance(s, ForStep) for view in s.moving}

    def __getitem__(self, buf: Buf) -> Place:
        if buf not in self.cache:
            self.cache[buf] = self.find(buf)
        return self.cache[buf]

    def find(self, buf: Buf) -> Place:
        if buf.base is None:
            if buf.kind == "temp":
                offset = self.program.offsets[buf]
                local = self.program.local.get(buf)
                if local is not None:  # other bytes than those of any buffer in the arena itself
                    align = gcd(64, local.fraction)
                    return Place(("local", local.chain), offset, (), offset, offset + local.fraction, align)
                return Place("arena", offset, (), offset, offset + buf.nbytes, 64)
            slot = self.layout.slot(buf)
            output = slot - self.layout.outputs_at
            if output in self.program.placed:
                slot = self.layout.inputs_at + self.program.placed[output]
            return Place(slot, 0, (), 0, buf.nbytes, buf.dtype.itemsize)
        base = self[buf.base]
        low = base.low + buf.byte_offset
        high = low + buf.nbytes + (base.high - base.low - buf.base.nbytes)
        moves, align = base.moves, gcd(base.align, buf.byte_offset)
        if buf.byte_stride:
            loop = self.loop_of[buf]
            moves = (*moves, (id(loop), buf.byte_stride))
            travel = buf.byte_stride * (max(loop.length, 1) - 1)
            low, high = low + min(travel, 0), high + max(travel, 0)
            align = gcd(align, buf.byte_stride)
        return Place(base.region, base.offset + buf.byte_offset, moves, low, high, align)


def bind(step: KernelStep, places: Places) -> Binding:
    """One kernel parameter for each distinct place; see `Binding`."""
    slots: dict[Any, int] = {}
    params: list[tuple[Place, bool, int]] = []
    numbers = []
    for arg, buffer in zip(step.args, step.kernel.buffers, strict=True):
        place, written = places[arg], buffer.role != "in"
        n = slots.setdefault(place.key, len(params))
        numbers.append(n)
        if n == len(params):
            params.append((place, written, buffer.dtype.itemsize))
        else:
            old = params[n]
            params[n] = (
                old[0] if old[0].high >= place.high else place,
                old[1] or written,
                max(old[2], buffer.dtype.itemsize),
            )
    alone = tuple(
        not any(
            m != n and (writes or other[1]) and place.overlaps(other[0]) for m, other in enumerate(params)
        )
        for n, (place, writes, _) in enumerate(params)
    )
    align = tuple(max(place.align, 1) for place, _, _ in params)
    private = tuple(
        n
        for n, (arg, slot) in enumerate(zip(step.args, numbers))
        if arg.root.kind == "temp" and places.users[arg.root] == 1 and numbers.count(slot) == 1
    )
    part = tuple(isinstance(p.region, tuple) for p, _, _ in params)
    return Binding(tuple(numbers), alone, align, part, private)
