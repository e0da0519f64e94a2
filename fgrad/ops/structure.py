"""Operations that move elements without computing: reshape, slice, pad, concatenate, iota, dynamic slices.

(`broadcast`, `transpose` live in `builders`, because the derived rules use them.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad.array import Array
from fgrad.device import beside
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.ir import Linear, Primitive, Type, register
from fgrad.ops.builders import (
    batch_all,
    broadcast_p,
    full,
    full_like,
    linear,
    reduce_sum_p,
    transpose_p,
    zero_jvp,
)
from fgrad.ops.elementwise import select, sub
from fgrad.trace import bind

Ints = tuple[int, ...]


def broadcast(x: Array, shape: Sequence[int], axes: Sequence[int]) -> Array:
    """Place axis i of `x` at output axis `axes[i]`; repeat along the others."""
    shape, axes = tuple(shape), tuple(axes)
    return (
        x
        if x.shape == shape and axes == tuple(range(len(shape)))
        else bind(broadcast_p, x, shape=shape, axes=axes)
    )


def transpose(x: Array, perm: Sequence[int]) -> Array:
    perm = tuple(perm)
    return x if perm == tuple(range(x.ndim)) else bind(transpose_p, x, perm=perm)


def move_axis(x: Array, source: int, target: int) -> Array:
    order = [i for i in range(x.ndim) if i != source]
    order.insert(target, source)
    return transpose(x, order)


# ------------------------------------------------------------------------------------------------ reshape


def _product(shape: Sequence[int]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def _reshape_type(x: Type, *, shape: Ints) -> Type:
    if _product(shape) != x.size:
        raise FgradTypeError(
            message("reshape", f"{x} has {x.size} elements, shape {shape} has {_product(shape)}")
        )
    return Type(shape, x.dtype)


reshape_p = linear(
    "reshape",
    _reshape_type,
    lambda x, *, shape: np.reshape(x, shape),
    lambda ct, x, *, shape: reshape(ct, x.shape),
    lambda size, args, batched, *, shape: (reshape(args[0], (size, *shape)), True),
    "structure",
)


def reshape(x: Array, shape: Sequence[int]) -> Array:
    shape = tuple(shape)
    return x if x.shape == shape else bind(reshape_p, x, shape=shape)


# ------------------------------------------------------------------------------------------------ slice, flip, pad


def _slice_type(x: Type, *, start: Ints, stop: Ints, step: Ints) -> Type:
    if not (len(start) == len(stop) == len(step) == x.ndim):
        raise FgradTypeError(message("slice", f"start, stop and step need {x.ndim} entries for {x}"))
    for a, b, s, n in zip(start, stop, step, x.shape, strict=True):
        if not (0 <= a <= b <= n and s >= 1):
            raise FgradValueError(message("slice", f"[{a}:{b}:{s}] is outside an axis of {n}"))
    return Type(tuple(-(-(b - a) // s) for a, b, s in zip(start, stop, step, strict=True)), x.dtype)


def _slice_impl(x: np.ndarray, *, start: Ints, stop: Ints, step: Ints) -> np.ndarray:
    return x[tuple(np.s_[a:b:s] for a, b, s in zip(start, stop, step, strict=True))]


def _slice_transpose(ct: Array, x: Linear, *, start: Ints, stop: Ints, step: Ints) -> Array:
    high = []
    for a, s, n, m in zip(start, step, x.shape, ct.shape, strict=True):
        high.append(n - a - ((m - 1) * s + 1 if m else 0))
    return pad(ct, 0, start, high, [s - 1 for s in step])


def _slice_batch(
    size: int, args: Sequence[Array], batched: Any, *, start: Ints, stop: Ints, step: Ints
) -> tuple[Array, bool]:
    return bind(slice_p, args[0], start=(0, *start), stop=(size, *stop), step=(1, *step)), True


slice_p = linear("slice", _slice_type, _slice_impl, _slice_transpose, _slice_batch, "structure")


def slice_(x: Array, start: Sequence[int], stop: Sequence[int], step: Sequence[int] | None = None) -> Array:
    """`x[start:stop:step]`, non-negative bounds within the shape, positive steps."""
    step = tuple(step) if step is not None else (1,) * x.ndim
    start, stop = tuple(start), tuple(stop)
    if all(a == 0 and b == n and s == 1 for a, b, s, n in zip(start, stop, step, x.shape, strict=True)):
        return x
    return bind(slice_p, x, start=start, stop=stop, step=step)


flip_p = linear(
    "flip",
    lambda x, *, axes: x,
    lambda x, *, axes: np.flip(x, axes),
    lambda ct, x, *, axes: flip(ct, axes),
    lambda size, args, batched, *, axes: (flip(args[0], [a + 1 for a in axes]), True),
    "structure",
)


def flip(x: Array, axes: Sequence[int]) -> Array:
    return bind(flip_p, x, axes=tuple(axes)) if axes else x


def _pad_type(x: Type, value: Type, *, low: Ints, high: Ints, interior: Ints) -> Type:
    if value.shape != () or value.dtype != x.dtype:
        raise FgradTypeError(message("pad", f"the value must be a 0-d {x.dtype}, got {value}"))
    if any(p < 0 for p in (*low, *high, *interior)):
        raise FgradValueError(message("pad", f"widths must not be negative: {low}, {high}, {interior}"))
    parts = zip(low, x.shape, high, interior, strict=True)
    return Type(tuple(lo + n + max(n - 1, 0) * i + hi for lo, n, hi, i in parts), x.dtype)


def _pad_place(shape: Ints, low: Ints, interior: Ints) -> tuple[slice, ...]:
    return tuple(
        np.s_[lo : lo + n + max(n - 1, 0) * i : i + 1] for n, lo, i in zip(shape, low, interior, strict=True)
    )


def _pad_impl(x: np.ndarray, value: np.ndarray, *, low: Ints, high: Ints, interior: Ints) -> np.ndarray:
    shape = [
        lo + n + max(n - 1, 0) * i + hi for lo, n, hi, i in zip(low, x.shape, high, interior, strict=True)
    ]
    out = np.full(shape, value, dtype=x.dtype)
    out[_pad_place(x.shape, low, interior)] = x
    return out


def _pad_jvp(primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, **params: Ints) -> Array:
    x, value = tangents
    if x is None:
        x = full_like(primals[0], 0)
    return bind(pad_p, x, value if value is not None else full((), 0, x.dtype), **params)


def _pad_transpose(
    cts: Sequence[Array], x: Any, value: Any, *, low: Ints, high: Ints, interior: Ints
) -> tuple[Any, Any]:
    (ct,) = cts
    stop = [lo + n + max(n - 1, 0) * i for lo, n, i in zip(low, x.shape, interior, strict=True)]
    inside = slice_(ct, low, stop, [i + 1 for i in interior])
    total = None
    if isinstance(value, Linear):
        from_edges = bind(reduce_sum_p, ct, axes=tuple(range(ct.ndim)))
        from_inside = bind(reduce_sum_p, inside, axes=tuple(range(ct.ndim)))
        total = sub(from_edges, from_inside)
    return (inside if isinstance(x, Linear) else None, total)


def _pad_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, low: Ints, high: Ints, interior: Ints
) -> tuple[Array, bool]:
    x = args[0] if batched[0] else batch_all(size, args[:1], [False])[0]
    if not batched[1]:
        return bind(pad_p, x, args[1], low=(0, *low), high=(0, *high), interior=(0, *interior)), True
    # One padding value an example: pad zeros, then put the values where no element of x lands.
    widths: dict[str, Any] = {"low": (0, *low), "high": (0, *high), "interior": (0, *interior)}
    padded = bind(pad_p, x, full((), 0, x.dtype), **widths)
    inside = bind(pad_p, full(x.shape, True, np.dtype(bool)), full((), False, np.dtype(bool)), **widths)
    return select(inside, padded, broadcast(args[1], padded.shape, (0,))), True


pad_p = register(
    Primitive(
        "pad", _pad_type, _pad_impl, "structure", jvp=_pad_jvp, transpose=_pad_transpose, batch=_pad_batch
    )
)


def pad(
    x: Array, value: Any, low: Sequence[int], high: Sequence[int], interior: Sequence[int] | None = None
) -> Array:
    """`value` around `x` (`low` before, `high` after each axis) and `interior` of them between its elements."""
    interior = tuple(interior) if interior is not None else (0,) * x.ndim
    if not any((*low, *high, *interior)):
        return x
    value = value if isinstance(value, Array) else full((), value, x.dtype)
    return bind(pad_p, x, value, low=tuple(low), high=tuple(high), interior=interior)


# ------------------------------------------------------------------------------------------------ concatenate


def _concatenate_type(*xs: Type, axis: int) -> Type:
    first = xs[0]
    for x in xs:
        if (
            x.dtype != first.dtype
            or x.ndim != first.ndim
            or any(i != axis and a != b for i, (a, b) in enumerate(zip(x.shape, first.shape, strict=True)))
        ):
            raise FgradTypeError(
                message("concatenate", f"operands {', '.join(map(str, xs))} differ outside axis {axis}")
            )
    return Type(
        tuple(sum(x.shape[axis] for x in xs) if i == axis else n for i, n in enumerate(first.shape)),
        first.dtype,
    )


def _concatenate_jvp(
    primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, *, axis: int
) -> Array:
    return concatenate(
        [t if t is not None else full_like(x, 0) for x, t in zip(primals, tangents, strict=True)], axis
    )


def _concatenate_transpose(cts: Sequence[Array], *xs: Any, axis: int) -> tuple[Any, ...]:
    (ct,) = cts
    parts: list[Any] = []
    at = 0
    for x in xs:
        start, stop = [0] * ct.ndim, list(ct.shape)
        start[axis], stop[axis] = at, at + x.shape[axis]
        at = stop[axis]
        parts.append(slice_(ct, start, stop) if isinstance(x, Linear) else None)
    return tuple(parts)


concatenate_p = register(
    Primitive(
        "concatenate",
        _concatenate_type,
        lambda *xs, axis: np.concatenate(xs, axis=axis),
        "structure",
        jvp=_concatenate_jvp,
        transpose=_concatenate_transpose,
        batch=lambda size, args, batched, *, axis: (
            concatenate(batch_all(size, args, batched), axis + 1),
            True,
        ),
    )
)


def concatenate(xs: Sequence[Array], axis: int) -> Array:
    return xs[0] if len(xs) == 1 else bind(concatenate_p, *xs, axis=axis)


# ------------------------------------------------------------------------------------------------ iota


def _iota_impl(*, shape: Ints, dtype: np.dtype, axis: int) -> np.ndarray:
    counts = np.arange(shape[axis]).astype(dtype)
    return np.broadcast_to(counts.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


iota_p: Primitive = register(
    Primitive(
        "iota",
        lambda *, shape, dtype, axis: Type(shape, dtype),
        _iota_impl,
        "structure",
        jvp=zero_jvp,
        batch=lambda size, args, batched, **params: (bind(iota_p, **params), False),
    )
)


def iota(shape: Sequence[int], dtype: np.dtype, axis: int, near: Any = None) -> Array:
    """Each element's index along `axis`; on the device of `near`, if given."""
    if near is None:
        return bind(iota_p, shape=tuple(shape), dtype=dtype, axis=axis)
    with beside(near):
        return bind(iota_p, shape=tuple(shape), dtype=dtype, axis=axis)


