"""What a planned program takes, told from the program: operations, bytes, memory, and the time that this machine's peaks allow.

    >>> print(jit(step).lower(*args).cost())
    step: 1.11 GFLOP (1.1 G in multiply-adds, 12.3 M other arithmetic, 706 transcendental); 985 MFLOP in the graph's products
      47.4 MB read, 24.8 MB written; 5.6 MB of inputs and outputs
      15.32 MiB arena, 15.32 MiB beside the inputs; 35 kernels
      ...

Nothing is compiled to machine code and nothing runs. Loops count times their length. A `while_loop` is counted as one iteration
and a NumPy call as its bytes alone, since nobody knows more before running; of a `switch`, the dearest branch. `Cost.lower_bounds`
names such places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fgrad.codegen.contraction import Contraction, Operand
from fgrad.codegen.count import Work, kernel_work
from fgrad.codegen.parallel import pieces_of
from fgrad.codegen.program import (
    Block,
    Buf,
    ChainStep,
    ContractStep,
    CopyStep,
    ForStep,
    HostStep,
    KernelStep,
    Program,
    Step,
    SwitchStep,
    WhileStep,
    nested_blocks,
)
from fgrad.ir import Eqn, Graph, Var, subgraphs
from fgrad.passes.memory import peak_memory
from fgrad.runtime.peaks import Peaks

# A transcendental function is some twenty vector instructions; other arithmetic is one, which an FMA counts as two operations.
_TRANSCENDENTAL_FLOPS = 40.0
_ARITHMETIC_FLOPS = 2.0


@dataclass(frozen=True)
class StepCost:
    """One step. `work` is that of all its runs, `times` of them in one call of the program; `depth` counts the loops around it.

    Of a step that holds others, `work` is theirs together.
    """

    step: Step
    what: str
    work: Work
    times: int = 1
    depth: int = 0
    shared: bool = False  # cut into pieces for threads
    itemsize: int = 4  # of its multiply-adds: which peak counts
    footprint: int = 0  # distinct bytes of one run: which cache counts
    nested: bool = False  # holds other steps

    def seconds(self, peaks: Peaks, threads: int = 1) -> float:
        """The least time that the machine's arithmetic and memory allow for the step as it is (a roofline)."""
        workers = threads if self.shared else 1
        w = self.work
        flops = w.contraction + _ARITHMETIC_FLOPS * (w.arithmetic + w.integer)
        flops += _TRANSCENDENTAL_FLOPS * w.transcendental
        by_flops = flops / peaks.fma(self.itemsize, workers)
        return max(by_flops, w.bytes / peaks.bandwidth(self.footprint, workers))


@dataclass(frozen=True)
class Cost:
    """The cost of one call of a program; see the module's text.

    flops           of the program as compiled: `contraction` (a multiply-add is two), `arithmetic`, `transcendental`
    model_flops     of the graph's products and convolutions as their definitions say, which is what others count
    read, written   distinct bytes of each step, summed over steps: an upper bound of the traffic with memory
    compulsory      bytes of the inputs that are used and the outputs that are computed: a lower bound of it
    peak_memory     bytes that a call needs beside its inputs; `arena` is the part of it for temporaries
    """

    name: str
    steps: tuple[StepCost, ...]
    work: Work
    model_flops: int
    compulsory: int
    arena: int
    peak_memory: int
    lower_bounds: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        return self.work.flops

    @property
    def contraction(self) -> int:
        return self.work.contraction

    @property
    def arithmetic(self) -> int:
        return self.work.arithmetic

    @property
    def transcendental(self) -> int:
        return self.work.transcendental

    @property
    def read(self) -> int:
        return self.work.read

    @property
    def written(self) -> int:
        return self.work.written

    @property
    def bytes(self) -> int:
        return self.work.bytes

    @property
    def kernels(self) -> int:
        """Steps that compute or copy; those that hold others not counted."""
        return sum(not s.nested for s in self.steps)

    def seconds(self, peaks: Peaks, threads: int = 1) -> float:
        """The program's steps one after the other, each at the machine's peak: what perfect kernels would take."""
        return sum(s.seconds(peaks, threads) for s in self.steps if not s.nested)

    def limit(self, peaks: Peaks, threads: int = 1) -> float:
        """Seconds below which no program can compute this: its products on the FMA units, or its inputs and outputs through
        memory (through the cache that holds them, if one does), whichever takes longer."""
        return limit_seconds(self, peaks, threads)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the steps' own objects, for JSON."""
        kinds = ("contraction", "arithmetic", "transcendental", "integer", "read", "written")
        rows = [
            {"what": s.what, "times": s.times, "depth": s.depth, "shared": s.shared}
            | dict(zip(kinds, s.work.as_tuple()))
            for s in self.steps
        ]
        return {
            "name": self.name,
            "flops": self.flops,
            "model_flops": self.model_flops,
            **dict(zip(kinds, self.work.as_tuple())),
            "compulsory": self.compulsory,
            "arena": self.arena,
            "peak_memory": self.peak_memory,
            "kernels": self.kernels,
            "lower_bounds": list(self.lower_bounds),
            "steps": rows,
        }

    def __str__(self) -> str:
        w = self.work
        kinds = [count_text(n).strip() for n in (w.contraction, w.arithmetic, w.transcendental)]
        lines = [
            f"{self.name}: {count_text(w.flops)}FLOP ({kinds[0]} in multiply-adds, {kinds[1]} other arithmetic,"
            f" {kinds[2]} transcendental); {count_text(self.model_flops)}FLOP in the graph's products",
            f"  {count_text(w.read)}B read, {count_text(w.written)}B written; {count_text(self.compulsory)}B of inputs and outputs",
            f"  {self.arena / 2**20:.2f} MiB arena, {self.peak_memory / 2**20:.2f} MiB beside the inputs; {self.kernels} kernels",
            *(f"  {text}" for text in self.lower_bounds),
            f"{'FLOP':>10} {'read':>10} {'written':>10}  step",
        ]
        for s in self.steps:
            times = f"  x {s.times}" if s.times > 1 else ""
            lines.append(
                f"{count_text(s.work.flops):>10} {count_text(s.work.read) + 'B':>10} {count_text(s.work.written) + 'B':>10}"
                f"  {'  ' * s.depth}{s.what}{times}"
            )
        return "\n".join(lines)


