"""What is decided about a program's contractions before memory is planned and code is written."""

from __future__ import annotations

import numpy as np

from fgrad.codegen.cutting import cached_plan
from fgrad.codegen.epilogue import attach_epilogues
from fgrad.codegen.parallel import split_work
from fgrad.codegen.parts import own_temporaries
from fgrad.codegen.program import Buf, ContractStep, Program, walk
from fgrad.codegen.target import TargetInfo
from fgrad.codegen.tuning import Choose, retune


def plan_contractions(program: Program, target: TargetInfo, choose: Choose | None = None) -> None:
    """Choose how each contraction is computed, what threads share, and the workspace needed. Before memory is planned.
    `choose` may put another plan in the place of the cost model's (`codegen.tuning`)."""
    for step in walk(program.body):
        if isinstance(step, ContractStep) and "plan" not in step.meta:
            step.meta["plan"] = cached_plan(step.spec, target)
    attach_epilogues(program, target)
    for step in walk(program.body):
        if isinstance(step, ContractStep) and step.workspace is None:
            size = step.meta["plan"].workspace_bytes
            step.workspace = Buf(f"work_{step.out.name}", (size,), np.dtype(np.uint8)) if size else None
    split_work(program, target)
    if choose is not None:
        retune(program, target, choose)
    own_temporaries(program)
