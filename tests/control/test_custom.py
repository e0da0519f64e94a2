"""`custom_jvp`, `custom_vjp` and `checkpoint` against JAX."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.ir import subgraphs
from tests.peer import agree, assert_same, vec

pytestmark = pytest.mark.usefixtures("jax")


def softened(lib):
    """A custom_jvp with pytrees in and out, whose rule is visibly not the true derivative (a factor 10)."""

    @lib.custom_jvp
    def f(x, p):
        return {"y": lib.np.sin(x) * p["a"], "z": p["b"] ** 2}

    @f.defjvp
    def rule(primals, tangents):
        (x, p), (dx, dp) = primals, tangents
        out = f(x, p)
        return out, {
            "y": 10 * lib.np.cos(x) * p["a"] * dx + lib.np.sin(x) * dp["a"],
            "z": 2 * p["b"] * dp["b"],
        }

    return f


def loss_jvp(lib, x, p):
    out = softened(lib)(x, p)
    return (out["y"] ** 2).sum() + out["z"].sum()


P = {"a": vec(3, seed=1), "b": vec(2, seed=2)}


@pytest.mark.parametrize(
    "derive",
    [
        lambda lib, f: f,
        lambda lib, f: lib.grad(f, argnums=(0, 1)),
        lambda lib, f: lambda x, p: lib.jvp(f, (x, p), (x, p)),
        lambda lib, f: lib.grad(lambda x, p: (lib.grad(f)(x, p) ** 2).sum()),
        lambda lib, f: lib.hessian(f),
        lambda lib, f: lib.jit(lib.grad(lib.jit(f))),
    ],
)
def test_custom_jvp(derive):
    agree(lambda lib, x, p: derive(lib, lambda x, p: loss_jvp(lib, x, p))(x, p), vec(3), P, rtol=1e-4)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_custom_jvp_under_vmap(axes):
    x = vec(4, 3) if axes[0] == 0 else vec(3)
    p = {"a": vec(4, 3, seed=1), "b": vec(4, 2, seed=2)} if axes[1] == 0 else P
    agree(lambda lib, x, p: lib.vmap(lambda x, p: softened(lib)(x, p), in_axes=axes)(x, p), x, p)
    for order in (
        lambda lib, f: lib.vmap(lib.grad(f, argnums=(0, 1)), in_axes=axes),
        lambda lib, f: lib.grad(lambda x, p: lib.vmap(f, in_axes=axes)(x, p).sum(), argnums=(0, 1)),
        lambda lib, f: lambda x, p: lib.vmap(lambda x, p: lib.jvp(f, (x, p), (x, p)), in_axes=axes)(x, p),
    ):
        agree(lambda lib, x, p: order(lib, lambda x, p: loss_jvp(lib, x, p))(x, p), x, p)


def clipped(lib):
    """A custom_vjp with pytrees and a None cotangent."""

    @lib.custom_vjp
    def f(x, p, k):
        return x * p["a"] + k, lib.np.sum(p["b"])

    def fwd(x, p, k):
        return f(x, p, k), {"x": x, "p": p}

    def bwd(res, ct):
        y, s = ct
        return (
            lib.np.clip(y * res["p"]["a"], -0.5, 0.5),
            {"a": 3 * y * res["x"], "b": s * lib.np.ones_like(res["p"]["b"])},
            None,
        )

    f.defvjp(fwd, bwd)
    return f


def loss_vjp(lib, x, p):
    y, s = clipped(lib)(x, p, x * 2)
    return (y**2).sum() + s**2


@pytest.mark.parametrize(
    "derive",
    [
        lambda lib, f: f,
        lambda lib, f: lib.grad(f, argnums=(0, 1)),
        lambda lib, f: lib.grad(lambda x, p: (lib.grad(f)(x, p) ** 2).sum(), argnums=(0, 1)),
        lambda lib, f: lib.jacrev(lib.grad(f)),
        lambda lib, f: lib.jit(lib.grad(lib.jit(f))),
    ],
)
def test_custom_vjp(derive):
    agree(lambda lib, x, p: derive(lib, lambda x, p: loss_vjp(lib, x, p))(x, p), vec(3), P)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_custom_vjp_under_vmap(axes):
    x = vec(4, 3) if axes[0] == 0 else vec(3)
    p = {"a": vec(4, 3, seed=1), "b": vec(4, 2, seed=2)} if axes[1] == 0 else P
    for order in (
        lambda lib, f: lib.vmap(f, in_axes=axes),
        lambda lib, f: lib.vmap(lib.grad(f, argnums=(0, 1)), in_axes=axes),
        lambda lib, f: lib.grad(lambda x, p: lib.vmap(f, in_axes=axes)(x, p).sum(), argnums=(0, 1)),
    ):
        agree(lambda lib, x, p: order(lib, lambda x, p: loss_vjp(lib, x, p))(x, p), x, p)


def test_custom_vjp_twice_under_vmap():
    """vmap of vmap of grad: residuals and cotangents carry two batch axes."""

    def f(lib, x, p):
        return lib.vmap(lib.vmap(lib.grad(lambda x: loss_vjp(lib, x, p))))(x)

    agree(f, vec(2, 4, 3), P)


def test_custom_rules_inside_a_scan():
    def f(lib, x):
        return lib.scan(lambda c, t: (loss_vjp(lib, c, P_of(lib)) * 0.1 * c + t, None), x, x)[0].sum()

    agree(lambda lib, x: lib.grad(lambda x: f(lib, x))(x), vec(3))

    def g(lib, x):
        def step(c, t):
            return softened(lib)(c, P_of(lib))["y"] + t, None

        return lib.scan(step, x, x)[0].sum()

    agree(lambda lib, x: lib.grad(lambda x: g(lib, x))(x), vec(3))


def P_of(lib):
    return {k: lib.np.asarray(v) for k, v in P.items()}


def test_integer_argument():
    def make(lib):
        @lib.custom_vjp
        def f(x, n):
            return x * n

        f.defvjp(lambda x, n: (x * n, n), lambda n, ct: (ct * n * 2, None))
        return f

    agree(lambda lib, x: lib.grad(lambda x: make(lib)(x, 3).sum())(x), vec(3))


def test_keywords_go_by_the_signature():
    @fgrad.custom_vjp
    def f(x, scale=2.0):
        return x * scale

    f.defvjp(lambda x, scale: (x * scale, scale), lambda scale, ct: (10 * ct * scale, None))
    assert float(fgrad.grad(lambda x: f(scale=3.0, x=x))(1.0)) == 30.0

    @fgrad.custom_jvp
    def g(x, *, k):
        return x * k

    g.defjvp(lambda primals, tangents: (primals, tangents))
    with pytest.raises(fgrad.FgradTypeError, match="keyword-only arguments"):
        g(1.0, k=2.0)


def test_forward_mode_through_custom_vjp_is_an_error():
    with pytest.raises(fgrad.FgradTypeError, match=r"use custom_jvp, or reverse mode"):
        fgrad.jvp(lambda x: loss_vjp(_lib(), x, P), (vec(3),), (vec(3),))


def _lib():
    from tests.peer import fgrad_lib

    return fgrad_lib()


def test_wrong_rules_are_named():
    @fgrad.custom_vjp
    def f(x, y):
        return x * y

    f.defvjp(lambda x, y: (x * y, (x, y)), lambda res, ct: (ct * res[1],))
    with pytest.raises(fgrad.FgradTypeError, match="bwd must return a tuple of 2 cotangents"):
        fgrad.grad(f)(1.0, 2.0)
    f.defvjp(lambda x, y: (x * y, (x, y)), lambda res, ct: (fnp.zeros(3), None))
    with pytest.raises(fgrad.FgradTypeError, match=r"cotangent float32\[3\] for an input float32\[\]"):
        fgrad.grad(f)(1.0, 2.0)

    @fgrad.custom_jvp
    def g(x):
        return x

    with pytest.raises(fgrad.FgradValueError, match=r"@f\.defjvp"):
        g(1.0)
    g.defjvp(lambda primals, tangents: tangents[0])
    with pytest.raises(fgrad.FgradTypeError, match="must return \\(out, tangent_out\\)"):
        fgrad.grad(g)(1.0)


def test_error_inside_a_rule_names_the_rules_line():
    @fgrad.custom_vjp
    def f(x):
        return x * 2

    def bwd(res, ct):
        return (ct + fnp.zeros((2, 3)) @ fnp.zeros((2, 3)),)

    f.defvjp(lambda x: (x * 2, None), bwd)
    with pytest.raises(fgrad.FgradError) as e:
        fgrad.grad(f)(1.0)
    assert f"test_custom.py:{bwd.__code__.co_firstlineno + 1}" in str(e.value)


def test_closure_over_a_differentiated_value_is_an_error():
    def outer(w):
        f = fgrad.custom_vjp(lambda x: x * w)
        f.defvjp(lambda x: (x * w, None), lambda res, ct: (ct,))
        return f(2.0)

    with pytest.raises(fgrad.FgradTypeError, match="pass that value as an argument"):
        fgrad.grad(outer)(3.0)


# ------------------------------------------------------------------------------------------------ checkpoint


def deep(lib, wrap, x, w):
    block = lambda x: lib.np.tanh(lib.np.sin(x * w) + x)
    if wrap:
        block = lib.checkpoint(block)
    return (block(block(x)) ** 2).sum()


@pytest.mark.parametrize(
    "derive",
    [
        lambda lib, f: f,
        lambda lib, f: lib.grad(f, argnums=(0, 1)),
        lambda lib, f: lib.hessian(f),
        lambda lib, f: lambda x, w: lib.jvp(f, (x, w), (x, w)),
        lambda lib, f: lib.vmap(lib.grad(f), in_axes=(0, None)),
    ],
)
def test_checkpoint_changes_no_number(derive):
    x = vec(3, 3) if "vmap" in derive.__code__.co_names else vec(3)
    agree(
        lambda lib, x, w: derive(lib, lambda x, w: deep(lib, True, x, w))(x, w), x, vec(3, seed=1), rtol=1e-4
    )


def test_nested_checkpoint():
    def f(lib, x):
        inner = lib.checkpoint(lambda x: lib.np.sin(x) * x)
        return lib.checkpoint(lambda x: inner(lib.np.cos(x)) + inner(x))(x).sum()

    agree(lambda lib, x: lib.grad(lambda x: f(lib, x))(x), vec(3))
    agree(lambda lib, x: lib.grad(lambda x: lib.grad(lambda x: f(lib, x))(x).sum())(x), vec(3))


def test_checkpoint_of_a_scan_body():
    def f(lib, x):
        body = lib.checkpoint(lambda c, t: (lib.np.sin(c) * t, c * 2))
        carry, ys = lib.scan(body, x, x)
        return carry.sum() + ys.sum()

    agree(lambda lib, x: lib.grad(lambda x: f(lib, x))(x), vec(4))


def count(graph, name):
    return sum((e.prim.name == name) + sum(count(s, name) for s in subgraphs(e)) for e in graph.eqns)


def test_checkpoint_computes_again():
    """The forward functions stand in the optimised gradient twice: nothing merges them back."""

    def sines(wrap):
        f = lambda x: fnp.sin(fnp.sin(fnp.sin(x)))
        g = fgrad.checkpoint(f) if wrap else f
        return fgrad.jit(fgrad.grad(lambda x: g(x).sum())).lower(vec(3)).optimized

    assert count(sines(False), "sin") == 2  # the last sine's value is not needed
    assert count(sines(True), "sin") == 2
    value = lambda wrap: (
        fgrad.jit(
            fgrad.value_and_grad(
                lambda x: (fgrad.checkpoint if wrap else lambda f: f)(lambda x: fnp.sin(fnp.sin(x)))(x).sum()
            )
        )
        .lower(vec(3))
        .optimized
    )
    assert count(value(False), "sin") == 2
    assert count(value(True), "sin") == 3


def test_checkpoint_keeps_less():
    """Peak memory of a deep chain: with checkpoints fewer intermediate values live until the backward pass."""

    def chain(wrap):
        def block(x, w):
            for _ in range(6):
                x = fnp.tanh(x @ w)
            return x

        g = fgrad.checkpoint(block) if wrap else block

        def f(x, w):
            for _ in range(4):
                x = g(x, w)
            return x.sum()

        return fgrad.jit(fgrad.grad(f)).lower(vec(64, 64), vec(64, 64)).peak_memory

    assert chain(True) < 0.7 * chain(False)


def test_stop_gradient():
    agree(lambda lib, x: lib.grad(lambda x: (lib.stop_gradient(x) * x).sum())(x), vec(3))
    agree(lambda lib, x: lib.jvp(lambda x: lib.stop_gradient({"a": x})["a"] + x, (x,), (x,)), vec(3))
    assert_same(fgrad.grad(lambda x: fgrad.stop_gradient(x).sum())(vec(3)), np.zeros(3, "float32"))
