"""Pooling: the extreme or the sum of each window, and the linear operations their derivatives need.

x is (N, C, *S); `window`, `strides` and `padding` ((lo, hi), ...) are over S. `max_pool` also returns where in its window each
maximum stood (row-major, int32), so its derivative is a `pool_take` (and the transpose of that a `pool_put`) that searches nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradTypeError, message
from fgrad.ir import Linear, Primitive, Type, register
from fgrad.ops.builders import batch_all, is_number, linear, real_number
from fgrad.ops.conv import conv_spatial
from fgrad.ops.structure import reshape
from fgrad.trace import bind

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


def _out_shape(call: str, x_shape: Ints, window: Ints, strides: Ints, padding: Pads) -> Ints:
    if len(x_shape) < 3:
        raise FgradTypeError(message(call, f"the operand must be (N, C, *spatial), got shape {x_shape}"))
    return (*x_shape[:2], *conv_spatial(call, x_shape[2:], window, strides, padding, (1,) * len(window)))


def _pad(x: np.ndarray, padding: Pads, value: Any) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 0), *padding), constant_values=value) if any(map(any, padding)) else x


def _taps(window: Ints, out: Ints, strides: Ints) -> Iterator[tuple[slice, ...]]:
    """For each window element, in row-major order, the padded input's elements that stand there, as slices."""
    for tap in itertools.product(*map(range, window)):
        at = (np.s_[t : t + s * (o - 1) + 1 : s] for t, s, o in zip(tap, strides, out, strict=True))
        yield (slice(None), slice(None), *at)


def _lowest(dtype: np.dtype) -> Any:
    return np.array(-np.inf, dtype) if dtypes.is_float(dtype) else np.iinfo(dtype).min


# ------------------------------------------------------------------------------------------------ max_pool


def _max_type(x: Type, *, window: Ints, strides: Ints, padding: Pads) -> tuple[Type, Type]:
    if not real_number(x.dtype):
        raise FgradTypeError(message("max_pool", f"dtype {x.dtype} is not supported"))
    shape = _out_shape("max_pool", x.shape, window, strides, padding)
    return Type(shape, x.dtype), Type(shape, dtypes.int32)


def _first_inside(out: Ints, window: Ints, strides: Ints, padding: Pads) -> np.ndarray:
    """The offset of each window's first element inside the input: what a window of nothing but -inf chooses."""
    taps = []
    for n, w, s, (lo, _) in zip(out, window, strides, padding, strict=True):
        taps.append(np.clip(lo - s * np.arange(n), 0, w - 1))
    return np.ravel_multi_index(tuple(np.meshgrid(*taps, indexing="ij")), window)


def _max_impl(x: np.ndarray, *, window: Ints, strides: Ints, padding: Pads) -> tuple[np.ndarray, np.ndarray]:
    shape = _out_shape("max_pool", x.shape, window, strides, padding)
    padded = _pad(x, padding, _lowest(x.dtype))
    best = np.empty(shape, x.dtype)
    offset = np.empty(shape, np.int32)
    offset[...] = _first_inside(shape[2:], window, strides, padding)
    for k, at in enumerate(_taps(window, shape[2:], strides)):
        value = padded[at]
        if k == 0:
            best[...] = value
            continue
        better = ~(value <= best) & ~np.isnan(best) if dtypes.is_float(x.dtype) else value > best
        np.copyto(best, value, where=better)
        np.copyto(offset, np.int32(k), where=better)
    return best, offset


def _max_jvp(
    primals: Sequence[Array], tangents: Sequence[Array], outs: Sequence[Array], **params: Any
) -> tuple[Array, None]:
    return bind(pool_take_p, tangents[0], outs[1], **params), None


def _max_batch(
    size: int, args: Sequence[Array], batched: Any, **params: Any
) -> tuple[list[Array], list[bool]]:
    values, offset = bind(max_pool_p, _fold(args[0]), **params)
    return [_unfold(values, size), _unfold(offset, size)], [True, True]


