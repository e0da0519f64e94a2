"""How the threads of a block share rows: who works on which row, and on which part of it.

    rows      threads 0..7 of a block of 32 share row 0, 8..15 row 1, ...:  neighbours read neighbours along the row
    columns   threads 0, 8, 16, 24 share row 0, threads 1, 9, 17, 25 row 1: neighbours read neighbours across the rows

What is chosen follows from the shapes and the target alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fgrad.codegen import loops
from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.loops import Load, Loop, LoopVar, Stmt, Store

PER_LANE = 4  # iterations that a thread should have at the least before more threads share a row
THREADS_WANTED = 8  # blocks of `target.threads` that a multiprocessor runs at once


@dataclass(frozen=True)
class Team:
    """`lanes` threads share a row; a block has `rows` rows. Lanes of a row are `stride` threads apart."""

    lanes: int
    rows: int
    stride: int = 1

    @property
    def threads(self) -> int:
        return self.lanes * self.rows

    @property
    def row_text(self) -> str:
        """The number of a thread's row in its block."""
        return f"tid % {self.rows}" if self.stride > 1 else f"tid // {self.lanes}"

    @property
    def lane_text(self) -> str:
        return f"tid // {self.rows}" if self.stride > 1 else f"tid % {self.lanes}" if self.rows > 1 else "tid"


def power_of_two(n: float) -> int:
    """The least power of two that is at least `n`."""
    return 1 << max(0, math.ceil(math.log2(max(n, 1))))


def count(variables: Sequence[LoopVar]) -> int:
    return math.prod(v.extent for v in variables)


def block_size(items: int, target: CudaTarget) -> int:
    """Threads of a block when each of `items` has a thread: smaller blocks where there are few, so that all
    multiprocessors get some."""
    size = target.threads
    while size > 2 * target.warp and -(-items // size) < target.multiprocessors:
        size //= 2
    return size


def longest_inner(body: Sequence[Stmt]) -> int:
    return max((analysis.work([s]) for s in body if isinstance(s, Loop)), default=1)


def prefers_columns(rows: Sequence[LoopVar], body: Sequence[Stmt]) -> bool:
    """Whether most of what the inner loops touch is contiguous across the rows rather than along them."""
    if not rows:
        return False
    votes = 0
    for s in body:
        if not isinstance(s, Loop):
            continue
        inside = {id(v.var) for v in loops.statements([s]) if isinstance(v, Loop)}
        accesses = [(e.buffer, e.index) for e in analysis.expressions([s]) if isinstance(e, Load)]
        accesses += [(t.buffer, t.index) for t in loops.statements([s]) if isinstance(t, Store)]
        for buffer, index in accesses:
            terms = loops.affine_terms(index)[1]
            if not any(id(t) in inside for t, _ in terms):
                continue
            for t, c in terms:
                if abs(c) == 1:
                    votes += buffer.size * ((t is rows[-1]) - (id(t) in inside))
    return votes > 0


def team_for(
    rows: Sequence[LoopVar], body: Sequence[Stmt], target: CudaTarget, one_block: bool = False
) -> Team:
    """How threads share the rows over `rows`, each of which executes `body`."""
    many, inner = count(rows), longest_inner(body)
    wanted = target.threads if one_block else target.multiprocessors * target.threads * THREADS_WANTED
    if not analysis.has_loops(body) or not all(analysis.is_simple(s) for s in body if isinstance(s, Loop)):
        return Team(1, target.threads if one_block else block_size(many, target))
    lanes = power_of_two(inner / PER_LANE)
    if prefers_columns(rows, body):
        side = min(target.warp, power_of_two(many))
        lanes = min(lanes, target.threads // side)
        while lanes > 1 and many * lanes // 2 >= wanted:
            lanes //= 2
        if lanes == 1:
            return Team(1, target.threads if one_block else block_size(many, target))
        return Team(lanes, side, stride=side)
    least = min(target.warp, max(1, power_of_two(inner) // 4))  # fewer would read far apart
    lanes = max(min(lanes, target.threads), least)
    while lanes > least and many * lanes // 2 >= wanted:
        lanes //= 2
    if lanes > target.warp:
        return Team(target.threads if one_block else lanes, 1)
    if one_block:
        return Team(lanes, target.threads // lanes)
    return Team(lanes, max(1, block_size(many * lanes, target) // lanes))