# ------------------------------------------------------------------------------------------------ dynamic slices


def _starts(x_shape: Ints, sizes: Ints, starts: Sequence[np.ndarray]) -> tuple[slice, ...]:
    clamped = [min(max(int(s), 0), n - k) for s, n, k in zip(starts, x_shape, sizes, strict=True)]
    return tuple(np.s_[a : a + k] for a, k in zip(clamped, sizes, strict=True))


def _check_starts(name: str, x: Type, sizes: Ints, starts: Sequence[Type]) -> None:
    if len(starts) != x.ndim or len(sizes) != x.ndim:
        raise FgradTypeError(
            message(name, f"{x} needs {x.ndim} start indices and sizes, got {len(starts)} and {len(sizes)}")
        )
    if any(s.shape != () or s.dtype != np.int64 for s in starts):
        raise FgradTypeError(message(name, "start indices must be 0-d int64"))
    if any(k > n or k < 0 for k, n in zip(sizes, x.shape, strict=True)):
        raise FgradValueError(message(name, f"sizes {sizes} exceed {x}"))


def _dynamic_slice_type(x: Type, *starts: Type, sizes: Ints) -> Type:
    _check_starts("dynamic_slice", x, sizes, starts)
    return Type(sizes, x.dtype)


def _dynamic_slice_jvp(
    primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, *, sizes: Ints
) -> Array | None:
    return None if tangents[0] is None else bind(dynamic_slice_p, tangents[0], *primals[1:], sizes=sizes)


