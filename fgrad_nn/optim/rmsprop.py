"""RMSprop (Hinton, lecture 6e of "Neural networks for machine learning", 2012), centred as in Graves, 2013."""

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
    zeros_like,
)


class RMSPropState(NamedTuple):
    """What `rmsprop` keeps: the trees have the structure, shapes and dtypes of the params."""

    step: Array
    square: Any  # running mean of the squared gradient
    mean: Any  # running mean of the gradient, if centred
    momentum: Any  # None without momentum


def rmsprop(
    lr: Rate = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> Optimizer:
    """params -= lr * gradient / (sqrt(running mean of its square) + eps); with momentum, of a buffer of these quotients.

    `centered` subtracts the squared running mean under the root. As `torch.optim.RMSprop`.
    `lr` is a number or a schedule (a function of the step, from 0). Errors as for `adam`.
    """
    checked_rate("rmsprop", lr)
    check_at_least_0("rmsprop", eps=eps, weight_decay=weight_decay, momentum=momentum)
    if not 0 <= alpha <= 1:
        raise FgradValueError(message("rmsprop", f"alpha={alpha!r}", "alpha must lie in [0, 1]"))

    def init(params: Any) -> RMSPropState:
        return RMSPropState(
            first_step(params),
            zeros_like(params),
            zeros_like(params) if centered else None,
            zeros_like(params) if momentum else None,
        )

    def update(grads: Any, state: RMSPropState, params: Any = None) -> tuple[Any, RMSPropState]:
        check_state("rmsprop", state, RMSPropState)
        rate = rate_at(lr, state.step)
        if weight_decay:
            grads = map_leaves("rmsprop", lambda g, p: g + weight_decay * p, grads, params)

        def average(old: Any, new: Any) -> Any:
            return map_leaves("rmsprop", lambda a, g: (alpha * a + (1 - alpha) * g).astype(g.dtype), old, new)

        square = average(state.square, map_leaves("rmsprop", fnp.square, grads))
        mean = average(state.mean, grads) if centered else None
        spread = square if mean is None else map_leaves("rmsprop", lambda s, m: s - m * m, square, mean)
        quotient = map_leaves("rmsprop", lambda g, s: g / (fnp.sqrt(s) + eps), grads, spread)
        buffer = None
        if momentum:
            buffer = quotient = map_leaves(
                "rmsprop", lambda b, q: (momentum * b + q).astype(q.dtype), state.momentum, quotient
            )
        updates = map_leaves("rmsprop", lambda q: (-rate * q).astype(q.dtype), quotient)
        return updates, RMSPropState(state.step + 1, square, mean, buffer)

    return Optimizer(init, update)
