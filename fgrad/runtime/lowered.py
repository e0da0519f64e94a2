"""What `jit(f).lower(*args)` returns: the stages between a function and its machine code, each as text, and what they cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from fgrad.array import ConcreteArray
from fgrad.codegen.cuda_source import cuda_source
from fgrad.codegen.program import (
    Buf,
    ChainStep,
    ContractStep,
    CopyStep,
    HostStep,
    KernelStep,
    Program,
    Step,
    nested_blocks,
    walk,
)
from fgrad.codegen.python_source import python_source
from fgrad.errors import FgradTypeError, FgradValueError, describe, message
from fgrad.ir import Graph
from fgrad.passes import compile_graph, optimize
from fgrad.passes.memory import peak_memory
from fgrad.runtime.cost import Cost, program_cost
from fgrad.runtime.executable import Executable, compile_program, plan_program
from fgrad.runtime.options import winograd, winograd_allowed
from fgrad.runtime.peaks import Peaks
from fgrad.runtime.profile import Profile, profile

STAGES = ("graph", "optimized", "kernels", "memory", "llvm", "assembly", "cuda")


class Lowered:
    """The stages of one program. `print(lowered.show())` for an overview, `.show("kernels")` for one stage.

    graph        as traced
    optimized    after the graph passes
    kernels      the fused loop nests and contractions in order, as readable Python
    memory       the arena: each buffer's place, and the peak
    llvm         the generated LLVM IR;  assembly: the machine code
    cuda         the element-wise and reduction kernels as numba.cuda source

    `.cost()` predicts operations, bytes and memory; `.profile()` times every kernel.
    """

    def __init__(
        self,
        graph: Graph,
        donated: Mapping[int, int],
        name: str,
        arguments: Sequence[Any] = (),
        autotune: bool = False,
    ):
        self.graph, self._donated, self.name = graph, dict(donated), name
        self._arguments = tuple(arguments)  # one for each input of the graph
        self._winograd, self._autotune = winograd_allowed(), autotune

    @cached_property
    def optimized(self) -> Graph:
        return optimize(self.graph)

    @cached_property
    def program(self) -> Program:
        """The planned program: kernels, contractions, memory. Nothing is compiled to machine code for it."""
        program = compile_graph(self.graph, self._donated)
        with winograd(self._winograd):  # as where this was lowered, wherever it is looked at
            plan_program(program, self._autotune)
        return program

    @cached_property
    def executable(self) -> Executable:
        return compile_program(self.program)

    def compile(self) -> Executable:
        """The program, compiled (or found in the cache)."""
        return self.executable

    @property
    def peak_memory(self) -> int:
        """Bytes that a call needs beside its inputs."""
        return peak_memory(self.program)

    def cost(self) -> Cost:
        """Operations, bytes and memory that a call takes, told from the program without compiling or running it."""
        return program_cost(self.program, self.optimized)

    def profile(
        self,
        repeat: int = 40,
        budget: float = 1.0,
        measured: Peaks | None = None,
        serial: bool = True,
    ) -> Profile:
        """The time of each kernel on the arguments that this was lowered for; see `fgrad.profile`.

        Raises:
            FgradTypeError: an argument was only a shape and dtype.
            FgradValueError: `repeat` is not a positive int, or `budget` not a number of seconds.
        """
        if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
            raise FgradValueError(message("profile", f"repeat={repeat!r}", "give a positive number of calls"))
        if not isinstance(budget, (int, float)) or not budget >= 0:
            raise FgradValueError(message("profile", f"budget={budget!r}", "give a number of seconds"))
        arrays = []
        for n, x in enumerate(self._arguments):
            if not isinstance(x, ConcreteArray):
                raise FgradTypeError(
                    message(
                        "profile", f"argument leaf {n} has no value, it is {describe(x)}", "lower for arrays"
                    )
                )
            arrays.append(x.data)
        return profile(self.executable, arrays, repeat, budget, measured, serial)

    def show(self, stage: str = "summary") -> str:
        """One stage as text: summary, graph, optimized, kernels, memory, llvm, assembly or cuda."""
        if stage == "summary":
            return self._summary()
        if stage == "graph":
            return str(self.graph)
        if stage == "optimized":
            return str(self.optimized)
        if stage == "kernels":
            return "\n\n".join(_describe(s) for s in walk(self.program.body))
        if stage == "memory":
            return self._memory()
        if stage == "llvm":
            return self.executable.ir_text
        if stage == "assembly":
            return self.executable.assembly
        if stage == "cuda":
            return "\n\n".join(_cuda(s) for s in walk(self.program.body))
        raise FgradValueError(
            message("show", f"unknown stage {stage!r}", f"use one of summary, {', '.join(STAGES)}")
        )

    def _summary(self) -> str:
        steps = list(walk(self.program.body))
        kernels = [s for s in steps if isinstance(s, KernelStep)]
        contractions = [s for s in steps if isinstance(s, ContractStep)]
        host = [s for s in steps if isinstance(s, HostStep)]
        lines = [
            f"{self.name}: {len(self.graph.eqns)} equations traced, {len(self.optimized.eqns)} after the graph passes",
            f"  {len(kernels)} fused kernels, {len(contractions)} contractions, {sum(isinstance(s, CopyStep) for s in steps)} copies"
            + (
                f", {len(host)} calls of NumPy ({', '.join(sorted({s.prim.name for s in host}))})"
                if host
                else ""
            ),
            f"  {self.program.arena_bytes / 2**20:.2f} MiB arena, {self.peak_memory / 2**20:.2f} MiB with outputs",
        ]
        return "\n".join(lines)

    def _memory(self) -> str:
        program = self.program
        lines = [f"arena: {program.arena_bytes} bytes"]
        for buf, offset in sorted(program.offsets.items(), key=lambda item: item[1]):
            local = program.local.get(buf)
            end = offset + (local.fraction if local else buf.nbytes)
            note = (
                f", a fraction for each worker in chain {local.chain}, {local.stride} bytes apart"
                if local
                else ""
            )
            lines.append(f"  {offset:>10} .. {end:>10}  {_buf(buf)}{note}")
        lines += [f"input {i}: {_buf(b)}" for i, b in enumerate(program.inputs)]
        for j, b in enumerate(program.outputs):
            source = program.placed.get(j)
            lines.append(
                f"output {j}: {_buf(b)}"
                + (f" in the memory of donated input {source}" if source is not None else "")
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.show()

    __repr__ = __str__


def _buf(b: Buf) -> str:
    return f"{b.name}: {b.dtype}[{','.join(map(str, b.shape))}]"


def _describe(step: Step) -> str:
    if isinstance(step, KernelStep):
        return python_source(step.kernel)
    where = "\n".join(f"# {e.prim.name}  {e.source.short if e.source else ''}" for e in step.eqns)
    head = f"{where}\n" if where else ""
    if isinstance(step, ContractStep):
        text = f"{head}contract {_buf(step.out)} = {_buf(step.lhs)} . {_buf(step.rhs)}\n  {step.meta.get('plan', '')}"
        if step.epilogue is None:
            return text
        kept = "" if step.epilogue.keep else f", {step.out.name} never leaving registers"
        return f"{text}\n  with the epilogue{kept}:\n{textwrap.indent(python_source(step.epilogue.kernel), '    ')}"
    if isinstance(step, ChainStep):
        return f"chain of {len(step.body.steps)} steps, {step.count} pieces: all of these for one piece, then for the next"
    if isinstance(step, CopyStep):
        return f"copy {_buf(step.dst)} = {_buf(step.src)}"
    if isinstance(step, HostStep):
        return f"{head}numpy {', '.join(map(_buf, step.outputs))} = {step.prim.name}({', '.join(map(_buf, step.inputs))})"
    return f"{head}{type(step).__name__} with {sum(len(b.steps) for b in nested_blocks(step))} steps:"


def _cuda(step: Step) -> str:
    if not isinstance(step, KernelStep):
        return f"# {type(step).__name__}: not printed for CUDA yet"
    try:
        return cuda_source(step.kernel)
    except NotImplementedError as e:
        return f"# {step.kernel.name}: {e}"
