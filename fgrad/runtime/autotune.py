"""Choosing the plan of a contraction by measurement: `jit(f, autotune=True)` or `FGRAD_AUTOTUNE=1`.

A `Tuner` is asked for the plan of each heavy contraction of a program (`codegen.tuning.retune`). What it finds is kept in the disk
cache, one small entry a contraction, named by the contraction, its epilogue, the processor and the code generator; a
later process takes it from there. What is kept is the plan's `recipe`, and a recipe that none of today's plans has is measured again.

Plans are compiled together, as a program is, and run in turn on made-up numbers: short bursts on one thread, of which the
least processor time counts. The model's choice stays unless another plan wins a second comparison with it by a margin.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from fgrad.codegen import gemm
from fgrad.codegen.llvm import I64, POINTER, new_module
from fgrad.codegen.planning import WORTH_ROUNDING
from fgrad.codegen.target import TargetInfo
from fgrad.codegen.tuning import AnyPlan, Job, alternatives, key_of
from fgrad.memory import data_pointer
from fgrad.runtime import cache
from fgrad.runtime.native import NativeCode, compile_module

MOST = 8  # plans of a contraction
GAIN = 1.03  # how much faster than the model's choice a plan must be
_BURST, _BUDGET = (
    100e-6,
    8e-3,
)  # seconds of one plan's burst, and of all bursts (twice: all plans, then the best two)
_ROUNDS = 6  # at least
_HOPELESS = 1.5  # times the fastest after one round: not run again
_PAD = 256  # bytes behind each array: a vector may be read past its end
_numbers = itertools.count()
_known: dict[str, str] = {}  # entry -> recipe: what this process has found or read


class Tuner:
    """Chooses plans for a target."""

    def __init__(self, target: TargetInfo):
        self.target = target

    def choose(self, job: Job) -> AnyPlan:
        """The fastest plan for a contraction, as far as is known; measured if it is not."""
        plans = alternatives(job.spec, job.epilogue, self.target, job.plan, MOST)
        if len(plans) < 2:
            return job.plan
        name = cache.entry_key("autotune", str(MOST), key_of(job.spec, job.epilogue, self.target))
        by_recipe = {p.recipe: p for p in plans}
        recipe = _known.get(name) or _kept(name)
        if recipe not in by_recipe:
            recipe = plans[fastest(job, plans)].recipe
            cache.store(name, {"plan": recipe}, b"")
        _known[name] = recipe
        return by_recipe[recipe]


def _kept(name: str) -> str | None:
    entry = cache.load(name)
    recipe = entry.meta.get("plan") if entry else None
    return recipe if isinstance(recipe, str) else None


def fastest(job: Job, plans: Sequence[AnyPlan]) -> int:
    """The number of the plan to use; 0 is the model's choice."""
    trial = Trial(job, plans)
    times = trial.measure(range(len(plans)))
    best = min(times, key=lambda n: times[n] * _handicap(plans[n]))
    if best == 0:
        return 0
    again = trial.measure((0, best))
    won = again[best] * _handicap(plans[best]) * GAIN < again[0] * _handicap(plans[0])
    return best if won else 0


def _handicap(plan: AnyPlan) -> float:
    """Winograd's algorithm rounds more, and must be worth it."""
    return 1 / WORTH_ROUNDING if plan.path == "winograd" else 1.0


class Trial:
    """Plans of one contraction, compiled, with arrays to run them on."""

    def __init__(self, job: Job, plans: Sequence[AnyPlan]):
        self.code = compile_plans(job, plans)
        sizes = [*job.arrays, (np.dtype(np.uint8), max(p.workspace_bytes for p in plans))]
        self.arrays = [_filled(dtype, size) for dtype, size in sizes]
        pointers = np.array([data_pointer(a) for a in self.arrays], np.uintp)
        moves = np.array([*(job.moves or [0] * len(job.arrays)), 0], np.uintp)
        self.tables = pointers + np.arange(job.count, dtype=np.uintp)[:, None] * moves  # one for each piece
        self.addresses = [data_pointer(table) for table in self.tables]
        self.piece = 0

    def measure(self, numbers: Sequence[int]) -> dict[int, float]:
        """Seconds of processor time that some of the plans take."""
        once = {n: self.burst(n, 1, warm=True) for n in numbers}
        limit = _HOPELESS * min(once.values())
        best = {n: seconds for n, seconds in once.items() if seconds <= limit or n == 0}
        repeats = {n: max(1, math.ceil(_BURST / seconds)) for n, seconds in best.items()}
        spent, rounds = 0.0, 0
        while rounds < _ROUNDS or spent < _BUDGET:
            for n in best:
                seconds = self.burst(n, repeats[n])
                spent += seconds * repeats[n]
                best[n] = min(best[n], seconds)
            rounds += 1
        return best

    def burst(self, number: int, repeats: int, warm: bool = False) -> float:
        """Each run takes the next piece, as in the program: operands come from where they would, if from a cache at all."""
        call, count = self.code.call, len(self.addresses)
        runs = [self.addresses[(self.piece + n) % count] for n in range(repeats)]
        self.piece += repeats
        if warm:
            call(runs[0], number)
        start = time.thread_time_ns()
        for address in runs:
            call(address, number)
        return max(1, time.thread_time_ns() - start) * 1e-9 / repeats


def _filled(dtype: np.dtype, size: int) -> np.ndarray:
    """An array that begins at a cache line: numbers around one, so that nothing overflows or dies away however often it runs."""
    length = size * dtype.itemsize
    raw = np.zeros(length + 64 + _PAD, np.uint8)
    start = -raw.ctypes.data % 64
    array = raw[start : start + length].view(dtype)
    if dtype != np.uint8:
        some = np.random.default_rng(0).uniform(0.5, 1.5, 4099).astype(dtype)
        array[:] = np.resize(some, size)
    return array


def compile_plans(job: Job, plans: Sequence[AnyPlan]) -> NativeCode:
    """`void f(ptr table, i64 number)`: runs plan `number` on the arrays of the table, the workspace last."""
    symbol = f"fgrad_trial_{next(_numbers)}"
    module = new_module(symbol)
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64]), symbol)
    b = ir.IRBuilder(entry.append_basic_block("entry"))
    given: list[Any] = []
    for n in range(len(job.arrays) + 1):
        given.append(b.load(b.gep(entry.args[0], [I64(n)], source_etype=POINTER), typ=POINTER))
    given.insert(3, given.pop())  # the workspace
    done = entry.append_basic_block("done")
    chosen = b.switch(entry.args[1], done)
    for n, plan in enumerate(plans):
        fn = gemm.emit(module, job.spec, plan, f"plan.{n}", job.epilogue)
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        case = entry.append_basic_block(f"case.{n}")
        chosen.add_case(I64(n), case)
        b.position_at_end(case)
        b.call(fn, [a if t == a.type else b.bitcast(a, t) for a, t in zip(given, fn.ftype.args, strict=True)])
        b.branch(done)
    b.position_at_end(done)
    b.ret_void()
    return compile_module(str(module), symbol)
