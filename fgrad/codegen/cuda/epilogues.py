"""Joins contractions with the element-wise kernels that take their products on, as `codegen.epilogue` does for the CPU.

What can be an epilogue is decided by `codegen.epilogue.match`, and how one is printed by `sink.py`. On a GPU it always pays: the product
is in registers, in a tile's own kernel or in the one that adds the parts of k, and a launch with two passes over memory is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.epilogue import match
from fgrad.codegen.program import Block, Buf, ContractStep, KernelStep, Program, Step, nested_blocks, walk


def attach_epilogues(program: Program, target: CudaTarget) -> None:
    """Join each contraction of `program` with the first step that reads its product, where that can be an epilogue."""
    uses: dict[Buf, int] = {}
    for step in walk(program.body):
        for buf in step.reads:
            uses[buf.root] = uses.get(buf.root, 0) + 1
    visible = {b.root for b in program.outputs}
    _visit(program.body, uses, visible)


def _visit(block: Block, uses: dict[Buf, int], visible: set[Buf]) -> None:
    for step in block.steps:
        for inner in nested_blocks(step):
            _visit(inner, uses, visible)
    steps = list(block.steps)
    first = _first_readers(steps)
    moved: set[int] = set()  # contractions that went down to their reader's place
    taken: set[int] = set()  # kernels that have become epilogues
    for n, step in enumerate(steps):
        if not isinstance(step, ContractStep) or step.epilogue is not None or step.out.root is not step.out:
            continue
        reader = first.get(step.out)
        if reader is None or reader in taken or _overwritten(step, steps[n + 1 : reader + 1]):
            continue
        kernel = steps[reader]
        epilogue = match(step.spec, step.out, kernel) if isinstance(kernel, KernelStep) else None
        if epilogue is None:
            continue
        step.epilogue = replace(epilogue, keep=uses[step.out] > 1 or step.out in visible)
        step.eqns = (*step.eqns, *kernel.eqns)
        # The kernel's other inputs may be computed between the two, so the contraction moves down to its place.
        steps[reader] = step
        moved.add(n)
        taken.add(reader)
    block.steps[:] = [s for n, s in enumerate(steps) if n not in moved]


def _first_readers(steps: Sequence[Step]) -> dict[Buf, int]:
    """For each buffer's root the first of the steps that reads it, itself or nested in it."""
    readers: dict[Buf, int] = {}
    for n in reversed(range(len(steps))):
        for step in walk(Block([steps[n]])):
            readers.update((buf.root, n) for buf in step.reads)
    return readers


def _overwritten(step: ContractStep, later: Sequence[Step]) -> bool:
    """Whether `later` steps write what the contraction reads (a loop's carry, updated in place): it must stay before them."""
    operands = {step.lhs.root, step.rhs.root}
    return any(not operands.isdisjoint(b.root for b in s.writes) for s in walk(Block(list(later))))
