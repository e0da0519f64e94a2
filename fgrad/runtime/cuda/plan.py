"""A program for the GPU: every kernel and contraction of a lowered program becomes launches, then memory is planned.

KernelStep    -> codegen.cuda.nests      one launch or several
ContractStep  -> codegen.cuda.product    a tiled kernel, with the element-wise kernel that follows it as its epilogue
SwitchStep    -> codegen.cuda.branches   launches that ask whether their branch was chosen, where it holds no loops
HostStep      -> codegen.cuda.foreign    a user's device function, if it is a `numba_op` that has one
Copies and loops stay; any other HostStep is an error unless `fgrad.host_ops(True)` allows it
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fgrad import dtypes
from fgrad.codegen.cuda.branches import guarded
from fgrad.codegen.cuda.epilogues import attach_epilogues
from fgrad.codegen.cuda.foreign import device_function, lower_foreign
from fgrad.codegen.cuda.nests import lower_kernel
from fgrad.codegen.cuda.product import lower_contraction
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.program import (
    Block,
    Buf,
    ContractStep,
    CopyStep,
    HostStep,
    KernelStep,
    Program,
    Step,
    SwitchStep,
    nested_blocks,
    walk,
)
from fgrad.errors import message
from fgrad.ir import Eqn, Graph, subgraphs
from fgrad.passes.memory import plan_memory


def plan_for_cuda(
    program: Program, target: CudaTarget, precision: str = "float32", host_ops: bool = False
) -> None:
    """Turn `program`, as the passes made it, into one of launches, in place. Once a program.

    Raises:
        NotImplementedError: it has an operation without a kernel, and `host_ops` is False.
    """
    if program.planned:
        return
    attach_epilogues(program, target)
    _lower_block(program.body, target, precision)
    if not host_ops:
        _refuse_host_steps(program)
    plan_memory(program)
    program.planned = True


def _lower_block(block: Block, target: CudaTarget, precision: str) -> None:
    steps: list[Step] = []
    for step in block.steps:
        for inner in nested_blocks(step):
            _lower_block(inner, target, precision)
        if isinstance(step, KernelStep):
            steps.extend(lower_kernel(step, target))
        elif isinstance(step, ContractStep):
            steps.extend(lower_contraction(step, target, precision))
        elif isinstance(step, HostStep) and step.outputs and not any(b.size for b in step.outputs):
            continue  # nothing to compute
        elif isinstance(step, HostStep) and not any(b.size for b in step.inputs) and step.inputs:
            steps.extend(_of_nothing(step))
        elif isinstance(step, HostStep) and (function := device_function(step)) is not None:
            steps.append(lower_foreign(step, function, target))
        elif isinstance(step, SwitchStep):
            steps.extend(guarded(step, target) or [step])
        else:
            steps.append(step)
    block.steps[:] = steps


def _of_nothing(step: HostStep) -> list[Step]:
    """What an operation makes of arrays without elements (a sum of no products, say) is known now."""
    found = step.prim.impl(*[np.empty(b.shape, b.dtype) for b in step.inputs], **step.params)
    results = found if step.prim.multiple else (found,)
    made: list[Step] = []
    for buf, value in zip(step.outputs, results, strict=True):
        const = Buf(f"{buf.name}_value", buf.shape, buf.dtype, "const", value=np.asarray(value, buf.dtype))
        made += [CopyStep(buf, const, step.eqns)] if buf.size else []
    return made


def _refuse_host_steps(program: Program) -> None:
    found = [s for s in walk(program.body) if isinstance(s, HostStep)]
    if not found:
        return
    names = ", ".join(sorted({_called(s) for s in found}))
    source = next((e.source for s in found for e in s.eqns), None)
    operands, results = ([str(b.dtype) for b in bufs] for bufs in (found[0].inputs, found[0].outputs))
    kinds = ", ".join(operands) or "nothing"
    if not set(results) <= set(operands):
        kinds += f" to {', '.join(results)}"
    fix = "compute it on the CPU (fgrad.device_get), or allow copies to NumPy and back: with fgrad.host_ops(True)"
    if any(s.prim.name == "numba_op" for s in found):
        fix = (
            "give it a device function: numba_op(f, out=..., cuda=g); op.defbatch(f, cuda=g) for vmap. Or "
            + fix
        )
    raise NotImplementedError(message(program.name, f"no CUDA kernel for {names} of {kinds}", fix, source))


def _called(step: HostStep) -> str:
    """What a user would call it: `numba_op smooth`; `sort in scan`, of a loop that holds what has no kernel."""
    if step.prim.name == "numba_op":
        return f"numba_op {getattr(step.params['function'], '__name__', 'function')}"
    inner = {e.prim.name for eqn in step.eqns for g in subgraphs(eqn) for e in _equations(g) if _opaque(e)}
    return f"{', '.join(sorted(inner))} in {step.prim.name}" if inner else step.prim.name


def _equations(graph: Graph) -> Iterator[Eqn]:
    for eqn in graph.eqns:
        yield eqn
        for inner in subgraphs(eqn):
            yield from _equations(inner)


def _opaque(eqn: Eqn) -> bool:
    return eqn.prim.family == "opaque" or any(
        dtypes.is_complex(a.type.dtype) for a in (*eqn.inputs, *eqn.outputs)
    )
