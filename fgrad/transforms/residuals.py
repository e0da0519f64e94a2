"""Which values to keep for a derivative, and which to compute again.

    kept as asked:   s, s * (1 - s), x, 1 - tanh(x)**2        (four arrays an iteration, in a scan)
    kept:            s, x, tanh(x)                            (the others follow from them in a few operations)

An array that is kept costs its bytes twice, written and read; a cheap element-wise operation on values that are there anyway
costs nearly nothing beside that.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence

from fgrad.ir import Eqn, Var

CHEAP = frozenset(
    [
        "add",
        "sub",
        "mul",
        "neg",
        "abs",
        "sign",
        "square",
        "maximum",
        "minimum",
        "select",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "logical_and",
        "logical_or",
        "logical_not",
        "bitwise_and",
        "bitwise_or",
        "bitwise_not",
        "broadcast",
        "reshape",
        "slice",
        "convert",
        "identity",
        "stop_gradient",
        "full",
        "iota",
    ]
)
_MOST = 16  # equations computed again for one residual


def free_vars(eqns: Iterable[Eqn], also: Iterable[object] = ()) -> list[Var]:
    """The variables that `eqns` and `also` read and no equation of `eqns` defines, in order of their first use."""
    eqns = list(eqns)
    own = {v for e in eqns for v in e.outputs}
    found: dict[Var, None] = {}
    for a in (*(a for e in eqns for a in e.inputs), *also):
        if isinstance(a, Var) and a not in own:
            found.setdefault(a)
    return list(found)


def fewer_residuals(
    eqns: Sequence[Eqn], residuals: Iterable[Var], given: Iterable[Var]
) -> tuple[list[Var], list[Eqn]]:
    """`(kept, again)`: the residuals to keep, and the equations of `eqns` that give the others from those and from `given`."""
    producer = {v: e for e in eqns for v in e.outputs}
    place = {v: n for n, e in enumerate(eqns) for v in e.outputs}
    free = set(given)
    kept = dict.fromkeys(r for r in residuals if r not in free)
    replaced: list[Var] = []
    # The last computed first: what one is replaced by was computed before it, so its own turn comes later.
    number = itertools.count()
    todo = [(-place[r], next(number), r) for r in kept if r in place]
    heapq.heapify(todo)
    while todo:
        _, _, r = heapq.heappop(todo)
        del kept[r]
        leaves = _leaves(r, producer, lambda v: v in free or v in kept)
        extra = [v for v in leaves or () if v not in free and v not in kept]
        if leaves is None or (extra and sum(v.type.nbytes for v in extra) > r.type.nbytes):
            kept[r] = None
            continue
        replaced.append(r)
        for v in extra:
            kept[v] = None
            if v in place:
                heapq.heappush(todo, (-place[v], next(number), v))
    return list(kept), _needed(eqns, replaced, producer, free | kept.keys())


def _leaves(r: Var, producer: dict[Var, Eqn], known: Callable[[Var], bool]) -> list[Var] | None:
    """The values that cheap equations make `r` of, going back to known ones where there are any; None if `r` is dear."""
    leaves: dict[Var, None] = {}
    path: set[Eqn] = set()
    todo = [r]
    while todo:
        v = todo.pop()
        eqn = producer.get(v)
        if (v is not r and known(v)) or eqn is None or eqn.prim.name not in CHEAP:
            if v is r:
                return None
            leaves.setdefault(v)
            continue
        if eqn not in path:
            path.add(eqn)
            todo.extend(a for a in eqn.inputs if isinstance(a, Var))
            if len(path) > _MOST:
                return None
    return list(leaves)


def _needed(
    eqns: Sequence[Eqn], wanted: Iterable[Var], producer: dict[Var, Eqn], known: set[Var]
) -> list[Eqn]:
    """The equations that compute `wanted` from `known`, in order."""
    needed: set[Eqn] = set()
    todo = [v for v in wanted if v not in known]
    while todo:
        v = todo.pop()
        if v in known or v not in producer or producer[v] in needed:
            continue
        needed.add(producer[v])
        todo.extend(a for a in producer[v].inputs if isinstance(a, Var))
    return [e for e in eqns if e in needed]
