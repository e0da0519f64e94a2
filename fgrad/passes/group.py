"""A group: the stages that will be one kernel, and the rules for who may join.

A group has outer loops (its rows) and, inside them, segments: loop nests that run one after another. A stage may join when,
at each row, it reads only what the group wrote at that row. Softmax over rows is one group:

    rows i:   segment 0, over j:  m = maximum(m, x[i, j])
              segment 1, over j:  e[i, j] = exp(x[i, j] - m);  s += e[i, j]
              segment 2, over j:  y[i, j] = e[i, j] / s

A group of maps alone is flexible: it has no rows until a reduction joins and splits its loops into rows and the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fgrad.codegen import loops
from fgrad.codegen.loops import Affine, Buffer, Expr, Load, LoopVar
from fgrad.codegen.program import Buf
from fgrad.passes.exprs import Builder
from fgrad.passes.lazy import Stage

SMALL = 16384  # loops this short follow one another in one kernel even without common rows
LARGEST_IN_PIECES = 1 << 18  # elements
AFTER = -1  # the segment number of what is computed after the row loops

Env = dict[LoopVar, Expr]


@dataclass(eq=False)
class Placed:
    """A stage in a group: its loop variables in terms of the group's. `across`: its accumulators live across rows."""

    stage: Stage
    env: Env
    across: bool = False


@dataclass(eq=False)
class Segment:
    vars: tuple[LoopVar, ...]
    placed: list[Placed] = field(default_factory=list)

    @property
    def extents(self) -> tuple[int, ...]:
        return tuple(v.extent for v in self.vars)


@dataclass(eq=False)
class Produced:
    index: Expr
    segment: int
    fold: bool  # complete only after its segment


def _terms(e: Expr) -> tuple[int, list[tuple[Expr, int]]]:
    return loops.affine_terms(e)


def bind(index: Expr, anchor: Expr, wanted: Sequence[LoopVar]) -> Env | None:
    """The variables of `index` that stand where `wanted` variables stand in `anchor`; None if one has no counterpart."""
    by_coef = {c: t for t, c in _terms(index)[1] if isinstance(t, LoopVar)}
    env: Env = {}
    for term, coef in _terms(anchor)[1]:
        if isinstance(term, LoopVar) and any(term is w for w in wanted):
            own = by_coef.get(coef)
            if own is None or own.extent != term.extent:
                return None
            env[own] = term
    return env


def extents(dims: Sequence[LoopVar]) -> tuple[int, ...]:
    return tuple(v.extent for v in dims)


