"""What a step's pieces are, once they are chosen, and what work is worth sharing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fgrad.codegen.blocking import Plan
from fgrad.codegen.contraction import Contraction
from fgrad.codegen.loops import Kernel
from fgrad.codegen.program import ContractStep, CopyStep, ForStep, KernelStep, Step, nested_blocks
from fgrad.codegen.winograd import WinogradPlan

# All in the cost model's cycles (about 0.27 ns each on the machine that it was fitted to).
STEP_CYCLES = 60_000  # a step below this is not worth handing out by itself
REGION_CYCLES = (
    100_000  # nor is a stretch of native code with less to hand out than this worth waking threads for
)
MOST_PIECES = 32
COPY_CYCLES = 0.2  # a byte


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
        cycles = COPY_CYCLES * step.dst.nbytes
        if cycles < 4 * STEP_CYCLES:
            return None
        count = min(MOST_PIECES, int(cycles / STEP_CYCLES))
        chunk = -(-step.dst.nbytes // (count * 4096)) * 4096
        return Pieces(-(-step.dst.nbytes // chunk), chunk, step.dst.nbytes, cycles)
    if isinstance(step, ForStep) and step.parallel:
        return Pieces(step.length, 1, step.length, total_cycles([step]))
    return None


def kernel_cycles(kernel: Kernel) -> float:
    return max(0.1 * kernel.flops, 0.05 * kernel.bytes)


def shared_cycles(steps: Iterable[Step]) -> float:
    """Cycles of the work under `steps` that is handed out."""
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


def total_cycles(steps: Iterable[Step]) -> float:
    """Cycles of all steps whose cost is known."""
    total = 0.0
    for step in steps:
        if isinstance(step, KernelStep):
            total += kernel_cycles(step.kernel)
        elif isinstance(step, ContractStep):
            total += step.meta["plan"].cycles
        elif isinstance(step, CopyStep):
            total += COPY_CYCLES * step.dst.nbytes
        times = step.length if isinstance(step, ForStep) else 1
        total += times * sum(total_cycles(block.steps) for block in nested_blocks(step))
    return total