def _fold(x: Array) -> Array:
    """(B, N, ...) -> (B N, ...)."""
    return reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def _unfold(x: Array, size: int) -> Array:
    return reshape(x, (size, x.shape[0] // size, *x.shape[1:]))


max_pool_p = register(
    Primitive("max_pool", _max_type, _max_impl, "pool", multiple=True, jvp=_max_jvp, batch=_max_batch)
)


def _pads(padding: Sequence[Sequence[int]]) -> Pads:
    return tuple((int(lo), int(hi)) for lo, hi in padding)


def max_pool(
    x: Array, window: Sequence[int], strides: Sequence[int], padding: Sequence[Sequence[int]]
) -> tuple[Array, Array]:
    """`(values, offset)`: each window's maximum, and its row-major position in the window (the first one; NaN wins).

    Padding counts as minus infinity (the lowest integer) and is chosen only by windows without any input.
    """
    values, offset = bind(max_pool_p, x, window=tuple(window), strides=tuple(strides), padding=_pads(padding))
    return values, offset


# ------------------------------------------------------------------------------------------------ the linear ones


def _pooling(
    name: str, type_rule: Callable[..., Type], impl: Any, transpose: Callable[..., Array], doc: str
) -> Primitive:
    def batch(size: int, args: Sequence[Array], batched: Sequence[bool], **params: Any) -> tuple[Array, bool]:
        return _unfold(bind(prim, *map(_fold, batch_all(size, args, batched)), **params), size), True

    prim: Primitive = linear(name, type_rule, impl, transpose, batch, "pool", doc)
    return prim


def _take_type(x: Type, offset: Type, *, window: Ints, strides: Ints, padding: Pads) -> Type:
    shape = _out_shape("pool_take", x.shape, window, strides, padding)
    if offset != Type(shape, dtypes.int32):
        raise FgradTypeError(
            message("pool_take", f"the offsets must be {Type(shape, dtypes.int32)}, got {offset}")
        )
    return Type(shape, x.dtype)


def _take_impl(
    x: np.ndarray, offset: np.ndarray, *, window: Ints, strides: Ints, padding: Pads
) -> np.ndarray:
    padded = _pad(x, padding, 0)
    out = np.zeros(offset.shape, x.dtype)
    for k, at in enumerate(_taps(window, offset.shape[2:], strides)):
        np.copyto(out, padded[at], where=offset == k)
    return out


def _put_type(g: Type, offset: Type, *, spatial: Ints, window: Ints, strides: Ints, padding: Pads) -> Type:
    x_shape = (*g.shape[:2], *spatial)
    shape = _out_shape("pool_put", x_shape, window, strides, padding)
    if g.shape != shape or offset != Type(shape, dtypes.int32):
        raise FgradTypeError(
            message("pool_put", f"values and int32 offsets must have shape {shape}, got {g} and {offset}")
        )
    return Type(x_shape, g.dtype)


def _inside(padded: np.ndarray, spatial: Ints, padding: Pads) -> np.ndarray:
    at = (slice(lo, lo + s) for s, (lo, _) in zip(spatial, padding, strict=True))
    return np.ascontiguousarray(padded[(slice(None), slice(None), *at)])


def _padded_zeros(g: np.ndarray, spatial: Ints, padding: Pads) -> np.ndarray:
    return np.zeros(
        (*g.shape[:2], *[s + lo + hi for s, (lo, hi) in zip(spatial, padding, strict=True)]), g.dtype
    )


def _put_impl(
    g: np.ndarray, offset: np.ndarray, *, spatial: Ints, window: Ints, strides: Ints, padding: Pads
) -> np.ndarray:
    out = _padded_zeros(g, spatial, padding)
    zero = g.dtype.type(0)
    for k, at in enumerate(_taps(window, g.shape[2:], strides)):
        out[at] += np.where(offset == k, g, zero)
    return _inside(out, spatial, padding)


def _sum_type(x: Type, *, window: Ints, strides: Ints, padding: Pads) -> Type:
    if not is_number(x.dtype):
        raise FgradTypeError(message("sum_pool", f"dtype {x.dtype} is not supported"))
    return Type(_out_shape("sum_pool", x.shape, window, strides, padding), x.dtype)


def _sum_impl(x: np.ndarray, *, window: Ints, strides: Ints, padding: Pads) -> np.ndarray:
    shape = _out_shape("sum_pool", x.shape, window, strides, padding)
    padded = _pad(x, padding, 0)
    wide = np.float32 if x.dtype in (dtypes.float16, dtypes.bfloat16) else x.dtype
    out = np.zeros(shape, wide)
    for at in _taps(window, shape[2:], strides):
        out += padded[at]
    return out.astype(x.dtype, copy=False)


def _sum_grad_type(g: Type, *, spatial: Ints, window: Ints, strides: Ints, padding: Pads) -> Type:
    x_shape = (*g.shape[:2], *spatial)
    shape = _out_shape("sum_pool_grad", x_shape, window, strides, padding)
    if g.shape != shape:
        raise FgradTypeError(message("sum_pool_grad", f"the operand must have shape {shape}, got {g}"))
    return Type(x_shape, g.dtype)


def _sum_grad_impl(g: np.ndarray, *, spatial: Ints, window: Ints, strides: Ints, padding: Pads) -> np.ndarray:
    out = _padded_zeros(g, spatial, padding)
    for at in _taps(window, g.shape[2:], strides):
        out[at] += g
    return _inside(out, spatial, padding)


def _without_spatial(params: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in params.items() if k != "spatial"}


def _take_transpose(ct: Array, x: Linear, offset: Array, **params: Any) -> Array:
    return bind(pool_put_p, ct, offset, spatial=x.shape[2:], **params)


def _put_transpose(ct: Array, g: Linear, offset: Array, **params: Any) -> Array:
    return bind(pool_take_p, ct, offset, **_without_spatial(params))


def _sum_transpose(ct: Array, x: Linear, **params: Any) -> Array:
    return bind(sum_pool_grad_p, ct, spatial=x.shape[2:], **params)


def _sum_grad_transpose(ct: Array, g: Linear, **params: Any) -> Array:
    return bind(sum_pool_p, ct, **_without_spatial(params))


pool_take_p = _pooling(
    "pool_take",
    _take_type,
    _take_impl,
    _take_transpose,
    "x where each window's offset points; 0 in the padding",
)
pool_put_p = _pooling(
    "pool_put",
    _put_type,
    _put_impl,
    _put_transpose,
    "zeros, with each window's value added where its offset points",
)
sum_pool_p = _pooling(
    "sum_pool", _sum_type, _sum_impl, _sum_transpose, "the sum of each window; padding counts as 0"
)
sum_pool_grad_p = _pooling(
    "sum_pool_grad",
    _sum_grad_type,
    _sum_grad_impl,
    _sum_grad_transpose,
    "zeros, with each value added to its whole window",
)


def sum_pool(
    x: Array, window: Sequence[int], strides: Sequence[int], padding: Sequence[Sequence[int]]
) -> Array:
    """The sum of each window; padding counts as zero. Divide by the window's size for the mean."""
    return bind(sum_pool_p, x, window=tuple(window), strides=tuple(strides), padding=_pads(padding))