def _dynamic_slice_transpose(cts: Sequence[Array], x: Linear, *starts: Array, sizes: Ints) -> tuple[Any, ...]:
    zeros = full(x.shape, 0, x.dtype)
    return (bind(dynamic_update_slice_p, zeros, cts[0], *starts), *[None] * len(starts))


dynamic_slice_p = register(
    Primitive(
        "dynamic_slice",
        _dynamic_slice_type,
        lambda x, *starts, sizes: x[_starts(x.shape, sizes, starts)],
        "structure",
        jvp=_dynamic_slice_jvp,
        transpose=_dynamic_slice_transpose,
    )
)


def dynamic_slice(x: Array, starts: Sequence[Array], sizes: Sequence[int]) -> Array:
    """The block of `sizes` that begins at `starts` (0-d int64), moved inside `x` where it would stick out (as in `lax`)."""
    return bind(dynamic_slice_p, x, *starts, sizes=tuple(sizes))


def _dynamic_update_type(x: Type, update: Type, *starts: Type) -> Type:
    _check_starts("dynamic_update_slice", x, update.shape, starts)
    if update.dtype != x.dtype:
        raise FgradTypeError(message("dynamic_update_slice", f"cannot write {update} into {x}"))
    return x


def _dynamic_update_impl(x: np.ndarray, update: np.ndarray, *starts: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[_starts(x.shape, update.shape, starts)] = update
    return out


def _dynamic_update_jvp(
    primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any
) -> Array | None:
    if tangents[0] is None and tangents[1] is None:
        return None
    tx = tangents[0] if tangents[0] is not None else full_like(primals[0], 0)
    tu = tangents[1] if tangents[1] is not None else full_like(primals[1], 0)
    return bind(dynamic_update_slice_p, tx, tu, *primals[2:])


def _dynamic_update_transpose(cts: Sequence[Array], x: Any, update: Any, *starts: Array) -> tuple[Any, ...]:
    (ct,) = cts
    dx = (
        bind(dynamic_update_slice_p, ct, full(update.shape, 0, ct.dtype), *starts)
        if isinstance(x, Linear)
        else None
    )
    du = bind(dynamic_slice_p, ct, *starts, sizes=update.shape) if isinstance(update, Linear) else None
    return (dx, du, *[None] * len(starts))


dynamic_update_slice_p = register(
    Primitive(
        "dynamic_update_slice",
        _dynamic_update_type,
        _dynamic_update_impl,
        "structure",
        jvp=_dynamic_update_jvp,
        transpose=_dynamic_update_transpose,
    )
)


def dynamic_update_slice(x: Array, update: Array, starts: Sequence[Array]) -> Array:
    """A copy of `x` with the block at `starts` replaced by `update`."""
    return bind(dynamic_update_slice_p, x, update, *starts)
