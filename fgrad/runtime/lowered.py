"""What `jit(f).lower(*args)` returns: the stages between a function and its machine code, each as text, and what they cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from fgrad.array import ConcreteArray
from fgrad.codegen.cuda.launch import LaunchStep
from fgrad.codegen.cuda.target import HOPPER, CudaTarget
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
from fgrad.device import DeviceArray, backend_of
from fgrad.errors import FgradTypeError, FgradValueError, describe, message
from fgrad.ir import Graph
from fgrad.passes import compile_graph, optimize
from fgrad.passes.memory import peak_memory
from fgrad.runtime.cost import Cost, program_cost
from fgrad.runtime.cuda.plan import plan_for_cuda
from fgrad.runtime.executable import Executable, compile_program, plan_program
from fgrad.runtime.options import matmul_precision, matmul_precision_here, winograd, winograd_allowed
from fgrad.runtime.peaks import Peaks
from fgrad.runtime.profile import Profile, profile

CUDA_HEAD = """\
# Kernels for numba.cuda. Parameters are addresses of flat arrays; names that are neither Python's nor Numba's (exp, maximum, load4,
# shuffle_xor, ...) are defined in fgrad/runtime/cuda/adapter.py and functions.py."""

STAGES = ("graph", "optimized", "kernels", "memory", "llvm", "assembly", "cuda")


class Lowered:
    """The stages of one program. `print(lowered.show())` for an overview, `.show("kernels")` for one stage.

    graph        as traced
    optimized    after the graph passes
    kernels      the fused loop nests and contractions in order, as readable Python
    memory       the arena: each buffer's place, and the peak
    llvm         the generated LLVM IR;  assembly: the machine code
    cuda         the same program for a GPU: its kernels as numba.cuda source, with the sizes of their launches

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
        self._there: Any = backend_of(self._arguments)  # None: the CPU
        self._cuda_target: CudaTarget = getattr(self._there, "target", HOPPER)
        self._precision = matmul_precision_here()

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

    def program_for(self, target: CudaTarget) -> Program:
        """The program for a GPU, planned and its kernels written, not compiled."""
        program = compile_graph(self.graph, self._donated, target="cuda")
        plan_for_cuda(program, target, matmul_precision_here(), host_ops=True)
        return program

    @cached_property
    def executable(self) -> Executable:
        return compile_program(self.program)

    def compile(self) -> Executable:
        """The program, compiled (or found in the cache)."""
        return self.executable if self._there is None else self._there.compile(self.graph, self._donated)

    @cached_property
    def _program_there(self) -> Program:
        """The program for where the arguments are."""
        if self._there is None:
            return self.program
        with matmul_precision(self._precision):
            return self.program_for(self._cuda_target)

    @property
    def peak_memory(self) -> int:
        """Bytes that a call needs beside its inputs."""
        return peak_memory(self._program_there)

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
        if any(isinstance(x, DeviceArray) for x in self._arguments):
            fix = "benchmarks/gpu.py times steps by the device's clock; profile on the CPU: fgrad.device_get(arguments)"
            raise NotImplementedError(
                message("profile", "programs on a GPU are not timed kernel by kernel", fix)
            )
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
            with matmul_precision(self._precision):  # as where this was lowered
                steps = list(walk(self.program_for(self._cuda_target).body))
            major, minor = self._cuda_target.capability
            chip = f"# For compute capability {major}.{minor} and {self._cuda_target.multiprocessors} multiprocessors."
            return "\n\n".join([f"{CUDA_HEAD}\n{chip}", *map(_cuda, steps)])
        raise FgradValueError(
            message("show", f"unknown stage {stage!r}", f"use one of summary, {', '.join(STAGES)}")
        )

    def _summary(self) -> str:
        steps = list(walk(self._program_there.body))
        launches = [s for s in steps if isinstance(s, LaunchStep)]
        kernels = [s for s in steps if isinstance(s, KernelStep)]
        contractions = [s for s in steps if isinstance(s, ContractStep)]
        host = [s for s in steps if isinstance(s, HostStep)]
        work = f"{len(kernels)} fused kernels, {len(contractions)} contractions"
        if launches:
            work = f"on {self._there.name}: {len(launches)} launches of {len({s.kernel.text for s in launches})} kernels"
        lines = [
            f"{self.name}: {len(self.graph.eqns)} equations traced, {len(self.optimized.eqns)} after the graph passes",
            f"  {work}, {sum(isinstance(s, CopyStep) for s in steps)} copies"
            + (
                f", {len(host)} calls of NumPy ({', '.join(sorted({s.prim.name for s in host}))})"
                if host
                else ""
            ),
            f"  {self._program_there.arena_bytes / 2**20:.2f} MiB arena, {self.peak_memory / 2**20:.2f} MiB with outputs",
        ]
        return "\n".join(lines)

    def _memory(self) -> str:
        program = self._program_there
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
    if isinstance(step, LaunchStep):
        kernel = step.kernel
        operations = ", ".join(dict.fromkeys(e.prim.name for e in step.eqns))
        blocks, threads = (
            " x ".join(str(n) for n in size if n > 1) or "1" for size in (kernel.grid, kernel.block)
        )
        bound = ", ".join(f"{p.name}: {_buf(b)}" for p, b in zip(kernel.params, step.args, strict=True))
        return (
            f"# {kernel.name}: {operations}; {blocks} blocks of {threads} threads; {bound}\n{kernel.source}"
        )
    # (Some lines are comments already.)
    return "\n".join(f"# {line.removeprefix('# ')}" for line in _describe(step).split("\n"))
