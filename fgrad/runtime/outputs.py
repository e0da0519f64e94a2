"""Where a compiled program writes its results: blocks that are used again once no array looks at them any more.

A call takes one block for each group of outputs. Small outputs share blocks, so that a call with forty results takes two or
three; but an output keeps alive at most sixteen times its own bytes (a loss kept from every step does not keep the step's
other results), and a large one has a block of its own. Results that are dropped are then written to warm memory instead of
fresh pages, which for a large output cost more than computing it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from fgrad.codegen.program import Buf
from fgrad.memory import ALIGN, HAS_REFCOUNTS, Block, new_block

KEPT = 3  # blocks kept for a group: the last results, those before them still in use, and one spare
_MOST_SHARED = 1 << 16  # bytes of a block that several outputs share
_MOST_TIMES = 16  # how many times its own bytes an output may keep alive

Lot = tuple[Any, ...]  # a block, then the address in it of each member of the group
count = sys.getrefcount


class Group(NamedTuple):
    """Outputs that share a block: their numbers, and where each begins."""

    members: tuple[int, ...]
    offsets: tuple[int, ...]
    nbytes: int


def group_outputs(outputs: Sequence[Buf], placed: Sequence[int]) -> list[Group]:
    """Divide the outputs that are not placed on donated inputs into groups of similar size."""
    sizes = {j: max(-(-b.nbytes // ALIGN), 1) * ALIGN for j, b in enumerate(outputs) if j not in set(placed)}
    groups: list[Group] = []
    members: list[int] = []
    offsets: list[int] = []
    total = 0
    for j in sorted(sizes, key=lambda j: sizes[j]):
        if members and total + sizes[j] > min(_MOST_TIMES * sizes[members[0]], _MOST_SHARED):
            groups.append(Group(tuple(members), tuple(offsets), total))
            members, offsets, total = [], [], 0
        members.append(j)
        offsets.append(total)
        total += sizes[j]
    if members:
        groups.append(Group(tuple(members), tuple(offsets), total))
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
        lot = (block, *[start + offset for offset in self.group.offsets])
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


FREE = _references([(Block((1,), "uint8"), 0)])
