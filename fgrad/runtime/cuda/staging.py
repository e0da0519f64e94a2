"""Page-locked memory on the way to the device: the caller's numbers are copied here, and fetched from here in their turn.

The device reads memory that the system cannot move by itself, so whoever uploads goes on at once and may change his
numbers. The memory is a ring of segments. One is written again only when the device has fetched all that was in it, which an
event behind its last copy tells; data larger than the ring go through it piece by piece.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

_ALIGN = 16


class Staging:
    """A ring of `segments` times `size` bytes before one stream of a driver (`NvidiaDriver`). Taken with the first upload."""

    def __init__(self, driver: Any, stream: Any, segments: int, size: int):
        assert size % _ALIGN == 0 and segments > 1
        self.driver, self.stream, self.segments, self.size = driver, stream, segments, size
        self.base = 0
        self.segment = self.at = 0  # where the next byte goes
        self.marks: list[Any] = [None] * segments  # reached when the device has fetched what was in a segment
        self.lock = threading.RLock()

    def send(self, address: int, source: int, nbytes: int) -> None:
        """Queue copying `nbytes` bytes from `source` in the host's memory to `address` on the device. They have been read when
        this returns, which waits only while all of the ring is on its way."""
        driver = self.driver
        with self.lock:
            if not self.base:
                self.base = int(driver.ask(driver.api.cuMemHostAlloc(self.segments * self.size, 0)))
            while nbytes:
                if self.at == self.size:
                    self._next()
                count = min(nbytes, self.size - self.at)
                staged = self.base + self.segment * self.size + self.at
                ctypes.memmove(staged, source, count)  # lets other threads of Python go on meanwhile
                self.at += -(-count // _ALIGN) * _ALIGN
                driver.ask(driver.api.cuMemcpyHtoDAsync(address, staged, count, self.stream))
                address, source, nbytes = address + count, source + count, nbytes - count

    def _next(self) -> None:
        """Leave a full segment for the next one, once that has been fetched."""
        self.marks[self.segment] = self.driver.mark_in(self.stream)
        self.segment, self.at = (self.segment + 1) % self.segments, 0
        mark = self.marks[self.segment]
        if mark is not None:
            self.driver.reach(mark)
            self.marks[self.segment] = None
