"""Affine maps, and layers that only change shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import fgrad.numpy as fnp
from fgrad import Array, random
from fgrad.errors import describe
from fgrad_nn import init
from fgrad_nn.layers.check import array_input, param, positive
from fgrad_nn.module import Bound, Module, layer_error


@dataclass(frozen=True, repr=False)
class Linear(Module):
    """y = x Wᵀ + b over the last axis: (..., in_features) to (..., out_features).

    Params: `weight` (out_features, in_features), `bias` (out_features,); both uniform on ±1/sqrt(in_features) by default.
    `weight_init` and `bias_init` are `(key, shape, dtype) -> Array`.
    """

    in_features: int
    out_features: int
    bias: bool = True
    weight_init: init.Initializer | None = None
    bias_init: init.Initializer | None = None
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        positive(self, in_features=self.in_features, out_features=self.out_features)

    def init(self, key: Array) -> dict[str, Array]:
        shape = (self.out_features, self.in_features)
        return weight_and_bias(self, key, shape, self.out_features, self.in_features)

    def forward(self, p: Bound, x: Any) -> Array:
        weight = param(self, p, "weight", (self.out_features, self.in_features))
        x = array_input(self, p, x, weight.dtype)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise layer_error(
                self,
                p,
                f"expected an input of shape (..., {self.in_features}), got {describe(x)}",
                _linear_hint(x, self.in_features, self.out_features),
            )
        # x @ W.T as one contraction of the last axes: no transposed copy of the weight.
        y = fnp.inner(x, weight)
        return y + param(self, p, "bias", (self.out_features,)) if self.bias else y


def _linear_hint(x: Array, features: int, out: int) -> str:
    if x.ndim > 1 and math.prod(x.shape[1:]) == features:
        return "flatten all axes but the first: nn.Flatten(), or x.reshape(len(x), -1)"
    if x.ndim == 2 and x.shape[0] == features:
        return "the input is transposed: pass x.T"
    last = x.shape[-1] if x.ndim else 1
    return f"give inputs of {features} features, or make the layer Linear({last}, {out})"


def weight_and_bias(
    layer: Any, key: Array, shape: tuple[int, ...], out: int, fan_in: int
) -> dict[str, Array]:
    """The params of Linear and convolutions: their initialisers, or PyTorch's defaults."""
    weight_key, bias_key = random.split(key)
    params = {"weight": (layer.weight_init or init.torch_default)(weight_key, shape, layer.dtype)}
    if layer.bias:
        if layer.bias_init is not None:
            params["bias"] = layer.bias_init(bias_key, (out,), layer.dtype)
        else:
            params["bias"] = init.torch_default_bias(bias_key, (out,), fan_in, layer.dtype)
    return params


@dataclass(frozen=True, repr=False)
class Flatten(Module):
    """Axes `start_dim` to `end_dim` made one; by default all but the batch axis."""

    start_dim: int = 1
    end_dim: int = -1

    def forward(self, p: Bound, x: Any) -> Array:
        x = fnp.asarray(x)
        if not (-x.ndim <= self.start_dim < x.ndim and -x.ndim <= self.end_dim < x.ndim):
            raise layer_error(
                self,
                p,
                f"axes {self.start_dim} to {self.end_dim} of {describe(x)}",
                "add a batch axis: x[None]",
            )
        first, last = self.start_dim % x.ndim, self.end_dim % x.ndim
        if first > last:
            raise layer_error(self, p, f"start_dim {first} comes after end_dim {last} of {describe(x)}")
        return x.reshape((*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))


@dataclass(frozen=True, repr=False)
class Identity(Module):
    """The input itself."""

    def forward(self, p: Bound, x: Any) -> Any:
        return x
