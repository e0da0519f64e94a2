"""Loops, branches, custom rules and checkpoints inside one another, under every transform, against JAX."""

import numpy as np
import pytest

from tests.peer import agree, vec

pytestmark = pytest.mark.usefixtures("jax")
X = vec(3)


def tripled(lib):
    """A square whose derivative is a half too large, so that a lost rule shows."""
    f = lib.custom_vjp(lambda a: a * a)
    f.defvjp(lambda a: (f(a), a), lambda r, ct: (ct * 3 * r,))
    return f


def rule_in_cond_in_scan(lib, x):
    f = tripled(lib)
    step = lambda c, t: (lib.cond(t > 0.5, f, lambda a: a * 2, c), f(t))
    return lib.scan(step, x, x)[0].sum()


def checkpoint_in_scan(lib, x):
    body = lib.checkpoint(lambda c, t: (lib.np.sin(c) * t, c))
    return lib.scan(body, x, x)[0].sum()


def scan_in_cond_in_scan(lib, x):
    inner = lambda c: lib.scan(lambda d, s: (lib.np.sin(d) * s, None), c, x)[0]
    step = lambda c, t: (lib.cond(t > 0.9, inner, lambda c: c * x, c), None)
    return lib.scan(step, x, x)[0].sum()


def switch_of_loops(lib, x):
    branches = [
        lambda x: lib.scan(lambda c, t: (c * t, None), x, x)[0],
        lambda x: lib.fori_loop(0, 3, lambda j, c: c * x, x),
    ]
    each = lib.vmap(lambda i, x: lib.switch(i, branches, x), in_axes=(0, None))
    return each(lib.np.asarray(np.array([0, 1, 5], "int32")), x).sum()


def update_in_a_loop(lib, x):
    return (lib.fori_loop(0, 3, lambda i, a: a.at[i].set(a[i] * x[2 - i]), x) ** 2).sum()


def gather_in_a_scan(lib, x):
    return lib.scan(lambda c, i: (c * x[i], x[i]), 1.0, lib.np.arange(3))[0]


def running_sum_in_a_scan(lib, x):
    return lib.scan(lambda c, t: (lib.np.cumsum(c * t), None), x, x[:1])[0].sum()


def matmul_in_a_scan(lib, x):
    w = lib.np.asarray(vec(3, 3, seed=1)) * x
    return lib.scan(lambda c, _: (lib.np.tanh(w @ c), c.sum()), x, None, length=4)[1].sum()


FUNCTIONS = [
    rule_in_cond_in_scan,
    checkpoint_in_scan,
    scan_in_cond_in_scan,
    switch_of_loops,
    update_in_a_loop,
    gather_in_a_scan,
    running_sum_in_a_scan,
    matmul_in_a_scan,
]


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_gradient(f):
    agree(lambda lib, x: lib.value_and_grad(lambda x: f(lib, x))(x), X)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_vmap_of_gradient(f):
    agree(
        lambda lib, x: lib.vmap(lib.grad(lambda x: f(lib, x)))(lib.np.stack([x, x * 1.3])), X, compiled=False
    )


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_gradient_of_gradient(f):
    twice = lambda lib, x: lib.grad(lambda x: (lib.grad(lambda x: f(lib, x))(x) ** 2).sum())(x)
    agree(twice, X, rtol=1e-4, compiled=f is scan_in_cond_in_scan)


@pytest.mark.parametrize("f", FUNCTIONS[1:], ids=lambda f: f.__name__)
def test_hessian(f):
    agree(lambda lib, x: lib.hessian(lambda x: f(lib, x))(x), X, rtol=1e-4, compiled=False)


def test_while_in_vmap_in_scan_forwards():
    def f(lib, x):
        def step(c, t):
            grow = lambda e: lib.while_loop(lambda u: u < 3, lambda u: u * 2 + t, e)
            return lib.vmap(grow)(c) * 0.2, None

        return lib.scan(step, x, x)[0]

    agree(lambda lib, x: lib.jvp(lambda x: f(lib, x), (x,), (x,)), X)


def test_transpose_of_a_linearised_scan():
    def f(lib, x):
        _, push = lib.linearize(lambda x: lib.scan(lambda c, t: (lib.np.sin(c) * t, None), x, x)[0], x)
        return lib.linear_transpose(push, x)(x)

    agree(f, X)


def test_batched_index_into_a_closure():
    def f(lib, x):
        one = lambda n: lib.scan(lambda c, i: (c + x[(i + n) % 3], x[n]), 0.0, lib.np.arange(4))
        return lib.vmap(one)(lib.np.arange(3))

    agree(f, X)
