"""Reading the clock around the steps of a compiled program, which otherwise runs as it always does: threads, segments and all.

A `StepClock` is given to `codegen.entry.emit_program`, which then writes, around each step (nested ones too) and each segment,

    %before = call i64 @"clock.now"()
    ...
    ticks[step] += clock.now() - %before;  runs[step] += 1

into an array of the clock's whose address is part of the code: such a program belongs to this process and is never kept. Only the
thread that runs a segment writes, and one call at a time may run. The members of a chain are timed by each thread for its
pieces, and added up: their times together may be as much more than the chain's as threads ran it. Two readings take some ten nanoseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from fgrad.codegen import team
from fgrad.codegen.team import I64, POINTER

_elsewhere = ir.Module("clock", context=ir.Context())
_now = ir.Function(_elsewhere, ir.FunctionType(I64, []), "clock.now")


class StepClock:
    """`counts[number(x)]` are the ticks and runs of a step or segment x since `reset`; `stamp`, the clock when the last segment began."""

    def __init__(self, most: int):
        self.counts = np.zeros((most + 1, 2), np.int64)
        self._numbers: dict[int, int] = {}
        self._keep: list[Any] = []

    def number(self, thing: Any) -> int:
        """The row of a step or segment; row 0 is the stamp's."""
        found = self._numbers.get(id(thing))
        if found is None:
            found = self._numbers[id(thing)] = len(self._numbers) + 1
            self._keep.append(thing)
            if found >= len(self.counts):
                raise ValueError(
                    f"StepClock: made for {len(self.counts) - 1} steps and segments, there are more"
                )
        return found

    @property
    def stamp(self) -> int:
        return int(self.counts[0, 0])

    def ticks(self, thing: Any) -> tuple[int, int]:
        """(ticks, runs) since the last reset."""
        row = self.counts[self.number(thing)]
        return int(row[0]), int(row[1])

    def reset(self) -> None:
        self.counts[1:] = 0

    # -------------------------------------------------------------------------------------------- in generated code

    def begin(self, b: ir.IRBuilder, stamp: bool = False) -> ir.Value:
        now = b.call(_now, [])
        if stamp:
            b.store(now, self._address(b, 0, 0))
        return now

    def end(self, b: ir.IRBuilder, thing: Any, begun: ir.Value) -> None:
        n = self.number(thing)
        for column, more in ((0, b.sub(b.call(_now, []), begun)), (1, I64(1))):
            at = self._address(b, n, column)
            b.store(b.add(b.load(at, typ=I64), more), at)

    def end_piece(self, b: ir.IRBuilder, thing: Any, begun: ir.Value, piece: ir.Value) -> None:
        """As `end`, for one of several pieces that any thread may run; together they are one run."""
        n = self.number(thing)
        first = b.zext(b.icmp_unsigned("==", piece, I64(0)), I64)
        for column, more in ((0, b.sub(b.call(_now, []), begun)), (1, first)):
            b.atomic_rmw("add", self._address(b, n, column), more, "monotonic")

    def _address(self, b: ir.IRBuilder, row: int, column: int) -> ir.Value:
        address = self.counts.ctypes.data + row * self.counts.strides[0] + column * self.counts.strides[1]
        return b.inttoptr(I64(address), POINTER)

    @staticmethod
    def text(declared: bool) -> str:
        """The function that reads the clock; `declared`: the module declares the clock already."""
        name, declaration = team.clock()
        body = f'define internal i64 @"clock.now"() alwaysinline nounwind {{\n  %t = call i64 {name}()\n  ret i64 %t\n}}'
        return body if declared else f"{declaration}\n{body}"
