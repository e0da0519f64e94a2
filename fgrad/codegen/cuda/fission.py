"""Few rows with long loops, loop by loop: each loop of all rows is a launch.

for c in 64:                                        launch: part[piece, c] = sums of 4 pieces of every channel
    s = 0;  for j in 401408:  s += x[c, j]     ->   launch: mean[c] = (the sum of part[:, c]) / 401408
    m = s / 401408                                  launch: y[c, j] = x[c, j] - mean[c], a map
    for j in 401408:  y[c, j] = x[c, j] - m
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgrad.codegen import loops
from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.chunks import Temporary, cut, partials, started, with_parts
from fgrad.codegen.cuda.layout import count
from fgrad.codegen.loops import Acc, Buffer, Const, Expr, Init, Load, Loop, LoopVar, Stmt, Store
from fgrad.codegen.substitute import Substitution


class Fission:
    """Rows whose loops of at least `least` iterations become launches one by one: values of a row go through memory
    between them."""

    def __init__(
        self,
        rows: Sequence[LoopVar],
        body: Sequence[Stmt],
        pieces: int,
        least: int,
        launch: Callable[[list[Stmt]], None],
        temporary: Temporary,
    ):
        self.launch, self.temporary, self.least = launch, temporary, least
        self.rows, self.body, self.pieces = rows, body, pieces
        self.row = loops.ravel(rows, [v.extent for v in rows])
        self.memory: dict[Acc, Buffer] = {}  # an element a row
        self.current: list[Stmt] = []

    def run(self) -> None:
        remaining = list(self.body)
        while remaining:
            s = remaining.pop(0)
            if not isinstance(s, Loop) or analysis.work([s]) < self.least:
                self.current.append(s)
                continue
            self.close([s, *remaining], keep=set(analysis.carried([s])))
            self.loop(s)
        self.close([], set())

    def close(self, later: Sequence[Stmt], keep: set[Acc]) -> None:
        """Launch the current statements, but for the start of accumulators to `keep`; what `later` reads goes to memory."""
        constant = [s for s in self.current if isinstance(s, Init) and isinstance(s.value, Const)]
        if len(constant) == len(self.current) and not analysis.read_accs(later[:1]) & started(constant):
            return
        held: list[Stmt] = [s for s in constant if s.acc in keep]
        stmts = [s for s in self.current if s not in held]
        self.current = held
        wanted = analysis.read_accs(later) | set(analysis.carried(later))
        before = self.preloads(stmts)
        for acc in analysis.assigned(stmts):
            if acc in wanted:
                if acc not in self.memory:
                    self.memory[acc] = self.temporary(acc.dtype, count(self.rows))
                stmts.append(Store(self.memory[acc], self.row, acc))
        self.launch(analysis.nested(self.rows, [*before, *stmts], "parallel"))

    def preloads(self, stmts: Sequence[Stmt]) -> list[Stmt]:
        wanted = (analysis.read_accs(stmts) | set(analysis.carried(stmts))) - started(stmts)
        return [Init(a, Load(b, self.row)) for a, b in self.memory.items() if a in wanted]

    def loop(self, loop: Loop) -> None:
        found = analysis.folds(loop) or []
        chained, body = analysis.chain(loop)
        if not found:  # a map, of rows and inner loops alike
            env: dict[Expr, Expr] = {a: Load(b, self.row) for a, b in self.memory.items()}
            inner = Substitution(env).block(body)
            self.launch(analysis.nested([*self.rows, *(c.var for c in chained)], inner, "parallel"))
            return
        chunk, rest = cut(loop, self.pieces)
        parts, stores, merge = partials(found, chunk.var, self.rows, self.temporary)
        inner, inits = with_parts(chunk.body, found, parts)
        stmts = [*inits, *inner, *stores]
        self.launch(analysis.nested([chunk.var, *self.rows], [*self.preloads(stmts), *stmts], "parallel"))
        held = started(self.current)
        outside = [a for a in analysis.carried([loop]) if a not in held and a in self.memory]
        self.current = [Init(a, Load(self.memory[a], self.row)) for a in outside] + self.current
        self.current += [*merge, *rest]
