"""Pooling: windows unrolled inside the expression of one output element.

max_pool:  best = x[w0]; for w in the rest of the window (unrolled): best = select(x[w] > best, x[w], best)
pool_put:  where windows do not overlap, x's gradient at p asks the one window that covers p whether it chose p;
           otherwise zeros, and a sequential loop that adds; on a GPU, p asks all windows over it, in their order
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from fgrad import dtypes
from fgrad.codegen import loops
from fgrad.codegen.loops import Expr, Loop, LoopVar, Stmt, Store
from fgrad.ir import Eqn
from fgrad.passes.lazy import Lazy
from fgrad.passes.lower_reduce import better_than, smallest
from fgrad.passes.lowering import CHEAP, Lowering, Rule
from fgrad.passes.nests import finish_kernel

LARGEST_WINDOW = 64  # larger windows are not unrolled


def _window_offsets(window: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(w) for w in window)))


def _overlap(eqn: Eqn) -> bool:
    return any(s < w for s, w in zip(eqn.params["strides"], eqn.params["window"], strict=True))


def _operand(low: Lowering, eqn: Eqn) -> Lazy:
    x = low.value(eqn.inputs[0])
    if x.buf is None and low.cost(x) > CHEAP and _overlap(eqn):
        x = low.env[eqn.inputs[0]] = low.realize(x)  # type: ignore[index]
    return x


def _position(
    low: Lowering, eqn: Eqn, idx: Sequence[Expr], tap: Sequence[int], sizes: Sequence[int]
) -> tuple[list[Expr], Expr]:
    """Input position of a window's tap, and whether it lies inside the input."""
    b = low.b
    ok = b.const(True, dtypes.bool_)
    where: list[Expr] = []
    for o, t, s, (lo, _), n in zip(
        idx, tap, eqn.params["strides"], eqn.params["padding"], sizes, strict=True
    ):
        p = b.add(b.scale(o, s), t - lo)
        ok = b.op("bitwise_and", ok, b.within(p, 0, n))
        where.append(p)
    return where, ok


def _too_large(low: Lowering, eqn: Eqn) -> bool:
    return math.prod(eqn.params["window"]) > LARGEST_WINDOW


def _first_inside(low: Lowering, eqn: Eqn, idx: Sequence[Expr]) -> Expr:
    """The offset of a window's first tap inside the input: what a window of nothing but -inf chooses."""
    b, p = low.b, eqn.params
    if not any(lo for lo, _ in p["padding"]):
        return b.const(0, dtypes.int32)
    taps: list[Expr] = []
    for o, s, w, (lo, _) in zip(idx[2:], p["strides"], p["window"], p["padding"], strict=True):
        missing = b.op("maximum", b.add(b.scale(o, -s), lo), b.const(0, dtypes.int64))
        taps.append(b.op("minimum", missing, b.const(w - 1, dtypes.int64)))
    return b.op("cast", b.ravel(taps, p["window"]), dtype=dtypes.int32)


def max_pool(low: Lowering, eqn: Eqn) -> None:
    if _too_large(low, eqn):
        return low.host(eqn)
    x, b = _operand(low, eqn), low.b
    memo: dict[Any, tuple[Any, Expr, Expr]] = {}

    def at(n: int, idx: tuple[Expr, ...], mask: Any) -> Expr:
        key = (*map(id, idx), id(mask))
        if key not in memo:
            best: Expr | None = None
            which = _first_inside(low, eqn, idx)
            for k, tap in enumerate(_window_offsets(eqn.params["window"])):
                where, ok = _position(low, eqn, idx[2:], tap, x.shape[2:])
                value = x.at((*idx[:2], *where), b.both(mask, ok))
                value = b.op("select", ok, value, b.const(smallest(x.dtype), x.dtype))
                if best is None:
                    best = value
                    continue
                better = better_than(b, value, best, True)
                which = b.op("select", better, b.const(k, dtypes.int32), which)
                best = b.op("select", better, value, best)
            assert best is not None
            memo[key] = ((idx, mask), best, which)
        return memo[key][1 + n]

    for n, var in enumerate(eqn.outputs):
        if not low.uses.get(var, 0) and var not in low.storage:
            continue
        eqns = tuple(dict.fromkeys((*x.eqns, eqn)))
        value = Lazy(var.type.shape, var.type.dtype, partial(at, n), None, eqns)
        # Both in buffers, so that one loop computes them: reading the offset later must not repeat the search.
        low.env[var] = low.realize(value, low.buf_for(var))
    return None


