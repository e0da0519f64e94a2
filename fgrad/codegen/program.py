"""A compiled program before code: buffers and the steps that fill them, in order.

The passes turn a graph into a `Program`; `passes.memory` gives each temporary its place in the arena; `codegen.llvm` prints
all native steps as one function over a table of pointers; `runtime.executable` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgrad.codegen.loops import Kernel
from fgrad.ir import Eqn, Primitive


@dataclass(eq=False)
class Buf:
    """A dense row-major array. kind: "input", "output" (allocated by the caller), "temp" (in the arena), "const" (a small
    NumPy array kept with the program, `value`), "status" (one int64: first failed check), or "view": the bytes of `base`
    from `byte_offset` on, seen with another shape/dtype; a view whose `stride_of` loop is set moves by `byte_stride` an iteration."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    kind: str = "temp"
    base: Buf | None = None
    byte_offset: int = 0
    byte_stride: int = 0
    value: np.ndarray | None = None

    @property
    def size(self) -> int:
        n = 1
        for s in self.shape:
            n *= s
        return n

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def root(self) -> Buf:
        """The buffer that owns the bytes."""
        return self if self.base is None else self.base.root


@dataclass(frozen=True)
class Local:
    """A temporary that only one chain touches: worker w has room for one fraction of it at `w * stride` from its offset."""

    stride: int
    fraction: int  # bytes
    chain: int  # a number for each chain


class Step:
    """One unit of work. `reads`/`writes` are the Bufs it touches; `eqns` the graph equations it came from."""

    reads: tuple[Buf, ...] = ()
    writes: tuple[Buf, ...] = ()
    eqns: tuple[Eqn, ...] = ()


@dataclass(eq=False)
class KernelStep(Step):
    """Run a loop nest; `args[i]` is bound to `kernel.buffers[i]`."""

    kernel: Kernel
    args: tuple[Buf, ...]
    eqns: tuple[Eqn, ...] = ()
    in_place: tuple[
        tuple[Buf, Buf], ...
    ] = ()  # (written, read) pairs that may share bytes: same index read before written

    @property
    def reads(self) -> tuple[Buf, ...]:  # type: ignore[override]
        return tuple(a for a, b in zip(self.args, self.kernel.buffers, strict=True) if b.role != "out")

    @property
    def writes(self) -> tuple[Buf, ...]:  # type: ignore[override]
        return tuple(a for a, b in zip(self.args, self.kernel.buffers, strict=True) if b.role != "in")


