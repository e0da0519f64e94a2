"""Transposition: a graph that is linear in some inputs, to the graph of its cotangents.

Equations that depend on no linear input stay as they are; the others are walked backwards, and the cotangents that reach one
variable from several equations are added. `vjp` is this, applied to what `jvp` wrote.
"""

from __future__ import annotations

from collections.abc import Sequence

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import GraphError, message
from fgrad.ir import Atom, Graph, Linear, Var, dce
from fgrad.ops.elementwise import add
from fgrad.trace import as_tracer, at_source, deriving
from fgrad.transforms.jvp import Derived, instantiate, jvp_graph


def transpose_graph(graph: Graph, linear: Sequence[bool], force: bool = False) -> tuple[Derived, list[bool]]:
    """The graph `(non-linear inputs, cotangents of all outputs, captured) -> cotangents of the linear inputs that have one`.

    Returns it with a mask over the linear inputs: False where the cotangent is zero (with `force` zeros are made). Outputs that do not depend on a linear
    input must not be there (a function with such an output is not linear).
    """
    graph = dce(graph)
    depends: set[Var] = {v for v, on in zip(graph.inputs, linear, strict=True) if on}
    backward = []
    cotangents: dict[Var, Array] = {}

    def accumulate(atom: Atom, ct: Array | None) -> None:
        if ct is None or not isinstance(atom, Var) or atom not in depends:
            return
        if ct.type != atom.type:
            raise GraphError(f"a transpose rule gave a cotangent {ct.type} for a value {atom.type}")
        old = cotangents.get(atom)
        cotangents[atom] = ct if old is None else add(old, ct)

    with deriving("transpose") as t:
        for eqn in graph.eqns:
            if any(isinstance(a, Var) and a in depends for a in eqn.inputs):
                depends.update(v for v in eqn.outputs if dtypes.is_inexact(v.type.dtype))
                backward.append(eqn)
            else:
                t.eqns.append(eqn)
        cts = [Var(a.type) for a in graph.outputs]
        for atom, ct in zip(graph.outputs, cts, strict=True):
            accumulate(atom, as_tracer(t, ct))
        for eqn in reversed(backward):
            given = [cotangents.pop(v, None) for v in eqn.outputs]
            if all(g is None for g in given):
                continue
            if eqn.prim.transpose is None:
                raise NotImplementedError(
                    message(eqn.prim.name, "reverse-mode derivative is not defined", source=eqn.source)
                )
            operands = [
                Linear(a.type) if isinstance(a, Var) and a in depends else as_tracer(t, a) for a in eqn.inputs
            ]
            with at_source(eqn.source):
                results = eqn.prim.transpose(given, *operands, **eqn.params)
                for a, ct in zip(eqn.inputs, results, strict=True):
                    accumulate(a, ct)
        found = [cotangents.get(v) for v, on in zip(graph.inputs, linear, strict=True) if on]
        if force:
            of = [v for v, on in zip(graph.inputs, linear, strict=True) if on]
            found = [instantiate(x, v.type) for x, v in zip(found, of, strict=True)]
        atoms = [t.lift(x) for x in found if x is not None]
    fixed = [v for v, on in zip(graph.inputs, linear, strict=True) if not on]
    derived = Graph((*fixed, *cts, *t.inputs_captured), t.eqns, tuple(atoms), f"transpose {graph.name}")
    return Derived(derived, t.arrays_captured), [x is not None for x in found]


def vjp_graph(graph: Graph, active: Sequence[bool]) -> tuple[Derived, list[bool], list[bool]]:
    """The graph `(inputs, cotangents, captured) -> cotangents of the active inputs`, as `transpose(jvp(graph))`.

    Returns (derived, out_mask, in_mask): which outputs take a cotangent (the others do not depend on an active input), and
    which active inputs get one (the others have a zero derivative). The forward equations keep their variables.
    """
    forward, out_mask = jvp_graph(graph, active)
    g, n_in, n_active = forward.graph, len(graph.inputs), sum(active)
    tangent_only = Graph(g.inputs, g.eqns, g.outputs[len(graph.outputs) :], g.name)
    linear = [n_in <= i < n_in + n_active for i in range(len(g.inputs))]
    back, in_mask = transpose_graph(tangent_only, linear)
    # back.graph.inputs: graph inputs, captured by jvp, cotangents, captured by transpose. Bring the captured ones together.
    n_cap, n_ct = len(forward.captured), sum(out_mask)
    ins = back.graph.inputs
    order = (
        *ins[:n_in],
        *ins[n_in + n_cap : n_in + n_cap + n_ct],
        *ins[n_in : n_in + n_cap],
        *ins[n_in + n_cap + n_ct :],
    )
    result = Graph(order, back.graph.eqns, back.graph.outputs, f"vjp {graph.name}")
    return Derived(dce(result), forward.captured + back.captured), out_mask, in_mask
