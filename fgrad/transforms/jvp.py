"""Forward-mode differentiation: a graph to the graph of its values and tangents.

    graph f(x):              graph jvp f(x, x'):
      a = sin x                a = sin x
      y = mul a x              c = cos x        (partial derivative)
      return y                 a' = mul x' c    (linear)
                               y = mul a x
                               p = mul a' x     (linear)
                               q = mul a x'     (linear)
                               y' = add p q     (linear)
                               return y, y'

The equations of `f` are kept as they are, variables included, so values already known for `f` serve the derived graph.
Tangents that are zero are never built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradTypeError, GraphError, message
from fgrad.ir import Atom, Graph, Var
from fgrad.ops.builders import full_like
from fgrad.trace import Trace, as_tracer, at_source, deriving


@dataclass(eq=False)
class Derived:
    """A graph made by a transform. Its inputs end with variables for `captured` arrays (closed over by custom rules)."""

    graph: Graph
    captured: list[Array]


class Tangents:
    """The tangent of each variable; absent where zero."""

    def __init__(self) -> None:
        self._of: dict[Var, Array] = {}

    def get(self, atom: Atom) -> Array | None:
        return self._of.get(atom) if isinstance(atom, Var) else None

    def set(self, var: Var, tangent: Array | None) -> None:
        if tangent is not None:
            self._of[var] = tangent


def push_tangents(t: Trace, graph: Graph, tangents: Tangents) -> None:
    """Write the equations of `graph` into `t`, each followed by the equations of its outputs' tangents."""
    for eqn in graph.eqns:
        t.eqns.append(eqn)
        given = [tangents.get(a) for a in eqn.inputs]
        if all(g is None for g in given):
            continue
        if eqn.prim.jvp is None:
            raise NotImplementedError(
                message(eqn.prim.name, "forward-mode derivative is not defined", source=eqn.source)
            )
        primals = [as_tracer(t, a) for a in eqn.inputs]
        outs = [as_tracer(t, v) for v in eqn.outputs]
        with at_source(eqn.source):
            result = eqn.prim.jvp(primals, given, outs, **eqn.params)
        results = result if eqn.prim.multiple and result is not None else [result] * len(eqn.outputs)
        for v, tangent in zip(eqn.outputs, results, strict=True):
            if tangent is None or not dtypes.is_inexact(v.type.dtype):
                continue
            if tangent.type != v.type:
                raise GraphError(
                    f"the JVP rule of {eqn.prim.name} gave a tangent {tangent.type} for a value {v.type}"
                )
            tangents.set(v, tangent)


def jvp_graph(
    graph: Graph, active: Sequence[bool], force: Sequence[bool] | None = None
) -> tuple[Derived, list[bool]]:
    """The graph `(inputs, tangents of the active inputs, captured) -> (outputs, tangents of the outputs that have one)`.

    Returns it with a mask of the outputs that have a tangent; where `force` holds, zeros are made for those that have none.
    Integer inputs cannot be active.
    """
    new: list[Var] = []
    with deriving("jvp") as t:
        tangents = Tangents()
        for v, on in zip(graph.inputs, active, strict=True):
            if on:
                if not dtypes.is_inexact(v.type.dtype):
                    raise FgradTypeError(
                        message(
                            "jvp", f"cannot differentiate with respect to {v.type}: it is not floating point"
                        )
                    )
                new.append(Var(v.type))
                tangents.set(v, as_tracer(t, new[-1]))
        push_tangents(t, graph, tangents)
        out_tangents = [tangents.get(a) for a in graph.outputs]
        if force is not None:
            out_tangents = [
                instantiate(x, a.type) if f else x
                for x, a, f in zip(out_tangents, graph.outputs, force, strict=True)
            ]
        atoms = [t.lift(x) for x in out_tangents if x is not None]
    derived = Graph(
        (*graph.inputs, *new, *t.inputs_captured), t.eqns, (*graph.outputs, *atoms), f"jvp {graph.name}"
    )
    return Derived(derived, t.arrays_captured), [x is not None for x in out_tangents]


def instantiate(tangent: Array | None, like: Any) -> Array:
    """A tangent, or zeros where it is absent."""
    return tangent if tangent is not None else full_like(like, 0)
