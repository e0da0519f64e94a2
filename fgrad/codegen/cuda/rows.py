"""Rows: threads that share a row, and what they do together.

    @cuda.jit
    def softmax(y, x):                                     # 64 rows of 10
        tid = cuda.threadIdx.x
        lane = tid % 4                                     # four threads a row
        row = cuda.blockIdx.x * 16 + tid // 4
        m = float32(-inf)
        for j in range(lane, 10, 4):
            m = maximum(m, x[10*row + j])
        m = maximum(m, shuffle_xor(m, 1))                  # the four threads' parts
        m = maximum(m, shuffle_xor(m, 2))
        ...

Values of a row (`m`) are known to all of its threads; what a row stores outside its loops, its first thread stores. Barriers
and shuffles are reached by all threads of a block: where rows do not come out even, the last threads
compute the last row again and store nothing (`active`).
"""

from __future__ import annotations

from collections.abc import Sequence

from fgrad.codegen import loops
from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.analysis import ArgFold, Fold
from fgrad.codegen.cuda.combine import Combining, kept, known
from fgrad.codegen.cuda.layout import Team, count, team_for
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.cuda.text import Scope, fold_text
from fgrad.codegen.cuda.vectors import WIDTH, Fours, copies_of, print_copies
from fgrad.codegen.loops import (
    Acc,
    Buffer,
    Check,
    Const,
    Expr,
    Init,
    Kernel,
    Load,
    Loop,
    LoopVar,
    Op,
    Stmt,
    Store,
    Update,
)

_IDEMPOTENT = frozenset({"minimum", "maximum", "bitwise_and", "bitwise_or"})
_SMALLER = 2**31
# What the text calls by these names; buffers and variables are called otherwise.
_WORDS = """
abs acos acosh asin asinh atan atan2 atanh bitcast boolean cbrt ceil clz copysign cos cosh cuda digamma erf erfc erfinv exp exp2
expm1 floor fmax fmin fmod hits hypot inf isfinite isinf isnan k lgamma load4 log log10 log1p log2 max maximum min minimum modulo
nan nextafter one other place popcount quotient range round sign signbit sin sinh sqrt store4 tan tanh tid trunc zero
float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64
"""
RESERVED = frozenset(_WORDS.split())


