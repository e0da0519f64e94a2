"""Partial evaluation: the two halves together are the whole."""

import itertools

import numpy as np
import pytest

import fgrad.numpy as fnp
from fgrad.ir import check
from fgrad.trace import evaluate, trace
from fgrad.transforms.split import split


def _graph():
    def f(a, b, c):
        p = fnp.sin(a)
        q = fnp.exp(b) * p
        return [q + c, p * 2.0, b - c, c]

    x = fnp.ones(3)
    return trace(f, [x.type] * 3).graph


@pytest.mark.parametrize("unknown", list(itertools.product([False, True], repeat=3)))
def test_halves_make_the_whole(unknown):
    graph = _graph()
    args = [fnp.array(np.random.default_rng(i).normal(size=3).astype(np.float32)) for i in range(3)]
    parts = split(graph, unknown)
    check(parts.known)
    check(parts.unknown)
    known_in = [a for a, u in zip(args, unknown, strict=True) if not u]
    unknown_in = [a for a, u in zip(args, unknown, strict=True) if u]
    found = evaluate(parts.known, known_in)
    n_known = len(found) - parts.n_residuals
    rest = iter(evaluate(parts.unknown, [*found[n_known:], *unknown_in]))
    known = iter(found[:n_known])
    outs = [next(rest) if u else next(known) for u in parts.out_unknown]
    for got, want in zip(outs, evaluate(graph, args), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_what_is_known_is_not_repeated():
    parts = split(_graph(), [False, True, True])
    assert [e.prim.name for e in parts.known.eqns].count("sin") == 1
    assert "sin" not in [e.prim.name for e in parts.unknown.eqns]
    assert parts.out_unknown == [True, False, True, True]
