"""Initialisers: bounds and moments as PyTorch defines them, and as its own initialisers have them."""

import math

import numpy as np
import pytest

import fgrad_nn as nn
from fgrad import random
from fgrad.errors import FgradValueError
from fgrad_nn import init

SHAPE = (64, 32, 3, 3)
FAN_IN, FAN_OUT = 32 * 9, 64 * 9

UNIFORM = {  # name -> (draw, bound)
    "kaiming_uniform": (lambda k: init.kaiming_uniform(k, SHAPE), math.sqrt(6 / FAN_IN)),
    "kaiming_uniform relu out": (
        lambda k: init.kaiming_uniform(k, SHAPE, mode="fan_out", nonlinearity="relu"),
        math.sqrt(6 / FAN_OUT),
    ),
    "kaiming_uniform a": (
        lambda k: init.kaiming_uniform(k, SHAPE, a=math.sqrt(5)),
        1 / math.sqrt(FAN_IN),
    ),
    "xavier_uniform": (
        lambda k: init.xavier_uniform(k, SHAPE, gain=init.calculate_gain("tanh")),
        5 / 3 * math.sqrt(6 / (FAN_IN + FAN_OUT)),
    ),
    "torch_default": (lambda k: init.torch_default(k, SHAPE), 1 / math.sqrt(FAN_IN)),
}
NORMAL = {  # name -> (draw, standard deviation)
    "kaiming_normal": (lambda k: init.kaiming_normal(k, SHAPE), math.sqrt(2 / FAN_IN)),
    "kaiming_normal out": (
        lambda k: init.kaiming_normal(k, SHAPE, mode="fan_out", nonlinearity="linear"),
        math.sqrt(1 / FAN_OUT),
    ),
    "xavier_normal": (lambda k: init.xavier_normal(k, SHAPE), math.sqrt(2 / (FAN_IN + FAN_OUT))),
    "normal": (lambda k: init.normal(k, SHAPE, std=0.3), 0.3),
}


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform(name):
    draw, bound = UNIFORM[name]
    x = np.asarray(draw(random.key(0)))
    assert x.shape == SHAPE and x.dtype == np.float32
    assert np.abs(x).max() <= bound * (1 + 1e-6)
    n = x.size
    assert x.max() > bound * (1 - 20 / n) and x.min() < -bound * (1 - 20 / n)
    assert abs(x.mean()) < 5 * bound / math.sqrt(3 * n)
    assert abs(x.std() - bound / math.sqrt(3)) < 0.02 * bound


@pytest.mark.parametrize("name", NORMAL)
def test_normal(name):
    draw, std = NORMAL[name]
    x = np.asarray(draw(random.key(0)))
    n = x.size
    assert abs(x.mean()) < 5 * std / math.sqrt(n)
    assert abs(x.std() - std) < 5 * std / math.sqrt(2 * n)
    assert 3 * std < np.abs(x).max() < 6 * std


@pytest.mark.parametrize("nonlinearity", ["linear", "conv", "sigmoid", "tanh", "relu", "selu", "leaky_relu"])
def test_gains_are_pytorchs(torch, nonlinearity):
    theirs = torch.nn.init.calculate_gain("conv2d" if nonlinearity == "conv" else nonlinearity)
    assert init.calculate_gain(nonlinearity) == pytest.approx(theirs)
    assert init.calculate_gain("leaky_relu", 0.2) == pytest.approx(
        torch.nn.init.calculate_gain("leaky_relu", 0.2)
    )


@pytest.mark.parametrize(
    "layer, expression",
    [
        (nn.Linear(300, 200), "Linear(300, 200)"),
        (nn.Conv2d(20, 30, 5, groups=2), "Conv2d(20, 30, 5, groups=2)"),
        (nn.Embedding(200, 50), "Embedding(200, 50)"),
        (nn.BatchNorm2d(20), "BatchNorm2d(20)"),
        (nn.LayerNorm((20, 3)), "LayerNorm((20, 3))"),
        (nn.ConvTranspose2d(20, 30, 5), "ConvTranspose2d(20, 30, 5)"),
    ],
)
def test_layers_begin_like_pytorchs(torch, layer, expression):
    """The same shapes, means, spreads and extremes as a PyTorch layer's first weights."""
    torch.manual_seed(0)
    theirs = eval(expression, vars(torch.nn)).state_dict()
    state = layer.init_state()
    ours = {**layer.init(random.key(0)), **state}
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        a, b = np.asarray(value).astype(np.float64), theirs[name].numpy().astype(np.float64)
        assert a.shape == b.shape
        scale = np.abs(b).max() or 1.0
        assert (
            abs(a.mean() - b.mean()) < 6 * scale / math.sqrt(a.size + 1) if b.std() else a.mean() == b.mean()
        )
        assert (
            abs(a.std() - b.std()) <= 0.3 * b.std() if a.size < 100 else abs(a.std() - b.std()) < 0.03 * scale
        )


def test_weight_and_bias_differ_and_keys_matter():
    params = nn.Linear(100, 100).init(random.key(0))
    other = nn.Linear(100, 100).init(random.key(1))
    assert not np.array_equal(np.asarray(params["weight"])[0], np.asarray(params["bias"]))
    assert not np.array_equal(np.asarray(params["weight"]), np.asarray(other["weight"]))


def test_own_initialisers():
    layer = nn.Linear(4, 3, weight_init=init.xavier_uniform, bias_init=init.zeros, dtype="float64")
    params = layer.init(random.key(0))
    assert (np.asarray(params["bias"]) == 0).all()
    assert params["weight"].dtype == np.float64
    assert (
        np.asarray(nn.Conv2d(1, 2, 3, bias_init=init.constant(0.5)).init(random.key(0))["bias"]) == 0.5
    ).all()


def test_truncated_normal():
    x = np.asarray(init.truncated_normal(random.key(0), (5000,), mean=1.0, std=0.5, low=0.0, high=2.0))
    assert x.min() > 0 and x.max() < 2 and abs(x.mean() - 1) < 0.05


def test_errors():
    with pytest.raises(FgradValueError, match="no fan in and out"):
        init.kaiming_uniform(random.key(0), (3,))
    with pytest.raises(FgradValueError, match="unknown nonlinearity 'swish'"):
        init.kaiming_uniform(random.key(0), (3, 3), nonlinearity="swish")
    with pytest.raises(FgradValueError, match="use 'fan_in' or 'fan_out'"):
        init.kaiming_normal(random.key(0), (3, 3), mode="both")
