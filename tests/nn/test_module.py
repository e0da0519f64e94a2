"""Networks made of layers: names, state, keys, transforms, and calls that go wrong."""

import inspect

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad import random
from fgrad.errors import FgradError, FgradTypeError, FgradValueError

f32 = np.float32


class Net(nn.Module):
    """One of everything: state, dropout, a list of layers, a container."""

    def __init__(self):
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.blocks = [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 3)]
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(8 * 4 * 4, 16), nn.relu, nn.Linear(16, 10))

    def forward(self, p, x):
        x = nn.relu(self.bn(p["bn"], self.conv1(p["conv1"], x)))
        for i, block in enumerate(self.blocks):
            x = nn.relu(block(p["blocks"][i], x))
        x = self.drop(self.pool(x))
        return self.head(p["head"], x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def net():
    made = Net()
    return made, made.init(random.key(0)), made.init_state()


def images(n=3):
    return np.random.default_rng(1).normal(size=(n, 1, 12, 12)).astype(np.float32)


def test_network_names(net):
    _, params, state = net
    names = [name for name, _ in fgrad.tree.leaves_with_path(params)]
    assert {"conv1.weight", "bn.bias", "blocks.1.weight", "head.0.bias", "head.2.weight"} <= set(names)
    assert list(state) == ["bn"]


def test_network_state_is_handed_back(net):
    made, params, state = net
    y, after = made.apply(params, state, images(), key=random.key(3), train=True)
    assert y.shape == (3, 10)
    assert int(after["bn"]["num_batches_tracked"]) == 1
    assert int(state["bn"]["num_batches_tracked"]) == 0, "what was passed in is as it was"
    again, _ = made.apply(params, state, images(), key=random.key(3), train=True)
    other, _ = made.apply(params, state, images(), key=random.key(4), train=True)
    assert (np.asarray(again) == np.asarray(y)).all()
    assert (np.asarray(other) != np.asarray(y)).any()


def test_network_compiles_and_trains(net):
    made, params, state = net
    x, labels = images(8), np.arange(8)
    opt = nn.adam(1e-2)

    def loss(p, s, key):
        logits, s = made.apply(p, s, x, key=key, train=True)
        return nn.cross_entropy(logits, labels), s

    @fgrad.jit
    def step(p, s, o, key):
        (value, s), grads = fgrad.value_and_grad(loss, has_aux=True)(p, s, key)
        updates, o = opt.update(grads, o, p)
        return nn.apply_updates(p, updates), s, o, value

    eager = float(loss(params, state, random.key(0))[0])
    opt_state, losses = opt.init(params), []
    for i in range(40):
        params, state, opt_state, value = step(params, state, opt_state, random.fold_in(random.key(0), i))
        losses.append(float(value))
    first = float(loss(*net[1:], random.fold_in(random.key(0), 0))[0])
    assert abs(losses[0] - first) < 1e-4 * abs(first)
    assert np.mean(losses[-5:]) < 0.75 * eager, losses
    assert int(state["bn"]["num_batches_tracked"]) == 40


def test_vmap_over_examples(net):
    layer = nn.Conv2d(1, 4, 3)
    params = layer.init(random.key(0))
    each = fgrad.vmap(lambda image: layer(params, image))(images())
    np.testing.assert_allclose(np.asarray(each), np.asarray(layer(params, images())), rtol=1e-5, atol=1e-5)


def test_transforms_inside_and_outside_of_a_network(rng):
    class Block(nn.Module):
        def __init__(self, remat):
            self.remat = remat
            self.inner = nn.Sequential(nn.Linear(4, 8), nn.tanh, nn.Linear(8, 4))

        def forward(self, p, x):
            inner = fgrad.checkpoint(self.inner) if self.remat else self.inner
            return x + inner(p["inner"], x)

    x = rng.normal(size=(5, 4)).astype(np.float32)
    params = Block(False).init(random.key(0))

    def slope(net):
        return fgrad.jit(fgrad.grad(lambda p: (net(p, x) ** 2).sum()))(params)

    slopes = [slope(Block(False)), slope(Block(True))]
    for a, b in zip(*map(fgrad.tree.leaves, slopes)):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
    net = Block(False)
    whole = np.asarray(net(params, x))
    np.testing.assert_allclose(np.asarray(fgrad.jit(net)(params, x)), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(fgrad.vmap(net, in_axes=(None, 0))(params, x)), whole, rtol=1e-5, atol=1e-6
    )


def test_layer_keys_do_not_depend_on_other_layers():
    class Wide(nn.Module):
        def __init__(self, extra):
            self.extra = nn.Linear(3, 3) if extra else nn.ReLU()
            self.fc = nn.Linear(3, 3)

    with_extra, without = (Wide(extra).init(random.key(0))["fc"]["weight"] for extra in (True, False))
    assert (np.asarray(with_extra) == np.asarray(without)).all()


def test_own_parameters_and_state():
    class Scale(nn.Module):
        def init(self, key):
            return {"scale": fnp.ones((3,))}

        def init_state(self):
            return {"calls": fnp.zeros((), "int64")}

        def forward(self, p, x):
            p.set_state({"calls": p.state["calls"] + 1})
            return x * p["scale"]

    class Both(nn.Module):
        def __init__(self):
            self.first = Scale()
            self.second = Scale()

        def forward(self, p, x):
            x = self.first(p["first"], x)
            return self.second(p["second"], self.first(p["first"], x))

    both = Both()
    params, state = both.init(random.key(0)), both.init_state()
    y, state = both.apply(params, state, np.ones(3, np.float32))
    assert (np.asarray(y) == 1).all()
    assert (int(state["first"]["calls"]), int(state["second"]["calls"])) == (2, 1)


def test_sequential_by_name():
    net = nn.Sequential(fc1=nn.Linear(4, 3), act=nn.relu, fc2=nn.Linear(3, 2))
    params = net.init(random.key(0))
    assert list(params) == ["fc1", "fc2"]
    assert net(params, np.ones((5, 4), np.float32)).shape == (5, 2)
    assert len(net) == 3 and net[0] == nn.Linear(4, 3) and net["fc2"] == nn.Linear(3, 2)


def test_layers_are_values():
    assert nn.Linear(3, 4) == nn.Linear(3, 4) and hash(nn.Linear(3, 4)) == hash(nn.Linear(3, 4))
    assert nn.Linear(3, 4) != nn.Linear(3, 4, bias=False)
    with pytest.raises(Exception, match=r"cannot assign|do not change"):
        nn.Linear(3, 4).in_features = 5
    with pytest.raises(FgradTypeError, match="do not change after __init__"):
        Net().pool = nn.MaxPool2d(3)


def test_equations_carry_the_layer_path(net):
    made, params, _ = net
    graph = fgrad.make_graph(lambda p, x: made.head(p["head"], x))(params, np.ones((2, 128), np.float32))
    assert any(e.source is not None and e.source.scope == "0" for e in graph.eqns)


def test_wrong_calls(net):
    made, params, state = net
    with pytest.raises(FgradTypeError, match="the first argument must be the params"):
        made(images())
    with pytest.raises(FgradValueError, match=r"layer 'bn'.*state(.|\n)*net.apply"):
        made(params, images())
    with pytest.raises(FgradValueError, match=r"layer 'drop'.*key(.|\n)*train=True"):
        made.apply(params, state, images(), train=True)
    with pytest.raises(FgradValueError, match="layer 'conv1': there are no params 'weight'"):
        made.apply({}, state, images())
    with pytest.raises(FgradValueError, match="no entry for this layer"):
        made.apply(params, {}, images())
    with pytest.raises(FgradTypeError, match="more than one value"):
        nn.BatchNorm1d(3).apply(
            nn.BatchNorm1d(3).init(random.key(0)),
            nn.BatchNorm1d(3).init_state(),
            np.ones((1, 3), f32),
            train=True,
        )


def test_params_of_the_wrong_layer_in_forward():
    class Net(nn.Module):
        def __init__(self, choose):
            self.choose, self.blocks = choose, [nn.Linear(2, 2)]

        def forward(self, p, x):
            return self.blocks[0](*self.choose(p, x))

    for choose, text in [
        (lambda p, x: (x,), r'call layer\(p\["blocks"\]\["0"\], x\)'),
        (lambda p, x: (p, x), r'pass this layer.s part of the params: p\["blocks"\]\["0"\]'),
        (lambda p, x: (p["block"], x), r"Net: there are no params 'block'; found: blocks"),
    ]:
        net = Net(choose)
        with pytest.raises(FgradError, match=text):
            net(net.init(random.key(0)), np.ones((1, 2), "float32"))


def test_help_shows_the_arguments_of_a_layer():
    assert list(inspect.signature(nn.Conv2d).parameters)[:3] == ["in_channels", "out_channels", "kernel_size"]
    assert not inspect.signature(nn.ReLU).parameters


def test_state_cannot_leave_a_transform_inside_of_the_network():
    class Checkpointed(nn.Module):
        def __init__(self):
            self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

        def forward(self, p, x):
            return fgrad.checkpoint(self.block)(p["block"], x)

    net = Checkpointed()
    params, state, x = net.init(random.key(0)), net.init_state(), np.eye(4, dtype="float32")
    run = fgrad.jit(lambda params, state, train: net.apply(params, state, x, train=train), static_argnums=2)
    assert run(params, state, False)[0].shape == (4, 4)
    with pytest.raises(FgradTypeError, match=r"BatchNorm1d\(4\), layer 'block\.1': .* cannot leave"):
        run(params, state, True)


@pytest.mark.parametrize(
    "name, fix",
    [
        ("CrossEntropyLoss", r"nn\.cross_entropy\(pred, target\)"),
        ("AdamW", r"opt = nn\.adamw\(lr\)"),
        ("ModuleList", "list of layers"),
        ("DataLoader", r"fgrad_nn\.data"),
    ],
)
def test_names_of_pytorch_point_to_ours(name, fix):
    with pytest.raises(AttributeError, match=rf"'{name}'\n.*test_module\.py.*\n  fix: .*{fix}"):
        getattr(nn, name)
    assert not hasattr(nn, "absent")
