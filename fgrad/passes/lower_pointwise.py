"""Element-wise and structural equations: compositions of index functions, no work of their own.

transpose:  out.at(i, j)  = x.at(j, i)
pad:        out.at(i)     = select(low <= i < low + n, x.at(i - low, mask), value)
reshape:    out.at(i, j)  = x.at(unravel(ravel(i, j)))     (of a buffer: another view of it)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.codegen.loops import Acc, Expr, Op, children
from fgrad.codegen.scalar import supports
from fgrad.ir import Eqn
from fgrad.passes.exprs import Builder
from fgrad.passes.lazy import Lazy, cut_points, join_splits, splits_from_cuts
from fgrad.passes.lowering import CHEAP, Lowering, Rule, row_major

Idx = tuple[Expr, ...]
Mask = Any


def elementwise(low: Lowering, eqn: Eqn) -> None:
    if not _has_code(eqn):
        return low.host(eqn)
    args = low.values(eqn.inputs)
    out_types = [v.type for v in eqn.outputs]

    memo: dict[tuple[int, ...], tuple[tuple[Expr, ...], tuple[Expr, ...]]] = {}

    def at(n: int, idx: Idx, mask: Mask) -> Expr:
        exprs = [x.at(idx, mask) for x in args]
        key = tuple(map(id, exprs))
        if key not in memo:
            memo[key] = (tuple(exprs), _compute(low.b, eqn, exprs))
        return memo[key][1][n]

    splits = join_splits(out_types[0].shape, [x.splits for x in args])
    for n in range(len(eqn.outputs)):
        low.lazy(eqn, n, args, lambda idx, mask, n=n: at(n, idx, mask), splits)
    return None


def _compute(b: Builder, eqn: Eqn, exprs: list[Expr]) -> tuple[Expr, ...]:
    """The scalar expressions of the equation's outputs."""
    prim = eqn.prim
    if prim.scalar is not None:
        result = prim.scalar(b.op, *exprs, **eqn.params)
        return tuple(result) if prim.multiple else (result,)
    return (b.op(prim.name, *exprs, dtype=eqn.outputs[0].type.dtype),)


def _has_code(eqn: Eqn) -> bool:
    """Whether generated code exists for every scalar operation that the equation expands to."""
    probes: list[Expr] = [Acc(f"x{n}", a.type.dtype) for n, a in enumerate(eqn.inputs)]
    stack = list(_compute(Builder(), eqn, probes))
    seen: set[int] = set()
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if isinstance(e, Op) and not supports(e.name, [a.dtype for a in e.args], e.dtype):
            return False
        stack.extend(children(e))
    return True


def same(low: Lowering, eqn: Eqn) -> None:
    low.set(eqn.outputs[0], low.value(eqn.inputs[0]))


def iota(low: Lowering, eqn: Eqn) -> None:
    axis, dtype, b = eqn.params["axis"], eqn.outputs[0].type.dtype, low.b
    low.lazy(eqn, 0, (), lambda idx, mask: b.op("cast", idx[axis], dtype=dtype))


def broadcast(low: Lowering, eqn: Eqn) -> None:
    shape, axes = eqn.params["shape"], eqn.params["axes"]
    x = low.value(eqn.inputs[0])
    grows = int(np.prod(shape)) > int(np.prod(x.shape))
    if grows and x.buf is None and low.cost(x) > CHEAP:
        x = _keep(low, eqn, x)
    splits: list[tuple[int, ...]] = [(s,) for s in shape]
    for i, axis in enumerate(axes):
        splits[axis] = x.splits[i]
    view = None
    if x.view is not None:
        strides = [0] * len(shape)
        for i, axis in enumerate(axes):
            strides[axis] = x.view[2][i]
        view = (x.view[0], x.view[1], tuple(strides))
    low.lazy(
        eqn, 0, (x,), lambda idx, mask: x.at([idx[a] for a in axes], mask), tuple(splits), view, x.literal
    )


def _keep(low: Lowering, eqn: Eqn, x: Lazy) -> Lazy:
    """Realize the first input of `eqn`, for its other readers too."""
    x = low.realize(x)
    low.env[eqn.inputs[0]] = x  # type: ignore[index]
    return x


