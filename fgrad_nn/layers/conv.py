"""Convolutions in one to three dimensions, and their transposes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from fgrad import Array, lax
from fgrad.errors import FgradDeviceError, FgradError, describe
from fgrad_nn import init
from fgrad_nn.layers.check import images, is_int, param, positive, required
from fgrad_nn.layers.linear import weight_and_bias
from fgrad_nn.module import Bound, Module, layer_error


def per_axis(value: Any, n: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * n


@dataclass(frozen=True, repr=False)
class _Conv(Module):
    spatial: ClassVar[int]
    misfit: ClassVar[str] = "pad the input, or use a smaller kernel_size or dilation"

    in_channels: int
    out_channels: int
    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | str | tuple[Any, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    bias: bool = True
    weight_init: init.Initializer | None = None
    bias_init: init.Initializer | None = None
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        sizes = {"kernel_size": self.kernel_size, "stride": self.stride, "dilation": self.dilation}
        positive(
            self, in_channels=self.in_channels, out_channels=self.out_channels, groups=self.groups, **sizes
        )
        for name, value in sizes.items():
            n = len(per_axis(value, self.spatial))  # type: ignore[arg-type]
            required(n == self.spatial, self, f"{name}={value!r} must be an int or {self.spatial} ints")
        self._check_padding()
        divides = self.in_channels % self.groups == 0 and self.out_channels % self.groups == 0
        channels = f"{self.in_channels} input and {self.out_channels} output channels"
        required(divides, self, f"{channels} are not divisible by groups={self.groups}")

    def _check_padding(self) -> None:
        value, n = self.padding, self.spatial
        if isinstance(value, str):
            required(value.lower() in ("same", "valid"), self, f"padding={value!r} must be 'same' or 'valid'")
            return
        sides = [s for v in per_axis(value, n) for s in (v if isinstance(v, (tuple, list)) else (v,))]
        fits = len(per_axis(value, n)) == n and all(is_int(s) and s >= 0 for s in sides)
        wanted = f"an int of at least 0, {n} of them, {n} pairs (low, high), 'same' or 'valid'"
        required(fits, self, f"padding={value!r} must be {wanted}")

    @property
    def kernel(self) -> tuple[int, ...]:
        return per_axis(self.kernel_size, self.spatial)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    def init(self, key: Array) -> dict[str, Array]:
        shape = self.weight_shape
        return weight_and_bias(self, key, shape, self.out_channels, shape[1] * math.prod(self.kernel))

    def convolve(self, x: Array, weight: Array) -> Array:
        return lax.conv(
            x, weight, strides=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups
        )

    def forward(self, p: Bound, x: Any) -> Array:
        weight = param(self, p, "weight", self.weight_shape)
        x, single = images(self, p, x, self.spatial, self.in_channels, weight.dtype)
        try:
            y = self.convolve(x, weight)
        except FgradDeviceError:
            raise
        except FgradError as e:
            problem = str(e).split("\n")[0]
            raise layer_error(
                self,
                p,
                f"{describe(x)}: {problem}",
                self.misfit,
            ) from e
        if self.bias:
            y = y + param(self, p, "bias", (self.out_channels,)).reshape((-1, *[1] * self.spatial))
        return y[0] if single else y


class Conv1d(_Conv):
    """Cross-correlation over the last axis: (N, in_channels, L) to (N, out_channels, L'). See `Conv2d`."""

    spatial = 1


class Conv2d(_Conv):
    """Cross-correlation over the last two axes: (N, in_channels, H, W) to (N, out_channels, H', W').

    Params: `weight` (out_channels, in_channels // groups, *kernel_size), `bias` (out_channels,), by default uniform on
    ±1/sqrt(fan in). H' = (H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1. `padding` may be "same", "valid", or
    ((low, high), ...). A single example (C, H, W) is accepted too. Input, params and output have the dtype `dtype`.

    Raises:
        FgradValueError: sizes, padding or groups that make no convolution.
        FgradTypeError: in a call, an input or params of another shape or dtype, or an input smaller than the kernel.
    """

    spatial = 2


class Conv3d(_Conv):
    """Cross-correlation over the last three axes: (N, in_channels, D, H, W) to (N, out_channels, D', H', W'). See `Conv2d`."""

    spatial = 3


@dataclass(frozen=True, repr=False)
class _ConvTranspose(_Conv):
    misfit = "give inputs, padding and output_padding for which H' is at least 1"

    output_padding: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (per_axis(v, self.spatial) for v in (self.output_padding, self.stride, self.dilation))
        extra, stride, dilation = sizes
        fits = len(extra) == self.spatial and all(
            is_int(e) and 0 <= e < max(s, d) for e, s, d in zip(extra, stride, dilation)
        )
        problem = f"output_padding={self.output_padding!r} must be less than stride={self.stride!r} or dilation={self.dilation!r}"
        required(fits, self, problem)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel)

    def convolve(self, x: Array, weight: Array) -> Array:
        return lax.conv_transpose(
            x,
            weight,
            strides=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class ConvTranspose1d(_ConvTranspose):
    """Transposed `Conv1d`. See `ConvTranspose2d`."""

    spatial = 1


class ConvTranspose2d(_ConvTranspose):
    """The transpose of `Conv2d` as a linear map, which undoes its change of shape: (N, in_channels, H, W) to
    (N, out_channels, H', W') with H' = (H - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.

    Params: `weight` (in_channels, out_channels // groups, *kernel_size), `bias` (out_channels,).
    """

    spatial = 2
