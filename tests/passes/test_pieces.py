"""Sums of padded pieces become concatenations, exactly where the pieces lie side by side."""

import numpy as np
import pytest

from fgrad.ir import dce
from fgrad.passes.pieces import join_pieces

from . import helpers as h


def padded(b, x, low, high, axis=1, value=0.0):
    widths = [[0, 0], [0, 0]]
    widths[0][axis], widths[1][axis] = low, high
    return b("pad", x, value, low=tuple(widths[0]), high=tuple(widths[1]), interior=(0, 0))


def names(graph):
    return [e.prim.name for e in graph.eqns]


def test_pieces_in_any_order():
    b = h.Build()
    x, y, z = b.input((3, 2)), b.input((3, 4)), b.input((3, 1))
    total = b("add", b("add", padded(b, y, 3, 0), padded(b, x, 0, 5)), padded(b, z, 2, 4))
    graph = b.graph(total, b("neg", total))
    better = dce(join_pieces(graph))
    assert names(better) == ["concatenate", "neg"]
    inputs = h.inputs_for(graph)
    for got, want in zip(h.evaluate(better, inputs), h.evaluate(graph, inputs), strict=True):
        np.testing.assert_array_equal(got, want)
    h.run(graph)


@pytest.mark.parametrize("case", ["gap", "overlap", "value", "other axis", "not padded"])
def test_other_sums_stay(case):
    b = h.Build()
    x, y = b.input((4, 2)), b.input((4, 2))
    first = padded(b, x, 0, 2)
    second = {
        "gap": lambda: padded(b, b.input((4, 1)), 3, 0),
        "overlap": lambda: padded(b, b.input((4, 3)), 1, 0),
        "value": lambda: padded(b, y, 2, 0, value=1.0),
        "other axis": lambda: padded(b, b.input((2, 4)), 2, 0, axis=0),
        "not padded": lambda: b.input((4, 4)),
    }[case]()
    graph = b.graph(b("add", first, second))
    assert "concatenate" not in names(join_pieces(graph))
