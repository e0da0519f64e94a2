"""Kernels that become epilogues of contractions: which do, and that what they compute is what NumPy computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fgrad
import fgrad.numpy as fnp
from fgrad import lax
from fgrad.codegen.program import ContractStep, KernelStep, walk
from fgrad.runtime.interpret import interpret


def tensor(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def steps(f, *xs, donate=()):
    program = fgrad.jit(f, donate=donate).lower(*xs).program
    return list(walk(program.body))


def epilogues(f, *xs, donate=()):
    return [s.epilogue for s in steps(f, *xs, donate=donate) if isinstance(s, ContractStep) and s.epilogue]


def relu_layer(np_, x, w, b):
    return np_.maximum(x @ w + b, 0)


def torch_conv(torch, x, w, b, padding):
    x, w, b = (torch.from_numpy(v) for v in (x, w, b))
    return torch.nn.functional.conv2d(x, w, b, padding=padding).relu().numpy()


# ------------------------------------------------------------------------------------------------ results


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 40), k=st.integers(1, 30), n=st.integers(1, 70), seed=st.integers(0, 99))
def test_bias_and_activation_of_any_size(m, k, n, seed):
    x, w, b = tensor(m, k, seed=seed), tensor(k, n, seed=seed + 1), tensor(n, seed=seed + 2)
    got = fgrad.jit(lambda *xs: relu_layer(fnp, *xs))(x, w, b)
    np.testing.assert_allclose(got, relu_layer(np, x, w, b), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_dense_layer(dtype, transposed):
    x, w, b = (tensor(*s, seed=i, dtype=dtype) for i, s in enumerate([(33, 20), (20, 17), (17,)]))
    w = np.ascontiguousarray(w.T) if transposed else w

    def layer(np_, x, w, b):
        return np_.tanh(x @ (w.T if transposed else w) + b) * 2

    assert len(epilogues(lambda *xs: layer(fnp, *xs), x, w, b)) == 1
    got = fgrad.jit(lambda *xs: layer(fnp, *xs))(x, w, b)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(got, layer(np, x, w, b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "shape",
    [(4, 3, 16, 16, 6, 5, 0), (2, 16, 9, 9, 32, 3, 1), (1, 1, 28, 28, 32, 3, 0), (3, 8, 7, 5, 5, 1, 0)],
)
def test_convolution_with_bias_per_channel(torch, shape):
    n, c, h, width, o, k, padding = shape
    x, w, b = tensor(n, c, h, width), tensor(o, c, k, k, seed=1), tensor(o, seed=2)

    def layer(x, w, b):
        return fnp.maximum(lax.conv(x, w, padding=padding) + b[:, None, None], 0)

    assert len(epilogues(layer, x, w, b)) == 1
    np.testing.assert_allclose(
        fgrad.jit(layer)(x, w, b), torch_conv(torch, x, w, b, padding), rtol=1e-4, atol=1e-4
    )


def test_batched_product_with_an_argument_for_each_batch():
    x, w, b = tensor(3, 64, 20), tensor(3, 20, 30, seed=1), tensor(3, 1, 30, seed=2)
    f = lambda np_, x, w, b: np_.exp(0.1 * (x @ w)) * b
    assert len(epilogues(lambda *xs: f(fnp, *xs), x, w, b)) == 1
    np.testing.assert_allclose(
        fgrad.jit(lambda *xs: f(fnp, *xs))(x, w, b), f(np, x, w, b), rtol=1e-4, atol=1e-4
    )


def test_product_that_others_read_is_stored_too():
    x, w = tensor(20, 30), tensor(30, 40, seed=1)

    def f(np_, x, w):
        h = x @ w
        return h, np_.maximum(h, 0)

    (found,) = epilogues(lambda *xs: f(fnp, *xs), x, w)
    assert found.keep
    for got, want in zip(fgrad.jit(lambda *xs: f(fnp, *xs))(x, w), f(np, x, w), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [(64, 784, 128), (64, 785, 127), (5, 33, 17), (4, 401, 121)])
def test_optimizer_update_in_place(sizes):
    """Each element is updated once, also at ragged edges, where plans without an epilogue compute some twice."""
    batch, inputs, outputs = sizes
    x, g = tensor(batch, inputs), tensor(batch, outputs, seed=1)
    p, m = tensor(outputs, inputs, seed=2), tensor(outputs, inputs, seed=3)

    def step(p, m, x, g):
        m = 0.9 * m + g.T @ x
        return p - 0.1 * m, m

    (found,) = epilogues(step, p, m, x, g, donate=(0, 1))
    assert len(found.in_place) >= 2
    want = step(p.astype(np.float64), m.astype(np.float64), x, g)
    got = fgrad.jit(step, donate=(0, 1))(fnp.asarray(p.copy()), fnp.asarray(m.copy()), x, g)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_large_product_is_shared_by_threads_with_its_epilogue():
    x, w, b, r = tensor(1024, 128), tensor(128, 512, seed=1), tensor(512, seed=2), tensor(1024, 512, seed=3)
    f = lambda np_, x, w, b, r: np_.tanh(x @ w + b) + r
    (step,) = [s for s in steps(lambda *xs: f(fnp, *xs), x, w, b, r) if isinstance(s, ContractStep)]
    assert step.epilogue is not None
    np.testing.assert_allclose(
        fgrad.jit(lambda *xs: f(fnp, *xs))(x, w, b, r), f(np, x, w, b, r), rtol=1e-4, atol=1e-4
    )


def test_interpreter_runs_epilogues():
    x, w, b = tensor(9, 20), tensor(20, 17, seed=1), tensor(17, seed=2)
    lowered = fgrad.jit(lambda *xs: relu_layer(fnp, *xs)).lower(x, w, b)
    (got,) = interpret(lowered.program, [x, w, b])
    np.testing.assert_allclose(got, relu_layer(np, x, w, b), rtol=1e-5, atol=1e-5)


def test_shown_with_the_contraction():
    x, w, b = tensor(9, 20), tensor(20, 17, seed=1), tensor(17, seed=2)
    text = fgrad.jit(lambda *xs: relu_layer(fnp, *xs)).lower(x, w, b).show("kernels")
    assert "with the epilogue" in text and "maximum" in text


# ------------------------------------------------------------------------------------------------ what is none


@pytest.mark.parametrize(
    "f",
    [
        lambda x, w, b: fnp.sum(x @ w + b, axis=1),  # a reduction
        lambda x, w, b: (x @ w + b).T * 1.5,  # stored in another order
        lambda x, w, b: (x @ w)[:, ::-1] + b,  # read in another order
        lambda x, w, b: fnp.where(fnp.arange(17) > 3, x @ w, b),  # the position is part of the value
    ],
)
def test_other_kernels_stay_kernels(f):
    x, w, b = tensor(33, 20), tensor(20, 17, seed=1), tensor(17, seed=2)
    assert not epilogues(f, x, w, b)
    assert any(isinstance(s, KernelStep) for s in steps(f, x, w, b))
    np.testing.assert_allclose(
        fgrad.jit(f)(x, w, b), f(fnp.asarray(x), fnp.asarray(w), fnp.asarray(b)), rtol=1e-4, atol=1e-4
    )
