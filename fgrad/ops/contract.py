"""`dot_general`: sums of products over chosen axes, with batch axes. Matrix products, einsum and attention are made of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradTypeError, message
from fgrad.ir import Type
from fgrad.ops.builders import argsort, batch_operand, is_number, multilinear
from fgrad.ops.structure import transpose
from fgrad.trace import bind

Ints = tuple[int, ...]
Dims = tuple[tuple[Ints, Ints], tuple[Ints, Ints]]


def _free(ndim: int, contract: Ints, batch: Ints) -> Ints:
    return tuple(i for i in range(ndim) if i not in contract and i not in batch)


def _dot_type(a: Type, b: Type, *, dims: Dims) -> Type:
    (ac, bc), (ab, bb) = dims
    if a.dtype != b.dtype or not is_number(a.dtype):
        raise FgradTypeError(message("dot_general", f"operands must have one numeric dtype, got {a} and {b}"))
    for what, i, j in (("contracted", ac, bc), ("batch", ab, bb)):
        if [a.shape[x] for x in i] != [b.shape[x] for x in j]:
            raise FgradTypeError(
                message("dot_general", f"{what} axes {i} of {a} and {j} of {b} differ in length")
            )
    batch = [a.shape[i] for i in ab]
    left = [a.shape[i] for i in _free(a.ndim, ac, ab)]
    right = [b.shape[i] for i in _free(b.ndim, bc, bb)]
    return Type((*batch, *left, *right), a.dtype)


def _dot_impl(a: np.ndarray, b: np.ndarray, *, dims: Dims) -> np.ndarray:
    (ac, bc), (ab, bb) = dims
    af, bf = _free(a.ndim, ac, ab), _free(b.ndim, bc, bb)
    dtype = a.dtype
    if dtype in (dtypes.float16, dtypes.bfloat16):  # accumulate in float32, as the compiled contractions do
        a, b = a.astype(np.float32), b.astype(np.float32)
    batch = [a.shape[i] for i in ab]
    left, right = [a.shape[i] for i in af], [b.shape[i] for i in bf]
    k = prod(a.shape[i] for i in ac)
    m, n = prod(left), prod(right)
    x = a.transpose((*ab, *af, *ac)).reshape((*batch, m, k))
    y = b.transpose((*bb, *bc, *bf)).reshape((*batch, k, n))
    return np.matmul(x, y).reshape((*batch, *left, *right)).astype(dtype, copy=False)


def _grad_left(ct: Array, a: Any, b: Array, *, dims: Dims) -> Array:
    """The cotangent of `a`: contract `ct` with `b` over the free axes of `b`, then put the axes where `a` has them."""
    (ac, bc), (ab, bb) = dims
    af, bf = _free(len(a.shape), ac, ab), _free(b.ndim, bc, bb)
    shared, at = tuple(range(len(ab))), len(ab) + len(af)
    out = dot_general(ct, b, ((tuple(range(at, at + len(bf))), bf), (shared, bb)))
    # axes of `out`: batch, free of a, then the contracted axes in the order in which they stand in b
    where = [*ab, *af, *[ac[bc.index(i)] for i in sorted(bc)]]
    return transpose(out, argsort(where))


def _grad_right(ct: Array, a: Array, b: Any, *, dims: Dims) -> Array:
    """The cotangent of `b`: contract `a` with `ct` over the free axes of `a`; `a` comes first so that for a matrix product
    the result lies as `b` does."""
    (ac, bc), (ab, bb) = dims
    af, bf = _free(a.ndim, ac, ab), _free(len(b.shape), bc, bb)
    shared, at = tuple(range(len(ab))), len(ab)
    out = dot_general(a, ct, ((af, tuple(range(at, at + len(af)))), (ab, shared)))
    # axes of `out`: batch, the contracted axes in the order in which they stand in a, then the free axes of b
    where = [*bb, *[bc[ac.index(i)] for i in sorted(ac)], *bf]
    return transpose(out, argsort(where))


def _dot_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, dims: Dims
) -> tuple[Array, bool]:
    (ac, bc), (ab, bb) = dims
    a, b = args

    def shift(axes: Ints, by: bool) -> Ints:
        return tuple(i + 1 for i in axes) if by else axes

    if all(batched):
        return bind(
            dot_general_p,
            a,
            b,
            dims=((shift(ac, True), shift(bc, True)), ((0, *shift(ab, True)), (0, *shift(bb, True)))),
        ), True
    if ab:  # batch axes come first in the output: the new one could not stay in front of them unless shared
        a, b = (x if f else batch_operand(x, size) for x, f in zip((a, b), batched, strict=True))
        return _dot_batch(size, (a, b), (True, True), dims=dims)
    new = ((shift(ac, batched[0]), shift(bc, batched[1])), ((), ()))
    out = bind(dot_general_p, a, b, dims=new)
    if batched[0]:
        return out, True
    # only b is batched: its batch axis is the first of its free axes, after those of a
    at = a.ndim - len(ac)
    return transpose(out, (at, *range(at), *range(at + 1, out.ndim))), True


dot_general_p = multilinear(
    "dot_general", _dot_type, _dot_impl, (_grad_left, _grad_right), _dot_batch, "contract"
)


def dot_general(a: Array, b: Array, dims: Dims) -> Array:
    """Sum of products. `dims = ((a_contract, b_contract), (a_batch, b_batch))`; the result has the batch axes, then the
    free axes of `a`, then those of `b` (as `jax.lax.dot_general`)."""
    (ac, bc), (ab, bb) = dims
    return bind(dot_general_p, a, b, dims=((tuple(ac), tuple(bc)), (tuple(ab), tuple(bb))))
