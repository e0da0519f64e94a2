"""Calling a program with readings of the clock around its steps, again and again: what `runtime.profile` makes its rows of."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad.codegen.clock import StepClock
from fgrad.codegen.entry import emit_program
from fgrad.codegen.layout import HostControl, cut
from fgrad.codegen.program import HostStep, Step, walk
from fgrad.codegen.target import host
from fgrad.runtime.executable import Executable, Workspace
from fgrad.runtime.native import compile_module

Samples = dict[int, list[tuple[float, int]]]  # id(step) -> (seconds, runs) of every call

_numbers = itertools.count()
_WARM_UP = 3
_LEAST_SECONDS = 0.02  # between the first and the last reading of the clock, to know how fast it ticks


class _Timed(Executable):
    """A program whose code reads the clock; this reads it around what Python runs."""

    def __init__(self, original: Executable, clock: StepClock, native: Any):
        super().__init__(original.program, native)
        self.clock = clock
        self.spent: dict[int, list[float]] = {}  # id(step) -> seconds, runs

    def note(self, step: Step, begin: float) -> None:
        entry = self.spent.setdefault(id(step), [0.0, 0])
        entry[0] += time.perf_counter() - begin
        entry[1] += 1

    def _run_host(self, work: Workspace, step: HostStep) -> None:
        begin = time.perf_counter()
        super()._run_host(work, step)
        self.note(step, begin)

    def _run_control(self, work: Workspace, item: HostControl) -> None:
        begin = time.perf_counter()
        super()._run_control(work, item)
        self.note(item.step, begin)


class Sampler:
    """Calls a timed copy of a program and collects, for each step, (seconds, runs) of every call."""

    def __init__(self, executable: Executable, inputs: Sequence[np.ndarray]):
        program = executable.program
        self.executable, self.inputs = executable, [np.asarray(x, order="C") for x in inputs]
        self.donated = set(program.placed.values())
        self.steps = list(walk(program.body))
        _, self.segments = cut(program)
        self.calls = 0  # of the last `samples`
        self.clock = StepClock(len(self.steps) + len(self.segments))
        symbol = f"fgrad_profile_{next(_numbers)}"
        entry = emit_program(program, symbol, host(), self.segments, self.clock)
        self.timed = _Timed(executable, self.clock, compile_module(entry.text, entry.symbol))

    def arguments(self) -> list[np.ndarray]:
        return [x.copy() if n in self.donated else x for n, x in enumerate(self.inputs)]

    def samples(self, repeat: int, budget: float) -> tuple[Samples, list[float]]:
        """For each step (by id) its samples, and the seconds that segments and NumPy took together: of the faster half of all calls."""
        timed, clock = self.timed, self.clock
        for _ in range(_WARM_UP):  # the first runs also decide between one thread and several
            timed(self.arguments())
        raw: list[tuple[np.ndarray, dict[int, list[float]]]] = []
        stamps: list[tuple[float, int]] = []
        begun = time.perf_counter()
        while True:
            arrays = self.arguments()
            clock.reset()
            timed.spent = {}
            before = time.perf_counter()
            timed(arrays)
            stamps.append((before, clock.stamp))
            spent = time.perf_counter() - begun
            if len(raw) < repeat and (spent < budget or len(raw) < 3):
                raw.append((clock.counts.copy(), timed.spent))
            elif not self.segments or spent >= _LEAST_SECONDS:
                break
        (t0, c0), (t1, c1) = stamps[0], stamps[-1]
        tick = (t1 - t0) / (c1 - c0) if c1 > c0 else 0.0
        self.calls = len(raw)
        spans = [self._seconds(counts, spent_by, tick) for counts, spent_by in raw]
        totals = [
            sum(float(counts[clock.number(s)][0]) for s in self.segments) * tick
            + sum(seconds[id(s)][0] for s in self.steps if isinstance(s, HostStep))
            for (counts, _), seconds in zip(raw, spans)
        ]
        chosen = faster_half(totals)
        found = {id(s): [spans[n][id(s)] for n in chosen] for s in self.steps}
        return found, [totals[n] for n in chosen]

    def _seconds(
        self, counts: np.ndarray, spent: dict[int, list[float]], tick: float
    ) -> dict[int, tuple[float, int]]:
        """(seconds, runs) of every step in one call: of what Python ran, and of what the program's own clock saw."""
        found: dict[int, tuple[float, int]] = {}
        for step in self.steps:
            if id(step) in spent:
                seconds, runs = spent[id(step)]
            else:
                ticks, runs = counts[self.clock.number(step)]
                seconds = float(ticks) * tick
            found[id(step)] = seconds, int(runs)
        return found

    def call_seconds(self, repeat: int, budget: float) -> float:
        """The median over the faster half of calls of the program itself."""
        times: list[float] = []
        until = time.perf_counter() + budget
        for n in range(_WARM_UP + repeat):
            arrays = self.arguments()
            before = time.perf_counter()
            self.executable(arrays)
            if n >= _WARM_UP:
                times.append(time.perf_counter() - before)
            if time.perf_counter() > until and len(times) >= 3:
                break
        return statistics.median(times[n] for n in faster_half(times))


def faster_half(times: Sequence[float]) -> list[int]:
    """Which of many calls to believe: those that other programs interrupted are not among them, if most were not interrupted."""
    return sorted(range(len(times)), key=lambda n: times[n])[: max(3, (len(times) + 1) // 2)]
