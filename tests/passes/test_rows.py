"""Loops over a batch as loops over its parts: the same values, the same bits for any number of threads, and only where rows
are treated alike."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.codegen.program import ForStep, walk
from fgrad.ir import check
from fgrad.passes import optimize, rows
from fgrad.runtime import threads
from fgrad.special import sigmoid

from . import helpers as h

B, H = 16, 8


@pytest.fixture(autouse=True)
def cut_all(monkeypatch):
    monkeypatch.setattr(rows, "_PART_CYCLES", 0)
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


def arrays(*shapes):
    return [
        fnp.array(np.random.default_rng(n).normal(size=s).astype(np.float32)) for n, s in enumerate(shapes)
    ]


def lstm(w, u, b, h0, c0, xs):
    def cell(carry, x):
        h, c = carry
        gates = x @ u + h @ w + b
        i, f, g, o = (gates[:, n * H : (n + 1) * H] for n in range(4))
        c = sigmoid(f) * c + sigmoid(i) * fnp.tanh(g)
        h = sigmoid(o) * fnp.tanh(c)
        return (h, c), h

    (_, c), hs = fgrad.scan(cell, (h0, c0), xs)
    return (hs * fnp.cos(hs)).sum() + c.sum()


def counting(w, h0, xs):
    """A carry that all parts share, a square weight as large as the batch, a constant with rows, sums along rows."""
    bias = fnp.exp(h0)

    def cell(carry, x):
        n, h = carry
        z = fnp.concatenate([h @ w, x[:, :2]], axis=1)
        z = z - z.max(axis=1, keepdims=True)
        h = fnp.tanh(z[:, 2:] + bias * fnp.cos(n)) + fnp.arange(B) / B + (w @ w)[3]
        return (n + 1, h), (h.sum(axis=1), fnp.flip(fnp.cumsum(h, axis=1), 1), h.reshape(B, 2, B // 2))

    return fgrad.scan(cell, (fnp.zeros((), "int32"), h0), xs, reverse=True)


def attention(state, xs):
    """Products whose batch is the rows."""

    def cell(s, x):
        s = s * 0.9 + x[:, :, None] * x[:, None, :]
        return s, fnp.einsum("bij,bj->bi", s, x)

    return fgrad.scan(cell, state, xs)


CASES = {
    "lstm": (
        fgrad.value_and_grad(lstm, (0, 1, 2, 3, 5)),
        arrays((H, 4 * H), (3, 4 * H), (4 * H,), (B, H), (B, H), (5, B, 3)),
        2,
    ),
    "counting": (counting, arrays((B, B), (B, B), (4, B, B)), 1),
    "attention": (attention, arrays((B, 4, 4), (3, B, 4)), 1),
}


def parallel(program):
    return [s for s in walk(program.body) if isinstance(s, ForStep) and s.parallel]


@pytest.mark.parametrize("case", CASES)
def test_parts_are_the_whole(case):
    f, args, loops = CASES[case]
    graph = fgrad.make_graph(f)(*args)
    program = h.run(graph, [np.asarray(a) for a in args])
    assert len(parallel(program)) == loops
    found = []
    for n in (1, 2):
        threads.set_num_threads(n)
        compiled = fgrad.jit(f)
        found.append([np.asarray(x) for x in fgrad.tree.leaves([compiled(*args) for _ in range(3)])])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
    want = [np.asarray(x) for x in fgrad.tree.leaves(f(*args))]
    for got, expected in zip(found[0], want):
        h.agree(got, expected, rtol=1e-4)


def test_the_part_is_a_graph_of_its_own():
    f, args, _ = CASES["counting"]
    (e,) = [e for e in optimize(fgrad.make_graph(f)(*args)).eqns if e.prim.name == "scan"]
    body, k, c = e.params["body"], e.params["consts"], e.params["carry"]
    cut = rows.cut_rows(body, k, c, B, B // 2)
    check(cut.graph)
    assert sorted(cut.carried) == [False, True]
    assert any(on for n, on in cut.inputs if n < k) and not all(on for n, on in cut.inputs if n < k)


def test_temporaries_of_parts_are_apart():
    f, args, _ = CASES["lstm"]
    program = fgrad.jit(f).lower(*args).program
    own = [(v, loop) for loop in parallel(program) for v in loop.moving if v.root.name.endswith("_parts")]
    assert own
    for view, loop in own:
        assert view.byte_stride >= view.nbytes and view.byte_stride % 64 == 0
        assert view.root.nbytes == loop.length * view.byte_stride


MIXING = {
    "sum over rows": lambda h, x, w: fnp.tanh(h @ w + h.sum(axis=0)) + x,
    "rows as a right operand": lambda h, x, w: fnp.tanh(w @ h) + x,
    "other rows": lambda h, x, w: fnp.roll(h, 1, axis=0) * x,
    "transposed": lambda h, x, w: fnp.tanh(h.T) + x,
    "by a number of the row": lambda h, x, w: h * (fnp.arange(B) + x[0, 0].astype(int))[:, None],
    "sorted": lambda h, x, w: fnp.sort(h, axis=0) + x,
}


@pytest.mark.parametrize("case", MIXING)
def test_rows_that_mix_stay_together(case):
    step = MIXING[case]

    def f(w, h0, xs):
        return fgrad.scan(lambda h, x: (step(h, x, w), None), h0, xs)[0]

    args = arrays((B, B), (B, B), (4, B, B))
    assert not parallel(h.run(fgrad.make_graph(f)(*args), [np.asarray(a) for a in args]))


def test_small_loops_stay_whole(monkeypatch):
    monkeypatch.setattr(rows, "_PART_CYCLES", 100_000)
    f, args, _ = CASES["lstm"]
    assert not parallel(fgrad.jit(f).lower(*args).program)


@pytest.mark.parametrize("n", [1, 2])
def test_parts_inside_another_loop(n):
    """The inner loop reads rows of what the outer one goes along, in an order of its own."""

    def f(w, h0, xs):
        def outer(h, x):
            h, ys = fgrad.scan(
                lambda h, y: (fnp.tanh(h @ w + x * y), h), h, fnp.stack([x, x * 2.0, h]), reverse=True
            )
            return h - h.mean(axis=0), ys.sum(axis=0)

        return fgrad.scan(outer, h0, xs)

    args = arrays((H, H), (B, H), (4, B, H))
    threads.set_num_threads(n)
    run = fgrad.jit(f)
    program = run.lower(*args).program
    (loop,) = parallel(program)
    assert any(isinstance(s, ForStep) and loop in s.body.steps for s in program.body.steps)
    for _ in range(3):
        for got, want in zip(fgrad.tree.leaves(run(*args)), fgrad.tree.leaves(f(*args)), strict=True):
            h.agree(np.asarray(got), np.asarray(want), rtol=1e-4)
