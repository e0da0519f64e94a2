"""The larger nets of the workloads: a residual net, a transformer, a recurrent net. See `models` for their form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from models import Params, cross_entropy, linear, uniform

# ------------------------------------------------------------------------------------------------ ResNet-18, CIFAR stem

Stats = dict[str, Any]
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
MOMENTUM, EPS = 0.1, 1e-5


def _blocks() -> Iterator[tuple[str, int, int, int]]:
    """(name, channels in, channels out, stride) of the eight residual blocks."""
    before = 64
    for stage, (channels, stride) in enumerate(STAGES, 1):
        for block in range(2):
            yield f"layer{stage}.{block}", before, channels, stride if block == 0 else 1
            before = channels


def _convolutions() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name of the convolution, of its normalisation, shape of its weight)."""
    yield "conv1", "bn1", (64, 3, 3, 3)
    for name, inputs, outputs, stride in _blocks():
        yield f"{name}.conv1", f"{name}.bn1", (outputs, inputs, 3, 3)
        yield f"{name}.conv2", f"{name}.bn2", (outputs, outputs, 3, 3)
        if stride > 1:
            yield f"{name}.down", f"{name}.bn3", (outputs, inputs, 1, 1)


def resnet_params(rng: np.random.Generator) -> Params:
    found: Params = {}
    for name, norm, shape in _convolutions():
        scale = np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
        found[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32) * np.float32(scale)
        found[f"{norm}.weight"] = np.ones(shape[0], np.float32)
        found[f"{norm}.bias"] = np.zeros(shape[0], np.float32)
    return found | {"fc.weight": uniform(rng, 10, 512), "fc.bias": np.zeros(10, np.float32)}


def resnet_stats() -> Params:
    found: Params = {}
    for _, norm, shape in _convolutions():
        found[f"{norm}.mean"], found[f"{norm}.var"] = (
            np.zeros(shape[0], np.float32),
            np.ones(shape[0], np.float32),
        )
    return found


def _batch_norm(o: SimpleNamespace, p: Any, name: str, x: Any, old: Stats, new: Stats) -> Any:
    count = x.shape[0] * x.shape[2] * x.shape[3]
    mean = o.np.mean(x, axis=(0, 2, 3), keepdims=True)
    centred = x - mean
    var = o.np.mean(centred * centred, axis=(0, 2, 3), keepdims=True)
    for key, value in (("mean", mean), ("var", var * (count / (count - 1)))):
        moved = (1 - MOMENTUM) * old[f"{name}.{key}"] + MOMENTUM * value.reshape(-1)
        new[f"{name}.{key}"] = o.stop(moved)
    scale = p[f"{name}.weight"][:, None, None] / o.np.sqrt(var + EPS)
    return centred * scale + p[f"{name}.bias"][:, None, None]


def resnet(o: SimpleNamespace, p: Any, stats: Stats, x: Any, y: Any) -> tuple[Any, Stats]:
    new: Stats = {}

    def conv_norm(x: Any, conv: str, norm: str, stride: int = 1, padding: int = 1) -> Any:
        return _batch_norm(o, p, norm, o.conv(x, p[f"{conv}.weight"], stride, padding), stats, new)

    x = o.relu(conv_norm(x, "conv1", "bn1"))
    for name, _, _, stride in _blocks():
        h = o.relu(conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride))
        h = conv_norm(h, f"{name}.conv2", f"{name}.bn2")
        shortcut = conv_norm(x, f"{name}.down", f"{name}.bn3", stride, 0) if stride > 1 else x
        x = o.relu(h + shortcut)
    return cross_entropy(o, linear(o, p, "fc", o.np.mean(x, axis=(2, 3))), y), new


def torch_resnet(torch: Any, p: Any, stats: Stats, x: Any, y: Any) -> tuple[Any, Stats]:
    f = torch.nn.functional

    def conv_norm(x: Any, conv: str, norm: str, stride: int = 1, padding: int = 1) -> Any:
        x = f.conv2d(x, p[f"{conv}.weight"], None, stride, padding)
        mean, var = stats[f"{norm}.mean"], stats[f"{norm}.var"]  # updated in place
        return f.batch_norm(x, mean, var, p[f"{norm}.weight"], p[f"{norm}.bias"], True, MOMENTUM, EPS)

    x = f.relu(conv_norm(x, "conv1", "bn1"))
    for name, _, _, stride in _blocks():
        h = f.relu(conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride))
        h = conv_norm(h, f"{name}.conv2", f"{name}.bn2")
        shortcut = conv_norm(x, f"{name}.down", f"{name}.bn3", stride, 0) if stride > 1 else x
        x = f.relu(h + shortcut)
    return f.cross_entropy(f.linear(x.mean((2, 3)), p["fc.weight"], p["fc.bias"]), y), stats


# ------------------------------------------------------------------------------------------------ GPT

VOCABULARY, WIDTH, HEADS, LENGTH, LAYERS = 65, 128, 4, 128, 2


def gpt_params(rng: np.random.Generator) -> Params:
    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32) * np.float32(0.02)

    found = {"token": normal(VOCABULARY, WIDTH), "position": normal(LENGTH, WIDTH)}
    norms = ["norm"]
    for n in range(LAYERS):
        for name, outputs, inputs in (
            ("qkv", 3 * WIDTH, WIDTH),
            ("proj", WIDTH, WIDTH),
            ("up", 4 * WIDTH, WIDTH),
            ("down", WIDTH, 4 * WIDTH),
        ):
            found[f"{n}.{name}.weight"] = normal(outputs, inputs)
            found[f"{n}.{name}.bias"] = np.zeros(outputs, np.float32)
        norms += [f"{n}.norm1", f"{n}.norm2"]
    for name in norms:
        found[f"{name}.weight"], found[f"{name}.bias"] = (
            np.ones(WIDTH, np.float32),
            np.zeros(WIDTH, np.float32),
        )
    return found | {"head.weight": normal(VOCABULARY, WIDTH), "head.bias": np.zeros(VOCABULARY, np.float32)}


