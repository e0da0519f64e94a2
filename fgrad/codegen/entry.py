"""A planned program as one LLVM module with one exported function over a table of pointers.

    void NAME(ptr table, i64 segment)

The table holds, in this order (see `Layout`): the status word, the arena, constants, inputs, outputs, and the index of
every loop that the host runs. Steps that call NumPy cut the program: what lies between two cuts is a segment, and control flow
that holds a cut is run by the host, segment by segment. A program without cuts is one segment:

    define internal void @f.0(ptr %table) {
      %arena = load ptr, ptr (table + 8)                 ; every pointer is loaded once
      call void @softmax_1(ptr %out0, ptr %arena + 128)
      ...
    }
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import numpy as np
from llvmlite import ir

from fgrad.codegen import gemm
from fgrad.codegen.canonical import kernel_text
from fgrad.codegen.llvm import I1, I8, I64, POINTER, Binding, emit_kernel, new_module
from fgrad.codegen.planning import plan as plan_contraction
from fgrad.codegen.program import (
    Block,
    Buf,
    ContractStep,
    CopyStep,
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
from fgrad.codegen.target import TargetInfo

_BYTE = np.dtype(np.uint8)

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

    STATUS, ARENA, FIRST = 0, 1, 2

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
        self.loop_of = {view: s for s in walk(program.body) if isinstance(s, ForStep) for view in s.moving}

    def __getitem__(self, buf: Buf) -> Place:
        if buf not in self.cache:
            self.cache[buf] = self.find(buf)
        return self.cache[buf]

    def find(self, buf: Buf) -> Place:
        if buf.base is None:
            if buf.kind == "temp":
                offset = self.program.offsets[buf]
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
    return Binding(tuple(numbers), alone, align)


# ------------------------------------------------------------------------------------------------ the module


def plan_contractions(program: Program, target: TargetInfo) -> None:
    """Choose how each contraction is computed, and give it the workspace it needs. Before memory is planned."""
    for step in walk(program.body):
        if isinstance(step, ContractStep) and "plan" not in step.meta:
            chosen = step.meta["plan"] = plan_contraction(step.spec, target)
            if chosen.workspace_bytes and step.workspace is None:
                step.workspace = Buf(f"work_{step.out.name}", (chosen.workspace_bytes,), _BYTE)


@dataclass(eq=False)
class Entry:
    """A program's module: `text` is its LLVM IR, `symbol` the exported function, `notes` what each kernel came from."""

    text: str
    symbol: str
    kernels: dict[str, tuple[str, ...]] = field(default_factory=dict)


def emit_program(program: Program, symbol: str, target: TargetInfo) -> Entry:
    """Print `program` (contractions and memory planned) as a module that exports `void symbol(ptr table, i64 segment)`."""
    items, segments = cut(program)
    layout = Layout(program, items)
    module = new_module(symbol)
    shared = _Shared(module, layout, Places(program, layout), target)
    functions = [shared.segment(s, f"segment.{s.index}") for s in segments]
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64]), symbol)
    entry.attributes.add("nounwind")
    b = ir.IRBuilder(entry.append_basic_block("entry"))
    done = entry.append_basic_block("done")
    chosen = b.switch(entry.args[1], done)
    for n, fn in enumerate(functions):
        case = entry.append_basic_block(f"case.{n}")
        chosen.add_case(I64(n), case)
        b.position_at_end(case)
        b.call(fn, [entry.args[0]])
        b.branch(done)
    b.position_at_end(done)
    b.ret_void()
    return Entry(str(module), symbol, shared.notes)


class _Shared:
    """Kernels and contractions of a module, each printed once."""

    def __init__(self, module: ir.Module, layout: Layout, places: Places, target: TargetInfo):
        self.module, self.layout, self.places, self.target = module, layout, places, target
        self.kernels: dict[Any, ir.Function] = {}
        self.contractions: dict[str, ir.Function] = {}
        self.notes: dict[str, tuple[str, ...]] = {}
        self.names: set[str] = set()

    def segment(self, segment: Segment, name: str) -> ir.Function:
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER]), name)
        fn.linkage = "internal"
        fn.attributes.add("nounwind")
        _SegmentEmitter(self, fn).run(segment.steps)
        return fn

    def unique(self, wanted: str) -> str:
        name, n = wanted, 1
        while name in self.names:
            n += 1
            name = f"{wanted}.{n}"
        self.names.add(name)
        return name

    def kernel(self, step: KernelStep) -> tuple[ir.Function, Binding]:
        binding = bind(step, self.places)
        key = (kernel_text(step.kernel), binding)
        fn = self.kernels.get(key)
        if fn is None:
            name = self.unique(f"kernel.{step.kernel.name}")
            fn = self.kernels[key] = emit_kernel(self.module, step.kernel, name, binding, self.target)
            self.notes[name] = step.kernel.notes
        return fn, binding

    def contraction(self, step: ContractStep) -> ir.Function:
        key = repr(step.spec)
        fn = self.contractions.get(key)
        if fn is None:
            name = self.unique(f"contract.{step.out.name}")
            fn = gemm.emit(self.module, step.spec, step.meta["plan"], name)
            fn.linkage = "internal"
            fn.attributes.add("noinline")
            self.contractions[key] = fn
            self.notes[name] = (str(step.meta["plan"]),)
        return fn