class RowsText(Combining):
    """Prints statements that the threads of a block execute together."""

    def __init__(self, kernel: Kernel, target: CudaTarget, unaligned: set[Buffer]):
        super().__init__(kernel, target)
        self.unaligned = unaligned
        self.taken = {b.name for b in kernel.buffers} | RESERVED
        for e in analysis.expressions(kernel.body):
            if isinstance(e, Op) and e.name == "square":  # printed as a product: twice
                self.references[id(e.args[0])] += 1
        self.keep: list[Expr] = []  # expressions whose ids are in use
        self.guard = ""  # holds for threads whose row exists
        self.at_identity: dict[Acc, str] = {}  # accumulators that hold the identity of an operation
        self.fresh_loads: set[Buffer] = set()  # since the last barrier
        self.fresh_stores: set[Buffer] = set()
        self.over: dict[
            Buffer, set[Buffer]
        ] = {}  # of a stored buffer: those loaded that may be the same memory

    # ------------------------------------------------------------------------------------ rows

    def unravel(self, flat: str, variables: Sequence[LoopVar], pad: str) -> None:
        """Assign the loop variables that a flat index stands for."""
        total = count(variables)
        live = [v for v in variables if v.extent > 1]
        for v in variables:
            if v.extent == 1:
                self.line(pad, f"{self.var(v)} = 0")
        inside = total
        for n, v in enumerate(live):
            inside //= v.extent
            text = flat
            if inside > 1:
                text = f"quotient({flat}, {inside})" if total < _SMALLER else f"{flat} // {inside}"
            if n:
                text = f"modulo({text}, {v.extent})" if total < _SMALLER else f"{text} % {v.extent}"
            if text != self.var(v):
                self.line(pad, f"{self.var(v)} = {text}")

    def flat_name(self, variables: Sequence[LoopVar], base: str) -> str:
        """What to call the flat index over `variables`: a single variable's own name."""
        live = [v for v in variables if v.extent > 1]
        return self.var(live[0]) if len(live) == 1 else self.fresh(base)

    def row_loop(
        self, rows: Sequence[LoopVar], body: Sequence[Stmt], pad: str, scope: Scope, team: Team, grid: bool
    ) -> None:
        """Every row by its team: over the blocks of the grid, or all of them by this block."""
        many = count(rows)
        row = self.flat_name(rows, "row")
        if team.lanes == 1:
            around = analysis.nested(rows, body)[0]
            assert isinstance(around, Loop)
            scope = dict(scope)
            self.hoist(around, pad, scope)
            start, step = ("cuda.grid(1)", "cuda.gridsize(1)") if grid else ("tid", str(team.threads))
            self.line(pad, f"{row} = {start}  # one thread each")
            self.line(pad, f"while {row} < {many}:")
            self.unravel(row, rows, pad + "    ")
            self.body(body, pad + "    ", dict(scope), 0)
            self.line(pad + "    ", f"{row} += {step}")
            return
        how = f"{team.lanes} threads a row" + (", neighbours on neighbouring rows" if team.stride > 1 else "")
        lane = self.fresh("lane")
        self.line(pad, f"{lane} = {team.lane_text}  # {how}")
        if grid:
            first = f"cuda.blockIdx.x * {team.rows} + " if team.rows > 1 else "cuda.blockIdx.x"
        else:
            first = f"{self.fresh('first')}"
            self.line(pad, f"for {first} in range(0, {many}, {team.rows}):")
            pad += "    "
            first += " + " if team.rows > 1 else ""
        self.line(pad, f"{row} = {first}" + (f"{team.row_text}" if team.rows > 1 else ""))
        before = self.guard
        self.guard = ""
        if many % team.rows:
            self.guard = self.fresh("active")
            self.line(pad, f"{self.guard} = {row} < {many}")
            self.line(pad, f"{row} = min({row}, {many - 1})")
        self.unravel(row, rows, pad)
        self.together(body, pad, dict(scope), team, lane)
        self.guard = before

    # ------------------------------------------------------------------------------------ what a team does

    def together(self, stmts: Sequence[Stmt], pad: str, scope: Scope, team: Team, lane: str) -> None:
        """All of a row's threads execute `stmts`."""
        for group in _runs(stmts):
            self.ordered(group, pad)
            s = group[0]
            if isinstance(s, Loop):
                self._forget(scope, s.body)
                self._loop(s, pad, scope, team, lane)
                self._forget(scope, s.body)
                continue
            if isinstance(s, (Store, Check)):
                before = len(self.lines)
                self.name_shared(group, pad, scope)
                if len(self.lines) > before:  # all lanes have loaded what the first one may store over
                    self.fresh_loads |= analysis.loaded(group)
                    self.ordered(group, pad)
            self.touched(group)
            if isinstance(s, (Store, Check)):
                self.line(pad, f"if {lane} == 0" + (f" and {self.guard}:" if self.guard else ":"))
                self.body(group, pad + "    ", dict(scope), 0)
            else:
                self.body(group, pad, scope, 0)
                assert isinstance(s, (Init, Update))
                self.at_identity.pop(s.acc, None)
                if isinstance(s, Init) and isinstance(s.value, Const):
                    for op in ("add", "mul"):
                        if s.value.value == analysis.identity(op, s.acc.dtype):
                            self.at_identity[s.acc] = op
            self._forget(scope, group)

    def ordered(self, stmts: Sequence[Stmt], pad: str) -> None:
        """A barrier before `stmts` if they touch what other threads may have stored or have yet to load."""
        loads, stores = analysis.loaded(stmts), analysis.stored(stmts)
        over = {b for s in stores for b in self.over.get(s, ())}
        if (
            loads & self.fresh_stores
            or stores & (self.fresh_stores | self.fresh_loads)
            or over & self.fresh_loads
        ):
            self.line(pad, "cuda.syncthreads()")
            self.passed_barrier()

    def touched(self, stmts: Sequence[Stmt]) -> None:
        self.fresh_loads |= analysis.loaded(stmts)
        self.fresh_stores |= analysis.stored(stmts)

    def passed_barrier(self) -> None:
        self.fresh_loads.clear()
        self.fresh_stores.clear()

    def _loop(self, loop: Loop, pad: str, scope: Scope, team: Team, lane: str) -> None:
        if analysis.is_simple(loop):
            self.shared_loop(loop, pad, scope, team, lane)
            return
        chained, body = analysis.chain(loop)
        rows = independent_rows(loop)
        if rows:
            rest = analysis.nested([c.var for c in chained if c.var not in rows], body)
            self.hoist(loop, pad, scope)
            self.row_loop(
                rows, rest, pad, scope, within(team_for(rows, rest, self.target, True), team.threads), False
            )
            if not analysis.has_loops(rest):
                self.touched([loop])
            return
        # One thread, in order; then all know the results.
        changed = analysis.carried([loop])
        self.touched([loop])
        self.line(pad, f"if {lane} == 0:  # in order")
        self.body([loop], pad + "    ", dict(scope), 0)
        if changed:
            slots = [self.slot(acc.dtype, n, 1) for n, acc in enumerate(changed)]
            for acc, slot in zip(changed, slots):
                self.line(pad, f"    {slot}[0] = {kept(self.var(acc), acc.dtype)}")
            self.line(pad, "cuda.syncthreads()")
            for acc, slot in zip(changed, slots):
                self.line(pad, f"{self.var(acc)} = {known(f'{slot}[0]', acc.dtype)}")
                self.at_identity.pop(acc, None)
            self.line(pad, "cuda.syncthreads()")
            self.passed_barrier()

    def shared_loop(self, loop: Loop, pad: str, scope: Scope, team: Team, lane: str) -> None:
        """The iterations of a perfect nest over the lanes; then its folds' parts are combined."""
        chained, body = analysis.chain(loop)
        variables = [c.var for c in chained]
        found = analysis.folds(loop) or []
        self.touched([loop])
        self.hoist(loop, pad, scope)
        started: dict[Acc, str] = {}
        for f in found:
            if isinstance(f, Fold) and f.op not in _IDEMPOTENT and self.at_identity.get(f.acc) != f.op:
                started[f.acc] = self.var(f.acc)
                part = self.names[id(f.acc)] = self.fresh(f"{self.var(f.acc)}_part")
                start = self.const(analysis.identity(f.op, f.acc.dtype), f.acc.dtype)
                self.line(pad, f"{part} = {start}")
        flat = self.flat_name(variables, "j")
        fours = Fours(variables, body, self.unaligned)
        # A thread whose row does not exist has no iterations: what it would load, of the last row, others may have stored over.
        guard, self.guard = self.guard, ""
        end = f"{fours.total} if {guard} else 0" if guard else str(fours.total)
        if team.stride == 1 and fours.suit(team.lanes):
            first = f"{WIDTH} * {lane}" if team.lanes > 1 else "0"
            self.line(pad, f"for {flat} in range({first}, {end}, {WIDTH * team.lanes}):")
            copies = copies_of(self, fours, flat, pad + "    ")
            print_copies(self, fours, copies, pad + "    ", dict(scope))
            self.features.add("vector")
        else:
            self.line(pad, f"for {flat} in range({lane}, {end}, {team.lanes}):")
            self.unravel(flat, variables, pad + "    ")
            self.body(body, pad + "    ", dict(scope), 0)
        self.guard = guard
        self._combined(found, started, pad, team)

    def _combined(
        self, found: Sequence[Fold | ArgFold], started: dict[Acc, str], pad: str, team: Team
    ) -> None:
        """The lanes' parts together, and with what the accumulators in `started` held before the loop."""
        self.combine(found, pad, team)
        for f in found:
            for acc in f.accs:
                self.at_identity.pop(acc, None)
        for f in found:
            if isinstance(f, Fold) and f.acc in started:
                part, name = self.var(f.acc), started[f.acc]
                self.names[id(f.acc)] = name
                self.line(pad, f"{name} = {fold_text(f.op, name, part, f.acc.dtype)}")

    def guarded(self, body: Sequence[Stmt], pad: str, scope: Scope) -> None:
        """`body` where only threads whose row exists store."""
        if all(isinstance(s, (Store, Check)) for s in body):
            self.line(pad, f"if {self.guard}:")
            self.body(body, pad + "    ", scope, 0)
            return
        for s in body:
            if isinstance(s, (Store, Check)):
                self.name_shared([s], pad, scope)
                self.line(pad, f"if {self.guard}:")
                self.body([s], pad + "    ", dict(scope), 0)
                self._forget(scope, [s])
            else:
                self.body([s], pad, scope, 0)

    def name_shared(self, stmts: Sequence[Stmt], pad: str, scope: Scope) -> None:
        """Name what `stmts` use and others too, before a condition around `stmts`: a name made inside would be lost after it, and a
        load done again there might find what `stmts` have stored in the same memory."""
        for s in stmts:
            if not isinstance(s, Store) or s.mask is None:
                for e in loops.expressions(s):
                    self.expr(e, scope, pad)

    def stores(self, stmts: Sequence[Stmt], pad: str, scope: Scope) -> None:
        """Stores by threads whose row exists."""
        if self.guard:
            self.name_shared(stmts, pad, scope)
            self.guarded(stmts, pad, dict(scope))
        else:
            self.body(stmts, pad, scope, 0)

    def hoist(self, loop: Loop, pad: str, scope: Scope) -> None:
        """Compute before `loop` what does not change in it. (Loops run at least once.)"""
        changed: set[object] = {s.var for s in loops.statements([loop]) if isinstance(s, Loop)}
        changed |= set(analysis.assigned([loop])) | analysis.stored([loop])
        fixed: dict[int, bool] = {}

        def is_fixed(e: Expr) -> bool:
            pending = [e]
            while pending:
                node = pending[-1]
                missing = [c for c in loops.children(node) if id(c) not in fixed]
                if missing:
                    pending.extend(missing)
                    continue
                pending.pop()
                mine = node.buffer if isinstance(node, Load) else node
                fixed[id(node)] = mine not in changed and all(fixed[id(c)] for c in loops.children(node))
            return fixed[id(e)]

        seen: set[int] = set()
        pending = [e for s in loops.statements(loop.body) for e in loops.expressions(s)]
        while pending:
            e = pending.pop()
            if id(e) in seen:
                continue
            seen.add(id(e))
            if not is_fixed(e):
                pending.extend(loops.children(e))
            elif isinstance(e, (Op, Load)) and id(e) not in scope:
                self.references[id(e)] = max(2, self.references.get(id(e), 0))
                self.expr(e, scope, pad)


def _runs(stmts: Sequence[Stmt]) -> list[list[Stmt]]:
    """The statements one by one, but for stores that follow one another: those of a row's first thread, together."""
    runs: list[list[Stmt]] = []
    for s in stmts:
        if isinstance(s, (Store, Check)) and runs and isinstance(runs[-1][-1], (Store, Check)):
            runs[-1].append(s)
        else:
            runs.append([s])
    return runs


def within(team: Team, threads: int) -> Team:
    """`team` in a block of `threads`."""
    lanes = min(team.lanes, threads)
    rows = threads // lanes
    return Team(lanes, rows, rows if team.stride > 1 and rows > 1 else 1)


def independent_rows(loop: Loop) -> list[LoopVar]:
    """The variables of the perfect nest at `loop` whose iterations threads may share; the others' are executed in order."""
    chained, _ = analysis.chain(loop)
    if analysis.carried([loop]):
        return []
    return [c.var for c in chained if analysis.independent(c)]
