"""A program as one CUDA graph, replayed at each call.

A graph holds addresses. Those of donated parameters are the same at each call; a batch comes from one of a few blocks in turn, and so
does a loss that is dropped before the next but one. A few graphs are kept, one for each set of addresses met twice. A loss that
somebody keeps is elsewhere each time: what still changes when the graphs are too many gets a *home*, memory of the program's own
that the graph reads or writes instead, and is copied there before a replay, or from there after it:

    calls 1 to 4    launch by launch, for each set of addresses that is new; the second time with a set, captured, and replayed
    a fifth set     what differs among the sets gets a home; captured
    from then on    copy x -> home of x;  replay;  copy home of loss -> loss
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fgrad.codegen.program import Program
from fgrad.runtime.cuda.driver import Driver
from fgrad.runtime.cuda.memory import DeviceMemory, MemoryPool

MOST_GRAPHS = 4
MOST_HOMES = 1 << 30  # bytes; a program whose large arguments keep moving is launched kernel by kernel

Addresses = tuple[int, ...]


class Replay:
    """`run(addresses)` queues the program; `table` is where `act`, which queues it launch by launch, finds its addresses."""

    def __init__(
        self, program: Program, table: list[int], driver: Driver, pool: MemoryPool, act: Callable[[], None]
    ):
        self.driver, self.pool, self.table, self.act = driver, pool, table, act
        self.inputs = len(program.inputs)
        self.sizes = [b.nbytes for b in (*program.inputs, *program.outputs)]
        # Slots that are the same memory: an output and the donated input that it overwrites.
        self.twin = {self.inputs + j: i for j, i in program.placed.items()}
        self.twin |= {i: o for o, i in self.twin.items()}
        self.homes: dict[int, DeviceMemory] = {}
        self.graphs: dict[
            Addresses, Any
        ] = {}  # by the addresses in place of which there is no home; None: met once
        self.captures = self.replays = 0
        self.possible = True

    def run(self, addresses: Addresses) -> None:
        key = self._own(addresses)
        if key not in self.graphs:
            if not self.possible or len(self.graphs) < MOST_GRAPHS:
                if self.possible:
                    self.graphs[key] = None
                self.table[: len(addresses)] = addresses
                self.act()
                return
            if not self._housed([*self.graphs, key]):
                return self.run(addresses)
            key = self._own(addresses)
        graph = self.graphs.get(key)
        if graph is None:
            graph = self.graphs[key] = self._captured(addresses)
        for slot, home in self.homes.items():
            if slot < self.inputs:
                self.driver.copy(home.address, addresses[slot], self.sizes[slot])
        self.driver.replay(graph)
        self.replays += 1
        for slot, home in self.homes.items():
            if slot >= self.inputs:
                self.driver.copy(addresses[slot], home.address, self.sizes[slot])
        return None

    def _own(self, addresses: Addresses) -> Addresses:
        """Addresses that a graph holds; 0 where there is a home."""
        if not self.homes:
            return addresses
        return tuple(0 if slot in self.homes else a for slot, a in enumerate(addresses))

    def _housed(self, met: Sequence[Addresses]) -> bool:
        """Give a home to what differs; False if that would take too much memory."""
        moved = {slot for slot, found in enumerate(zip(*met)) if len(set(found)) > 1}
        moved |= {self.twin[s] for s in moved if s in self.twin}
        owners = [s for s in moved if self.twin.get(s, s) >= s]  # of twins, the input
        self.graphs.clear()
        held = sum(h.nbytes for s, h in self.homes.items() if self.twin.get(s, s) >= s)
        if held + sum(self.sizes[s] for s in owners) > MOST_HOMES:
            self.possible = False
            self.homes.clear()
            return False
        for slot in owners:
            self.homes[slot] = self.pool.allocate(max(self.sizes[slot], 1))
            if slot in self.twin:
                self.homes[self.twin[slot]] = self.homes[slot]
        return True

    def _captured(self, addresses: Addresses) -> Any:
        for slot, address in enumerate(addresses):
            home = self.homes.get(slot)
            self.table[slot] = address if home is None else home.address
        self.driver.begin_capture()
        try:
            self.act()
        except BaseException:
            self.driver.end_capture()  # what it holds is not the whole program
            raise
        graph = self.driver.end_capture()
        self.captures += 1
        return graph