class _SegmentEmitter:
    def __init__(self, shared: _Shared, fn: ir.Function):
        self.shared, self.fn = shared, fn
        self.loads = ir.IRBuilder(fn.append_basic_block("entry"))
        self.start = fn.append_basic_block("start")
        self.builder = ir.IRBuilder(self.start)
        self.loaded: dict[int, ir.Value] = {}
        self.indices: dict[Buf, ir.Value] = {}

    def run(self, steps: Sequence[Step]) -> None:
        for n, loop in enumerate(self.shared.layout.loops):
            if loop.moving:
                address = self.loads.gep(
                    self.fn.args[0], [I64(self.shared.layout.loops_at + n)], source_etype=I64
                )
                index = self.loads.load(address, typ=I64)
                self.indices.update(dict.fromkeys(loop.moving, index))
        self.steps(steps)
        self.builder.ret_void()
        self.loads.branch(self.start)

    def pointer(self, slot: int) -> ir.Value:
        if slot not in self.loaded:
            address = self.loads.gep(self.fn.args[0], [I64(slot)], source_etype=POINTER)
            self.loaded[slot] = self.loads.load(address, typ=POINTER)
        return self.loaded[slot]

    def shift(self, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
        if isinstance(offset, int):
            if offset == 0:
                return pointer
            offset = I64(offset)
        return self.builder.gep(pointer, [offset], inbounds=True, source_etype=I8)

    def address(self, buf: Buf) -> ir.Value:
        if buf.base is None:
            if buf.kind == "temp":
                return self.shift(self.pointer(Layout.ARENA), self.shared.places[buf].offset)
            return self.pointer(self.shared.layout.slot(buf))
        pointer = self.shift(self.address(buf.base), buf.byte_offset)
        if buf.byte_stride:
            pointer = self.shift(
                pointer, self.builder.mul(self.indices[buf], I64(buf.byte_stride), flags=("nsw",))
            )
        return pointer

    # -------------------------------------------------------------------------------------------- steps

    def steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self.step(step)

    def step(self, step: Step) -> None:
        if isinstance(step, KernelStep):
            self.run_kernel(step)
        elif isinstance(step, ContractStep):
            work = POINTER(None) if step.workspace is None else self.address(step.workspace)
            self.call(
                self.shared.contraction(step), [*map(self.address, (step.out, step.lhs, step.rhs)), work]
            )
        elif isinstance(step, CopyStep):
            self.copy(step)
        elif isinstance(step, SwitchStep):
            self.run_switch(step)
        elif isinstance(step, WhileStep):
            self.run_while(step)
        elif isinstance(step, ForStep):
            self.run_for(step)
        else:
            raise NotImplementedError(f"no native code for {type(step).__name__}")

    def call(self, fn: ir.Function, args: Sequence[ir.Value]) -> None:
        b = self.builder
        typed = [a if t == a.type else b.bitcast(a, t) for a, t in zip(args, fn.ftype.args, strict=True)]
        b.call(fn, typed)

    def run_kernel(self, step: KernelStep) -> None:
        fn, binding = self.shared.kernel(step)
        args: dict[int, ir.Value] = {}
        for arg, slot in zip(step.args, binding.slots):
            if slot not in args:
                args[slot] = self.address(arg)
        self.call(fn, [args[n] for n in range(len(args))])

    def copy(self, step: CopyStep) -> None:
        if step.dst.nbytes != step.src.nbytes:
            raise ValueError(
                f"copy of {step.src.nbytes} bytes to {step.dst.nbytes}: {step.src.name} -> {step.dst.name}"
            )
        dst, src = self.shared.places[step.dst], self.shared.places[step.src]
        if dst.key == src.key or step.dst.nbytes == 0:
            return
        name = "llvm.memmove.p0.p0.i64" if dst.overlaps(src) else "llvm.memcpy.p0.p0.i64"
        fn = self.shared.module.globals.get(name)
        if fn is None:
            fn = ir.Function(
                self.shared.module, ir.FunctionType(ir.VoidType(), [POINTER, POINTER, I64, I1]), name
            )
        self.builder.call(fn, [self.address(step.dst), self.address(step.src), I64(step.dst.nbytes), I1(0)])

    def run_switch(self, step: SwitchStep) -> None:
        b = self.builder
        index = b.load(self.address(step.index), typ=I64)
        last = I64(len(step.branches) - 1)
        index = b.select(b.icmp_signed("<", index, I64(0)), I64(0), index)
        index = b.select(b.icmp_signed(">", index, last), last, index)
        blocks = [b.append_basic_block(f"branch.{n}") for n in range(len(step.branches))]
        after = b.append_basic_block("switch.done")
        chosen = b.switch(index, blocks[-1])
        for n, (block, branch) in enumerate(zip(blocks, step.branches)):
            if n < len(blocks) - 1:
                chosen.add_case(I64(n), block)
            b.position_at_end(block)
            self.steps(branch.steps)
            b.branch(after)
        b.position_at_end(after)

    def run_while(self, step: WhileStep) -> None:
        b = self.builder
        head, body, after = (b.append_basic_block(f"while.{part}") for part in ("head", "body", "done"))
        b.branch(head)
        b.position_at_end(head)
        self.steps(step.cond.steps)
        going = b.icmp_unsigned("!=", b.load(self.address(step.pred), typ=I8), I8(0))
        b.cbranch(going, body, after)
        b.position_at_end(body)
        self.steps(step.body.steps)
        b.branch(head)
        b.position_at_end(after)

    def run_for(self, step: ForStep) -> None:
        if step.length <= 0:
            return
        b = self.builder
        before, body, after = b.block, b.append_basic_block("for.body"), b.append_basic_block("for.done")
        b.branch(body)
        b.position_at_end(body)
        index = b.phi(I64)
        index.add_incoming(I64(0), before)
        self.indices.update(dict.fromkeys(step.moving, index))
        self.steps(step.body.steps)
        following = b.add(index, I64(1), flags=("nuw", "nsw"))
        index.add_incoming(following, b.block)
        b.cbranch(b.icmp_unsigned("==", following, I64(step.length)), after, body)
        b.position_at_end(after)
