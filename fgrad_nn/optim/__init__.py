"""Optimizers, gradient transformations and learning-rate schedules."""

from fgrad_nn.optim import schedules
from fgrad_nn.optim.adam import AdamState, adam, adamw
from fgrad_nn.optim.base import (
    Optimizer,
    add_decayed_weights,
    apply_updates,
    chain,
    clip_by_global_norm,
    clip_by_value,
    global_norm,
)
from fgrad_nn.optim.rmsprop import RMSPropState, rmsprop
from fgrad_nn.optim.schedules import cosine_decay, exponential_decay, step_decay, warmup
from fgrad_nn.optim.sgd import SGDState, sgd

__all__ = [
    "AdamState",
    "Optimizer",
    "RMSPropState",
    "SGDState",
    "adam",
    "adamw",
    "add_decayed_weights",
    "apply_updates",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "cosine_decay",
    "exponential_decay",
    "global_norm",
    "rmsprop",
    "schedules",
    "sgd",
    "step_decay",
    "warmup",
]
