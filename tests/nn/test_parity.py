"""Training steps of the examples against PyTorch: from the same weights, on the same batches, the same losses."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import random, tree
from fgrad_nn.data import DataLoader, FashionMNIST, ToFloat

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
STEPS = 200


@pytest.fixture(autouse=True)
def one_thread(torch):
    """More gain nothing at these sizes, and on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def example(monkeypatch):
    """Imports a script of examples/."""

    def load(name):
        monkeypatch.syspath_prepend(EXAMPLES)
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("common", None)


def params_of(module):
    """The weights of a PyTorch module as fgrad_nn keeps them: the same names, nested."""
    params = {}
    for name, value in module.state_dict().items():
        *folders, last = name.split(".")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = fnp.array(value.numpy().copy())
    return params


def batches(rng, size, shape):
    """Pictures of ten coarse patterns in noise, a fifth of them mislabelled: the loss falls, but not to nothing."""
    channels, height, width = shape
    patterns = rng.standard_normal((10, channels, height // 4, width // 4)).repeat(4, 2).repeat(4, 3)
    for _ in range(STEPS):
        y = rng.integers(0, 10, size)
        x = patterns[y] + rng.standard_normal((size, *shape))
        yield x.astype(np.float32), np.where(rng.random(size) < 0.2, rng.integers(0, 10, size), y)


def lenet(nn):
    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.pool = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2)
            self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

        def forward(self, x):
            x = self.pool(self.conv2(self.pool(self.conv1(x).relu())).relu())
            return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())

    return LeNet()


def mnist_net(nn):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.pool = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3), nn.MaxPool2d(2)
            self.fc1, self.fc2 = nn.Linear(1600, 128), nn.Linear(128, 10)

        def forward(self, x):
            x = self.pool(self.conv2(self.pool(self.conv1(x).relu())).relu())
            return self.fc2(self.fc1(x.flatten(1)).relu())

    return Net()


@pytest.mark.parametrize(
    "name, build, optimizer, size, shape",
    [
        ("cifar10", lenet, lambda optim, p: optim.SGD(p, 1e-3, momentum=0.9), 4, (3, 32, 32)),
        ("mnist", mnist_net, lambda optim, p: optim.Adam(p, 1e-3), 64, (1, 28, 28)),
    ],
    ids=["W1", "W3"],
)
def test_200_steps_as_in_pytorch(example, torch, rng, name, build, optimizer, size, shape):
    script = example(name)
    torch.manual_seed(0)
    theirs = build(torch.nn)
    params = params_of(theirs)
    opt_state = script.optimizer.init(params)
    update = optimizer(torch.optim, theirs.parameters())
    gradients = fgrad.jit(fgrad.grad(script.loss_of))
    losses = []
    for i, (x, y) in enumerate(batches(rng, size, shape)):
        update.zero_grad()
        expected = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(y))
        expected.backward()
        if i == 0:
            ours = dict(tree.leaves_with_path(gradients(params, x, y)))
            assert ours.keys() == dict(theirs.named_parameters()).keys()
            for label, p in theirs.named_parameters():
                scale = p.grad.abs().max().item()
                np.testing.assert_allclose(ours[label], p.grad, atol=1e-5 * scale, rtol=1e-5, err_msg=label)
        update.step()
        params, opt_state, loss = script.step(params, opt_state, x, y)
        losses.append((float(loss), expected.item()))
    ours, pytorchs = np.array(losses).T
    difference = abs(ours - pytorchs) / pytorchs
    assert difference[:10].max() <= 1e-4
    # Rounding grows from step to step, the more the longer a network trains.
    assert difference[-20:].mean() <= 2e-2


@pytest.mark.slow
def test_fashion_mnist_to_pytorchs_accuracy(example, torch, data_dir):
    """Five epochs of the quick start from the same weights, in the same order: the same share of the test images."""
    script = example("fashion_mnist")
    nn = torch.nn
    torch.manual_seed(0)
    linears = nn.Linear(784, 512), nn.Linear(512, 512), nn.Linear(512, 10)
    theirs = nn.Sequential(nn.Flatten(), linears[0], nn.ReLU(), linears[1], nn.ReLU(), linears[2])
    params = params_of(theirs)
    opt_state = script.optimizer.init(params)
    update = torch.optim.SGD(theirs.parameters(), 1e-3)
    train = DataLoader(FashionMNIST(data_dir), 64, shuffle=True, key=random.key(0), transform=ToFloat())
    for _ in range(5):
        for x, y in train:
            params, opt_state, _ = script.step(params, opt_state, x, y)
            update.zero_grad()
            there = [torch.from_numpy(np.array(part)) for part in (x, y)]
            nn.functional.cross_entropy(theirs(there[0]), there[1]).backward()
            update.step()
    test = FashionMNIST(data_dir, train=False)
    ((x, y),) = DataLoader(test, len(test), transform=ToFloat())
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.array(x))).argmax(1).numpy()
    accuracies = [
        100 * (guess == test.labels).mean() for guess in (np.asarray(script.predict(params, x)), expected)
    ]
    assert abs(accuracies[0] - accuracies[1]) <= 1.5, accuracies
    assert accuracies[0] >= 60
