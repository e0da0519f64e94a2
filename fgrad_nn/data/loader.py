"""Batches of a data set: shuffled by a key, gathered and transformed by one compiled program, prepared ahead if that helps.

A data set that lies in memory as two arrays is read by the compiled program itself, at the indices of the batch:

    x = jit(lambda images, index, key, i: transform(images[index], fold_in(key, i)))

so that a batch costs one pass over its pixels and no Python for each example.

With ``device="cuda"`` batches are prepared on the CPU all the same, and the data set stays there. A finished batch is put on the GPU
by `fgrad.device_put`, which nobody waits for: the copy runs beside the steps that are queued.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import fgrad.numpy as fnp
from fgrad import default_device, device_put, get_num_threads, jit, random, tree
from fgrad.array import Array
from fgrad.errors import FgradTypeError, FgradValueError, describe, message
from fgrad_nn.data.prefetch import Batches
from fgrad_nn.data.transforms import check_transform, takes_key

LARGE = 1 << 17  # elements of a batch, whose preparation takes as long as waking a thread


class DataLoader:
    """Iterating gives one epoch of batches: ``(x, y)``, two fgrad arrays, of a data set that is two arrays.

    What an epoch gives depends on the arguments and on the epoch's number alone: its order and the keys of its
    transforms are folded out of ``key``. Every `iter` begins the next epoch; set ``loader.epoch`` to resume at
    another, or call ``loader.batches(n)``. The iterators are `Batches`: they have a length, and ``close`` (or a ``with``
    block) ends one before its last batch, as does breaking out of the loop.

    Args:
        data: a data set with ``images`` and ``labels`` (`MNIST`, …); a pair of arrays of one length; or, more slowly,
            anything with ``len(data)`` and ``data[i]`` for one example, a pytree of arrays and numbers such as ``(x, y)``.
        batch_size: examples in a batch; the last has fewer if the length is not a multiple.
        shuffle: another order each epoch (needs ``key``).
        key: the random key.
        drop_last: leave out a last batch of fewer examples.
        transform: a pure function of the images of a batch (of ``x``, where examples are tuples ``(x, …)``), compiled; one
            that takes a ``key`` gets another each batch.
        collate: makes a batch of a list of examples ``data[i]``; by default their leaves are stacked. It is Python, called
            once a batch.
        prefetch: how many batches a thread prepares ahead; 0 prepares each when it is asked for. By default 2 where the
            examples are Python's work; of arrays 1 for large batches and 0 for small ones, which compiled code prepares
            faster than a thread can hand them over. Give it where the arrays are a file (`numpy.memmap`). On a GPU always 2:
            the thread prepares and sends while the program queues steps.
        device: where batches are: the CPU, or "cuda". Transforms and ``collate`` run on the CPU in either case.

    Raises:
        FgradTypeError, FgradValueError: arguments that do not fit together. What goes wrong in the thread is raised by
            the iteration that waits for the batch.
        ImportError, FgradError: computing on ``device`` needs what is not there.
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
        collate: Callable[[list[Any]], Any] | None = None,
        prefetch: int | None = None,
        device: str | None = None,
    ):
        if device is not None:
            device_put((), device)  # what is missing is better said here than by the first batch
        self.device = device
        if collate is not None and not callable(collate):
            problem = f"collate={describe(collate)}"
            raise FgradTypeError(message("DataLoader", problem, "give a function of a list of examples"))
        self._arrays = _arrays(data) if collate is None else None
        if self._arrays is None and not _has_examples(data):
            problem = f"{describe(data)} is neither a data set nor a pair of arrays"
            raise FgradTypeError(message("DataLoader", problem, "give MNIST(…), or (images, labels)"))
        if prefetch is None:
            many = self._arrays is None or device not in (None, "cpu")
            prefetch = 2 if many else _worth_a_thread(self._arrays[0], batch_size)  # type: ignore[index]
        for name, value, least in (("batch_size", batch_size, 1), ("prefetch", prefetch, 0)):
            if not isinstance(value, numbers.Integral) or value < least:
                problem = f"{name}={value!r} is not an int of at least {least}"
                raise FgradValueError(message("DataLoader", problem, f"pass {name}={max(least, 2)}, for one"))
        if transform is not None:
            check_transform("DataLoader", transform)
        if key is not None and not (hasattr(key, "dtype") and hasattr(key, "shape")):
            problem = f"key={describe(key)} is not a random key"
            raise FgradTypeError(message("DataLoader", problem, "make one: fgrad.random.key(0)"))
        if isinstance(key, Array) and getattr(key, "device", "cpu") != "cpu":
            problem = f"the random key is on {key.device}, and batches are prepared on the CPU"
            raise FgradTypeError(message("DataLoader", problem, "pass key=fgrad.device_get(key)"))
        self._keyed = transform is not None and takes_key(transform)
        if key is None and (shuffle or self._keyed):
            what = "shuffle=True" if shuffle else f"the transform {describe(transform)}"
            raise FgradTypeError(
                message("DataLoader", f"{what} needs a random key", "give key=fgrad.random.key(0)")
            )
        self.data, self.batch_size, self.shuffle, self.key = data, int(batch_size), shuffle, key
        self.drop_last, self.transform, self.prefetch = drop_last, transform, int(prefetch)
        self.collate = collate or stacked
        self.epoch = 0
        self._count = len(self._arrays[1]) if self._arrays else len(data)
        self._programs = self._compiled() if transform is not None else None

    def _compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The transform of a batch, and of the rows of a whole array; a keyed one also takes the epoch's key and a number."""
        transform: Any = self.transform

        def prepare(x: Array, *seed: Any) -> Any:
            # Deriving the batch's key is part of the program: eager operations would cost more than the batch.
            return transform(x, random.fold_in(*seed)) if seed else transform(x)

        return jit(prepare), jit(lambda x, index, *seed: prepare(x[index], *seed))

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(self._count, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Batches[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.batches(epoch)

    def batches(self, epoch: int) -> Batches[Any]:
        """The batches of one epoch."""
        return Batches(self._make(epoch), self.prefetch, len(self))

    def order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch's examples, int64 of the length of the data set, in the order in which they come."""
        if not self.shuffle:
            return np.arange(self._count)
        return np.asarray(random.permutation(self._keys(epoch)[0], self._count))

    def _keys(self, epoch: int) -> tuple[Any, Any]:
        """The key of the order and that of the transforms."""
        if self.key is None:
            return None, None
        order, transforms = random.split(random.fold_in(self.key, epoch))
        return order, transforms

    def _make(self, epoch: int) -> Iterator[Any]:
        with default_device("cpu"):
            order, key = self.order(epoch) if self.shuffle else None, self._keys(epoch)[1]
        make = self._of_examples if self._arrays is None else self._of_arrays
        for i in range(len(self)):
            rows = slice(i * self.batch_size, min((i + 1) * self.batch_size, self._count))
            # (No variable holds what is handed over: it could not be donated, nor its memory be used for the batch after.)
            yield self._placed(make, rows if order is None else order[rows], (key, i) if self._keyed else ())

    def _placed(self, make: Callable[..., Any], index: Any, seed: tuple[Any, ...]) -> Any:
        with default_device("cpu"):  # whatever the program around computes on
            batch = make(index, seed)
        return batch if self.device is None else device_put(batch, self.device)

    def _of_arrays(self, index: Any, seed: tuple[Any, ...]) -> tuple[Array, Array]:
        assert self._arrays is not None
        images, labels, whole = self._arrays
        # Copies, except of images that a program reads at once: arrays handed out must not change any more.
        y = fnp.asarray(np.array(labels[index]))
        if self._programs is None:
            return fnp.asarray(np.array(images[index])), y
        if whole is not None and not isinstance(index, slice):
            x = self._programs[1](whole, index, *seed)
        else:
            x = self._programs[0](images[index], *seed)
        return _checked(x, len(y)), y

    def _of_examples(self, index: Any, seed: tuple[Any, ...]) -> Any:
        rows = range(index.start, index.stop) if isinstance(index, slice) else index.tolist()
        batch = self.collate([self.data[row] for row in rows])
        if self._programs is None:
            return batch
        if isinstance(batch, tuple) and batch:
            return (_checked(self._programs[0](batch[0], *seed), len(rows)), *batch[1:])
        return _checked(self._programs[0](batch, *seed), len(rows))


def stacked(examples: Sequence[Any]) -> Any:
    """Examples as one batch: the leaves that belong together, stacked along a new first axis.

    Raises:
        FgradValueError: the examples differ in structure or in the shapes of their leaves.
    """

    def stack(*leaves: Any) -> Array:
        return fnp.asarray(np.stack(leaves) if hasattr(leaves[0], "shape") else list(leaves))

    try:
        return tree.map(stack, *examples)
    except ValueError as error:
        problem = f"the examples do not fit together: {error}"
        raise FgradValueError(
            message("DataLoader", problem, "give collate=, which makes them a batch")
        ) from error


def _checked(x: Any, length: int) -> Any:
    if getattr(x, "shape", (length,))[:1] != (length,):
        problem = f"the transform made {describe(x)} of {length} images"
        raise FgradValueError(message("DataLoader", problem, "give one result for each image"))
    return x


def _worth_a_thread(images: np.ndarray, batch_size: Any) -> int:
    """How many batches to prepare ahead. (Of one, no more than three exist at any time: as many as a program recycles.)"""
    elements = (
        int(batch_size) * math.prod(images.shape[1:]) if isinstance(batch_size, numbers.Integral) else 0
    )
    return 1 if elements >= LARGE and get_num_threads() > 1 else 0


def _has_examples(data: Any) -> bool:
    other = isinstance(data, (str, bytes, dict)) or hasattr(data, "dtype")
    return hasattr(data, "__len__") and hasattr(data, "__getitem__") and not other


def _arrays(data: Any) -> tuple[np.ndarray, np.ndarray, Array | None] | None:
    """Images, labels, and the images as a compiled program can read them, if it can; None if `data` is no two arrays."""
    pair = (data.images, data.labels) if hasattr(data, "images") and hasattr(data, "labels") else data
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        return None
    images, labels = (np.asarray(part) for part in pair)
    if images.ndim == 0 or labels.ndim == 0 or len(images) != len(labels):
        problem = f"images {describe(images)} and labels {describe(labels)} differ in length"
        raise FgradValueError(message("DataLoader", problem, "give one label for each image"))
    readable = images.flags.c_contiguous and images.flags.aligned and images.dtype.isnative
    return images, labels, fnp.asarray(images) if readable and images.dtype.kind in "biuf" else None
