"""Equal equations are computed once (hash-consing on primitive, parameters and inputs)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad.ir import Atom, Eqn, Graph, Literal, Var
from fgrad.passes.inline import map_subgraphs


def _atom_key(a: Atom) -> Any:
    if isinstance(a, Literal):
        return (a.type.dtype, np.asarray(a.value).tobytes())
    return id(a)


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted((k, _hashable(v)) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(v) for v in value)
    return value


def share_equal(graph: Graph) -> Graph:
    """The graph in which no two equations compute the same thing from the same values."""
    seen: dict[Any, tuple[Var, ...]] = {}
    env: dict[Var, Atom] = {}
    eqns: list[Eqn] = []
    for eqn in graph.eqns:
        inputs = [env.get(a, a) if isinstance(a, Var) else a for a in eqn.inputs]
        params = map_subgraphs(eqn, share_equal) if eqn.prim.family == "control" else eqn.params
        key: Any = None
        if not eqn.prim.effects and eqn.prim.family != "control":
            try:
                key = (id(eqn.prim), tuple(map(_atom_key, inputs)), _hashable(params))
                known = seen.get(key)
            except TypeError:  # a parameter that cannot be hashed
                key = known = None
            if known is not None:
                env.update(zip(eqn.outputs, known, strict=True))
                continue
        if key is not None:
            seen[key] = eqn.outputs
        eqns.append(Eqn(eqn.prim, inputs, params, eqn.outputs, eqn.source))
    outputs = tuple(env.get(a, a) if isinstance(a, Var) else a for a in graph.outputs)
    return Graph(graph.inputs, eqns, outputs, graph.name)
