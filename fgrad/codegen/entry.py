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

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir

from fgrad.codegen import gemm, team
from fgrad.codegen.canonical import kernel_text
from fgrad.codegen.clock import StepClock
from fgrad.codegen.layout import Layout, Places, Segment, bind, cut
from fgrad.codegen.llvm import I1, I8, I64, POINTER, Binding, emit_kernel, new_module
from fgrad.codegen.parts import emit_parts
from fgrad.codegen.pieces import ContractPieces, Pieces, pieces_of, worth_threads
from fgrad.codegen.program import (
    Buf,
    ChainStep,
    ContractStep,
    CopyStep,
    ForStep,
    KernelStep,
    Program,
    Step,
    SwitchStep,
    WhileStep,
)
from fgrad.codegen.target import TargetInfo
from fgrad.codegen.tasks import Call, contraction_call, emit_task, kernel_call, piece_call, piece_range


@dataclass(eq=False)
class Entry:
    """A program's module: `text` is its LLVM IR, `symbol` the exported function, `notes` what each kernel came from."""

    text: str
    symbol: str
    kernels: dict[str, tuple[str, ...]] = field(default_factory=dict)


def emit_program(
    program: Program,
    symbol: str,
    target: TargetInfo,
    segments: Sequence[Segment] | None = None,
    clock: StepClock | None = None,
) -> Entry:
    """Print `program` (contractions and memory planned) as a module that exports `void symbol(ptr table, i64 segment)`.

    `segments` replaces those that the host steps make, for running parts of the program by themselves. A `clock` is read around
    every step and segment.
    """
    items, found = cut(program)
    segments = found if segments is None else segments
    layout = Layout(program, items)
    module = new_module(symbol)
    shared = _Shared(program, module, layout, target, clock)
    functions = [shared.segment(s) for s in segments]
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64]), symbol)
    entry.attributes.add("nounwind")
    b = ir.IRBuilder(entry.append_basic_block("entry"))
    done = entry.append_basic_block("done")
    chosen = b.switch(entry.args[1], done)
    for n, (segment, fn) in enumerate(zip(segments, functions)):
        case = entry.append_basic_block(f"case.{n}")
        chosen.add_case(I64(n), case)
        b.position_at_end(case)
        begun = clock.begin(b, stamp=True) if clock else None
        b.call(fn, [entry.args[0], POINTER(None)])
        if clock:
            clock.end(b, segment, begun)
        b.branch(done)
    b.position_at_end(done)
    b.ret_void()
    if target.forced:
        _restrict(module, target)
    texts = [team.common_text(), *shared.texts] if shared.tasks else []
    if clock:
        texts.append(clock.text(declared=bool(shared.tasks)))
    return Entry("\n".join([str(module), *texts]), symbol, shared.notes)


def _restrict(module: ir.Module, target: TargetInfo) -> None:
    """Have LLVM compile every function for `target` rather than for the machine. llvmlite's `add` knows no such attributes."""
    for fn in module.functions:
        if not fn.is_declaration:
            set.add(fn.attributes, f'"target-cpu"="{target.cpu}"')
            set.add(fn.attributes, f'"target-features"="{target.features}"')


class _Shared:
    """Kernels and contractions of a module, each printed once."""

    def __init__(
        self,
        program: Program,
        module: ir.Module,
        layout: Layout,
        target: TargetInfo,
        clock: StepClock | None = None,
    ):
        self.program, self.module, self.layout, self.target = program, module, layout, target
        self.places = Places(program, layout)
        self.clock = clock
        self.kernels: dict[Any, ir.Function] = {}
        self.contractions: dict[str, ir.Function] = {}
        self.tasks: dict[Any, ir.Function] = {}
        self.texts: list[str] = []
        self.notes: dict[str, tuple[str, ...]] = {}
        self.names: set[str] = set()

    def segment(self, segment: Segment) -> ir.Function:
        """`void segment(ptr table, ptr team)`, or the function that enters it with the pool of threads."""
        name = f"segment.{segment.index}"
        fn = ir.Function(self.module, team.SEGMENT, name)
        fn.linkage = "internal"
        fn.attributes.add("nounwind")
        SegmentEmitter(self, fn).run(segment.steps)
        if not worth_threads(segment.steps):
            return fn
        self.texts.append(team.segment_text(name, Layout.POOL))
        return team.enter(name)

    def unique(self, wanted: str) -> str:
        name, n = wanted, 1
        while name in self.names:
            n += 1
            name = f"{wanted}.{n}"
        self.names.add(name)
        return name

    def kernel(self, step: KernelStep, ranged: bool = False) -> tuple[ir.Function, Binding]:
        """The kernel's function; `ranged` ones take a range of the outermost loop after their pointers."""
        binding = bind(step, self.places)
        key = (kernel_text(step.kernel), binding, ranged)
        fn = self.kernels.get(key)
        if fn is None:
            name = self.unique(f"kernel.{step.kernel.name}")
            fn = self.kernels[key] = emit_kernel(self.module, step.kernel, name, binding, self.target, ranged)
            self.notes[name] = step.kernel.notes
        return fn, binding

    def contraction(self, step: ContractStep, pieces: ContractPieces | None = None) -> ir.Function:
        spec, plan = (pieces.spec, pieces.plan) if pieces else (step.spec, step.meta["plan"])
        after = step.epilogue
        key = repr(spec) + (after.key(kernel_text(after.kernel)) if after else "")
        fn = self.contractions.get(key)
        if fn is None:
            name = self.unique(f"contract.{step.out.name}")
            fn = gemm.emit(self.module, spec, plan, name, after)
            fn.linkage = "internal"
            fn.attributes.add("noinline")
            self.contractions[key] = fn
            self.notes[name] = (str(plan), *(after.kernel.notes if after else ()))
        return fn


