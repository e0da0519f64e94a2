"""fgrad_nn: neural networks whose parameters are values.

    import fgrad_nn as nn

    net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    params = net.init(fgrad.random.key(0))          # {"0": {"weight": ..., "bias": ...}, "2": ...}
    logits = net(params, x)                         # a pure function: jit, grad and vmap it

Layers are descriptions; parameters, running statistics, random keys and optimizer states are passed in and handed back. Data sets
and loaders are in `fgrad_nn.data`.
"""

from __future__ import annotations

import importlib
from typing import Any

from fgrad.errors import message
from fgrad_nn import init, losses, optim
from fgrad_nn.activations import (
    ELU,
    GELU,
    SELU,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LeakyReLU,
    LogSigmoid,
    LogSoftmax,
    Mish,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Softsign,
    Tanh,
    elu,
    gelu,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    softsign,
    tanh,
)
from fgrad_nn.layers import (
    GRU,
    LSTM,
    RNN,
    AdaptiveAvgPool2d,
    AvgPool1d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    Dropout,
    Dropout2d,
    Embedding,
    Flatten,
    GroupNorm,
    Identity,
    LayerNorm,
    Linear,
    MaxPool1d,
    MaxPool2d,
    RMSNorm,
    Sequential,
)
from fgrad_nn.losses import bce, bce_with_logits, cross_entropy, huber, kl_div, l1, mse, nll, smooth_l1
from fgrad_nn.module import Module, layer_error
from fgrad_nn.optim import (
    Optimizer,
    adam,
    adamw,
    add_decayed_weights,
    apply_updates,
    chain,
    clip_by_global_norm,
    clip_by_value,
    cosine_decay,
    exponential_decay,
    global_norm,
    rmsprop,
    sgd,
    step_decay,
    warmup,
)
from fgrad_nn.serialize import (
    Checkpoint,
    CheckpointError,
    load,
    load_checkpoint,
    load_into,
    save,
    save_checkpoint,
)
from fgrad_nn.show import count as count_params
from fgrad_nn.summary import summary


def __getattr__(name: str) -> Any:
    """`fgrad_nn.data` on first use: it imports network code, which training on one's own arrays does not need."""
    if name == "data":
        return importlib.import_module("fgrad_nn.data")
    problem = f"module 'fgrad_nn' has no attribute '{name}'"
    raise AttributeError(message("fgrad_nn", problem, _ELSEWHERE.get(name, "")), name=name)


# What users of PyTorch type, and what it is called here.
_ELSEWHERE = {
    **{
        n: f"losses are functions: nn.{to}(pred, target)"
        for n, to in {
            "CrossEntropyLoss": "cross_entropy",
            "NLLLoss": "nll",
            "MSELoss": "mse",
            "L1Loss": "l1",
            "BCELoss": "bce",
            "BCEWithLogitsLoss": "bce_with_logits",
            "HuberLoss": "huber",
            "SmoothL1Loss": "smooth_l1",
            "KLDivLoss": "kl_div",
        }.items()
    },
    **{
        n: f"optimizers are pairs of functions: opt = nn.{n.lower()}(lr); state = opt.init(params)"
        for n in ("SGD", "Adam", "AdamW", "RMSprop")
    },
    "functional": "nn.relu, nn.cross_entropy and the others are here: nn.relu(x)",
    "Parameter": "override init(self, key) and return {**super().init(key), 'name': array}; forward reads p['name']",
    "ModuleList": "set a list of layers as an attribute: self.blocks = [...]; forward calls self.blocks[i](p['blocks'][i], x)",
    "ModuleDict": "set a dict of layers as an attribute: self.heads = {...}",
    "DataLoader": "from fgrad_nn.data import DataLoader",
}


__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "SELU",
    "AdaptiveAvgPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Checkpoint",
    "CheckpointError",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Dropout",
    "Dropout2d",
    "Embedding",
    "Flatten",
    "GroupNorm",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSigmoid",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "Mish",
    "Module",
    "Optimizer",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
    "adam",
    "adamw",
    "add_decayed_weights",
    "apply_updates",
    "bce",
    "bce_with_logits",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "cosine_decay",
    "count_params",
    "cross_entropy",
    "elu",
    "exponential_decay",
    "gelu",
    "global_norm",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "huber",
    "init",
    "kl_div",
    "l1",
    "layer_error",
    "leaky_relu",
    "load",
    "load_checkpoint",
    "load_into",
    "log_sigmoid",
    "log_softmax",
    "losses",
    "mish",
    "mse",
    "nll",
    "optim",
    "relu",
    "relu6",
    "rmsprop",
    "save",
    "save_checkpoint",
    "selu",
    "sgd",
    "sigmoid",
    "silu",
    "smooth_l1",
    "softmax",
    "softplus",
    "softsign",
    "step_decay",
    "summary",
    "tanh",
    "warmup",
]
