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


def lower(graph: Graph, donated: dict[int, int]) -> Program:
    """The program of an optimized graph."""
    shared = Shared(RULES, schedule)
    inputs = tuple(Buf(f"in{n}", v.type.shape, v.type.dtype, "input") for n, v in enumerate(graph.inputs))
    outputs = tuple(Buf(f"out{n}", a.type.shape, a.type.dtype, "output") for n, a in enumerate(graph.outputs))
    reader = Lowering(Graph((), [], ()), shared, (), ())
    body = lower_block(graph, shared, [reader.of_buf(b) for b in inputs], outputs)
    return Program(graph.name, inputs, outputs, body, shared.status, shared.checks, donated)