class SegmentEmitter:
    def __init__(self, shared: _Shared, fn: ir.Function):
        self.shared, self.fn = shared, fn
        self.table, self.team = fn.args[:2]
        self.loads = ir.IRBuilder(fn.append_basic_block("entry"))
        self.start = fn.append_basic_block("start")
        self.builder = ir.IRBuilder(self.start)
        self.loaded: dict[int, ir.Value] = {}
        self.indices: dict[Buf, ir.Value] = {}

    def run(self, steps: Sequence[Step]) -> None:
        for n, loop in enumerate(self.shared.layout.loops):
            if loop.moving:
                address = self.loads.gep(self.table, [I64(self.shared.layout.loops_at + n)], source_etype=I64)
                index = self.loads.load(address, typ=I64)
                self.indices.update(dict.fromkeys(loop.moving, index))
        self.steps(steps)
        self.builder.ret_void()
        self.loads.branch(self.start)

    def pointer(self, slot: int) -> ir.Value:
        if slot not in self.loaded:
            address = self.loads.gep(self.table, [I64(slot)], source_etype=POINTER)
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
            place = self.shared.places[buf]  # an output on a donated input is in that input's slot
            arena = place.region == "arena" or isinstance(place.region, tuple)
            return self.shift(self.pointer(Layout.ARENA if arena else place.region), place.offset)
        pointer = self.shift(self.address(buf.base), buf.byte_offset)
        if buf.byte_stride:
            pointer = self.shift(
                pointer, self.builder.mul(self.indices[buf], I64(buf.byte_stride), flags=("nsw",))
            )
        return pointer

    # -------------------------------------------------------------------------------------------- steps

    def steps(self, steps: Sequence[Step]) -> None:
        clock = self.shared.clock
        for step in steps:
            begun = clock.begin(self.builder) if clock else None
            self.step(step)
            if clock:
                clock.end(self.builder, step, begun)

    def step(self, step: Step) -> None:
        if isinstance(step, KernelStep):
            self.run_kernel(step)
        elif isinstance(step, ContractStep):
            self.run_contraction(step)
        elif isinstance(step, CopyStep):
            self.copy(step)
        elif isinstance(step, ChainStep):
            calls = [piece_call(self.shared, member) for member in step.body.steps]
            self.share(calls, step.count, step.body.steps if self.shared.clock else ())
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
        pieces = pieces_of(step)
        if pieces is not None:
            self.share([kernel_call(self.shared, step)], pieces.count)
            return
        fn, binding = self.shared.kernel(step)
        args: dict[int, ir.Value] = {}
        for arg, slot in zip(step.args, binding.slots):
            if slot not in args:
                args[slot] = self.address(arg)
        self.call(fn, [args[n] for n in range(len(args))])

    def run_contraction(self, step: ContractStep) -> None:
        pieces = pieces_of(step)
        if pieces is not None:
            self.share([contraction_call(self.shared, step)], pieces.count)
            return
        work = POINTER(None) if step.workspace is None else self.address(step.workspace)
        out = self.address(step.out) if step.keeps_product else POINTER(None)  # null if it is not written
        after = step.epilogue
        extra = [self.address(after.args[i]) for i in after.extra] if after else []
        both = [self.address(step.lhs), self.address(step.rhs)]
        self.call(self.shared.contraction(step), [out, *both, work, *extra])

    # -------------------------------------------------------------------------------------------- shared steps

    def share(self, calls: Sequence[Call], count: int, timed: Sequence[Step] = ()) -> None:
        """Hand out `count` pieces, each of all the calls in turn."""
        places: dict[Buf, int] = {}
        slots = [[places.setdefault(buf, len(places)) for buf in call.bufs] for call in calls]
        task = emit_task(self.shared, calls, slots, timed)
        frame = self.loads.alloca(POINTER, max(len(places), 1))
        for buf, n in places.items():
            pointer = self.address(buf)
            if pointer.type != POINTER:
                pointer = self.builder.bitcast(pointer, POINTER)
            self.builder.store(pointer, self.builder.gep(frame, [I64(n)], source_etype=POINTER))
        self.builder.call(team.run, [self.team, task, frame, I64(count)])

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
        pieces = pieces_of(step)
        if not isinstance(pieces, Pieces) or dst.overlaps(src):
            both = [self.address(step.dst), self.address(step.src)]
            self.builder.call(fn, [*both, I64(step.dst.nbytes), I1(0)])
            return
        found = pieces

        def arguments(b: ir.IRBuilder, given: list[ir.Value], piece: ir.Value, _: ir.Value) -> list[ir.Value]:
            start, stop = piece_range(b, found, piece)
            return [*(b.gep(p, [start], source_etype=I8) for p in given), b.sub(stop, start), I1(0)]

        self.share([Call(("copy", pieces), fn, [step.dst, step.src], arguments)], pieces.count)

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
        if step.parallel:
            emit_parts(self, step, SegmentEmitter)
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
