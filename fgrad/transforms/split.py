"""Partial evaluation: a graph with some inputs unknown, as a known graph and one for the rest.

    graph f(a, x?):          known(a):            unknown(r, x):
      b = sin a                b = sin a            y = mul r x
      y = mul b x              return b             return y
      return y

`b` is a residual. `linearize`, `scan` and `checkpoint` are made of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fgrad.ir import Atom, Graph, Var, dce


@dataclass(eq=False)
class Split:
    """`known(known inputs) -> (known outputs, residuals)`; `unknown(residuals, unknown inputs) -> unknown outputs`.

    `out_unknown` says, an output of the original graph, to which of the two it belongs."""

    known: Graph
    unknown: Graph
    out_unknown: list[bool]
    n_residuals: int


def split(graph: Graph, unknown_inputs: Sequence[bool]) -> Split:
    """Divide `graph` by what depends on an unknown input."""
    graph = dce(graph)
    unknown: set[Var] = {v for v, u in zip(graph.inputs, unknown_inputs, strict=True) if u}
    first, second = [], []
    for eqn in graph.eqns:
        if any(isinstance(a, Var) and a in unknown for a in eqn.inputs):
            unknown.update(eqn.outputs)
            second.append(eqn)
        else:
            first.append(eqn)

    def is_unknown(a: Atom) -> bool:
        return isinstance(a, Var) and a in unknown

    out_unknown = [is_unknown(a) for a in graph.outputs]
    residuals: dict[Var, None] = {}
    for eqn in second:
        for a in eqn.inputs:
            if isinstance(a, Var) and a not in unknown:
                residuals.setdefault(a)
    known_in = tuple(v for v, u in zip(graph.inputs, unknown_inputs, strict=True) if not u)
    unknown_in = tuple(v for v, u in zip(graph.inputs, unknown_inputs, strict=True) if u)
    known_out = tuple(a for a, u in zip(graph.outputs, out_unknown, strict=True) if not u)
    unknown_out = tuple(a for a, u in zip(graph.outputs, out_unknown, strict=True) if u)
    known = Graph(known_in, first, (*known_out, *residuals), f"known {graph.name}")
    rest = Graph((*residuals, *unknown_in), second, unknown_out, f"unknown {graph.name}")
    return Split(known, rest, out_unknown, len(residuals))
