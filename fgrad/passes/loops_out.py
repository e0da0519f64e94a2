"""Work moved out of a loop: done once, or for all iterations at once.

constants    what depends on nothing else is computed before the loop, and products' right operands are turned so that their
             rows are read as they lie
products     of what does not depend on the carry, before the loop
the rest     after it: see `loops_after`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fgrad.ir import Atom, Eqn, Graph, Literal, Var, dce
from fgrad.ops.structure import transpose
from fgrad.passes import loops_after
from fgrad.passes.loops_after import After, is_product
from fgrad.passes.scans import Env, Scan, reached
from fgrad.trace import Trace, as_tracer, at_source, deriving, evaluate
from fgrad.transforms.vmap import batch_graph

_REPEATING = frozenset(["broadcast", "iota", "full"])  # cheaper to compute again than to read


def moved_out(s: Scan) -> tuple[list[Eqn], Env]:
    """The equations that replace `s`, and results that are now other atoms."""
    eqns: list[Eqn] = []
    for move in (constants_out, operands_in_order, products_before):
        with deriving("loops") as t:
            s = move(s, t)
        eqns += t.eqns
    with deriving("loops") as t:
        after = After(s, t)
        after.sums()
        after.products()
        after.repeated()
    s, env = after.scan(), after.results
    if s.carry or s.ys:
        eqns.append(s.eqn())
    return [*eqns, *t.eqns], env


def constants_out(s: Scan, t: Trace) -> Scan:
    """What depends on constants alone."""
    made, rest = _fixed(s.body, s.consts, t, lambda e: True)
    return replace(s, consts=(*s.consts, *made), eqns=tuple(rest)) if made else s


def _fixed(
    body: Graph, consts: Sequence[tuple[Var, Atom]], t: Trace, movable: Callable[[Eqn], bool]
) -> tuple[list[tuple[Var, Atom]], list[Eqn]]:
    """The variables of `body` that depend on `consts` alone, with their values written into `t`, and the equations that are left.

    What only repeats a value stays: it is cheaper to repeat than to read.
    """
    known = {v for v, _ in consts}
    fixed: list[Eqn] = []
    for e in body.eqns:
        inputs_known = all(isinstance(a, Literal) or a in known for a in e.inputs)
        if inputs_known and not e.prim.effects and movable(e):
            fixed.append(e)
            known.update(e.outputs)
    moving = set(fixed)
    needed = {a for e in body.eqns if e not in moving for a in e.inputs} | set(body.outputs)
    for e in reversed(fixed):
        if not needed.isdisjoint(e.outputs) and e.prim.name in _REPEATING:
            moving.discard(e)
            needed.update(e.inputs)
    roots = [v for e in fixed if e in moving for v in e.outputs if v in needed]
    if not roots:
        return [], body.eqns
    graph = Graph(tuple(v for v, _ in consts), fixed, tuple(roots))
    values = evaluate(graph, [as_tracer(t, a) for _, a in consts])
    made = [(v, t.lift(x)) for v, x in zip(roots, values, strict=True)]
    return made, [e for e in body.eqns if e not in moving]


def while_constants_out(eqn: Eqn) -> list[Eqn]:
    """A `while_loop` without what is the same in all iterations, after the equations that compute it.

    There may be no iteration: what could fail (indices out of bounds, NumPy's linear algebra) stays.
    """

    def movable(e: Eqn) -> bool:
        return e.prim.family in ("elementwise", "structure", "contract", "reduce", "cumulative")

    nc, nb = eqn.params["cond_consts"], eqn.params["body_consts"]
    params = dict(eqn.params)
    consts: list[tuple[Atom, ...]] = []
    with deriving("loops") as t:
        for key, inputs in (("cond", eqn.inputs[:nc]), ("body", eqn.inputs[nc : nc + nb])):
            graph: Graph = dce(params[key])
            n = len(inputs)
            made, rest = _fixed(graph, list(zip(graph.inputs, inputs)), t, movable)
            inner = (*graph.inputs[:n], *(v for v, _ in made), *graph.inputs[n:])
            params[key] = Graph(inner, rest, graph.outputs, graph.name)
            params[f"{key}_consts"] = n + len(made)
            consts.append((*inputs, *(a for _, a in made)))
    inputs = (*consts[0], *consts[1], *eqn.inputs[nc + nb :])
    return [*t.eqns, Eqn(eqn.prim, inputs, params, eqn.outputs, eqn.source)]


def operands_in_order(s: Scan, t: Trace) -> Scan:
    """The constant right operand of a product with its contracted axes first, so that the product reads its rows as they lie."""
    consts = dict(s.consts)
    made: dict[tuple[Var, tuple[int, ...]], Var] = {}
    eqns = []
    for e in s.eqns:
        if e.prim.name == "dot_general" and e.inputs[1] in consts:
            b = e.inputs[1]
            assert isinstance(b, Var)
            (ac, bc), (ab, bb) = e.params["dims"]
            free = tuple(i for i in range(b.type.ndim) if i not in bc and i not in bb)
            order = (*bb, *bc, *free)
            if free and bc and order != tuple(range(b.type.ndim)):
                new = made.get((b, order))
                if new is None:
                    with at_source(e.source):
                        turned = t.lift(transpose(as_tracer(t, consts[b]), order))
                    new = made[b, order] = Var(turned.type)
                    consts[new] = turned
                n, k = len(bb), len(bc)
                dims = (ac, tuple(range(n, n + k))), (ab, tuple(range(n)))
                e = Eqn(e.prim, (e.inputs[0], new), {"dims": dims}, e.outputs, e.source)
        eqns.append(e)
    return replace(s, consts=tuple(consts.items()), eqns=tuple(eqns)) if made else s


def products_before(s: Scan, t: Trace) -> Scan:
    """Products that depend on the scanned arrays and constants alone."""
    moving = reached(s.eqns, [v for v, _ in s.xs]) - reached(s.eqns, [c.var for c in s.carry])
    roots = [e.outputs[0] for e in s.eqns if is_product(e) and e.outputs[0] in moving]
    if not roots or s.length * sum(v.type.nbytes for v in roots) > loops_after.ROOM:
        return s
    inputs = (*s.consts, *s.xs)
    graph = dce(Graph(tuple(v for v, _ in inputs), list(s.eqns), tuple(roots)))
    if any(e.prim.batch is None or e.prim.effects for e in graph.eqns):
        return s
    every, _ = batch_graph(graph, s.length, [n >= len(s.consts) for n in range(len(inputs))], True)
    if every.captured:
        return s
    values = evaluate(every.graph, [as_tracer(t, a) for _, a in inputs])
    made = tuple((v, t.lift(x)) for v, x in zip(roots, values, strict=True))
    eqns = tuple(e for e in s.eqns if e.outputs[0] not in roots)
    return replace(s, xs=(*s.xs, *made), eqns=eqns)
