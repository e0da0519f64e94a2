"""Which values are kept for a derivative: enough to compute the others, and no dear one twice."""

import numpy as np

import fgrad.numpy as fnp
from fgrad.ir import Graph, check
from fgrad.special import sigmoid
from fgrad.trace import evaluate, trace
from fgrad.transforms.residuals import fewer_residuals, free_vars


def _graph():
    def f(x, y):
        s = sigmoid(x)
        t = fnp.tanh(y)
        return [s * (1.0 - s), 1.0 - t * t, s * y + 2.0, (x + y).sum(), s]

    shape = fnp.ones((3, 4))
    return trace(f, [shape.type] * 2).graph


def test_cheap_ones_follow_from_the_rest():
    graph = _graph()
    _, y = graph.inputs
    kept, again = fewer_residuals(graph.eqns, graph.outputs, [y])
    names = {v: e.prim.name for e in graph.eqns for v in e.outputs}
    assert sorted(names[v] for v in kept) == ["reduce_sum", "sigmoid", "tanh"]
    assert not {e.prim.name for e in again} & {"sigmoid", "tanh", "reduce_sum"}
    assert set(free_vars(again, graph.outputs)) <= {*kept, y}
    args = [fnp.array(np.random.default_rng(i).normal(size=(3, 4)).astype(np.float32)) for i in range(2)]
    rest = Graph((*kept, y), again, graph.outputs)
    check(rest)
    values = evaluate(Graph(graph.inputs, graph.eqns, tuple(kept)), args)
    for got, want in zip(evaluate(rest, [*values, args[1]]), evaluate(graph, args), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_a_small_one_is_not_replaced_by_large_ones():
    def f(x, y):
        return [fnp.exp(x) < fnp.exp(y)]

    graph = trace(f, [fnp.ones(8).type] * 2).graph
    kept, again = fewer_residuals(graph.eqns, graph.outputs, [])
    assert kept == list(graph.outputs) and not again


def test_given_values_are_not_kept():
    graph = _graph()
    kept, again = fewer_residuals(graph.eqns, graph.outputs[:2], [v for e in graph.eqns for v in e.outputs])
    assert kept == [] and again == []
