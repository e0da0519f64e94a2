"""Loops of known length before they are lowered: what need not be done in every iteration is not.

    scan:  h' = tanh(h @ transpose(w) + x_t @ u)        wt = transpose(w)                      once
           dw' = dw + dot(h_t, y_t)            ->       p = dot(xs, u)                         for all t at once
           y_t = dot(h', v)                             scan:  h' = tanh(h @ wt + p_t)
                                                        dw = dw0 + dot(hs, ys), ys = dot(hs, v)

In order: results and carries that nothing needs go; carries that never change become constants, equal ones one; a scan that does
what another over the same arrays does becomes part of it (the forward values beside those with residuals); what depends on
the carry in no way, and what the carry does not depend on, is done for all iterations at once where it is a product; what
depends on constants only moves out.
"""

from __future__ import annotations

from dataclasses import replace

from fgrad.ir import Atom, Eqn, Graph, Var
from fgrad.passes.inline import map_subgraphs
from fgrad.passes.loops_out import moved_out, while_constants_out
from fgrad.passes.scans import Env, Scan, key, prune, renamed, tidy


def improve_loops(graph: Graph) -> Graph:
    """The graph with its scans improved as the head of this file says, nested ones first."""
    if not any(e.prim.family == "control" for e in graph.eqns):
        return graph
    eqns = []
    for e in prune(graph).eqns:
        params = map_subgraphs(e, improve_loops) if e.prim.family == "control" else e.params
        eqns.append(Eqn(e.prim, e.inputs, params, e.outputs, e.source))
    graph = prune(_merged(Graph(graph.inputs, eqns, graph.outputs, graph.name)))
    eqns = []
    env: Env = {}

    def read(a: Atom) -> Atom:
        while isinstance(a, Var) and a in env:
            a = env[a]
        return a

    for e in graph.eqns:
        e = Eqn(e.prim, [read(a) for a in e.inputs], e.params, e.outputs, e.source)
        if e.prim.name == "scan" and e.params["length"] > 0:
            new, changed = moved_out(Scan.of(e))
            eqns += new
            env |= changed
        elif e.prim.name == "while_loop":
            eqns += while_constants_out(e)
        else:
            eqns.append(e)
    return prune(Graph(graph.inputs, eqns, tuple(read(a) for a in graph.outputs), graph.name))


def _merged(graph: Graph) -> Graph:
    """Every scan made tidy, and joined to an earlier one that it repeats."""
    env: Env = {}
    producer: dict[Var, Eqn] = {}
    eqns: list[Eqn] = []
    scans: dict[int, Scan] = {}
    place: dict[Var, int] = {}

    def read(a: Atom) -> Atom:
        while isinstance(a, Var) and a in env:
            a = env[a]
        return a

    def put(n: int, e: Eqn) -> None:
        for v in e.outputs:
            producer[v], place[v] = e, n

    for e in graph.eqns:
        e = Eqn(e.prim, [read(a) for a in e.inputs], e.params, e.outputs, e.source)
        n = len(eqns)
        if e.prim.name != "scan":
            eqns.append(e)
            put(n, e)
            continue
        s, changed = tidy(Scan.of(e), producer)
        env |= changed
        begin = max((place.get(a, -1) for a in s.inputs if isinstance(a, Var)), default=-1)
        for m, earlier in scans.items():
            both = joined(earlier, s, producer) if m > begin else None
            if both is not None:
                n, s = m, both[0]
                env |= both[1]
                break
        scans[n] = s
        e = s.eqn()
        eqns[n : n + 1] = [e]
        put(n, e)
    return Graph(graph.inputs, eqns, tuple(read(a) for a in graph.outputs), graph.name)


def joined(a: Scan, b: Scan, producer: dict[Var, Eqn]) -> tuple[Scan, Env] | None:
    """One scan that does what both do, if the carries of one are among those of the other."""
    if (a.length, a.reverse) != (b.length, b.reverse) or not (a.carry and b.carry):
        return None
    starts = [{(c.var.type, key(c.init)) for c in s.carry} for s in (a, b)]
    if not (starts[0] <= starts[1] or starts[1] <= starts[0]):
        return None
    b = renamed(b)
    both = replace(
        a,
        consts=(*a.consts, *b.consts),
        carry=(*a.carry, *b.carry),
        xs=(*a.xs, *b.xs),
        eqns=(*a.eqns, *b.eqns),
        ys=(*a.ys, *b.ys),
        name=b.name,
    )
    found, outer = tidy(both, producer)
    return (found, outer) if len(found.carry) == max(len(a.carry), len(b.carry)) else None
