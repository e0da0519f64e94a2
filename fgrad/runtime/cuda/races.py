"""Finds races in simulated kernels: two threads that touch one element with no barrier between, one of them to write it.

In Numba's simulator threads mostly run one after another, so a missing barrier shows as nothing there, and as wrong results now
and then on hardware. With FGRAD_CUDASIM_RACES=1 every access to shared and global memory is noted with the thread and the number
of barriers that its block has passed:

    same block       a barrier between the two accesses puts them in order; shuffles do not
    other blocks     nothing does, within a launch

Threads that write the same value to an element do not race. An array named `status` is left out: whose check failed first does not matter.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

Access = tuple[Any, int, int]  # block, barriers passed, thread


class Race(RuntimeError):
    """Two threads touch one element without a barrier between."""


def wanted() -> bool:
    return os.environ.get("FGRAD_CUDASIM_RACES", "0") not in ("", "0")


def _here() -> Access:
    thread: Any = threading.current_thread()
    block = thread.blockIdx
    return (block.x, block.y, block.z), thread._manager.barrier.passed, thread.thread_id


def _ordered(before: Access, now: Access) -> bool:
    if before[0] != now[0]:
        return False
    return before[2] == now[2] or before[1] < now[1]


class Log:
    """The accesses of one launch, by element."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.written: dict[Any, tuple[Access, Any]] = {}
        self.read: dict[Any, list[Access]] = {}

    def note_read(self, where: Any, name: str, i: Any) -> None:
        now = _here()
        with self.lock:
            before = self.written.get(where)
            if before is not None and not _ordered(before[0], now):
                raise Race(
                    f"{name}[{i}] is read by thread {now} after {before[0]} wrote it, with no barrier between"
                )
            readers = self.read.setdefault(where, [])
            if now not in readers:
                readers.append(now)

    def note_write(self, where: Any, name: str, i: Any, value: Any) -> None:
        now = _here()
        with self.lock:
            before = self.written.get(where)
            if before is not None and not _ordered(before[0], now) and not _same(before[1], value):
                raise Race(
                    f"{name}[{i}] is written by thread {now} and by {before[0]}, with no barrier between"
                )
            for reader in self.read.get(where, ()):
                if not _ordered(reader, now):
                    raise Race(
                        f"{name}[{i}] is written by thread {now} after {reader} read it, with no barrier between"
                    )
            self.read.pop(where, None)
            self.written[where] = now, value


def _same(a: Any, b: Any) -> bool:
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


class SharedWatch:
    """A shared array whose accesses are noted."""

    def __init__(self, array: np.ndarray, log: Log, line: Any):
        self.array, self.log, self.line = array, log, line

    def __getitem__(self, i: Any) -> Any:
        self.log.note_read((self.line, _here()[0], int(i)), "a shared array", i)
        return self.array[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        self.array[i] = value
        self.log.note_write((self.line, _here()[0], int(i)), "a shared array", i, self.array[i])

    def __len__(self) -> int:
        return len(self.array)
