"""The compiler's passes, in order: graph to graph, then graph to kernels.

    inline calls -> simplify -> share equal equations -> improve loops -> the same two again -> inline checkpoints
    -> join pieces -> drop the unused -> lower and fuse

Each graph pass is a function `Graph -> Graph`; it also treats the graphs inside control flow.
"""

from __future__ import annotations

from collections.abc import Mapping

from fgrad.codegen.program import Program
from fgrad.ir import Graph, dce
from fgrad.passes.cse import share_equal
from fgrad.passes.fuse import lower
from fgrad.passes.inline import inline_calls, inline_checkpoints
from fgrad.passes.loops import improve_loops
from fgrad.passes.pieces import join_pieces
from fgrad.passes.simplify import simplify

GRAPH_PASSES = (
    inline_calls,
    simplify,
    share_equal,  # before checkpoints are inlined: what they compute again must not be merged with the first time
    improve_loops,
    simplify,
    share_equal,
    inline_checkpoints,
    join_pieces,
    dce,
)


def optimize(graph: Graph) -> Graph:
    """The graph as it is lowered."""
    for apply in GRAPH_PASSES:
        graph = apply(graph)
    return graph


def compile_graph(graph: Graph, donated: Mapping[int, int] | None = None, target: str = "cpu") -> Program:
    """The fused program of a graph. Its inputs and outputs are those of the graph, in order, unused inputs included.

    donated  `{i: j}`: the bytes of input i may be used for output j. A wish: kept in `Program.donated`.
    target   "cpu" or "cuda": what the loop nests are shaped for; both mean the same.
    """
    return lower(optimize(graph), dict(donated or {}), target)


__all__ = ["GRAPH_PASSES", "compile_graph", "optimize"]
