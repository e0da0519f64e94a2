"""Networks, losses and optimizers on the device, against the CPU: see test_on_device.py. Everything is tiny."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad import random
from fgrad.array import ConcreteArray
from fgrad_nn import losses, optim
from fgrad_nn.optim import schedules

RNG = np.random.default_rng(3)
KEY = random.key(5)


def f32(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("float32")


def put(tree):
    return fgrad.device_put(tree, "cuda")


def agree(got, want, rtol=1e-4, atol=2e-5):
    for g, w in zip(fgrad.tree.leaves(got), fgrad.tree.leaves(want), strict=True):
        assert not isinstance(g, ConcreteArray), f"{g!r} is on the CPU"
        assert g.dtype == w.dtype and g.shape == w.shape
        a, b = (np.asarray(fgrad.device_get(x)).astype("float64") for x in (g, w))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


IMAGES, ROWS, STEPS = f32(2, 4, 5, 5), f32(3, 4), f32(3, 2, 4)
LAYERS = {
    "Linear": (nn.Linear(4, 3), ROWS),
    "Linear without bias": (nn.Linear(4, 3, bias=False), ROWS),
    "Conv1d": (nn.Conv1d(4, 3, 2, padding=1), f32(2, 4, 5)),
    "Conv2d": (nn.Conv2d(4, 2, 3, stride=2, padding=1), IMAGES),
    "Conv2d of groups": (nn.Conv2d(4, 4, 3, groups=4), IMAGES),
    "Conv3d": (nn.Conv3d(1, 2, 2), f32(1, 1, 3, 3, 3)),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 2, 3, stride=2), f32(2, 4, 3)),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 2, 2, stride=2), IMAGES),
    "MaxPool1d": (nn.MaxPool1d(2), f32(2, 4, 6)),
    "MaxPool2d": (nn.MaxPool2d(2), IMAGES),
    "AvgPool1d": (nn.AvgPool1d(2), f32(2, 4, 6)),
    "AvgPool2d": (nn.AvgPool2d(2, padding=1, count_include_pad=False), IMAGES),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d(2), f32(2, 2, 4, 6)),
    "Flatten": (nn.Flatten(), IMAGES),
    "Identity": (nn.Identity(), ROWS),
    "LayerNorm": (nn.LayerNorm(4), ROWS),
    "RMSNorm": (nn.RMSNorm(4), ROWS),
    "GroupNorm": (nn.GroupNorm(2, 4), IMAGES),
    "Embedding": (nn.Embedding(6, 3, padding_idx=1), np.array([[0, 1, 5], [2, 2, 0]])),
    "RNN": (nn.RNN(4, 3, nonlinearity="relu"), STEPS),
    "LSTM": (nn.LSTM(4, 3, num_layers=2), STEPS),
    "GRU": (nn.GRU(4, 3, bidirectional=True, batch_first=True), STEPS),
    "ReLU": (nn.ReLU(), ROWS),
    "ReLU6": (nn.ReLU6(), ROWS),
    "ELU": (nn.ELU(), ROWS),
    "SELU": (nn.SELU(), ROWS),
    "GELU": (nn.GELU(), ROWS),
    "SiLU": (nn.SiLU(), ROWS),
    "Mish": (nn.Mish(), ROWS),
    "LeakyReLU": (nn.LeakyReLU(), ROWS),
    "Hardsigmoid": (nn.Hardsigmoid(), ROWS),
    "Hardswish": (nn.Hardswish(), ROWS),
    "Hardtanh": (nn.Hardtanh(), ROWS),
    "Sigmoid": (nn.Sigmoid(), ROWS),
    "LogSigmoid": (nn.LogSigmoid(), ROWS),
    "Softmax": (nn.Softmax(), ROWS),
    "LogSoftmax": (nn.LogSoftmax(), ROWS),
    "Softplus": (nn.Softplus(), ROWS),
    "Softsign": (nn.Softsign(), ROWS),
    "Tanh": (nn.Tanh(), ROWS),
    "Sequential": (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ROWS),
}


def case_every_layer_forwards_and_backwards():
    failed = []
    for name, (layer, x) in LAYERS.items():

        def value(params, x, layer=layer):
            out = layer(params, x)
            return sum((y * y).sum() for y in fgrad.tree.leaves(out)), out

        params = layer.init(KEY)
        wanted = fgrad.value_and_grad(value, has_aux=True)(params, fnp.asarray(x))
        try:
            agree(fgrad.value_and_grad(value, has_aux=True)(put(params), put(x)), wanted)
            agree(layer.init(put(KEY)), params)
        except BaseException as e:
            failed.append(f"{name}: {type(e).__name__}: {e}")
    assert not failed, "\n\n".join(failed)
    named = {type(layer).__name__ for layer, _ in LAYERS.values()} | {
        "BatchNorm1d",
        "BatchNorm2d",
        "Dropout",
        "Dropout2d",
        "Module",
    }
    layers = [
        n for n in dir(nn) if isinstance(getattr(nn, n), type) and issubclass(getattr(nn, n), nn.Module)
    ]
    assert not [n for n in layers if n not in named]


def case_batch_norm_keeps_its_state_on_the_device():
    for layer, x in ((nn.BatchNorm1d(4), ROWS), (nn.BatchNorm2d(4), IMAGES)):
        params, state = layer.init(KEY), layer.init_state()

        def value(params, state, x, train, layer=layer):
            y, new = layer.apply(params, state, x, train=train)
            return (y**3).sum(), (y, new)

        step = fgrad.value_and_grad(value, has_aux=True)
        for train in (True, False):
            wanted = step(params, state, fnp.asarray(x), train)
            found = step(put(params), put(state), put(x), train)
            agree(found, wanted)
            agree(fgrad.jit(step, static_argnums=3)(put(params), put(state), put(x), train), wanted)
        with fgrad.default_device("cuda"):
            agree(layer.init_state(), state)


def case_dropout_draws_the_same():
    for layer, x in ((nn.Dropout(0.4), ROWS), (nn.Dropout2d(0.5), IMAGES)):
        wanted = layer(fnp.asarray(x), key=KEY, train=True)
        agree(layer(put(x), key=put(KEY), train=True), wanted)
        agree(layer(put(x)), fnp.asarray(x))
        with pytest.raises(fgrad.FgradDeviceError, match=r"two devices(?s:.)*on_device_cases.py"):
            layer(put(x), key=KEY, train=True)


LOGITS, LABELS, OTHER, CHANCE = (
    f32(3, 4),
    np.array([1, 3, 0]),
    f32(3, 4),
    RNG.uniform(0.1, 0.9, (3, 4)).astype("float32"),
)
LOSSES = {
    "cross_entropy": lambda x: losses.cross_entropy(x, put_like(x, LABELS)),
    "cross_entropy smooth": lambda x: losses.cross_entropy(x, put_like(x, LABELS), label_smoothing=0.1),
    "cross_entropy weighted": lambda x: losses.cross_entropy(x, put_like(x, LABELS), weight=put_like(x, CHANCE[0])),
    "nll": lambda x: losses.nll(fgrad.special.log_softmax(x), put_like(x, LABELS)),
    "mse": lambda x: losses.mse(x, put_like(x, OTHER)),
    "l1": lambda x: losses.l1(x, put_like(x, OTHER)),
    "smooth_l1": lambda x: losses.smooth_l1(x, put_like(x, OTHER)),
    "huber": lambda x: losses.huber(x, put_like(x, OTHER), delta=0.5),
    "bce": lambda x: losses.bce(fgrad.special.sigmoid(x), put_like(x, CHANCE)),
    "bce_with_logits": lambda x: losses.bce_with_logits(x, put_like(x, CHANCE)),
    "kl_div": lambda x: losses.kl_div(fgrad.special.log_softmax(x), put_like(x, CHANCE)),
}  # fmt: skip


def put_like(x, data):
    """`data` on the device of `x`, which may be traced."""
    while not hasattr(x, "device"):
        x = x.value
    return fgrad.device_put(fnp.asarray(data), x.device)


def case_every_loss():
    failed = []
    for name, loss in LOSSES.items():
        try:
            agree(fgrad.value_and_grad(loss)(put(LOGITS)), fgrad.value_and_grad(loss)(fnp.asarray(LOGITS)))
        except BaseException as e:
            failed.append(f"{name}: {type(e).__name__}: {e}")
    assert not failed, "\n\n".join(failed)
    wrong = losses.cross_entropy(
        put(LOGITS), put(np.array([1, 9, 0]))
    )  # labels are not looked at: they would be waited for
    assert np.isnan(float(wrong))


OPTIMIZERS = {
    "sgd": optim.sgd(0.1),
    "momentum": optim.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": optim.adam(0.01),
    "adamw": optim.adamw(schedules.warmup(schedules.cosine_decay(0.1, 10), 2)),
    "rmsprop": optim.rmsprop(0.01, momentum=0.5),
    "clipped": optim.chain(optim.clip_by_global_norm(0.5), optim.clip_by_value(0.2), optim.add_decayed_weights(0.1), optim.sgd(0.1)),
}  # fmt: skip


def case_every_optimizer_takes_three_steps():
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    params = net.init(KEY)

    def loss(params, x):
        return (net(params, x) ** 2).mean()

    failed = []
    for name, opt in OPTIMIZERS.items():

        def step(params, state, x, opt=opt):
            value, grads = fgrad.value_and_grad(loss)(params, x)
            updates, state = opt.update(grads, state, params)
            return optim.apply_updates(params, updates), state, value

        def three(step, params, x, opt=opt):
            state = opt.init(params)
            for _ in range(3):
                params, state, value = step(params, state, x)
            return params, state, value

        try:
            wanted = three(step, params, fnp.asarray(ROWS))
            agree(opt.init(put(params)), opt.init(params))
            agree(three(step, put(params), put(ROWS)), wanted)
            agree(three(fgrad.jit(step, donate=(0, 1)), put(params), put(ROWS)), wanted)
        except BaseException as e:
            failed.append(f"{name}: {type(e).__name__}: {e}")
    assert not failed, "\n\n".join(failed)


def case_schedules():
    made = {
        "linear": schedules.linear(0.1, 0.01, 10),
        "cosine_decay": schedules.cosine_decay(0.1, 10),
        "exponential_decay": schedules.exponential_decay(0.1, 0.9),
        "step_decay": schedules.step_decay(0.1, 2),
        "piecewise": schedules.piecewise([0.1, 0.01], [3]),
        "warmup": schedules.warmup(0.1, 5),
    }
    for f in made.values():
        agree(f(put(np.int64(4))), f(fnp.asarray(4)))


def case_a_jitted_training_step():
    net = nn.Sequential(
        nn.Conv2d(4, 2, 3, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(18, 3),
    )
    opt = optim.adam(0.01)

    def step(params, state, moments, key, x, y):
        def loss(params):
            logits, new = net.apply(params, state, x, key=key, train=True)
            return nn.cross_entropy(logits, y), new

        (value, new), grads = fgrad.value_and_grad(loss, has_aux=True)(params)
        updates, moments = opt.update(grads, moments, params)
        return optim.apply_updates(params, updates), new, moments, value

    def train(step, place):
        params, state = place(net.init(KEY)), place(net.init_state())
        moments, key = opt.init(params), place(KEY)
        for n in range(3):
            params, state, moments, value = step(
                params, state, moments, random.fold_in(key, n), place(IMAGES), place(np.array([2, 0]))
            )
        return params, state, moments, value

    wanted = train(step, lambda t: fgrad.tree.map(fnp.asarray, t))
    agree(train(fgrad.jit(step, donate=(0, 1, 2)), put), wanted, 1e-3, 1e-4)


# ------------------------------------------------------------------------------------------------ around


def case_saving_names_the_copy_that_it_needs():
    params = nn.Linear(4, 3).init(KEY)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weights"
        with pytest.raises(fgrad.FgradDeviceError) as e:
            nn.save(path, put(params))
        assert "is on cuda:0" in str(e.value)
        assert "on_device_cases.py" in str(e.value) and "fgrad.device_get(tree)" in str(e.value)
        with pytest.raises(fgrad.FgradDeviceError, match=r"save_checkpoint: entry 'params\.bias'"):
            nn.save_checkpoint(path, params=put(params))
        assert not path.exists()
        nn.save(path, fgrad.device_get(put(params)))
        agree(nn.load_into(path, put(params)), params)
        assert nn.load_into(path, params)["bias"].device == "cpu"


def case_summary():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    params = net.init(KEY)
    assert (
        nn.summary(net, put(params), put(ROWS))
        == nn.summary(net, params, ROWS)
        == nn.summary(net, params, (3, 4))
    )


def case_mixed_devices():
    net = nn.Linear(4, 3)
    params = net.init(KEY)
    for p, x in ((put(params), ROWS), (params, put(ROWS))):
        with pytest.raises(
            fgrad.FgradDeviceError, match=r"operands are on two devices(?s:.)*on_device_cases.py"
        ):
            net(p, x)
        with pytest.raises(
            fgrad.FgradDeviceError, match=r"arguments are on two devices(?s:.)*on_device_cases.py"
        ):
            fgrad.jit(net)(p, x)


def case_an_embedding_of_an_index_outside():
    layer = nn.Embedding(6, 3)
    out = layer(put(layer.init(KEY)), put(np.array([1, 7])))
    with pytest.raises(fgrad.FgradIndexError, match=r"on_device_cases.py"):
        out.tolist()
