"""A branch on the device: each launch asks first whether its branch was chosen.

    switch index { A }{ B, C }      =>      A if index == 0;  B if index == 1;  C if index == 1

so that a program with branches needs no word from the host and can be replayed as one CUDA graph. It costs a launch that
ends at once for each kernel of the other branches. Branches that hold loops are left to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fgrad.codegen.cuda.launch import CudaKernel, LaunchStep, Param
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.program import Buf, CopyStep, Step, SwitchStep

MOST_LAUNCHES = 64  # in all branches together; beyond, asking the host costs less


def guarded(step: SwitchStep, target: CudaTarget) -> list[Step] | None:
    """The launches of all branches, each with its condition; None if the branches are not made of launches and copies alone."""
    inner = [s for b in step.branches for s in b.steps]
    if len(inner) > MOST_LAUNCHES or not all(isinstance(s, (LaunchStep, CopyStep)) for s in inner):
        return None
    count = len(step.branches)
    out: list[Step] = []
    for n, branch in enumerate(step.branches):
        for s in branch.steps:
            launch = copying(s, target) if isinstance(s, CopyStep) else s
            assert isinstance(launch, LaunchStep)
            out.append(_when(launch, step.index, n, count))
    return out


def _when(step: LaunchStep, index: Buf, branch: int, count: int) -> LaunchStep:
    kernel = step.kernel
    chosen = fresh("chosen", [p.name for p in kernel.params])
    head, body = kernel.source.split("):\n", 1)
    lines = [
        f"{head}, {chosen}):",
        f"    if min(max({chosen}[0], 0), {count - 1}) != {branch}:  # another branch",
        "        return",
    ]
    made = CudaKernel(
        kernel.name,
        "\n".join([*lines, body]),
        (*kernel.params, Param(chosen, index.dtype, 1)),
        kernel.grid,
        kernel.block,
        kernel.notes,
        kernel.features,
    )
    return replace(step, kernel=made, args=(*step.args, index), in_place=())


def copying(step: CopyStep, target: CudaTarget) -> LaunchStep:
    """A copy as a kernel."""
    size = step.dst.size
    blocks = max(1, min(-(-size // target.threads), 8 * target.multiprocessors))
    source = f"""\
@cuda.jit
def copy(y, x):
    i = cuda.grid(1)
    while i < {size}:
        y[i] = x[i]
        i += cuda.gridsize(1)
"""
    params = (Param("y", step.dst.dtype, size, "out"), Param("x", step.dst.dtype, size))
    kernel = CudaKernel("copy", source, params, (blocks, 1, 1), (target.threads, 1, 1))
    return LaunchStep(kernel, (step.dst, step.src), step.eqns)


def fresh(name: str, taken: Sequence[str]) -> str:
    """`name`, or with a number if it is taken."""
    n, found = 0, name
    while found in taken:
        n += 1
        found = f"{name}{n}"
    return found
