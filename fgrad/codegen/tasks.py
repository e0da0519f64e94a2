"""Tasks: what a thread does with one piece, as functions `void task(ptr frame, i64 piece, i64 worker)`.

    define internal void @chain(ptr %frame, i64 %piece, i64 %worker) {
      %x = load ptr, ptr %frame                              ; where the buffers are: the caller has written it down
      ...
      call void @contract.h(ptr (%h + 8192 * %piece), ptr (%x + 4096 * %piece), ptr %w, ptr (%work + 2048 * %worker))
      call void @kernel.relu(ptr %y, ptr %h, i64 (16 * %piece), i64 (16 * %piece + 16))
    }

A temporary of which each worker has one fraction (`program.Local`) is at `offset + stride * worker`. `shared` is `entry`'s record of
what the module has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from fgrad.codegen import team
from fgrad.codegen.llvm import I8, I64, POINTER
from fgrad.codegen.pieces import ContractPieces, Pieces, pieces_of
from fgrad.codegen.program import Buf, ContractStep, KernelStep, Step


@dataclass
class Call:
    """How a step's piece is run: `fn(*arguments(builder, pointers to bufs, piece, worker))`. Equal keys, equal calls."""

    key: Any
    fn: ir.Function
    bufs: list[Buf]
    arguments: Callable[[ir.IRBuilder, list[ir.Value], ir.Value, ir.Value], list[ir.Value]]


def emit_task(
    shared: Any, calls: Sequence[Call], slots: Sequence[Sequence[int]], timed: Sequence[Step] = ()
) -> ir.Function:
    """`void task(ptr frame, i64 piece, i64 worker)`: makes the calls one after another for a piece.

    `slots[n]` are the places in the frame of the pointers that call n takes. The clock is read around the calls if `timed`
    says which steps they are.
    """
    key: Any = tuple((call.key, tuple(where)) for call, where in zip(calls, slots, strict=True))
    key = key, tuple(map(id, timed))
    fn = shared.tasks.get(key)
    if fn is not None:
        return fn
    name = f"task.{calls[0].fn.name}" if len(calls) == 1 else "chain"
    fn = shared.tasks[key] = ir.Function(shared.module, team.TASK, shared.unique(name))
    fn.linkage = "internal"
    fn.attributes.add("nounwind")
    b = ir.IRBuilder(fn.append_basic_block("entry"))
    frame, piece, worker = fn.args
    loaded: dict[int, ir.Value] = {}
    for number, (call, where) in enumerate(zip(calls, slots)):
        begun = shared.clock.begin(b) if shared.clock and timed else None
        for n in where:
            if n not in loaded:
                loaded[n] = b.load(b.gep(frame, [I64(n)], source_etype=POINTER), typ=POINTER)
        args = call.arguments(b, [loaded[n] for n in where], piece, worker)
        types = call.fn.ftype.args
        b.call(call.fn, [a if t == a.type else b.bitcast(a, t) for a, t in zip(args, types, strict=True)])
        if shared.clock and timed:
            shared.clock.end_piece(b, timed[number], begun, piece)
    b.ret_void()
    return fn


def piece_call(shared: Any, step: Step) -> Call:
    if isinstance(step, KernelStep):
        return kernel_call(shared, step)
    if isinstance(step, ContractStep):
        return contraction_call(shared, step)
    raise NotImplementedError(f"no pieces of {type(step).__name__}")


def kernel_call(shared: Any, step: KernelStep) -> Call:
    fn, binding = shared.kernel(step, True)
    pieces = pieces_of(step)
    assert isinstance(pieces, Pieces)
    first: dict[int, Buf] = {}
    for arg, slot in zip(step.args, binding.slots):
        first.setdefault(slot, arg)
    bufs = [first[n] for n in range(len(first))]
    local = [shared.program.local.get(buf.root) for buf in bufs]

    def arguments(
        b: ir.IRBuilder, given: list[ir.Value], piece: ir.Value, worker: ir.Value
    ) -> list[ir.Value]:
        # The kernel counts from the start of the whole array, wherever this worker's fraction of it is.
        moved = [
            b.gep(p, [b.sub(b.mul(worker, I64(l.stride)), b.mul(piece, I64(l.fraction)))], source_etype=I8)
            if l
            else p
            for p, l in zip(given, local)
        ]
        return [*moved, *piece_range(b, pieces, piece)]

    return Call((fn.name, pieces, tuple(local)), fn, bufs, arguments)


def contraction_call(shared: Any, step: ContractStep) -> Call:
    pieces = pieces_of(step)
    assert isinstance(pieces, ContractPieces)
    fn = shared.contraction(step, pieces)
    works = [step.workspace] if step.workspace and pieces.plan.workspace_bytes else []
    out = [step.out] if step.keeps_product else []
    extra = [step.epilogue.args[i] for i in step.epilogue.extra] if step.epilogue else []
    bufs = [*out, step.lhs, step.rhs, *extra]
    local = [shared.program.local.get(buf.root) for buf in bufs]
    steps = pieces.moves if step.keeps_product else pieces.moves[1:]

    def arguments(
        b: ir.IRBuilder, given: list[ir.Value], piece: ir.Value, worker: ir.Value
    ) -> list[ir.Value]:
        moves = [
            b.mul(worker, I64(l.stride)) if l else b.mul(piece, I64(m))
            for m, l in zip(steps, local, strict=True)
        ]
        moves.append(b.mul(worker, I64(pieces.workspace)))
        moved = [b.gep(p, [m], source_etype=I8) for p, m in zip(given, moves)]
        work = moved.pop() if works else POINTER(None)
        if not step.keeps_product:
            moved.insert(0, POINTER(None))
        return [*moved[:3], work, *moved[3:]]

    key = fn.name, pieces.moves, pieces.workspace, len(works), tuple(local)
    return Call(key, fn, [*bufs, *works], arguments)


def piece_range(b: ir.IRBuilder, pieces: Pieces, piece: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Where a piece of a loop starts and stops."""
    start = b.mul(piece, I64(pieces.chunk))
    stop = b.add(start, I64(pieces.chunk))
    last = b.icmp_unsigned("<", I64(pieces.extent), stop)
    return start, b.select(last, I64(pieces.extent), stop)
