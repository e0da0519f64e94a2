"""PyTensor's side of the workloads that it is compared on: the whole step as one function compiled by its Numba mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def _mlp(pt: Any, p: Any, x: Any, y: Any) -> Any:
    h = pt.maximum(x @ p["fc1.weight"].T + p["fc1.bias"], 0)
    logits = h @ p["fc2.weight"].T + p["fc2.bias"]
    log_p = pt.special.log_softmax(logits, axis=1)
    return -pt.mean(log_p[pt.arange(y.shape[0]), y])


def _tiny(pt: Any, p: Any, x: Any, y: Any) -> Any:
    out = pt.tanh(x @ p["fc1.weight"].T + p["fc1.bias"]) @ p["fc2.weight"].T + p["fc2.bias"]
    return pt.mean((out - y) ** 2)


def _chain(pt: Any, p: Any, a: Any, b: Any) -> Any:
    x = p["x"]
    return pt.mean(pt.tanh(a * x + b) * pt.sigmoid(x) + pt.exp(-x * x))


LOSSES: dict[str, Callable[..., Any]] = {"W4": _mlp, "W5": _tiny, "W7": _chain}


def pytensor_step(w: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The step of a workload in `LOSSES`, and a function that gives the gradients at the first weights."""
    import pytensor
    import pytensor.tensor as pt

    pytensor.config.floatX = "float32"
    rng = np.random.default_rng(0)
    start = w.params(rng)
    batch = [pytensor.shared(b, shape=b.shape) for b in w.batch(rng)]
    params = {k: pytensor.shared(v.copy(), name=k, shape=v.shape) for k, v in start.items()}
    loss = LOSSES[w.name](pt, params, *batch).astype("float32")
    grads = dict(zip(params, pytensor.grad(loss, list(params.values()))))
    gradient = pytensor.function([], list(grads.values()), mode="NUMBA")
    updates: list[tuple[Any, Any]] = []
    if w.optimizer == "sgd":
        updates = [(p, p - w.lr * grads[k]) for k, p in params.items()]
    elif w.optimizer == "adam":
        t = pytensor.shared(np.float32(0))
        later = t + np.float32(1)
        size = w.lr / (1 - np.float32(0.9) ** later)
        root = 1 / pt.sqrt(1 - np.float32(0.999) ** later)
        updates = [(t, later)]
        for k, p in params.items():
            m, v = (pytensor.shared(np.zeros_like(start[k]), shape=start[k].shape) for _ in range(2))
            new_m, new_v = 0.9 * m + 0.1 * grads[k], 0.999 * v + 0.001 * grads[k] ** 2
            updates += [(m, new_m), (v, new_v), (p, p - size * new_m / (pt.sqrt(new_v) * root + 1e-8))]
    elif w.optimizer != "none":
        raise NotImplementedError(f"the PyTensor step of {w.name} with {w.optimizer}")
    updates = [(s, new.astype(s.dtype)) for s, new in updates]
    outputs = [loss, *grads.values()] if w.optimizer == "none" else [loss]
    step = pytensor.function([], outputs, updates=updates, mode="NUMBA")
    return lambda: step()[0], lambda: dict(zip(grads, gradient()))