def count_text(n: float) -> str:
    """`985.2 M`: a number with its unit's prefix."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            return f"{n / size:.3g} {prefix}" if abs(n) < 999.5 * size else f"{n / size:.0f} {prefix}"
    return f"{n:.0f} "


def limit_seconds(cost: Cost, peaks: Peaks, threads: int = 1) -> float:
    """See `Cost.limit`."""
    itemsize = max((s.itemsize for s in cost.steps if s.work.contraction), default=4)
    by_flops = cost.model_flops / peaks.fma(itemsize, threads)
    return max(by_flops, cost.compulsory / peaks.bandwidth(cost.compulsory, threads))


# ------------------------------------------------------------------------------------------------ programs


def program_cost(program: Program, graph: Graph | None = None) -> Cost:
    """The cost of a program whose contractions and memory are planned; `graph`, if given, is where `model_flops` come from."""
    steps: list[StepCost] = []
    notes: list[str] = []
    total = _block(program.body, 1, 0, steps, notes)
    return Cost(
        program.name,
        tuple(steps),
        total,
        total.contraction if graph is None else graph_flops(graph),
        _outside(program) if graph is None else _compulsory(graph),
        program.arena_bytes,
        peak_memory(program),
        tuple(dict.fromkeys(notes)),
    )


def _outside(program: Program) -> int:
    return sum({id(b): b.nbytes for b in (*program.inputs, *program.outputs)}.values())


def _compulsory(graph: Graph) -> int:
    """Bytes of the inputs that are used and of the outputs that are computed: an input handed back as it came need not move."""
    used = {a for e in graph.eqns for a in e.inputs if isinstance(a, Var)}
    outputs = {a for a in graph.outputs if isinstance(a, Var)}.difference(graph.inputs)
    literals = sum(a.type.nbytes for a in graph.outputs if not isinstance(a, Var))
    return sum(v.type.nbytes for v in (*used.intersection(graph.inputs), *outputs)) + literals


def _block(block: Block, times: int, depth: int, steps: list[StepCost], notes: list[str]) -> Work:
    total = Work()
    for step in block.steps:
        inner = nested_blocks(step)
        if not inner:
            one = step_work(step)
            if isinstance(step, HostStep):
                notes.append(
                    f"{step.prim.name}: computed by NumPy, whose operations are not counted{_at(step)}"
                )
            total += one * times
            steps.append(
                StepCost(
                    step,
                    describe(step),
                    one * times,
                    times,
                    depth,
                    pieces_of(step) is not None,
                    element_bytes(step),
                    one.bytes,
                )
            )
            continue
        at = len(steps)
        runs = times * step.length if isinstance(step, ForStep) else times
        found: list[Work] = []
        for each in inner:
            found.append(_block(each, runs, depth + 1, steps, notes))
        if isinstance(step, WhileStep):
            notes.append(f"while_loop: counted as one iteration{_at(step)}")
        if isinstance(step, SwitchStep):
            notes.append(f"switch: counted as its dearest branch{_at(step)}")
            work = max(found, key=lambda w: (w.flops, w.bytes), default=Work())
            _keep_branch(steps, at, inner, found.index(work) if found else 0)
        else:
            work = sum(found, Work())
        total += work
        steps.insert(at, StepCost(step, describe(step), work, runs, depth, nested=True))
    return total


def _keep_branch(steps: list[StepCost], at: int, blocks: Sequence[Block], chosen: int) -> None:
    """Of the rows from `at` on, leave those of one branch."""
    counts = [_rows(b) for b in blocks]
    first = at + sum(counts[:chosen])
    steps[at:] = steps[first : first + counts[chosen]] if counts else []


def _rows(block: Block) -> int:
    total = 0
    for step in block.steps:
        inner = [_rows(b) for b in nested_blocks(step)]
        total += 1 + (max(inner, default=0) if isinstance(step, SwitchStep) else sum(inner))
    return total


def step_work(step: Step) -> Work:
    """One run of a step that holds no others."""
    if isinstance(step, KernelStep):
        found = step.kernel.meta.get("work")
        if found is None:
            found = step.kernel.meta["work"] = kernel_work(step.kernel)
        return found
    workspace = getattr(step, "workspace", None)
    read, written = _bytes(step.reads), _bytes(b for b in step.writes if b is not workspace)
    if isinstance(step, ContractStep):
        spec = step.spec
        touched = sum(
            min(buf.nbytes, operand.dtype.itemsize * _elements(operand, spec.extents))
            for buf, operand in ((step.lhs, spec.lhs), (step.rhs, spec.rhs))
        )
        others = _bytes(b for b in step.reads if b is not step.lhs and b is not step.rhs)
        work = Work(contraction=contraction_flops(spec), read=touched + others, written=written)
        if step.epilogue is None:
            return work
        after = kernel_work(step.epilogue.kernel)
        return work + replace(after, read=0, written=0)
    return Work(read=read, written=written)


def _bytes(bufs: Iterable[Buf]) -> int:
    return sum({id(b): b.nbytes for b in bufs}.values())


def _elements(operand: Operand, extents: dict[str, int]) -> int:
    """How many elements an operand can have at most, by the loops that address it."""
    return math.prod(extents[n] for n in {n for axis in operand.axes for n, _ in axis.coefs if axis.stride})


def contraction_flops(spec: Contraction) -> int:
    """Two for each multiply-add whose factors exist: of a strided gradient's taps, those that fall on an output. (Factors in the
    padding count, as elsewhere.)"""
    flops = spec.flops
    extents = spec.extents
    for axis in (*spec.lhs.axes, *spec.rhs.axes):
        if axis.divisor > 1 and axis.size is not None and axis.coefs:
            place = extents[axis.coefs[0][0]]  # each tap meets every one of the `size` elements once
            flops = flops // place * min(axis.size, place) if place else 0
    return flops


def element_bytes(step: Step) -> int:
    """Bytes of the elements that a step computes with, 4 or 8: which of the two peaks counts."""
    if isinstance(step, ContractStep):
        return 8 if max(step.spec.lhs.dtype.itemsize, step.spec.rhs.dtype.itemsize) > 4 else 4
    return 8 if any(b.dtype.kind == "f" and b.dtype.itemsize == 8 for b in step.writes) else 4


def _at(step: Step) -> str:
    source = step.eqns[0].source if step.eqns else None
    return f" ({source.short})" if source else ""


def describe(step: Step) -> str:
    """`conv -> float32[64,32,26,26]`: what a step is and makes (its first two results), in a few words."""
    written = [b for b in step.writes if b is not getattr(step, "workspace", None)]
    results = ", ".join(f"{b.dtype}[{','.join(map(str, b.shape))}]" for b in written[:2])
    results += f", +{len(written) - 2}" if len(written) > 2 else ""
    if isinstance(step, KernelStep):
        return f"{step.kernel.name} -> {results}"
    if isinstance(step, ContractStep):
        prim = next((e.prim.name for e in step.eqns), "contraction")
        return f"{prim} -> {results}"
    if isinstance(step, HostStep):
        return f"numpy {step.prim.name} -> {results}"
    if isinstance(step, CopyStep):
        return f"copy -> {results}"
    if isinstance(step, ForStep):
        return f"loop of {step.length}"
    if isinstance(step, ChainStep):
        return f"chain in {step.count} pieces"
    return {WhileStep: "while_loop", SwitchStep: "switch"}.get(type(step), type(step).__name__)


# ------------------------------------------------------------------------------------------------ graphs


def graph_flops(graph: Graph) -> int:
    """Operations of the products and convolutions in a graph by their definitions, loops counted by their length."""
    return sum(_eqn_flops(e) for e in graph.eqns)


def _eqn_flops(eqn: Eqn) -> int:
    name, inputs = eqn.prim.name, [a.type for a in eqn.inputs]
    if name == "dot_general":
        (contract, _), _ = eqn.params["dims"]
        return 2 * eqn.outputs[0].type.size * math.prod(inputs[0].shape[i] for i in contract)
    if name in _CONV:
        y, w = _CONV[name](inputs, eqn.outputs[0].type)
        return 2 * y.size * math.prod(w.shape[1:])
    found = [graph_flops(g) for g in subgraphs(eqn)]
    if name == "switch":
        return max(found, default=0)
    return sum(found) * (eqn.params["length"] if name == "scan" else 1)


# For each: the types of the output y (or its cotangent) and of the kernel w.
_CONV: dict[str, Any] = {
    "conv": lambda inputs, out: (out, inputs[1]),
    "conv_input_grad": lambda inputs, out: (inputs[0], inputs[1]),
    "conv_weight_grad": lambda inputs, out: (inputs[1], out),
}
