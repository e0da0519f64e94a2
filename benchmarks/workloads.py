"""The workloads, written once for fgrad and JAX (whose function names agree) and once for PyTorch.

A workload gives, for each library, a zero-argument function that does one whole training step (forward, loss, backward, update)
and returns the loss; all start from the same weights and see the same batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

Params = dict[str, np.ndarray]
Step = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    name: str
    what: str
    params: Callable[[np.random.Generator], Params]
    batch: Callable[[np.random.Generator], tuple[np.ndarray, ...]]
    loss: Callable[..., Any]  # (ops, params, *batch) -> scalar, for fgrad and JAX
    torch_loss: Callable[..., Any]  # (torch, params, *batch) -> scalar
    optimizer: str  # "sgd", "momentum", "adam" or "none" (value and gradient only)
    lr: float = 1e-3
    repeats: int = 20  # steps in one timed round


# ------------------------------------------------------------------------------------------------ the two functional libraries


def fgrad_ops() -> SimpleNamespace:
    import fgrad
    import fgrad.numpy as fnp
    from fgrad import lax, special, tree

    def one_hot(y: Any, n: int) -> Any:
        return y[:, None] == fnp.arange(n)

    return SimpleNamespace(
        name="fgrad",
        np=fnp,
        conv=lambda x, w: lax.conv(x, w),
        pool=lambda x: lax.max_pool(x, 2),
        relu=lambda x: fnp.maximum(x, 0),
        sigmoid=special.sigmoid,
        stop=fgrad.stop_gradient,
        one_hot=one_hot,
        value_and_grad=fgrad.value_and_grad,
        jit=lambda f: fgrad.jit(f, donate=(0, 1)),
        jit_plain=fgrad.jit,
        map=tree.map,
        array=fnp.asarray,
        wait=lambda x: x,
    )


def jax_ops() -> SimpleNamespace:
    import jax
    import jax.numpy as jnp

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    return SimpleNamespace(
        name="jax",
        np=jnp,
        conv=lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "VALID"),
        pool=pool,
        relu=lambda x: jnp.maximum(x, 0),
        sigmoid=jax.nn.sigmoid,
        stop=jax.lax.stop_gradient,
        one_hot=lambda y, n: y[:, None] == jnp.arange(n),
        value_and_grad=jax.value_and_grad,
        jit=lambda f: jax.jit(f, donate_argnums=(0, 1)),
        jit_plain=jax.jit,
        map=jax.tree.map,
        array=jnp.asarray,
        wait=jax.block_until_ready,
    )


def cross_entropy(o: SimpleNamespace, logits: Any, y: Any) -> Any:
    shifted = logits - o.stop(o.np.max(logits, axis=1, keepdims=True))
    log_p = shifted - o.np.log(o.np.sum(o.np.exp(shifted), axis=1, keepdims=True))
    picked = o.np.where(o.one_hot(y, logits.shape[1]), log_p, 0.0)
    return -o.np.sum(picked) / logits.shape[0]


def linear(o: SimpleNamespace, p: Any, name: str, x: Any) -> Any:
    return o.np.matmul(x, p[f"{name}.weight"].T) + p[f"{name}.bias"]


def conv(o: SimpleNamespace, p: Any, name: str, x: Any) -> Any:
    return o.conv(x, p[f"{name}.weight"]) + p[f"{name}.bias"][:, None, None]


def update(o: SimpleNamespace, w: Workload, p: Any, s: Any, g: Any) -> tuple[Any, Any]:
    if w.optimizer == "sgd":
        return o.map(lambda p, g: p - w.lr * g, p, g), s
    if w.optimizer == "momentum":
        s = o.map(lambda m, g: 0.9 * m + g, s, g)
        return o.map(lambda p, m: p - w.lr * m, p, s), s
    if w.optimizer == "adam":
        m = o.map(lambda m, g: 0.9 * m + 0.1 * g, s["m"], g)
        v = o.map(lambda v, g: 0.999 * v + 0.001 * (g * g), s["v"], g)
        t = s["t"] + 1
        a, b = 1 - 0.9**t, 1 - 0.999**t
        p = o.map(lambda p, m, v: p - w.lr * (m / a) / (o.np.sqrt(v / b) + 1e-8), p, m, v)
        return p, {"m": m, "v": v, "t": t}
    return p, s


def functional_step(o: SimpleNamespace, w: Workload, compiled: bool = True) -> tuple[Step, Callable[[], Any]]:
    """The step, and a function that gives the gradients at the first weights."""
    rng = np.random.default_rng(0)
    start = w.params(rng)
    batch = [o.array(b) for b in w.batch(rng)]
    params = {k: o.array(v.copy()) for k, v in start.items()}
    zeros = {k: o.array(np.zeros_like(v)) for k, v in start.items()}
    state: Any = {
        "momentum": zeros,
        "adam": {
            "m": zeros,
            "v": {k: o.array(np.zeros_like(v)) for k, v in start.items()},
            "t": o.array(np.float32(0)),
        },
    }.get(w.optimizer, ())

    def step(p: Any, s: Any, *xs: Any) -> Any:
        value, g = o.value_and_grad(lambda p: w.loss(o, p, *xs))(p)
        if w.optimizer == "none":
            return p, s, value, g
        p, s = update(o, w, p, s, g)
        return p, s, value

    if w.optimizer == "none":  # nothing to hand back: donation would only copy
        run = o.jit_plain(step) if compiled else step
    else:
        run = o.jit(step) if compiled else step
    held = [params, state]

    def once() -> Any:
        held[0], held[1], value, *_ = run(held[0], held[1], *batch)
        return o.wait(value)

    def gradients() -> Any:
        p = {k: o.array(v.copy()) for k, v in start.items()}
        return o.value_and_grad(lambda p: w.loss(o, p, *batch))(p)[1]

    return once, gradients


# ------------------------------------------------------------------------------------------------ PyTorch


def torch_step(w: Workload) -> tuple[Step, Callable[[], Any]]:
    import torch

    rng = np.random.default_rng(0)
    start = w.params(rng)
    batch = [torch.from_numpy(b) for b in w.batch(rng)]

    def fresh() -> dict[str, Any]:
        return {k: torch.from_numpy(v.copy()).requires_grad_() for k, v in start.items()}

    params = fresh()
    makers: dict[str, Any] = {
        "sgd": lambda: torch.optim.SGD(params.values(), lr=w.lr),
        "momentum": lambda: torch.optim.SGD(params.values(), lr=w.lr, momentum=0.9),
        "adam": lambda: torch.optim.Adam(params.values(), lr=w.lr),
    }
    optimizer = makers[w.optimizer]() if w.optimizer in makers else None

    def once() -> Any:
        if optimizer is None:
            for p in params.values():
                p.grad = None
        else:
            optimizer.zero_grad()
        value = w.torch_loss(torch, params, *batch)
        value.backward()
        if optimizer is not None:
            optimizer.step()
        return value.detach()

    def gradients() -> Any:
        p = fresh()
        w.torch_loss(torch, p, *batch).backward()
        return {k: v.grad for k, v in p.items()}

    return once, gradients


# ------------------------------------------------------------------------------------------------ the nets


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


WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            "W1",
            "CIFAR LeNet, SGD momentum, batch 4",
            LENET,
            images(4, 3, 32, 32),
            lenet,
            torch_lenet,
            "momentum",
            repeats=100,
        ),
        Workload(
            "W2",
            "CIFAR LeNet, SGD momentum, batch 64",
            LENET,
            images(64, 3, 32, 32),
            lenet,
            torch_lenet,
            "momentum",
        ),
        Workload(
            "W3",
            "MNIST CNN 32-64-128, Adam, batch 64",
            MNIST_CNN,
            images(64, 1, 28, 28),
            mnist_cnn,
            torch_mnist_cnn,
            "adam",
            repeats=8,
        ),
        Workload(
            "W4", "MLP 784-128-10, Adam, batch 64", MLP, images(64, 784), mlp, torch_mlp, "adam", repeats=200
        ),
        Workload(
            "W5", "MLP 6-8-5, SGD, batch 1", TINY, tiny_batch, tiny, torch_tiny, "sgd", lr=1e-2, repeats=1000
        ),
        Workload(
            "W7",
            "mean(tanh(a*x+b)*sigmoid(x)+exp(-x*x)), value and gradient, 4 M",
            lambda rng: {"x": rng.normal(size=4_000_000).astype(np.float32)},
            chain_scalars,
            chain,
            torch_chain,
            "none",
            repeats=5,
        ),
    )
}
