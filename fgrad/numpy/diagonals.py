"""Matrices from diagonals, and the positions of diagonals and triangles."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array, known
from fgrad.device import beside_arguments, constant
from fgrad.errors import FgradTypeError, message
from fgrad.numpy.at import At
from fgrad.numpy.indexing import diagonal
from fgrad.numpy.manipulation import ravel
from fgrad.ops import elementwise as ew
from fgrad.ops import structure as st
from fgrad.ops.builders import full_like


def diag(x: Any, k: int = 0) -> Array:
    """A matrix with the 1-d `x` on its k-th diagonal; of a matrix, its k-th diagonal."""
    a = as_array(x, "diag")
    if a.ndim == 2:
        return diagonal(a, k)
    if a.ndim != 1:
        raise FgradTypeError(
            message("diag", f"needs 1 or 2 axes, got {a.type}", "for stacks of matrices use diagonal")
        )
    n = a.size + abs(k)
    along = st.pad(a, 0, [max(k, 0)], [max(-k, 0)])  # element j of row i belongs in column j = i + k
    spread = st.broadcast(along, (n, n), (1,))
    rows, columns = st.iota((n, n), dtypes.int64, 0, a), st.iota((n, n), dtypes.int64, 1, a)
    on_it = ew.eq(ew.sub(columns, rows), full_like(rows, k))
    return ew.select(on_it, spread, full_like(spread, 0))


def diagflat(x: Any, k: int = 0) -> Array:
    """A matrix with all elements of `x` on its k-th diagonal."""
    return diag(ravel(x), k)


@beside_arguments
def fill_diagonal(x: Any, value: Any) -> Array:
    """A copy of the matrix `x` with `value` on its diagonal (NumPy writes into `x`; arrays here are immutable)."""
    a = as_array(x, "fill_diagonal")
    if a.ndim < 2:
        raise FgradTypeError(message("fill_diagonal", f"needs at least 2 axes, got {a.type}"))
    return At(a)[diag_indices(min(a.shape), a.ndim)].set(value)


def diag_indices(n: int, ndim: int = 2) -> tuple[Array, ...]:
    """Index arrays of the diagonal of an array of `ndim` axes of length n."""
    return (st.iota((n,), dtypes.int64, 0),) * ndim


@beside_arguments
def diag_indices_from(x: Any) -> tuple[Array, ...]:
    """Index arrays of the diagonal of `x`."""
    a = as_array(x, "diag_indices_from")
    return diag_indices(a.shape[0], a.ndim)


def _pair(found: tuple[np.ndarray, ...]) -> tuple[Array, Array]:
    return constant(found[0]), constant(found[1])


def tril_indices(n: int, k: int = 0, m: int | None = None) -> tuple[Array, Array]:
    """Row and column indices of the elements on and below the k-th diagonal of an (n, m) matrix."""
    return _pair(np.tril_indices(n, k, m))


def triu_indices(n: int, k: int = 0, m: int | None = None) -> tuple[Array, Array]:
    """Row and column indices of the elements on and above the k-th diagonal of an (n, m) matrix."""
    return _pair(np.triu_indices(n, k, m))


@beside_arguments
def tril_indices_from(x: Any, k: int = 0) -> tuple[Array, Array]:
    """`tril_indices` for the shape of the matrix `x`."""
    n, m = as_array(x, "tril_indices_from").shape
    return tril_indices(n, k, m)


@beside_arguments
def triu_indices_from(x: Any, k: int = 0) -> tuple[Array, Array]:
    """`triu_indices` for the shape of the matrix `x`."""
    n, m = as_array(x, "triu_indices_from").shape
    return triu_indices(n, k, m)


def ix_(*xs: Any) -> tuple[Array, ...]:
    """Index arrays that together pick the rows, columns, ... listed in 1-d `xs` (bools pick where they are True)."""
    arrays = [as_array(x, "ix_") for x in xs]
    if any(a.ndim != 1 for a in arrays):
        raise FgradTypeError(message("ix_", "every argument must be 1-dimensional"))
    out = []
    for i, a in enumerate(arrays):
        if a.dtype == dtypes.bool_:
            a = constant(np.flatnonzero(known("ix_", a, "give positions instead of bools")))
        out.append(st.reshape(a, [a.size if d == i else 1 for d in range(len(arrays))]))
    return tuple(out)
