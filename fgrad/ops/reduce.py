"""Reductions over axes, and the positions of extremes. (`reduce_sum` lives in `builders`.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradValueError, message
from fgrad.ir import Primitive, Type, register
from fgrad.ops.builders import broadcast_p, full, is_number, reduce_sum_p, same_types, zero_jvp
from fgrad.ops.elementwise import add, convert, div, eq, mul
from fgrad.ops.structure import concatenate, reshape, slice_, transpose
from fgrad.trace import bind

Ints = tuple[int, ...]


def reduce_sum(x: Array, axes: Sequence[int]) -> Array:
    return bind(reduce_sum_p, x, axes=tuple(axes)) if len(tuple(axes)) else x


def unreduce(y: Array, shape: Ints, axes: Ints) -> Array:
    """Repeat a reduction's result along the axes it removed."""
    return bind(broadcast_p, y, shape=shape, axes=tuple(i for i in range(len(shape)) if i not in axes))


def _reduction(name: str, ufunc: Any, accepts: Any, jvp: Any, identity: bool) -> Primitive:
    def type_rule(x: Type, *, axes: Ints) -> Type:
        same_types(name, (x,), accepts)
        if not identity and any(x.shape[a] == 0 for a in axes):
            raise FgradValueError(
                message(name, f"cannot reduce {x} over an axis of length 0: there is no identity")
            )
        return Type(tuple(s for i, s in enumerate(x.shape) if i not in axes), x.dtype)

    def impl(x: np.ndarray, *, axes: Ints) -> np.ndarray:
        return np.asarray(ufunc(x, axis=axes)).astype(x.dtype)

    def batch(size: int, args: Sequence[Array], batched: Any, *, axes: Ints) -> tuple[Array, bool]:
        return bind(prim, args[0], axes=tuple(a + 1 for a in axes)), True

    prim = Primitive(name, type_rule, impl, "reduce", jvp=jvp, batch=batch)
    return register(prim)


def _extreme_jvp(
    primals: Sequence[Array], tangents: Sequence[Array], outs: Sequence[Array], *, axes: Ints
) -> Array:
    """The mean of the tangents at the extreme (all of them, where several are equal)."""
    x, out = primals[0], outs[0]
    at = convert(eq(x, unreduce(out, x.shape, axes)), x.dtype)
    return div(reduce_sum(mul(at, tangents[0]), axes), reduce_sum(at, axes))


def _prod_jvp(primals: Sequence[Array], tangents: Sequence[Array], outs: Any, *, axes: Ints) -> Array:
    """Multiply halves together, again and again, and differentiate that: right where elements are zero, unlike `out / x`."""
    x, t = primals[0], tangents[0]
    kept = tuple(i for i in range(x.ndim) if i not in axes)
    order = (*axes, *kept)
    rest = tuple(x.shape[i] for i in kept)
    n = 1
    for a in axes:
        n *= x.shape[a]
    if n == 0:
        return full(rest, 0, x.dtype)
    x, t = reshape(transpose(x, order), (n, *rest)), reshape(transpose(t, order), (n, *rest))
    while n > 1:
        half = n // 2
        (xa, xb, xr), (ta, tb, tr) = _halves(x, half), _halves(t, half)
        x, t = mul(xa, xb), add(mul(ta, xb), mul(xa, tb))
        if n % 2:
            x, t = concatenate([x, xr], 0), concatenate([t, tr], 0)
        n = half + n % 2
    return reshape(t, rest)


def _halves(x: Array, half: int) -> tuple[Array, Array, Array]:
    def part(a: int, b: int) -> Array:
        return slice_(x, (a, *[0] * (x.ndim - 1)), (b, *x.shape[1:]))

    return part(0, half), part(half, 2 * half), part(2 * half, x.shape[0])


def _or(x: np.ndarray, axis: Ints) -> np.ndarray:
    return np.bitwise_or.reduce(x, axis=axis)


def _and(x: np.ndarray, axis: Ints) -> np.ndarray:
    return np.bitwise_and.reduce(x, axis=axis)


def _bits(d: np.dtype) -> bool:
    return d == dtypes.bool_ or d in dtypes.INTS


def _real(d: np.dtype) -> bool:
    return d not in dtypes.COMPLEX and d != dtypes.bool_


reduce_max_p = _reduction("reduce_max", np.max, _real, _extreme_jvp, False)
reduce_min_p = _reduction("reduce_min", np.min, _real, _extreme_jvp, False)
reduce_prod_p = _reduction("reduce_prod", np.prod, is_number, _prod_jvp, True)
reduce_and_p = _reduction("reduce_and", _and, _bits, zero_jvp, True)
reduce_or_p = _reduction("reduce_or", _or, _bits, zero_jvp, True)


def _arg(name: str, impl: Any) -> Primitive:
    def type_rule(x: Type, *, axis: int) -> Type:
        if x.shape[axis] == 0:
            raise FgradValueError(message(name, f"axis {axis} of {x} is empty"))
        return Type((*x.shape[:axis], *x.shape[axis + 1 :]), dtypes.int64)

    def batch(size: int, args: Sequence[Array], batched: Any, *, axis: int) -> tuple[Array, bool]:
        return bind(prim, args[0], axis=axis + 1), True

    prim = Primitive(
        name,
        type_rule,
        lambda x, *, axis: np.asarray(impl(x, axis=axis)).astype(np.int64),
        "reduce",
        jvp=zero_jvp,
        batch=batch,
    )
    return register(prim)


argmax_p = _arg("argmax", np.argmax)
argmin_p = _arg("argmin", np.argmin)


def reduce_max(x: Array, axes: Sequence[int]) -> Array:
    return bind(reduce_max_p, x, axes=tuple(axes)) if tuple(axes) else x


def reduce_min(x: Array, axes: Sequence[int]) -> Array:
    return bind(reduce_min_p, x, axes=tuple(axes)) if tuple(axes) else x


def reduce_prod(x: Array, axes: Sequence[int]) -> Array:
    return bind(reduce_prod_p, x, axes=tuple(axes)) if tuple(axes) else x


def reduce_and(x: Array, axes: Sequence[int]) -> Array:
    return bind(reduce_and_p, x, axes=tuple(axes)) if tuple(axes) else x


def reduce_or(x: Array, axes: Sequence[int]) -> Array:
    return bind(reduce_or_p, x, axes=tuple(axes)) if tuple(axes) else x


def argmax(x: Array, axis: int) -> Array:
    return bind(argmax_p, x, axis=axis)


def argmin(x: Array, axis: int) -> Array:
    return bind(argmin_p, x, axis=axis)
