"""Loop bodies that treat the rows of their carry alike, so that a loop over a batch is as many loops over parts of the batch.

    h' = tanh(h @ w + x_t)      with h: [32, 128], x_t: [32, 128]:      4 x  (the same with 8 rows)

`cut_rows` asks the outputs for their rows and walks back to the inputs: an element-wise operation needs the same rows of its
operands, a product those of its left operand and all of the right one, a sum over the rows nothing that a part could give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fgrad.ir import Atom, Eqn, Graph, Literal, Type, Var, infer

MOST_PARTS = 8
_PART_CYCLES = 100_000
_MOST_TRIES = 8
DEAR = frozenset(["tanh", "sigmoid", "exp", "log", "erf", "sin", "cos", "pow", "log1p", "expm1"])

Demand = tuple[Var, bool]  # a variable, and whether a part of its rows is meant (or all of it)
# For an equation whose output is wanted in parts: which of its inputs are, and the parameters for a part.
Found = tuple[list[bool], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Cut:
    """`graph` does the work of a part. `inputs[i]` says which input of the body its input i is, and whether a part of it;
    `carried[i]`, whether carry i is cut (the others are the same for every part)."""

    graph: Graph
    inputs: tuple[tuple[int, bool], ...]
    carried: tuple[bool, ...]


def cut_rows(body: Graph, consts: int, carry: int, rows: int, part: int) -> Cut | None:
    """The body for `part` of `rows` rows, or None if rows are not treated alike."""
    carried = [_has_rows(v.type, rows) for v in body.inputs[consts : consts + carry]]
    if any(not _has_rows(a.type, rows) for a in body.outputs[carry:]):
        return None
    for _ in range(_MOST_TRIES):
        if not any(carried):
            break
        made = _Cutter(body, consts, carry, rows, part, carried).cut()
        if made is None or isinstance(made, Cut):
            return made
        for n in made:  # wanted whole: perhaps all parts can compute it
            carried[n] = False
    return None


def choose_parts(body: Graph, consts: int, carry: int, length: int) -> tuple[int, int] | None:
    """`(rows, parts)` for a loop that is worth cutting: enough work, and enough rows in each part to use the weights well.

    The choice depends on the loop alone, so that results do not depend on the number of threads.
    """
    carries = [v.type for v in body.inputs[consts : consts + carry] if v.type.shape]
    if not carries or length < 2:
        return None
    rows = max(carries, key=lambda t: t.nbytes).shape[0]
    counts = [n for n in range(2, MOST_PARTS + 1) if rows % n == 0]
    good = [n for n in counts if rows // n >= 8] or [n for n in counts[:1] if rows // n >= 4]
    cycles = length * sum(map(_cycles, body.eqns))
    good = [n for n in good if cycles / n >= _PART_CYCLES]
    return (rows, good[-1]) if good else None


def _cycles(e: Eqn) -> float:
    """About what an equation costs."""
    size = sum(v.type.size for v in e.outputs)
    if e.prim.name == "dot_general":
        (ac, _), _ = e.params["dims"]
        return size * math.prod(e.inputs[0].type.shape[i] for i in ac) / 16
    return size * (1.0 if e.prim.name in DEAR else 0.1)


def _has_rows(t: Type, rows: int) -> bool:
    return bool(t.shape) and t.shape[0] == rows


class _Cutter:
    def __init__(self, body: Graph, consts: int, carry: int, rows: int, part: int, carried: Sequence[bool]):
        self.body, self.carry, self.rows, self.part, self.carried = body, carry, rows, part, carried
        self.carry_at = {v: n for n, v in enumerate(body.inputs[consts : consts + carry])}
        self.wanted: set[Demand] = set()

    def cut(self) -> Cut | list[int] | None:
        """The cut; or the numbers of carries that are wanted whole although they are cut; or None."""
        body = self.body
        outputs = [
            (a, on)
            for a, on in zip(body.outputs, [*self.carried, *[True] * (len(body.outputs) - self.carry)])
        ]
        self.wanted.update((a, on) for a, on in outputs if isinstance(a, Var))
        if any(isinstance(a, Literal) and on for a, on in outputs):
            return None
        found: dict[tuple[Eqn, bool], dict[str, Any]] = {}
        for e in reversed(body.eqns):
            if len(e.outputs) != 1:
                if any((v, True) in self.wanted for v in e.outputs):
                    return None
                if any((v, False) in self.wanted for v in e.outputs):
                    found[e, False] = e.params
                    self._want(e.inputs, [False] * len(e.inputs))
                continue
            if (e.outputs[0], True) in self.wanted:
                rule = _rule(e)
                need = rule(e, self.rows, self.part) if rule and not e.prim.effects else None
                if need is None:
                    return None
                found[e, True] = need[1]
                self._want(e.inputs, need[0])
            if (e.outputs[0], False) in self.wanted:
                found[e, False] = e.params
                self._want(e.inputs, [False] * len(e.inputs))
        whole: list[int] = []
        inputs = set(body.inputs)
        for v, on in self.wanted:
            if v in self.carry_at and on != self.carried[self.carry_at[v]]:
                if on:
                    return None
                whole.append(self.carry_at[v])
            if on and v in inputs and not _has_rows(v.type, self.rows):
                return None
        return whole or self._build(found, outputs)

    def _want(self, atoms: Sequence[Atom], parts: Sequence[bool]) -> None:
        self.wanted.update((a, on) for a, on in zip(atoms, parts, strict=True) if isinstance(a, Var))

    def _build(
        self, found: dict[tuple[Eqn, bool], dict[str, Any]], outputs: list[tuple[Atom, bool]]
    ) -> Cut | None:
        env: dict[Demand, Var] = {}
        inputs: list[tuple[int, bool]] = []
        for n, v in enumerate(self.body.inputs):
            for on in (True, False):
                if (v, on) in self.wanted or (v in self.carry_at and on == self.carried[self.carry_at[v]]):
                    env[v, on] = Var(_part(v.type, self.part) if on else v.type)
                    inputs.append((n, on))
        eqns = []
        for e in self.body.eqns:
            for on in (True, False):
                if (e, on) not in found:
                    continue
                params = found[e, on]
                parts = _rule(e)(e, self.rows, self.part)[0] if on else [False] * len(e.inputs)  # type: ignore[index,misc]  # it was found
                atoms = [env[a, p] if isinstance(a, Var) else a for a, p in zip(e.inputs, parts, strict=True)]
                types = infer(e.prim, [a.type for a in atoms], params)
                wanted = tuple(_part(v.type, self.part) if on else v.type for v in e.outputs)
                if types != wanted:
                    return None
                made = [Var(t) for t in types]
                env.update(((v, on), m) for v, m in zip(e.outputs, made, strict=True))
                eqns.append(Eqn(e.prim, atoms, params, made, e.source))
        outs = tuple(env[a, on] if isinstance(a, Var) else a for a, on in outputs)
        graph = Graph(tuple(env[self.body.inputs[n], on] for n, on in inputs), eqns, outs, self.body.name)
        return Cut(graph, tuple(inputs), tuple(self.carried))


def _part(t: Type, part: int) -> Type:
    return Type((part, *t.shape[1:]), t.dtype)


# ------------------------------------------------------------------------------------------------ what an equation needs


def _elementwise(e: Eqn, rows: int, part: int) -> Found | None:
    shape = e.outputs[0].type.shape
    if any(a.type.shape not in (shape, ()) for a in e.inputs):
        return None
    return [a.type.shape == shape for a in e.inputs], e.params


def _broadcast(e: Eqn, rows: int, part: int) -> Found:
    shape, axes = e.params["shape"], tuple(e.params["axes"])
    return [0 in axes], {**e.params, "shape": (part, *shape[1:])}


def _reshape(e: Eqn, rows: int, part: int) -> Found | None:
    shape, source = e.params["shape"], e.inputs[0].type.shape
    if not source or source[0] != rows or shape[0] != rows:
        return None
    return [True], {**e.params, "shape": (part, *shape[1:])}


def _transpose(e: Eqn, rows: int, part: int) -> Found | None:
    return ([True], e.params) if e.params["perm"][0] == 0 else None


def _slice(e: Eqn, rows: int, part: int) -> Found | None:
    start, stop, step = (e.params[k] for k in ("start", "stop", "step"))
    if (start[0], stop[0], step[0]) != (0, e.inputs[0].type.shape[0], 1):
        return None
    return [True], {**e.params, "stop": (part, *stop[1:])}


def _pad(e: Eqn, rows: int, part: int) -> Found | None:
    if e.params["low"][0] or e.params["high"][0] or e.params["interior"][0]:
        return None
    return [True, False], e.params


def _along(key: str) -> Callable[[Eqn, int, int], Found | None]:
    """An operation along the axis or axes in parameter `key`, which leaves the others in place."""

    def rule(e: Eqn, rows: int, part: int) -> Found | None:
        axes = e.params[key]
        axes = axes if isinstance(axes, (tuple, list)) else (axes,)
        return None if 0 in axes else ([True] * len(e.inputs), e.params)

    return rule


def _iota(e: Eqn, rows: int, part: int) -> Found | None:
    if e.params["axis"] == 0:
        return None
    return [], {**e.params, "shape": (part, *e.params["shape"][1:])}


def _dot_general(e: Eqn, rows: int, part: int) -> Found | None:
    (ac, bc), (ab, bb) = e.params["dims"]
    if ab:
        return ([True, True], e.params) if ab[0] == bb[0] == 0 else None
    free = [n for n in range(e.inputs[0].type.ndim) if n not in ac]
    if free:
        return ([True, False], e.params) if free[0] == 0 else None
    return ([False, True], e.params) if 0 not in bc else None


_RULES: dict[str, Callable[[Eqn, int, int], Found | None]] = {
    "broadcast": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "pad": _pad,
    "flip": _along("axes"),
    "concatenate": _along("axis"),
    "iota": _iota,
    "dot_general": _dot_general,
    **dict.fromkeys(
        ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"], _along("axes")
    ),
    **dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "argmax", "argmin"], _along("axis")),
}


def _rule(e: Eqn) -> Callable[[Eqn, int, int], Found | None] | None:
    return _elementwise if e.prim.family == "elementwise" else _RULES.get(e.prim.name)
