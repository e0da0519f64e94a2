"""An iterator whose items a thread makes ahead of their use, and which leaves no thread behind."""

from __future__ import annotations

import atexit
import queue
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from fgrad.errors import FgradError, Source, message, replayed, user_source

T = TypeVar("T")


class Batches(Iterator[T], Generic[T]):
    """The items of an iterator, up to `depth` of them made ahead by a thread (0: each when it is asked for, no thread).

    The order is that of `items`. What goes wrong in the thread is raised here, as it was and with its traceback, after the
    items made before it. The thread starts with the first item and ends with the last, by `close`, at the end of a `with`
    block, or when this iterator is collected, so that breaking out of a loop is enough.
    """

    _worker: _Worker | None = None

    def __init__(self, items: Iterator[T], depth: int = 0, length: int | None = None):
        self._items: Iterator[T] | None = items
        self._depth, self._length = depth, length

    def __len__(self) -> int:
        """How many items there are from first to last."""
        if self._length is None:
            raise TypeError("the number of these items is not known")
        return self._length

    def __iter__(self) -> Batches[T]:
        return self

    def __next__(self) -> T:
        if self._items is None:
            raise StopIteration
        if not self._depth:
            return next(self._items)
        if self._worker is None:
            self._worker = _Worker(self._items, self._depth, user_source())
            _open.add(self)
        more, item = self._worker.take()
        if more:
            return item
        self.close()
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        """Make no more items, and wait for the thread to end."""
        self._items = None
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def __enter__(self) -> Batches[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _Worker:
    """The thread and what it shares with the iterator, which it must not hold itself: it would never be collected."""

    def __init__(self, items: Iterator[Any], depth: int, line: Source | None):
        self.items, self.line = items, line
        self.stopped = False
        self.permits: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each item that may be made
        self.ready: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        for _ in range(depth):
            self.permits.put(None)
        self.thread = threading.Thread(target=self.run, name="fgrad DataLoader", daemon=True)
        self.thread.start()

    def run(self) -> None:
        replayed.began = self.line  # what errors in this thread name, where no line of the user's is nearer
        try:
            while True:
                self.permits.get()
                if self.stopped:
                    return
                try:
                    item = next(self.items)
                except StopIteration:
                    return self.ready.put((False, None))
                self.ready.put((True, item))
                del item  # or the last one lives as long as the thread waits
        except BaseException as error:
            self.ready.put((False, error))

    def take(self) -> tuple[bool, Any]:
        """(True, the next item), or (False, what ended the thread)."""
        if not self.thread.is_alive() and self.ready.empty():
            fix = "begin an iteration in the process that uses it"
            raise FgradError(
                message("DataLoader", "the thread stayed behind when this process was forked", fix)
            )
        found = self.ready.get()
        if found[0]:
            self.permits.put(None)
        return found

    def stop(self) -> None:
        self.stopped = True
        self.permits.put(None)
        # A forgotten iterator may be collected in the very thread that it waits for; and while Python shuts down, no
        # other thread gets on.
        if self.thread is not threading.current_thread() and not sys.is_finalizing():
            self.thread.join()


_open: weakref.WeakSet[Batches[Any]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before Python takes down what a thread may be using."""
    for batches in list(_open):
        batches.close()