def gpt_batch(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    text = rng.integers(0, VOCABULARY, size=(8, LENGTH + 1))
    return np.ascontiguousarray(text[:, :-1]), np.ascontiguousarray(text[:, 1:])


def _layer_norm(o: SimpleNamespace, p: Any, name: str, x: Any) -> Any:
    centred = x - o.np.mean(x, axis=-1, keepdims=True)
    var = o.np.mean(centred * centred, axis=-1, keepdims=True)
    return centred / o.np.sqrt(var + EPS) * p[f"{name}.weight"] + p[f"{name}.bias"]


def _attention(o: SimpleNamespace, p: Any, n: int, x: Any) -> Any:
    batch, length, width = x.shape
    qkv = linear(o, p, f"{n}.qkv", x).reshape(batch, length, 3, HEADS, width // HEADS)
    q, k, v = (o.np.transpose(qkv[:, :, i], (0, 2, 1, 3)) for i in range(3))
    scores = o.np.matmul(q, o.np.transpose(k, (0, 1, 3, 2))) * (1 / math.sqrt(width // HEADS))
    places = o.np.arange(length)
    scores = o.np.where(places[:, None] >= places[None, :], scores, -np.inf)
    e = o.np.exp(scores - o.stop(o.np.max(scores, axis=-1, keepdims=True)))
    weights = e / o.np.sum(e, axis=-1, keepdims=True)
    heads = o.np.transpose(o.np.matmul(weights, v), (0, 2, 1, 3))
    return linear(o, p, f"{n}.proj", heads.reshape(batch, length, width))


def gpt(o: SimpleNamespace, p: Any, text: Any, targets: Any) -> Any:
    x = p["token"][text] + p["position"]
    for n in range(LAYERS):
        x = x + _attention(o, p, n, _layer_norm(o, p, f"{n}.norm1", x))
        h = linear(o, p, f"{n}.up", _layer_norm(o, p, f"{n}.norm2", x))
        h = 0.5 * h * (1 + o.erf(h * math.sqrt(0.5)))
        x = x + linear(o, p, f"{n}.down", h)
    logits = linear(o, p, "head", _layer_norm(o, p, "norm", x))
    return cross_entropy(o, logits.reshape(-1, VOCABULARY), targets.reshape(-1))


def torch_gpt(torch: Any, p: Any, text: Any, targets: Any) -> Any:
    f = torch.nn.functional

    def norm(name: str, x: Any) -> Any:
        return f.layer_norm(x, (WIDTH,), p[f"{name}.weight"], p[f"{name}.bias"], EPS)

    def dense(name: str, x: Any) -> Any:
        return f.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    x = p["token"][text] + p["position"]
    batch, length, width = x.shape
    for n in range(LAYERS):
        qkv = dense(f"{n}.qkv", norm(f"{n}.norm1", x)).view(batch, length, 3, HEADS, width // HEADS)
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
        heads = f.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + dense(f"{n}.proj", heads.transpose(1, 2).reshape(batch, length, width))
        x = x + dense(f"{n}.down", f.gelu(dense(f"{n}.up", norm(f"{n}.norm2", x))))
    logits = dense("head", norm("norm", x))
    return f.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))


# ------------------------------------------------------------------------------------------------ LSTM

INPUTS, HIDDEN, STEPS, SEQUENCES = 64, 128, 64, 32


def lstm_params(rng: np.random.Generator) -> Params:
    bound = 1 / np.sqrt(HIDDEN)

    def even(*shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    return {
        "ih.weight": even(4 * HIDDEN, INPUTS),
        "ih.bias": even(4 * HIDDEN),
        "hh.weight": even(4 * HIDDEN, HIDDEN),
        "hh.bias": even(4 * HIDDEN),
        "fc.weight": even(10, HIDDEN),
        "fc.bias": even(10),
    }


def lstm_batch(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    x = rng.normal(size=(STEPS, SEQUENCES, INPUTS)).astype(np.float32)
    return x, rng.integers(0, 10, size=SEQUENCES)


def lstm(o: SimpleNamespace, p: Any, x: Any, y: Any) -> Any:
    inputs = linear(o, p, "ih", x)  # of all steps at once, as PyTorch does too

    def cell(carry: Any, gates: Any) -> Any:
        h, c = carry
        gates = gates + linear(o, p, "hh", h)
        i, f, g, out = (gates[:, n * HIDDEN : (n + 1) * HIDDEN] for n in range(4))
        c = o.sigmoid(f) * c + o.sigmoid(i) * o.np.tanh(g)
        h = o.sigmoid(out) * o.np.tanh(c)
        return (h, c), None

    zeros = o.np.zeros((x.shape[1], HIDDEN), "float32")
    (h, _), _ = o.scan(cell, (zeros, zeros), inputs)
    return cross_entropy(o, linear(o, p, "fc", h), y)


def torch_lstm(torch: Any, p: Any, x: Any, y: Any) -> Any:
    f = torch.nn.functional
    zeros = torch.zeros(1, x.shape[1], HIDDEN, device=x.device)
    weights = [p["ih.weight"], p["hh.weight"], p["ih.bias"], p["hh.bias"]]
    _, h, _ = torch._VF.lstm(x, (zeros, zeros), weights, True, 1, 0.0, True, False, False)
    return f.cross_entropy(f.linear(h[0], p["fc.weight"], p["fc.bias"]), y)
