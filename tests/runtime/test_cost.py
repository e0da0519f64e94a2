"""Predicted operations and bytes, against formulas, hand counts and PyTorch's own counter."""

import json
import math

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import lax
from fgrad.runtime.cost import count_text, limit_seconds
from fgrad.runtime.peaks import Peaks

PEAKS = Peaks(
    "test",
    2,
    100e9,
    50e9,
    200e9,
    100e9,
    (200e9, 100e9, 50e9, 20e9),
    (400e9, 200e9, 80e9, 25e9),
    (32768, 1 << 20, 1 << 25),
)


def f32(*shape):
    return np.ones(shape, np.float32)


def cost(f, *args, **options):
    return fgrad.jit(f, **options).lower(*args).cost()


def test_matrix_product():
    c = cost(lambda a, b: a @ b, f32(64, 784), f32(784, 128))
    assert c.flops == c.contraction == c.model_flops == 2 * 64 * 784 * 128
    assert c.read == 4 * (64 * 784 + 784 * 128)
    assert c.written == 4 * 64 * 128
    assert c.compulsory == c.bytes
    assert c.kernels == 1


def test_batched_product_and_broadcast_operand():
    c = cost(lambda a, b: a @ b, f32(5, 8, 16), f32(16, 12))
    assert c.contraction == 2 * 5 * 8 * 16 * 12
    assert c.read == 4 * (5 * 8 * 16 + 16 * 12)


@pytest.mark.parametrize(
    "x, w, strides, padding, groups",
    [
        ((4, 3, 32, 32), (6, 3, 5, 5), (1, 1), "VALID", 1),
        ((2, 8, 16, 16), (12, 8, 3, 3), (2, 2), ((1, 1), (1, 1)), 1),
        ((2, 8, 15, 15), (12, 8, 3, 3), (2, 2), ((1, 1), (1, 1)), 1),
        ((2, 8, 9, 9), (8, 4, 3, 3), (1, 1), ((1, 1), (1, 1)), 2),
    ],
)
def test_convolution_and_its_gradients_against_pytorch(torch, x, w, strides, padding, groups):
    from torch.utils.flop_counter import FlopCounterMode

    def loss(x, w):
        return fnp.sum(lax.conv(x, w, strides=strides, padding=padding, groups=groups) ** 2)

    c = cost(fgrad.grad(loss, argnums=(0, 1)), f32(*x), f32(*w))
    tx, tw = (torch.ones(s, requires_grad=True) for s in (x, w))
    pad = (0, 0) if padding == "VALID" else (1, 1)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv2d(
            tx, tw, stride=strides, padding=pad, groups=groups
        ).square().sum().backward()
    y = fgrad.make_graph(loss)(f32(*x), f32(*w)).eqns[0].outputs[0].type
    assert c.model_flops == 3 * 2 * y.size * math.prod(w[1:])
    if groups == 1:  # PyTorch counts the kernel's gradient as if it had no groups
        assert c.model_flops == counter.get_total_flops()
    # As compiled: the gradient for the input also meets the padding around the cotangent.
    assert c.model_flops <= c.contraction <= 1.6 * c.model_flops


def test_elementwise_by_kind_and_memory():
    def f(a, b, x):
        return fnp.mean(fnp.tanh(a * x + b) * fnp.exp(-x * x))

    n = 100_000
    c = cost(f, np.float32(1), np.float32(2), f32(n))
    assert c.transcendental == 2 * n
    # mul, add; neg, mul; mul; add to the sum; and what joins and divides it
    assert 6 * n <= c.arithmetic <= 6.01 * n
    assert c.compulsory == 4 * n + 12
    assert 4 * n <= c.read <= 4.1 * n
    assert c.contraction == 0


LENET = {"conv1": (6, 3, 5, 5), "conv2": (16, 6, 5, 5), "fc1": (120, 400), "fc2": (84, 120), "fc3": (10, 84)}


def lenet(p, x):
    for name in ("conv1", "conv2"):
        x = lax.max_pool(fnp.maximum(lax.conv(x, p[name]), 0), 2)
    x = x.reshape(x.shape[0], -1)
    x = fnp.maximum(x @ p["fc1"].T, 0)
    x = fnp.maximum(x @ p["fc2"].T, 0)
    return fnp.sum((x @ p["fc3"].T) ** 2)


