"""Batches of a data set, shuffled by a key, transformed by compiled code, and prepared ahead of their use by a thread."""

from __future__ import annotations

import numbers
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

import fgrad.numpy as fnp
from fgrad import jit, random
from fgrad.array import Array
from fgrad.errors import FgradTypeError, FgradValueError, describe, message, replayed, user_source
from fgrad_nn.data.transforms import check_transform, takes_key

T = TypeVar("T")


class DataLoader:
    """Iterating gives one epoch of ``(x, y)``, two fgrad arrays a batch.

    What an epoch gives depends on the arguments and on the epoch's number alone: its order and the keys of its
    transforms are folded out of ``key``. Every `iter` begins the next epoch; set ``loader.epoch`` to resume at
    another, or call ``loader.batches(n)``.

    Args:
        data: a data set with ``images`` and ``labels`` (`MNIST`, …), or a pair of arrays of one length.
        batch_size: examples in a batch; the last has fewer if the length is not a multiple.
        shuffle: another order each epoch (needs ``key``).
        key: the random key.
        drop_last: leave out a last batch of fewer examples.
        transform: a pure function of the images of a batch, compiled; one that takes a ``key`` gets another each batch.
        prefetch: how many batches a thread prepares ahead; 0 prepares each when it is asked for.

    Raises:
        FgradTypeError, FgradValueError: arguments that do not fit together. What goes wrong in the thread is raised by
            the iteration that waits for the batch.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        *,
        shuffle: bool = False,
        key: Array | None = None,
        drop_last: bool = False,
        transform: Callable[..., Any] | None = None,
        prefetch: int = 2,
    ):
        self.images, self.labels = _arrays(data)
        for name, value, least in (("batch_size", batch_size, 1), ("prefetch", prefetch, 0)):
            if not isinstance(value, numbers.Integral) or value < least:
                problem = f"{name}={value!r} is not an int of at least {least}"
                raise FgradValueError(message("DataLoader", problem, f"pass {name}={max(least, 2)}, for one"))
        if transform is not None:
            check_transform("DataLoader", transform)
        if key is not None and not (hasattr(key, "dtype") and hasattr(key, "shape")):
            problem = f"key={describe(key)} is not a random key"
            raise FgradTypeError(message("DataLoader", problem, "make one: fgrad.random.key(0)"))
        self._keyed = transform is not None and takes_key(transform)
        if key is None and (shuffle or self._keyed):
            what = "shuffle=True" if shuffle else f"the transform {describe(transform)}"
            raise FgradTypeError(
                message("DataLoader", f"{what} needs a random key", "give key=fgrad.random.key(0)")
            )
        self.batch_size, self.shuffle, self.key, self.drop_last = batch_size, shuffle, key, drop_last
        self.transform, self.prefetch = transform, prefetch
        self.epoch = 0
        self._program: Callable[..., Any] | None = None
        if transform is not None:
            # Deriving the batch's key is part of the program: eager operations would cost more than the batch.
            keyed = lambda images, key, i: transform(images, random.fold_in(key, i))
            self._program = jit(keyed if self._keyed else transform)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.batches(epoch)

    def batches(self, epoch: int) -> Iterator[tuple[Array, Array]]:
        """The batches of one epoch."""
        made = self._make(epoch)
        return ahead(made, self.prefetch) if self.prefetch else made

    def _make(self, epoch: int) -> Iterator[tuple[Array, Array]]:
        order, key = None, None
        if self.key is not None:
            order_key, key = random.split(random.fold_in(self.key, epoch))
            if self.shuffle:
                order = np.asarray(random.permutation(order_key, len(self.labels)))
        for i in range(len(self)):
            rows = slice(i * self.batch_size, (i + 1) * self.batch_size)
            index = rows if order is None else order[rows]
            # Copies, except of images that a program reads at once: arrays handed out must not change any more.
            y = fnp.asarray(np.array(self.labels[index]))
            if self._program is None:
                yield fnp.asarray(np.array(self.images[index])), y
                continue
            x = (
                self._program(self.images[index], key, i)
                if self._keyed
                else self._program(self.images[index])
            )
            if getattr(x, "shape", y.shape)[:1] != y.shape:
                problem = f"the transform made {describe(x)} of {len(y)} images"
                raise FgradValueError(message("DataLoader", problem, "give one result for each image"))
            yield x, y


def _arrays(data: Any) -> tuple[np.ndarray, np.ndarray]:
    pair = (data.images, data.labels) if hasattr(data, "images") and hasattr(data, "labels") else data
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        problem = f"{describe(data)} is neither a data set nor a pair of arrays"
        raise FgradTypeError(message("DataLoader", problem, "give MNIST(…), or (images, labels)"))
    images, labels = (np.asarray(part) for part in pair)
    if images.ndim == 0 or labels.ndim == 0 or len(images) != len(labels):
        problem = f"images {describe(images)} and labels {describe(labels)} differ in length"
        raise FgradValueError(message("DataLoader", problem, "give one label for each image"))
    return images, labels


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, made by a thread that works up to ``depth`` items ahead of their use.

    An exception in ``items`` is raised here, with its traceback, after the items made before it. The thread
    ends when the items do, and when this iterator is closed or collected.
    """
    permits: queue.SimpleQueue[bool] = (
        queue.SimpleQueue()
    )  # one for each item that may be made; False: no more
    ready: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    stopped = threading.Event()
    line = user_source()

    def work() -> None:
        replayed.began = line  # what errors in this thread name, where no line of the user's is nearer
        try:
            while permits.get() and not stopped.is_set():
                try:
                    item = next(items)
                except StopIteration:
                    break
                ready.put((True, item))
            ready.put((False, None))
        except BaseException as error:
            ready.put((False, error))

    thread = threading.Thread(target=work, name="fgrad DataLoader", daemon=True)
    for _ in range(depth):
        permits.put(True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                break
            permits.put(True)
            yield item
        if item is not None:
            raise item
    finally:
        stopped.set()
        permits.put(False)
        # A forgotten iterator may be collected in the very thread that it waits for.
        if thread is not threading.current_thread():
            thread.join()
