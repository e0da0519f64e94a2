"""Running sums, products and extremes along one axis, from its beginning or (`reverse`) from its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.ir import Linear, Primitive, Type, register
from fgrad.ops.builders import full, full_like, is_number, linear, real_number, same_types
from fgrad.ops.elementwise import add, bitwise_or, eq, mul, ne, select
from fgrad.ops.index import take_along
from fgrad.ops.structure import concatenate, flip, iota, slice_
from fgrad.trace import bind


def _running(ufunc: Any) -> Any:
    def impl(x: np.ndarray, *, axis: int, reverse: bool) -> np.ndarray:
        # Half precision accumulates in float32, as the reductions do.
        wide = np.float32 if x.dtype in (dtypes.float16, dtypes.bfloat16) else x.dtype
        y = np.flip(x, axis) if reverse else x
        out = ufunc.accumulate(y.astype(wide, copy=False), axis=axis, dtype=wide).astype(x.dtype, copy=False)
        return np.flip(out, axis) if reverse else out

    return impl


def _type_rule(name: str, accepts: Any) -> Any:
    def type_rule(x: Type, *, axis: int, reverse: bool) -> Type:
        return same_types(name, (x,), accepts)

    return type_rule


def _sum_transpose(ct: Array, x: Linear, *, axis: int, reverse: bool) -> Array:
    return cumsum(ct, axis, not reverse)


def _sum_batch(
    size: int, args: Sequence[Array], batched: Any, *, axis: int, reverse: bool
) -> tuple[Array, bool]:
    return cumsum(args[0], axis + 1, reverse), True


cumsum_p = linear(
    "cumsum", _type_rule("cumsum", is_number), _running(np.add), _sum_transpose, _sum_batch, "cumulative"
)


def _cumulative(name: str, ufunc: Any, accepts: Any, jvp: Any) -> Primitive:
    def batch(
        size: int, args: Sequence[Array], batched: Any, *, axis: int, reverse: bool
    ) -> tuple[Array, bool]:
        return bind(prim, args[0], axis=axis + 1, reverse=reverse), True

    prim = Primitive(name, _type_rule(name, accepts), _running(ufunc), "cumulative", jvp=jvp, batch=batch)
    return register(prim)


def _shifted(x: Array, by: int, axis: int, fill: Any) -> Array:
    """`x` moved `by` places along `axis`, `fill` where nothing arrives."""
    stop, edge = list(x.shape), list(x.shape)
    stop[axis], edge[axis] = x.shape[axis] - by, by
    return concatenate([full(edge, fill, x.dtype), slice_(x, [0] * x.ndim, stop)], axis)


def _prod_jvp(
    primals: Sequence[Array], tangents: Sequence[Array], outs: Any, *, axis: int, reverse: bool
) -> Array:
    """Products of runs that double in length, and their tangents: right where elements are zero, unlike `out / x`.

    (Hillis and Steele 1986.)
    """
    x, t = primals[0], tangents[0]
    if reverse:
        x, t = flip(x, [axis]), flip(t, [axis])
    step = 1
    while step < x.shape[axis]:
        before, t_before = _shifted(x, step, axis, 1), _shifted(t, step, axis, 0)
        t = add(mul(t_before, x), mul(before, t))
        x = mul(before, x)
        step *= 2
    return flip(t, [axis]) if reverse else t


def _extreme_jvp(
    primals: Sequence[Array], tangents: Sequence[Array], outs: Sequence[Array], *, axis: int, reverse: bool
) -> Array:
    """The tangent of the element that is the extreme so far; of equal ones, the latest met."""
    x, out = primals[0], outs[0]
    position = iota(x.shape, dtypes.int64, axis)
    is_it = bitwise_or(eq(x, out), ne(x, x))
    none = full_like(position, x.shape[axis] - 1 if reverse else 0)
    latest = cummin if reverse else cummax
    return take_along(tangents[0], latest(select(is_it, position, none), axis, reverse), axis)


cumprod_p = _cumulative("cumprod", np.multiply, is_number, _prod_jvp)
cummax_p = _cumulative("cummax", np.maximum, real_number, _extreme_jvp)
cummin_p = _cumulative("cummin", np.minimum, real_number, _extreme_jvp)


def cumsum(x: Array, axis: int, reverse: bool = False) -> Array:
    return bind(cumsum_p, x, axis=axis, reverse=reverse)


def cumprod(x: Array, axis: int, reverse: bool = False) -> Array:
    return bind(cumprod_p, x, axis=axis, reverse=reverse)


def cummax(x: Array, axis: int, reverse: bool = False) -> Array:
    """The largest element so far; NaN once there was one."""
    return bind(cummax_p, x, axis=axis, reverse=reverse)


def cummin(x: Array, axis: int, reverse: bool = False) -> Array:
    """The smallest element so far; NaN once there was one."""
    return bind(cummin_p, x, axis=axis, reverse=reverse)
