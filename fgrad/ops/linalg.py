"""Linear systems and factorisations of stacks of matrices: shape (..., n, m), batched over the leading axes.

Derivatives: Giles, "An extended collection of matrix derivative results" (2008); for QR, Walter and Lehmann (2010).
What a factorisation does not determine (signs, bases of repeated eigenvalues) has no derivative; where two eigenvalues or
singular values are exactly equal, the part of the derivative that would divide by their difference is taken as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.ir import Primitive, Type, register
from fgrad.ops.builders import batch_all, full_like, reduce_sum_p
from fgrad.ops.contract import dot_general
from fgrad.ops.elementwise import add, eq, ge, gt, mul, neg, reciprocal, select, sub
from fgrad.ops.structure import broadcast, iota, move_axis, reshape, transpose
from fgrad.trace import bind

Rule = Callable[..., Any]

_REAL: frozenset[Any] = frozenset({dtypes.float32, dtypes.float64})
_ANY: frozenset[Any] = _REAL | dtypes.COMPLEX


# ------------------------------------------------------------------------------------------------ helpers of the rules


def matrix_transpose(x: Array) -> Array:
    """The last two axes exchanged."""
    return transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def matmul(x: Array, y: Array) -> Array:
    """Products of stacks of matrices with the same leading axes."""
    n = x.ndim
    batch = tuple(range(n - 2))
    return dot_general(x, y, (((n - 1,), (n - 2,)), (batch, batch)))


def _positions(x: Array) -> tuple[Array, Array]:
    return iota(x.shape, dtypes.int64, x.ndim - 2), iota(x.shape, dtypes.int64, x.ndim - 1)


def _lower(x: Array) -> Array:
    """The lower triangle with the diagonal."""
    return select(ge(*_positions(x)), x, full_like(x, 0))


def _strictly_lower(x: Array) -> Array:
    return select(gt(*_positions(x)), x, full_like(x, 0))


def _diagonal(x: Array) -> Array:
    return bind(reduce_sum_p, select(eq(*_positions(x)), x, full_like(x, 0)), axes=(x.ndim - 1,))


def _trace(x: Array) -> Array:
    return bind(reduce_sum_p, _diagonal(x), axes=(x.ndim - 2,))


def _identity_like(x: Array) -> Array:
    return select(eq(*_positions(x)), full_like(x, 1), full_like(x, 0))


def _rows(v: Array, shape: Sequence[int]) -> Array:
    """`v` (..., n) as a matrix whose row i is all v[i]."""
    return broadcast(v, shape, (*range(v.ndim - 1), v.ndim - 1))


def _columns(v: Array, shape: Sequence[int]) -> Array:
    """`v` (..., m) as a matrix whose column j is all v[j]."""
    return broadcast(v, shape, (*range(v.ndim - 1), v.ndim))


def _symmetric(x: Array) -> Array:
    return mul(add(x, matrix_transpose(x)), full_like(x, 0.5))


def _reciprocal_or_zero(x: Array) -> Array:
    zero = eq(x, full_like(x, 0))
    return select(zero, full_like(x, 0), reciprocal(select(zero, full_like(x, 1), x)))


# ------------------------------------------------------------------------------------------------ helpers of the records


def _check(name: str, x: Type, square: bool = True, accepts: frozenset[Any] = _REAL) -> None:
    if x.dtype not in accepts:
        kinds = "float32 or float64" if accepts is _REAL else "float32, float64 or complex"
        raise FgradTypeError(
            message(name, f"expected {kinds} matrices, got {x}", "convert with x.astype('float32')")
        )
    if x.ndim < 2 or (square and x.shape[-1] != x.shape[-2]):
        kind = "square matrices" if square else "matrices"
        raise FgradTypeError(message(name, f"expected {kind} (two last axes), got {x}"))


def _numpy(name: str, f: Callable[..., Any]) -> Rule:
    """`f` with NumPy's LinAlgError as ours."""

    def impl(*args: np.ndarray, **params: Any) -> Any:
        try:
            return f(*args, **params)
        except np.linalg.LinAlgError as e:
            raise FgradValueError(message(name, str(e))) from e

    return impl


