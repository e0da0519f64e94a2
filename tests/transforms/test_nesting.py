"""Random nestings of transforms and control flow, written once and run by JAX, by fgrad eagerly and by fgrad compiled.

A program is a small body (3,) -> (3,) and layers around it: each layer makes a new function (3,) -> (3,) that calls the old one
through a transform, most of them closing over values of the outside. All in float64, so that a difference is a mistake.
`replay(body, layers)` repeats one by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.peer import assert_same, fgrad_lib, jax_lib

Vec = Callable[[Any], Any]

X = np.array([0.3, -0.8, 1.2])
A = np.array([[0.3, -0.5, 0.2], [0.7, 0.1, -0.4], [-0.2, 0.6, 0.5]])
C = np.array([[0.5, 1.5, -0.7], [1.1, -0.3, 0.9]])
INDEX = np.array([2, 0, 0])

# ------------------------------------------------------------------------------------------------ bodies


def _scatter(lib: Any, x: Any) -> Any:
    return lib.np.sin(x).at[INDEX].add(x * 0.5)


BODIES: dict[str, Callable[[Any, Any], Any]] = {
    "elementwise": lambda lib, x: lib.np.sin(x) * lib.np.exp(x * 0.3),
    "matmul": lambda lib, x: A @ lib.np.tanh(x) + x,
    "gather": lambda lib, x: lib.np.cos(x)[INDEX] * x,
    "scatter": _scatter,
    "where": lambda lib, x: lib.np.where(x > 0.25, x**2, lib.np.sin(x * 1.5)),
    "reduce": lambda lib, x: x * lib.np.sum(x) + lib.np.max(x) - lib.np.prod(x),
    "outer": lambda lib, x: lib.np.tanh(lib.np.outer(x, lib.np.cos(x))).sum(0),
    "softmax": lambda lib, x: lib.np.exp(x - lib.np.max(x)) / lib.np.sum(lib.np.exp(x - lib.np.max(x))),
    "cumsum": lambda lib, x: lib.np.cumsum(lib.np.sin(x))[::-1] * x,
    "concatenate": lambda lib, x: lib.np.concatenate([x[1:] * x[:-1], lib.np.abs(x[:1])]),
    "constant": lambda lib, x: lib.np.ones(X.shape) * C[0],
    "mixed": lambda lib, x: x.at[1].set(x[0] * x[2]) + x[::-1] ** 3,
}

# ------------------------------------------------------------------------------------------------ layers

LAYERS: dict[str, Callable[[Any, Vec], Vec]] = {}
FORWARD_ONLY = {"while", "while_batched", "fori_traced"}
REVERSE = {"grad", "vjp", "vjp_out", "jacrev", "hessian", "vmap_grad", "value_and_grad", "carried_gradient"}


def layer(f: Callable[[Any, Vec], Vec]) -> Callable[[Any, Vec], Vec]:
    LAYERS[f.__name__.strip("_")] = f
    return f


@layer
def grad(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.grad(lambda y: lib.np.sum(f(y * 0.7 + x * 0.3) * lib.np.sin(x)))(x)


@layer
def value_and_grad(lib: Any, f: Vec) -> Vec:
    def g(x: Any) -> Any:
        v, d = lib.value_and_grad(lambda p: lib.np.sum(f(p["a"]) * p["b"]))({"a": x, "b": lib.np.cos(x)})
        return d["a"] * v + d["b"]

    return g


@layer
def jvp(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.jvp(f, (x,), (lib.np.cos(x),))[1]


@layer
def jvp_const(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.jvp(lambda y: f(lib.np.sin(x) + y * x), (C[0] + 0 * x,), (x,))[1]


@layer
def vjp(lib: Any, f: Vec) -> Vec:
    def g(x: Any) -> Any:
        y, pull = lib.vjp(f, x)
        return pull(lib.np.sin(y) + x)[0]

    return g


@layer
def vjp_out(lib: Any, f: Vec) -> Vec:
    """The pullback differentiated with respect to its cotangent."""

    def g(x: Any) -> Any:
        _, pull = lib.vjp(f, x)
        return lib.jvp(lambda c: pull(c * x)[0], (x,), (lib.np.cos(x),))[1]

    return g


@layer
def vmap(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.np.sum(lib.vmap(f)(lib.np.stack([x, x * 0.5, lib.np.cos(x)])), axis=0)


@layer
def vmap_axes(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.np.sum(
        lib.vmap(f, in_axes=1, out_axes=1)(lib.np.stack([x, x * 0.5], axis=1)), axis=1
    )


@layer
def vmap_closure(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.np.sum(lib.vmap(lambda c: f(x * c) * c + x, out_axes=-1)(C), axis=-1)


@layer
def vmap_unmapped(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.np.sum(lib.vmap(lambda c, y: (c[0] * f(y), f(y)), (0, None))(C, x)[0], axis=0)


@layer
def vmap_grad(lib: Any, f: Vec) -> Vec:
    one = lib.grad(lambda w, c: lib.np.sum(f(w * c) ** 2))
    return lambda x: lib.np.sum(lib.vmap(one, in_axes=(None, 0))(x, C), axis=0)


@layer
def jit(lib: Any, f: Vec) -> Vec:
    return lib.jit(f)


@layer
def jit_closure(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.jit(lambda y: f(y) * x)(lib.np.sin(x))


@layer
def jacfwd(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.jacfwd(f)(x) @ lib.np.sin(x)


@layer
def jacrev(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.np.sin(x) @ lib.jacrev(lambda y: f(y) + y * x)(x)


@layer
def hessian(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.hessian(lambda y: lib.np.sum(lib.np.sin(f(y))))(x) @ x


@layer
def linearize(lib: Any, f: Vec) -> Vec:
    def g(x: Any) -> Any:
        y, push = lib.linearize(lambda z: f(z * x), x)
        return push(y) + push(x * 2)

    return g


@layer
def checkpoint(lib: Any, f: Vec) -> Vec:
    return lib.checkpoint(f)


@layer
def checkpoint_closure(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.checkpoint(lambda y: f(lib.np.sin(y)) * x)(x * 0.5)


@layer
def custom_jvp(lib: Any, f: Vec) -> Vec:
    """A derivative of its own choosing, which no difference quotient would give."""
    h = lib.custom_jvp(lambda x: f(x))
    h.defjvp(lambda primals, tangents: (h(primals[0]), tangents[0] * lib.np.cos(primals[0] + f(primals[0]))))
    return lambda x: h(x * 0.9) * x


@layer
def stop(lib: Any, f: Vec) -> Vec:
    return lambda x: f(x) * lib.stop_gradient(lib.np.cos(x))


@layer
def cond(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.cond(lib.np.sum(x) > 0.4, f, lambda y: f(y * 0.5) * 2, x)


@layer
def cond_closure(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.cond(x[0] < 0.4, lambda y: f(y) + x, lambda y: lib.np.sin(x), lib.np.cos(x))


@layer
def switch(lib: Any, f: Vec) -> Vec:
    branches = [f, lambda y: f(y) * y, lambda y: y * 0 + 1, lambda y: -f(-y)]
    return lambda x: lib.switch((x[2] * 2).astype("int32"), branches, x * 0.9)


@layer
def scan(lib: Any, f: Vec) -> Vec:
    def g(x: Any) -> Any:
        def step(c: Any, t: Any) -> Any:
            return c * 0.5 + f(c) * t * 0.3, lib.np.sum(c) * t

        c, ys = lib.scan(step, x, C[:, 0] + x[0])
        return c + lib.np.sum(ys**2)

    return g


@layer
def scan_reverse(lib: Any, f: Vec) -> Vec:
    def g(x: Any) -> Any:
        def step(c: Any, t: Any) -> Any:
            new = {"a": lib.np.sin(c["b"]) + f(t["u"]) * x, "b": c["a"] * t["w"], "n": c["n"] + 1}
            return new, (c["a"] * c["n"], f(x) * 0.1)

        init = {"a": x, "b": lib.np.zeros(X.shape, "float64"), "n": lib.np.zeros((), "float64")}
        c, (ys, zs) = lib.scan(step, init, {"u": lib.np.stack([x, x * x]), "w": C}, reverse=True)
        return c["a"] * c["b"] + lib.np.sum(ys + zs * C, axis=0)

    return g


@layer
def scan_const(lib: Any, f: Vec) -> Vec:
    """The carry is not what is differentiated; constants from outside are. An integer travels along."""

    def g(x: Any) -> Any:
        def step(c: Any, _: Any) -> Any:
            i, total = c
            return (i + 1, total + f(x * (i + 1))), lib.np.where(i > 0, total, x)

        (_, total), ys = lib.scan(step, (0, lib.np.zeros(X.shape, "float64")), None, length=3)
        return lib.np.sin(total) + ys[1] * ys[2]

    return g


@layer
def scan_ys_only(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.np.sum(lib.scan(lambda c, t: (c, f(t) * c), 2.0 + 0 * x[0], C * x)[1], axis=0)


@layer
def scan_alias(lib: Any, f: Vec) -> Vec:
    """A body that hands things through: swapped and repeated carries, inputs as outputs, a part that nothing reads."""

    def g(x: Any) -> Any:
        def step(c: Any, t: Any) -> Any:
            a, b, same, _ = c
            u, w = t
            return (b, f(a), same, u), (a, x, u, b, lib.np.ones(X.shape, "float64"), w, w)

        xs = (lib.np.stack([x, -x, x * x]), lib.np.asarray([0, 2, 1]))
        c, ys = lib.scan(step, (x, lib.np.cos(x), x * 2, x), xs)
        return c[0] * c[1] + c[2] * c[3] + 0.3 * sum(lib.np.sum(y.reshape(3, -1), axis=0) for y in ys)

    return g


@layer
def scan_nested(lib: Any, f: Vec) -> Vec:
    """A scan of a scan, with a choice that depends on the row; the inner one runs backwards and has no xs."""

    def g(x: Any) -> Any:
        def inner(c: Any, _: Any) -> Any:
            return lib.cond(c[0] < 0.3, lambda v: lib.np.sin(v) + x, lambda v: f(v) * 0.5, c), c[0]

        def outer(c: Any, t: Any) -> Any:
            c, ys = lib.scan(inner, c * t, None, length=2, reverse=True)
            return c, ys

        c, ys = lib.scan(outer, x, C)
        return c + ys[0, 1] * ys[1, 0] * x

    return g


@layer
def scan_empty(lib: Any, f: Vec) -> Vec:
    def g(x: Any) -> Any:
        c, ys = lib.scan(lambda c, t: (f(c) + t, c), x * 2, lib.np.zeros((0, *X.shape), "float64"))
        return c + lib.np.sum(ys, axis=0)

    return g


@layer
def cond_alias(lib: Any, f: Vec) -> Vec:
    """Branches that return operands, outside values and constants as they are."""

    def g(x: Any) -> Any:
        def a(u: Any, v: Any) -> Any:
            return u, u, x, lib.np.zeros(X.shape, "float64"), lib.np.int32(1)

        def b(u: Any, v: Any) -> Any:
            return v, f(u), lib.np.sin(v), lib.np.ones(X.shape, "float64"), lib.np.int32(2)

        outs = lib.cond(x[1] > -0.5, a, b, x, lib.np.cos(x))
        other = lib.vmap(lambda c: lib.cond(c[0] > 0, a, b, c * x, x))(C)
        return outs[0] * outs[1] + outs[2] * outs[3] * outs[4] + sum(o[0] * o[1] for o in other)

    return g


@layer
def switch_batched(lib: Any, f: Vec) -> Vec:
    def g(x: Any) -> Any:
        branches = [lambda y: f(y) + x, lambda y: lib.np.sin(y) * y, lambda y: x]
        chosen = lib.vmap(lambda i, y: lib.switch(i, branches, y), in_axes=(0, None))
        return lib.np.sum(chosen(lib.np.asarray([1, 0, 2]), x * 0.8), axis=0)

    return g


@layer
def carried_gradient(lib: Any, f: Vec) -> Vec:
    """Gradient descent: the derivative is taken inside the loop."""

    def g(x: Any) -> Any:
        def step(w: Any, c: Any) -> Any:
            loss, d = lib.value_and_grad(lambda w: lib.np.sum((f(w) - c * x) ** 2))(w)
            return w - 0.05 * d, loss

        w, losses = lib.scan(step, x, C)
        return w * losses[0] + losses[1]

    return g


@layer
def map_(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.np.sum(lib.map(lambda c: f(c * x) + c, C), axis=0)


@layer
def fori(lib: Any, f: Vec) -> Vec:
    return lambda x: lib.fori_loop(0, 3, lambda i, c: lib.np.sin(f(c)) * 0.8 + x * i, x)


@layer
def while_(lib: Any, f: Vec) -> Vec:
    def g(x: Any) -> Any:
        def body(c: Any) -> Any:
            return {"i": c["i"] + 1, "v": lib.np.sin(f(c["v"])) + x}

        return lib.while_loop(lambda c: c["i"] < 2, body, {"i": 0, "v": x})["v"]

    return g


@layer
def while_batched(lib: Any, f: Vec) -> Vec:
    """The number of iterations depends on the example: sums grow by one at most 8 times."""

    def g(x: Any) -> Any:
        def body(c: Any) -> Any:
            n, v = c
            return n + 1.0, lib.np.sin(f(v)) * x[1] + v

        return lib.while_loop(lambda c: c[0] < 3.0 + x[0] * 0, body, (lib.np.floor(x[2] * 2), lib.np.sin(x)))[
            1
        ]

    return g


@layer
def fori_traced(lib: Any, f: Vec) -> Vec:
    def g(x: Any) -> Any:
        n = lib.np.clip(x[2] * 2, 0, 3).astype("int32")
        return lib.fori_loop(0, n, lambda i, c: lib.np.sin(f(c)) + x * i, x)

    return g


def program(lib: Any, body: str, layers: Sequence[str]) -> Vec:
    def f(x: Any) -> Any:
        return BODIES[body](lib, x)

    for name in layers:
        # Bounded values between the layers: five exponentials in each other prove nothing.
        inner = LAYERS[name](lib, f)

        def f(x: Any, inner: Vec = inner) -> Any:
            return lib.np.tanh(inner(x))

    return f


def allowed(layers: Sequence[str]) -> bool:
    """No reverse mode around loops of unknown length."""
    first = next((i for i, name in enumerate(layers) if name in FORWARD_ONLY), len(layers))
    return not any(name in REVERSE for name in layers[first + 1 :])


def expected(body: str, layers: Sequence[str]) -> np.ndarray:
    import jax

    with jax.enable_x64(True):
        lib = jax_lib()
        return np.asarray(jax.jit(program(lib, body, layers))(lib.np.asarray(X)))


def replay(body: str, layers: Sequence[str]) -> None:
    want = expected(body, layers)
    ours = fgrad_lib()
    f = program(ours, body, layers)
    x = ours.np.asarray(X)
    what = f"{body}: {' < '.join(layers)}"
    assert_same(f(x), want, rtol=1e-9, atol=1e-11, what=f"eager {what}")
    assert_same(ours.jit(f)(x), want, rtol=1e-9, atol=1e-11, what=f"compiled {what}")


@settings(max_examples=15)
@given(
    st.sampled_from(sorted(BODIES)),
    st.lists(st.sampled_from(sorted(LAYERS)), min_size=2, max_size=3).filter(allowed),
)
def test_random_nestings_agree_with_jax(body: str, layers: list[str]) -> None:
    pytest.importorskip("jax")
    replay(body, layers)
