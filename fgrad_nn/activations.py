"""Activation functions, and each of them as a layer for `Sequential`.

All keep the input's shape, and its dtype if that is floating point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import fgrad.numpy as fnp
from fgrad import Array
from fgrad.errors import FgradValueError, message
from fgrad.special import log_sigmoid, log_softmax, ndtr, relu, sigmoid, softmax, softplus
from fgrad_nn.module import Bound, Module

__all__ = [
    *(
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "gelu",
        "silu",
        "mish",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
    ),
    *("sigmoid", "log_sigmoid", "tanh", "softplus", "softsign", "softmax", "log_softmax"),
    *(
        "ReLU",
        "ReLU6",
        "LeakyReLU",
        "ELU",
        "SELU",
        "GELU",
        "SiLU",
        "Mish",
        "Hardswish",
        "Hardsigmoid",
        "Hardtanh",
    ),
    *("Sigmoid", "LogSigmoid", "Tanh", "Softplus", "Softsign", "Softmax", "LogSoftmax"),
]

# Choices are written as `where(x <= 0, ..., x)`: NaN stays NaN, and the derivative at 0 is that of the left side, as in PyTorch.


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Array:
    """x where positive, else negative_slope * x."""
    x = fnp.asarray(x)
    return fnp.where(x <= 0, x * negative_slope, x)


def relu6(x: Any) -> Array:
    """min(max(x, 0), 6)."""
    return hardtanh(x, 0.0, 6.0)


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    """x limited to [min_val, max_val]; no gradient at and beyond the limits."""
    x = fnp.asarray(x)
    low, high = (fnp.full((), v, x.dtype) for v in (min_val, max_val))
    return fnp.where(x <= low, low, fnp.where(x >= high, high, x))


def elu(x: Any, alpha: float = 1.0) -> Array:
    """x where positive, else alpha * (exp(x) - 1)."""
    x = fnp.asarray(x)
    below = x <= 0
    safe = fnp.where(below, x, 0)  # exp of large x would put inf * 0 into the gradient
    return fnp.where(below, alpha * fnp.expm1(safe), x)


def selu(x: Any) -> Array:
    """The self-normalising elu of Klambauer and others, 2017."""
    return 1.0507009873554805 * elu(x, 1.6732632423543772)


def gelu(x: Any, approximate: str = "none") -> Array:
    """x times the normal distribution function (Hendrycks and Gimpel, 2016); `approximate="tanh"` is their approximation."""
    if approximate not in ("none", "tanh"):
        raise FgradValueError(message("gelu", f"approximate={approximate!r}", "use 'none' or 'tanh'"))
    x = fnp.asarray(x)
    if approximate == "tanh":
        return 0.5 * x * (1 + fnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return x * ndtr(x)


def silu(x: Any) -> Array:
    """x * sigmoid(x), also called swish."""
    return x * sigmoid(x)


def mish(x: Any) -> Array:
    """x * tanh(softplus(x))."""
    return x * fnp.tanh(softplus(x))


def hardsigmoid(x: Any) -> Array:
    """x / 6 + 1/2, limited to [0, 1]."""
    return hardtanh(fnp.asarray(x) / 6 + 0.5, 0.0, 1.0)


def hardswish(x: Any) -> Array:
    """x * hardsigmoid(x)."""
    return x * hardsigmoid(x)


def softsign(x: Any) -> Array:
    """x / (1 + |x|)."""
    return x / (1 + fnp.abs(x))


def tanh(x: Any) -> Array:
    """The hyperbolic tangent."""
    return fnp.tanh(x)


# ------------------------------------------------------------------------------------------------ as layers


def _layer(name: str, f: Any) -> Any:
    """A layer class without arguments that applies `f`."""

    def forward(self: Any, p: Bound, x: Any) -> Array:
        return f(x)

    metaclass: Any = type(Module)
    cls = metaclass(name, (Module,), {"forward": forward, "__doc__": f.__doc__, "__module__": __name__})
    return dataclass(frozen=True, repr=False)(cls)


ReLU = _layer("ReLU", relu)
ReLU6 = _layer("ReLU6", relu6)
SELU = _layer("SELU", selu)
SiLU = _layer("SiLU", silu)
Mish = _layer("Mish", mish)
Hardswish = _layer("Hardswish", hardswish)
Hardsigmoid = _layer("Hardsigmoid", hardsigmoid)
Sigmoid = _layer("Sigmoid", sigmoid)
LogSigmoid = _layer("LogSigmoid", log_sigmoid)
Tanh = _layer("Tanh", tanh)
Softplus = _layer("Softplus", softplus)
Softsign = _layer("Softsign", softsign)


@dataclass(frozen=True, repr=False)
class LeakyReLU(Module):
    """`leaky_relu` as a layer."""

    negative_slope: float = 0.01

    def forward(self, p: Bound, x: Any) -> Array:
        return leaky_relu(x, self.negative_slope)


@dataclass(frozen=True, repr=False)
class ELU(Module):
    """`elu` as a layer."""

    alpha: float = 1.0

    def forward(self, p: Bound, x: Any) -> Array:
        return elu(x, self.alpha)


@dataclass(frozen=True, repr=False)
class GELU(Module):
    """`gelu` as a layer."""

    approximate: str = "none"

    def forward(self, p: Bound, x: Any) -> Array:
        return gelu(x, self.approximate)


@dataclass(frozen=True, repr=False)
class Hardtanh(Module):
    """`hardtanh` as a layer."""

    min_val: float = -1.0
    max_val: float = 1.0

    def forward(self, p: Bound, x: Any) -> Array:
        return hardtanh(x, self.min_val, self.max_val)


@dataclass(frozen=True, repr=False)
class Softmax(Module):
    """`softmax` as a layer."""

    dim: int = -1

    def forward(self, p: Bound, x: Any) -> Array:
        return softmax(x, self.dim)


@dataclass(frozen=True, repr=False)
class LogSoftmax(Module):
    """`log_softmax` as a layer."""

    dim: int = -1

    def forward(self, p: Bound, x: Any) -> Array:
        return log_softmax(x, self.dim)