def _stacked(
    prim_name: str,
    type_rule: Rule,
    impl: Rule,
    jvp: Rule,
    transpose: Rule | None = None,
    multiple: bool = False,
) -> Primitive:
    """A primitive whose leading axes are all batch axes, so that one more of them is no work."""

    def batch(size: int, args: Sequence[Array], batched: Sequence[bool], **params: Any) -> tuple[Any, Any]:
        outs = bind(prim, *batch_all(size, args, batched), **params)
        return outs, [True] * len(outs) if multiple else True

    prim = Primitive(
        prim_name,
        type_rule,
        _numpy(prim_name, impl),
        "opaque",
        multiple=multiple,
        jvp=jvp,
        transpose=transpose,
        batch=batch,
    )
    return register(prim)


# ------------------------------------------------------------------------------------------------ linear systems


def _solve_type(name: str) -> Rule:
    def type_rule(a: Type, b: Type, **params: Any) -> Type:
        _check(name, a, accepts=_ANY)
        if b.dtype != a.dtype or b.ndim != a.ndim or b.shape[:-1] != a.shape[:-1]:
            raise FgradTypeError(
                message(
                    name,
                    f"the right-hand side of {a} must be {a.dtype}{list(a.shape[:-1])} + (columns,), got {b}",
                )
            )
        return b

    return type_rule


def _solve_jvp(primals: Sequence[Array], tangents: Sequence[Array | None], outs: Sequence[Array]) -> Array:
    """a x = b  =>  a x' = b' - a' x."""
    ta, tb = tangents
    right = tb
    if ta is not None:
        change = matmul(ta, outs[0])
        right = neg(change) if tb is None else sub(tb, change)
    return solve(primals[0], right)  # type: ignore[arg-type]


def _solve_transpose(cts: Sequence[Array], a: Any, b: Any) -> tuple[Any, Any]:
    return None, solve(matrix_transpose(a), cts[0])


def _triangular_impl(
    a: np.ndarray, b: np.ndarray, *, lower: bool, transpose_a: bool, unit_diagonal: bool
) -> np.ndarray:
    t = np.tril(a) if lower else np.triu(a)
    if unit_diagonal:
        i = np.arange(a.shape[-1])
        t[..., i, i] = 1
    if not unit_diagonal and (np.diagonal(t, axis1=-2, axis2=-1) == 0).any():
        raise np.linalg.LinAlgError("Singular matrix: there is a zero on the diagonal")
    return np.linalg.solve(t.swapaxes(-1, -2) if transpose_a else t, b)


def _triangle(x: Array, lower: bool, unit_diagonal: bool) -> Array:
    part = _strictly_lower if unit_diagonal else _lower
    return part(x) if lower else matrix_transpose(part(matrix_transpose(x)))


def _triangular_jvp(
    primals: Sequence[Array],
    tangents: Sequence[Array | None],
    outs: Sequence[Array],
    *,
    lower: bool,
    transpose_a: bool,
    unit_diagonal: bool,
) -> Array:
    ta, tb = tangents
    right = tb
    if ta is not None:
        ta = _triangle(ta, lower, unit_diagonal)
        change = matmul(matrix_transpose(ta) if transpose_a else ta, outs[0])
        right = neg(change) if tb is None else sub(tb, change)
    return triangular_solve(primals[0], right, lower, transpose_a, unit_diagonal)  # type: ignore[arg-type]


def _triangular_transpose(
    cts: Sequence[Array], a: Any, b: Any, *, lower: bool, transpose_a: bool, unit_diagonal: bool
) -> tuple[Any, Any]:
    return None, triangular_solve(a, cts[0], lower, not transpose_a, unit_diagonal)


def _square_type(name: str, accepts: frozenset[Any]) -> Rule:
    def type_rule(a: Type) -> Type:
        _check(name, a, accepts=accepts)
        return a

    return type_rule


