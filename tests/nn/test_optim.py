"""Optimizers and schedules, step by step against torch.optim."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad.errors import FgradError

f32 = np.float32

# name -> (ours, torch's class, its arguments)
OPTIMIZERS = {
    "sgd": (nn.sgd(0.1), "SGD", {"lr": 0.1}),
    "sgd momentum": (nn.sgd(0.1, momentum=0.9), "SGD", {"lr": 0.1, "momentum": 0.9}),
    "sgd nesterov": (
        nn.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "sgd dampening": (
        nn.sgd(0.1, momentum=0.9, dampening=0.5),
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    ),
    "sgd decay": (nn.sgd(0.1, weight_decay=0.3), "SGD", {"lr": 0.1, "weight_decay": 0.3}),
    "adam": (nn.adam(0.05), "Adam", {"lr": 0.05}),
    "adam decay": (
        nn.adam(0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2),
        "Adam",
        {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2},
    ),
    "adamw": (nn.adamw(0.05), "AdamW", {"lr": 0.05}),
    "adamw decay": (nn.adamw(0.05, weight_decay=0.3), "AdamW", {"lr": 0.05, "weight_decay": 0.3}),
    "rmsprop": (nn.rmsprop(0.02), "RMSprop", {"lr": 0.02}),
    "rmsprop centered": (nn.rmsprop(0.02, centered=True), "RMSprop", {"lr": 0.02, "centered": True}),
    "rmsprop all": (
        nn.rmsprop(0.02, alpha=0.9, momentum=0.7, weight_decay=0.1, centered=True),
        "RMSprop",
        {"lr": 0.02, "alpha": 0.9, "momentum": 0.7, "weight_decay": 0.1, "centered": True},
    ),
}


def start(rng):
    return {"a": {"weight": rng.normal(size=(3, 4)).astype(f32), "bias": rng.normal(size=4).astype(f32)}}


def loss(p):
    """Convex, with curvatures that differ."""
    w, b = p["a"]["weight"], p["a"]["bias"]
    return ((w * w).sum(0) * w.shape[0] + b * b).sum() + w.sum() * 0.3


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_are_pytorchs(torch, rng, name, jitted):
    opt, kind, arguments = OPTIMIZERS[name]
    params = start(rng)
    theirs = {n: torch.nn.Parameter(torch.tensor(a)) for n, a in params["a"].items()}
    reference = getattr(torch.optim, kind)(theirs.values(), **arguments)
    state = opt.init(params)

    def step(p, s):
        updates, s = opt.update(fgrad.grad(loss)(p), s, p)
        return nn.apply_updates(p, updates), s

    step = fgrad.jit(step) if jitted else step
    for _ in range(10):
        params, state = step(params, state)
        reference.zero_grad()
        loss({"a": theirs}).backward()
        reference.step()
        for n, t in theirs.items():
            np.testing.assert_allclose(np.asarray(params["a"][n]), t.detach().numpy(), rtol=3e-5, atol=3e-6)
    assert int(state.step) == 10


def test_dtypes_stay(rng):
    params = {"w": fnp.asarray(rng.normal(size=3)).astype("float16"), "v": fnp.asarray(rng.normal(size=3))}
    for opt, _, _ in OPTIMIZERS.values():
        updates, state = opt.update(params, opt.init(params), params)
        after = nn.apply_updates(params, updates)
        assert {n: a.dtype for n, a in after.items()} == {n: a.dtype for n, a in params.items()}
        assert fgrad.tree.structure(state) == fgrad.tree.structure(opt.init(params))
        for a, b in zip(fgrad.tree.leaves(state), fgrad.tree.leaves(opt.init(params))):
            assert a.dtype == b.dtype


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_by_global_norm_is_pytorchs(torch, rng, max_norm):
    grads = start(rng)
    tensors = [torch.nn.Parameter(torch.tensor(a)) for a in grads["a"].values()]
    for t in tensors:
        t.grad = t.detach().clone()
    norm = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    np.testing.assert_allclose(float(nn.global_norm(grads)), norm.item(), rtol=1e-6)
    clip = nn.clip_by_global_norm(max_norm)
    clipped, _ = clip.update(grads, clip.init(grads))
    for a, t in zip(clipped["a"].values(), tensors):
        np.testing.assert_allclose(np.asarray(a), t.grad.numpy(), rtol=1e-6)


def test_chain_composes(rng):
    params = start(rng)
    both = nn.chain(nn.clip_by_global_norm(0.1), nn.add_decayed_weights(0.2), nn.sgd(1.0))
    grads = fgrad.grad(loss)(params)
    updates, _ = both.update(grads, both.init(params), params)
    norm = float(nn.global_norm(grads))
    expected = -(np.asarray(grads["a"]["bias"]) * 0.1 / norm + 0.2 * params["a"]["bias"])
    np.testing.assert_allclose(np.asarray(updates["a"]["bias"]), expected, rtol=1e-4)


def test_clip_by_value():
    clip = nn.clip_by_value(1.0)
    out, _ = clip.update({"w": np.array([-3, 0.5, 2], f32)}, clip.init({}))
    assert np.asarray(out["w"]).tolist() == [-1, 0.5, 1]


def rates(schedule, n):
    return np.array([float(schedule(i)) for i in range(n)])


SCHEDULES = {
    "cosine": (nn.cosine_decay(0.3, 8, end=0.05), "CosineAnnealingLR", {"T_max": 8, "eta_min": 0.05}, 9),
    "step": (nn.step_decay(0.3, 3, 0.5), "StepLR", {"step_size": 3, "gamma": 0.5}, 12),
    "exponential": (nn.exponential_decay(0.3, 0.9), "ExponentialLR", {"gamma": 0.9}, 12),
    "linear": (
        nn.optim.schedules.linear(0.3 * 0.5, 0.3, 6),
        "LinearLR",
        {"start_factor": 0.5, "total_iters": 6},
        10,
    ),
    "piecewise": (
        nn.optim.schedules.piecewise([0.3, 0.03, 0.003], [4, 7]),
        "MultiStepLR",
        {"milestones": [4, 7], "gamma": 0.1},
        10,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_pytorchs(torch, name):
    schedule, kind, arguments, n = SCHEDULES[name]
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = getattr(torch.optim.lr_scheduler, kind)(opt, **arguments)
    expected = []
    for _ in range(n):
        expected.append(opt.param_groups[0]["lr"])
        opt.step()
        reference.step()
    np.testing.assert_allclose(rates(schedule, n), expected, rtol=2e-6)
    compiled = fgrad.jit(schedule)
    np.testing.assert_allclose([float(compiled(i)) for i in range(n)], expected, rtol=2e-6)


def test_warmup():
    np.testing.assert_allclose(rates(nn.warmup(0.4, 4), 6), [0, 0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)
    together = rates(nn.warmup(nn.cosine_decay(0.4, 10), 4), 14)
    np.testing.assert_allclose(together[4:], rates(nn.cosine_decay(0.4, 10), 10), rtol=1e-6)


def test_schedule_drives_the_optimizer(rng):
    schedule = nn.step_decay(0.1, 2, 0.5)
    opt, params = nn.sgd(schedule), {"w": np.ones(2, f32)}
    state, sizes = opt.init(params), []
    for _ in range(5):
        updates, state = opt.update({"w": np.ones(2, f32)}, state, params)
        sizes.append(-float(np.asarray(updates["w"])[0]))
    np.testing.assert_allclose(sizes, [0.1, 0.1, 0.05, 0.05, 0.025], rtol=1e-6)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: nn.sgd(-1.0), "lr=-1.0 is not a number of at least 0"),
        (lambda: nn.sgd("0.1"), "lr=str '0.1' is not a number"),
        (lambda: nn.adam({"w": np.ones(2, f32)}), r"opt = adam\(1e-3\)"),
        (lambda: nn.sgd(0.1, momentum=-0.9), "momentum=-0.9"),
        (lambda: nn.adam(eps=-1e-8), "eps=-1e-08"),
        (lambda: nn.adam(betas=0.9), "give two numbers"),
        (lambda: nn.adamw(weight_decay=-0.1), "weight_decay=-0.1"),
        (lambda: nn.rmsprop(alpha=2), "alpha=2"),
        (lambda: nn.clip_by_global_norm(-1), "max_norm=-1"),
        (lambda: nn.clip_by_value(float("nan")), "limit=nan"),
        (lambda: nn.chain(nn.clip_by_value, nn.sgd(0.1)), "argument 0 is clip_by_value, not an optimizer"),
        (
            lambda: nn.chain(nn.sgd(0.1), nn.sgd(0.1)).update({"w": np.ones(2, f32)}, nn.sgd(0.1).init({})),
            "a tuple of 2 states, got SGDState",
        ),
        (
            lambda: nn.adam(0.1).update({"w": np.ones(2, f32)}, nn.sgd(0.1).init({"w": np.ones(2, f32)})),
            "the state must be AdamState, got SGDState",
        ),
        (
            lambda: nn.adam(0.1).update({"w": np.ones(2, f32)}, nn.adam(0.1).init({"w": np.ones(1, f32)})),
            r"'w' is float32\[2\] in the gradients and float32\[1\] in the params \(or state\)",
        ),
        (lambda: nn.sgd(0.1, nesterov=True), "nesterov needs a momentum"),
        (lambda: nn.adam(0.1, betas=(0.9, 1.5)), "must lie in"),
        (lambda: nn.cosine_decay(0.1, 0), "steps must be at least 1"),
        (
            lambda: nn.adamw(0.1).update({"w": np.ones(2, f32)}, nn.adamw(0.1).init({"w": np.ones(2, f32)})),
            "needs the params",
        ),
        (
            lambda: nn.adam(0.1).update(
                {"w": np.ones(2, f32)}, nn.adam(0.1).init({"v": np.ones(2, f32)}), None
            ),
            r"differ in structure: \(w\) and \(v\)",
        ),
        (
            lambda: nn.apply_updates({"w": np.ones(2, f32)}, {"w": np.ones(3, f32)}),
            r"'w' is float32\[2\] in the params and float32\[3\] in the updates",
        ),
    ],
)
def test_errors_say_what_to_do(call, text):
    with pytest.raises(FgradError, match=text) as info:
        call()
    assert "test_optim.py" in str(info.value)
