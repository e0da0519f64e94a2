"""Work moved out of scans: the same values as before and as JAX, and the loops that are left do less."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.ir import check, subgraphs
from fgrad.passes import optimize
from fgrad.passes.cse import share_equal
from fgrad.passes.inline import inline_calls
from fgrad.passes.loops import improve_loops
from fgrad.passes.simplify import simplify
from tests.passes import helpers as h
from tests.peer import agree, fgrad_lib, vec

N = 4


def random_scan(lib, choose, w, b, h0, xs, length, reverse):
    """A scan whose body is put together by `choose(n)`, a source of numbers below n."""
    np_ = lib.np
    plan = [choose(10) for _ in range(7)]
    nested = choose(4) == 0

    def body(carry, x):
        state, total, bias, count, same, twin, *rest = carry
        fixed = np_.tanh(w) + b
        weights = (w, np_.transpose(w), fixed, fixed @ w)[plan[0] % 4]
        mixed = (x @ weights, x, np_.exp(-x) @ w + b, x * b)[plan[1] % 4]
        new = np_.tanh(state @ weights + mixed + (same if plan[2] % 2 else 0.0))
        if nested:
            new, inner = lib.scan(lambda c, r: (c * 0.5 + r, (c @ w).sum()), new, np_.stack([state, mixed]))
            new = new + inner.sum()
        added = (np_.transpose(state) @ new, -(np_.transpose(x) @ mixed), w * 2.0 @ (np_.transpose(x) @ new))
        total = total + added[plan[3] % 3]
        bias = bias + (new.sum(0), (x * state).sum(0) * 0.5, b)[plan[4] % 3]
        other = np_.tanh(twin @ weights + mixed + (same if plan[2] % 2 else 0.0))
        if nested:
            other = other + 0.0 * state
        outs = [new @ w, new, state * mixed, fixed.sum(), np_.exp(new @ b), np_.tanh(new @ w).sum(), count]
        ys = [outs[(plan[5] + n) % len(outs)] for n in range(1 + plan[6] % 4)]
        return (new, total, bias, count + 1, same, other, *rest), ys

    start = (h0, np_.zeros((N, N), "float32"), np_.zeros(N, "float32") + b, 0, h0 * 2.0, h0)
    carry, ys = lib.scan(body, start, xs, reverse=reverse)
    wanted = [choose(2) for _ in range(6)]
    kept = [c for c, on in zip(carry, wanted) if on] or [carry[0]]
    return [np_.sum(np_.tanh(v * 0.05)) for v in (*kept, *ys[: 1 + choose(len(ys))])]


def chooser(seed):
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 1 << 16, 64).tolist()

    def start():
        rest = iter(numbers)
        return lambda n: next(rest) % n

    return start


def arguments(length):
    return vec(N, N) - 0.5, vec(N, seed=1) - 0.8, vec(N, N, seed=2), vec(length, N, N, seed=3) - 0.6


def loss(lib, start, reverse, w, b, h0, xs):
    return sum(random_scan(lib, start(), w, b, h0, xs, None, reverse), lib.np.zeros((), "float32"))


def scans(graph):
    for e in graph.eqns:
        if e.prim.name == "scan":
            yield e
        for g in subgraphs(e):
            yield from scans(g)


@pytest.mark.parametrize("seed", range(40))
def test_random_scans_keep_their_values(seed):
    length, reverse = (0, 1, 2, 5)[seed % 4], seed % 3 == 0
    lib, args = fgrad_lib(), [fnp.array(a) for a in arguments(length)]

    def both(*a):
        return lib.value_and_grad(lambda *a: loss(lib, chooser(seed), reverse, *a), (0, 1, 2, 3))(*a)

    graph = share_equal(simplify(inline_calls(fgrad.make_graph(both)(*args))))
    better = improve_loops(graph)
    check(better)
    assert better.out_types == graph.out_types
    values = [np.asarray(a) for a in args]
    for got, want in zip(h.evaluate(better, values), h.evaluate(graph, values), strict=True):
        h.agree(got, want, rtol=1e-4)


@pytest.mark.usefixtures("jax")
@pytest.mark.parametrize("seed", range(0, 12, 2))
def test_random_scans_against_jax(seed):
    length, reverse = (1, 5, 3)[seed % 3], seed % 4 == 0

    def f(lib, *a):
        return lib.value_and_grad(lambda *a: loss(lib, chooser(seed), reverse, *a), (0, 1, 2, 3))(*a)

    agree(f, *arguments(length), rtol=1e-4, eager=False)


def optimized(f, *args):
    return optimize(fgrad.make_graph(f)(*args))


def test_weight_gradients_are_one_product_after_the_loop():
    def f(w, u, h, xs):
        return fgrad.scan(lambda h, x: (fnp.tanh(h @ w + x @ u), None), h, xs)[0].sum()

    args = [fnp.array(vec(*shape)) for shape in ((8, 8), (3, 8), (4, 8), (6, 4, 3))]
    graph = optimized(fgrad.value_and_grad(f, (0, 1)), *args)
    forward, backward = scans(graph)
    assert [e.prim.name for e in forward.params["body"].eqns].count("dot_general") == 1
    assert [e.prim.name for e in backward.params["body"].eqns].count("dot_general") == 1
    assert backward.params["carry"] == 1
    assert [e.prim.name for e in graph.eqns].count("dot_general") == 3  # xs @ u, and the two gradients


def test_forward_values_are_computed_once_and_few_are_kept():
    def cell(carry, gates):
        h, c = carry
        i, f, g, o = (gates[:, 4 * n : 4 * n + 4] + h for n in range(4))
        c = fgrad.special.sigmoid(f) * c + fgrad.special.sigmoid(i) * fnp.tanh(g)
        return (fgrad.special.sigmoid(o) * fnp.tanh(c), c), None

    def f(xs):
        zeros = fnp.zeros((2, 4))
        return fgrad.scan(cell, (zeros, zeros), xs)[0][0].sum()

    graph = optimized(fgrad.value_and_grad(f), fnp.array(vec(5, 2, 16)))
    forward, _ = scans(graph)
    assert len(forward.outputs) - forward.params["carry"] <= 6  # the gates, tanh(c), c


def test_unused_results_go():
    def f(x, xs):
        (a, *_), (y, _) = fgrad.scan(
            lambda c, x: ((c[0] + x, c[1] * x, fnp.sin(c[2] @ c[2])), (c[0], c[2] @ c[2])), (x, x, x), xs
        )
        return a.sum() + y.sum()

    graph = optimized(f, fnp.array(vec(3, 3)), fnp.array(vec(4, 3, 3)))
    (left,) = scans(graph)
    assert not any(e.prim.name in ("sin", "dot_general", "mul") for e in left.params["body"].eqns)


def test_results_that_are_the_same_in_each_row():
    def f(lib, x):
        return lib.scan(lambda c, _: (c, (x * 2.0, c, 1.0)), x, None, length=3)

    agree(f, vec(2, 2))
    graph = optimized(lambda x: f(fgrad_lib(), x), fnp.array(vec(2, 2)))
    assert not list(scans(graph))


def test_constants_of_while_loops():
    def f(lib, w, x):
        def body(c):
            n, x = c
            return n + 1, lib.np.tanh(x @ (lib.np.transpose(w) * 2.0 + 1.0)) + w[0][:4]

        return lib.while_loop(lambda c: (c[0] < 3) & (c[1].sum() < lib.np.exp(w).sum()), body, (0, x))[1]

    agree(f, vec(4, 4), vec(3, 4))
    graph = optimized(lambda w, x: f(fgrad_lib(), w, x), fnp.array(vec(4, 4)), fnp.array(vec(3, 4)))
    (loop,) = [e for e in graph.eqns if e.prim.name == "while_loop"]
    inside = {e.prim.name for key in ("body", "cond") for e in loop.params[key].eqns}
    assert not inside & {"transpose", "exp", "mul", "slice"}


def test_what_may_fail_stays_in_a_loop_that_may_not_run():
    def f(table, x):
        return fgrad.while_loop(lambda c: c[0] < 0, lambda c: (c[0] + 1, c[1] + table[7]), (0, x))[1]

    np.testing.assert_array_equal(np.asarray(fgrad.jit(f)(fnp.ones((9, 2)), fnp.zeros(2))), np.zeros(2))


def test_long_bodies():
    def f(ws, h, xs):
        def body(h, x):
            for n in range(260):
                h = fnp.tanh(h @ ws[n] + x) * (1 - h)
            return h, None

        return fgrad.scan(body, h, xs)[0].sum()

    args = [fnp.array(0.1 * vec(*shape)) for shape in ((260, 2, 2), (3, 2), (2, 3, 2))]
    graph = fgrad.make_graph(fgrad.grad(f))(*args)
    better = improve_loops(share_equal(simplify(inline_calls(graph))))
    values = [np.asarray(a) for a in args]
    h.agree(h.evaluate(better, values)[0], h.evaluate(graph, values)[0])


def test_large_stacks_are_not_made(monkeypatch):
    from fgrad.passes import loops_after

    monkeypatch.setattr(loops_after, "ROOM", 0)

    def f(w, h, xs):
        return fgrad.scan(lambda c, x: ((c[0] @ w, c[1] + fnp.tanh(c[0] @ x)), None), (h, h), xs)[0]

    args = [fnp.array(vec(4, 4)), fnp.array(vec(4, 4)), fnp.array(vec(3, 4, 4))]
    graph = optimized(f, *args)
    (loop,) = scans(graph)
    assert loop.params["carry"] == 2 and len(loop.outputs) == 2
    np.testing.assert_allclose(fgrad.jit(f)(*args)[1], f(*args)[1], rtol=1e-5)
