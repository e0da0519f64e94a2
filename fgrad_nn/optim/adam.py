"""Adam (Kingma and Ba, 2015) and AdamW (Loshchilov and Hutter, 2019)."""

from __future__ import annotations

from typing import Any, NamedTuple

import fgrad.numpy as fnp
from fgrad import Array
from fgrad.errors import FgradValueError, message
from fgrad_nn.optim.base import (
    Optimizer,
    Rate,
    check_at_least_0,
    check_fraction,
    check_state,
    checked_rate,
    first_step,
    map_leaves,
    rate_at,
    unzip,
    zeros_like,
)


class AdamState(NamedTuple):
    """What `adam` and `adamw` keep: `mu` and `nu` have the structure, shapes and dtypes of the params."""

    step: Array
    mu: Any  # running mean of the gradient
    nu: Any  # running mean of its square


def adam(
    lr: Rate = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Optimizer:
    """Adam with bias correction; weight decay is an L2 penalty, added to the gradient. As `torch.optim.Adam`.

    Args:
        lr: learning rate, a number or a schedule (a function of the step, from 0).
        betas: what the running means of the gradient and of its square keep in a step; in [0, 1).
        eps: added to the root of the mean square.
        weight_decay: factor of the params in the gradient; `update` needs the params then.

    Raises:
        FgradValueError, FgradTypeError: arguments out of range; in `update` a state of another optimizer, or gradients that do
            not have the params' structure and shapes.
    """
    return _adam("adam", lr, betas, eps, weight_decay, decoupled=False)


def adamw(
    lr: Rate = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2
) -> Optimizer:
    """Adam with decoupled weight decay: params -= lr * weight_decay * params beside the step. As `torch.optim.AdamW`.

    Arguments and errors as for `adam`.
    """
    return _adam("adamw", lr, betas, eps, weight_decay, decoupled=True)


def _adam(
    call: str, lr: Rate, betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool
) -> Optimizer:
    checked_rate(call, lr)
    check_at_least_0(call, eps=eps, weight_decay=weight_decay)
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise FgradValueError(message(call, f"betas={betas!r}", "give two numbers: betas=(0.9, 0.999)"))
    b1, b2 = betas
    check_fraction(call, **{"betas[0]": b1, "betas[1]": b2})

    def init(params: Any) -> AdamState:
        return AdamState(first_step(params), zeros_like(params), zeros_like(params))

    def update(grads: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        check_state(call, state, AdamState)
        step = state.step + 1
        rate = rate_at(lr, state.step)
        # 1 - 0.999**1 has four digits left in float32; these two scalars cost nothing in float64.
        count = step.astype("float64")
        size = (rate / (1 - fnp.power(fnp.asarray(b1, "float64"), count))).astype("float32")
        root = fnp.sqrt(1 - fnp.power(fnp.asarray(b2, "float64"), count)).astype("float32")

        def one(g: Array, m: Array, v: Array, p: Any = None) -> tuple[Array, ...]:
            if weight_decay and not decoupled:
                g = g + weight_decay * p
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            u = -size.astype(g.dtype) * m / (fnp.sqrt(v) / root.astype(g.dtype) + eps)
            if weight_decay and decoupled:
                u = u - rate * weight_decay * p
            return tuple(x.astype(g.dtype) for x in (u, m, v))

        trees = (state.mu, state.nu, params) if weight_decay else (state.mu, state.nu)
        updates, mu, nu = unzip(map_leaves(call, one, grads, *trees), grads, 3)
        return updates, AdamState(step, mu, nu)

    return Optimizer(init, update)
