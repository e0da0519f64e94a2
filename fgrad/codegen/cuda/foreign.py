"""A user's own device function as a kernel: `numba_op(..., cuda=f)`.

@cuda.jit
def smooth(x, y):
    i = cuda.grid(1)
    while i < 100:
        smooth_at(i, x, y)           # the user's: writes element i of each output
        i += cuda.gridsize(1)
"""

from __future__ import annotations

from typing import Any

from fgrad.codegen.cuda.branches import fresh
from fgrad.codegen.cuda.launch import CudaKernel, LaunchStep, Param
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.program import HostStep

_BLOCKS = 8  # for each multiprocessor


def device_function(step: HostStep) -> Any:
    """The device function that was given for this operation; None if there is none."""
    if step.prim.name != "numba_op" or step.params["batched"]:
        return None
    return getattr(step.params["function"], "_fgrad_cuda", None)


def lower_foreign(step: HostStep, function: Any, target: CudaTarget) -> LaunchStep:
    """The launch that calls `function(i, *inputs, *outputs)` for each element i of the first output."""
    own = getattr(function, "__name__", "function")
    label = own if own.isidentifier() else "function"
    inputs = [Param(f"x{n}", b.dtype, b.size) for n, b in enumerate(step.inputs)]
    outputs = [Param(f"y{n}", b.dtype, b.size, "out") for n, b in enumerate(step.outputs)]
    params = (*inputs, *outputs)
    names = [p.name for p in params]
    called = fresh(label, [*names, "i", "cuda", "numba_op"])
    size = step.outputs[0].size
    source = f"""\
@cuda.jit
def numba_op_{label}({", ".join(names)}):
    i = cuda.grid(1)
    while i < {size}:
        {called}(i, {", ".join(names)})
        i += cuda.gridsize(1)
"""
    blocks = max(1, min(-(-size // target.threads), _BLOCKS * target.multiprocessors))
    kernel = CudaKernel(
        f"numba_op_{label}",
        source,
        params,
        (blocks, 1, 1),
        (target.threads, 1, 1),
        functions=((called, function),),
    )
    return LaunchStep(kernel, (*step.inputs, *step.outputs), step.eqns)
