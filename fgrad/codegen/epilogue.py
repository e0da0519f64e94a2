"""Epilogues: what an element-wise kernel does to the result of a contraction, done while the sums are still in registers.

    h = x . w                         (contraction)            for each tile:  sums = micro-kernel
    for i: y[i] = max(h[i] + b[i % 128], 0)   (kernel)   =>                    y = max(sums + b, 0); store y

`match` decides whether a kernel can be one: a nest of loops over all of the product's elements that does nothing but store, reads the
product only at the element that it stores, and addresses all else by a linear function of the contraction's dimensions (a bias,
a residual, the optimizer's moments). `attach_epilogues` joins the two steps where the cost model does not object; `Sink` prints the
stores. Everything is stored at the product's own place in its layout.

To let more kernels in, extend `match` (what is recognised) and `Sink.store` (how it is printed, for scalars and vectors alike).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from llvmlite import ir

from fgrad.codegen import scalar
from fgrad.codegen.blocking import Plan
from fgrad.codegen.contraction import Axis, Contraction, Dim, Operand
from fgrad.codegen.irtools import Emitter, Index
from fgrad.codegen.loops import (
    Affine,
    Buffer,
    Const,
    Expr,
    Kernel,
    Load,
    Loop,
    LoopVar,
    Op,
    Stmt,
    Store,
    affine_terms,
)
from fgrad.codegen.packing import flat_offset, levels_of
from fgrad.codegen.planning import Bound, Candidate, candidates, finish
from fgrad.codegen.program import Block, Buf, ContractStep, KernelStep, Program, Step, nested_blocks, walk
from fgrad.codegen.target import TargetInfo


@dataclass(frozen=True, eq=False)
class Epilogue:
    """`kernel`, run on `args` where the product is `args[product]`; `operands[i]` says where `args[i]` has the element that
    belongs to an element of the product. `keep`: others read the product too, so that it is stored as well."""

    kernel: Kernel
    args: tuple[Buf, ...]
    product: int
    operands: tuple[Operand, ...]
    stores: tuple[Store, ...]
    keep: bool = False
    in_place: tuple[tuple[Buf, Buf], ...] = ()

    @property
    def extra(self) -> tuple[int, ...]:
        """Positions of the arguments that the code takes beside the contraction's own."""
        return tuple(i for i in range(len(self.args)) if i != self.product)

    @property
    def reads(self) -> tuple[Buf, ...]:
        return tuple(self.args[i] for i in self.extra if self.kernel.buffers[i].role == "in")

    @property
    def writes(self) -> tuple[Buf, ...]:
        return tuple(self.args[i] for i in self.extra if self.kernel.buffers[i].role != "in")

    def key(self, kernel_text: str) -> str:
        return f"{kernel_text} {self.product} {self.keep} {self.operands}"


# ------------------------------------------------------------------------------------------------ recognising one


def _nest(body: Sequence[Stmt]) -> tuple[list[LoopVar], list[Store]] | None:
    """The loop variables of a plain nest and the stores in it."""
    variables: list[LoopVar] = []
    while len(body) == 1 and isinstance(body[0], Loop):
        variables.append(body[0].var)
        body = body[0].body
    stores = [s for s in body if isinstance(s, Store) and s.op is None and s.mask is None]
    return (variables, stores) if body and len(stores) == len(body) else None


def _coefs(index: Expr, variables: Sequence[LoopVar]) -> tuple[int, dict[LoopVar, int]] | None:
    const, terms = affine_terms(index)
    if not isinstance(index, (Affine, Const, LoopVar)) or any(t not in variables for t, _ in terms):
        return None
    return const, {t: c for t, c in terms if isinstance(t, LoopVar)}


def _radix(places: Sequence[tuple[int, int]], size: int) -> bool:
    """Whether (stride, extent) pairs count through 0 ... size - 1, each number once."""
    step = 1
    for stride, extent in sorted(places):
        if stride != step:
            return False
        step *= extent
    return step == size


