"""Where a compiled program writes its results: blocks that are used again once no array looks at them any more.

A call takes one block for each group of outputs. Small outputs share blocks, so that a call with forty results takes two or
three; but an output keeps alive at most sixteen times its own bytes (a loss kept from every step does not keep the step's
other results), and a large one has a block of its own. Results that are dropped are then written to warm memory instead of
fresh pages, which for a large output cost more than computing it.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from fgrad.codegen.program import Buf
from fgrad.memory import ALIGN, HAS_REFCOUNTS, Block, new_block

KEPT = 3  # blocks kept for a group: the last results, those before them still in use, and one spare
_MOST_SHARED = 1 << 16  # bytes of a block that several outputs share
_MOST_TIMES = 16  # how many times its own bytes an output may keep alive

Lot = tuple[Any, ...]  # a block, the addresses in it of the group's members as bytes, and each as a number
count = sys.getrefcount


class Group(NamedTuple):
    """Outputs that share a block: their numbers, and where each begins."""

    members: tuple[int, ...]
    offsets: tuple[int, ...]
    nbytes: int


def group_outputs(outputs: Sequence[Buf], placed: Sequence[int]) -> list[Group]:
    """Divide the outputs that are not placed on donated inputs into groups of similar size."""
    sizes = {j: max(-(-b.nbytes // ALIGN), 1) * ALIGN for j, b in enumerate(outputs) if j not in set(placed)}
    shares: list[list[int]] = []
    total = limit = 0
    for j in sorted(sizes, key=lambda j: sizes[j]):
        total += sizes[j]
        if not shares or total > limit:
            shares.append([])
            total, limit = sizes[j], min(_MOST_TIMES * sizes[j], _MOST_SHARED)
        shares[-1].append(j)
    groups = []
    for members in map(sorted, shares):  # in order, so that neighbours in the table are filled at once
        ends = list(accumulate(sizes[j] for j in members))
        groups.append(Group(tuple(members), (0, *ends[:-1]), ends[-1]))
    return groups


class Pool:
    """The blocks of one group that one workspace has handed out."""

    __slots__ = ("group", "lots")

    def __init__(self, group: Group):
        self.group = group
        self.lots: list[Lot] = []

    def take(self) -> Lot:
        """A block that nothing looks at."""
        for lot in self.lots:
            if count(lot[0]) == FREE:
                return lot
        return self.more()

    def more(self) -> Lot:
        """A new block, kept for later calls if references can tell when it is free."""
        block, start = new_block(self.group.nbytes)
        addresses = [start + offset for offset in self.group.offsets]
        lot = (block, struct.pack(f"={len(addresses)}Q", *addresses), *addresses)
        if HAS_REFCOUNTS:
            if len(self.lots) == KEPT:
                self.lots.pop(0)
            self.lots.append(lot)
        return lot


def _references(lots: list[Lot]) -> int:
    """References to a block that nothing looks at, counted as in `Pool.take`: every array over it would be one more."""
    for lot in lots:
        return count(lot[0])
    return 0


FREE = _references([(Block((1,), "uint8"), b"", 0)])
