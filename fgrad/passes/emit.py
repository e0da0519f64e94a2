"""From a group of stages to the statements of its kernel.

A load of what the same kernel has just computed at the same index becomes the value itself: rows' scalars are held in
accumulators, elements in the loop that computes them.
"""

from __future__ import annotations

from typing import Any

from fgrad.codegen.loops import Acc, Buffer, Expr, Init, Loop, LoopVar, Stmt, Store
from fgrad.passes.group import AFTER, Group, Placed
from fgrad.passes.nests import Rewriter

Forward = dict[tuple[int, int], Expr]


class Emitter:
    def __init__(self, shared: Any, group: Group):
        self.shared, self.b, self.group = shared, shared.builder, group
        self.row: Forward = {}  # what later segments may use
        self.before: list[Stmt] = []  # accumulators that live across rows
        self.after: list[Stmt] = []

    def body(self) -> list[Stmt]:
        if self.group.column:
            return self._column()
        rows: list[Stmt] = []
        for n, segment in enumerate(self.group.segments):
            rows.extend(self._segment(n, segment.vars, segment.placed))
        across = bool(self.before)
        rows = _nest(self.group.outer, rows, "seq" if across else "parallel", "seq")
        for placed in self.group.after:
            self.after.extend(self._row_map(placed, {}))
        return [*self.before, *rows, *self.after]

    def _rewriter(self, placed: Placed, local: Forward) -> Rewriter:
        b, env = self.b, placed.env

        def load(buffer: Buffer, index: Expr, mask: Expr | None, other: Expr | None) -> Expr:
            key = (id(buffer), id(b.index(index)))
            known = local.get(key) or self.row.get(key)
            return known if known is not None else b.load(buffer, index, mask, other)

        return Rewriter(b, lambda e: env.get(e, e), load)  # type: ignore[call-overload]

    def _row_map(self, placed: Placed, local: Forward) -> list[Stmt]:
        """A map without loops of its own: computed once a row and kept."""
        out: list[Stmt] = []
        rewriter = self._rewriter(placed, local)
        for buf, index, value in placed.stage.stores:
            target, where = self.shared.buffer(buf), self.b.index(rewriter.expr(index))
            acc = Acc(target.name, value.dtype)
            out += [Init(acc, rewriter.expr(value)), Store(target, where, acc)]
            self.row[id(target), id(where)] = acc
        return out

    def _segment(self, number: int, loop_vars: tuple[LoopVar, ...], placed: list[Placed]) -> list[Stmt]:
        first: list[Stmt] = []
        inner: list[Stmt] = []
        last: list[Stmt] = []
        local: Forward = {}
        later: Forward = {}
        for p in placed:
            rewriter = self._rewriter(p, local)
            if p.stage.is_map and not loop_vars:
                inner.extend(self._row_map(p, local))
            elif p.stage.is_map:
                for buf, index, value in p.stage.stores:
                    target, where, new = (
                        self.shared.buffer(buf),
                        self.b.index(rewriter.expr(index)),
                        rewriter.expr(value),
                    )
                    inner.append(Store(target, where, new))
                    local[id(target), id(where)] = new
            else:
                inits: list[Stmt] = [Init(acc, rewriter.expr(start)) for acc, start in p.stage.inits]
                (self.before if p.across else first).extend(inits)
                inner.extend(rewriter.stmt(u) for u in p.stage.updates)
                for buf, index, value in p.stage.stores:
                    target, where = self.shared.buffer(buf), self.b.index(rewriter.expr(index))
                    result = rewriter.expr(value)
                    (self.after if p.across else last).append(Store(target, where, result))
                    later[id(target), id(where)] = result
        self.row.update(later)
        vector = "seq" if number == AFTER else "vector"
        nested = _nest(
            loop_vars, inner, "seq" if self.group.outer or first or self.before else "parallel", vector
        )
        return [*first, *nested, *last]

    def _column(self) -> list[Stmt]:
        """Start the results, then run the reduced loops outside and the contiguous kept ones inside."""
        (segment,) = self.group.segments
        stage = segment.placed[0].stage
        kept, reduced = stage.dims[: stage.kept], stage.dims[stage.kept :]
        start: list[Stmt] = []
        folds: list[Stmt] = []
        for p in segment.placed:
            rewriter = self._rewriter(p, {})
            assert p.stage.column is not None
            for buf, index, value in p.stage.stores:
                target, where = self.shared.buffer(buf), self.b.index(rewriter.expr(index))
                start.append(Store(target, where, p.stage.column[1]))
                folds.append(Store(target, where, rewriter.expr(value), p.stage.column[0]))
        # Split into one chunk of the outermost kept dims at a time, the results of a chunk stay in cache.
        outer, inner = kept[:-1], kept[-1:]
        body = [*_nest(inner, start, "seq", "vector"), *_nest((*reduced, *inner), folds, "seq", "vector")]
        return _nest(outer, body, "parallel", "seq")


def _nest(loop_vars: tuple[LoopVar, ...], body: list[Stmt], outermost: str, innermost: str) -> list[Stmt]:
    for n, v in enumerate(reversed(loop_vars)):
        first, last = n == 0, n == len(loop_vars) - 1
        kind = innermost if first and innermost == "vector" else outermost if last else "seq"
        body = [Loop(v, body, kind)]
    return body
