"""How one step can be cut into equal pieces, and which bytes of its buffers each piece touches.

A piece p of P is *at home* in a buffer if it touches nothing outside the p-th of P equal fractions of it. Steps whose pieces are
at home in what they hand to one another can follow each other without waiting (`codegen.chains`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fgrad.codegen.blocking import Plan
from fgrad.codegen.canonical import kernel_text
from fgrad.codegen.contraction import Contraction, Dim, Operand
from fgrad.codegen.epilogue import Epilogue, plan_with
from fgrad.codegen.irtools import is_floating
from fgrad.codegen.loops import (
    Affine,
    Buffer,
    Expr,
    Kernel,
    Load,
    Loop,
    LoopVar,
    Op,
    Stmt,
    Store,
    affine_terms,
    expressions,
    index_range,
    statements,
)
from fgrad.codegen.nestinfo import nodes
from fgrad.codegen.pieces import ContractPieces, kernel_cycles
from fgrad.codegen.planning import plan
from fgrad.codegen.program import Buf, ContractStep, KernelStep
from fgrad.codegen.target import TargetInfo
from fgrad.codegen.winograd import WinogradPlan


@dataclass(frozen=True)
class Reach:
    """Iteration i (of a loop, or of the pieces) touches the elements `step * i + low` to `step * i + high`."""

    step: int
    low: int
    high: int

    def join(self, other: Reach) -> Reach | None:
        if self.step != other.step:
            return None
        return Reach(self.step, min(self.low, other.low), max(self.high, other.high))

    def times(self, count: int) -> Reach:
        """Of `count` iterations taken together."""
        more = self.step * (count - 1)
        return Reach(self.step * count, self.low + min(0, more), self.high + max(0, more))


def unit(buf: Buf) -> tuple[Buf, int]:
    """The array that a buffer is part of, as far as it stands still inside a loop's body, and the offset in bytes."""
    offset = 0
    while buf.base is not None and not buf.byte_stride:
        offset += buf.byte_offset
        buf = buf.base
    return buf, offset


def at_home(buf: Buf, reach: Reach | None, count: int) -> bool:
    """Whether piece p of `count`, which touches the elements of `buf` that `reach` says, keeps to fraction p of its unit."""
    if reach is None:
        return False
    whole, offset = unit(buf)
    size = buf.dtype.itemsize
    if reach.step * size * count != whole.nbytes or reach.step <= 0:
        return False
    return offset + reach.low * size >= 0 and offset + (reach.high + 1) * size <= reach.step * size


# ------------------------------------------------------------------------------------------------ kernels


def index_reach(index: Expr, var: LoopVar) -> Reach | None:
    """What an index takes as values in each iteration of `var`, the loops inside run to their ends."""
    const, terms = affine_terms(index)
    step = sum(c for t, c in terms if t is var)
    others = [(t, c) for t, c in terms if t is not var]
    if any(not isinstance(t, LoopVar) for t, _ in others) and var in nodes([t for t, _ in others]):
        return None
    bounds = index_range(Affine(const, others))
    return None if bounds is None else Reach(step, *bounds)


def body_reach(
    body: Sequence[Stmt], var: LoopVar
) -> tuple[dict[Buffer, Reach | None], dict[Buffer, Reach | None]]:
    """Of each buffer that is read, and that is written, under a loop over `var`; None where it cannot be told."""
    reads: dict[Buffer, Reach | None] = {}
    writes: dict[Buffer, Reach | None] = {}

    def note(into: dict[Buffer, Reach | None], buffer: Buffer, index: Expr) -> None:
        found = index_reach(index, var)
        if buffer in into:
            old = into[buffer]
            found = old.join(found) if old is not None and found is not None else None
        into[buffer] = found

    roots: list[Expr] = []
    for s in statements(body):
        roots.extend(expressions(s))
        if isinstance(s, Store):
            note(writes, s.buffer, s.index)
            if s.op is not None or s.mask is not None:
                note(reads, s.buffer, s.index)
    for e in nodes(roots):
        if isinstance(e, Load):
            note(reads, e.buffer, e.index)
    return reads, writes


def outer_loop(kernel: Kernel) -> Loop | None:
    """The loop whose ranges can be run by themselves, in any order, if the kernel is one such loop."""
    if len(kernel.body) != 1 or not isinstance(kernel.body[0], Loop):
        return None
    loop = kernel.body[0]
    if loop.kind == "vector":
        return loop if all(isinstance(s, Store) and s.op is None for s in loop.body) else None
    return loop if loop.kind == "parallel" else None


# ------------------------------------------------------------------------------------------------ contractions


@dataclass(frozen=True)
class ContractCut:
    """A contraction cut along a dimension."""

    is_k: bool
    pieces: ContractPieces
    cycles: float  # of all pieces, and of adding up partial results


_plans: dict[tuple[str, TargetInfo], Plan | WinogradPlan | None] = {}


def _remembered(
    key: tuple[str, TargetInfo], make: Callable[[], Plan | WinogradPlan | None]
) -> Plan | WinogradPlan | None:
    if key not in _plans:
        if len(_plans) > 4096:
            _plans.clear()
        _plans[key] = make()
    return _plans[key]


def cached_plan(spec: Contraction, target: TargetInfo) -> Plan | WinogradPlan:
    """`plan`, remembered: many steps and their pieces are alike."""
    found = _remembered((repr(spec), target), lambda: plan(spec, target))
    assert found is not None
    return found


