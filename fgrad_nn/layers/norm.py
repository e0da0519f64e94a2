"""Normalisation: over the batch, with running statistics that are passed in and handed back, or within each example.

Ioffe and Szegedy, "Batch normalization", 2015; Ba, Kiros and Hinton, "Layer normalization", 2016; Wu and He, "Group
normalization", 2018; Zhang and Sennrich, "Root mean square layer normalization", 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import fgrad.numpy as fnp
from fgrad import Array, lax
from fgrad.errors import describe
from fgrad_nn.init import ones, zeros
from fgrad_nn.layers.check import array_input, param, positive, required, state_entry
from fgrad_nn.module import Bound, Module, layer_error


@dataclass(frozen=True, repr=False)
class _BatchNorm(Module):
    ndims: ClassVar[tuple[int, ...]]
    shape_text: ClassVar[str]

    num_features: int
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    track_running_stats: bool = True
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        positive(self, num_features=self.num_features)

    def init(self, key: Array) -> dict[str, Array]:
        n = (self.num_features,)
        return {"weight": ones(key, n, self.dtype), "bias": zeros(key, n, self.dtype)} if self.affine else {}

    def init_state(self) -> dict[str, Array]:
        if not self.track_running_stats:
            return {}
        n = (self.num_features,)
        return {
            "running_mean": fnp.zeros(n, self.dtype),
            "running_var": fnp.ones(n, self.dtype),
            "num_batches_tracked": fnp.zeros((), "int64"),
        }

    def forward(self, p: Bound, x: Any) -> Array:
        n = (self.num_features,)
        weight, bias = _scale_and_shift(self, p, n, self.affine, self.affine)
        x = array_input(self, p, x, None if weight is None else weight.dtype)
        if x.ndim not in self.ndims or x.shape[1] != self.num_features:
            wanted = self.shape_text.format(self.num_features)
            found = x.shape[1] if x.ndim > 1 else 0
            hint = (
                f"make the layer for {found} features"
                if x.ndim in self.ndims
                else f"reshape the input to {wanted}"
            )
            raise layer_error(self, p, f"expected an input of shape {wanted}, got {describe(x)}", hint)
        if p.train or not self.track_running_stats:
            mean, var = self._batch_statistics(p, x)
        else:
            mean, var = (state_entry(self, p, name, n) for name in ("running_mean", "running_var"))
        scale = lax.rsqrt(var + self.eps)
        if weight is not None:
            scale = scale * weight
        y = (x - self._wide(mean, x)) * self._wide(scale, x)
        return y if bias is None else y + self._wide(bias, x)

    @staticmethod
    def _wide(v: Array, x: Array) -> Array:
        return v.reshape((-1, *[1] * (x.ndim - 2)))

    def _batch_statistics(self, p: Bound, x: Array) -> tuple[Array, Array]:
        axes = (0, *range(2, x.ndim))
        n = math.prod(x.shape[a] for a in axes)
        if n < 2:
            raise layer_error(
                self,
                p,
                f"training needs more than one value a channel, got {describe(x)}",
                "use larger batches, or drop_last=True in the DataLoader",
            )
        mean, var = fnp.mean(x, axis=axes), fnp.var(x, axis=axes)
        if self.track_running_stats:
            old = {name: state_entry(self, p, name, mean.shape) for name in ("running_mean", "running_var")}
            count = state_entry(self, p, "num_batches_tracked", ()) + 1
            new_mean, new_var = lax.stop_gradient(mean), lax.stop_gradient(var) * (n / (n - 1))
            f: Any = self.momentum if self.momentum is not None else (1 / count).astype(x.dtype)
            p.set_state(
                {
                    "running_mean": old["running_mean"] * (1 - f) + new_mean * f,
                    "running_var": old["running_var"] * (1 - f) + new_var * f,
                    "num_batches_tracked": count,
                }
            )
        return mean, var


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L). See `BatchNorm2d`."""

    ndims = (2, 3)
    shape_text = "(N, {0}) or (N, {0}, L)"


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, C, H, W): each channel to mean 0 and variance 1 over the batch, then scaled and shifted.

    Params: `weight`, `bias` (C,). State: `running_mean`, `running_var` (C,), `num_batches_tracked`: updated in training
    (`net.apply(..., train=True)`), used otherwise. `momentum=None` averages over all batches.
    """

    ndims = (4,)
    shape_text = "(N, {0}, H, W)"


class _OverLastAxes(Module):
    normalized_shape: int | tuple[int, ...]

    def __post_init__(self) -> None:
        positive(self, normalized_shape=self.normalized_shape)

    @property
    def shape(self) -> tuple[int, ...]:
        n = self.normalized_shape
        return tuple(n) if isinstance(n, (tuple, list)) else (n,)


@dataclass(frozen=True, repr=False)
class LayerNorm(_OverLastAxes):
    """Each example to mean 0 and variance 1 over its last axes, whose shape is `normalized_shape`, then scaled and shifted.

    Params: `weight`, `bias` of that shape.
    """

    normalized_shape: int | tuple[int, ...]
    eps: float = 1e-5
    elementwise_affine: bool = True
    bias: bool = True
    dtype: Any = "float32"

    def init(self, key: Array) -> dict[str, Array]:
        if not self.elementwise_affine:
            return {}
        params = {"weight": ones(key, self.shape, self.dtype)}
        return {**params, "bias": zeros(key, self.shape, self.dtype)} if self.bias else params

    def forward(self, p: Bound, x: Any) -> Array:
        affine = self.elementwise_affine
        weight, bias = _scale_and_shift(self, p, self.shape, affine, affine and self.bias)
        x = _last_axes(self, p, x, self.shape, weight)
        axes = tuple(range(x.ndim - len(self.shape), x.ndim))
        centred = x - fnp.mean(x, axis=axes, keepdims=True)
        y = centred * lax.rsqrt(fnp.mean(centred * centred, axis=axes, keepdims=True) + self.eps)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias


@dataclass(frozen=True, repr=False)
class RMSNorm(_OverLastAxes):
    """Each example divided by the root of its mean square over the last axes, then scaled. `eps=None` is the dtype's epsilon."""

    normalized_shape: int | tuple[int, ...]
    eps: float | None = None
    elementwise_affine: bool = True
    dtype: Any = "float32"

    def init(self, key: Array) -> dict[str, Array]:
        return {"weight": ones(key, self.shape, self.dtype)} if self.elementwise_affine else {}

    def forward(self, p: Bound, x: Any) -> Array:
        weight, _ = _scale_and_shift(self, p, self.shape, self.elementwise_affine, False)
        x = _last_axes(self, p, x, self.shape, weight)
        axes = tuple(range(x.ndim - len(self.shape), x.ndim))
        eps = self.eps if self.eps is not None else float(fnp.finfo(x.dtype).eps)
        y = x * lax.rsqrt(fnp.mean(x * x, axis=axes, keepdims=True) + eps)
        return y if weight is None else y * weight