def sum_pool(low: Lowering, eqn: Eqn) -> None:
    if _too_large(low, eqn):
        return low.host(eqn)
    x, b = _operand(low, eqn), low.b

    def at(idx: tuple[Expr, ...], mask: Any) -> Expr:
        total: Expr | None = None
        for tap in _window_offsets(eqn.params["window"]):
            where, ok = _position(low, eqn, idx[2:], tap, x.shape[2:])
            value = x.at((*idx[:2], *where), b.both(mask, ok))
            value = b.op("select", ok, value, b.const(0, x.dtype))
            total = value if total is None else b.op("add", total, value)
        assert total is not None
        return total

    low.lazy(eqn, 0, (x,), at)
    return None


def pool_take(low: Lowering, eqn: Eqn) -> None:
    """y = x at the position that the offset names. A select over the window: reads are contiguous and never out of bounds."""
    if _too_large(low, eqn):
        return low.host(eqn)
    x, offset = low.values(eqn.inputs)
    b = low.b

    def at(idx: tuple[Expr, ...], mask: Any) -> Expr:
        chosen = offset.at(idx, mask)
        result: Expr = b.const(0, x.dtype)
        for k, tap in reversed(list(enumerate(_window_offsets(eqn.params["window"])))):
            where, ok = _position(low, eqn, idx[2:], tap, x.shape[2:])
            value = x.at((*idx[:2], *where), b.both(mask, ok))
            hit = b.op("bitwise_and", ok, b.op("eq", chosen, b.const(k, dtypes.int32)))
            result = b.op("select", hit, value, result)
        return result

    low.lazy(eqn, 0, (x, offset), at)
    return None


def _covering_window(
    low: Lowering, eqn: Eqn, idx: Sequence[Expr], out_spatial: Sequence[int]
) -> tuple[list[Expr], Expr, Expr]:
    """For windows that do not overlap: the window over an input position, the tap's flat offset, and whether there is one."""
    b = low.b
    ok = b.const(True, dtypes.bool_)
    where: list[Expr] = []
    taps: list[Expr] = []
    for p, s, w, (lo, _), n in zip(
        idx, eqn.params["strides"], eqn.params["window"], eqn.params["padding"], out_spatial, strict=True
    ):
        shifted = b.add(p, lo)
        o, tap = b.div(shifted, s), b.mod(shifted, s)
        ok = b.op("bitwise_and", ok, b.op("bitwise_and", b.within(tap, 0, w), b.within(o, 0, n)))
        where.append(o)
        taps.append(tap)
    return where, b.ravel(taps, eqn.params["window"]), ok


