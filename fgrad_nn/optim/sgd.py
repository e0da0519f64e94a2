"""Stochastic gradient descent, with momentum and Nesterov's variant (Sutskever and others, 2013)."""

from __future__ import annotations

from typing import Any, NamedTuple

import fgrad.numpy as fnp
from fgrad import Array
from fgrad.errors import FgradValueError, message
from fgrad_nn.optim.base import (
    Optimizer,
    Rate,
    check_at_least_0,
    check_state,
    checked_rate,
    first_step,
    map_leaves,
    rate_at,
    unzip,
    zeros_like,
)


class SGDState(NamedTuple):
    """What `sgd` keeps: `momentum` has the structure, shapes and dtypes of the params."""

    step: Array
    momentum: Any  # None without momentum


def sgd(
    lr: Rate, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Optimizer:
    """params -= lr * d, where d is the gradient, or with momentum buf = momentum * buf + (1 - dampening) * gradient.

    With `nesterov` d = gradient + momentum * buf. Weight decay is an L2 penalty: it adds weight_decay * params to the gradient.
    As `torch.optim.SGD`. `lr` is a number or a schedule (a function of the step, from 0). Errors as for `adam`.
    """
    checked_rate("sgd", lr)
    check_at_least_0("sgd", momentum=momentum, weight_decay=weight_decay)
    if nesterov and (momentum <= 0 or dampening != 0):
        raise FgradValueError(
            message("sgd", "nesterov needs a momentum and no dampening", "pass momentum=0.9, for one")
        )

    def init(params: Any) -> SGDState:
        return SGDState(first_step(params), zeros_like(params) if momentum else None)

    def update(grads: Any, state: SGDState, params: Any = None) -> tuple[Any, SGDState]:
        check_state("sgd", state, SGDState)
        rate = rate_at(lr, state.step)
        if weight_decay:
            grads = map_leaves("sgd", lambda g, p: g + weight_decay * p, grads, params)
        if not momentum:
            return map_leaves("sgd", lambda g: (-rate * g).astype(g.dtype), grads), SGDState(
                state.step + 1, None
            )
        # The first buffer is the whole gradient, as in PyTorch.
        fresh = fnp.where(state.step == 0, 1.0, 1.0 - dampening) if dampening else 1.0

        def one(g: Array, buf: Array) -> tuple[Array, Array]:
            buf = (momentum * buf + fresh * g).astype(g.dtype)
            d = g + momentum * buf if nesterov else buf
            return (-rate * d).astype(g.dtype), buf

        updates, buffers = unzip(map_leaves("sgd", one, grads, state.momentum), grads, 2)
        return updates, SGDState(state.step + 1, buffers)

    return Optimizer(init, update)
