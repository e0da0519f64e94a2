"""The time that each step of a compiled program takes, beside what it computes and where it comes from.

    >>> print(fgrad.profile(step)(params, state, x, y))
    step: 6,930 us a call (median of the faster half of 40, up to 2 threads), 6,881 of them in 35 kernels, which at the machine's peaks would take 2,640
       us   best  share  1 thread  GFLOP/s  FMA  GB/s   copy  limit  step                          operations  layer  line
    1,630  1,592  23.5%     3,010    187.1  80%   5.1  5% L3    80%  conv -> float32[64,64,11,11]  conv        3      mnist.py:41
    ...

The program runs as it always does, in its own segments and on its threads, but is compiled once more with readings of the clock
around its steps (`codegen/clock.py`). Times are medians over the faster half of many calls. Per cents are of this machine's peaks (`runtime/peaks.py`) on
as many threads as the program may use: multiply-adds, and copies through the cache that holds the step's bytes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fgrad.codegen.count import Work
from fgrad.codegen.parallel import pieces_of
from fgrad.codegen.program import (
    Block,
    ChainStep,
    ContractStep,
    CopyStep,
    HostStep,
    KernelStep,
    Step,
    SwitchStep,
    nested_blocks,
)
from fgrad.runtime import threads
from fgrad.runtime.cost import StepCost, describe, element_bytes, step_work
from fgrad.runtime.executable import Executable
from fgrad.runtime.peaks import LEVELS, Peaks, peaks
from fgrad.runtime.sampler import Sampler, Samples
from fgrad.runtime.table import Column, table


@dataclass
class Row:
    """One step in one call of the program. Times in seconds; those of a loop include what is in it.

    seconds, best  median (over the faster half of the calls) and smallest; `serial` is the median on one thread, if the program may use more
    runs           how often the step ran in the call (iterations, in a loop)
    work           operations and bytes of all these runs
    fma, copy      fractions of the machine's peaks: of multiply-adds, and of copies through `level`
    limit          the fraction of the time that the peaks would allow at best: the larger of the two, other arithmetic counted
    depth, parent  how many loops and branches are around, and which row is the innermost of them
    """

    what: str
    step: Step
    seconds: float
    best: float
    serial: float | None
    runs: int
    threads: int = 1
    depth: int = 0
    parent: int | None = None
    work: Work = field(default_factory=Work)
    share: float = 0.0
    fma: float = 0.0
    copy: float = 0.0
    level: str = ""
    limit: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return _KINDS.get(type(self.step), type(self.step).__name__.removesuffix("Step").lower())

    @property
    def gflops(self) -> float:
        """Floating-point operations a nanosecond."""
        return self.work.flops / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def gbytes(self) -> float:
        """Distinct bytes read and written a nanosecond."""
        return self.work.bytes / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the graph's primitives, those that only move things left out if there are others."""
        names = list(dict.fromkeys(e.prim.name for e in self.step.eqns))
        return tuple(n for n in names if n not in _MOVES) or tuple(names)

    @property
    def scopes(self) -> tuple[str, ...]:
        """Layer paths of the equations."""
        return _by_frequency(e.source.scope for e in self.step.eqns if e.source and e.source.scope)

    @property
    def sources(self) -> tuple[str, ...]:
        """The user's `file:line`s, those of most equations first."""
        return _by_frequency(f"{e.source.file}:{e.source.line}" for e in self.step.eqns if e.source)

    def to_dict(self) -> dict[str, Any]:
        """As numbers, texts and lists."""
        return {
            "what": self.what,
            "kind": self.kind,
            "seconds": self.seconds,
            "best": self.best,
            "serial": self.serial,
            "share": self.share,
            "runs": self.runs,
            "flops": self.work.flops,
            "contraction": self.work.contraction,
            "arithmetic": self.work.arithmetic,
            "transcendental": self.work.transcendental,
            "bytes": self.work.bytes,
            "gflops": self.gflops,
            "gbytes": self.gbytes,
            "fma": self.fma,
            "copy": self.copy,
            "level": self.level,
            "limit": self.limit,
            "threads": self.threads,
            "depth": self.depth,
            "parent": self.parent,
            "plan": _plan(self.step),
            "scopes": list(self.scopes),
            "sources": list(self.sources),
            "equations": [
                {
                    "primitive": e.prim.name,
                    "outputs": [str(v.type) for v in e.outputs],
                    "source": f"{e.source.file}:{e.source.line}" if e.source else None,
                    "function": e.source.function if e.source else None,
                    "scope": e.source.scope if e.source else "",
                }
                for e in self.step.eqns
            ],
        }


