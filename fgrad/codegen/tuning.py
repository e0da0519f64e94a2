"""Which plans of a contraction are worth measuring against each other, and putting the fastest into a program.

The cost model of `planning` is right to some ten per cent: it ranks thousands of plans in no time, and the fastest is nearly always
among the first few of each kind. `alternatives` picks those. `retune` walks over a program whose contractions are planned
and cut, asks `choose` for the plan of each heavy one, and gives it that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fgrad.codegen.blocking import Plan
from fgrad.codegen.canonical import kernel_text
from fgrad.codegen.chains import share_workspace
from fgrad.codegen.contraction import Contraction
from fgrad.codegen.epilogue import Epilogue, candidates_with
from fgrad.codegen.pieces import ContractPieces
from fgrad.codegen.planning import candidates, finish
from fgrad.codegen.program import (
    Block,
    Buf,
    ChainStep,
    ContractStep,
    ForStep,
    Program,
    nested_blocks,
    walk,
)
from fgrad.codegen.target import TargetInfo
from fgrad.codegen.winograd import WinogradPlan
from fgrad.codegen.winograd import candidates as winograd_candidates

AnyPlan = Plan | WinogradPlan
HEAVY_CYCLES = (
    20_000.0  # cycles of all runs of a contraction in a call of the program; what takes less is not measured
)
_HOPELESS = 1.5  # times the lowest cost: the model is hardly ever that wrong
_FAR = 2.5  # and for the best of a path
_SETTLED = ("nothing", "zero", "loops")  # nothing to choose from


def key_of(spec: Contraction, epilogue: Epilogue | None, target: TargetInfo) -> str:
    """Equal for contractions whose measurements hold for each other."""
    after = epilogue.key(kernel_text(epilogue.kernel)) if epilogue else ""
    return f"{spec!r} {after} {target!r}"


@dataclass(frozen=True, eq=False)
class _Entry:
    cost: float
    path: str
    kind: tuple  # path, roles of m and n, loops made part of the batch, what is packed
    make: Callable[[], AnyPlan]


def _entries(spec: Contraction, epilogue: Epilogue | None, target: TargetInfo) -> Iterator[_Entry]:
    for c in candidates_with(spec, epilogue, target) if epilogue else candidates(spec, target):
        cost, p, fields = c
        path = fields.get("path", p.path)
        packed = fields.get("lhs_packed", False), fields.get("rhs_packed", False)
        yield _Entry(cost, path, (path, p.swapped, len(p.spec.batch), packed), partial(finish, *c))
    if target.winograd and epilogue is None:
        for w in winograd_candidates(spec, target):
            yield _Entry(w.cycles, w.path, (w.path, w.m), partial(_itself, w))


def _itself(plan: AnyPlan) -> AnyPlan:
    return plan


def alternatives(
    spec: Contraction, epilogue: Epilogue | None, target: TargetInfo, chosen: AnyPlan, most: int
) -> list[AnyPlan]:
    """Up to `most` plans that may be the fastest: `chosen` first, then the best of each path, the model's next, and the
    best of each kind, as far as it does not think them hopeless."""
    if chosen.path in _SETTLED:
        return [chosen]
    ranked = sorted(_entries(spec, epilogue, target), key=lambda e: e.cost)
    least = min(chosen.cycles, ranked[0].cost)
    near = [e for e in ranked if e.cost <= _HOPELESS * least]
    paths = {e.path: e for e in reversed(ranked) if e.cost <= _FAR * least}
    kinds = {e.kind: e for e in reversed(near)}
    distinct = {chosen.recipe: chosen}
    for e in (*paths.values(), *near[: most // 2], *kinds.values(), *near):
        if len(distinct) >= most:
            break
        p = e.make()
        distinct.setdefault(p.recipe, p)
    return list(distinct.values())


@dataclass(frozen=True, eq=False)
class Job:
    """A contraction of a program, as it will be run: `plan` is what the cost model chose, `cycles` what a call of the program spends on it,
    `arrays` the type and number of elements of out, lhs, rhs, and the epilogue's extra arguments. It runs `count` times, and from one time to
    the next the arrays move by `moves` bytes."""

    spec: Contraction
    epilogue: Epilogue | None
    plan: AnyPlan
    arrays: tuple[tuple[np.dtype, int], ...]
    cycles: float
    count: int = 1
    moves: tuple[int, ...] = ()


Choose = Callable[[Job], AnyPlan]


def retune(program: Program, target: TargetInfo, choose: Choose) -> None:
    """Give every heavy contraction of `program`, planned and cut, the plan that `choose` says; a plan with the same result."""
    jobs: dict[str, Job] = {}
    steps: dict[str, list[ContractStep]] = {}
    for step, times in _contractions(program.body, 1):
        pieces = step.meta.get("pieces")
        spec, plan = (pieces.spec, pieces.plan) if pieces else (step.spec, step.meta["plan"])
        key = key_of(spec, step.epilogue, target)
        cycles = plan.cycles * times * (pieces.count if pieces else 1)
        extra = [step.epilogue.args[i] for i in step.epilogue.extra] if step.epilogue else []
        arrays = tuple((buf.dtype, buf.size) for buf in (step.out, step.lhs, step.rhs, *extra))
        if key in jobs:
            cycles += jobs[key].cycles
        count, moves = (pieces.count, pieces.moves) if pieces else (1, ())
        jobs[key] = Job(spec, step.epilogue, plan, arrays, cycles, count, moves)
        steps.setdefault(key, []).append(step)
    for key, job in jobs.items():
        if job.cycles >= HEAVY_CYCLES and (better := choose(job)).recipe != job.plan.recipe:
            for step in steps[key]:
                _give(step, better)
    for outer in walk(program.body):
        if isinstance(outer, ChainStep):
            share_workspace(outer)


def _contractions(block: Block, times: int) -> Iterator[tuple[ContractStep, int]]:
    for step in block.steps:
        if isinstance(step, ContractStep):
            yield step, times
        inner = times * step.length if isinstance(step, ForStep) else times
        for nested in nested_blocks(step):
            yield from _contractions(nested, inner)


def _give(step: ContractStep, plan: AnyPlan) -> None:
    pieces: ContractPieces | None = step.meta.get("pieces")
    size = plan.workspace_bytes
    if pieces is None:
        step.meta["plan"] = plan
    else:
        each = -(-size // 64) * 64
        step.meta["pieces"] = replace(pieces, plan=plan, workspace=each)
        size = each * pieces.count
    step.workspace = Buf(f"work_{step.out.name}", (size,), np.dtype(np.uint8)) if size else None
