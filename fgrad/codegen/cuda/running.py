"""Cumulative sums along long rows, in pieces that threads compute side by side.

    s = 0                                for each piece:    sums[piece] = the sum of its x
    for i in 100000:                     in order:          before[piece] = the sum of what stands before it
        s += x[i]                ->      for each piece:    s = before[piece]
        y[i] = s                                            for i in the piece:  s += x[i];  y[i] = s

The pieces are about as many as the elements of one, so no thread takes more than a few hundred steps one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fgrad.codegen import loops
from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.layout import count
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.loops import (
    Acc,
    Affine,
    Buffer,
    Const,
    Expr,
    Init,
    Load,
    Loop,
    LoopVar,
    Stmt,
    Store,
    Update,
)
from fgrad.codegen.substitute import Substitution

SHORTEST = 64  # a row that is worth cutting
ROWS = 8  # threads that there should be for each row before it is left whole


def running(
    start: Stmt,
    steps: Stmt,
    rows: Sequence[LoopVar],
    target: CudaTarget,
    temporary: Callable[[np.dtype, int], Buffer],
) -> list[list[Stmt]]:
    """Launches for `start` and the loop `steps` in each of `rows`; none if they are not a running value or not worth it."""
    if not (isinstance(start, Init) and isinstance(steps, Loop) and isinstance(steps.body[0], Update)):
        return []
    update, stores, acc = steps.body[0], steps.body[1:], start.acc
    simple = (
        update.acc is acc and update.op in analysis.REASSOCIABLE and all(isinstance(s, Store) for s in stores)
    )
    if (
        not simple
        or acc in analysis.read_accs([update])
        or analysis.stored(stores) & analysis.loaded([steps])
    ):
        return []
    around = analysis.nested([*rows, steps.var], steps.body)[0]
    assert isinstance(around, Loop)
    if not all(analysis.independent(part) for part in analysis.chain(around)[0]):
        return []
    length, many = steps.var.extent, count(rows)
    if length < SHORTEST or many * ROWS > target.multiprocessors * target.threads:
        return []
    return _launches(start, update, steps, rows, temporary)


def _launches(
    start: Init,
    update: Update,
    steps: Loop,
    rows: Sequence[LoopVar],
    temporary: Callable[[np.dtype, int], Buffer],
) -> list[list[Stmt]]:
    acc, many = start.acc, count(rows)
    pieces = math.isqrt(steps.var.extent)
    each, left = divmod(steps.var.extent, pieces)
    piece = LoopVar("piece", pieces)
    row = loops.ravel(rows, [v.extent for v in rows])
    at = loops.index_add(loops.index_scale(row, pieces), piece)
    sums, before = temporary(acc.dtype, many * pieces), temporary(acc.dtype, many * pieces)
    end = temporary(acc.dtype, many)
    identity = Const(np.asarray(analysis.identity(update.op, acc.dtype)).astype(acc.dtype)[()], acc.dtype)

    def part(
        extent: int, offset: Callable[[LoopVar], Expr], body: Sequence[Stmt], mine: Acc, kind: str
    ) -> Loop:
        v = LoopVar(steps.var.name, extent)
        return Loop(v, Substitution({steps.var: offset(v), acc: mine}).block(body), kind)

    def inside(v: LoopVar) -> Expr:
        return Affine(0, [(piece, each), (v, 1)])

    total, value, last = (Acc(acc.name, acc.dtype) for _ in range(3))
    adding: list[Stmt] = [
        Init(total, identity),
        part(each, inside, [update], total, "vector"),
        Store(sums, at, total),
    ]
    passing: list[Stmt] = [
        start,
        Loop(piece, [Store(before, at, acc), Update(acc, update.op, Load(sums, at))], "seq"),
        Store(end, row, acc),
    ]
    storing: list[Stmt] = [Init(value, Load(before, at)), part(each, inside, steps.body, value, "seq")]
    launches = [
        analysis.nested([*rows, piece], adding, "parallel"),
        analysis.nested(rows, passing, "parallel"),
        analysis.nested([*rows, piece], storing, "parallel"),
    ]
    if left:
        rest = part(left, lambda v: Affine(pieces * each, [(v, 1)]), steps.body, last, "seq")
        launches.append(analysis.nested(rows, [Init(last, Load(end, row)), rest], "parallel"))
    return launches