def reshape(low: Lowering, eqn: Eqn) -> None:
    (var,) = eqn.outputs
    shape, x, b = var.type.shape, low.value(eqn.inputs[0]), low.b
    if x.buf is None and x.shape and _misaligned(x, shape) and x.literal is None:
        x = _keep(low, eqn, x)
    if x.buf is not None:
        view = low.of_buf(low.view(x.buf, shape))
        storage = low.storage.get(var)
        if storage is None:
            low.env[var] = view
            return
        return low.set(var, view)
    splits = splits_from_cuts(shape, cut_points(x.shape, x.splits))
    low.lazy(
        eqn,
        0,
        (x,),
        lambda idx, mask: x.at(b.unravel(b.ravel(idx, shape), x.shape), mask),
        splits,
        None,
        x.literal,
    )
    return None


def _misaligned(x: Lazy, shape: tuple[int, ...]) -> bool:
    """Whether no loop nest runs over both shapes without divisions."""
    if x.view is not None and x.view[2] == row_major(x.shape):
        return False
    cuts = cut_points(x.shape, x.splits) | cut_points(shape, tuple((s,) for s in shape))
    return splits_from_cuts(shape, cuts) is None


def transpose(low: Lowering, eqn: Eqn) -> None:
    perm = eqn.params["perm"]
    x = low.value(eqn.inputs[0])
    inverse = [0] * len(perm)
    for i, p in enumerate(perm):
        inverse[p] = i
    splits = tuple(x.splits[p] for p in perm)
    view = None if x.view is None else (x.view[0], x.view[1], tuple(x.view[2][p] for p in perm))
    low.lazy(eqn, 0, (x,), lambda idx, mask: x.at([idx[i] for i in inverse], mask), splits, view)


def slice_(low: Lowering, eqn: Eqn) -> None:
    start, _, step = eqn.params["start"], eqn.params["stop"], eqn.params["step"]
    x, b = low.value(eqn.inputs[0]), low.b
    step = step or (1,) * len(start)
    view = None
    if x.view is not None:
        buf, offset, strides = x.view
        offset += sum(a * s for a, s in zip(start, strides, strict=True))
        view = (buf, offset, tuple(s * k for s, k in zip(strides, step, strict=True)))

    def at(idx: Idx, mask: Mask) -> Expr:
        moved = [b.add(b.scale(i, k), a) for i, a, k in zip(idx, start, step, strict=True)]
        return x.at(moved, mask)

    splits: list[tuple[int, ...]] = [(s,) for s in eqn.outputs[0].type.shape]
    for d, s in enumerate(x.shape):
        if eqn.outputs[0].type.shape[d] == s:
            splits[d] = x.splits[d]
    low.lazy(eqn, 0, (x,), at, tuple(splits), view)


def flip(low: Lowering, eqn: Eqn) -> None:
    axes = set(eqn.params["axes"])
    x, b = low.value(eqn.inputs[0]), low.b

    def at(idx: Idx, mask: Mask) -> Expr:
        return x.at(
            [
                b.add(b.scale(i, -1), s - 1) if d in axes else i
                for d, (i, s) in enumerate(zip(idx, x.shape, strict=True))
            ],
            mask,
        )

    low.lazy(eqn, 0, (x,), at)


def pad(low: Lowering, eqn: Eqn) -> None:
    lows, interior = eqn.params["low"], eqn.params["interior"]
    x, fill = low.values(eqn.inputs)
    b = low.b

    def at(idx: Idx, mask: Mask) -> Expr:
        ok = b.const(True, dtypes.bool_)
        inner: list[Expr] = []
        for i, n, lo, gap in zip(idx, x.shape, lows, interior, strict=True):
            p = b.add(i, -lo)
            if gap:
                # Division rounds towards minus infinity and only where 0 <= p is the quotient used.
                safe = b.op("maximum", p, b.const(0, dtypes.int64)) if lo else p
                ok = b.op("bitwise_and", ok, b.within(p, 0, (n - 1) * (gap + 1) + 1 if n else 0))
                ok = b.op("bitwise_and", ok, b.op("eq", b.mod(safe, gap + 1), b.const(0, dtypes.int64)))
                p = b.div(safe, gap + 1)
            else:
                ok = b.op("bitwise_and", ok, b.within(p, 0, n))
            inner.append(p)
        if x.size == 0:
            return fill.at((), mask)
        return b.op("select", ok, x.at(inner, b.both(mask, ok)), fill.at((), mask))

    low.lazy(eqn, 0, (x, fill), at)


