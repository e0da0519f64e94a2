"""The checks that layers make of their inputs: what was expected, what came, and how to make it fit."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import fgrad.numpy as fnp
from fgrad import Array
from fgrad.errors import FgradValueError, describe, message
from fgrad_nn.module import Bound, layer_error


def array_input(layer: Any, p: Bound, x: Any, dtype: Any = None) -> Array:
    """`x` as an array of floats, and of the params' dtype if that is given."""
    try:
        x = fnp.asarray(x)
    except (TypeError, ValueError) as e:
        raise layer_error(
            layer, p, f"the input must be an array, got {describe(x)}", "convert it with fgrad.numpy.asarray"
        ) from e
    if dtype is not None and x.dtype != dtype:
        scale = " / 255" if str(x.dtype) == "uint8" else ""
        raise layer_error(
            layer,
            p,
            f"the input must be {dtype}, as the weight is; got {describe(x)}",
            f"convert it: x.astype('{dtype}'){scale}",
        )
    if x.dtype.kind in "iub":
        raise layer_error(
            layer,
            p,
            f"the input must be floating point, got {describe(x)}",
            "convert it: x.astype('float32')",
        )
    return x


def param(layer: Any, p: Bound, name: str, shape: tuple[int, ...]) -> Any:
    """The parameter `name`, which must have the layer's shape: another one could broadcast and go unnoticed."""
    return _of_shape(layer, p, "param", name, p[name], shape, "init(key)")


def state_entry(layer: Any, p: Bound, name: str, shape: tuple[int, ...]) -> Any:
    """The entry `name` of the layer's state, which must have the layer's shape."""
    state = p.state
    if not isinstance(state, Mapping) or name not in state:
        found = f"found: {', '.join(map(str, state)) or 'none'}" if isinstance(state, Mapping) else "no dict"
        raise layer_error(layer, p, f"the state has no '{name}'; {found}", "make it with net.init_state()")
    return _of_shape(layer, p, "state", name, state[name], shape, "init_state()")


def _of_shape(
    layer: Any, p: Bound, kind: str, name: str, value: Any, shape: tuple[int, ...], maker: str
) -> Any:
    if getattr(value, "shape", None) != shape:
        raise layer_error(
            layer,
            p,
            f"{kind} '{name}' is {describe(value)}, this layer's has shape {shape}",
            f"pass what {maker} of this network made, or what was saved from one of the same sizes",
        )
    return value


def images(
    layer: Any, p: Bound, x: Any, spatial: int, channels: int | None, dtype: Any = None
) -> tuple[Array, bool]:
    """`x` as (N, C, *spatial), and whether the batch axis was added to a single example (C, *spatial)."""
    x = array_input(layer, p, x, dtype)
    names = ("N", str(channels) if channels else "C", *"DHW"[3 - spatial :])
    wanted = f"({', '.join(names)})"
    if x.ndim not in (spatial + 1, spatial + 2):
        hint = "add a channel axis: x[:, None]" if x.ndim == spatial else f"reshape the input to {wanted}"
        raise layer_error(layer, p, f"expected an input of shape {wanted}, got {describe(x)}", hint)
    single = x.ndim == spatial + 1
    found = x.shape[0] if single else x.shape[1]
    if channels and found != channels:
        raise layer_error(
            layer,
            p,
            f"expected {channels} channels in {wanted}, got {describe(x)} with {found}",
            _channel_hint(x, spatial, channels, single),
        )
    return (x[None] if single else x), single


def _channel_hint(x: Array, spatial: int, channels: int, single: bool) -> str:
    if single and channels == 1:
        return "a batch of images without a channel axis needs one: x[:, None]"
    if not single and x.shape[-1] == channels:
        order = (0, spatial + 1, *range(1, spatial + 1))
        return f"the channels are last: move them with fgrad.numpy.transpose(x, {order})"
    return f"let the layer before give {channels} channels, or make this layer for {x.shape[0] if single else x.shape[1]}"


def positive(layer: Any, **values: Any) -> None:
    """The sizes a layer is made with."""
    for name, value in values.items():
        for v in value if isinstance(value, (tuple, list)) else (value,):
            if not is_int(v) or v < 1:
                raise FgradValueError(
                    message(type(layer).__name__, f"{name} must be a positive int, got {value!r}")
                )


def is_int(value: Any) -> bool:
    """Whether a size is an int, Python's or NumPy's."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def required(condition: bool, layer: Any, problem: str, fix: str = "") -> None:
    """A condition on the arguments that a layer is made with."""
    if not condition:
        raise FgradValueError(message(type(layer).__name__, problem, fix))


__all__ = ["array_input", "images", "is_int", "param", "positive", "required", "state_entry"]
