"""Carries written in place: only where nobody reads the old value any more, whatever the contractions and kernels become."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.codegen.program import CopyStep, ForStep, WhileStep, walk


def arrays(*shapes):
    return [
        fnp.array(0.2 * np.random.default_rng(n).normal(size=s).astype(np.float32))
        for n, s in enumerate(shapes)
    ]


W, V, A, B, X = arrays((96, 96), (96, 96), (24, 96), (24, 96), (5, 24, 96))

# body, and how many copies an iteration needs
BODIES = {
    "element-wise": (lambda c, x: (fnp.tanh(c[0]) + x, c[1] * c[1]), 0),
    "a product of itself": (lambda c, x: (fnp.maximum(c[0] @ W + x, -0.1), c[1] + x), 1),
    "a product of itself, and itself": (lambda c, x: (c[0] + fnp.maximum(c[0] @ W + x, 0.0), c[1] + x), 1),
    "product alone": (lambda c, x: (c[0] @ W, c[1] @ V), 2),
    "exchanged": (lambda c, x: (c[1] * 2.0, c[0] + x), 1),
    "around": (lambda c, x: (c[1], c[0]), 1),
    "of the other's product": (
        lambda c, x: ((d := fnp.maximum(c[1] @ W, 0.0) + c[0]), fnp.maximum(d @ V, c[1])),
        None,
    ),
    "read again after": (lambda c, x: (c[0] + x, c[1] + (c[0] @ W) * (c[0] + x)), None),
    "other elements": (lambda c, x: (c[0][::-1] + x, fnp.roll(c[1], 1, axis=1)), 2),
    "cells": (
        lambda c, x: (
            (k := c[1] * fnp.tanh((c[0] @ W)[:, :48].sum()) + fnp.exp(-fnp.abs(c[0] @ V))),
            c[0] * fnp.tanh(k),
        )[::-1],
        None,
    ),
}


@pytest.mark.parametrize("form", ["scan", "while_loop"])
@pytest.mark.parametrize("body", BODIES)
def test_values_and_copies(body, form):
    step, copies = BODIES[body]

    def f(a, b, xs):
        if form == "scan":
            return fgrad.scan(lambda c, x: (step(c, x), c[0]), (a, b), xs)

        def go(c):
            return c[0] + 1, *step(c[1:], xs[c[0]])

        return fgrad.while_loop(lambda c: c[0] < 4, go, (0, a, b))[1:]

    expected = [np.asarray(x) for x in fgrad.tree.leaves(f(A, B, X))]
    for _ in range(2):
        for got, want in zip(fgrad.tree.leaves(fgrad.jit(f)(A, B, X)), expected, strict=True):
            np.testing.assert_allclose(np.asarray(got), want, rtol=2e-4, atol=2e-4)
    loops = [s for s in walk(fgrad.jit(f).lower(A, B, X).program.body) if isinstance(s, (ForStep, WhileStep))]
    into = [s for s in loops[-1].body.steps if isinstance(s, CopyStep) and s.dst.shape]
    stacked = 1 if form == "scan" else 0
    if copies is not None and body != "around":
        assert len(into) - stacked <= copies
