"""The time that each step of a compiled program takes.

    >>> print(profile(executable, inputs))
         us   share  step
       40.0   22.2%  contract conv_input_grad   outer batch=1 m=6 n=784 k=400, tile 6x28 ...
        7.0    3.9%  kernel fused_max_pool_0    float32[4,6,14,14], int32[4,6,14,14]
        ...

Every top-level step is compiled as a function of its own (the kernels in it are the program's), and all are run in
order, several times; the smallest time of each is kept.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgrad.codegen.entry import emit_program
from fgrad.codegen.layout import HostControl, Segment
from fgrad.codegen.program import ContractStep, HostStep, KernelStep, Step
from fgrad.codegen.target import host
from fgrad.runtime.executable import Executable, data_pointer
from fgrad.runtime.native import compile_module

_numbers = itertools.count()


@dataclass
class StepTime:
    """`seconds` of one step; `what` says which, `notes` name the graph equations it came from."""

    what: str
    seconds: float
    step: Step
    notes: tuple[str, ...] = ()


@dataclass
class Profile:
    """Times in program order; printing shows the longest first."""

    steps: list[StepTime]

    @property
    def seconds(self) -> float:
        return sum(s.seconds for s in self.steps)

    def __str__(self) -> str:
        total = self.seconds or 1.0
        lines = [f"{'us':>10}  {'share':>6}  step"]
        for s in sorted(self.steps, key=lambda s: -s.seconds):
            lines.append(f"{1e6 * s.seconds:10.1f}  {100 * s.seconds / total:5.1f}%  {s.what}")
        return "\n".join([*lines, f"{1e6 * self.seconds:10.1f}  in all"])


def profile(executable: Executable, inputs: Sequence[np.ndarray], repeat: int = 20) -> Profile:
    """Time each top-level step of `executable` on `inputs` (which are copied: donation does them no harm)."""
    program = executable.program
    parts: list[tuple[Step, Segment | HostStep | HostControl]] = []
    for item in executable.items:
        if isinstance(item, Segment):
            parts += [(step, Segment(0, [step])) for step in item.steps]
        else:
            parts.append((item if isinstance(item, HostStep) else item.step, item))
    segments = [part for _, part in parts if isinstance(part, Segment)]
    for index, segment in enumerate(segments):
        segment.index = index
    entry = emit_program(program, f"fgrad_profile_{next(_numbers)}", host(), segments)
    native = compile_module(entry.text, entry.symbol)
    best = [float("inf")] * len(parts)
    for _ in range(repeat):
        arrays = [np.array(x, order="C") for x in inputs]
        work, _results = executable.prepare([data_pointer(a) for a in arrays], arrays)
        for n, (_, part) in enumerate(parts):
            start = time.perf_counter()
            if isinstance(part, Segment):
                native.call(work.address, part.index)
            else:
                executable.run_items(work, [part])
            best[n] = min(best[n], time.perf_counter() - start)
    return Profile([_row(step, seconds) for (step, _), seconds in zip(parts, best)])


def _row(step: Step, seconds: float) -> StepTime:
    results = ", ".join(f"{b.dtype}[{','.join(map(str, b.shape))}]" for b in step.writes)
    if isinstance(step, KernelStep):
        return StepTime(f"kernel {step.kernel.name}  {results}", seconds, step, step.kernel.notes)
    if isinstance(step, ContractStep):
        return StepTime(
            f"contract {step.out.name}  {step.meta.get('pieces') or step.meta['plan']}", seconds, step
        )
    if isinstance(step, HostStep):
        return StepTime(f"host {step.prim.name}  {results}", seconds, step)
    return StepTime(f"{type(step).__name__.removesuffix('Step').lower()}  {results}", seconds, step)