def _linear(
    const: int,
    coefs: dict[LoopVar, int],
    order: dict[LoopVar, int],
    dims: Sequence[tuple[Dim, int]],
    dtype: np.dtype,
) -> Operand | None:
    """The address `const + sum(coefs)` as a function of the contraction's dimensions; `order` are the loops' coefficients in the
    product's flat index and `dims` the dimensions with their strides there. None if it is not linear in them."""
    cuts = sorted({*order.values(), *(stride for _, stride in dims)})
    digits: dict[int, int] = {}  # stride in the product -> what a step there adds to the address
    for variable, place in order.items():
        for cut in cuts:
            if place <= cut < place * variable.extent:
                if cut % place:
                    return None
                digits[cut] = coefs.get(variable, 0) * (cut // place)
    axes = []
    for dim, stride in dims:
        step = digits[stride]
        inside = [cut for cut in cuts if stride <= cut < stride * dim.extent]
        if any(cut % stride or digits[cut] != step * (cut // stride) for cut in inside):
            return None
        if step:
            axes.append(Axis(((dim.name, 1),), step))
    return Operand(dtype, tuple(axes), const)


def _printable(e: Expr, dtype: np.dtype, known: set[int]) -> bool:
    """Whether `Sink.store` can print an expression."""
    if id(e) in known:
        return True
    if isinstance(e, Load):
        good = e.mask is None and e.dtype == dtype
    elif isinstance(e, Op):
        good = scalar.supports(e.name, [a.dtype for a in e.args], e.dtype) and e.name not in _CALLS
        good = good and all(_printable(a, dtype, known) for a in e.args)
    else:
        good = isinstance(e, Const)
    if good:
        known.add(id(e))
    return good


_CALLS = frozenset({"fmod", "remainder", "floordiv"})  # of floats: C functions, which take no vectors


def match(spec: Contraction, product: Buf, step: KernelStep) -> Epilogue | None:
    """`step` as an epilogue of the contraction `spec` into `product`, or None."""
    kernel, out = step.kernel, spec.out
    if (
        out.dtype.name not in ("float32", "float64")
        or spec.lhs.dtype != out.dtype
        or spec.rhs.dtype != out.dtype
    ):
        return None
    found = _nest(kernel.meta.get("nest", kernel.body))
    places = [i for i, arg in enumerate(step.args) if arg.root is product.root]
    if (
        found is None
        or len(places) != 1
        or step.args[places[0]].byte_offset
        or step.args[places[0]].byte_stride
    ):
        return None
    variables, stores = found
    buffer = kernel.buffers[places[0]]
    base, strides = out.strides()
    free = [dim for dim in (*spec.batch, *spec.m, *spec.n) if dim.extent > 1]
    dims = [(dim, strides.get(dim.name, 0)) for dim in free]
    if buffer.role != "in" or buffer.size != product.size or base:
        return None
    if not _radix([(stride, dim.extent) for dim, stride in dims], buffer.size):
        return None

    known: set[int] = set()
    if not all(_printable(s.value, out.dtype, known) for s in stores):
        return None
    where: dict[Buffer, Expr] = {}
    for s in stores:
        if s.buffer.dtype != out.dtype or s.buffer in where:
            return None
        where[s.buffer] = s.index
        for load in _loads(s.value):
            if where.setdefault(load.buffer, load.index) is not load.index:
                return None
    if buffer not in where:
        return None
    flat = _coefs(where[buffer], variables)
    if flat is None or flat[0] or set(flat[1]) != {v for v in variables if v.extent > 1}:
        return None
    order = flat[1]
    if not _radix([(c, v.extent) for v, c in order.items()], buffer.size):
        return None
    operands: list[Operand] = []
    for b in kernel.buffers:
        index = _coefs(where[b], variables) if b in where else None
        operand = _linear(*index, order, dims, b.dtype) if index is not None else None
        if operand is None or (b.role != "in" and index != flat) or b.role == "inout":
            return None
        operands.append(operand)
    return Epilogue(kernel, step.args, places[0], tuple(operands), tuple(stores), in_place=step.in_place)


def _loads(root: Expr) -> list[Load]:
    found: list[Load] = []
    seen: set[int] = set()
    pending = [root]
    while pending:
        e = pending.pop()
        if id(e) not in seen:
            seen.add(id(e))
            if isinstance(e, Load):
                found.append(e)
            elif isinstance(e, Op):
                pending.extend(e.args)
    return found


# ------------------------------------------------------------------------------------------------ printing


def _levels(dims: Sequence[Dim], strides: dict[str, int]) -> list[tuple]:
    """The loops over `dims` that move an address; none if nothing does."""
    return levels_of(dims, strides) if any(strides.get(d.name, 0) for d in dims) else []


class Sink:
    """Where the sums of a contraction go: one value, a scalar or a vector of neighbours along n, at a time."""

    def __init__(
        self,
        e: Emitter,
        epilogue: Epilogue,
        pointers: Sequence[Any],
        m: Sequence[Dim],
        n: Sequence[Dim],
        out: dict[str, int],
    ):
        self.e, self.epilogue = e, epilogue
        self.pointers = dict(zip(epilogue.extra, pointers, strict=True))
        self.rows: dict[int, list[tuple]] = {}
        self.columns: dict[int, list[tuple]] = {}
        self.aligned: set[int] = set()  # laid out as the product itself
        for i in epilogue.extra:
            base, strides = epilogue.operands[i].strides()
            self.pointers[i] = e.at(self.pointers[i], base, self.dtype(i))
            self.rows[i], self.columns[i] = _levels(m, strides), _levels(n, strides)
            if all(strides.get(d.name, 0) == out.get(d.name, 0) for d in (*m, *n) if d.extent > 1):
                self.aligned.add(i)
        self.number = {b: i for i, b in enumerate(epilogue.kernel.buffers)}

    def dtype(self, i: int) -> np.dtype:
        return self.epilogue.operands[i].dtype

    def strides(self) -> list[dict[str, int]]:
        """Of every extra argument, by dimension."""
        return [self.epilogue.operands[i].strides()[1] for i in self.epilogue.extra]

    @contextmanager
    def moved(self, steps: Sequence[Index]) -> Iterator[None]:
        """Within: every argument so many elements further on (a step of the batch)."""
        before = dict(self.pointers)
        for i, step in zip(self.epilogue.extra, steps, strict=True):
            self.pointers[i] = self.e.at(self.pointers[i], step, self.dtype(i))
        yield
        self.pointers = before

    def store(self, value: ir.Value, offset: Index, m: Index, n: Index, mask: ir.Value | None = None) -> None:
        """Finish `value`, the sums at row `m` and columns from `n` on, at `offset` in the product; only the lanes of a mask."""
        e, memo = self.e, {}
        lanes = value.type.count if isinstance(value.type, ir.VectorType) else 0

        def place(i: int) -> ir.Value:
            if i in self.aligned:
                return e.at(self.pointers[i], offset, self.dtype(i))
            moved = e.add(flat_offset(e, m, self.rows[i]), flat_offset(e, n, self.columns[i]))
            return e.at(self.pointers[i], moved, self.dtype(i))

        def load(i: int) -> ir.Value:
            dtype = self.dtype(i)
            if not lanes or not self.columns[i]:
                found = e.load(place(i), dtype, dtype)
                return e.splat(found, lanes) if lanes else found
            return (
                e.load_some(place(i), mask, dtype)
                if mask is not None
                else e.load(place(i), dtype, dtype, lanes)
            )

        def value_of(x: Expr) -> ir.Value:
            if id(x) not in memo:
                memo[id(x)] = compute(x)
            return memo[id(x)]

        def compute(x: Expr) -> ir.Value:
            if isinstance(x, Load):
                i = self.number[x.buffer]
                return value if i == self.epilogue.product else load(i)
            if isinstance(x, Const):
                one = scalar.constant(x.value, x.dtype)
                return ir.Constant(ir.VectorType(one.type, lanes), [one] * lanes) if lanes else one
            assert isinstance(x, Op)
            return scalar.emit(
                e.builder, x.name, [value_of(a) for a in x.args], [a.dtype for a in x.args], x.dtype
            )

        results = [
            (self.number[s.buffer], value_of(s.value)) for s in self.epilogue.stores
        ]  # all loads before the first store
        for i, result in results:
            if mask is not None:
                e.store_some(result, place(i), mask, self.dtype(i))
            else:
                e.store(result, place(i), self.dtype(i), self.dtype(i))


def vectors(epilogue: Epilogue, n: Sequence[Dim], out: dict[str, int]) -> bool:
    """Whether neighbours along n that are neighbours in the product are so, or the same element, in every argument."""
    across = levels_of(n, out)
    if across and across[-1][1] != 1:
        return True  # such a product is stored one element at a time
    for i in epilogue.extra:
        _, strides = epilogue.operands[i].strides()
        same = all(strides.get(d.name, 0) == out.get(d.name, 0) for d in n if d.extent > 1)
        absent = all(strides.get(d.name, 0) == 0 for d in n)
        levels = levels_of(n, out, strides)
        if not same and not absent and not (len(levels) == 1 and levels[0][1] == levels[0][2] == 1):
            return False
    return True


# ------------------------------------------------------------------------------------------------ joining


def candidates_with(
    spec: Contraction, epilogue: Epilogue, target: TargetInfo, bound: Bound | None = None
) -> Iterator[Candidate]:
    """The plans for a contraction that can take its epilogue."""
    for candidate in candidates(spec, target, whole=True, bound=bound):
        cost, chosen, fields = candidate
        if (
            fields
            and (bound is None or cost < bound.cost)
            and vectors(epilogue, chosen.spec.n, chosen.out.strides)
        ):
            yield candidate


def plan_with(spec: Contraction, epilogue: Epilogue, target: TargetInfo) -> Plan | None:
    """The best plan for a contraction with an epilogue; None if no plan can take one."""
    bound = Bound()
    found = bound.best(candidates_with(spec, epilogue, target, bound))
    return finish(*found) if found else None


def attach_epilogues(program: Program, target: TargetInfo) -> None:
    """Join each contraction with the first step that reads its product, where that can be an epilogue and pays."""
    uses: dict[Buf, int] = {}
    for step in walk(program.body):
        for buf in step.reads:
            uses[buf.root] = uses.get(buf.root, 0) + 1
    visible = {b.root for b in program.outputs}

    def visit(block: Block) -> None:
        for step in block.steps:
            for inner in nested_blocks(step):
                visit(inner)
        steps = list(block.steps)
        readers: dict[Buf, int] = {}
        for n in reversed(range(len(steps))):
            touched = [s for b in nested_blocks(steps[n]) for s in walk(b)]
            for s in (steps[n], *touched):
                readers.update((buf.root, n) for buf in s.reads)
        gone: set[int] = set()  # contractions that moved down
        taken: set[int] = set()  # kernels that have become epilogues
        for n, step in enumerate(steps):
            if (
                not isinstance(step, ContractStep)
                or step.epilogue is not None
                or step.out.root is not step.out
            ):
                continue
            reader = readers.get(step.out)
            kernel = steps[reader] if reader is not None else None
            if reader is None or not isinstance(kernel, KernelStep) or reader in taken:
                continue
            if _overwritten(step, steps[n + 1 : reader + 1]):
                continue
            joined = _joined(step, kernel, target)
            if joined is None:
                continue
            keep = uses[step.out] > 1 or step.out in visible
            after, plan = joined
            step.epilogue, step.meta["plan"] = replace(after, keep=keep), plan
            step.eqns = (*step.eqns, *kernel.eqns)
            # The kernel's other inputs may be computed between the two, so the contraction moves down to its place.
            steps[reader] = step
            gone.add(n)
            taken.add(reader)
        block.steps[:] = [s for n, s in enumerate(steps) if n not in gone]

    visit(program.body)


def _overwritten(step: ContractStep, later: Sequence[Step]) -> bool:
    """Whether `later` steps write what the contraction reads (a loop's carry, updated in place): it must stay before them."""
    operands = {step.lhs.root, step.rhs.root}
    return any(not operands.isdisjoint(b.root for b in s.writes) for s in walk(Block(list(later))))


_PASS_CYCLES = 0.25  # an element, for each argument of a kernel that is run apart
# The caches and the threads want long sums in pieces, which leave nothing complete to hand to an epilogue until the last. That is for products with
# at least so many cycles, and for sums of at least so many terms.
_HEAVY_CYCLES, _MOST_TERMS = 100_000, 512


def _joined(step: ContractStep, kernel: KernelStep, target: TargetInfo) -> tuple[Epilogue, Plan] | None:
    plain = step.meta["plan"]
    if plain.cycles > _HEAVY_CYCLES and math.prod(d.extent for d in step.spec.k) > _MOST_TERMS:
        return None
    epilogue = match(step.spec, step.out, kernel)
    if epilogue is None:
        return None
    plan = plan_with(step.spec, epilogue, target)
    saved = _PASS_CYCLES * step.out.size * len(kernel.args)
    return (epilogue, plan) if plan is not None and plan.cycles <= plain.cycles + saved else None
