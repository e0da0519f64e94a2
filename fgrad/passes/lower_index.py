"""Gather and scatter.

A gather is a load whose index comes from other loads. Indices are checked once, in a small kernel of their own, so that
the loops that use them have no branches; the uses wrap negative indices and clamp, which keeps wrong ones harmless until
the program reports them.

A scatter is a copy and then a sequential loop of stores. Where every index dimension is addressed by its own iota (the
gradient of `x[arange(n), labels]`) each element has at most one update and the scatter is a select instead:

    out[i, c] = select(labels[i] == c, x[i, c] + updates[i], x[i, c])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fgrad import dtypes
from fgrad.codegen import loops
from fgrad.codegen.loops import Affine, Check, Expr, Loop, LoopVar, Op, Stmt, Store
from fgrad.ir import Eqn
from fgrad.passes.lazy import Lazy
from fgrad.passes.lowering import CHEAP, Lowering, Rule
from fgrad.passes.nests import finish_kernel

_STORE_OP = {"set": None, "add": "add", "mul": "mul", "minimum": "minimum", "maximum": "maximum"}


def _checked_indices(low: Lowering, eqn: Eqn, first: int, shape: Sequence[int]) -> list[Lazy]:
    """The index operands of `eqn`, with a kernel that checks those not known to be in bounds."""
    axes, b = eqn.params["axes"], low.b
    result: list[Lazy] = []
    for axis, atom in zip(axes, eqn.inputs[first:], strict=True):
        value = low.value(atom)
        groups, idx = low.loop_vars(value)
        bounds = loops.index_range(value.at(idx))
        n = shape[axis]
        known = (atom, n) in low.checked
        if value.size and not known and (bounds is None or bounds[0] < -n or bounds[1] >= n):
            low.checked.add((atom, n))
            if value.buf is None and low.cost(value) > CHEAP:
                value = low.realize(value)
            text = f"{eqn.prim.name}: index out of bounds for axis {axis} with size {n}"
            status, code = low.check_code(text, eqn)
            i = value.at(idx)
            body: list[Stmt] = [Check(b.within(i, -n, n), low.shared.buffer(status), code)]
            for v in reversed([v for g in groups for v in g]):
                body = [Loop(v, body, "seq")]
            kernel, args = finish_kernel(low.shared, "check", body, (eqn,))
            low.nest(kernel, args, (eqn,))
        result.append(value)
    return result


def _safe(b: Any, i: Expr, n: int) -> Expr:
    """`i` wrapped once if negative, then clamped into 0 .. n-1."""
    bounds = loops.index_range(i)
    if bounds is not None and bounds[0] >= 0 and bounds[1] < n:
        return i
    if bounds is not None and bounds[1] < 0 and bounds[0] >= -n:
        return b.add(i, n)
    if bounds is None or bounds[0] < 0:
        i = b.op(
            "select", b.op("lt", i, b.const(0, dtypes.int64)), b.op("add", i, b.const(n, dtypes.int64)), i
        )
    i = b.op("maximum", i, b.const(0, dtypes.int64))
    return b.op("minimum", i, b.const(max(n - 1, 0), dtypes.int64))


def gather(low: Lowering, eqn: Eqn) -> None:
    x, axes, b = low.value(eqn.inputs[0]), eqn.params["axes"], low.b
    (var,) = eqn.outputs
    indices = _checked_indices(low, eqn, 1, x.shape)
    rank = len(indices[0].shape) if indices else 0
    if x.buf is None and low.cost(x) > CHEAP and var.type.size > x.size:
        x = low.env[eqn.inputs[0]] = low.realize(x)  # type: ignore[index]
    rest_axes = [d for d in range(len(x.shape)) if d not in axes]
    if any(x.shape[a] == 0 for a in axes):
        zero = b.const(0, x.dtype)
        return low.lazy(eqn, 0, (), lambda idx, mask: zero)

    def at(idx: tuple[Expr, ...], mask: Any) -> Expr:
        full: list[Any] = [None] * len(x.shape)
        for axis, index in zip(axes, indices, strict=True):
            full[axis] = _safe(b, index.at(idx[:rank], mask), x.shape[axis])
        for axis, i in zip(rest_axes, idx[rank:], strict=True):
            full[axis] = i
        return _choose(low, x, full, mask)

    low.lazy(eqn, 0, (x, *indices), at)
    return None


def _choose(low: Lowering, x: Lazy, full: list[Expr], mask: Any) -> Expr:
    """`x.at(full)`; if the last index is one of two (mirrored or not), the elements at both and a choice between those.

    Two loads along a row run as vectors, where one at an index that has been chosen is done element by element.
    """
    i = full[-1]
    if isinstance(i, Op) and i.name == "select" and all(isinstance(e, (LoopVar, Affine)) for e in i.args[1:]):
        one, other = (x.at([*full[:-1], e], mask) for e in i.args[1:])
        return low.b.op("select", i.args[0], one, other)
    return x.at(full, mask)


def scatter(low: Lowering, eqn: Eqn) -> None:
    x, updates = low.values(eqn.inputs[:2])
    axes, mode, b = eqn.params["axes"], eqn.params["mode"], low.b
    indices = _checked_indices(low, eqn, 2, x.shape)
    shape_i = indices[0].shape if indices else ()
    if x.size == 0 or updates.size == 0:
        return low.lazy(eqn, 0, (x,), x.at)
    source = _own_iota(indices, axes, x.shape, shape_i)
    if source is not None:
        return _select_form(low, eqn, x, updates, indices, source)
    (var,) = eqn.outputs
    out = low.buf_for(var)
    low.store(x, out)
    if len(updates.eqns) > 0 and updates.buf is None and low.cost(updates) > 4 * CHEAP:
        updates = low.realize(updates)
    loop_vars = [LoopVar(f"i{d}", s) for d, s in enumerate(updates.shape)]
    idx: list[Expr] = [v if v.extent != 1 else loops.const_index(0) for v in loop_vars]
    full: list[Any] = [None] * len(x.shape)
    rest = iter(idx[len(shape_i) :])
    for axis, index in zip(axes, indices, strict=True):
        full[axis] = _safe(b, index.at(idx[: len(shape_i)]), x.shape[axis])
    full = [next(rest) if f is None else f for f in full]
    body: list[Stmt] = [
        Store(low.shared.buffer(out), b.ravel(full, x.shape), updates.at(idx), _STORE_OP[mode])
    ]
    for d in reversed(range(len(loop_vars))):
        if loop_vars[d].extent != 1:
            innermost_rest = d >= len(shape_i) and isinstance(body[0], Store)
            body = [Loop(loop_vars[d], body, "vector" if innermost_rest else "seq")]
    kernel, args = finish_kernel(low.shared, "scatter", body, (*updates.eqns, eqn))
    low.nest(kernel, args, (eqn,))
    low.env[var] = low.of_buf(out)
    return None


def _own_iota(
    indices: Sequence[Lazy], axes: Sequence[int], shape: Sequence[int], shape_i: Sequence[int]
) -> list[int] | None:
    """For each index dimension the operand whose value is that very dimension's index; None if there is none."""
    probe = [LoopVar(f"p{d}", s) for d, s in enumerate(shape_i)]
    exprs = [index.at(probe) for index in indices]
    found: list[int] = []
    for v in probe:
        matches = [k for k, e in enumerate(exprs) if e is v and shape[axes[k]] == v.extent]
        if not matches:
            return None
        found.append(matches[0])
    return found


def _select_form(
    low: Lowering, eqn: Eqn, x: Lazy, updates: Lazy, indices: list[Lazy], source: list[int]
) -> None:
    axes, mode, b = eqn.params["axes"], eqn.params["mode"], low.b
    rest_axes = [d for d in range(len(x.shape)) if d not in axes]

    def at(idx: tuple[Expr, ...], mask: Any) -> Expr:
        where = [idx[axes[k]] for k in source]
        hit = b.const(True, dtypes.bool_)
        for k, index in enumerate(indices):
            if k not in source:
                wanted = _safe(b, index.at(where, mask), x.shape[axes[k]])
                hit = b.op("bitwise_and", hit, b.op("eq", wanted, idx[axes[k]]))
        old = x.at(idx, mask)
        new = updates.at([*where, *(idx[d] for d in rest_axes)], mask)
        adds_to_zero = mode == "add" and x.literal is not None and x.literal == 0
        combined = new if mode == "set" or adds_to_zero else b.op(mode, old, new)
        return b.op("select", hit, combined, old)

    low.lazy(eqn, 0, (x, updates, *indices), at, x.splits)


RULES: dict[str, Rule] = {"gather": gather, "scatter": scatter}
