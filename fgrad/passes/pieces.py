"""A sum of arrays that are zero outside pieces side by side is their concatenation.

    pad(a, right=6) + pad(b, left=2, right=4) + pad(c, left=4)     ->     concatenate(a, b, c)

Cotangents of slices arrive like this: those of the gates of a recurrent cell, or of queries, keys and values.
"""

from __future__ import annotations

import itertools

from fgrad.ir import REGISTRY, Atom, Eqn, Graph, Literal, Var, dce
from fgrad.passes.inline import map_subgraphs

Piece = tuple[int, int, Atom]  # where it starts and ends along the axis


def join_pieces(graph: Graph) -> Graph:
    """The graph with such sums replaced, in nested graphs too; what they were made of is left to `dce`."""
    producer: dict[Var, Eqn] = {}
    eqns: list[Eqn] = []
    added = {a for e in graph.eqns if e.prim.name == "add" for a in e.inputs}
    uses: dict[Atom, int] = {}
    for a in (*(a for e in graph.eqns for a in e.inputs), *graph.outputs):
        uses[a] = uses.get(a, 0) + 1
    for e in graph.eqns:
        if e.prim.family == "control":
            e = Eqn(e.prim, e.inputs, map_subgraphs(e, lambda g: dce(join_pieces(g))), e.outputs, e.source)
        elif e.prim.name == "add" and not (e.outputs[0] in added and uses[e.outputs[0]] == 1):
            e = _joined(e, producer) or e
        eqns.append(e)
        producer.update((v, e) for v in e.outputs)
    return Graph(graph.inputs, eqns, graph.outputs, graph.name)


def _joined(e: Eqn, producer: dict[Var, Eqn]) -> Eqn | None:
    shape = e.outputs[0].type.shape
    found: list[tuple[int, Piece]] = []
    todo: list[Atom] = list(e.inputs)
    while todo:
        a = todo.pop()
        made = producer.get(a) if isinstance(a, Var) else None
        if made is None:
            return None
        if made.prim.name == "add":
            todo.extend(made.inputs)
            continue
        piece = _piece(made, shape)
        if piece is None or (found and piece[0] != found[0][0]):
            return None
        found.append(piece)
    axis = found[0][0]
    pieces = sorted((p for _, p in found), key=lambda p: p[0])
    if pieces[0][0] != 0 or pieces[-1][1] != shape[axis]:
        return None
    if any(before[1] != after[0] for before, after in itertools.pairwise(pieces)):
        return None
    prim = REGISTRY["concatenate"]
    return Eqn(prim, [p[2] for p in pieces], {"axis": axis}, e.outputs, e.source)


def _piece(e: Eqn, shape: tuple[int, ...]) -> tuple[int, Piece] | None:
    """The axis along which `e` pads with zeros, and where its operand lies there."""
    if e.prim.name != "pad" or any(e.params["interior"]):
        return None
    x, value = e.inputs
    low, high = e.params["low"], e.params["high"]
    if not isinstance(value, Literal) or value.value != 0 or any(n < 0 for n in (*low, *high)):
        return None
    axes = [n for n in range(len(shape)) if low[n] or high[n]]
    if len(axes) != 1 or x.type.shape[axes[0]] == 0:
        return None
    begin = low[axes[0]]
    return axes[0], (begin, begin + x.type.shape[axes[0]], x)