@dataclass(eq=False)
class ContractStep(Step):
    """`out = lhs . rhs` as a `codegen.contraction.Contraction`; an `epilogue` (`codegen.epilogue`) takes the product on, which is then
    written to `out` only if others read it."""

    spec: Any
    out: Buf
    lhs: Buf
    rhs: Buf
    workspace: Buf | None = None
    eqns: tuple[Eqn, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    epilogue: Any = None

    @property
    def reads(self) -> tuple[Buf, ...]:  # type: ignore[override]
        return (self.lhs, self.rhs, *(self.epilogue.reads if self.epilogue else ()))

    @property
    def writes(self) -> tuple[Buf, ...]:  # type: ignore[override]
        result = (self.out,) if self.keeps_product else ()
        result += self.epilogue.writes if self.epilogue else ()
        return result if self.workspace is None else (*result, self.workspace)

    @property
    def keeps_product(self) -> bool:
        return self.epilogue is None or self.epilogue.keep

    @property
    def in_place(self) -> tuple[tuple[Buf, Buf], ...]:
        return self.epilogue.in_place if self.epilogue else ()


@dataclass(eq=False)
class CopyStep(Step):
    """Copy `src` to `dst` (same number of bytes)."""

    dst: Buf
    src: Buf
    eqns: tuple[Eqn, ...] = ()

    @property
    def reads(self) -> tuple[Buf, ...]:  # type: ignore[override]
        return (self.src,)

    @property
    def writes(self) -> tuple[Buf, ...]:  # type: ignore[override]
        return (self.dst,)


@dataclass(eq=False)
class HostStep(Step):
    """A cut in the native code: call the primitive's NumPy definition on views of the buffers and copy the results in."""

    prim: Primitive
    params: dict[str, Any]
    inputs: tuple[Buf, ...]
    outputs: tuple[Buf, ...]
    eqns: tuple[Eqn, ...] = ()

    @property
    def reads(self) -> tuple[Buf, ...]:  # type: ignore[override]
        return self.inputs

    @property
    def writes(self) -> tuple[Buf, ...]:  # type: ignore[override]
        return self.outputs


@dataclass(eq=False)
class Block:
    steps: list[Step]


@dataclass(eq=False)
class SwitchStep(Step):
    """Run `branches[clip(index)]` (an int64 buffer of one element)."""

    index: Buf
    branches: tuple[Block, ...]
    eqns: tuple[Eqn, ...] = ()


@dataclass(eq=False)
class WhileStep(Step):
    """`while (run cond; pred): run body`. The body ends with copies into the carried buffers."""

    cond: Block
    pred: Buf
    body: Block
    eqns: tuple[Eqn, ...] = ()


@dataclass(eq=False)
class ForStep(Step):
    """`for i in range(length)`: views in `moving` start at byte_offset and move by byte_stride each iteration.

    With `parallel`, no iteration touches what another writes, but for temporaries of the body (each gets its own in
    `codegen.parts`), and threads may share them."""

    length: int
    body: Block
    moving: tuple[Buf, ...]
    eqns: tuple[Eqn, ...] = ()
    parallel: bool = False


@dataclass(eq=False)
class ChainStep(Step):
    """For each of `count` pieces, in any order and by any thread: piece p of every step of `body`, one step after another.

    What one step writes and another touches is cut into `count` equal fractions, and piece p keeps to fraction p: so no
    piece waits for another, and what a piece has written is still in the cache when its next step reads it.
    """

    count: int
    body: Block
    eqns: tuple[Eqn, ...] = ()
    home: frozenset[Buf] = frozenset()  # roots in which every member's piece p keeps to fraction p
    in_place: tuple[
        tuple[KernelStep | ContractStep, Buf, Buf], ...
    ] = ()  # (member, written, read): pairs as `KernelStep` has them

    @property
    def reads(self) -> tuple[Buf, ...]:  # type: ignore[override]
        """Without what the chain itself has written before."""
        found: dict[Buf, None] = {}
        written: set[Buf] = set()
        for step in self.body.steps:
            found.update(dict.fromkeys(b for b in step.reads if b.root not in written))
            written.update(b.root for b in step.writes)
        return tuple(found)

    @property
    def writes(self) -> tuple[Buf, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(b for step in self.body.steps for b in step.writes))


@dataclass(eq=False)
class Program:
    """`donated[i] = j`: input i's bytes may be used for output j."""

    name: str
    inputs: tuple[Buf, ...]
    outputs: tuple[Buf, ...]
    body: Block
    status: Buf | None = None
    checks: list[tuple[str, Any]] = field(
        default_factory=list
    )  # status code k -> (what went wrong, Source): checks[k - 1]
    donated: dict[int, int] = field(default_factory=dict)
    arena_bytes: int = 0
    offsets: dict[Buf, int] = field(default_factory=dict)  # temp root -> byte offset in the arena
    local: dict[Buf, Local] = field(
        default_factory=dict
    )  # those of which each worker has one fraction, in a chain
    placed: dict[int, int] = field(
        default_factory=dict
    )  # output j -> donated input whose bytes it is written to
    planned: bool = False  # contractions, threads and memory are decided


def nested_blocks(step: Step) -> tuple[Block, ...]:
    if isinstance(step, SwitchStep):
        return step.branches
    if isinstance(step, WhileStep):
        return (step.cond, step.body)
    if isinstance(step, (ForStep, ChainStep)):
        return (step.body,)
    return ()


def walk(block: Block) -> Iterator[Step]:
    """All steps, nested ones after the step that holds them."""
    for step in block.steps:
        yield step
        for inner in nested_blocks(step):
            yield from walk(inner)


def touched(step: Step) -> tuple[set[Buf], set[Buf]]:
    """Roots that a step, and what is nested in it, reads and writes."""
    reads: set[Buf] = set()
    writes: set[Buf] = set()
    for inner in walk(Block([step])):
        reads.update(b.root for b in inner.reads)
        writes.update(b.root for b in inner.writes)
        if isinstance(inner, SwitchStep):
            reads.add(inner.index.root)
        elif isinstance(inner, WhileStep):
            reads.add(inner.pred.root)
        elif isinstance(inner, ForStep):
            reads.update(b.root for b in inner.moving)
    return reads, writes
