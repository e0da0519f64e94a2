"""Pooling: windows of an image made one number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import fgrad.numpy as fnp
from fgrad import Array, lax
from fgrad.errors import FgradDeviceError, FgradError, describe
from fgrad_nn.layers.check import images, is_int, positive, required
from fgrad_nn.layers.conv import per_axis
from fgrad_nn.module import Bound, Module, layer_error


@dataclass(frozen=True, repr=False)
class _Pool(Module):
    spatial: ClassVar[int]

    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...] | None = None
    padding: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        positive(
            self, kernel_size=self.kernel_size, **({"stride": self.stride} if self.stride is not None else {})
        )
        kernel, pads = per_axis(self.kernel_size, self.spatial), per_axis(self.padding, self.spatial)
        for name, value in {"kernel_size": kernel, "stride": self.stride, "padding": pads}.items():
            n = len(per_axis(value, self.spatial))
            required(n == self.spatial, self, f"{name}={value!r} must be an int or {self.spatial} ints")
        fits = all(is_int(v) and 0 <= 2 * v <= k for v, k in zip(pads, kernel))
        required(
            fits, self, f"padding={self.padding!r} must be at most half of kernel_size={self.kernel_size!r}"
        )

    def pool(self, x: Array) -> Array:
        raise NotImplementedError

    def forward(self, p: Bound, x: Any) -> Array:
        x, single = images(self, p, x, self.spatial, None)
        try:
            y = self.pool(x)
        except FgradDeviceError:
            raise
        except FgradError as e:
            problem = str(e).split("\n")[0]
            raise layer_error(
                self, p, f"{describe(x)}: {problem}", "use a smaller kernel_size, or pool less often"
            ) from e
        return y[0] if single else y


class _MaxPool(_Pool):
    def pool(self, x: Array) -> Array:
        return lax.max_pool(x, self.kernel_size, strides=self.stride, padding=self.padding)


class MaxPool1d(_MaxPool):
    """The maximum of each window of the last axis. See `MaxPool2d`."""

    spatial = 1


class MaxPool2d(_MaxPool):
    """The maximum of each window of the last two axes: (N, C, H, W) to (N, C, H', W'); `stride` is `kernel_size` by default.

    Padding counts as minus infinity. The gradient goes to the first maximum of a window, as in PyTorch.
    """

    spatial = 2


@dataclass(frozen=True, repr=False)
class _AvgPool(_Pool):
    count_include_pad: bool = True

    def pool(self, x: Array) -> Array:
        return lax.avg_pool(
            x,
            self.kernel_size,
            strides=self.stride,
            padding=self.padding,
            count_include_pad=self.count_include_pad,
        )


class AvgPool1d(_AvgPool):
    """The mean of each window of the last axis. See `AvgPool2d`."""

    spatial = 1


class AvgPool2d(_AvgPool):
    """The mean of each window of the last two axes: (N, C, H, W) to (N, C, H', W'); `stride` is `kernel_size` by default.

    Padding counts as zeros, unless `count_include_pad` is False.
    """

    spatial = 2


@dataclass(frozen=True, repr=False)
class AdaptiveAvgPool2d(Module):
    """Means over a grid of `output_size` cells: (N, C, H, W) to (N, C, *output_size). Cells overlap where sizes do not divide."""

    output_size: int | tuple[int, int] = 1

    def __post_init__(self) -> None:
        positive(self, output_size=self.output_size)
        cells = len(per_axis(self.output_size, 2))
        required(cells == 2, self, f"output_size={self.output_size!r} must be an int or 2 ints")

    def forward(self, p: Bound, x: Any) -> Array:
        x, single = images(self, p, x, 2, None)
        for axis, cells in zip((2, 3), per_axis(self.output_size, 2)):
            n = x.shape[axis]
            spans = [(i * n // cells, math.ceil((i + 1) * n / cells)) for i in range(cells)]
            pick = [slice(None)] * 4
            means = []
            for start, stop in spans:
                pick[axis] = slice(start, stop)
                means.append(fnp.mean(x[tuple(pick)], axis=axis, keepdims=True))
            x = fnp.concatenate(means, axis)
        return x[0] if single else x