def _inv_jvp(primals: Any, tangents: Sequence[Array], outs: Sequence[Array]) -> Array:
    return neg(matmul(outs[0], matmul(tangents[0], outs[0])))


solve_p = _stacked("solve", _solve_type("solve"), np.linalg.solve, _solve_jvp, _solve_transpose)
triangular_solve_p = _stacked(
    "triangular_solve",
    _solve_type("triangular_solve"),
    _triangular_impl,
    _triangular_jvp,
    _triangular_transpose,
)
inv_p = _stacked("inv", _square_type("inv", _ANY), np.linalg.inv, _inv_jvp)


def _solve_batch(
    prim: Primitive, size: int, args: Sequence[Array], batched: Sequence[bool], params: dict[str, Any]
) -> tuple[Array, bool]:
    """One matrix for all examples is factorised once: their right-hand sides become further columns."""
    a, b = batch_all(size, args, batched) if batched[0] else args
    if batched[0]:
        return bind(prim, a, b, **params), True
    last = move_axis(b, 0, b.ndim - 1)
    x = bind(prim, a, reshape(last, (*last.shape[:-2], last.shape[-2] * size)), **params)
    return move_axis(reshape(x, last.shape), last.ndim - 1, 0), True


solve_p.batch = lambda size, args, batched: _solve_batch(solve_p, size, args, batched, {})
triangular_solve_p.batch = lambda size, args, batched, **p: _solve_batch(
    triangular_solve_p, size, args, batched, p
)

# ------------------------------------------------------------------------------------------------ determinants


def _det_type(a: Type) -> Type:
    _check("det", a)
    return Type(a.shape[:-2], a.dtype)


def _det_jvp(primals: Sequence[Array], tangents: Sequence[Array], outs: Any) -> Array:
    n = tangents[0].ndim
    return bind(reduce_sum_p, mul(bind(cofactor_p, primals[0]), tangents[0]), axes=(n - 2, n - 1))


def _cofactor_impl(a: np.ndarray) -> np.ndarray:
    """From the singular values, so that it is right for singular matrices too."""
    n = a.shape[-1]
    if n == 0:
        return a.copy()
    u, s, vt = np.linalg.svd(a)
    others = np.stack([np.prod(np.delete(s, i, axis=-1), axis=-1) for i in range(n)], axis=-1)
    sign = np.linalg.det(u) * np.linalg.det(vt)
    return sign[..., None, None] * ((u * others[..., None, :]) @ vt)


def _cofactor_jvp(primals: Sequence[Array], tangents: Sequence[Array], outs: Sequence[Array]) -> Array:
    """cof = det(a) a^-T, for regular a."""
    back = matrix_transpose(bind(inv_p, primals[0]))
    turned = matmul(back, matmul(matrix_transpose(tangents[0]), outs[0]))
    scale = _trace(matmul(matrix_transpose(back), tangents[0]))
    return sub(mul(outs[0], broadcast(scale, turned.shape, range(scale.ndim))), turned)


def _slogdet_type(a: Type) -> tuple[Type, Type]:
    _check("slogdet", a)
    return Type(a.shape[:-2], a.dtype), Type(a.shape[:-2], a.dtype)


def _slogdet_jvp(primals: Sequence[Array], tangents: Sequence[Array], outs: Any) -> tuple[None, Array]:
    return None, _trace(solve(primals[0], tangents[0]))


det_p = _stacked("det", _det_type, np.linalg.det, _det_jvp)
cofactor_p = _stacked("cofactor", _square_type("cofactor", _REAL), _cofactor_impl, _cofactor_jvp)
slogdet_p = _stacked("slogdet", _slogdet_type, np.linalg.slogdet, _slogdet_jvp, multiple=True)

# ------------------------------------------------------------------------------------------------ factorisations


def _mean_with_transpose(a: np.ndarray) -> np.ndarray:
    return (a + a.swapaxes(-1, -2)) / 2