def concatenate(low: Lowering, eqn: Eqn) -> None:
    axis, (var,) = eqn.params["axis"], eqn.outputs
    parts = [p for p in low.values(eqn.inputs) if p.shape[axis]]
    b = low.b
    if len(parts) == 1 and var not in low.storage:
        low.env[var] = parts[0]
        return
    # As a select every element evaluates all parts: for a few cheap ones only.
    if len(parts) > 3 or var in low.storage or not parts or sum(map(low.cost, parts)) > 4 * CHEAP:
        return _concatenate_stores(low, eqn, parts)
    ends = np.cumsum([p.shape[axis] for p in parts]).tolist()

    def at(idx: Idx, mask: Mask) -> Expr:
        result: Expr | None = None
        for k in reversed(range(len(parts))):
            begin = ends[k - 1] if k else 0
            moved = [b.add(i, -begin) if d == axis else i for d, i in enumerate(idx)]
            inside = b.within(idx[axis], begin, ends[k])
            part = parts[k].at(moved, b.both(mask, inside))
            below = b.within(idx[axis], 0, ends[k])
            result = part if result is None else b.op("select", below, part, result)
        assert result is not None
        return result

    low.lazy(eqn, 0, parts, at)
    return None


def _concatenate_stores(low: Lowering, eqn: Eqn, parts: list[Lazy]) -> None:
    """Each part is written to its place in one buffer."""
    axis, (var,) = eqn.params["axis"], eqn.outputs
    out = low.buf_for(var)
    begin = 0
    for part in parts:
        low.store_at(part, out, axis, begin, (eqn,))
        begin += part.shape[axis]
    low.env[var] = low.of_buf(out)


def _clamped_starts(low: Lowering, starts: list[Lazy], shape: Any, sizes: Any) -> list[Expr]:
    b = low.b
    out = []
    for s, n, size in zip(starts, shape, sizes, strict=True):
        start = b.op("cast", s.at(()), dtype=dtypes.int64)
        clamped = b.op("maximum", start, b.const(0, dtypes.int64))
        out.append(b.op("minimum", clamped, b.const(n - size, dtypes.int64)))
    return out


def dynamic_slice(low: Lowering, eqn: Eqn) -> None:
    x, *starts = low.values(eqn.inputs)
    sizes, b = eqn.params["sizes"], low.b
    begin = _clamped_starts(low, starts, x.shape, sizes)
    low.lazy(
        eqn,
        0,
        (x, *starts),
        lambda idx, mask: x.at([b.add(i, s) for i, s in zip(idx, begin, strict=True)], mask),
    )


def dynamic_update_slice(low: Lowering, eqn: Eqn) -> None:
    x, update, *starts = low.values(eqn.inputs)
    b = low.b
    begin = _clamped_starts(low, starts, x.shape, update.shape)

    def at(idx: Idx, mask: Mask) -> Expr:
        ok = b.const(True, dtypes.bool_)
        moved = []
        for i, s, n in zip(idx, begin, update.shape, strict=True):
            p = b.add(i, b.scale(s, -1))
            ok = b.op("bitwise_and", ok, b.within(p, 0, n))
            moved.append(p)
        if update.size == 0:
            return x.at(idx, mask)
        return b.op("select", ok, update.at(moved, b.both(mask, ok)), x.at(idx, mask))

    low.lazy(eqn, 0, (x, update, *starts), at)


RULES: dict[str, Rule] = {
    "identity": same,
    "iota": iota,
    "broadcast": broadcast,
    "reshape": reshape,
    "transpose": transpose,
    "slice": slice_,
    "flip": flip,
    "pad": pad,
    "concatenate": concatenate,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
}
