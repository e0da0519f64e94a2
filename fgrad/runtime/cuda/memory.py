"""Device memory: blocks that live as long as arrays refer to them and are used again afterwards.

Asking the driver for memory may wait for the device, so a released block is kept for the next request of its size class.
Work is queued in one order, so a block may be written again by what is queued later, even while earlier work that reads it
has not begun. Two kinds of blocks need more:

    ahead   written by uploads that run beside the queue. A mark in the queue, made when the block was released, says when the
            last work that uses it is done, and the next upload into it waits for that; what reads the upload waits for its end.
    lent    seen by other libraries, whose queues nobody here knows: used again once all of the device's work is done.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections import deque
from typing import Any

import numpy as np

from fgrad.errors import FgradError, message

_SMALLEST = 512


def size_class(nbytes: int) -> int:
    """What is taken for a request: the next of four sizes between powers of two, so that at most a quarter is lost."""
    if nbytes <= _SMALLEST:
        return _SMALLEST
    step = 1 << max(nbytes.bit_length() - 3, 9)
    return -(-nbytes // step) * step


class DeviceMemory:
    """`nbytes` bytes at `address`; given back to the pool when nothing refers to them any more."""

    __slots__ = ("__weakref__", "_copied", "_start", "address", "backend", "lent", "nbytes", "pool", "users")

    def __init__(self, pool: MemoryPool, address: int, nbytes: int, backend: Any):
        self.pool, self.address, self.nbytes, self.backend = pool, address, nbytes, backend
        self.users = 0  # arrays, and foreign views, which are never taken off
        self.lent = False  # whether another library may have queued work on the bytes

    def __del__(self) -> None:
        pool = getattr(self, "pool", None)
        if pool is not None:
            pool.take_back(self.address, self.nbytes, self.lent)


class AheadMemory(DeviceMemory):
    """Memory that an upload beside the queue is filling. Whoever asks for the address is about to queue work on it: that
    is when the queue is made to wait for the upload, and not before, or the work in between would wait too."""

    __slots__ = ()

    def __init__(self, pool: MemoryPool, address: int, nbytes: int, backend: Any):
        self.pool, self.nbytes, self.backend = pool, nbytes, backend
        self.users, self.lent = 0, False
        self._start, self._copied = address, None

    @property
    def address(self) -> int:  # type: ignore[override]
        mark = self._copied
        if mark is not None:
            self.pool.driver.follow(mark)
            self._copied = None  # last, as another thread may be here too
        return self._start

    def __del__(self) -> None:
        pool = getattr(self, "pool", None)
        if pool is not None:
            pool.take_back_ahead(self._start, self.nbytes, self.lent)


class MemoryPool:
    """Free blocks by size class, over a driver's `allocate` and `release`."""

    def __init__(self, driver: Any, backend: Any):
        self.driver, self.backend = driver, backend
        self.free: dict[int, list[int]] = {}
        self.free_ahead: dict[
            int, deque[tuple[int, Any]]
        ] = {}  # with the mark of the last work; released first, first
        self.lent: list[tuple[int, int]] = []  # addresses and sizes
        self.held = 0  # bytes asked of the driver
        self.used = 0  # bytes that arrays and programs have now
        self.peak = 0
        # Re-entrant: a garbage collection inside may release arrays. Never held while the driver is called.
        self.lock = threading.RLock()
        _pools.add(self)

    def allocate(self, nbytes: int) -> DeviceMemory:
        """At least `nbytes` bytes, for what is queued from now on.

        Raises:
            FgradError: the device has no room.
        """
        size = size_class(nbytes)
        address = self._found(size)
        if address is None and self.lent:
            self._take_lent()
            address = self._found(size)
        return DeviceMemory(self, self._ask(size) if address is None else address, size, self.backend)

    def upload_ahead(self, data: np.ndarray) -> AheadMemory:
        """Memory with a copy of contiguous `data`, which runs beside what is queued, and for which nobody waits here.

        Raises:
            FgradError: the device has no room.
        """
        size = size_class(data.nbytes)
        after = None
        with self.lock:
            found = self.free_ahead.get(size)
            address = None
            if found:
                address, after = found.popleft()
                self._count(size)
        memory = AheadMemory(self, self._ask(size) if address is None else address, size, self.backend)
        memory._copied = self.driver.upload_ahead(memory._start, data, after)
        return memory

    def _found(self, size: int) -> int | None:
        with self.lock:
            found = self.free.get(size)
            if not found:
                return None
            self._count(size)
            return found.pop()

    def _count(self, size: int) -> None:
        self.used += size
        self.peak = max(self.peak, self.used)

    def _ask(self, size: int) -> int:
        """A block from the driver; if there is none, after giving back what is free, and then what only garbage still holds."""
        address = self.driver.allocate(size)
        for collect in (False, True):
            if address is None:
                if collect:
                    gc.collect()
                self.empty()
                address = self.driver.allocate(size)
        if address is None:
            text = f"the device has no room for {size:,} bytes more; arrays and programs have {self.used:,}"
            raise FgradError(message("cuda", text, "use smaller batches, donate arguments, or drop arrays"))
        with self.lock:
            self.held += size
            self._count(size)
        return address

    def _take_lent(self) -> None:
        """Make blocks that others have let go free again, after all that they may have queued."""
        with self.lock:
            lent, self.lent = self.lent, []
        self.driver.settle()
        with self.lock:
            for address, size in lent:
                self.free.setdefault(size, []).append(address)

    # These are called by the garbage collector: anywhere, and in any thread.

    def take_back(self, address: int, size: int, lent: bool = False) -> None:
        with self.lock:
            self.used -= size
            if lent:
                self.lent.append((address, size))
            else:
                self.free.setdefault(size, []).append(address)

    def take_back_ahead(self, address: int, size: int, lent: bool = False) -> None:
        if lent:
            return self.take_back(address, size, True)
        try:
            mark = self.driver.mark()
        except FgradError:  # the process ends, or the GPU is lost to it: nothing will be allocated any more
            return
        with self.lock:
            self.used -= size
            self.free_ahead.setdefault(size, deque()).append((address, mark))

    def empty(self) -> None:
        """Give free blocks back to the driver, after the work that may use them."""
        with self.lock:
            free, self.free = self.free, {}
            ahead, self.free_ahead = self.free_ahead, {}
            lent, self.lent = self.lent, []
        if lent:
            self.driver.settle()
        blocks = [(address, size) for size, addresses in free.items() for address in addresses]
        blocks += [(address, size) for size, marked in ahead.items() for address, _ in marked]
        for address, size in blocks + lent:
            self.driver.release(address)
            with self.lock:
                self.held -= size


_pools: weakref.WeakSet[MemoryPool] = weakref.WeakSet()


def _in_child() -> None:
    """A forked child has no device, but arrays that end; a thread that it does not have may hold the lock."""
    for pool in list(_pools):
        pool.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
