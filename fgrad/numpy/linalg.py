"""Linear algebra on (stacks of) matrices in the last two axes, by `numpy.linalg`'s names. Half precision becomes float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array, promote
from fgrad.errors import FgradShapeError, FgradTypeError, FgradValueError, message
from fgrad.numpy.axes import axes_of, broadcast_shapes, insert_axes, stretch
from fgrad.numpy.creation import eye
from fgrad.numpy.elementwise import (
    absolute,
    divide,
    greater,
    multiply,
    not_equal,
    power,
    square,
    subtract,
    where,
)
from fgrad.numpy.elementwise import sqrt as root
from fgrad.numpy.indexing import diagonal as _diagonal_of
from fgrad.numpy.manipulation import matrix_transpose, moveaxis
from fgrad.numpy.products import cross, matmul, outer, tensordot, vecdot
from fgrad.numpy.reductions import max as largest
from fgrad.numpy.reductions import min as smallest
from fgrad.numpy.reductions import sum as sum_over
from fgrad.ops import elementwise as ew
from fgrad.ops import linalg as la
from fgrad.ops import structure as st

__all__ = ["cross", "matmul", "matrix_transpose", "outer", "tensordot", "vecdot"]


class EighResult(NamedTuple):
    eigenvalues: Array
    eigenvectors: Array


class QRResult(NamedTuple):
    Q: Array
    R: Array


class SVDResult(NamedTuple):
    U: Array
    S: Array
    Vh: Array


class SlogdetResult(NamedTuple):
    sign: Array
    logabsdet: Array


def _matrix(x: Any, call: str, square_: bool = False) -> Array:
    a = as_array(x, call)
    a = ew.convert(a, dtypes.to_inexact(a.dtype))
    if a.ndim < 2:
        raise FgradShapeError(message(call, f"needs a matrix (at least 2 axes), got {a.type}"))
    if square_ and a.shape[-1] != a.shape[-2]:
        raise FgradShapeError(
            message(call, f"the last two axes must be equal (a square matrix), got {a.type}")
        )
    return ew.convert(a, dtypes.float32) if a.dtype.itemsize == 2 else a


# ------------------------------------------------------------------------------------------------ solving


def solve(a: Any, b: Any) -> Array:
    """`x` with a @ x = b. a (..., n, n); b (n,) or (..., n, k); leading axes broadcast."""
    m, rhs = promote(a, b, call="solve", inexact=True)
    m, rhs = _matrix(m, "solve", True), ew.convert(rhs, dtypes.float32) if rhs.dtype.itemsize == 2 else rhs
    vector = rhs.ndim == 1
    if vector:
        rhs = insert_axes(rhs, (1,))
    if rhs.ndim == 0 or rhs.shape[-2] != m.shape[-1]:
        raise FgradShapeError(
            message("solve", f"matrix {m.type} and right-hand side {as_array(b).type} do not fit")
        )
    lead = broadcast_shapes(m.shape[:-2], rhs.shape[:-2], call="solve")
    out = la.solve(stretch(m, (*lead, *m.shape[-2:])), stretch(rhs, (*lead, *rhs.shape[-2:])))
    return st.reshape(out, out.shape[:-1]) if vector else out


def inv(a: Any) -> Array:
    """The inverse of square matrices; a ValueError if one is singular."""
    return la.inv(_matrix(a, "inv", True))


def det(a: Any) -> Array:
    """The determinant of square matrices."""
    return la.det(_matrix(a, "det", True))


def slogdet(a: Any) -> SlogdetResult:
    """(sign, log of the absolute value) of the determinant."""
    return SlogdetResult(*la.slogdet(_matrix(a, "slogdet", True)))


def cholesky(a: Any, upper: bool = False) -> Array:
    """The lower triangular L with L @ L.T = a (or the upper one) of symmetric positive definite matrices."""
    low = la.cholesky(_matrix(a, "cholesky", True))
    return matrix_transpose(low) if upper else low


def lstsq(a: Any, b: Any, rcond: float | None = None) -> tuple[Array, Array, Array, Array]:
    """(x, residuals, rank, singular values): the x of least norm that minimises |a @ x - b|. a (m, n); b (m,) or (m, k).

    Residuals are given also where NumPy leaves them out (m <= n or deficient rank).
    """
    m, rhs = promote(a, b, call="lstsq", inexact=True)
    m = _matrix(m, "lstsq")
    if m.ndim != 2 or rhs.ndim not in (1, 2) or rhs.shape[0] != m.shape[0]:
        raise FgradShapeError(message("lstsq", f"{m.type} and {rhs.type} do not fit"))
    vector = rhs.ndim == 1
    columns = insert_axes(rhs, (1,)) if vector else rhs
    u, s, vt = la.svd(m, full_matrices=False)
    keep = _kept(s, rcond, max(m.shape))
    weighted = multiply(
        where(insert_axes(keep, (1,)), divide(1, insert_axes(where(keep, s, 1), (1,))), 0),
        matmul(matrix_transpose(u), columns),
    )
    x = matmul(matrix_transpose(vt), weighted)
    residuals = sum_over(square(subtract(columns, matmul(m, x))), 0)
    return (st.reshape(x, x.shape[:1]) if vector else x), residuals, sum_over(keep), s


def _kept(s: Array, rcond: Any, n: int) -> Array:
    """Which singular values count as not 0."""
    rcond = float(ml_dtypes.finfo(s.dtype).eps) * n if rcond is None else rcond
    return greater(s, multiply(rcond, largest(s, -1, keepdims=True)))


def pinv(a: Any, rcond: float | None = None) -> Array:
    """The Moore-Penrose inverse, by singular values; those below `rcond` times the largest count as 0."""
    m = _matrix(a, "pinv")
    u, s, vt = la.svd(m, full_matrices=False)
    keep = _kept(s, 1e-15 if rcond is None and s.dtype == dtypes.float64 else rcond, max(m.shape[-2:]))
    inverse = where(keep, divide(1, where(keep, s, 1)), 0)
    return matmul(
        multiply(matrix_transpose(vt), insert_axes(inverse, (inverse.ndim - 1,))), matrix_transpose(u)
    )


# ------------------------------------------------------------------------------------------------ decompositions


def qr(a: Any, mode: str = "reduced") -> Any:
    """(Q, R) with a = Q @ R: orthonormal columns, upper triangular. mode "reduced", "complete" or "r" (R alone)."""
    if mode not in ("reduced", "complete", "r"):
        raise FgradValueError(message("qr", f"mode={mode!r}", 'use "reduced", "complete" or "r"'))
    result = QRResult(*la.qr(_matrix(a, "qr"), mode == "complete"))
    return result.R if mode == "r" else result


def svd(a: Any, full_matrices: bool = True, compute_uv: bool = True) -> Any:
    """(U, S, Vh) with a = U @ diag(S) @ Vh, singular values descending; S alone without `compute_uv`."""
    m = _matrix(a, "svd")
    return SVDResult(*la.svd(m, full_matrices)) if compute_uv else la.svdvals(m)


def svdvals(a: Any) -> Array:
    """The singular values, descending."""
    return la.svdvals(_matrix(a, "svdvals"))


def eigh(a: Any) -> EighResult:
    """(eigenvalues ascending, eigenvectors in columns) of symmetric matrices, of which the symmetric part is taken."""
    return EighResult(*la.eigh(_matrix(a, "eigh", True)))


def eigvalsh(a: Any) -> Array:
    """The eigenvalues of symmetric matrices, ascending."""
    return eigh(a).eigenvalues


# ------------------------------------------------------------------------------------------------ norms


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Array:
    """Vector norms along one axis (ord: 2, 1, inf, -inf, 0, any p), matrix norms over two ("fro", "nuc", 1, -1, 2, -2, inf, -inf).

    Without `axis`: of all elements (ord None), of a vector, or of a matrix.
    """
    a = as_array(x, "norm")
    a = ew.convert(a, dtypes.to_inexact(a.dtype))
    if axis is None:
        if ord is None:
            return _euclidean(a, tuple(range(a.ndim)), keepdims)
        if a.ndim not in (1, 2):
            raise FgradValueError(
                message(
                    "norm",
                    f"ord={ord!r} of {a.type} needs axis=",
                    "give the axis (vectors) or the two axes (matrices)",
                )
            )
        axis = tuple(range(a.ndim))
    axes = axes_of(axis, a.ndim, "norm")
    if len(axes) == 1:
        return _vector_norm(a, 2 if ord is None else ord, axes, keepdims)
    if len(axes) == 2:
        return _matrix_norm(a, "fro" if ord is None else ord, axes, keepdims)
    raise FgradValueError(message("norm", f"axis={axis}", "one axis for vectors, two for matrices"))


def _euclidean(a: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    size = absolute(a) if dtypes.is_complex(a.dtype) else a
    return root(sum_over(square(size), axes, keepdims=keepdims))


def _vector_norm(a: Array, ord: Any, axes: tuple[int, ...], keepdims: bool) -> Array:
    if isinstance(ord, str):
        raise FgradValueError(message("norm", f"ord={ord!r} is not a vector norm"))
    if ord == 2:
        return _euclidean(a, axes, keepdims)
    size = absolute(a)
    if ord == math.inf:
        return largest(size, axes, keepdims)
    if ord == -math.inf:
        return smallest(size, axes, keepdims)
    if ord == 0:
        return sum_over(ew.convert(not_equal(size, 0), size.dtype), axes, keepdims=keepdims)
    if ord == 1:
        return sum_over(size, axes, keepdims=keepdims)
    return power(sum_over(power(size, ord), axes, keepdims=keepdims), 1 / ord)


def _matrix_norm(a: Array, ord: Any, axes: tuple[int, ...], keepdims: bool) -> Array:
    rows, columns = axes
    if ord == "fro":
        return _euclidean(a, axes, keepdims)
    if ord in (1, -1, math.inf, -math.inf):
        inner, outer_ = (rows, columns) if abs(ord) == 1 else (columns, rows)
        sums = sum_over(absolute(a), inner, keepdims=True)
        out = (largest if ord > 0 else smallest)(sums, outer_, keepdims=True)
    elif ord in (2, -2, "nuc"):
        s = la.svdvals(_matrix(moveaxis(a, (rows, columns), (-2, -1)), "norm"))
        value = sum_over(s, -1) if ord == "nuc" else (largest if ord == 2 else smallest)(s, -1)
        out = insert_axes(value, axes)
    else:
        raise FgradValueError(
            message("norm", f"ord={ord!r} is not a matrix norm", "use fro, nuc, 1, -1, 2, -2, inf or -inf")
        )
    return out if keepdims else st.reshape(out, [n for i, n in enumerate(a.shape) if i not in axes])


def vector_norm(x: Any, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Array:
    """The norm of the vectors along `axis` (several axes count as one; None: all)."""
    a = as_array(x, "vector_norm")
    a = ew.convert(a, dtypes.to_inexact(a.dtype))
    return _vector_norm(a, ord, axes_of(axis, a.ndim, "vector_norm"), keepdims)


def matrix_norm(x: Any, keepdims: bool = False, ord: Any = "fro") -> Array:
    """The norm of the matrices in the last two axes."""
    a = _matrix(x, "matrix_norm")
    return _matrix_norm(a, ord, (a.ndim - 2, a.ndim - 1), keepdims)


def cond(x: Any, p: Any = None) -> Array:
    """The condition number: the largest over the smallest singular value, or norm(x, p) * norm(inv(x), p)."""
    m = _matrix(x, "cond")
    if p in (None, 2, -2):
        s = la.svdvals(m)
        top, low = largest(s, -1), smallest(s, -1)
        return divide(low, top) if p == -2 else divide(top, low)
    return multiply(matrix_norm(m, ord=p), matrix_norm(inv(m), ord=p))


def matrix_rank(a: Any, tol: Any = None, rtol: Any = None) -> Array:
    """How many singular values exceed `tol` (or `rtol` times the largest)."""
    m = _matrix(a, "matrix_rank")
    s = la.svdvals(m)
    keep = greater(s, tol) if tol is not None else _kept(s, rtol, max(m.shape[-2:]))
    return sum_over(keep, -1)


# ------------------------------------------------------------------------------------------------ products


def matrix_power(a: Any, n: int) -> Array:
    """A square matrix multiplied with itself n times; the inverse for negative n."""
    m = as_array(a, "matrix_power")
    if m.ndim < 2 or m.shape[-1] != m.shape[-2]:
        raise FgradShapeError(message("matrix_power", f"needs square matrices, got {m.type}"))
    if not isinstance(n, (int, np.integer)):
        raise FgradTypeError(message("matrix_power", f"the exponent must be an integer, got {n!r}"))
    if n == 0:
        return stretch(eye(m.shape[-1], dtype=m.dtype), m.shape)
    if n < 0:
        m, n = inv(m), -n
    out = None
    while n:
        if n & 1:
            out = m if out is None else matmul(out, m)
        n >>= 1
        if n:
            m = matmul(m, m)
    return out  # type: ignore[return-value]


def multi_dot(arrays: Sequence[Any]) -> Array:
    """The product of several matrices (the first and last may be vectors), multiplied in the cheapest order."""
    parts = promote(*arrays, call="multi_dot")
    if len(parts) < 2:
        raise FgradValueError(message("multi_dot", "needs at least two arrays"))
    first_vector, last_vector = parts[0].ndim == 1, parts[-1].ndim == 1
    if first_vector:
        parts[0] = insert_axes(parts[0], (0,))
    if last_vector:
        parts[-1] = insert_axes(parts[-1], (1,))
    if any(p.ndim != 2 for p in parts):
        raise FgradShapeError(
            message("multi_dot", f"needs matrices, got {', '.join(str(p.type) for p in parts)}")
        )
    out = _chain(parts, _best_splits([p.shape[0] for p in parts] + [parts[-1].shape[1]]), 0, len(parts) - 1)
    shape = out.shape[1 if first_vector else 0 : 1 if last_vector else 2]
    return st.reshape(out, shape)


def _best_splits(dims: Sequence[int]) -> dict[tuple[int, int], int]:
    """Where to split each product i..j (Cormen et al., Introduction to Algorithms, matrix-chain order)."""
    n = len(dims) - 1
    cost = {(i, i): 0 for i in range(n)}
    split = {}
    for length in range(2, n + 1):
        for i in range(n - length + 1):
            j = i + length - 1
            best = min(
                range(i, j), key=lambda k: cost[i, k] + cost[k + 1, j] + dims[i] * dims[k + 1] * dims[j + 1]
            )
            cost[i, j] = cost[i, best] + cost[best + 1, j] + dims[i] * dims[best + 1] * dims[j + 1]
            split[i, j] = best
    return split


def _chain(parts: Sequence[Array], split: dict[tuple[int, int], int], i: int, j: int) -> Array:
    if i == j:
        return parts[i]
    k = split[i, j]
    return matmul(_chain(parts, split, i, k), _chain(parts, split, k + 1, j))


def diagonal(x: Any, offset: int = 0) -> Array:
    """The diagonals of the matrices in the last two axes."""
    a = _matrix(x, "diagonal")
    return _diagonal_of(a, offset, -2, -1)


def trace(x: Any, offset: int = 0) -> Array:
    """The sums of the diagonals of the matrices in the last two axes."""
    return sum_over(diagonal(x, offset), -1)
