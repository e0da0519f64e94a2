"""Questions about loop nests whose answers say how threads may share them.

for i in 64:                       independent: every element stored belongs to one i
    s = 0
    for j in 10:  s = add(s, x[10*i + j])          a fold: partial sums, added up, give the same
    y[i] = s

for k in 5:
    out[ids[k]] += u[k]            neither: two k may store to one element, so they go in order
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fgrad import dtypes
from fgrad.codegen import loops
from fgrad.codegen.loops import Acc, Buffer, Expr, Init, Load, Loop, LoopVar, Op, Stmt, Store, Update
from fgrad.codegen.nestinfo import nodes

REASSOCIABLE = frozenset({"add", "mul", "minimum", "maximum", "bitwise_and", "bitwise_or"})


# ------------------------------------------------------------------------------------------------ walking


def chain(loop: Loop) -> tuple[list[Loop], list[Stmt]]:
    """The perfectly nested loops from `loop` on, and the body of the last."""
    found = [loop]
    while len(found[-1].body) == 1 and isinstance(found[-1].body[0], Loop):
        found.append(found[-1].body[0])
    return found, found[-1].body


def nested(variables: Sequence[LoopVar], body: Sequence[Stmt], kind: str = "seq") -> list[Stmt]:
    """`body` inside loops over `variables`, the first outermost."""
    result = list(body)
    for v in reversed(variables):
        result = [Loop(v, result, kind)]
    return result


def expressions(stmts: Sequence[Stmt]) -> list[Expr]:
    """Every distinct expression below `stmts`."""
    return nodes(e for s in loops.statements(stmts) for e in loops.expressions(s))


def loaded(stmts: Sequence[Stmt]) -> set[Buffer]:
    found = {e.buffer for e in expressions(stmts) if isinstance(e, Load)}
    return found | {s.buffer for s in loops.statements(stmts) if isinstance(s, Store) and s.op is not None}


def stored(stmts: Sequence[Stmt]) -> set[Buffer]:
    return {s.buffer for s in loops.statements(stmts) if isinstance(s, Store)}


def assigned(stmts: Sequence[Stmt]) -> list[Acc]:
    """Accumulators started or updated by `stmts`, in order."""
    found = (s.acc for s in loops.statements(stmts) if isinstance(s, (Init, Update)))
    return list(dict.fromkeys(found))


def carried(stmts: Sequence[Stmt]) -> list[Acc]:
    """Accumulators that `stmts` update and do not start."""
    started = {s.acc for s in loops.statements(stmts) if isinstance(s, Init)}
    return [acc for acc in assigned(stmts) if acc not in started]


def read_accs(stmts: Sequence[Stmt]) -> set[Acc]:
    """Accumulators whose value an expression uses."""
    return {e for e in expressions(stmts) if isinstance(e, Acc)}


def work(stmts: Iterable[Stmt]) -> int:
    """How many times the innermost statements run."""
    total = 0
    for s in stmts:
        total += s.var.extent * max(work(s.body), 1) if isinstance(s, Loop) else 0
    return total


def has_loops(stmts: Sequence[Stmt]) -> bool:
    return any(isinstance(s, Loop) for s in stmts)


# ------------------------------------------------------------------------------------------------ independence


def independent(loop: Loop) -> bool:
    """Whether no iteration of `loop` touches an element that another one stores. (Accumulators are another question.)"""
    if loop.var.extent == 1 or loop.kind in ("parallel", "vector"):
        return True
    changed = stored(loop.body)
    indices: dict[Buffer, list[Expr]] = {b: [] for b in changed}
    for s in loops.statements(loop.body):
        if isinstance(s, Store):
            indices[s.buffer].append(s.index)
    for e in expressions(loop.body):
        if isinstance(e, Load) and e.buffer in changed:
            indices[e.buffer].append(e.index)
    return all(_tells_apart(loop.var, found) for found in indices.values())


def _tells_apart(v: LoopVar, indices: Sequence[Expr]) -> bool:
    """Whether equal indices mean equal `v`: like the digits of a number,

    index = (what is a multiple of `modulus`) + c*v + (what is less than c).
    """
    step, modulus = 0, 0
    low, high = math.inf, -math.inf
    for index in indices:
        const, terms = loops.affine_terms(index)
        mine = sum(c for t, c in terms if t is v)
        if mine == 0 or step not in (0, mine):
            return False
        step = mine
        least = most = const
        for t, c in terms:
            if t is v:
                continue
            if abs(c) >= abs(step) * v.extent:
                modulus = math.gcd(modulus, abs(c))
                continue
            bounds = loops.index_range(t)
            if bounds is None:
                return False
            ends = (bounds[0] * c, bounds[1] * c)
            least, most = least + min(ends), most + max(ends)
        low, high = min(low, least), max(high, most)
    spread = high - low
    return spread < abs(step) and (modulus == 0 or abs(step) * (v.extent - 1) + spread < modulus)


# ------------------------------------------------------------------------------------------------ folds


@dataclass(frozen=True, eq=False)
class Fold:
    """`acc = op(acc, value)` whose order does not matter."""

    acc: Acc
    op: str

    @property
    def accs(self) -> tuple[Acc, ...]:
        return (self.acc,)


@dataclass(frozen=True, eq=False)
class ArgFold:
    """The extreme so far and where it was: of equal ones, the first."""

    best: Acc
    where: Acc
    largest: bool

    @property
    def accs(self) -> tuple[Acc, ...]:
        return (self.best, self.where)


def folds(loop: Loop) -> list[Fold | ArgFold] | None:
    """How `loop` changes the accumulators that it does not start; None if they depend on the order of its iterations."""
    outside = carried([loop])
    if not outside:
        return []
    updates = [s for s in loops.statements([loop]) if isinstance(s, Update) and s.acc in set(outside)]
    result: list[Fold | ArgFold] = []
    plain = [s for s in updates if s.op != "set"]
    pairs = [s for s in updates if s.op == "set"]
    ops: dict[Acc, str] = {}
    for s in plain:
        if s.op not in REASSOCIABLE or ops.setdefault(s.acc, s.op) != s.op:
            return None
    result += [Fold(acc, op) for acc, op in ops.items()]
    while pairs:
        found = _arg_fold(pairs[0], pairs[1]) if len(pairs) > 1 else None
        if found is None or not set(ops).isdisjoint(found.accs):
            return None
        ops.update(dict.fromkeys(found.accs, "set"))
        result.append(found)
        pairs = pairs[2:]
    if any(isinstance(s, Update) and s.acc in set(outside) for s in _second_uses(updates)):
        return None
    # An accumulator that is read on the way is a running value, not a total. (The pairs read their own.)
    inside = [s for s in _leaves(loop.body) if not (isinstance(s, Update) and s.op == "set" and s.acc in ops)]
    return None if read_accs(inside) & set(outside) else result


def _leaves(stmts: Sequence[Stmt]) -> list[Stmt]:
    return [s for s in loops.statements(stmts) if not isinstance(s, Loop)]


def _second_uses(updates: Sequence[Update]) -> list[Update]:
    """Updates by "set" of an accumulator that was set before."""
    seen: set[Acc] = set()
    again = []
    for s in updates:
        if s.op == "set" and s.acc in seen:
            again.append(s)
        seen.add(s.acc)
    return again


def _arg_fold(first: Update, second: Update) -> ArgFold | None:
    """`where = select(better, i, where); best = select(better, value, best)`."""
    a, b = first.value, second.value
    if not (
        isinstance(a, Op) and isinstance(b, Op) and a.name == b.name == "select" and a.args[0] is b.args[0]
    ):
        return None
    better, value, best, where = a.args[0], b.args[1], second.acc, first.acc
    if a.args[2] is not where or b.args[2] is not best or where in nodes([value, a.args[1]]):
        return None
    if best in nodes([value, a.args[1]]):
        return None
    test = better
    if isinstance(better, Op) and better.name == "bitwise_or":
        test = better.args[0]
    if not (
        isinstance(test, Op) and test.name in ("gt", "lt") and test.args[0] is value and test.args[1] is best
    ):
        return None
    return ArgFold(best, where, test.name == "gt")


def identity(op: str, dtype: np.dtype) -> object:
    """What `op` leaves a value as it is with."""
    if op in ("maximum", "minimum"):
        if dtypes.is_float(dtype):
            return -math.inf if op == "maximum" else math.inf
        if dtype == dtypes.bool_:
            return op == "minimum"
        return np.iinfo(dtype).min if op == "maximum" else np.iinfo(dtype).max
    if op == "bitwise_and":
        return True if dtype == dtypes.bool_ else np.iinfo(dtype).max if dtype.kind == "u" else -1
    return {
        "add": False if dtype == dtypes.bool_ else 0,
        "mul": 1,
        "bitwise_or": False if dtype == dtypes.bool_ else 0,
    }[op]


def is_simple(loop: Loop) -> bool:
    """Whether threads may share the iterations of `loop`, a perfect nest, in any way: what they fold is combined after."""
    chained, body = chain(loop)
    if has_loops(body) or folds(loop) is None:
        return False
    return all(independent(part) for part in chained)