def _plan_of(spec: Contraction, epilogue: Epilogue | None, target: TargetInfo) -> Plan | WinogradPlan | None:
    if epilogue is None:
        return cached_plan(spec, target)
    key = repr(spec) + epilogue.key(kernel_text(epilogue.kernel))
    return _remembered((key, target), lambda: plan_with(spec, epilogue, target))


def _shifts(operand: Operand, dim: Dim, spec: Contraction) -> bool:
    """Whether a later part of `dim` is the same addresses, moved."""
    if operand.is_plain(spec.extents):
        return True
    mentioned = [axis for axis in operand.axes if any(name == dim.name for name, _ in axis.coefs)]
    return all(axis.divisor == 1 and axis.size is None for axis in mentioned)


def _reach(operand: Operand, dim: Dim, part: int, extents: dict[str, int]) -> Reach:
    shorter = {**extents, dim.name: part}
    low = high = operand.offset
    step = 0
    for axis in operand.axes:
        first, last = axis.span(shorter)
        first, last = first // axis.divisor, last // axis.divisor
        if axis.size is not None:
            first, last = max(first, 0), min(last, axis.size - 1)
        ends = first * axis.stride, last * axis.stride
        low, high = low + min(ends), high + max(ends)
        step += sum(part * coef * axis.stride for name, coef in axis.coefs if name == dim.name)
    return Reach(step, low, high)


def possible_dims(spec: Contraction, count: int) -> Iterator[tuple[Dim, bool]]:
    """Dimensions that can be cut into `count` pieces, and whether they are summed over."""
    extents = spec.extents
    if any(e == 0 for e in extents.values()):
        return
    for dims, is_k in ((spec.batch, False), (spec.n, False), (spec.m, False), (spec.k, True)):
        if is_k and not is_floating(spec.out.dtype):
            continue
        dim = next((d for d in dims if d.extent > 1), None)
        if dim is None or dim.extent % count:
            continue
        if all(_shifts(o, dim, spec) for o in (spec.lhs, spec.rhs, spec.out)):
            yield dim, is_k


def piece_reaches(spec: Contraction, dim: Dim, count: int, operands: Sequence[Operand]) -> list[Reach]:
    """What the pieces of a cut along `dim` touch of some operands."""
    return [_reach(o, dim, dim.extent // count, spec.extents) for o in operands]


def cut_contraction(
    step: ContractStep, dim: Dim, count: int, is_k: bool, target: TargetInfo
) -> ContractCut | None:
    """`step` cut into `count` pieces along `dim`, each planned. An epilogue waits for partial results to be added up.

    None if no plan of a piece can take the epilogue.
    """
    spec, part = step.spec, dim.extent // count
    epilogue: Epilogue | None = None if is_k else step.epilogue

    def shorter(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
        return tuple(replace(d, extent=part) if d == dim else d for d in dims)

    smaller = replace(
        spec, batch=shorter(spec.batch), m=shorter(spec.m), n=shorter(spec.n), k=shorter(spec.k)
    )
    chosen = _plan_of(smaller, epilogue, target)
    if chosen is None:
        return None
    operands = [spec.out, spec.lhs, spec.rhs]
    operands += [epilogue.operands[i] for i in epilogue.extra] if epilogue else []
    reaches = piece_reaches(spec, dim, count, operands)
    moves = [reach.step * o.dtype.itemsize for reach, o in zip(reaches, operands)]
    size = math.prod(d.extent for d in spec.batch + spec.m + spec.n)
    if is_k:
        moves[0] = size * spec.out.dtype.itemsize
    workspace = -(-chosen.workspace_bytes // 64) * 64
    pieces = ContractPieces(count, smaller, chosen, tuple(moves), workspace)
    cycles = pieces.cycles + (2.0 * count * size if is_k else 0.0)
    if is_k and step.epilogue is not None:
        cycles += kernel_cycles(step.epilogue.kernel)
    return ContractCut(is_k, pieces, cycles)


def apply_contract_cut(step: ContractStep, cut: ContractCut) -> list[KernelStep]:
    """Let `step` run in pieces. The result is what must follow: the sum of partial results, and the epilogue it held up."""
    step.meta["pieces"] = cut.pieces
    count = cut.pieces.count
    size = cut.pieces.workspace * count
    step.workspace = Buf(f"work_{step.out.name}", (size,), np.dtype(np.uint8)) if size else None
    if not cut.is_k:
        return []
    out, after = step.out, step.epilogue
    step.out = Buf(f"parts_{out.name}", (count, *out.shape), out.dtype)
    step.epilogue = None
    rest = [KernelStep(sum_of_parts(out, count), (out, step.out), step.eqns)]
    if after is not None:
        rest.append(KernelStep(after.kernel, after.args, step.eqns, after.in_place))
    return rest


def sum_of_parts(
    out: Buf, count: int, note: str = "partial results of a contraction, added in order"
) -> Kernel:
    """`out[i] = parts[0, i] + parts[1, i] + ...`, in this order."""
    size, dtype = out.size, out.dtype
    result, parts = Buffer("out", dtype, size, "out"), Buffer("parts", dtype, count * size, "in")
    var = LoopVar("i", size)
    total: Expr = Load(parts, Affine(0, [(var, 1)]))
    for n in range(1, count):
        total = Op("add", (total, Load(parts, Affine(n * size, [(var, 1)]))), dtype)
    body: list[Stmt] = [Loop(var, [Store(result, Affine(0, [(var, 1)]), total)], "vector")]
    return Kernel(
        "sum_of_parts",
        (result, parts),
        body,
        (note,),
        (count - 1) * size,
        (count + 1) * size * dtype.itemsize,
    )