@dataclass
class Profile:
    """`rows` in program order, each loop before what is in it; printing shows the longest first.

    total     seconds in the program's own code, the median; `call` of a whole call from Python without readings of the clock
    threads   that the program could use; `peaks` is what per cents are of
    """

    name: str
    rows: list[Row]
    total: float
    call: float
    threads: int
    calls: int
    peaks: Peaks
    lowest: float = field(default=0.005)  # rows with a smaller share are summed up when printed

    @property
    def seconds(self) -> float:
        """The sum over steps."""
        return sum(r.seconds for r in self.rows if r.parent is None)

    @property
    def stayed_serial(self) -> bool:
        """Whether the program, which measures itself, found one thread to be no slower than several."""
        alone = sum(r.serial or 0.0 for r in self.rows if r.parent is None)
        return self.threads > 1 and 0 < alone < 1.05 * self.seconds

    def to_dict(self) -> dict[str, Any]:
        """As numbers, texts and lists."""
        return {
            "name": self.name,
            "total": self.total,
            "call": self.call,
            "steps": self.seconds,
            "threads": self.threads,
            "calls": self.calls,
            "peaks": asdict(self.peaks),
            "rows": [r.to_dict() for r in self.rows],
        }

    def json(self, indent: int | None = 1) -> str:
        """Everything as JSON; times in seconds."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_json(self, path: str | Path) -> None:
        """Write `json()` to a file."""
        Path(path).write_text(self.json() + "\n", encoding="utf-8")

    def text(self, lowest: float | None = None, rich: bool | None = None) -> str:
        """The table, longest steps first. `lowest`: the smallest share that has a row of its own; `rich`: by default if installed."""
        lowest = self.lowest if lowest is None else lowest
        many, layers = self.threads > 1, any(r.scopes for r in self.rows)
        columns = [
            Column("us"),
            Column("best"),
            Column("share"),
            *([Column("1 thread")] if many else []),
            Column("GFLOP/s"),
            Column("FMA"),
            Column("GB/s"),
            Column("copy"),
            Column("limit"),
            Column("step", left=True),
            Column("operations", left=True),
            *([Column("layer", left=True)] if layers else []),
            Column("line", left=True),
        ]
        shown = self._shown(lowest)
        cells = [self._cells(r, many, layers) for r in shown]
        rest = [r for r in self.rows if r.parent is None and r.share < lowest]
        if rest:
            spent = sum(r.seconds for r in rest)
            label = f"{len(rest)} more"
            cells.append(_padded(columns, _us(spent), f"{100 * spent / (self.seconds or 1):.1f}%", label))
        least = min(self.total - self.seconds, self.total)
        if least > 0.005 * self.total:
            cells.append(_padded(columns, _us(least), "", "not in a step: starting threads, interruptions"))
        return table(self._title(), columns, cells, rich)

    def _title(self) -> str:
        on = f"up to {self.threads} threads" if self.threads > 1 else "1 thread"
        if self.stayed_serial:
            on += ", of which it chose to use one: others keep them busy"
        leaves = [r for r in self.rows if r.kind not in _HOLDERS]
        at_best = sum(r.limit * r.seconds for r in leaves)
        return (
            f"{self.name}: {_us(self.call)} us a call (median of the faster half of {self.calls}, {on}), {_us(self.seconds)} of them in {len(leaves)}"
            f" kernels, which at the machine's peaks would take {_us(at_best)}\n{self.peaks}"
        )

    def _shown(self, lowest: float) -> list[Row]:
        """Rows to print: siblings by time, what is in a loop after it."""
        below: dict[int | None, list[int]] = {}
        for n, r in enumerate(self.rows):
            below.setdefault(r.parent, []).append(n)

        def visit(parent: int | None) -> Iterator[Row]:
            for n in sorted(below.get(parent, []), key=lambda n: -self.rows[n].seconds):
                if self.rows[n].share >= lowest:
                    yield self.rows[n]
                    yield from visit(n)

        return list(visit(None))

    @staticmethod
    def _cells(r: Row, many: bool, layers: bool) -> list[str]:
        times = f"  x {r.runs}" if r.runs != 1 and r.kind != "for" else ""
        computes, moves = r.work.flops > 0, r.work.bytes > 0
        return [
            _us(r.seconds),
            _us(r.best),
            f"{100 * r.share:.1f}%",
            *([("" if r.serial is None else _us(r.serial))] if many else []),
            f"{r.gflops:.1f}" if computes else "",
            f"{100 * r.fma:.0f}%" if computes else "",
            f"{r.gbytes:.1f}" if moves else "",
            f"{100 * r.copy:.0f}% {r.level}" if r.level and moves else "",
            f"{100 * r.limit:.0f}%" if r.limit else "",
            "  " * r.depth + r.what + times,
            " ".join(_few(r.operations, 4)),
            *([" ".join(_few(r.scopes, 2))] if layers else []),
            " ".join(_few([Path(s).name for s in r.sources], 2)),
        ]

    def __str__(self) -> str:
        return self.text()


_KINDS = {KernelStep: "kernel", ContractStep: "contraction", CopyStep: "copy", HostStep: "host"}
_HOLDERS = ("for", "while", "switch", "chain")
_MOVES = frozenset({"broadcast", "reshape", "transpose", "convert", "iota", "slice", "reverse", "squeeze"})


def _us(seconds: float) -> str:
    digits = 0 if seconds >= 99.5e-6 else 1 if seconds >= 9.95e-6 else 2
    return f"{1e6 * seconds:,.{digits}f}"


def _few(texts: Sequence[str], most: int) -> list[str]:
    return [*texts[:most], *([f"+{len(texts) - most}"] if len(texts) > most else [])]


def _by_frequency(texts: Iterator[str]) -> tuple[str, ...]:
    found: dict[str, int] = {}
    for text in texts:
        found[text] = found.get(text, 0) + 1
    return tuple(sorted(found, key=lambda text: -found[text]))


def _padded(columns: Sequence[Column], time_text: str, share: str, label: str) -> list[str]:
    cells = dict.fromkeys((c.name for c in columns), "")
    return list((cells | {"us": time_text, "share": share, "step": label}).values())


def _plan(step: Step) -> str:
    if isinstance(step, ContractStep):
        return str(step.meta.get("pieces") or step.meta.get("plan", ""))
    pieces = pieces_of(step)
    return f"{pieces.count} pieces" if pieces else ""


# ------------------------------------------------------------------------------------------------ measuring


def profile(
    executable: Executable,
    inputs: Sequence[np.ndarray],
    repeat: int = 40,
    budget: float = 1.0,
    measured: Peaks | None = None,
    serial: bool = True,
) -> Profile:
    """Time each step of `executable` on `inputs`, which keep their values: donated ones are copied for each call.

    Medians over the faster half of `repeat` calls, or of fewer (at least 3) when these take longer than `budget` seconds. `serial`: also measure on one
    thread, if the program may use more. `measured`: the peaks to compare with, by default those of this machine.
    """
    sampler = Sampler(executable, inputs)
    count = threads.get_num_threads() if executable.shares_work else 1
    best = measured or peaks()
    found, totals = sampler.samples(repeat, budget)
    call = sampler.call_seconds(repeat, budget)
    alone: Samples = {}
    if serial and count > 1:
        saved = threads.get_num_threads()
        try:
            threads.set_num_threads(1)
            alone, _ = sampler.samples(repeat, budget)
        finally:
            threads.set_num_threads(saved)
    rows = _Rows(found, alone, count, best).of(executable.program.body)
    return Profile(executable.program.name, rows, statistics.median(totals), call, count, sampler.calls, best)


class _Rows:
    """Makes the rows of a program from samples of its steps."""

    def __init__(self, found: Samples, alone: Samples, count: int, best: Peaks):
        self.found, self.alone, self.count, self.best = found, alone, count, best
        self.rows: list[Row] = []

    def of(self, body: Block) -> list[Row]:
        self.block(body, 0, None)
        total = sum(r.seconds for r in self.rows if r.parent is None) or 1.0
        for row in self.rows:
            row.share = row.seconds / total
        return self.rows

    def together(self, chain: ChainStep) -> float:
        """The chain's time over that of its members, of whom threads run several at once."""
        inside = sum(statistics.median(s for s, _ in self.found[id(m)]) for m in chain.body.steps)
        return statistics.median(s for s, _ in self.found[id(chain)]) / inside if inside else 1.0

    def block(self, block: Block, depth: int, parent: int | None, scale: float = 1.0) -> None:
        for step in block.steps:
            row = self.row(step, depth, parent, scale)
            at = len(self.rows)
            self.rows.append(row)
            inner = nested_blocks(step)
            for each in inner:
                self.block(each, depth + 1, at, self.together(step) if isinstance(step, ChainStep) else scale)
            if inner:
                self.add_up(row, [r for r in self.rows[at + 1 :] if r.parent == at])

    def row(self, step: Step, depth: int, parent: int | None, scale: float) -> Row:
        samples = self.found[id(step)]
        runs = round(statistics.median(n for _, n in samples))
        row = Row(
            what=describe(step),
            step=step,
            seconds=statistics.median(s for s, _ in samples) * scale,
            best=min(s for s, _ in samples) * scale,
            serial=statistics.median(s for s, _ in self.alone[id(step)]) if self.alone else None,
            runs=runs,
            threads=self.count if pieces_of(step) else 1,
            depth=depth,
            parent=parent,
            notes=step.kernel.notes if isinstance(step, KernelStep) else (),
        )
        if not nested_blocks(step):
            one = step_work(step)
            row.work, row.level = one * runs, LEVELS[self.best.level(one.bytes)]
            cost = StepCost(step, row.what, row.work, runs, 0, self.count > 1, element_bytes(step), one.bytes)
            if row.seconds > 0:
                row.fma = row.work.flops / row.seconds / self.best.fma(cost.itemsize, self.count)
                row.copy = row.work.bytes / row.seconds / self.best.bandwidth(one.bytes, self.count)
                row.limit = cost.seconds(self.best, self.count) / row.seconds
        return row

    def add_up(self, row: Row, inner: list[Row]) -> None:
        """A loop's work and peaks, from what is in it."""
        row.work = sum((r.work for r in inner), Work())
        if not isinstance(row.step, SwitchStep):  # iterations, not loops
            row.runs = max((r.runs for r in inner), default=row.runs)
        if row.seconds > 0:
            row.fma = sum(r.fma * r.seconds for r in inner) / row.seconds
            row.limit = sum(r.limit * r.seconds for r in inner) / row.seconds
