"""Reductions, arg-reductions and cumulative sums as folds over loop variables.

row fold     for i in kept:  m = -inf;  for j in reduced:  m = maximum(m, x[i, j]);   out[i] = m
column fold  out[:] = 0;     for i in reduced:  for j in kept:  out[j] += x[i, j]     (the kept dims are contiguous)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.codegen.loops import Acc, Affine, Expr, Init, Loop, LoopVar, Stmt, Store, Update
from fgrad.ir import Eqn
from fgrad.passes.exprs import loads
from fgrad.passes.lazy import Lazy, Stage
from fgrad.passes.lowering import Lowering, Rule, plain
from fgrad.passes.nests import finish_kernel

_FOLD = {
    "reduce_sum": "add",
    "reduce_prod": "mul",
    "reduce_max": "maximum",
    "reduce_min": "minimum",
    "reduce_and": "bitwise_and",
    "reduce_or": "bitwise_or",
    "cumsum": "add",
    "cumprod": "mul",
    "cummax": "maximum",
    "cummin": "minimum",
}


def smallest(dtype: np.dtype) -> Any:
    return -np.inf if dtypes.is_float(dtype) else False if dtype == dtypes.bool_ else np.iinfo(dtype).min


def largest(dtype: np.dtype) -> Any:
    return np.inf if dtypes.is_float(dtype) else True if dtype == dtypes.bool_ else np.iinfo(dtype).max


def identity(op: str, dtype: np.dtype) -> Any:
    if op == "bitwise_and":
        return (
            True
            if dtype == dtypes.bool_
            else -1
            if np.issubdtype(dtype, np.signedinteger)
            else np.iinfo(dtype).max
        )
    return {"add": 0, "mul": 1, "maximum": smallest(dtype), "minimum": largest(dtype), "bitwise_or": 0}[op]


def reduce(low: Lowering, eqn: Eqn) -> None:
    (var,) = eqn.outputs
    x = low.value(eqn.inputs[0])
    axes, op = set(eqn.params["axes"]), _FOLD[eqn.prim.name]
    out = low.buf_for(var)
    low.env[var] = low.of_buf(out)
    if out.size == 0:
        return None
    if x.size == 0:
        start = low.b.const(identity(op, x.dtype), x.dtype)
        low.store(Lazy(out.shape, x.dtype, lambda idx, mask: start), out, (eqn,))
        return None
    groups, idx = low.loop_vars(x)
    kept = [v for d, g in enumerate(groups) if d not in axes for v in g]
    reduced = [v for d, g in enumerate(groups) if d in axes for v in g]
    out_index = low.b.ravel([i for d, i in enumerate(idx) if d not in axes], out.shape)
    value = x.at(idx)
    eqns = (*x.eqns, eqn)
    start = low.b.const(identity(op, x.dtype), x.dtype)
    if not reduced:
        low.items.append(Stage(tuple(kept), len(kept), [(plain(out), out_index, value)], eqns=eqns))
    elif low.shared.target == "cpu" and _is_column(value, kept, reduced):
        stage = Stage(
            (*kept, *reduced), len(kept), [(plain(out), out_index, value)], column=(op, start), eqns=eqns
        )
        low.items.append(stage)
    else:
        wide, narrow = _accumulator(x.dtype, op)
        acc = Acc(low.shared.namer(var), wide)
        result = low.b.op("cast", acc, dtype=x.dtype) if narrow else acc
        low.items.append(
            Stage(
                (*kept, *reduced),
                len(kept),
                [(plain(out), out_index, result)],
                [(acc, low.b.const(identity(op, wide), wide))],
                [Update(acc, op, low.b.op("cast", value, dtype=wide))],
                eqns=eqns,
            )
        )
    return None


def _accumulator(dtype: np.dtype, op: str) -> tuple[np.dtype, bool]:
    """Half-precision sums and products accumulate in float32."""
    if dtype in (dtypes.float16, dtypes.bfloat16) and op in ("add", "mul"):
        return dtypes.float32, True
    return dtype, False


def _is_column(value: Expr, kept: list[LoopVar], reduced: list[LoopVar]) -> bool:
    """Whether most of what the reduction reads is contiguous in a kept dim and not in the reduced ones."""
    if not kept or value.dtype in (dtypes.float16, dtypes.bfloat16):
        return False
    votes = 0
    keep, drop = set(map(id, kept)), set(map(id, reduced))
    for load in loads([value]):
        terms = load.index.terms if isinstance(load.index, Affine) else ((load.index, 1),)
        if not any(id(term) in drop for term, _ in terms):
            continue
        for term, coef in terms:
            if abs(coef) == 1:
                votes += load.buffer.size * ((id(term) in keep) - (id(term) in drop))
    return votes > 0 and kept[-1].extent >= 4


def arg_reduce(low: Lowering, eqn: Eqn) -> None:
    """Two accumulators: the extreme so far and where it was. NaN counts as the extreme; the first one wins."""
    (var,) = eqn.outputs
    x, axis, b = low.value(eqn.inputs[0]), eqn.params["axis"], low.b
    if x.size == 0:
        return low.host(eqn)
    out = low.buf_for(var)
    low.env[var] = low.of_buf(out)
    groups, idx = low.loop_vars(x)
    kept = [v for d, g in enumerate(groups) if d != axis for v in g]
    out_index = b.ravel([i for d, i in enumerate(idx) if d != axis], out.shape)
    eqns = (*x.eqns, eqn)
    if not groups[axis]:
        low.items.append(
            Stage(tuple(kept), len(kept), [(plain(out), out_index, b.const(0, dtypes.int64))], eqns=eqns)
        )
        return None
    value = x.at(idx)
    largest_wins = eqn.prim.name == "argmax"
    best, where = Acc(low.shared.name(), x.dtype), Acc(low.shared.namer(var), dtypes.int64)
    start = b.const((smallest if largest_wins else largest)(x.dtype), x.dtype)
    better = better_than(b, value, best, largest_wins)
    # An input full of the starting value leaves position 0, which is right.
    updates: list[Stmt] = [
        Update(where, "set", b.op("select", better, idx[axis], where)),
        Update(best, "set", b.op("select", better, value, best)),
    ]
    low.items.append(
        Stage(
            (*kept, *groups[axis]),
            len(kept),
            [(plain(out), out_index, where)],
            [(best, start), (where, b.const(0, dtypes.int64))],
            updates,
            eqns=eqns,
        )
    )
    return None


def better_than(b: Any, value: Expr, best: Expr, largest_wins: bool) -> Expr:
    """value beats best; NaN beats every number, and nothing beats NaN."""
    better = b.op("gt" if largest_wins else "lt", value, best)
    if not dtypes.is_float(value.dtype):
        return better
    number_before = b.op("eq", best, best)
    return b.op("bitwise_or", better, b.op("bitwise_and", b.op("ne", value, value), number_before))


def cumulative(low: Lowering, eqn: Eqn) -> None:
    """One pass along the axis; the other dims outside, so that the accumulator stays in a register."""
    (var,) = eqn.outputs
    x, axis, b = low.value(eqn.inputs[0]), eqn.params["axis"], low.b
    out, op = low.buf_for(var), _FOLD[eqn.prim.name]
    low.env[var] = low.of_buf(out)
    if out.size == 0:
        return None
    outer = [LoopVar(f"i{d}", s) for d, s in enumerate(x.shape)]
    step = outer[axis]
    along: Expr = b.add(b.scale(step, -1), x.shape[axis] - 1) if eqn.params.get("reverse") else step
    idx = [along if d == axis else v if v.extent != 1 else b.ravel((), ()) for d, v in enumerate(outer)]
    index, value = b.ravel(idx, x.shape), x.at(idx)
    others = [v for d, v in enumerate(outer) if d != axis and v.extent != 1]
    target = low.shared.buffer(out)
    acc = Acc("s", x.dtype)
    if x.dtype in (dtypes.float16, dtypes.bfloat16) and op in ("add", "mul"):
        acc = Acc("s", dtypes.float32)
        value = b.op("cast", value, dtype=dtypes.float32)
    body: list[Stmt] = [Update(acc, op, value), Store(target, index, b.op("cast", acc, dtype=x.dtype))]
    inner: list[Stmt] = [Init(acc, b.const(identity(op, acc.dtype), acc.dtype)), Loop(step, body, "seq")]
    for n, v in enumerate(reversed(others)):
        inner = [Loop(v, inner, "parallel" if n == len(others) - 1 else "seq")]
    kernel, args = finish_kernel(low.shared, eqn.prim.name, inner, (*x.eqns, eqn))
    low.nest(kernel, args, (*x.eqns, eqn))
    return None


RULES: dict[str, Rule] = {"argmax": arg_reduce, "argmin": arg_reduce}
RULES.update((name, reduce if name.startswith("reduce_") else cumulative) for name in _FOLD)
