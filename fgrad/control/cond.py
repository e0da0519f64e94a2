"""`cond` and `switch`: one of several graphs, chosen by a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fgrad import dtypes, tree
from fgrad.array import Array
from fgrad.control.call import derived, tangent_graph, trace_to_graph
from fgrad.convert import as_array
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.ir import Graph, Linear, Primitive, Type, Var, register
from fgrad.ops.builders import batch_operand, full
from fgrad.ops.elementwise import convert, eq, maximum, minimum, select
from fgrad.ops.structure import broadcast
from fgrad.reference import run_numpy
from fgrad.trace import bind, evaluate
from fgrad.transforms.transpose import transpose_graph
from fgrad.transforms.vmap import batch_graph

F = Callable[..., Any]


def _switch_type(index: Type, *args: Type, branches: tuple[Graph, ...]) -> tuple[Type, ...]:
    if index != Type((), dtypes.int64):
        raise FgradTypeError(message("switch", f"the index must be a 0-d int64, got {index}"))
    return branches[0].out_types


def _switch_impl(index: np.ndarray, *args: np.ndarray, branches: tuple[Graph, ...]) -> list[np.ndarray]:
    return run_numpy(branches[min(max(int(index), 0), len(branches) - 1)], args)


def with_captured(graph: Graph, n: int, offset: int, captured: Sequence[Sequence[Array]]) -> Graph:
    """`graph` with inputs for the captured arrays of all branches; its own begin at `offset` among them."""
    own = len(captured[offset])
    before = [Var(x.type) for c in captured[:offset] for x in c]
    after = [Var(x.type) for c in captured[offset + 1 :] for x in c]
    ins = graph.inputs
    assert len(ins) == n + own
    return Graph((*ins[:n], *before, *ins[n:], *after), graph.eqns, graph.outputs, graph.name)


def unify(
    graphs: Sequence[Graph], captured: Sequence[Sequence[Array]], n: int
) -> tuple[tuple[Graph, ...], list[Array]]:
    """Branches over one list of inputs: the `n` common ones, then everything that any of them captured."""
    merged = tuple(with_captured(g, n, i, captured) for i, g in enumerate(graphs))
    return merged, [x for c in captured for x in c]


def _switch_jvp(
    primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, *, branches: tuple[Graph, ...]
) -> list[Array | None]:
    active = [t is not None for t in tangents[1:]]
    masks = [tangent_graph(b, active)[2] for b in branches]
    union = [any(m) for m in zip(*masks, strict=True)]
    if not any(union):
        return [None] * len(union)
    made = [tangent_graph(b, active, union) for b in branches]
    n = len(active) + sum(active)
    graphs, captured = unify([m[0] for m in made], [m[1] for m in made], n)
    found = iter(
        bind(switch_p, *primals, *[t for t in tangents[1:] if t is not None], *captured, branches=graphs)
    )
    return [next(found) if on else None for on in union]


def _switch_transpose(
    cts: Sequence[Array | None], index: Array, *inputs: Any, branches: tuple[Graph, ...]
) -> list[Array | None]:
    linear = [isinstance(x, Linear) for x in inputs]
    given = [c is not None for c in cts]
    made = []
    for b in branches:
        outputs = tuple(o for o, on in zip(b.outputs, given, strict=True) if on)
        graph = Graph(b.inputs, b.eqns, outputs, b.name)
        made.append(
            derived(
                b,
                ("transpose", *linear, *given),
                partial(transpose_graph, graph, linear, force=True),
            )
        )
    fixed = [x for x, on in zip(inputs, linear, strict=True) if not on]
    present = [c for c in cts if c is not None]
    graphs, captured = unify(
        [m[0].graph for m in made], [m[0].captured for m in made], len(fixed) + len(present)
    )
    found = iter(bind(switch_p, index, *fixed, *present, *captured, branches=graphs))
    return [None, *[next(found) if on else None for on in linear]]


def _switch_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, branches: tuple[Graph, ...]
) -> tuple[list[Array], list[bool]]:
    index, *rest = args
    on = list(batched[1:])
    if not batched[0]:
        made = [
            derived(b, ("vmap", size, *on, True), partial(batch_graph, b, size, on, True)) for b in branches
        ]
        graphs, captured = unify([m[0].graph for m in made], [m[0].captured for m in made], len(rest))
        outs = bind(switch_p, index, *rest, *captured, branches=graphs)
        return outs, [True] * len(outs)
    # Examples choose differently: carry out every branch and select.
    rest = [x if b else batch_operand(x, size) for x, b in zip(rest, on, strict=True)]
    top = full(index.shape, len(branches) - 1, dtypes.int64)
    index = minimum(maximum(index, full(index.shape, 0, dtypes.int64)), top)
    chosen: list[Array] | None = None
    for i, b in enumerate(branches):
        found, _ = derived(
            b,
            ("vmap", size, *[True] * len(rest), True),
            partial(batch_graph, b, size, [True] * len(rest), True),
        )
        outs = evaluate(found.graph, [*rest, *found.captured])
        if chosen is None:
            chosen = outs
            continue
        here = eq(index, full(index.shape, i, dtypes.int64))
        chosen = [select(broadcast(here, o.shape, (0,)), o, c) for o, c in zip(outs, chosen, strict=True)]
    assert chosen is not None
    return chosen, [True] * len(chosen)


switch_p = register(
    Primitive(
        "switch",
        _switch_type,
        _switch_impl,
        "control",
        multiple=True,
        jvp=_switch_jvp,
        transpose=_switch_transpose,
        batch=_switch_batch,
    )
)


def switch(index: Any, branches: Sequence[F], *operands: Any) -> Any:
    """`branches[index](*operands)`; an index outside is moved to the nearest branch. All branches return one structure of types."""
    if not branches:
        raise FgradValueError(message("switch", "no branches given"))
    i = as_array(index, "switch")
    if i.shape != () or not (dtypes.is_integer(i.dtype) or i.dtype == dtypes.bool_):
        raise FgradTypeError(message("switch", f"the index must be an integer scalar, got {i.type}"))
    leaves, in_tree = tree.flatten(tuple(operands))
    arrays = [as_array(x, "switch") for x in leaves]
    made = [trace_to_graph(f, in_tree, arrays, "switch", leaves) for f in branches]
    first, first_tree = made[0][0].out_types, made[0][2]
    for n, (g, _, out_tree) in enumerate(made):
        if out_tree != first_tree or g.out_types != first:
            what = [
                f"({', '.join(map(str, t))}) as {tree.text(s)}"
                for t, s in ((first, first_tree), (g.out_types, out_tree))
            ]
            raise FgradTypeError(
                message(
                    "cond/switch",
                    f"branch 0 returns {what[0]}, branch {n} {what[1]}",
                    "make all branches return the same structure, shapes and dtypes",
                )
            )
    graphs, captured = unify([m[0] for m in made], [m[1] for m in made], len(arrays))
    outs = bind(switch_p, convert(i, dtypes.int64), *arrays, *captured, branches=graphs)
    return tree.unflatten(first_tree, outs)


def cond(pred: Any, true_fun: F, false_fun: F, *operands: Any) -> Any:
    """`true_fun(*operands)` if `pred` else `false_fun(*operands)`, as one equation: only one side is carried out."""
    p = as_array(pred, "cond")
    if p.shape != ():
        raise FgradTypeError(
            message(
                "cond",
                f"the predicate must be a scalar, got {p.type}",
                "use fgrad.numpy.where for a choice by element",
            )
        )
    from_bool = p if p.dtype == dtypes.bool_ else convert(p, dtypes.bool_)
    return switch(from_bool, (false_fun, true_fun), *operands)
