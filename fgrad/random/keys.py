"""Keys and bits: what all distributions are made of, and the checks of their arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, is_scalar
from fgrad.convert import as_array
from fgrad.errors import FgradTypeError, FgradValueError, describe, message
from fgrad.ops import elementwise as ew
from fgrad.ops.builders import full, full_like
from fgrad.ops.structure import broadcast, concatenate, iota, reshape, slice_
from fgrad.ops.threefry import threefry2x32

Shape = int | Sequence[int]

# ------------------------------------------------------------------------------------------------ arguments


def to_shape(call: str, shape: Any) -> tuple[int, ...]:
    try:
        dims = (
            tuple(map(operator.index, shape))
            if isinstance(shape, (tuple, list))
            else (operator.index(shape),)
        )
    except TypeError as e:
        hint = (
            "shapes are static: a tuple of Python ints"
            if isinstance(shape, Array)
            else "the order is (key, shape, ...)"
        )
        raise FgradTypeError(
            message(call, f"shape must be an int or a tuple of ints, got {describe(shape)}", hint)
        ) from e
    if any(d < 0 for d in dims):
        raise FgradValueError(message(call, f"shape {dims} has a negative entry"))
    return dims


def float_dtype(call: str, dtype: Any) -> np.dtype:
    found = dtypes.canonical(dtype)
    if not dtypes.is_float(found):
        raise FgradTypeError(
            message(call, f"dtype must be floating point, got {found}", "draw with dtype='float32'")
        )
    return found


def spread(call: str, x: Any, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """`x` as `dtype`, broadcast to `shape` by NumPy's rule."""
    x = as_array(x, call, dtype if is_scalar(x) else None)
    x = ew.convert(x, dtype)
    lead = len(shape) - x.ndim
    if lead < 0 or any(n not in (1, m) for n, m in zip(x.shape, shape[lead:])):
        raise FgradTypeError(
            message(
                call,
                f"a parameter {x.type} does not broadcast to shape {shape}",
                "give a shape that it broadcasts to",
            )
        )
    kept = [i for i, n in enumerate(x.shape) if n != 1 or shape[lead + i] == 1]
    return broadcast(reshape(x, [x.shape[i] for i in kept]), shape, [lead + i for i in kept])


def joint_shape(call: str, shape: Any, *params: Any) -> tuple[int, ...]:
    """`shape`, or where it is None what the parameters broadcast to."""
    if shape is not None:
        return to_shape(call, shape)
    shapes = [as_array(p, call).shape for p in params]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as e:
        raise FgradTypeError(
            message(call, f"parameters of shapes {', '.join(map(str, shapes))} do not broadcast together")
        ) from e


def words(call: str, key: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The key's two words, each repeated to `shape`."""
    if not isinstance(key, (Array, np.ndarray)):
        raise FgradTypeError(
            message(call, f"expected a key, got {describe(key)}", "make one: fgrad.random.key(0)")
        )
    k = as_array(key, call)
    if k.dtype != dtypes.uint32 or k.shape != (2,):
        batch = k.dtype == dtypes.uint32 and k.ndim > 1 and k.shape[-1] == 2
        hint = "map over a batch of keys with fgrad.vmap" if batch else "make one: fgrad.random.key(0)"
        raise FgradTypeError(message(call, f"a key is uint32[2], got {k.type}", hint))
    first, second = (broadcast(reshape(slice_(k, (i,), (i + 1,)), ()), shape, ()) for i in (0, 1))
    return first, second


def counters(shape: tuple[int, ...], near: Any) -> tuple[Array, Array]:
    """Each element's row-major position as a 64-bit number: its high and its low word; on the device of `near`."""
    size = math.prod(shape)
    if size <= 2**32:
        return full(shape, 0, dtypes.uint32), reshape(iota((size,), dtypes.uint32, 0, near), shape)
    position = reshape(iota((size,), dtypes.uint64, 0, near), shape)
    high = ew.shift_right_logical(position, full_like(position, 32))
    return ew.convert(high, dtypes.uint32), ew.convert(position, dtypes.uint32)


# ------------------------------------------------------------------------------------------------ keys and bits


def key(seed: Any) -> Array:
    """A key, uint32[2], from an integer: a Python int or a 0-d integer array (which may be traced).

    As in JAX's default (32-bit) mode the seed's low 32 bits count; for more, `fold_in` the rest.
    """
    if isinstance(seed, (bool, float, complex)) or (
        not hasattr(seed, "__index__") and not isinstance(seed, Array)
    ):
        raise FgradTypeError(
            message("random.key", f"the seed must be an integer, got {describe(seed)}", "pass an int: key(0)")
        )
    low = _word("random.key", seed)
    return concatenate([full((1,), 0, dtypes.uint32), reshape(low, (1,))], 0)


def PRNGKey(seed: Any) -> Array:
    """`key`, by the name that `jax.random` gives to such arrays."""
    return key(seed)


def _word(call: str, value: Any) -> Array:
    """An integer's low 32 bits, as a 0-d uint32."""
    if isinstance(value, (int, np.integer)):
        return full((), int(value) & 0xFFFFFFFF, dtypes.uint32)
    x = as_array(value, call)
    if x.shape != () or not dtypes.is_integer(x.dtype):
        raise FgradTypeError(
            message(call, f"expected one integer, got {x.type}", "map over several with fgrad.vmap")
        )
    return ew.convert(x, dtypes.uint32)


def split(key: Array, num: Shape = 2) -> Array:
    """New keys that are independent of each other: shape (num, 2), or (*num, 2). Do not use `key` itself again.

    >>> k1, k2 = random.split(key)
    """
    shape = to_shape("random.split", num)
    first, second = threefry2x32(*words("random.split", key, shape), *counters(shape, key))
    return concatenate([reshape(first, (*shape, 1)), reshape(second, (*shape, 1))], len(shape))


def fold_in(key: Array, data: Any) -> Array:
    """A new key from a key and an integer (its low 32 bits): a step or example number, which may be traced."""
    low = _word("random.fold_in", data)
    first, second = threefry2x32(*words("random.fold_in", key, ()), full((), 0, dtypes.uint32), low)
    return concatenate([reshape(first, (1,)), reshape(second, (1,))], 0)


def bits(key: Array, shape: Shape = (), dtype: Any = dtypes.uint32) -> Array:
    """Uniform random bits of an unsigned integer dtype."""
    dtype = dtypes.canonical(dtype)
    if dtype.kind != "u":
        raise FgradTypeError(
            message(
                "random.bits",
                f"dtype must be an unsigned integer type, got {dtype}",
                "use uint8, uint16, uint32 or uint64",
            )
        )
    return draw_bits("random.bits", key, to_shape("random.bits", shape), dtype)


def draw_bits(call: str, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    first, second = threefry2x32(*words(call, key, shape), *counters(shape, key))
    if dtype == dtypes.uint64:
        high = ew.convert(first, dtype)
        return ew.bitwise_or(ew.shift_left(high, full_like(high, 32)), ew.convert(second, dtype))
    return ew.convert(ew.bitwise_xor(first, second), dtype)