def test_lenet_step_against_hand_count_and_pytorch(torch):
    from torch.utils.flop_counter import FlopCounterMode

    n = 4
    p, x = {k: f32(*s) for k, s in LENET.items()}, f32(n, 3, 32, 32)

    def step(p, x):
        value, g = fgrad.value_and_grad(lenet)(p, x)
        return fgrad.tree.map(lambda p, g: p - 0.1 * g, p, g), value

    c = cost(step, p, x, donate=0)
    conv1, conv2 = 2 * n * 28 * 28 * 6 * 75, 2 * n * 10 * 10 * 16 * 150
    dense = 2 * n * (400 * 120 + 120 * 84 + 84 * 10)
    assert c.model_flops == 2 * conv1 + 3 * conv2 + 3 * dense  # no gradient for the images

    t = {k: torch.ones(s, requires_grad=True) for k, s in LENET.items()}
    with FlopCounterMode(display=False) as counter:
        y = torch.ones(x.shape)
        for name in ("conv1", "conv2"):
            y = torch.nn.functional.max_pool2d(torch.relu(torch.nn.functional.conv2d(y, t[name])), 2)
        y = torch.relu(y.flatten(1) @ t["fc1"].T)
        y = torch.relu(y @ t["fc2"].T)
        (y @ t["fc3"].T).square().sum().backward()
    assert c.model_flops == counter.get_total_flops()

    parameters = sum(math.prod(s) for s in LENET.values())
    assert c.compulsory == 4 * (2 * parameters + x.size + 1)
    assert c.flops == c.contraction + c.arithmetic + c.transcendental
    assert c.peak_memory >= c.arena > 0
    assert f"{c.kernels} kernels" in str(c)
    assert json.loads(json.dumps(c.to_dict()))["model_flops"] == c.model_flops


def test_cost_compiles_nothing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("compiled")

    monkeypatch.setattr("fgrad.runtime.executable._load_or_compile", refuse)
    lowered = fgrad.jit(lambda a: fnp.tanh(a @ a)).lower(fgrad.ShapeDtype((33, 33), np.float32))
    assert lowered.cost().contraction == 2 * 33**3
    assert lowered.peak_memory >= 4 * 33**2


def test_one_planning_serves_cost_and_code():
    lowered = fgrad.jit(lambda a, b: fnp.tanh(a @ b)).lower(f32(300, 300), f32(300, 300))
    before = lowered.cost()
    (result,) = lowered.compile()([f32(300, 300), f32(300, 300)])
    assert np.allclose(result, 1)
    assert lowered.cost().work == before.work


def test_loops():
    def f(w, xs):
        return fgrad.scan(lambda h, x: (fnp.tanh(h @ w + x), fnp.sum(h)), f32(8, 16), xs)

    c = cost(f, f32(16, 16), f32(50, 8, 16))
    assert c.contraction == c.model_flops == 50 * 2 * 8 * 16 * 16
    assert c.transcendental == 50 * 8 * 16
    loop = next(s for s in c.steps if s.nested)
    inner = [s for s in c.steps if s.depth == 1]
    assert inner and all(s.times == 50 for s in inner)
    assert (
        sum(s.work.flops for s in inner) == loop.work.flops == c.contraction + c.transcendental + c.arithmetic
    )
    assert not c.lower_bounds

    c = cost(lambda x: fgrad.while_loop(lambda x: fnp.sum(x) < 1e3, lambda x: fnp.exp(x), x), f32(100))
    assert c.transcendental == 100
    assert any("while_loop: counted as one iteration" in t for t in c.lower_bounds)

    dear, cheap = (lambda x: fnp.sum(x @ x)), (lambda x: fnp.sum(x))
    c = cost(lambda i, x: fgrad.cond(i > 0, cheap, dear, x), 1, f32(32, 32))
    assert c.contraction == c.model_flops == 2 * 32**3
    assert sum(s.work.contraction for s in c.steps if not s.nested) == 2 * 32**3
    assert any("dearest branch" in t for t in c.lower_bounds)


def test_numpy_calls_are_named():
    c = cost(lambda x: fnp.sum(fnp.sort(x)), f32(100))
    assert any(t.startswith("sort: computed by NumPy") for t in c.lower_bounds)
    assert c.bytes >= 800


def test_inputs_handed_back_and_unused_ones_need_not_move():
    c = cost(lambda x, y, z: (x, fnp.sum(y)), f32(1000), f32(500), f32(300))
    assert c.compulsory == 4 * (500 + 1)


def test_limits_and_predictions():
    product = cost(lambda a, b: a @ b, f32(1000, 1000), f32(1000, 1000))
    assert product.limit(PEAKS) == pytest.approx(2e9 / 100e9)
    assert limit_seconds(product, PEAKS, 2) == pytest.approx(2e9 / 200e9)
    moved = cost(lambda x: x + 1, f32(16 << 20))
    assert moved.limit(PEAKS, 2) == pytest.approx(2 * (64 << 20) / 25e9)
    assert moved.seconds(PEAKS, 2) == pytest.approx(moved.limit(PEAKS, 2))
    double = cost(lambda a: a @ a, np.ones((500, 500)))
    assert double.limit(PEAKS) == pytest.approx(2 * 500**3 / 50e9)
    assert PEAKS.fma(4, 1) < PEAKS.fma(4, 2) == PEAKS.fma(4, 8)
    assert [PEAKS.level(n) for n in (1000, 1 << 17, 1 << 22, 1 << 28)] == [0, 1, 2, 3]


def test_numbers_as_text():
    assert [count_text(n) for n in (0, 999, 1000, 999_600, 985_399_296)] == [
        "0 ",
        "999 ",
        "1 k",
        "1000 k",
        "985 M",
    ]
