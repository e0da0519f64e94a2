"""Changes to whole batches of images, made to be compiled.

A transform is a frozen description; calling it is a pure function of a batch ``(N, C, H, W)`` and, for the random ones, of a
key. `DataLoader` compiles whatever it is given (a `Compose` of these, or a function of one's own) into one program, so that
a batch is read once as bytes and written once as what the network takes.

>>> augment = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), ToFloat(), Normalize(0.5, 0.5)])
>>> augment(images, key)
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import fgrad.numpy as fnp
from fgrad import random
from fgrad.array import Array
from fgrad.dtypes import canonical
from fgrad.errors import FgradTypeError, FgradValueError, describe, message


@dataclass(frozen=True)
class Compose:
    """Transforms one after the other; each random one gets a key of its own."""

    transforms: Sequence[Callable[..., Any]]

    def __post_init__(self) -> None:
        if not isinstance(self.transforms, Sequence):
            problem = f"{describe(self.transforms)} is not a list of transforms"
            raise FgradTypeError(message("Compose", problem, "write Compose([ToFloat(), …])"))
        object.__setattr__(self, "transforms", tuple(self.transforms))
        for transform in self.transforms:
            check_transform("Compose", transform)

    @property
    def takes_key(self) -> bool:
        return any(map(takes_key, self.transforms))

    def __call__(self, images: Any, key: Array | None = None) -> Any:
        for i, transform in enumerate(self.transforms):
            if takes_key(transform):
                # By position, so that adding a transform at the end changes nothing for those before it.
                images = transform(images, None if key is None else random.fold_in(key, i))
            else:
                images = transform(images)
        return images


def check_transform(call: str, transform: Any) -> None:
    """An instance, or a function."""
    if not callable(transform):
        problem = f"{describe(transform)} is not a transform"
        raise FgradTypeError(
            message(call, problem, "give a function of the images, or ToFloat() and its like")
        )
    if isinstance(transform, type):
        problem = f"{transform.__name__} is a class"
        raise FgradTypeError(message(call, problem, f"give an instance of it: {transform.__name__}(…)"))


def takes_key(transform: Callable[..., Any]) -> bool:
    """Whether a transform draws random numbers: it says so itself, or has a parameter named ``key``."""
    said = getattr(transform, "takes_key", None)
    return "key" in inspect.signature(transform).parameters if said is None else bool(said)


@dataclass(frozen=True)
class ToFloat:
    """Integers scaled from 0 … their largest value to 0 … 1 (uint8: divided by 255); floats only change dtype."""

    dtype: Any = "float32"

    def __post_init__(self) -> None:
        if canonical(self.dtype).kind not in "fV":  # V: bfloat16
            raise FgradTypeError(message("ToFloat", f"dtype={self.dtype!r}", "give a floating point dtype"))

    def __call__(self, images: Any) -> Array:
        x, dtype = _batch("ToFloat", images), canonical(self.dtype)
        if x.dtype.kind not in "ui":
            return x.astype(dtype)
        # A product takes a tenth of a quotient's time and is off by an ulp at most; 0 and 1 come out exactly.
        return x.astype(dtype) * fnp.asarray(1 / fnp.iinfo(x.dtype).max, dtype)


@dataclass(frozen=True)
class Normalize:
    """``(x - mean) / std`` with one mean and one std for all channels, or one for each."""

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            try:
                value = tuple(map(float, value)) if np.ndim(value) else float(value)
            except (TypeError, ValueError) as e:
                problem = f"{name}={describe(value)}"
                raise FgradTypeError(message("Normalize", problem, "give a number, or one a channel")) from e
            object.__setattr__(self, name, value)
        if isinstance(self.mean, tuple) and isinstance(self.std, tuple) and len(self.mean) != len(self.std):
            problem = f"{len(self.mean)} numbers in mean and {len(self.std)} in std"
            raise FgradValueError(message("Normalize", problem, "give one for each channel"))
        if 0.0 in (self.std if isinstance(self.std, tuple) else (self.std,)):
            problem = f"std {self.std} would divide by zero"
            raise FgradValueError(message("Normalize", problem, "give 1.0 for a channel that is constant"))

    def __call__(self, images: Any) -> Array:
        x = _batch("Normalize", images)
        if x.dtype.kind not in "fV":  # V: bfloat16
            raise FgradTypeError(
                message("Normalize", f"{x.type} is not floating point", "put ToFloat() before it")
            )
        mean, scale = (
            self._for_channels("mean", self.mean, x),
            self._for_channels("std", 1 / np.asarray(self.std), x),
        )
        return (x - mean) * scale

    def _for_channels(self, name: str, value: Any, x: Array) -> Any:
        if not np.ndim(value):
            return float(value)
        if x.ndim < 3 or len(value) != x.shape[-3]:
            problem = f"{len(value)} numbers in {name} for images of shape {x.shape}"
            raise FgradValueError(
                message("Normalize", problem, "give one for each channel (the third axis from the end)")
            )
        return fnp.asarray(value, x.dtype).reshape(-1, 1, 1)


@dataclass(frozen=True)
class RandomCrop:
    """A window of ``size`` (one number, or height and width) at a place drawn for each image.

    The images are first enlarged by ``padding`` pixels on all four sides: of value ``fill``, or with
    ``mode="reflect"`` mirrored at the outermost pixels (which are not repeated), as by `numpy.pad`.
    """

    size: int | tuple[int, int]
    padding: int = 0
    fill: float = 0
    mode: str = "constant"

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, (tuple, list)) else (self.size, self.size)
        if len(sides) != 2 or not all(isinstance(n, numbers.Integral) and n > 0 for n in sides):
            problem = f"size={self.size!r}"
            raise FgradValueError(message("RandomCrop", problem, "give a positive int, or (height, width)"))
        if not isinstance(self.padding, numbers.Integral) or self.padding < 0:
            problem = f"padding={self.padding!r}"
            raise FgradValueError(
                message("RandomCrop", problem, "give an int of at least 0, for all four sides")
            )
        if self.mode not in ("constant", "reflect"):
            raise FgradValueError(
                message("RandomCrop", f"mode={self.mode!r}", "give 'constant' or 'reflect'")
            )

    def __call__(self, images: Any, key: Array | None = None) -> Array:
        x, key = _batch("RandomCrop", images, axes=4), _key("RandomCrop", key)
        n, _, *whole = x.shape
        size = tuple(self.size) if isinstance(self.size, (tuple, list)) else (self.size, self.size)
        pad = int(self.padding)
        room = [full + 2 * pad - part for full, part in zip(whole, size, strict=True)]
        if min(room) < 0:
            problem = f"a window of {size} does not fit images of {tuple(whole)} with padding {pad}"
            raise FgradValueError(message("RandomCrop", problem, "take a smaller size, or more padding"))
        if self.mode == "reflect" and pad >= min(whole):
            problem = f"images of {tuple(whole)} cannot be mirrored {pad} pixels wide"
            raise FgradValueError(message("RandomCrop", problem, f"take a padding below {min(whole)}"))
        index = []
        for k, r, part in zip(random.split(key), room, size, strict=True):
            start = fnp.broadcast_to(random.randint(k, (n, 1), 0, r + 1).astype("int64"), (n, part))
            # Limited to what it is within anyway, so that the compiler knows: no index needs a check.
            index.append(start.clip(0, r) + fnp.arange(part))
        if self.mode == "reflect":
            rows, columns = (_reflected(i - pad, length) for i, length in zip(index, whole, strict=True))
            return _pixels(x, rows, columns)
        # Nothing is copied: compiled, a padded array is a condition on the index.
        sides = ((0, 0), (0, 0), (pad, pad), (pad, pad))
        padded = fnp.pad(x, sides, constant_values=self.fill) if pad else x
        return _pixels(padded, *index)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Each image mirrored left to right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            problem = f"p={self.p} is not a probability"
            raise FgradValueError(message("RandomHorizontalFlip", problem, "give a number from 0 to 1"))

    def __call__(self, images: Any, key: Array | None = None) -> Array:
        x, key = _batch("RandomHorizontalFlip", images, axes=4), _key("RandomHorizontalFlip", key)
        mirrored = random.bernoulli(key, self.p, (x.shape[0], 1))
        rows, columns = (fnp.arange(length)[None] for length in x.shape[2:])
        # One read at a chosen place, not a choice of two images: what comes before this is then computed once.
        return _pixels(x, rows, fnp.where(mirrored, x.shape[3] - 1 - columns, columns))


def _pixels(x: Array, rows: Array, columns: Array) -> Array:
    """``out[n, c, i, j] = x[n, c, rows[n, i], columns[n, j]]``; the indices of all images may be one row."""
    n, channels, _, _ = x.shape
    image, channel = fnp.arange(n)[:, None, None, None], fnp.arange(channels)[None, :, None, None]
    return x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _reflected(index: Array, length: int) -> Array:
    """Positions up to ``length - 1`` before the first and after the last, mirrored at those."""
    index = fnp.where(index < 0, -index, index)
    return fnp.where(index < length, index, 2 * (length - 1) - index).clip(0, length - 1)


def _batch(call: str, images: Any, axes: int | None = None) -> Array:
    x = fnp.asarray(images)
    if axes is not None and x.ndim != axes:
        problem = f"takes a batch of images (N, C, H, W), got {x.type}"
        fix = "add the batch axis with images[None]" if x.ndim == axes - 1 else ""
        raise FgradTypeError(message(call, problem, fix))
    return x


def _key(call: str, key: Array | None) -> Array:
    if key is None:
        fix = "call transform(images, key), or give key= to the DataLoader"
        raise FgradTypeError(message(call, "draws random numbers and got no key", fix))
    return key
