"""Calls: a graph as one equation of another. `checkpoint` is a call whose inside is computed again in the backward pass.

The derivative of a call is a call of the derivative: `jvp(call g) = call g; call tangent(g)`, and the transpose of the second is
`call transpose(tangent(g))`, which holds what it needs of `g` itself, so nothing of the inside is kept in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import tree
from fgrad.array import Array
from fgrad.convert import as_array, weak_kind
from fgrad.device import beside
from fgrad.ir import Graph, Linear, Primitive, Type, dce, register
from fgrad.reference import run_numpy
from fgrad.trace import bind, current_stack, trace
from fgrad.transforms.jvp import jvp_graph
from fgrad.transforms.transpose import transpose_graph
from fgrad.transforms.vmap import batch_graph

F = Callable[..., Any]


def derived(graph: Graph, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """`make()`, kept with the graph unless it captured arrays (which belong to one context only)."""
    if key in graph.meta:
        return graph.meta[key]
    made = make()
    if not made[0].captured:
        graph.meta[key] = made
    return made


def tangent_graph(
    graph: Graph, active: Sequence[bool], force: Sequence[bool] | None = None
) -> tuple[Graph, list[Array], list[bool]]:
    """`(inputs, active tangents, captured) -> tangents of the masked outputs`, the captured arrays, and the mask."""
    found, mask = derived(
        graph, ("jvp", *active, force and tuple(force)), lambda: jvp_graph(graph, active, force)
    )
    g = found.graph
    key = ("tangents only",)
    if key not in g.meta:
        g.meta[key] = dce(Graph(g.inputs, g.eqns, g.outputs[len(graph.outputs) :], g.name))
    return g.meta[key], found.captured, mask


def call_like(name: str, impl: Callable[..., Any]) -> Primitive:
    """A primitive `name(*args; graph)` that carries out `graph`."""

    def type_rule(*types: Type, graph: Graph, **_: Any) -> tuple[Type, ...]:
        return graph.out_types

    def jvp(
        primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, *, graph: Graph, **rest: Any
    ) -> list[Array | None]:
        active = [t is not None for t in tangents]
        g, captured, mask = tangent_graph(graph, active)
        found = iter(
            bind(prim, *primals, *[t for t in tangents if t is not None], *captured, graph=g, **rest)
        )
        return [next(found) if on else None for on in mask]

    def transpose(cts: Sequence[Array | None], *inputs: Any, graph: Graph, **rest: Any) -> list[Array | None]:
        linear = [isinstance(x, Linear) for x in inputs]
        given = [c is not None for c in cts]

        def make() -> Any:
            outputs = tuple(o for o, on in zip(graph.outputs, given, strict=True) if on)
            return transpose_graph(Graph(graph.inputs, graph.eqns, outputs, graph.name), linear)

        back, mask = derived(graph, ("transpose", *linear, *given), make)
        fixed = [x for x, on in zip(inputs, linear, strict=True) if not on]
        found = iter(
            bind(prim, *fixed, *[c for c in cts if c is not None], *back.captured, graph=back.graph, **rest)
        )
        has = iter(mask)
        return [(next(found) if next(has) else None) if on else None for on in linear]

    def batch(
        size: int, args: Sequence[Array], batched: Sequence[bool], *, graph: Graph, **rest: Any
    ) -> tuple[list[Array], list[bool]]:
        found, mask = derived(graph, ("vmap", size, *batched), lambda: batch_graph(graph, size, batched))
        return bind(prim, *args, *found.captured, graph=found.graph, **rest), mask

    prim = Primitive(
        name, type_rule, impl, "control", multiple=True, jvp=jvp, transpose=transpose, batch=batch
    )
    return register(prim)


def _run(*args: np.ndarray, graph: Graph) -> list[np.ndarray]:
    return run_numpy(graph, args)


checkpoint_p = call_like("checkpoint", _run)


def checkpoint(f: F) -> F:
    """`f`, but its intermediate values are computed again in the backward pass instead of being kept.

    Chen et al. (2016), "Training deep nets with sublinear memory cost".
    """

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        leaves, in_tree = tree.flatten((args, kwargs))
        if not current_stack():
            with beside(*leaves):  # as in a trace
                return f(*args, **kwargs)
        arrays = [as_array(x, "checkpoint") for x in leaves]
        graph, captured, out_tree = trace_to_graph(
            lambda a, k: f(*a, **k), in_tree, arrays, "checkpoint", leaves
        )
        outs = bind(checkpoint_p, *arrays, *captured, graph=graph)
        return tree.unflatten(out_tree, outs)

    checkpointed.__name__ = getattr(f, "__name__", "checkpointed")
    checkpointed.__doc__ = f.__doc__
    return checkpointed


def trace_to_graph(
    f: F, in_tree: Any, arrays: Sequence[Any], what: str, leaves: Sequence[Any] = (), whole: bool = False
) -> tuple[Graph, list[Array], Any]:
    """Trace `f(*unflatten(in_tree, tracers))`: graph, captured arrays (its last inputs), output structure.

    Where `leaves`, the arguments as the user gave them, are bare scalars, they stay weak in promotion."""

    def flat(*tracers: Array) -> Any:
        leaves, out_tree = tree.flatten(f(*tree.unflatten(in_tree, tracers)))
        return [as_array(x, what) for x in leaves], out_tree

    types = [x if isinstance(x, Type) else x.type for x in arrays]
    weak = [weak_kind(x) for x in leaves]
    with beside(*arrays):
        traced = trace(flat, types, what=what, name=getattr(f, "__name__", what), weak=weak, whole=whole)
    return traced.graph, traced.captured, traced.aux