def _scale_and_shift(
    layer: Any, p: Bound, shape: tuple[int, ...], weight: bool, bias: bool
) -> tuple[Any, Any]:
    """The layer's `weight` and `bias`, None for one that it does not have."""
    return (
        param(layer, p, "weight", shape) if weight else None,
        param(layer, p, "bias", shape) if bias else None,
    )


def _last_axes(layer: Any, p: Bound, x: Any, shape: tuple[int, ...], weight: Any) -> Array:
    x = array_input(layer, p, x, None if weight is None else weight.dtype)
    if x.ndim < len(shape) or x.shape[x.ndim - len(shape) :] != shape:
        wanted = f"(..., {', '.join(map(str, shape))})"
        raise layer_error(
            layer,
            p,
            f"expected an input of shape {wanted}, got {describe(x)}",
            _norm_hint(layer, x.shape[x.ndim - len(shape) :] if x.ndim >= len(shape) else ()),
        )
    return x


def _norm_hint(layer: Any, found: tuple[int, ...]) -> str:
    if not found:
        return f"reshape the input, or make the layer {type(layer).__name__}(x.shape[-1])"
    return f"make the layer {type(layer).__name__}({found[0] if len(found) == 1 else found})"


@dataclass(frozen=True, repr=False)
class GroupNorm(Module):
    """(N, C, *S): each of `num_groups` groups of channels of each example to mean 0 and variance 1, then scaled and shifted.

    Params: `weight`, `bias` (C,).
    """

    num_groups: int
    num_channels: int
    eps: float = 1e-5
    affine: bool = True
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        positive(self, num_groups=self.num_groups, num_channels=self.num_channels)
        required(
            self.num_channels % self.num_groups == 0,
            self,
            f"{self.num_channels} channels do not make {self.num_groups} groups",
        )

    def init(self, key: Array) -> dict[str, Array]:
        n = (self.num_channels,)
        return {"weight": ones(key, n, self.dtype), "bias": zeros(key, n, self.dtype)} if self.affine else {}

    def forward(self, p: Bound, x: Any) -> Array:
        weight, bias = _scale_and_shift(self, p, (self.num_channels,), self.affine, self.affine)
        x = array_input(self, p, x, None if weight is None else weight.dtype)
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            fix = "reshape the input to (N, C, ...)"
            if x.ndim >= 2:
                fix = f"make the layer for {x.shape[1]} channels; they are the second axis"
            raise layer_error(
                self, p, f"expected an input of shape (N, {self.num_channels}, ...), got {describe(x)}", fix
            )
        rows = x.reshape((x.shape[0], self.num_groups, -1))
        centred = rows - fnp.mean(rows, axis=2, keepdims=True)
        y = centred * lax.rsqrt(fnp.mean(centred * centred, axis=2, keepdims=True) + self.eps)
        y = y.reshape(x.shape)
        if weight is None or bias is None:
            return y
        wide = (-1, *[1] * (x.ndim - 2))
        return y * weight.reshape(wide) + bias.reshape(wide)
