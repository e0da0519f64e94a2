"""Sums of products: dot, matmul, tensordot, outer and their kin, all made of `dot_general`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import promote
from fgrad.errors import FgradShapeError, message
from fgrad.numpy.axes import axes_of, axis_of, broadcast_shapes, insert_axes, stretch
from fgrad.numpy.complexes import conj
from fgrad.numpy.elementwise import multiply, subtract
from fgrad.numpy.joining import concatenate
from fgrad.numpy.manipulation import moveaxis, ravel
from fgrad.numpy.reductions import sum as sum_over
from fgrad.ops.builders import full_like
from fgrad.ops.contract import dot_general
from fgrad.ops.elementwise import convert, ne
from fgrad.ops.structure import reshape, slice_

Dims = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def contract(a: Array, b: Array, dims: Dims) -> Array:
    """`dot_general`; of bools it is logical: any of ands."""
    if a.dtype != dtypes.bool_:
        return dot_general(a, b, dims)
    counts = dot_general(convert(a, dtypes.int32), convert(b, dtypes.int32), dims)
    return ne(counts, full_like(counts, 0))


def _mismatch(call: str, a: Array, b: Array, i: int, j: int, fix: str = "") -> FgradShapeError:
    return FgradShapeError(
        message(
            call,
            f"axis {i} of {a.type} (length {a.shape[i]}) and axis {j} of {b.type} (length {b.shape[j]}) must be equal",
            fix,
        )
    )


def _transposed_fits(a: Array, b: Array) -> str:
    if b.ndim >= 2 and a.ndim >= 1 and b.shape[-1] == a.shape[-1]:
        return "transpose the second operand: x @ y.mT"
    if a.ndim >= 2 and b.ndim >= 1 and a.shape[-2] == b.shape[max(-2, -b.ndim)]:
        return "transpose the first operand: x.mT @ y"
    return "the last axis of the first must match the second to last of the second"


def matmul(x: Any, y: Any, /, precision: Any = None) -> Array:
    """The matrix product: (..., n, k) with (..., k, m) to (..., n, m), leading axes broadcast; 1-d operands are vectors.

    Raises FgradShapeError (a TypeError) if the contracted axes differ in length.
    """
    a, b = promote(x, y, call="matmul")
    if a.ndim == 0 or b.ndim == 0:
        raise FgradShapeError(
            message(
                "matmul", f"0-dimensional operand: {a.type} and {b.type}", "use * to multiply by a scalar"
            )
        )
    j = max(b.ndim - 2, 0)
    if a.shape[-1] != b.shape[j]:
        raise _mismatch("matmul", a, b, a.ndim - 1, j, _transposed_fits(a, b))
    if b.ndim <= 2:
        return contract(a, b, (((a.ndim - 1,), (j,)), ((), ())))
    if a.ndim == 1:
        out = contract(b, a, (((j,), (0,)), ((), ())))
        return out
    batch = broadcast_shapes(a.shape[:-2], b.shape[:-2], call="matmul")
    a, b = stretch(a, (*batch, *a.shape[-2:])), stretch(b, (*batch, *b.shape[-2:]))
    n = len(batch)
    lead = tuple(range(n))
    return contract(a, b, (((n + 1,), (n,)), (lead, lead)))


def dot(x: Any, y: Any, /) -> Array:
    """The sum of products over the last axis of `x` and the second to last of `y` (scalars multiply)."""
    a, b = promote(x, y, call="dot")
    if a.ndim == 0 or b.ndim == 0:
        return multiply(a, b)
    j = max(b.ndim - 2, 0)
    if a.shape[-1] != b.shape[j]:
        raise _mismatch("dot", a, b, a.ndim - 1, j, _transposed_fits(a, b))
    return contract(a, b, (((a.ndim - 1,), (j,)), ((), ())))


def vdot(x: Any, y: Any, /) -> Array:
    """The dot product of the flattened arrays (the first conjugated, if complex)."""
    a, b = promote(x, y, call="vdot")
    return dot(ravel(conj(a)), ravel(b))


def vecdot(x: Any, y: Any, /, axis: int = -1) -> Array:
    """The dot product along `axis`; the other axes broadcast."""
    return sum_over(multiply(conj(x), y), axis)


def matvec(x: Any, y: Any, /) -> Array:
    """(..., n, k) with (..., k) to (..., n)."""
    a, b = promote(x, y, call="matvec")
    return reshape_last(matmul(a, insert_axes(b, (b.ndim,))))


def vecmat(x: Any, y: Any, /) -> Array:
    """(..., k) with (..., k, n) to (..., n)."""
    a, b = promote(x, y, call="vecmat")
    out = matmul(insert_axes(a, (a.ndim - 1,)), b)
    return reshape(out, (*out.shape[:-2], out.shape[-1]))


def reshape_last(x: Array) -> Array:
    """`x` without its last axis, which has length 1."""
    return reshape(x, x.shape[:-1])


def inner(x: Any, y: Any, /) -> Array:
    """The sum of products over the last axes of both."""
    a, b = promote(x, y, call="inner")
    if a.ndim == 0 or b.ndim == 0:
        return multiply(a, b)
    if a.shape[-1] != b.shape[-1]:
        raise _mismatch("inner", a, b, a.ndim - 1, b.ndim - 1)
    return contract(a, b, (((a.ndim - 1,), (b.ndim - 1,)), ((), ())))


def outer(x: Any, y: Any, /) -> Array:
    """All products of an element of `x` and one of `y`: shape (x.size, y.size)."""
    a, b = promote(x, y, call="outer")
    return multiply(reshape(a, (a.size, 1)), reshape(b, (1, b.size)))


def tensordot(x: Any, y: Any, axes: int | Sequence[Any] = 2) -> Array:
    """The sum of products over `axes`: the last n of `x` and first n of `y`, or a pair of lists of axes."""
    a, b = promote(x, y, call="tensordot")
    if isinstance(axes, int):
        if axes > min(a.ndim, b.ndim):
            raise FgradShapeError(message("tensordot", f"axes={axes} for {a.type} and {b.type}"))
        left, right = tuple(range(a.ndim - axes, a.ndim)), tuple(range(axes))
    else:
        left, right = axes_of(axes[0], a.ndim, "tensordot"), axes_of(axes[1], b.ndim, "tensordot")
    if len(left) != len(right):
        raise FgradShapeError(
            message(
                "tensordot", f"axes={axes} names {len(left)} axes of the first and {len(right)} of the second"
            )
        )
    for i, j in zip(left, right, strict=True):
        if a.shape[i] != b.shape[j]:
            raise _mismatch("tensordot", a, b, i, j)
    return contract(a, b, ((left, right), ((), ())))


def kron(x: Any, y: Any, /) -> Array:
    """The Kronecker product: a copy of `y` for each element of `x`, times it."""
    a, b = promote(x, y, call="kron")
    n = max(a.ndim, b.ndim)
    s, t = (1,) * (n - a.ndim) + a.shape, (1,) * (n - b.ndim) + b.shape
    blocks = multiply(reshape(a, [v for m in s for v in (m, 1)]), reshape(b, [v for m in t for v in (1, m)]))
    return reshape(blocks, [p * q for p, q in zip(s, t, strict=True)])


def cross(x: Any, y: Any, axis: int = -1) -> Array:
    """The cross product of vectors of length 3 along `axis` (length 2: only the third component)."""
    a, b = promote(x, y, call="cross")
    a, b = (moveaxis(v, axis_of(axis, v.ndim, "cross"), -1) for v in (a, b))
    n = a.shape[-1]
    if n not in (2, 3) or b.shape[-1] != n:
        raise FgradShapeError(
            message("cross", f"vectors must both have length 3 (or 2), got {a.shape[-1]} and {b.shape[-1]}")
        )

    def part(v: Array, i: int) -> Array:
        low, high = [0] * v.ndim, list(v.shape)
        low[-1], high[-1] = i, i + 1
        return slice_(v, low, high)

    def component(i: int, j: int) -> Array:
        return subtract(multiply(part(a, i), part(b, j)), multiply(part(a, j), part(b, i)))

    if n == 2:
        return reshape_last(component(0, 1))
    return moveaxis(concatenate([component(1, 2), component(2, 0), component(0, 1)], -1), -1, axis)
