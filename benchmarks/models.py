"""The nets of the workloads: each written once for fgrad and JAX (`o` holds what the two name differently) and once for PyTorch.

A loss takes `(o, params, *batch)`, in PyTorch `(torch, params, *batch)`; of a net with running statistics also these, and returns
`(loss, new statistics)`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Params = dict[str, np.ndarray]


def cross_entropy(o: SimpleNamespace, logits: Any, y: Any) -> Any:
    shifted = logits - o.stop(o.np.max(logits, axis=1, keepdims=True))
    log_p = shifted - o.np.log(o.np.sum(o.np.exp(shifted), axis=1, keepdims=True))
    picked = o.np.where(o.one_hot(y, logits.shape[1]), log_p, 0.0)
    return -o.np.sum(picked) / logits.shape[0]


def linear(o: SimpleNamespace, p: Any, name: str, x: Any) -> Any:
    return o.np.matmul(x, p[f"{name}.weight"].T) + p[f"{name}.bias"]


def conv(o: SimpleNamespace, p: Any, name: str, x: Any) -> Any:
    return o.conv(x, p[f"{name}.weight"], 1, 0) + p[f"{name}.bias"][:, None, None]


def uniform(rng: np.random.Generator, *shape: int) -> np.ndarray:
    bound = 1 / np.sqrt(np.prod(shape[1:]))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def weights(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], Params]:
    """Weights of PyTorch's default scale; `conv1=(6, 3, 5, 5)` makes `conv1.weight` and `conv1.bias`."""

    def make(rng: np.random.Generator) -> Params:
        found: Params = {}
        for name, shape in shapes.items():
            found[f"{name}.weight"] = uniform(rng, *shape)
            found[f"{name}.bias"] = uniform(rng, shape[0])
        return found

    return make


def images(n: int, *shape: int) -> Callable[[np.random.Generator], tuple[np.ndarray, ...]]:
    def make(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        return rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, 10, size=n)

    return make


LENET = weights(conv1=(6, 3, 5, 5), conv2=(16, 6, 5, 5), fc1=(120, 400), fc2=(84, 120), fc3=(10, 84))
MNIST_CNN = weights(conv1=(32, 1, 3, 3), conv2=(64, 32, 3, 3), fc1=(128, 1600), fc2=(10, 128))
MLP = weights(fc1=(128, 784), fc2=(10, 128))
TINY = weights(fc1=(8, 6), fc2=(5, 8))


def conv_net(o: SimpleNamespace, p: Any, x: Any, y: Any, dense: tuple[str, ...]) -> Any:
    x = o.pool(o.relu(conv(o, p, "conv1", x)))
    x = o.pool(o.relu(conv(o, p, "conv2", x)))
    x = x.reshape(x.shape[0], -1)
    for name in dense[:-1]:
        x = o.relu(linear(o, p, name, x))
    return cross_entropy(o, linear(o, p, dense[-1], x), y)


def torch_conv_net(torch: Any, p: Any, x: Any, y: Any, dense: tuple[str, ...]) -> Any:
    f = torch.nn.functional
    for name in ("conv1", "conv2"):
        x = f.max_pool2d(f.relu(f.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"])), 2)
    x = x.flatten(1)
    for name in dense[:-1]:
        x = f.relu(f.linear(x, p[f"{name}.weight"], p[f"{name}.bias"]))
    return f.cross_entropy(f.linear(x, p[f"{dense[-1]}.weight"], p[f"{dense[-1]}.bias"]), y)


def lenet(o: SimpleNamespace, p: Any, x: Any, y: Any) -> Any:
    return conv_net(o, p, x, y, ("fc1", "fc2", "fc3"))


def torch_lenet(torch: Any, p: Any, x: Any, y: Any) -> Any:
    return torch_conv_net(torch, p, x, y, ("fc1", "fc2", "fc3"))


def mnist_cnn(o: SimpleNamespace, p: Any, x: Any, y: Any) -> Any:
    return conv_net(o, p, x, y, ("fc1", "fc2"))


def torch_mnist_cnn(torch: Any, p: Any, x: Any, y: Any) -> Any:
    return torch_conv_net(torch, p, x, y, ("fc1", "fc2"))


def mlp(o: SimpleNamespace, p: Any, x: Any, y: Any) -> Any:
    return cross_entropy(o, linear(o, p, "fc2", o.relu(linear(o, p, "fc1", x))), y)


def torch_mlp(torch: Any, p: Any, x: Any, y: Any) -> Any:
    f = torch.nn.functional
    h = f.relu(f.linear(x, p["fc1.weight"], p["fc1.bias"]))
    return f.cross_entropy(f.linear(h, p["fc2.weight"], p["fc2.bias"]), y)


def tiny(o: SimpleNamespace, p: Any, x: Any, y: Any) -> Any:
    out = linear(o, p, "fc2", o.np.tanh(linear(o, p, "fc1", x)))
    return o.np.mean((out - y) ** 2)


def torch_tiny(torch: Any, p: Any, x: Any, y: Any) -> Any:
    f = torch.nn.functional
    return f.mse_loss(
        f.linear(torch.tanh(f.linear(x, p["fc1.weight"], p["fc1.bias"])), p["fc2.weight"], p["fc2.bias"]), y
    )


def tiny_batch(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return rng.normal(size=(1, 6)).astype(np.float32), rng.normal(size=(1, 5)).astype(np.float32)


def chain(o: SimpleNamespace, p: Any, a: Any, b: Any) -> Any:
    x = p["x"]
    return o.np.mean(o.np.tanh(a * x + b) * o.sigmoid(x) + o.np.exp(-x * x))


def torch_chain(torch: Any, p: Any, a: Any, b: Any) -> Any:
    x = p["x"]
    return torch.mean(torch.tanh(a * x + b) * torch.sigmoid(x) + torch.exp(-x * x))


def chain_scalars(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return np.asarray(1.5, np.float32), np.asarray(0.5, np.float32)
