"""Long loops in chunks that leave partial results, and the loop that merges those.

    for i in 1000:                 for piece in 8:  s = 0;  for j in 125: s += x[125*piece + j];  part[piece] = s
        s += x[i]           ->     for k in 8:      s += part[k]

The error of a sum grows with the length of a chunk and with their number, not with the product of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from fgrad.codegen import loops
from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.analysis import ArgFold, Fold
from fgrad.codegen.cuda.layout import count
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
    Op,
    Stmt,
    Store,
    Update,
)
from fgrad.codegen.substitute import Substitution

Temporary: TypeAlias = Callable[[np.dtype, int], Buffer]

_BOOL = np.dtype(bool)


def started(stmts: Sequence[Stmt]) -> set[Acc]:
    return {s.acc for s in loops.statements(stmts) if isinstance(s, Init)}


def start_of(op: str, dtype: np.dtype) -> Const:
    return Const(np.asarray(analysis.identity(op, dtype)).astype(dtype)[()], dtype)


def with_parts(
    body: Sequence[Stmt], found: Sequence[Fold | ArgFold], parts: dict[Acc, Acc]
) -> tuple[list[Stmt], list[Stmt]]:
    """`body` over accumulators of its own, and their start."""
    inits: list[Stmt] = []
    for f in found:
        if isinstance(f, Fold):
            inits.append(Init(parts[f.acc], start_of(f.op, f.acc.dtype)))
        else:
            op = "maximum" if f.largest else "minimum"
            inits.append(Init(parts[f.best], start_of(op, f.best.dtype)))
            inits.append(Init(parts[f.where], Const(f.where.dtype.type(0), f.where.dtype)))
    return Substitution({acc: mine for acc, mine in parts.items()}).block(body), inits


def cut(loop: Loop, pieces: int) -> tuple[Loop, list[Stmt]]:
    """A perfect nest as a loop over about `pieces` chunks of equal length, and a loop over what is left.

    The outermost loop is cut if that comes out even, else all loops as one.
    """
    chained, body = analysis.chain(loop)
    extent = loop.var.extent
    even = [n for n in range(pieces, pieces // 2, -1) if extent % n == 0]
    if even or len(chained) == 1:
        n = even[0] if even else pieces
        inside = loop.body

        def at(index: Expr) -> dict[Expr, Expr]:
            return {loop.var: index}
    else:
        n, inside = pieces, body
        shape = [c.var.extent for c in chained]
        extent = count([c.var for c in chained])

        def at(index: Expr) -> dict[Expr, Expr]:
            return dict(zip((c.var for c in chained), loops.unravel(index, shape), strict=True))

    length, left = divmod(extent, n)
    piece, within = LoopVar("piece", n), LoopVar(loop.var.name, length)
    begin = Affine(0, [(piece, length), (within, 1)])
    chunk = Loop(piece, [Loop(within, Substitution(at(begin)).block(inside), "vector")], "parallel")
    rest: list[Stmt] = []
    if left:
        last = LoopVar(loop.var.name, left)
        rest = [Loop(last, Substitution(at(Affine(n * length, [(last, 1)]))).block(inside), "vector")]
    return chunk, rest


def partials(
    found: Sequence[Fold | ArgFold], piece: LoopVar, rows: Sequence[LoopVar], temporary: Temporary
) -> tuple[dict[Acc, Acc], list[Stmt], list[Stmt]]:
    """Accumulators of a piece, the stores of their values, and the loop that merges them."""
    many = count(rows)
    row = loops.ravel(rows, [v.extent for v in rows])
    parts: dict[Acc, Acc] = {}
    stores: list[Stmt] = []
    merging: list[Stmt] = []
    k = LoopVar("k", piece.extent)
    for f in found:
        loads: dict[Acc, Load] = {}
        for acc in f.accs:
            parts[acc] = Acc(f"{acc.name}_part", acc.dtype)
            memory = temporary(acc.dtype, piece.extent * many)
            stores.append(Store(memory, loops.index_add(loops.index_scale(piece, many), row), parts[acc]))
            loads[acc] = Load(memory, loops.index_add(loops.index_scale(k, many), row))
        if isinstance(f, Fold):
            merging.append(Update(f.acc, f.op, loads[f.acc]))
        else:
            test = Op("gt" if f.largest else "lt", (loads[f.best], f.best), _BOOL)
            if f.best.dtype.kind not in "biu":
                nan = Op("ne", (loads[f.best], loads[f.best]), _BOOL)
                number = Op("eq", (f.best, f.best), _BOOL)
                test = Op("bitwise_or", (test, Op("bitwise_and", (nan, number), _BOOL)), _BOOL)
            merging.append(
                Update(f.where, "set", Op("select", (test, loads[f.where], f.where), f.where.dtype))
            )
            merging.append(Update(f.best, "set", Op("select", (test, loads[f.best], f.best), f.best.dtype)))
    return parts, stores, [Loop(k, merging, "vector")]
