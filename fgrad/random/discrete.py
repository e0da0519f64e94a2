"""Discrete distributions, permutations and samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array, promote
from fgrad.device import beside_arguments
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.ops import elementwise as ew
from fgrad.ops.builders import full, full_like
from fgrad.ops.reduce import argmax
from fgrad.ops.structure import reshape, slice_
from fgrad.random.continuous import gumbel, unit
from fgrad.random.keys import Shape, draw_bits, float_dtype, joint_shape, split, spread, to_shape


def bernoulli(key: Array, p: Any = 0.5, shape: Shape | None = None) -> Array:
    """True with probability `p`, which broadcasts to `shape` (by default the shape of `p`)."""
    call = "random.bernoulli"
    (chance,) = promote(p, call=call, inexact=True)
    dtype = float_dtype(call, chance.dtype)
    dims = joint_shape(call, shape, chance)
    return ew.lt(unit(call, key, dims, dtype), spread(call, chance, dims, dtype))


def rademacher(key: Array, shape: Shape = (), dtype: Any = dtypes.int64) -> Array:
    """-1 or 1, each with probability one half."""
    heads = ew.convert(bernoulli(key, 0.5, to_shape("random.rademacher", shape)), dtypes.canonical(dtype))
    return ew.sub(ew.add(heads, heads), full_like(heads, 1))


@beside_arguments
def randint(key: Array, shape: Shape, minval: Any, maxval: Any, dtype: Any = dtypes.int32) -> Array:
    """Integers from minval to maxval - 1; the bounds may be arrays that broadcast to `shape`.

    `minval` where the range is empty. Two words are drawn for each number, so that the bias of the remainder is below 2**-32 for
    ranges below 2**32 (2**-64 in 64 bits).
    """
    call, dims, wanted = "random.randint", to_shape("random.randint", shape), dtypes.canonical(dtype)
    if not dtypes.is_integer(wanted):
        raise FgradTypeError(message(call, f"dtype must be an integer type, got {wanted}"))
    small = wanted.itemsize < 4  # drawn in 32 bits
    drawn = dtypes.int32 if small else wanted
    unsigned = np.dtype(f"uint{drawn.itemsize * 8}")
    low, span = _int_range(call, minval, maxval, dims, wanted, drawn, unsigned)

    halves = split(key)
    high_bits, low_bits = (
        draw_bits(call, reshape(slice_(halves, (i, 0), (i + 1, 2)), (2,)), dims, unsigned) for i in (0, 1)
    )
    # (high * 2**n + low) % span in n bits: 2**n % span is the square of 2**(n/2) % span.
    root = _rem(full(dims, 2 ** (drawn.itemsize * 4), unsigned), span)
    factor = _rem(ew.mul(root, root), span)
    offset = _rem(ew.add(ew.mul(_rem(high_bits, span), factor), _rem(low_bits, span)), span)
    return ew.convert(ew.add(low, ew.convert(offset, drawn)), wanted)


def _rem(x: Array, span: Array) -> Array:
    """x % span of unsigned numbers, where a span of 0 stands for the whole range."""
    return ew.select(ew.eq(span, full_like(span, 0)), x, ew.remainder(x, span))


def _int_range(
    call: str,
    minval: Any,
    maxval: Any,
    dims: tuple[int, ...],
    wanted: np.dtype,
    drawn: np.dtype,
    unsigned: np.dtype,
) -> tuple[Array, Array]:
    """The lower bound as `drawn` and the number of values as `unsigned`, both of shape `dims`."""
    info = np.iinfo(wanted)
    if all(isinstance(v, (int, np.integer)) for v in (minval, maxval)):
        a, b = (min(max(int(v), info.min), info.max + extra) for v, extra in ((minval, 0), (maxval, 1)))
        count = max(b - a, 1) % 2 ** (drawn.itemsize * 8)
        return full(dims, a, drawn), full(dims, count, unsigned)
    bounds = [as_array(v, call) for v in (minval, maxval)]
    for v in bounds:
        if not dtypes.is_integer(v.dtype):
            raise FgradTypeError(
                message(call, f"bounds must be integers, got {v.type}", "convert: x.astype('int32')")
            )
    bounds = [spread(call, v, dims, dtypes.int64) for v in bounds]
    beyond = min(info.max + 1, np.iinfo(np.int64).max)
    first = _clip(bounds[0], max(info.min, np.iinfo(np.int64).min), min(info.max, beyond))
    last = _clip(bounds[1], max(info.min, np.iinfo(np.int64).min), beyond)
    count = ew.convert(ew.sub(last, first), unsigned)
    return ew.convert(first, drawn), ew.select(ew.le(last, first), full_like(count, 1), count)


def _clip(x: Array, low: int, high: int) -> Array:
    return ew.minimum(ew.maximum(x, full_like(x, low)), full_like(x, high))


def categorical(key: Array, logits: Any, axis: int = -1, shape: Shape | None = None) -> Array:
    """Indices (int64) along `axis` drawn with probabilities softmax(logits), by the Gumbel-max trick.

    `shape` is the shape of the result; it ends with the shape of `logits` without `axis` (its default), up to broadcasting.
    """
    call = "random.categorical"
    (x,) = promote(logits, call=call, inexact=True)
    if not -x.ndim <= axis < x.ndim:
        raise FgradValueError(
            message(call, f"axis {axis} of logits {x.type}", "give an axis that the logits have")
        )
    axis %= x.ndim
    batch = (*x.shape[:axis], *x.shape[axis + 1 :])
    dims = batch if shape is None else to_shape(call, shape)
    lead = len(dims) - len(batch)
    if lead < 0:
        raise FgradTypeError(
            message(call, f"shape {dims} has fewer axes than the batch shape {batch} of logits {x.type}")
        )
    full_dims = (*dims[: lead + axis], x.shape[axis], *dims[lead + axis :])
    noise = gumbel(key, full_dims, x.dtype)
    return argmax(ew.add(noise, spread(call, x, full_dims, x.dtype)), lead + axis)