class Group:
    def __init__(self, shared: Any, stage: Stage, stage_loads: Sequence[Load]):
        self.b: Builder = shared.builder
        self.buffer: Callable[[Buf], Buffer] = shared.buffer
        self.outer: tuple[LoopVar, ...] = ()
        self.segments: list[Segment] = []
        self.after: list[Placed] = []
        self.produced: dict[Buffer, Produced | None] = {}  # None: written piecewise, cannot be read inside
        self.anchors: dict[Buffer, tuple[Expr, int]] = {}
        self.column = stage.column is not None
        self.flexible = stage.is_map and bool(stage.dims)
        self.size = 0
        if stage.is_map or not stage.kept or self.column:
            inner = stage.dims
        else:
            self.outer, inner = stage.dims[: stage.kept], stage.dims[stage.kept :]
        self.segments.append(Segment(tuple(inner)))
        self._add(Placed(stage, {v: v for v in stage.dims}), 0, stage_loads)

    def stages(self) -> list[Stage]:
        return [p.stage for s in self.segments for p in s.placed] + [p.stage for p in self.after]

    # ------------------------------------------------------------------------------------ bookkeeping

    def _index(self, e: Expr, env: Env) -> Expr:
        return self.b.index(self.b.rewrite(e, lambda v: env.get(v, v), self.b.load, {}))  # type: ignore[call-overload]

    def _add(self, placed: Placed, segment: int, stage_loads: Sequence[Load]) -> None:
        stage = placed.stage
        self.size += 1
        (self.after if segment == AFTER else self.segments[segment].placed).append(placed)
        fold = bool(stage.inits)
        for buf, index, _ in stage.stores:
            target = self.buffer(buf)
            where = AFTER if placed.across else segment
            whole = target not in self.produced and stage.column is None
            self.produced[target] = Produced(self._index(index, placed.env), where, fold) if whole else None
        for load in stage_loads:
            if load.buffer not in self.produced and load.buffer not in self.anchors and load.buffer.size > 1:
                self.anchors[load.buffer] = (self._index(load.index, placed.env), segment)

    # ------------------------------------------------------------------------------------ joining

    def join(self, stage: Stage, stage_loads: Sequence[Load]) -> bool:
        """Take `stage` in as this group's last, if the rules allow."""
        inside = [ld for ld in stage_loads if ld.buffer in self.produced]
        if any(self.produced[ld.buffer] is None for ld in inside):
            return False
        if self.column or stage.column is not None:
            return self.column and stage.column is not None and self._join_column(stage, stage_loads, inside)
        if any(self.produced[ld.buffer].segment == AFTER for ld in inside):  # type: ignore[union-attr]
            return self._join_after(stage, stage_loads, inside)
        if self.outer:
            return self._join_rows(stage, stage_loads, inside)
        if stage.kept and stage.inits:
            return self.flexible and self._split_rows(stage, stage_loads, inside)
        return self._join_flat(stage, stage_loads, inside)

    def _join_column(self, stage: Stage, stage_loads: Sequence[Load], inside: Sequence[Load]) -> bool:
        first = self.segments[0].placed[0].stage
        if inside or extents(stage.dims) != extents(first.dims) or stage.kept != first.kept:
            return False
        env: Env = dict(zip(stage.dims, first.dims, strict=True))
        if not self._shares(stage_loads, env, 0):
            return False
        self._add(Placed(stage, env), 0, stage_loads)
        return True

    def _join_after(self, stage: Stage, stage_loads: Sequence[Load], inside: Sequence[Load]) -> bool:
        """A scalar that follows from a sum over all rows."""
        if stage.dims or any(self.produced[ld.buffer].segment != AFTER for ld in inside):  # type: ignore[union-attr]
            return False
        self._add(Placed(stage, {}, across=True), AFTER, stage_loads)
        return True

    def _shares(self, stage_loads: Sequence[Load], env: Env, segment: int) -> bool:
        """Whether the stage reads an input that the group reads at the same index."""
        for ld in stage_loads:
            anchor = self.anchors.get(ld.buffer)
            if anchor is not None and anchor[1] == segment and self._index(ld.index, env) is anchor[0]:
                return True
        return False

    def _allowed(self, inside: Sequence[Load], env: Env, segment: int) -> bool:
        """Whether the stage, placed in `segment`, reads only what is there by then."""
        for ld in inside:
            produced = self.produced[ld.buffer]
            assert produced is not None
            index = self._index(ld.index, env)
            if index is produced.index:
                if produced.segment > segment or (produced.segment == segment and produced.fold):
                    return False
            elif produced.segment >= segment or not self._same_row(index, produced.index, ld.buffer):
                return False
        return True

    def _same_row(self, index: Expr, stored: Expr, buffer: Buffer) -> bool:
        """What is read at `index` was written at `stored` in the same row (rows are what the outer variables select): either
        both run over the same positions, or both stay within one contiguous row of `buffer`."""
        if not self.outer:
            return True  # the whole of an earlier segment is written
        # Rows in pieces far apart (channels of a large batch) are read again faster by a kernel that streams.
        span = self._span(index)
        if span is not None and span == self._span(stored) and buffer.size <= LARGEST_IN_PIECES:
            return True
        mine = dict((id(t), c) for t, c in _terms(index)[1])
        rows = [(v, c) for t, c in _terms(stored)[1] for v in self.outer if t is v]
        if len(rows) != len(self.outer) or any(mine.get(id(v)) != c for v, c in rows):
            return False
        row_size = min(c for _, c in rows)
        n_rows = 1
        for v in self.outer:
            n_rows *= v.extent
        if n_rows * row_size != buffer.size:
            return False
        outer_ids = {id(v) for v in self.outer}
        for e in (index, stored):
            const, terms = _terms(e)
            bounds = loops.index_range(Affine(const, [(t, c) for t, c in terms if id(t) not in outer_ids]))
            if bounds is None or bounds[0] < 0 or bounds[1] >= row_size:
                return False
        return True

    def _span(self, index: Expr) -> object:
        """The positions that an index takes in one row, as (constant, what each loop adds); None if not only loops add."""
        const, terms = _terms(index)
        if not all(isinstance(t, LoopVar) for t, _ in terms):
            return None
        return const, frozenset((t if t in self.outer else None, c, t.extent) for t, c in terms)  # type: ignore[attr-defined]

    def _join_flat(self, stage: Stage, stage_loads: Sequence[Load], inside: Sequence[Load]) -> bool:
        """Into the segment over the same loops, or a scalar after all of them."""
        if not stage.dims and (inside or not any(s.vars for s in self.segments)):
            if self.segments[-1].vars:
                self.segments.append(Segment(()))
            if not self._allowed(inside, {}, len(self.segments) - 1):
                return False
            self.flexible = False
            self._add(Placed(stage, {}), len(self.segments) - 1, stage_loads)
            return True
        if not stage.dims:
            return False
        for n, segment in enumerate(self.segments):
            if segment.extents != extents(stage.dims):
                continue
            env: Env = dict(zip(stage.dims, segment.vars, strict=True))
            if self._allowed(inside, env, n) and (inside or self._shares(stage_loads, env, n)):
                self.flexible = self.flexible and stage.is_map
                self._add(Placed(stage, env), n, stage_loads)
                return True
        if not inside or math.prod(extents(stage.dims)) > SMALL:
            return False
        fresh = tuple(LoopVar(v.name, v.extent) for v in stage.dims)
        env = dict(zip(stage.dims, fresh, strict=True))
        if not self._allowed(inside, env, len(self.segments)):
            return False
        self.segments.append(Segment(fresh))
        self.flexible = False
        self._add(Placed(stage, env), len(self.segments) - 1, stage_loads)
        return True

    def _split_rows(self, stage: Stage, stage_loads: Sequence[Load], inside: Sequence[Load]) -> bool:
        """A reduction over some of a flexible group's loops: the kept ones become the rows."""
        (segment,) = self.segments
        env: Env | None = None
        for ld in stage_loads:
            stored = self.produced.get(ld.buffer)
            anchor = stored.index if stored is not None else self.anchors.get(ld.buffer, (None, 0))[0]
            if anchor is not None:
                env = bind(ld.index, anchor, segment.vars)
                if env is not None and len(env) == len(stage.dims) == len(segment.vars):
                    break
        if env is None or set(env) != set(stage.dims) or len(env) != len(segment.vars):
            return False
        if not self._allowed(inside, env, 0) or not (inside or self._shares(stage_loads, env, 0)):
            return False
        self.outer = tuple(env[v] for v in stage.dims[: stage.kept])  # type: ignore[misc]
        segment.vars = tuple(env[v] for v in stage.dims[stage.kept :])  # type: ignore[misc]
        self.flexible = False
        self._add(Placed(stage, env), 0, stage_loads)
        return True

    def _rows_of(self, stage: Stage, stage_loads: Sequence[Load], inside: Sequence[Load]) -> Env | None:
        """Which of the stage's variables are the group's rows, as the loads that they share tell."""
        env: Env = {}
        for ld in inside:
            produced = self.produced[ld.buffer]
            assert produced is not None
            found = bind(ld.index, produced.index, self.outer)
            if found is None:
                return None
            for v, row in found.items():
                if env.setdefault(v, row) is not row:
                    return None
        if not inside:
            for ld in stage_loads:
                anchor = self.anchors.get(ld.buffer)
                if anchor is None:
                    continue
                found = bind(ld.index, anchor[0], (*self.outer, *self.segments[anchor[1]].vars))
                if found is not None and (len(found) == len(stage.dims) or stage.inits):
                    env = {v: row for v, row in found.items() if any(row is o for o in self.outer)}
                    break
        return env if len(set(env.values())) == len(self.outer) == len(env) else None

    def _join_rows(self, stage: Stage, stage_loads: Sequence[Load], inside: Sequence[Load]) -> bool:
        rows = self._rows_of(stage, stage_loads, inside)
        if rows is None:
            return False
        across = bool(stage.inits) and stage.kept == 0
        if stage.inits and not across and set(rows) != set(stage.dims[: stage.kept]):
            return False
        inner = tuple(v for v in stage.dims if v not in rows)
        for n, segment in enumerate(self.segments):
            if segment.extents == extents(inner):
                env: Env = {**rows, **dict(zip(inner, segment.vars, strict=True))}
                shares = inside or stage.inits or self._shares(stage_loads, env, n)
                if self._allowed(inside, env, n) and shares:
                    self._add(Placed(stage, env, across), n, stage_loads)
                    return True
        if not inside and not stage.inits:
            return False
        fresh = tuple(LoopVar(v.name, v.extent) for v in inner)
        env = {**rows, **dict(zip(inner, fresh, strict=True))}
        if not self._allowed(inside, env, len(self.segments)):
            return False
        self.segments.append(Segment(fresh))
        self._add(Placed(stage, env, across), len(self.segments) - 1, stage_loads)
        return True
