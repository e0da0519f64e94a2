"""The workloads, and a whole training step of each in every library.

A step is a zero-argument function (forward, loss, backward, update) that returns the loss; all libraries start from the same weights
and see the same batch. The nets are in `models` and `deep_models`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from deep_models import (
    gpt,
    gpt_batch,
    gpt_params,
    lstm,
    lstm_batch,
    lstm_params,
    resnet,
    resnet_params,
    resnet_stats,
    torch_gpt,
    torch_lstm,
    torch_resnet,
)
from models import (
    LENET,
    MLP,
    MNIST_CNN,
    TINY,
    Params,
    chain,
    chain_scalars,
    images,
    lenet,
    mlp,
    mnist_cnn,
    tiny,
    tiny_batch,
    torch_chain,
    torch_lenet,
    torch_mlp,
    torch_mnist_cnn,
    torch_tiny,
)

Step = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    name: str
    what: str
    params: Callable[[np.random.Generator], Params]
    batch: Callable[[np.random.Generator], tuple[np.ndarray, ...]]
    loss: Callable[..., Any]  # (ops, params, *batch) -> scalar, for fgrad and JAX
    torch_loss: Callable[..., Any]  # (torch, params, *batch) -> scalar
    optimizer: str  # "sgd", "momentum", "adam", "adamw" or "none" (value and gradient only)
    lr: float = 1e-3
    repeats: int = 20  # steps in one timed round
    stats: Callable[[], Params] | None = (
        None  # running statistics, which the losses take after the parameters and return
    )


# ------------------------------------------------------------------------------------------------ the two functional libraries


def fgrad_ops(device: str | None = None) -> SimpleNamespace:
    """`device`: where arrays are put and steps are compiled for; None: the CPU."""
    import fgrad
    import fgrad.numpy as fnp
    from fgrad import lax, special, tree

    def one_hot(y: Any, n: int) -> Any:
        return y[:, None] == fnp.arange(n)

    return SimpleNamespace(
        name="fgrad",
        np=fnp,
        conv=lambda x, w, strides, padding: lax.conv(x, w, strides=strides, padding=padding),
        pool=lambda x: lax.max_pool(x, 2),
        relu=lambda x: fnp.maximum(x, 0),
        sigmoid=special.sigmoid,
        erf=special.erf,
        scan=fgrad.scan,
        stop=fgrad.stop_gradient,
        one_hot=one_hot,
        value_and_grad=fgrad.value_and_grad,
        jit=lambda f: fgrad.jit(f, donate=(0, 1), device=device),
        jit_plain=lambda f: fgrad.jit(f, device=device),
        map=tree.map,
        array=fnp.asarray if device is None else lambda x: fgrad.device_put(x, device),
        wait=lambda x: x,
    )


def jax_ops() -> SimpleNamespace:
    import jax
    import jax.numpy as jnp

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    def conv(x: Any, w: Any, stride: int, padding: int) -> Any:
        return jax.lax.conv_general_dilated(x, w, (stride, stride), [(padding, padding)] * 2)

    return SimpleNamespace(
        name="jax",
        np=jnp,
        conv=conv,
        pool=pool,
        relu=lambda x: jnp.maximum(x, 0),
        sigmoid=jax.nn.sigmoid,
        erf=jax.scipy.special.erf,
        scan=jax.lax.scan,
        stop=jax.lax.stop_gradient,
        one_hot=lambda y, n: y[:, None] == jnp.arange(n),
        value_and_grad=jax.value_and_grad,
        jit=lambda f: jax.jit(f, donate_argnums=(0, 1)),
        jit_plain=jax.jit,
        map=jax.tree.map,
        array=jnp.asarray,
        wait=jax.block_until_ready,
    )


def update(o: SimpleNamespace, w: Workload, p: Any, s: Any, g: Any) -> tuple[Any, Any]:
    if w.optimizer == "sgd":
        return o.map(lambda p, g: p - w.lr * g, p, g), s
    if w.optimizer == "momentum":
        s = o.map(lambda m, g: 0.9 * m + g, s, g)
        return o.map(lambda p, m: p - w.lr * m, p, s), s
    if w.optimizer in ("adam", "adamw"):
        decay = 0.01 * w.lr if w.optimizer == "adamw" else 0.0
        m = o.map(lambda m, g: 0.9 * m + 0.1 * g, s["m"], g)
        v = o.map(lambda v, g: 0.999 * v + 0.001 * (g * g), s["v"], g)
        t = s["t"] + 1
        a, b = 1 - 0.9**t, 1 - 0.999**t
        size, root = w.lr / a, 1 / o.np.sqrt(b)

        def move(p: Any, m: Any, v: Any) -> Any:
            return (p - decay * p if decay else p) - size * m / (o.np.sqrt(v) * root + 1e-8)

        return o.map(move, p, m, v), {"m": m, "v": v, "t": t}
    return p, s


def _zeros(values: Params) -> Params:
    return {k: np.zeros_like(v) for k, v in values.items()}


def functional_state(w: Workload, start: Params, array: Callable[[np.ndarray], Any]) -> Any:
    """(optimizer state, running statistics) before the first step."""
    fresh = lambda: {k: array(v) for k, v in _zeros(start).items()}
    state: Any = ()
    if w.optimizer == "momentum":
        state = fresh()
    elif w.optimizer in ("adam", "adamw"):
        state = {"m": fresh(), "v": fresh(), "t": array(np.zeros((), np.float32))}
    return state, {k: array(v) for k, v in w.stats().items()} if w.stats else ()


def whole_step(o: SimpleNamespace, w: Workload) -> Callable[..., Any]:
    """`step(params, state, *batch) -> (params, state, loss)`, with the gradients too if there is no optimizer."""

    def step(p: Any, s: Any, *xs: Any) -> Any:
        optimizer, stats = s
        if w.stats:
            (value, stats), g = o.value_and_grad(lambda p: w.loss(o, p, stats, *xs), has_aux=True)(p)
        else:
            value, g = o.value_and_grad(lambda p: w.loss(o, p, *xs))(p)
        if w.optimizer == "none":
            return p, s, value, g
        p, optimizer = update(o, w, p, optimizer, g)
        return p, (optimizer, stats), value

    return step


def functional_step(o: SimpleNamespace, w: Workload, compiled: bool = True) -> tuple[Step, Callable[[], Any]]:
    """The step, and a function that gives the gradients at the first weights."""
    rng = np.random.default_rng(0)
    start = w.params(rng)
    batch = [o.array(b) for b in w.batch(rng)]
    step = whole_step(o, w)
    if not compiled:
        run = step
    elif w.optimizer == "none":  # nothing to hand back: donation would only copy
        run = o.jit_plain(step)
    else:
        run = o.jit(step)
    held = [{k: o.array(v.copy()) for k, v in start.items()}, functional_state(w, start, o.array)]

    def once() -> Any:
        held[0], held[1], value, *_ = run(held[0], held[1], *batch)
        return o.wait(value)

    def gradients() -> Any:
        p = {k: o.array(v.copy()) for k, v in start.items()}
        _, stats = functional_state(w, start, o.array)
        if w.stats:
            loss = lambda p: w.loss(o, p, stats, *batch)[0]
        else:
            loss = lambda p: w.loss(o, p, *batch)
        return (o.jit_plain(o.value_and_grad(loss)) if compiled else o.value_and_grad(loss))(p)[1]

    return once, gradients


# ------------------------------------------------------------------------------------------------ PyTorch


def _torch_stats(torch: Any, w: Workload, device: str) -> tuple[Any, ...]:
    return ({k: torch.from_numpy(v).to(device) for k, v in w.stats().items()},) if w.stats else ()


def torch_step(
    w: Workload,
    compiled: bool = False,
    device: str = "cpu",
    mode: str | None = None,
    capturable: bool = False,
) -> tuple[Step, Callable[[], Any]]:
    """The step as PyTorch users write it; `compiled`: with the loss under `torch.compile`, in one of its modes. `capturable`: so that a
    CUDA graph may be made of the step."""
    import torch

    rng = np.random.default_rng(0)
    start = w.params(rng)
    batch = [torch.from_numpy(b).to(device) for b in w.batch(rng)]

    def fresh() -> dict[str, Any]:
        return {k: torch.from_numpy(v.copy()).to(device).requires_grad_() for k, v in start.items()}

    params, stats = fresh(), _torch_stats(torch, w, device)
    options = {"capturable": True} if capturable else {}
    makers: dict[str, Any] = {
        "sgd": lambda: torch.optim.SGD(params.values(), lr=w.lr),
        "momentum": lambda: torch.optim.SGD(params.values(), lr=w.lr, momentum=0.9),
        "adam": lambda: torch.optim.Adam(params.values(), lr=w.lr, **options),
        "adamw": lambda: torch.optim.AdamW(params.values(), lr=w.lr, **options),
    }
    optimizer = makers[w.optimizer]() if w.optimizer in makers else None

    def plain(p: Any, stats: Any, *xs: Any) -> Any:
        value = w.torch_loss(torch, p, *stats, *xs)
        return value[0] if w.stats else value

    loss = torch.compile(plain, mode=mode) if compiled else plain

    def once() -> Any:
        if mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        if optimizer is None:
            for p in params.values():
                p.grad = None
        else:
            optimizer.zero_grad()
        value = loss(params, stats, *batch)
        value.backward()
        if optimizer is not None:
            optimizer.step()
        return value.detach()

    def gradients() -> Any:
        p = fresh()
        loss(p, _torch_stats(torch, w, device), *batch).backward()
        return {k: v.grad for k, v in p.items()}

    return once, gradients


def torch_whole_step(
    w: Workload, device: str = "cpu", mode: str | None = None
) -> tuple[Step, Callable[[], Any]]:
    """The whole step, written with `torch.func`, under `torch.compile`, in one of its modes."""
    import torch
    from torch.utils import _pytree as pytree

    rng = np.random.default_rng(0)
    start = w.params(rng)
    batch = [torch.from_numpy(b).to(device) for b in w.batch(rng)]

    def value_and_grad(f: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
        def both(p: Any) -> Any:
            g, value = torch.func.grad_and_value(f, has_aux=has_aux)(p)
            return value, g

        return both

    o = SimpleNamespace(
        np=torch,
        value_and_grad=value_and_grad,
        map=lambda f, first, *rest: {k: f(v, *(r[k] for r in rest)) for k, v in first.items()},
    )
    in_torch = replace(w, loss=lambda o, *xs: w.torch_loss(torch, *xs))
    step = torch.compile(whole_step(o, in_torch), mode=mode)
    array = lambda v: torch.from_numpy(v.copy()).to(device)
    held = [{k: array(v) for k, v in start.items()}, functional_state(w, start, array)]
    fixed = pytree.tree_leaves(held) if mode is not None and w.optimizer != "none" else []
    for t in fixed:
        torch._dynamo.mark_static_address(t)

    def once() -> Any:
        if mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        *new, value = step(held[0], held[1], *batch)[:3]
        if fixed:  # a graph's outputs are gone with its next replay
            torch._foreach_copy_(fixed, pytree.tree_leaves(new))
        elif w.optimizer != "none":
            held[:] = new
        return value

    def gradients() -> Any:
        p = {k: array(v) for k, v in start.items()}
        _, stats = functional_state(w, start, array)
        loss = (
            (lambda p: w.torch_loss(torch, p, stats, *batch)[0])
            if w.stats
            else (lambda p: w.torch_loss(torch, p, *batch))
        )
        return torch.func.grad(loss)(p)

    return once, gradients


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
            "W6",
            "ResNet-18 (CIFAR stem), BatchNorm, SGD momentum, batch 32",
            resnet_params,
            images(32, 3, 32, 32),
            resnet,
            torch_resnet,
            "momentum",
            repeats=1,
            stats=resnet_stats,
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
        Workload(
            "W8",
            "GPT: 2 layers, d 128, 4 heads, T 128, batch 8, AdamW",
            gpt_params,
            gpt_batch,
            gpt,
            torch_gpt,
            "adamw",
            repeats=6,
        ),
        Workload(
            "W9",
            "LSTM 64 to 128, T 64, batch 32, SGD",
            lstm_params,
            lstm_batch,
            lstm,
            torch_lstm,
            "sgd",
            repeats=10,
        ),
    )
}

# Large enough to keep a GPU busy.
LARGE = {
    w.name: w
    for w in (
        replace(
            WORKLOADS["W6"],
            name="W6-128",
            what="ResNet-18 (CIFAR stem), BatchNorm, SGD momentum, batch 128",
            batch=images(128, 3, 32, 32),
        ),
        replace(
            WORKLOADS["W7"],
            name="W7-32M",
            what="mean(tanh(a*x+b)*sigmoid(x)+exp(-x*x)), value and gradient, 32 M",
            params=lambda rng: {"x": rng.normal(size=32_000_000).astype(np.float32)},
        ),
    )
}
