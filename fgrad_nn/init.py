"""Initial weights. Shapes are those of PyTorch's weights: (out, in, *kernel).

Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010 (Xavier);
He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015 (Kaiming).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import fgrad.numpy as fnp
from fgrad import Array, random
from fgrad.errors import FgradValueError, message

Initializer = Callable[..., Array]  # (key, shape, dtype) -> Array

_GAINS = {
    "linear": 1.0,
    "conv": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}


def calculate_gain(nonlinearity: str, slope: float = 0.01) -> float:
    """The factor that keeps the scale of activations through a nonlinearity; `slope` is leaky_relu's."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        known = ", ".join([*_GAINS, "leaky_relu"])
        raise FgradValueError(
            message("calculate_gain", f"unknown nonlinearity {nonlinearity!r}", f"use one of {known}")
        )
    return _GAINS[nonlinearity]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan in, fan out): how many inputs one output of such a weight sums, and the reverse."""
    if len(shape) < 2:
        raise FgradValueError(
            message(
                "init.fans",
                f"shape {tuple(shape)} has no fan in and out",
                "weights have two axes or more: (out, in, *kernel)",
            )
        )
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def _fan(shape: tuple[int, ...], mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise FgradValueError(message("init", f"mode={mode!r}", "use 'fan_in' or 'fan_out'"))
    return fans(shape)[mode == "fan_out"]


def _filled(key: Any, shape: tuple[int, ...], value: float, dtype: Any) -> Array:
    """On the device of the key, as random parameters are."""
    if isinstance(key, Array):
        return fnp.full_like(key, value, dtype, shape)
    return fnp.full(shape, value, dtype)


def zeros(key: Any, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
    """All zeros; of the key nothing counts but its device."""
    return _filled(key, shape, 0, dtype)


def ones(key: Any, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
    """All ones; of the key nothing counts but its device."""
    return _filled(key, shape, 1, dtype)


def constant(value: float) -> Initializer:
    """An initialiser that fills with `value`."""
    return lambda key, shape, dtype="float32": _filled(key, shape, value, dtype)


def uniform(
    key: Array, shape: tuple[int, ...], dtype: Any = "float32", low: float = 0.0, high: float = 1.0
) -> Array:
    """Uniform on [low, high)."""
    return random.uniform(key, shape, dtype, low, high)


def normal(
    key: Array, shape: tuple[int, ...], dtype: Any = "float32", mean: float = 0.0, std: float = 1.0
) -> Array:
    """Normal with the given mean and standard deviation."""
    return random.normal(key, shape, dtype) * std + mean


def truncated_normal(
    key: Array,
    shape: tuple[int, ...],
    dtype: Any = "float32",
    mean: float = 0.0,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
) -> Array:
    """Normal numbers of `mean` and `std` given that they lie in (low, high)."""
    drawn = random.truncated_normal(key, (low - mean) / std, (high - mean) / std, shape, dtype)
    return drawn * std + mean


def xavier_uniform(key: Array, shape: tuple[int, ...], dtype: Any = "float32", gain: float = 1.0) -> Array:
    """Uniform on ±gain * sqrt(6 / (fan_in + fan_out))."""
    bound = gain * math.sqrt(6.0 / sum(fans(shape)))
    return random.uniform(key, shape, dtype, -bound, bound)


def xavier_normal(key: Array, shape: tuple[int, ...], dtype: Any = "float32", gain: float = 1.0) -> Array:
    """Normal with standard deviation gain * sqrt(2 / (fan_in + fan_out))."""
    return random.normal(key, shape, dtype) * (gain * math.sqrt(2.0 / sum(fans(shape))))


def kaiming_uniform(
    key: Array,
    shape: tuple[int, ...],
    dtype: Any = "float32",
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
) -> Array:
    """Uniform on ±gain * sqrt(3 / fan); `a` is leaky_relu's slope. Linear and Conv use a=sqrt(5), as PyTorch does."""
    bound = calculate_gain(nonlinearity, a) * math.sqrt(3.0 / _fan(shape, mode))
    return random.uniform(key, shape, dtype, -bound, bound)


def kaiming_normal(
    key: Array,
    shape: tuple[int, ...],
    dtype: Any = "float32",
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
) -> Array:
    """Normal with standard deviation gain / sqrt(fan)."""
    std = calculate_gain(nonlinearity, a) / math.sqrt(_fan(shape, mode))
    return random.normal(key, shape, dtype) * std


def torch_default(key: Array, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
    """PyTorch's default for the weights of Linear and Conv: kaiming_uniform(a=sqrt(5)), which is ±1/sqrt(fan_in)."""
    return kaiming_uniform(key, shape, dtype, a=math.sqrt(5))


def torch_default_bias(key: Array, shape: tuple[int, ...], fan_in: int, dtype: Any = "float32") -> Array:
    """PyTorch's default for their biases: uniform on ±1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    return random.uniform(key, shape, dtype, -bound, bound)
