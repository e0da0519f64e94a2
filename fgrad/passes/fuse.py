"""Graph to program: lower every equation, then let stages join into kernels (`schedule`)."""

from __future__ import annotations

from fgrad.codegen.program import Buf, Program
from fgrad.ir import Graph
from fgrad.passes import (
    lower_contract,
    lower_control,
    lower_index,
    lower_pointwise,
    lower_pool,
    lower_reduce,
)
from fgrad.passes.lowering import Lowering, Rule, Shared, lower_block
from fgrad.passes.schedule import schedule

RULES: dict[str, Rule] = {
    **lower_pointwise.RULES,
    **lower_reduce.RULES,
    **lower_pool.RULES,
    **lower_index.RULES,
    **lower_contract.RULES,
    **lower_control.RULES,
    "family elementwise": lower_pointwise.elementwise,
}


def lower(graph: Graph, donated: dict[int, int], target: str = "cpu") -> Program:
    """The program of an optimized graph."""
    shared = Shared(RULES, schedule, target=target)
    name = shared.namer
    inputs = tuple(Buf(name(v), v.type.shape, v.type.dtype, "input") for v in graph.inputs)
    for eqn in graph.eqns:
        for var in eqn.outputs:
            name(var)
    computed = {v for e in graph.eqns for v in e.outputs}
    outputs: list[Buf] = []
    for n, a in enumerate(graph.outputs):
        label = name(a) if a in computed and a not in graph.outputs[:n] else f"out{n}"
        outputs.append(Buf(label, a.type.shape, a.type.dtype, "output"))
    reader = Lowering(Graph((), [], ()), shared, (), ())
    body = lower_block(graph, shared, [reader.of_buf(b) for b in inputs], outputs)
    return Program(graph.name, inputs, tuple(outputs), body, shared.status, shared.checks, donated)
