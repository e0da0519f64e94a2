"""Stable sorting of several arrays together, along one axis, by the first of them (ties by the next).

Its derivative is the permutation: an iota sorted along says where each element came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.ir import Primitive, Type, register
from fgrad.ops.builders import batch_all
from fgrad.ops.index import take_along
from fgrad.ops.structure import iota
from fgrad.trace import bind


def _sort_type(*operands: Type, axis: int, num_keys: int) -> tuple[Type, ...]:
    if any(t.shape != operands[0].shape for t in operands) or not 0 <= axis < operands[0].ndim:
        raise FgradTypeError(
            message(
                "sort",
                f"operands must have one shape with an axis {axis}, got {', '.join(map(str, operands))}",
            )
        )
    if not 1 <= num_keys <= len(operands):
        raise FgradValueError(message("sort", f"num_keys={num_keys} with {len(operands)} operands"))
    return operands


def _sort_impl(*operands: np.ndarray, axis: int, num_keys: int) -> list[np.ndarray]:
    keys = [
        k.astype(np.float32) if k.dtype in (dtypes.float16, dtypes.bfloat16) else k
        for k in operands[:num_keys]
    ]
    if num_keys == 1:
        order = np.argsort(keys[0], axis=axis, kind="stable")
    else:
        order = np.lexsort(keys[::-1], axis=axis)  # the last key is the most important to NumPy
    return [np.take_along_axis(x, order, axis) for x in operands]


def _sort_jvp(
    primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, *, axis: int, num_keys: int
) -> list[Array | None]:
    position = iota(primals[0].shape, dtypes.int64, axis)
    order = sort([*primals[:num_keys], position], axis, num_keys)[-1]
    return [None if t is None else take_along(t, order, axis) for t in tangents]


def _sort_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, axis: int, num_keys: int
) -> tuple[list[Array], list[bool]]:
    return sort(batch_all(size, args, batched), axis + 1, num_keys), [True] * len(args)


sort_p = register(
    Primitive("sort", _sort_type, _sort_impl, "opaque", multiple=True, jvp=_sort_jvp, batch=_sort_batch)
)


def sort(operands: Sequence[Array], axis: int, num_keys: int = 1) -> list[Array]:
    """All operands in the order that sorts the first `num_keys` of them lexicographically. Stable; NaN comes last."""
    return bind(sort_p, *operands, axis=axis, num_keys=num_keys)
