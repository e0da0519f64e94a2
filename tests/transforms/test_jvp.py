"""Forward mode against JAX."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.ir import check
from fgrad.trace import trace
from fgrad.transforms.jvp import jvp_graph


def _tangents(args):
    rng = np.random.default_rng(5)
    return [rng.normal(size=np.shape(a)) for a in args]


def test_jvp(scalar, jax64, close):
    t = _tangents(scalar.args)
    want = jax64.jit(lambda xs, ts: jax64.jvp(scalar.g, xs, ts))(tuple(scalar.args), tuple(t))
    close(fgrad.jvp(scalar.f, scalar.args, t), want)


def test_jvp_of_jvp(scalar, jax64, close):
    t = _tangents(scalar.args)

    def once(lib, f):
        return lambda *xs: lib.jvp(f, xs, tuple(t))[1]

    got = fgrad.jvp(once(fgrad, scalar.f), scalar.args, t)
    want = jax64.jit(lambda xs, ts: jax64.jvp(once(jax64, scalar.g), xs, ts))
    close(got, want(tuple(scalar.args), tuple(t)))


def test_linearize_does_not_run_again():
    runs = []

    def f(x):
        runs.append(1)
        return fnp.sin(x) * x

    x = np.array([0.3, 0.7])
    y, push = fgrad.linearize(f, x)
    np.testing.assert_allclose(np.asarray(y), np.sin(x) * x)
    for t in (np.array([1.0, 0.0]), np.array([0.5, 2.0])):
        np.testing.assert_allclose(np.asarray(push(t)), (np.cos(x) * x + np.sin(x)) * t)
    assert len(runs) == 1


def test_zero_tangents_are_not_built():
    traced = trace(lambda x, y: [fnp.sin(x) * 2.0, fnp.exp(y)], [fnp.ones(3).type, fnp.ones(3).type])
    derived, mask = jvp_graph(traced.graph, [True, False])
    check(derived.graph)
    assert mask == [True, False]
    names = [e.prim.name for e in derived.graph.eqns]
    assert names.count("exp") == 1 and names.count("cos") == 1


def test_integer_outputs_have_no_tangent():
    (count, _), (dcount, dy) = fgrad.jvp(lambda x: (fnp.sum(x > 0), x * 2), (fnp.ones(3),), (fnp.ones(3),))
    assert int(count) == 3 and np.all(np.asarray(dcount) == 0) and np.all(np.asarray(dy) == 2)


def test_has_aux():
    y, dy, aux = fgrad.jvp(lambda x: (x**2, {"x": x}), (3.0,), (1.0,), has_aux=True)
    assert float(y) == 9 and float(dy) == 6 and float(aux["x"]) == 3


def test_wrong_tangent_says_both_types():
    with pytest.raises(fgrad.FgradTypeError, match=r"float32\[3\].*float32\[2\]"):
        fgrad.jvp(fnp.sin, (fnp.ones(2),), (fnp.ones(3),))


def test_integers_cannot_be_differentiated():
    with pytest.raises(fgrad.FgradTypeError, match="int64"):
        fgrad.grad(lambda n: fnp.sum(n * 1.0))(fnp.arange(3))
