"""Gather and scatter: reading and writing at computed positions. Every kind of array indexing is made of these two.

    gather:   out[i..., r...] = x[idx_a[i...] at axes[a], r... at the other axes, in order]
    scatter:  a copy of x in which those same elements are replaced by, or combined with, `updates[i..., r...]`

Batching keeps both closed: with operand and indices batched, axis 0 joins `axes`, indexed by its own iota.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradIndexError, FgradTypeError, FgradValueError, message
from fgrad.ir import Linear, Primitive, Type, register
from fgrad.ops.builders import (
    argsort,
    batch_all,
    batch_operand,
    full,
    full_like,
    is_number,
    linear,
    real_number,
)
from fgrad.ops.elementwise import add, convert, div, eq, gt, maximum, minimum, mul, select
from fgrad.ops.structure import (
    broadcast,
    dynamic_slice_p,
    dynamic_update_slice_p,
    iota,
    move_axis,
    reshape,
    transpose,
)
from fgrad.trace import bind

Ints = tuple[int, ...]

_COMBINE = {"add": np.add, "mul": np.multiply, "minimum": np.minimum, "maximum": np.maximum}
MODES = ("set", *_COMBINE)


def _rest(ndim: int, axes: Ints) -> Ints:
    return tuple(i for i in range(ndim) if i not in axes)


def _gathered_shape(name: str, x: Type, idx: Sequence[Type], axes: Ints) -> Ints:
    """The shape of `gather(x, idx, axes)`, and the checks that gather and scatter share."""
    if len(idx) != len(axes) or len(set(axes)) != len(axes) or any(not 0 <= a < x.ndim for a in axes):
        raise FgradTypeError(message(name, f"{len(idx)} index arrays for axes {axes} of {x}"))
    for i in idx:
        if i.dtype != dtypes.int64 or i.shape != idx[0].shape:
            found = ", ".join(map(str, idx))
            raise FgradTypeError(message(name, f"index arrays must be int64 and of one shape, got {found}"))
    where = idx[0].shape if idx else ()
    return (*where, *[x.shape[i] for i in _rest(x.ndim, axes)])


def _check_bounds(name: str, shape: Ints, idx: Sequence[np.ndarray], axes: Ints) -> None:
    for i, axis in zip(idx, axes, strict=True):
        n = shape[axis]
        if i.size and (int(i.min()) < -n or int(i.max()) >= n):
            bad = i[(i < -n) | (i >= n)].flat[0]
            hint = (
                f"indices run from {-n} to {n - 1}; clip them with fgrad.numpy.clip if that is meant"
                if n
                else ""
            )
            raise FgradIndexError(
                message(name, f"index {bad} is out of bounds for axis {axis} with size {n}", hint)
            )


# ------------------------------------------------------------------------------------------------ gather


def _gather_type(x: Type, *idx: Type, axes: Ints) -> Type:
    return Type(_gathered_shape("gather", x, idx, axes), x.dtype)


def _gather_impl(x: np.ndarray, *idx: np.ndarray, axes: Ints) -> np.ndarray:
    _check_bounds("gather", x.shape, idx, axes)
    if axes == (0,):
        return np.take(x, idx[0], axis=0)
    return np.transpose(x, (*axes, *_rest(x.ndim, axes)))[tuple(idx)]


def _gather_transpose(ct: Array, x: Linear, *idx: Array, axes: Ints) -> Array:
    return scatter(full(x.shape, 0, ct.dtype), ct, idx, axes, "add")


def _gather_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, axes: Ints
) -> tuple[Array, bool]:
    (x, *idx), (x_on, *idx_on) = args, batched
    if not any(idx_on):
        out = gather(x, idx, [a + 1 for a in axes])
        return move_axis(out, idx[0].ndim if idx else 0, 0), True
    idx = batch_all(size, idx, idx_on)
    if not x_on:
        return gather(x, idx, axes), True
    return gather(x, [iota(idx[0].shape, dtypes.int64, 0), *idx], [0, *[a + 1 for a in axes]]), True


gather_p = linear("gather", _gather_type, _gather_impl, _gather_transpose, _gather_batch, "index")


def gather(x: Array, idx: Sequence[Array], axes: Sequence[int]) -> Array:
    """Elements of `x` at `idx[a]` along `axes[a]`.

    Args:
        x: any shape.
        idx: int64 arrays of one shape I, one for each of `axes`; negative ones count from the end.
        axes: distinct axes of `x`.

    Returns:
        shape I + (the other axes of `x`, in order). Out of bounds raises `FgradIndexError`.
    """
    return bind(gather_p, x, *idx, axes=tuple(axes)) if len(tuple(axes)) else x


def take_along(x: Array, idx: Array, axis: int) -> Array:
    """`out[..., i, ...] = x[..., idx[..., i, ...], ...]`: `idx` has the shape of `x` except along `axis`."""
    return gather(
        x, [idx if d == axis else iota(idx.shape, dtypes.int64, d, x) for d in range(x.ndim)], range(x.ndim)
    )


# ------------------------------------------------------------------------------------------------ scatter


def _scatter_type(x: Type, updates: Type, *idx: Type, axes: Ints, mode: str) -> Type:
    if mode not in MODES:
        raise FgradValueError(message("scatter", f"mode {mode!r} is none of {', '.join(MODES)}"))
    expected = Type(_gathered_shape("scatter", x, idx, axes), x.dtype)
    if updates != expected:
        raise FgradTypeError(
            message("scatter", f"updates must be {expected} for {x} and axes {axes}, got {updates}")
        )
    accepts = {"add": is_number, "mul": is_number, "minimum": real_number, "maximum": real_number}.get(mode)
    if accepts is not None and not accepts(x.dtype):
        raise FgradTypeError(message(f"scatter ({mode})", f"dtype {x.dtype} is not supported"))
    return x


def _scatter_impl(x: np.ndarray, updates: np.ndarray, *idx: np.ndarray, axes: Ints, mode: str) -> np.ndarray:
    _check_bounds("scatter", x.shape, idx, axes)
    out = x.copy()
    view = np.transpose(out, (*axes, *_rest(x.ndim, axes)))
    at = tuple(idx) if idx else ()
    if mode == "set":
        view[at] = updates
        return out
    combine = _COMBINE[mode]
    if _distinct(idx, [x.shape[a] for a in axes]):  # much faster than ufunc.at
        view[at] = combine(view[at], updates)
    else:
        combine.at(view, at, updates)
    return out


def _distinct(idx: Sequence[np.ndarray], sizes: Sequence[int]) -> bool:
    """Whether no element is addressed twice."""
    if not idx or idx[0].size <= 1:
        return True
    flat = np.zeros(idx[0].size, np.int64)
    total = 1
    for i, n in zip(idx, sizes, strict=True):
        flat = flat * n + np.where(i < 0, i + n, i).ravel()
        total *= n
    if flat.size > total:
        return False
    if total <= 8 * flat.size:
        return int(np.bincount(flat, minlength=1).max()) <= 1
    flat.sort()
    return bool((flat[1:] != flat[:-1]).all())


def _winners(x_shape: Ints, updates: Any, idx: Sequence[Array], axes: Ints) -> Array | None:
    """Where several updates are set at one position, the last wins: a mask of those that do; None if all must."""
    where = idx[0].shape if idx else ()
    count = int(np.prod(where, dtype=np.int64))
    if count <= 1:
        return None
    own = reshape(iota((count,), dtypes.int64, 0, updates), where)
    last = scatter(full([x_shape[a] for a in axes], 0, dtypes.int64), own, idx, range(len(axes)), "set")
    wins = eq(gather(last, idx, range(len(axes))), own)
    return broadcast(wins, updates.shape, range(len(where)))


def _scatter_jvp(
    primals: Sequence[Array],
    tangents: Sequence[Array | None],
    outs: Sequence[Array],
    *,
    axes: Ints,
    mode: str,
) -> Array | None:
    (x, updates, *idx), (tx, tu, *_) = primals, tangents
    if tx is None and tu is None:
        return None

    def both() -> tuple[Array, Array]:
        return (
            tx if tx is not None else full_like(x, 0),
            tu if tu is not None else full_like(updates, 0),
        )

    if mode in ("set", "add"):
        return scatter(*both(), idx, axes, mode)
    if mode == "mul":
        total = scatter(tx, updates, idx, axes, "mul") if tx is not None else None
        if tu is not None:
            slope = _product_of_others(x, updates, idx, axes)
            base = total if total is not None else full_like(x, 0)
            total = scatter(base, mul(tu, slope), idx, axes, "add")
        return total
    # The mean over everything that equals the extreme, as for reductions.
    at_x = convert(eq(x, outs[0]), x.dtype)
    at_updates = convert(eq(updates, gather(outs[0], idx, axes)), x.dtype)
    tx, tu = both()
    hits = scatter(mul(tx, at_x), mul(tu, at_updates), idx, axes, "add")
    return div(hits, scatter(at_x, at_updates, idx, axes, "add"))


def _product_of_others(x: Array, updates: Array, idx: Sequence[Array], axes: Ints) -> Array:
    """For each update, the result at its position divided by it: without a division by zero where it is 0."""
    one, none = full_like(updates, 1), full_like(updates, 0)
    zero = eq(updates, none)
    nonzero = select(zero, one, updates)
    whole = gather(scatter(x, updates, idx, axes, "mul"), idx, axes)
    without_zeros = gather(scatter(x, nonzero, idx, axes, "mul"), idx, axes)
    zeros = gather(scatter(full_like(x, 0), convert(zero, x.dtype), idx, axes, "add"), idx, axes)
    only_zero = select(gt(zeros, full_like(zeros, 1.5)), none, without_zeros)
    return select(zero, only_zero, div(whole, nonzero))


def _scatter_transpose(
    cts: Sequence[Array], x: Any, updates: Any, *idx: Array, axes: Ints, mode: str
) -> tuple[Any, ...]:
    (ct,) = cts
    dx = du = None
    if mode == "add":
        dx = ct if isinstance(x, Linear) else None
        du = gather(ct, idx, axes) if isinstance(updates, Linear) else None
    elif mode == "set":
        if isinstance(x, Linear):
            dx = scatter(ct, full(updates.shape, 0, ct.dtype), idx, axes, "set")
        if isinstance(updates, Linear):
            du = gather(ct, idx, axes)
            wins = _winners(x.shape, updates, idx, axes)
            du = du if wins is None else select(wins, du, full_like(du, 0))
    elif mode == "mul" and not isinstance(updates, Linear):
        dx = scatter(ct, updates, idx, axes, "mul")
    else:
        raise NotImplementedError(message(f"scatter ({mode})", "is not linear in its updates"))
    return (dx, du, *[None] * len(idx))


def _scatter_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, axes: Ints, mode: str
) -> tuple[Array, bool]:
    (x, updates, *idx), (_, _, *idx_on) = args, batched
    x, updates = batch_all(size, (x, updates), batched[:2])
    inner = [a + 1 for a in axes]
    if not any(idx_on):  # the batch axis is one of the axes that are not indexed, the first of them
        return scatter(x, move_axis(updates, 0, idx[0].ndim if idx else 0), idx, inner, mode), True
    idx = batch_all(size, idx, idx_on)
    return scatter(x, updates, [iota(idx[0].shape, dtypes.int64, 0), *idx], [0, *inner], mode), True


scatter_p = register(
    Primitive(
        "scatter",
        _scatter_type,
        _scatter_impl,
        "index",
        jvp=_scatter_jvp,
        transpose=_scatter_transpose,
        batch=_scatter_batch,
    )
)


def scatter(x: Array, updates: Array, idx: Sequence[Array], axes: Sequence[int], mode: str = "set") -> Array:
    """A copy of `x` with `updates` written at the elements that `gather(x, idx, axes)` reads.

    Args:
        mode: "set" (the last in row-major order wins), "add", "mul", "minimum" or "maximum" (duplicates combine).

    The second derivative of "mul" is exact unless two updates of one element are zero.
    """
    return bind(scatter_p, x, updates, *idx, axes=tuple(axes), mode=mode)


# ------------------------------------------------------------------------------------------------ batched dynamic slices


def _block_indices(
    size: int, x_shape: Ints, sizes: Ints, starts: Sequence[Array], on: Sequence[bool]
) -> tuple[list[Array], Ints]:
    """Indices of the blocks at batched starts: one array of shape (size, *block of the indexed axes) an indexed axis.

    Axes that the block covers whole need no index: their start is clamped to 0.
    """
    axes = tuple(d for d, (k, n) in enumerate(zip(sizes, x_shape, strict=True)) if k != n)
    shape = (size, *[sizes[d] for d in axes])
    idx = []
    for place, d in enumerate(axes):
        start = starts[d] if on[d] else batch_operand(starts[d], size)
        start = minimum(maximum(start, full_like(start, 0)), full_like(start, x_shape[d] - sizes[d]))
        idx.append(add(broadcast(start, shape, (0,)), iota(shape, dtypes.int64, place + 1)))
    return idx, axes


def _dynamic_slice_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, sizes: Ints
) -> tuple[Array, bool]:
    (x, *starts), (x_on, *on) = args, batched
    if not any(on):
        return bind(dynamic_slice_p, x, full((), 0, dtypes.int64), *starts, sizes=(size, *sizes)), True
    shape = x.shape[1:] if x_on else x.shape
    idx, axes = _block_indices(size, shape, sizes, starts, on)
    if not axes:
        return x, x_on
    out, _ = _gather_batch(size, (x, *idx), (x_on, *[True] * len(idx)), axes=axes)
    order = (*axes, *_rest(len(shape), axes))  # of the result's axes after the batch axis
    return transpose(out, (0, *[i + 1 for i in argsort(order)])), True


def _dynamic_update_batch(size: int, args: Sequence[Array], batched: Sequence[bool]) -> tuple[Array, bool]:
    (x, update, *starts), (x_on, update_on, *on) = args, batched
    x, update = batch_all(size, (x, update), (x_on, update_on))
    if not any(on):
        return bind(dynamic_update_slice_p, x, update, full((), 0, dtypes.int64), *starts), True
    idx, axes = _block_indices(size, x.shape[1:], update.shape[1:], starts, on)
    if not axes:
        return update, True
    order = (*axes, *_rest(x.ndim - 1, axes))
    updates = transpose(update, (0, *[d + 1 for d in order]))
    return _scatter_batch(size, (x, updates, *idx), (True,) * (2 + len(idx)), axes=axes, mode="set")


dynamic_slice_p.batch = _dynamic_slice_batch
dynamic_update_slice_p.batch = _dynamic_update_batch
