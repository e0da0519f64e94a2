"""A loop nest as launches: what runs over the whole grid, and what one block does between.

    total = 0                                   one launch of 264 blocks:   part[b] = sum of its 3972 elements
    for i in 1048576:  total += x[i]      ->    one launch of one block:    total = sum of part[b], in order;  y[0] = total / 1048576
    y[0] = total / 1048576

Everything here is a change of statements into other statements; printing them is the business of `rows.py` and `maps.py`.
The rules:

    a loop with much work that keeps its results to itself        a launch of its own
    a long loop that adds to accumulators outside                 chunks, a block each, which leave partial sums
    rows that add to accumulators outside                         each row stores its value; the values are added after
    few rows with long loops                                      the same loop by loop, chunks of every row
    cumulative sums along few long rows                           in pieces: see `running.py`
    all else, in order                                            one block; values needed later go through memory
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fgrad.codegen import loops
from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.analysis import ArgFold, Fold
from fgrad.codegen.cuda.chunks import cut, partials, start_of, started, with_parts
from fgrad.codegen.cuda.fission import Fission
from fgrad.codegen.cuda.layout import count, prefers_columns
from fgrad.codegen.cuda.running import running
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.loops import Acc, Buffer, Expr, Init, Load, Loop, LoopVar, Stmt, Store, Update
from fgrad.codegen.substitute import Substitution

ONE_BLOCK = 32  # iterations a thread of what one block does on the side
BLOCKS_WANTED = 4  # for each multiprocessor: below half of that, rows are cut
WORTH_CUTTING = 32  # iterations of a thread in each loop of a row: fewer take less time than one more launch
PER_THREAD = 8  # elements that a thread of a chunk adds up, at the least


@dataclass
class Plan:
    """Statements of each launch, in order, and the temporaries between them."""

    launches: list[list[Stmt]] = field(default_factory=list)
    temporaries: list[Buffer] = field(default_factory=list)


def plan(body: Sequence[Stmt], target: CudaTarget, name: Callable[[], str]) -> Plan:
    planner = _Planner(target, name)
    planner.top(list(body))
    return planner.plan


class _Planner:
    def __init__(self, target: CudaTarget, name: Callable[[], str]):
        self.target, self.name = target, name
        self.plan = Plan()
        self.pending: list[Stmt] = []  # for one block
        self.saved: dict[Acc, Buffer] = {}  # accumulators that an earlier launch has left in memory
        self.rest: list[Stmt] = []  # what follows at the top

    def temporary(self, dtype: np.dtype, size: int) -> Buffer:
        buffer = Buffer(self.name(), dtype, size, "inout")
        self.plan.temporaries.append(buffer)
        return buffer

    # ------------------------------------------------------------------------------------ the top level

    def top(self, body: list[Stmt]) -> None:
        alone = len(body) == 1
        self.rest = body
        while self.rest:
            stmt = self.rest.pop(0)
            if isinstance(stmt, Loop) and self.rows_that_add(stmt):
                continue
            if isinstance(stmt, Loop) and (alone or self.is_large(stmt)):
                self.large(stmt)
            else:
                self.pending.append(stmt)
        self.flush([])

    def is_large(self, loop: Loop) -> bool:
        return analysis.work([loop]) > ONE_BLOCK * self.target.threads

    def add_next(self, stmts: Sequence[Stmt]) -> None:
        """To be treated as if they stood next."""
        self.rest[:0] = stmts

    def large(self, loop: Loop) -> None:
        outside = analysis.carried([loop])
        if not outside:
            self.settle(loop)
            if not self.few_rows(loop) and not self.running_rows(loop):
                self.launch([loop])
            return
        found = analysis.folds(loop)
        chained, body = analysis.chain(loop)
        if len(self.pending) == 1 and not self.rest and self.running(self.pending[0], loop):
            self.pending = []
        elif found is None or not all(analysis.independent(c) for c in chained):
            self.pending.append(loop)
        elif not analysis.has_loops(body):
            self.settle(loop)
            self.in_chunks(loop, found)
        else:
            self.pending.append(loop)

    def settle(self, loop: Loop) -> None:
        """Run what is pending if `loop` depends on it, or it on what `loop` stores."""
        before = self.pending
        depends = analysis.read_accs([loop]) & set(analysis.assigned(before)) - set(analysis.assigned([loop]))
        stores, loads = analysis.stored(before), analysis.loaded(before)
        own = analysis.stored([loop])
        if depends or analysis.loaded([loop]) & stores or own & (stores | loads):
            self.flush([loop, *self.rest])

    def flush(self, later: Sequence[Stmt]) -> None:
        """A launch of one block for what is pending; what `later` uses of its accumulators goes to memory."""
        if not self.pending:
            return
        used = analysis.read_accs(later) | set(analysis.carried(later))
        stmts = list(self.pending)
        self.pending = []
        before = self.preloads(stmts)
        for acc in analysis.assigned(stmts):
            if acc in used:
                self.saved[acc] = self.temporary(acc.dtype, 1)
                stmts.append(Store(self.saved[acc], loops.const_index(0), acc))
        self.plan.launches.append([*before, *stmts])

    def preloads(self, stmts: Sequence[Stmt]) -> list[Stmt]:
        """The accumulators that `stmts` use without starting them, from memory."""
        wanted = (analysis.read_accs(stmts) | set(analysis.carried(stmts))) - started(stmts)
        return [Init(a, Load(b, loops.const_index(0))) for a, b in self.saved.items() if a in wanted]

    def launch(self, stmts: list[Stmt]) -> None:
        self.plan.launches.append([*self.preloads(stmts), *stmts])

    # ------------------------------------------------------------------------------------ accumulators outside

    def rows_that_add(self, loop: Loop) -> bool:
        """Have rows leave what they add to accumulators outside in memory, and a loop over that add it, if they do."""
        found = [f for f in analysis.folds(loop) or [] if isinstance(f, Fold)]
        chained, body = analysis.chain(loop)
        if not found or {f.acc for f in found} != set(analysis.carried([loop])):
            return False
        if not analysis.has_loops(body) or not all(analysis.independent(c) for c in chained):
            return False
        rows = [c.var for c in chained]
        flat = loops.ravel(rows, [v.extent for v in rows])
        ops = {f.acc: f.op for f in found}
        # Updated in a loop of the row: the row's own sum first.
        in_loops = analysis.carried([s for s in body if isinstance(s, Loop)])
        own = {acc: Acc(acc.name, acc.dtype) for acc in in_loops if acc in ops}
        new: list[Stmt] = [Init(mine, start_of(ops[acc], acc.dtype)) for acc, mine in own.items()]
        after: list[Stmt] = []
        swap = Substitution({acc: mine for acc, mine in own.items()})

        def leave(acc: Acc, value: Expr) -> None:
            kept = self.temporary(acc.dtype, count(rows))
            new.append(Store(kept, flat, value))
            k = LoopVar("k", kept.size)
            after.append(Loop(k, [Update(acc, ops[acc], Load(kept, k))], "vector"))

        for s in body:
            if isinstance(s, Update) and s.acc in ops and s.acc not in own:
                leave(s.acc, s.value)
            else:
                new.append(swap.stmt(s))
        for acc, mine in own.items():
            leave(acc, mine)
        self.add_next([*analysis.nested(rows, new, "parallel"), *after])
        return True

    # ------------------------------------------------------------------------------------ chunks

    def in_chunks(self, loop: Loop, found: Sequence[Fold | ArgFold]) -> None:
        """A nest of folds in as many chunks as there should be blocks, which leave partial results."""
        total = analysis.work([loop])
        most = BLOCKS_WANTED * self.target.multiprocessors
        pieces = max(1, min(most, total // (PER_THREAD * self.target.threads)))
        chunk, rest = cut(loop, pieces)
        parts, stores, merge = partials(found, chunk.var, (), self.temporary)
        inner, inits = with_parts(chunk.body, found, parts)
        self.launch(analysis.nested([chunk.var], [*inits, *inner, *stores], "parallel"))
        self.add_next([*merge, *rest])

    # ------------------------------------------------------------------------------------ running values

    def running_rows(self, loop: Loop) -> bool:
        chained, body = analysis.chain(loop)
        return len(body) == 2 and self.running(body[0], body[1], [c.var for c in chained])

    def running(self, start: Stmt, steps: Stmt, rows: Sequence[LoopVar] = ()) -> bool:
        found = running(start, steps, rows, self.target, self.temporary)
        for stmts in found:
            self.launch(stmts)
        return bool(found)

    # ------------------------------------------------------------------------------------ few rows

    def few_rows(self, loop: Loop) -> bool:
        """Launch rows that are too few to give every multiprocessor work, in chunks of every row; False if they are not."""
        chained, body = analysis.chain(loop)
        rows = [c.var for c in chained]
        inner = [s for s in body if isinstance(s, Loop)]
        if not inner or not all(analysis.is_simple(s) for s in inner):
            return False
        if not all(analysis.independent(c) for c in chained):
            return False
        longest, many = max(analysis.work([s]) for s in inner), count(rows)
        columns = prefers_columns(rows, body)
        blocks = -(-many // min(self.target.warp, many)) if columns else many
        per_block = longest * min(self.target.warp, many) if columns else longest
        most = BLOCKS_WANTED * self.target.multiprocessors // blocks
        pieces = min(most, per_block // (PER_THREAD * self.target.threads))
        if pieces < 2 or per_block < WORTH_CUTTING * self.target.threads * len(inner):
            return False
        Fission(rows, body, pieces, max(pieces, longest // 4), self.launch, self.temporary).run()
        return True
