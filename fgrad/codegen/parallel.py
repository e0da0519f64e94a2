"""Which steps of a program run on several threads, and how each is cut into pieces.

The cut depends on the program and the machine, never on the number of threads: one thread runs the same pieces in order, so
results have the same bits whatever the number.

    contraction   along a dimension that every operand it indexes is plain in (usually the sample); each piece is a smaller
                  contraction with a plan of its own. Along k, pieces leave partial results that a kernel adds up in order.
    kernel        ranges of its outermost loop; a sum in blocks becomes a kernel that stores the blocks' sums, and one that
                  adds them
    copy          ranges of bytes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from fgrad.codegen.blocking import Plan
from fgrad.codegen.contraction import Contraction, Dim, Operand
from fgrad.codegen.epilogue import Epilogue, plan_with
from fgrad.codegen.irtools import is_floating
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
    Op,
    Stmt,
    Store,
    Update,
    expressions,
    statements,
)
from fgrad.codegen.nestinfo import nodes
from fgrad.codegen.planning import plan
from fgrad.codegen.program import (
    Block,
    Buf,
    ContractStep,
    CopyStep,
    ForStep,
    KernelStep,
    Program,
    Step,
    nested_blocks,
)
from fgrad.codegen.target import TargetInfo
from fgrad.codegen.winograd import WinogradPlan, plan_winograd

# All in the cost model's cycles (about 0.27 ns each on the machine that it was fitted to).
STEP_CYCLES = 60_000  # a step below this is not worth handing out
REGION_CYCLES = (
    350_000  # nor is a stretch of native code with less to hand out than this worth waking threads for
)
_PIECE_CYCLES = 50_000
MOST_PIECES = 32
_MOST_PARTIALS = 8
_MOST_TRANSFORMS = 16  # pieces of a Winograd convolution, which need much memory each
_COPY_CYCLES = 0.2  # a byte
Planner: TypeAlias = Callable[[Contraction, TargetInfo], Plan | WinogradPlan | None]
_OVERHEAD = 1.1  # pieces may cost this much more than the whole
_ENOUGH = 1.06  # and are not made larger if they cost no more than this


@dataclass(frozen=True)
class Pieces:
    """`count` pieces; piece i of a loop runs from `i * chunk` to `min((i + 1) * chunk, extent)`."""

    count: int
    chunk: int
    extent: int
    cycles: float


@dataclass(frozen=True)
class ContractPieces:
    """Every piece computes `spec` by `plan`; from one to the next, out, lhs, rhs and the epilogue's extra arguments
    move by so many bytes."""

    count: int
    spec: Contraction
    plan: Plan | WinogradPlan
    moves: tuple[int, ...]
    workspace: int  # bytes for each worker

    @property
    def cycles(self) -> float:
        return self.count * self.plan.cycles

    def __str__(self) -> str:
        return f"{self.count} pieces: {self.plan}"


def pieces_of(step: Step) -> Pieces | ContractPieces | None:
    """How a step is handed out, or None if it runs on the calling thread alone."""
    if isinstance(step, KernelStep):
        return step.kernel.meta.get("pieces")
    if isinstance(step, ContractStep):
        return step.meta.get("pieces")
    if isinstance(step, CopyStep):
        cycles = _COPY_CYCLES * step.dst.nbytes
        return _cut(step.dst.nbytes, cycles, 4096) if cycles >= 4 * STEP_CYCLES else None
    if isinstance(step, ForStep) and step.parallel:
        return Pieces(step.length, 1, step.length, step.length * _all_cycles(step.body.steps))
    return None


def _all_cycles(steps: Iterable[Step]) -> float:
    total = 0.0
    for step in steps:
        total += _own_cycles(step)
        times = step.length if isinstance(step, ForStep) else 1
        total += times * sum(_all_cycles(block.steps) for block in nested_blocks(step))
    return total


def shared_cycles(steps: Iterable[Step]) -> float:
    """Cycles of the work under `steps` that can be handed out."""
    total = 0.0
    for step in steps:
        found = pieces_of(step)
        if found:
            total += found.cycles
            continue
        times = step.length if isinstance(step, ForStep) else 1
        total += times * sum(shared_cycles(block.steps) for block in nested_blocks(step))
    return total


def worth_threads(steps: Sequence[Step]) -> bool:
    return shared_cycles(steps) >= REGION_CYCLES


def split_work(program: Program, target: TargetInfo) -> None:
    """Cut the steps of a program whose contractions are planned; if all of them together are worth it."""
    if _large(program.body.steps) < REGION_CYCLES:
        return

    def visit(block: Block) -> None:
        steps: list[Step] = []
        for step in block.steps:
            if isinstance(step, ForStep) and step.parallel:
                steps.append(step)
                continue  # shared as a whole
            for inner in nested_blocks(step):
                visit(inner)
            if isinstance(step, ContractStep):
                steps.extend(_split_contraction(step, target))
            elif isinstance(step, KernelStep):
                steps.extend(_split_sums(step))
            else:
                steps.append(step)
        block.steps[:] = steps
        for step in steps:
            if isinstance(step, KernelStep):
                step.kernel.meta["pieces"] = _kernel_pieces(step.kernel)

    visit(program.body)


def _large(steps: Iterable[Step]) -> float:
    """Cycles of the steps that might be cut."""
    total = 0.0
    for step in steps:
        if isinstance(step, ForStep) and step.parallel:
            total += step.length * _all_cycles(step.body.steps)
            continue
        cycles = _own_cycles(step)
        times = step.length if isinstance(step, ForStep) else 1
        total += cycles if cycles >= STEP_CYCLES else 0.0
        total += times * sum(_large(block.steps) for block in nested_blocks(step))
    return total


def _own_cycles(step: Step) -> float:
    if isinstance(step, KernelStep):
        return _cycles(step.kernel)
    if isinstance(step, ContractStep):
        return step.meta["plan"].cycles
    return _COPY_CYCLES * step.dst.nbytes if isinstance(step, CopyStep) else 0.0


def _cut(extent: int, cycles: float, multiple: int = 1) -> Pieces | None:
    count = max(2, min(MOST_PIECES, int(cycles / _PIECE_CYCLES), extent))
    chunk = -(-extent // count)
    chunk = -(-chunk // multiple) * multiple
    count = -(-extent // chunk)
    return Pieces(count, chunk, extent, cycles) if count > 1 else None


# ------------------------------------------------------------------------------------------------ kernels


def _cycles(kernel: Kernel) -> float:
    return max(0.1 * kernel.flops, 0.05 * kernel.bytes)


def _kernel_pieces(kernel: Kernel) -> Pieces | None:
    """Ranges of the outermost loop, if its iterations are independent and there is enough to do."""
    cycles = _cycles(kernel)
    if cycles < STEP_CYCLES or len(kernel.body) != 1 or not isinstance(kernel.body[0], Loop):
        return None
    loop = kernel.body[0]
    if any(isinstance(s, Check) for s in statements(loop.body)):
        return None
    if loop.kind == "vector":
        plain = all(isinstance(s, Store) and s.op is None for s in loop.body)
        return _cut(loop.var.extent, cycles, 1024) if plain else None
    return _cut(loop.var.extent, cycles) if loop.kind == "parallel" else None


def _split_sums(step: KernelStep) -> list[Step]:
    """`for block: part = sum of the block; total += part` as two kernels: one fills an array of parts, one adds them."""
    kernel = step.kernel
    body = kernel.body
    at = next((n for n, s in enumerate(body) if isinstance(s, Loop)), len(body))
    if _cycles(kernel) < STEP_CYCLES or at == len(body) or not all(isinstance(s, Init) for s in body[:at]):
        return [step]
    loop = body[at]
    assert isinstance(loop, Loop)
    if loop.kind != "blocks" or any(isinstance(s, Check) for s in statements(body)):
        return [step]
    totals = [s for s in loop.body if isinstance(s, Update)]
    rest = [s for s in loop.body if not isinstance(s, Update)]
    own = {s.acc for s in rest if isinstance(s, Init)}
    outer = {s.acc for s in body[:at] if isinstance(s, Init)}
    inner_statements = list(statements(rest))
    reads_outer = {e for s in inner_statements for e in nodes(expressions(s)) if isinstance(e, Acc)} & outer
    writes_outer = {s.acc for s in inner_statements if isinstance(s, Update)} - own
    fits = all(t.op == "add" and t.acc in outer and t.value in own for t in totals)
    if not totals or not fits or reads_outer or writes_outer or len({t.acc for t in totals}) < len(totals):
        return [step]
    parts = [Buffer(f"parts_{t.acc.name}", t.acc.dtype, loop.var.extent, "out") for t in totals]
    stores: list[Stmt] = [
        Store(p, Affine(0, [(loop.var, 1)]), t.value) for p, t in zip(parts, totals, strict=True)
    ]
    first_body: list[Stmt] = [Loop(loop.var, [*rest, *stores], "parallel")]
    var = LoopVar(loop.var.name, loop.var.extent)
    inputs = [Buffer(p.name, p.dtype, p.size, "in") for p in parts]
    adds: list[Stmt] = [
        Update(t.acc, "add", Load(p, Affine(0, [(var, 1)]))) for p, t in zip(inputs, totals, strict=True)
    ]
    second_body = [*body[:at], Loop(var, adds, "seq"), *body[at + 1 :]]
    bufs = [Buf(p.name, (p.size,), p.dtype) for p in parts]
    args = dict(zip(kernel.buffers, step.args, strict=True))
    results: list[Step] = []
    for name, stmts, extra, extra_bufs in (
        (kernel.name, first_body, parts, bufs),
        (f"{kernel.name}_total", second_body, inputs, bufs),
    ):
        used = _buffers(stmts)
        kept = [b for b in kernel.buffers if b in used]
        share = loop.var.extent / (loop.var.extent + 1) if extra is parts else 0.001
        new = Kernel(
            name, (*kept, *extra), stmts, kernel.notes, int(kernel.flops * share), int(kernel.bytes * share)
        )
        results.append(KernelStep(new, (*(args[b] for b in kept), *extra_bufs), step.eqns))
    first, second = results
    assert isinstance(first, KernelStep) and isinstance(second, KernelStep)
    for pair in step.in_place:  # only where one of the two kernels alone touches the bytes
        users = [s for s in (first, second) if pair[0] in s.args or pair[1] in s.args]
        if len(users) == 1:
            users[0].in_place += (pair,)
    return results


def _buffers(body: Sequence[Stmt]) -> set[Buffer]:
    found: set[Buffer] = set()
    roots: list[Expr] = []
    for s in statements(body):
        roots.extend(expressions(s))
        if isinstance(s, Store):
            found.add(s.buffer)
    found.update(e.buffer for e in nodes(roots) if isinstance(e, Load))
    return found


# ------------------------------------------------------------------------------------------------ contractions


def _split_contraction(step: ContractStep, target: TargetInfo) -> list[Step]:
    spec, whole = step.spec, step.meta["plan"]
    if whole.cycles < STEP_CYCLES or whole.path in ("nothing", "zero") or "pieces" in step.meta:
        return [step]
    chosen = _choose(spec, whole, target, step.epilogue)
    if chosen is None:
        return [step]
    dim, pieces = chosen
    step.meta["pieces"] = pieces
    size = pieces.workspace * pieces.count
    step.workspace = Buf(f"work_{step.out.name}", (size,), np.dtype(np.uint8)) if size else None
    if dim not in spec.k:
        return [step]
    out = step.out
    parts = Buf(f"parts_{out.name}", (pieces.count, *out.shape), out.dtype)
    step.out = parts
    return [step, KernelStep(_sum_of_parts(out, pieces.count), (out, parts), step.eqns)]


def _choose(
    spec: Contraction, whole: Plan | WinogradPlan, target: TargetInfo, epilogue: Epilogue | None
) -> tuple[Dim, ContractPieces] | None:
    best: tuple[float, Dim, ContractPieces] | None = None
    for dims, is_k in ((spec.batch, False), (spec.n, False), (spec.m, False), (spec.k, True)):
        if is_k and (epilogue or not is_floating(spec.out.dtype) or spec.out.dtype != whole.acc):
            continue
        if is_k and best is not None and best[0] < 1.05 * whole.cycles:
            break
        dim = next((d for d in dims if d.extent > 1), None)
        if dim is None or not all(_shifts(o, dim, spec) for o in (spec.lhs, spec.rhs, spec.out)):
            continue
        most = min(_MOST_PARTIALS if is_k else MOST_PIECES, max(2, int(whole.cycles / _PIECE_CYCLES)))
        counts = [p for p in range(2, most + 1) if dim.extent % p == 0]
        if not counts:
            continue
        pieces = _best_pieces(spec, whole, dim, counts, is_k, target, epilogue)
        if pieces is None:
            continue
        cost = pieces.cycles
        if is_k:
            cost += 2.0 * pieces.count * math.prod(d.extent for d in spec.batch + spec.m + spec.n)
        if cost > _OVERHEAD * whole.cycles:
            continue
        cost *= 2 * -(-pieces.count // 2) / pieces.count  # an odd one out keeps a thread waiting
        if best is None or cost < best[0]:
            best = cost, dim, pieces
    return None if best is None else best[1:]


def _shifts(operand: Operand, dim: Dim, spec: Contraction) -> bool:
    """Whether a later part of `dim` is the same addresses, moved."""
    if operand.is_plain(spec.extents):
        return True
    mentioned = [axis for axis in operand.axes if any(name == dim.name for name, _ in axis.coefs)]
    return all(axis.divisor == 1 and axis.size is None for axis in mentioned)


def _best_pieces(
    spec: Contraction,
    whole: Plan | WinogradPlan,
    dim: Dim,
    counts: Sequence[int],
    is_k: bool,
    target: TargetInfo,
    epilogue: Epilogue | None,
) -> ContractPieces | None:
    """As many pieces as cost little more than the whole; of a Winograd convolution as many as cost little, as each transforms its operands."""
    if not isinstance(whole, WinogradPlan):
        planner: Planner = plan
        if epilogue is not None:
            planner = lambda spec, target: plan_with(spec, epilogue, target)
        best, most = None, counts[-1]
        while most:  # pieces that repeat much work (packing a kernel) are made larger
            pieces = _contract_pieces(spec, dim, most, is_k, planner, target, epilogue)
            if pieces and (best is None or pieces.cycles < best.cycles):
                best = pieces
            if best and best.cycles < _ENOUGH * whole.cycles:
                break
            most = max((n for n in counts if n <= most // 2), default=0)
        return best
    found = [
        _contract_pieces(spec, dim, n, is_k, plan_winograd, target) for n in counts if n <= _MOST_TRANSFORMS
    ]
    cheap = [p for p in found if p is not None and p.cycles <= _OVERHEAD * whole.cycles]
    return min(cheap, key=lambda p: p.cycles * (1 + 0.3 / p.count), default=None)


def _contract_pieces(
    spec: Contraction,
    dim: Dim,
    count: int,
    is_k: bool,
    planner: Planner,
    target: TargetInfo,
    epilogue: Epilogue | None = None,
) -> ContractPieces | None:
    part = dim.extent // count

    def shorter(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
        return tuple(replace(d, extent=part) if d == dim else d for d in dims)

    smaller = replace(
        spec, batch=shorter(spec.batch), m=shorter(spec.m), n=shorter(spec.n), k=shorter(spec.k)
    )

    def move(operand: Operand) -> int:
        coefs = (coef * axis.stride for axis in operand.axes for name, coef in axis.coefs if name == dim.name)
        return part * sum(coefs) * operand.dtype.itemsize

    out = move(spec.out)
    if is_k:
        out = math.prod(d.extent for d in spec.batch + spec.m + spec.n) * spec.out.dtype.itemsize
    chosen = planner(smaller, target)
    if chosen is None:
        return None
    workspace = -(-chosen.workspace_bytes // 64) * 64
    extra = [move(epilogue.operands[i]) for i in epilogue.extra] if epilogue else []
    return ContractPieces(count, smaller, chosen, (out, move(spec.lhs), move(spec.rhs), *extra), workspace)


def _sum_of_parts(out: Buf, count: int) -> Kernel:
    """`out[i] = parts[0, i] + parts[1, i] + ...`, in this order."""
    size, dtype = out.size, out.dtype
    result, parts = Buffer("out", dtype, size, "out"), Buffer("parts", dtype, count * size, "in")
    var = LoopVar("i", size)
    total: Expr = Load(parts, Affine(0, [(var, 1)]))
    for n in range(1, count):
        total = Op("add", (total, Load(parts, Affine(n * size, [(var, 1)]))), dtype)
    body: list[Stmt] = [Loop(var, [Store(result, Affine(0, [(var, 1)]), total)], "vector")]
    return Kernel(
        "sum_of_parts",
        (result, parts),
        body,
        ("partial results of a contraction, added in order",),
        (count - 1) * size,
        (count + 1) * size * dtype.itemsize,
    )
