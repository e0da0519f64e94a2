"""Permutations and samples from arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array, promote
from fgrad.device import beside_arguments
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.ops import elementwise as ew
from fgrad.ops import transcendental as tr
from fgrad.ops.builders import full, reduce_sum_p
from fgrad.ops.cumulative import cumsum
from fgrad.ops.index import gather
from fgrad.ops.sort import sort
from fgrad.ops.structure import broadcast, iota, reshape, slice_, transpose
from fgrad.random.continuous import gumbel, uniform
from fgrad.random.discrete import randint
from fgrad.random.keys import Shape, draw_bits, split, to_shape
from fgrad.trace import bind


@beside_arguments
def permutation(key: Array, x: Any, axis: int = 0, independent: bool = False) -> Array:
    """`x` with its entries along `axis` in random order; `arange(x)` (int64) shuffled if `x` is an int.

    Each slice is moved as a whole, unless `independent`: then each vector along `axis` gets an order of its own.
    """
    call = "random.permutation"
    if isinstance(x, (int, np.integer)) and not isinstance(x, bool):
        return _shuffle(call, key, iota(to_shape(call, (x,)), dtypes.int64, 0), 0)
    x = as_array(x, call)
    axis = _axis(call, x, axis)
    if independent or x.ndim == 1:
        return _shuffle(call, key, x, axis)
    return _take(x, _shuffle(call, key, iota((x.shape[axis],), dtypes.int64, 0), 0), axis)


def _axis(call: str, x: Array, axis: int) -> int:
    if x.ndim == 0:
        raise FgradTypeError(
            message(
                call, f"a traced or 0-d {x.type} has no axis", "pass a Python int, or an array with an axis"
            )
        )
    if not -x.ndim <= axis < x.ndim:
        raise FgradValueError(message(call, f"axis {axis} of {x.type}", "give an axis that the array has"))
    return axis % x.ndim


def _shuffle(call: str, key: Array, x: Array, axis: int) -> Array:
    """Sort by random 32-bit words, as many times as make ties in all of them improbable.

    The number of rounds is JAX's (3 log n / log 2**32): one up to 1,625 entries, two up to 2.6 million.
    """
    size = max(1, math.prod(x.shape))
    rounds = int(np.ceil(3 * np.log(size) / np.log(np.iinfo(np.uint32).max)))
    for _ in range(rounds):
        pair = split(key)
        key, sub = (reshape(slice_(pair, (i, 0), (i + 1, 2)), (2,)) for i in (0, 1))
        _, x = sort([draw_bits(call, sub, x.shape, dtypes.uint32), x], axis=axis, num_keys=1)
    return x


def _take(x: Array, index: Array, axis: int) -> Array:
    """Entries of `x` along `axis` at `index`, whose axes stand where `axis` was."""
    out = gather(x, [index], (axis,))
    n = index.ndim
    rest = list(range(n, out.ndim))
    return transpose(out, [*rest[:axis], *range(n), *rest[axis:]])


@beside_arguments
def choice(
    key: Array, a: Any, shape: Shape = (), replace: bool = True, p: Any = None, axis: int = 0
) -> Array:
    """Entries of `a` along `axis` (of `arange(a)`, int64, if `a` is an int) drawn at random.

    Args:
        shape: how many, as a shape; it takes the place of `axis`.
        replace: whether an entry may be drawn more than once.
        p: the probability of each entry; equal ones if None.
    """
    call, dims = "random.choice", to_shape("random.choice", shape)
    whole = isinstance(a, (int, np.integer)) and not isinstance(a, bool)
    x = None if whole else as_array(a, call)
    axis = 0 if x is None else _axis(call, x, axis)
    n = int(a) if x is None else x.shape[axis]
    draws = math.prod(dims)
    if n <= 0 and draws:
        raise FgradValueError(
            message(
                call, "there is nothing to draw from", "pass a positive int or an array that is not empty"
            )
        )
    if not replace and draws > n:
        raise FgradValueError(
            message(call, f"cannot draw {draws} different entries of {n}", "draw fewer, or with replace=True")
        )
    if p is not None:
        index = _weighted(call, key, n, dims, p, replace)
    elif replace:
        index = ew.convert(randint(key, dims, 0, n), dtypes.int64)
    else:
        index = reshape(slice_(permutation(key, n), (0,), (draws,)), dims)
    return index if x is None else _take(x, index, axis)


def _weighted(call: str, key: Array, n: int, dims: tuple[int, ...], p: Any, replace: bool) -> Array:
    (weight,) = promote(p, call=call, inexact=True)
    if weight.shape != (n,):
        raise FgradTypeError(
            message(call, f"p must have shape ({n},), one probability an entry, got {weight.type}")
        )
    if not replace:  # the largest of log p + Gumbel noise (Vieira 2014; Kool and others 2019)
        score = ew.neg(ew.add(gumbel(key, (n,), weight.dtype), tr.log(weight)))
        order = sort([score, iota((n,), dtypes.int64, 0)], axis=0, num_keys=1)[1]
        return reshape(slice_(order, (0,), (math.prod(dims),)), dims)
    steps = cumsum(weight, 0)
    total = broadcast(reshape(slice_(steps, (n - 1,), (n,)), ()), dims, ())
    drawn = ew.mul(total, ew.sub(full(dims, 1, weight.dtype), uniform(key, dims, weight.dtype)))
    # How many steps lie below the number drawn: a comparison with all of them, which is one kernel.
    wide = (*dims, n)
    below = ew.lt(broadcast(steps, wide, (len(dims),)), broadcast(drawn, wide, range(len(dims))))
    return bind(reduce_sum_p, ew.convert(below, dtypes.int64), axes=(len(dims),))