def _cholesky_jvp(primals: Any, tangents: Sequence[Array], outs: Sequence[Array]) -> Array:
    """L' = L Phi(L^-1 a' L^-T), where Phi takes the lower triangle and half the diagonal."""
    factor = outs[0]
    left = triangular_solve(factor, _symmetric(tangents[0]), True)
    middle = triangular_solve(factor, matrix_transpose(left), True)
    half = mul(_identity_like(middle), full_like(middle, 0.5))
    return matmul(factor, sub(_lower(middle), mul(half, middle)))


def _qr_type(a: Type, *, full_matrices: bool) -> tuple[Type, Type]:
    _check("qr", a, square=False)
    *lead, m, n = a.shape
    k = m if full_matrices else min(m, n)
    return Type((*lead, m, k), a.dtype), Type((*lead, k, n), a.dtype)


def _qr_jvp(
    primals: Sequence[Array], tangents: Sequence[Array], outs: Sequence[Array], *, full_matrices: bool
) -> tuple[Array, Array]:
    q, r = outs
    m, n = primals[0].shape[-2:]
    if m < n or (full_matrices and m != n):
        raise NotImplementedError(
            message(
                "qr",
                f"the derivative is defined for matrices with at least as many rows as columns and full_matrices=False, not {m} x {n}",
            )
        )
    # a' r^-1, its part in the span of q, and the antisymmetric matrix that rotates q
    x = matrix_transpose(triangular_solve(r, matrix_transpose(tangents[0]), False, True))
    inside = matmul(matrix_transpose(q), x)
    below = _strictly_lower(inside)
    rotation = sub(below, matrix_transpose(below))
    tq = add(matmul(q, sub(rotation, inside)), x)
    return tq, matmul(sub(inside, rotation), r)


def _svd_type(a: Type, *, full_matrices: bool) -> tuple[Type, Type, Type]:
    _check("svd", a, square=False)
    *lead, m, n = a.shape
    k = min(m, n)
    ku, kv = (m, n) if full_matrices else (k, k)
    return Type((*lead, m, ku), a.dtype), Type((*lead, k), a.dtype), Type((*lead, kv, n), a.dtype)


def _svd_jvp(
    primals: Sequence[Array], tangents: Sequence[Array], outs: Sequence[Array], *, full_matrices: bool
) -> tuple[Array, Array, Array]:
    u, s, vt = outs
    t = tangents[0]
    m, n = t.shape[-2:]
    if full_matrices and m != n:
        raise NotImplementedError(
            message(
                "svd",
                "the derivative with full_matrices=True is defined for square matrices only",
                "use full_matrices=False, or svdvals",
            )
        )
    ut, v = matrix_transpose(u), matrix_transpose(vt)
    inner = matmul(ut, matmul(t, v))
    rows, columns = _rows(s, inner.shape), _columns(s, inner.shape)
    gap = _reciprocal_or_zero(mul(sub(columns, rows), add(columns, rows)))
    inner_t = matrix_transpose(inner)
    tu = matmul(u, mul(gap, add(mul(inner, columns), mul(rows, inner_t))))
    tv = matmul(v, mul(gap, add(mul(rows, inner), mul(inner_t, columns))))
    inverse = _reciprocal_or_zero(s)
    if m > n:  # what leaves the span of u
        outside = sub(matmul(t, v), matmul(u, inner))
        tu = add(tu, mul(outside, _columns(inverse, outside.shape)))
    if n > m:
        outside = sub(matmul(matrix_transpose(t), u), matmul(v, inner_t))
        tv = add(tv, mul(outside, _columns(inverse, outside.shape)))
    return tu, _diagonal(inner), matrix_transpose(tv)


def _svdvals_type(a: Type) -> Type:
    return _svd_type(a, full_matrices=False)[1]


def _svdvals_jvp(primals: Sequence[Array], tangents: Sequence[Array], outs: Any) -> Array:
    u, _, vt = svd(primals[0], False)
    return _diagonal(matmul(matrix_transpose(u), matmul(tangents[0], matrix_transpose(vt))))


