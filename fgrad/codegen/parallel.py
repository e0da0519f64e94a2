"""Which steps of a program run on several threads, and how each is cut into pieces.

The cut depends on the program and the machine, never on the number of threads: one thread runs the same pieces in order, so
results have the same bits whatever the number.

    chain         consecutive steps over a common outermost dimension (usually the sample), piece by piece: `codegen.chains`
    contraction   along a dimension that every operand it indexes is plain in; each piece is a smaller contraction with a plan
                  of its own. Along k, pieces leave partial results that a kernel adds up in order.
    kernel        ranges of its outermost loop; a sum becomes a kernel that stores partial sums, and one that adds them
    loop          its iterations, if they do not depend on each other (`codegen.parts`)
    copy          ranges of bytes
"""

from __future__ import annotations

from fgrad.codegen.chains import Former, balance
from fgrad.codegen.cutting import (
    ContractCut,
    apply_contract_cut,
    cut_contraction,
    outer_loop,
    possible_dims,
)
from fgrad.codegen.loops import Kernel
from fgrad.codegen.partial import split_blocks, split_sum
from fgrad.codegen.pieces import (
    MOST_PIECES,
    REGION_CYCLES,
    STEP_CYCLES,
    ContractPieces,
    Pieces,
    kernel_cycles,
    pieces_of,
    shared_cycles,
    total_cycles,
    worth_threads,
)
from fgrad.codegen.program import Block, ContractStep, KernelStep, Program, Step, nested_blocks
from fgrad.codegen.target import TargetInfo

__all__ = ["ContractPieces", "Pieces", "pieces_of", "shared_cycles", "split_work", "worth_threads"]

_PIECE_CYCLES = 50_000
_HANDING_OUT = 1_500.0  # cycles for each piece


def split_work(program: Program, target: TargetInfo) -> None:
    """Cut the steps of a program whose contractions are planned; if all of them together are worth it."""
    if total_cycles(program.body.steps) < REGION_CYCLES:
        return
    former = Former(program, target)

    def single(step: Step) -> list[Step]:
        if isinstance(step, ContractStep):
            return _split_contraction(step, target)
        if isinstance(step, KernelStep):
            return _split_kernel(step)
        return [step]

    def visit(block: Block) -> None:
        for step in block.steps:
            for inner in (
                nested_blocks(step) if pieces_of(step) is None else ()
            ):  # a parallel loop is shared as a whole
                visit(inner)
        block.steps[:] = former.form(block.steps, single)

    visit(program.body)


# ------------------------------------------------------------------------------------------------ kernels


def _split_kernel(step: KernelStep) -> list[Step]:
    if kernel_cycles(step.kernel) < STEP_CYCLES or "pieces" in step.kernel.meta:
        return [step]
    split = split_blocks(step)
    if split is None and outer_loop(step.kernel) is None:
        counts = (8, 4, 16, 2, 5, 3, 7)
        split = next((s for s in (split_sum(step, c) for c in counts) if s is not None), None)
    steps = [step] if split is None else [split.first, *split.rest]
    for s in steps:
        found = _ranges(s.kernel)
        if found is not None:
            s.kernel.meta["pieces"] = found
    return list(steps)


def _ranges(kernel: Kernel) -> Pieces | None:
    """Ranges of the outermost loop, if its iterations are independent and there is enough to do."""
    cycles, loop = kernel_cycles(kernel), outer_loop(kernel)
    if cycles < STEP_CYCLES or loop is None:
        return None
    extent, multiple = loop.var.extent, 1024 if loop.kind == "vector" else 1
    count = max(2, min(MOST_PIECES, int(cycles / _PIECE_CYCLES), extent))
    chunk = -(-extent // count)
    chunk = -(-chunk // multiple) * multiple
    count = -(-extent // chunk)
    return Pieces(count, chunk, extent, cycles) if count > 1 else None


# ------------------------------------------------------------------------------------------------ contractions


def _split_contraction(step: ContractStep, target: TargetInfo) -> list[Step]:
    whole = step.meta["plan"]
    if whole.cycles < STEP_CYCLES or whole.path in ("nothing", "zero") or "pieces" in step.meta:
        return [step]
    chosen = _choose(step, target)
    if chosen is None:
        return [step]
    return [step, *apply_contract_cut(step, chosen)]


def _choose(step: ContractStep, target: TargetInfo) -> ContractCut | None:
    """The cut whose pieces cost least in all, with what threads lose to uneven shares; None if the whole is better."""
    spec, whole = step.spec, step.meta["plan"]
    best: tuple[float, ContractCut] | None = None
    for dims, is_k in ((spec.batch, False), (spec.n, False), (spec.m, False), (spec.k, True)):
        dim = next((d for d in dims if d.extent > 1), None)
        if dim is None or (is_k and (spec.out.dtype != whole.acc or (best and best[0] < 1.3 * whole.cycles))):
            continue
        most = max(2, min(MOST_PIECES, int(whole.cycles / _PIECE_CYCLES)))
        wanted = (2, 4, 8) if is_k else (4, 8, 16)
        counts = {max(d for d in range(1, min(w, most) + 1) if dim.extent % d == 0) for w in wanted}
        for count in sorted(counts - {1}):
            if (dim, is_k) not in possible_dims(spec, count):
                continue
            cut = cut_contraction(step, dim, count, is_k, target)
            if cut is None:
                continue
            cost = cut.cycles * balance(count, whole.cycles) + _HANDING_OUT * count
            if best is None or cost < best[0]:
                best = cost, cut
    return None if best is None or best[0] > 1.7 * whole.cycles else best[1]
