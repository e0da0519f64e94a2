"""Buffers that only one kernel uses, and there only within a row, as one row of memory that stays in the cache.

    for i in 4096:                                    for i in 4096:
        for j in 1000:  e[1000*i + j] = exp(...)          for j in 1000:  row[j] = exp(...)
        for j in 1000:  y[...] = e[1000*i + j] / s   ->   for j in 1000:  y[...] = row[j] / s

Written and read through memory, `e` would move as many bytes as the result itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fgrad.codegen.loops import (
    Affine,
    Buffer,
    Expr,
    Load,
    Loop,
    LoopVar,
    Stmt,
    Store,
    affine_terms,
    expressions,
    index_range,
    statements,
)
from fgrad.codegen.nestinfo import nodes
from fgrad.codegen.substitute import Substitution

LARGEST = 16384  # bytes of one row, on the stack


@dataclass(eq=False)
class _Row:
    """`local` holds what `buffer[index]` does at `low` and after, in each iteration of the loops `rows`."""

    local: Buffer
    low: int
    rows: Sequence[LoopVar]


def keep_rows(body: Sequence[Stmt], private: Iterable[Buffer]) -> list[Stmt]:
    """`body` with the buffers of `private` that are used row by row replaced by ones of role "local"."""
    found: dict[Buffer, _Row] = {}
    for b in private:
        row = _row(b, *_around(b, body))
        if row is not None:
            found[b] = row
    if not found:
        return list(body)

    def place(buffer: Buffer, index: Expr) -> tuple[Buffer, Expr]:
        if buffer not in found:
            return buffer, index
        row = found[buffer]
        return row.local, _inside(index, row.rows, row.low)

    return Substitution({}, place).block(body)


def _inside(index: Expr, rows: Sequence[LoopVar], low: int) -> Expr:
    const, terms = affine_terms(index)
    kept = [(t, c) for t, c in terms if not any(t is r for r in rows)]
    if const == low and len(kept) == 1 and kept[0][1] == 1:
        return kept[0][0]
    return Affine(const - low, kept)


def _uses(buffer: Buffer, s: Stmt) -> bool:
    for t in statements([s]):
        if isinstance(t, Store) and t.buffer is buffer:
            return True
        if any(isinstance(e, Load) and e.buffer is buffer for e in nodes(expressions(t))):
            return True
    return False


def _around(buffer: Buffer, body: Sequence[Stmt]) -> tuple[Sequence[Stmt], list[LoopVar]]:
    """The statements of the innermost loop that holds every use of `buffer`, and the variables of the loops around them."""
    rows: list[LoopVar] = []
    while True:
        using = [s for s in body if _uses(buffer, s)]
        if len(using) != 1 or not isinstance(using[0], Loop):
            return body, rows
        rows.append(using[0].var)
        body = using[0].body


def _row(buffer: Buffer, inner: Sequence[Stmt], rows: Sequence[LoopVar]) -> _Row | None:
    """One row of `buffer`; None unless every row is a place of its own, written before it is read."""
    places: list[Expr] = []
    written = read = False
    for s in statements(inner):
        for e in nodes(expressions(s)):
            if isinstance(e, Load) and e.buffer is buffer:
                if not written or e.mask is not None:
                    return None
                read = True
                places.append(e.index)
        if isinstance(s, Store) and s.buffer is buffer:
            if s.op is not None or s.mask is not None:
                return None
            written = True
            places.append(s.index)
    if not read or not rows:
        return None
    steps: set[tuple[int, ...]] = set()
    low, high = buffer.size, 0
    for index in places:
        terms = affine_terms(index)[1]
        steps.add(tuple(sum(c for t, c in terms if t is r) for r in rows))
        bounds = index_range(_inside(index, rows, 0))
        if bounds is None:
            return None
        low, high = min(low, bounds[0]), max(high, bounds[1])
    size = high - low + 1
    (step,) = steps if len(steps) == 1 else ((0,),)
    if 0 in step or size * buffer.dtype.itemsize > LARGEST or size > min(map(abs, step)):
        return None
    return _Row(Buffer(buffer.name, buffer.dtype, size, "local"), low, rows)