def _eigh_type(a: Type) -> tuple[Type, Type]:
    _check("eigh", a)
    return Type(a.shape[:-1], a.dtype), a


def _eigh_jvp(primals: Any, tangents: Sequence[Array], outs: Sequence[Array]) -> tuple[Array, Array]:
    w, v = outs
    inner = matmul(matrix_transpose(v), matmul(_symmetric(tangents[0]), v))
    gap = _reciprocal_or_zero(sub(_columns(w, inner.shape), _rows(w, inner.shape)))
    return _diagonal(inner), matmul(v, mul(gap, inner))


def _qr_impl(a: np.ndarray, *, full_matrices: bool) -> tuple[np.ndarray, np.ndarray]:
    q, r = np.linalg.qr(a, mode="complete" if full_matrices else "reduced")
    return q, r


cholesky_p = _stacked(
    "cholesky",
    _square_type("cholesky", _REAL),
    lambda a: np.linalg.cholesky(_mean_with_transpose(a)),
    _cholesky_jvp,
)
qr_p = _stacked("qr", _qr_type, _qr_impl, _qr_jvp, multiple=True)
svd_p = _stacked(
    "svd",
    _svd_type,
    lambda a, *, full_matrices: tuple(np.linalg.svd(a, full_matrices)),
    _svd_jvp,
    multiple=True,
)
svdvals_p = _stacked("svdvals", _svdvals_type, lambda a: np.linalg.svd(a, compute_uv=False), _svdvals_jvp)
eigh_p = _stacked(
    "eigh", _eigh_type, lambda a: tuple(np.linalg.eigh(_mean_with_transpose(a))), _eigh_jvp, multiple=True
)


# ------------------------------------------------------------------------------------------------ functions


def solve(a: Array, b: Array) -> Array:
    """`x` with `a @ x = b`: a (..., n, n), b (..., n, k)."""
    return bind(solve_p, a, b)


def triangular_solve(
    a: Array, b: Array, lower: bool, transpose_a: bool = False, unit_diagonal: bool = False
) -> Array:
    """`x` with `t @ x = b` (or `t.T @ x = b`), where t is the lower or upper triangle of `a`, with ones on its diagonal if `unit_diagonal`."""
    return bind(triangular_solve_p, a, b, lower=lower, transpose_a=transpose_a, unit_diagonal=unit_diagonal)


def inv(a: Array) -> Array:
    return bind(inv_p, a)


def det(a: Array) -> Array:
    """The determinant; its derivative is right for singular matrices too (the second one is not defined there)."""
    return bind(det_p, a)


def slogdet(a: Array) -> tuple[Array, Array]:
    """(sign, log of the absolute value) of the determinant."""
    sign, logdet = bind(slogdet_p, a)
    return sign, logdet


def cholesky(a: Array) -> Array:
    """The lower triangular L with L L^T = (a + a^T) / 2; `FgradValueError` where that is not positive definite."""
    return bind(cholesky_p, a)


def qr(a: Array, full_matrices: bool = False) -> tuple[Array, Array]:
    """(q, r): orthonormal columns, upper triangle. a (..., m, n); q (..., m, k), r (..., k, n), k = min(m, n), or m if full."""
    q, r = bind(qr_p, a, full_matrices=full_matrices)
    return q, r


def svd(a: Array, full_matrices: bool = True) -> tuple[Array, Array, Array]:
    """(u, s, vt) with a = u diag(s) vt, singular values descending."""
    u, s, vt = bind(svd_p, a, full_matrices=full_matrices)
    return u, s, vt


def svdvals(a: Array) -> Array:
    """The singular values alone, descending."""
    return bind(svdvals_p, a)


def eigh(a: Array) -> tuple[Array, Array]:
    """(eigenvalues ascending, eigenvectors in columns) of (a + a^T) / 2."""
    w, v = bind(eigh_p, a)
    return w, v
