"""The benchmarks' training steps against PyTorch, which computes the same in float64: losses and gradients.

Each difference is the norm of the error over the norm of PyTorch's gradient, parameter by parameter. (The other workloads are in `nn/test_parity.py`.)
"""

import importlib
import pathlib
import sys

import numpy as np
import pytest

import fgrad

FOLDER = str(pathlib.Path(__file__).parents[1] / "benchmarks")


@pytest.fixture(scope="module")
def workloads():
    sys.path.insert(0, FOLDER)
    try:
        yield importlib.import_module("workloads")
    finally:
        sys.path.remove(FOLDER)


def ours(workloads, w):
    once, gradients = workloads.functional_step(workloads.fgrad_ops(), w)
    found = {k: np.asarray(v) for k, v in gradients().items()}
    return float(once()), found


def in_float64(torch, w):
    rng = np.random.default_rng(0)
    start = w.params(rng)
    batch = [torch.from_numpy(b) for b in w.batch(rng)]
    batch = [b.double() if b.dtype == torch.float32 else b for b in batch]
    params = {k: torch.from_numpy(v).double().requires_grad_() for k, v in start.items()}
    stats = ({k: torch.from_numpy(v).double() for k, v in w.stats().items()},) if w.stats else ()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        value = w.torch_loss(torch, params, *stats, *batch)
    finally:
        torch.set_default_dtype(before)
    value = value[0] if w.stats else value
    value.backward()
    return float(value.detach()), {k: p.grad.numpy() for k, p in params.items()}


def check(workloads, torch, w, tolerance):
    loss, gradients = ours(workloads, w)
    true_loss, true_gradients = in_float64(torch, w)
    assert loss == pytest.approx(true_loss, rel=2e-6)
    errors = {k: np.linalg.norm(gradients[k] - g) / np.linalg.norm(g) for k, g in true_gradients.items()}
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("name", ["W1", "W3", "W4", "W5", "W8", "W9"])
def test_losses_and_gradients(workloads, torch, name):
    check(workloads, torch, workloads.WORKLOADS[name], 5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("winograd", [True, False])
def test_residual_net(workloads, torch, monkeypatch, winograd):
    """With tanh for ReLU: at 0 ReLU's derivative jumps, and one of two million activations on the other side of it moves the
    gradients of a net with batch normalisation by some 0.5 per cent (those of JAX too), which would hide all else."""
    ops = workloads.fgrad_ops
    monkeypatch.setattr(workloads, "fgrad_ops", lambda: _with(ops(), relu=fgrad.numpy.tanh))
    monkeypatch.setattr(torch.nn.functional, "relu", torch.tanh)
    with fgrad.winograd(winograd):
        check(workloads, torch, workloads.WORKLOADS["W6"], 1e-4)


def _with(namespace, **changes):
    namespace.__dict__.update(changes)
    return namespace
