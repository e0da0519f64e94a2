"""Calls become the equations of their graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fgrad.ir import Atom, Eqn, Graph, Var, dce

CALLS = frozenset({"call", "custom_jvp_call", "custom_vjp_call"})


def inline_calls(graph: Graph) -> Graph:
    """`call`, `custom_jvp_call` and `custom_vjp_call` replaced by what they call, at any depth."""
    return _inline(graph, CALLS, inline_calls)


def inline_checkpoints(graph: Graph) -> Graph:
    """The same for `checkpoint`, whose body computes again what the graph may have computed before."""
    return _inline(graph, frozenset({"checkpoint"}), inline_checkpoints)


def map_subgraphs(eqn: Eqn, apply: Callable[[Graph], Graph]) -> dict[str, Any]:
    """The parameters of `eqn` with `apply` done to every graph among them."""
    out: dict[str, Any] = {}
    for key, value in eqn.params.items():
        if isinstance(value, Graph):
            value = apply(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Graph):
            value = tuple(apply(g) for g in value)
        out[key] = value
    return out


def _inline(graph: Graph, names: frozenset[str], again: Callable[[Graph], Graph]) -> Graph:
    if not any(e.prim.family == "control" for e in graph.eqns):
        return graph
    eqns: list[Eqn] = []
    env: dict[Var, Atom] = {}

    def read(atom: Atom, env: dict[Var, Atom]) -> Atom:
        return env.get(atom, atom) if isinstance(atom, Var) else atom

    for eqn in graph.eqns:
        inputs = [read(a, env) for a in eqn.inputs]
        if eqn.prim.name in names:
            body = dce(again(eqn.params["graph"]))
            # A graph may be called twice, so its variables are made anew.
            inner: dict[Var, Atom] = dict(zip(body.inputs, inputs, strict=True))
            for e in body.eqns:
                outputs = [Var(v.type) for v in e.outputs]
                eqns.append(
                    Eqn(e.prim, [read(a, inner) for a in e.inputs], e.params, outputs, e.source or eqn.source)
                )
                inner.update(zip(e.outputs, outputs, strict=True))
            for var, atom in zip(eqn.outputs, body.outputs, strict=True):
                env[var] = read(atom, inner)
        elif eqn.prim.family == "control":
            eqns.append(Eqn(eqn.prim, inputs, map_subgraphs(eqn, again), eqn.outputs, eqn.source))
        else:
            eqns.append(Eqn(eqn.prim, inputs, eqn.params, eqn.outputs, eqn.source))
    return Graph(graph.inputs, eqns, tuple(read(a, env) for a in graph.outputs), graph.name)