def _gradient_splits(low: Lowering, eqn: Eqn, shape: Sequence[int]) -> Any:
    """Iterate (window, tap), what no window covers apart, so that no division is left. (A GPU's threads rather divide than
    store with a stride.)"""
    if low.shared.target == "cuda":
        return None
    splits: list[tuple[int, ...]] = [(shape[0],), (shape[1],)]
    for n, s, (lo, _) in zip(shape[2:], eqn.params["strides"], eqn.params["padding"], strict=True):
        splits.append((n // s, s) if s > 1 and lo == 0 and n > s else (n,))
    return tuple(splits)


def _sum_of_windows(low: Lowering, eqn: Eqn, inputs: Sequence[Lazy], value: Any) -> None:
    """The gradient of windows that overlap, for each input position by itself: `value(idx, where, tap, ok)` of each window over
    it, summed in the order of the windows."""
    b, p = low.b, eqn.params
    g = inputs[0]
    counts = [-(-w // s) for w, s in zip(p["window"], p["strides"], strict=True)]

    def at(idx: tuple[Expr, ...], mask: Any) -> Expr:
        total: Expr | None = None
        for back in itertools.product(*(reversed(range(c)) for c in counts)):
            ok = b.const(True, dtypes.bool_)
            where: list[Expr] = []
            taps: list[Expr] = []
            for i, k, s, w, (lo, _), n in zip(
                idx[2:], back, p["strides"], p["window"], p["padding"], g.shape[2:], strict=True
            ):
                o = b.add(b.div(b.add(i, lo), s), -k)
                tap = b.add(i, lo, b.scale(o, -s))
                inside = b.op("bitwise_and", b.within(tap, 0, w), b.within(o, 0, n))
                ok = b.op("bitwise_and", ok, inside)
                where.append(o)
                taps.append(tap)
            inner = b.both(mask, ok)
            found = value((*idx[:2], *where), b.ravel(taps, p["window"]), ok, inner)
            total = found if total is None else b.op("add", total, found)
        assert total is not None
        return total

    low.lazy(eqn, 0, inputs, at)


def pool_put(low: Lowering, eqn: Eqn) -> None:
    if _too_large(low, eqn):
        return low.host(eqn)
    g, offset = low.values(eqn.inputs)
    (var,) = eqn.outputs
    b, shape = low.b, var.type.shape
    if not _overlap(eqn):

        def at(idx: tuple[Expr, ...], mask: Any) -> Expr:
            where, tap, ok = _covering_window(low, eqn, idx[2:], g.shape[2:])
            inner = b.both(mask, ok)
            chosen = offset.at((*idx[:2], *where), inner)
            hit = b.op("bitwise_and", ok, b.op("eq", chosen, b.op("cast", tap, dtype=dtypes.int32)))
            return b.op("select", hit, g.at((*idx[:2], *where), inner), b.const(0, g.dtype))

        return low.lazy(eqn, 0, (g, offset), at, _gradient_splits(low, eqn, shape))

    if low.shared.target == "cuda":

        def chosen_by(where: tuple[Expr, ...], tap: Expr, ok: Expr, inner: Any) -> Expr:
            is_it = b.op("eq", offset.at(where, inner), b.op("cast", tap, dtype=dtypes.int32))
            hit = b.op("bitwise_and", ok, is_it)
            return b.op("select", hit, g.at(where, inner), b.const(0, g.dtype))

        return _sum_of_windows(low, eqn, (g, offset), chosen_by)

    def stores(idx: list[Expr], target: Any) -> list[Stmt]:
        chosen = b.op("cast", offset.at(idx), dtype=dtypes.int64)
        taps = b.unravel(chosen, eqn.params["window"])
        where = []
        for o, t, s, (lo, _), n in zip(
            idx[2:], taps, eqn.params["strides"], eqn.params["padding"], shape[2:], strict=True
        ):
            p = b.add(b.scale(o, s), t, -lo)
            p = b.op("maximum", p, b.const(0, dtypes.int64))  # a wrong offset must not write elsewhere
            where.append(b.op("minimum", p, b.const(max(n - 1, 0), dtypes.int64)))
        return [Store(target, b.ravel((*idx[:2], *where), shape), g.at(idx), "add")]

    _scatter_add(low, eqn, (g, offset), stores)
    return None


def sum_pool_grad(low: Lowering, eqn: Eqn) -> None:
    if _too_large(low, eqn):
        return low.host(eqn)
    g = low.value(eqn.inputs[0])
    (var,) = eqn.outputs
    b, shape = low.b, var.type.shape
    if not _overlap(eqn):

        def at(idx: tuple[Expr, ...], mask: Any) -> Expr:
            where, _, ok = _covering_window(low, eqn, idx[2:], g.shape[2:])
            return b.op("select", ok, g.at((*idx[:2], *where), b.both(mask, ok)), b.const(0, g.dtype))

        return low.lazy(eqn, 0, (g,), at, _gradient_splits(low, eqn, shape))

    if low.shared.target == "cuda":

        def whole(where: tuple[Expr, ...], tap: Expr, ok: Expr, inner: Any) -> Expr:
            return b.op("select", ok, g.at(where, inner), b.const(0, g.dtype))

        return _sum_of_windows(low, eqn, (g,), whole)

    def stores(idx: list[Expr], target: Any) -> list[Stmt]:
        out: list[Stmt] = []
        for tap in _window_offsets(eqn.params["window"]):
            where, ok = _position(low, eqn, idx[2:], tap, shape[2:])
            mask = None if isinstance(ok, loops.Const) and ok.value else ok
            out.append(Store(target, b.ravel((*idx[:2], *where), shape), g.at(idx), "add", mask))
        return out

    _scatter_add(low, eqn, (g,), stores)
    return None


def _scatter_add(low: Lowering, eqn: Eqn, inputs: Sequence[Lazy], stores: Any) -> None:
    """zeros, then a sequential loop over the windows that adds."""
    (var,) = eqn.outputs
    g, out = inputs[0], low.buf_for(var)
    low.env[var] = low.of_buf(out)
    zero = low.b.const(0, g.dtype)
    low.store(Lazy(out.shape, g.dtype, lambda idx, mask: zero), out, (eqn,))
    if g.size == 0 or out.size == 0:
        return
    loop_vars = [LoopVar(f"i{d}", s) for d, s in enumerate(g.shape)]
    idx: list[Expr] = [v if v.extent != 1 else loops.const_index(0) for v in loop_vars]
    body: list[Stmt] = stores(idx, low.shared.buffer(out))
    for v in reversed([v for v in loop_vars if v.extent != 1]):
        body = [Loop(v, body, "seq")]
    eqns = tuple(dict.fromkeys(e for x in inputs for e in x.eqns)) + (eqn,)
    kernel, args = finish_kernel(low.shared, eqn.prim.name, body, eqns)
    low.nest(kernel, args, eqns)


RULES: dict[str, Rule] = {
    "max_pool": max_pool,
    "sum_pool": sum_pool,
    "pool_take": pool_take,
    "pool_put": pool_put,
    "sum_pool_grad": sum_pool_grad,
}
