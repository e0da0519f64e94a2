"""Whole epochs on real data, end to end: the example scripts against the same training in PyTorch with its own DataLoader.

    FGRAD_DATA_DIR=DIR python benchmarks/epochs.py [--only mnist,cifar10] [--json FILE]

Needs the `bench` and `examples` extras. Both sides start from the same weights; each shuffles in its own way. An epoch
includes reading batches, normalising them and every step; compiling is outside (a first epoch costs it once).
"""

from __future__ import annotations

# ruff: noqa: E402  (the examples are imported from their folder)
import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

import numpy as np
from timing import save, table

import fgrad
from fgrad import random, tree
from fgrad_nn.data import CIFAR10, MNIST, Compose, DataLoader, FashionMNIST, Normalize, ToFloat

# example: data set, batch, (mean, deviation) or None, PyTorch's optimizer
EPOCHS: dict[str, Any] = {
    "mnist": (MNIST, 64, (0.1307, 0.3081), lambda torch, p: torch.optim.Adam(p, lr=1e-3)),
    "fashion_mnist": (FashionMNIST, 64, None, lambda torch, p: torch.optim.SGD(p, lr=1e-3)),
    "cifar10": (CIFAR10, 4, (0.5, 0.5), lambda torch, p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)),
}


def torch_net(torch: Any, name: str) -> Any:
    nn = torch.nn
    if name == "fashion_mnist":
        layers = [
            nn.Flatten(),
            nn.Linear(784, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        ]
    elif name == "mnist":
        layers = [
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        layers += [nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10)]
    else:
        layers = [
            nn.Conv2d(3, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        layers += [
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        ]
    return nn.Sequential(*layers)


def fgrad_epochs(name: str, epochs: int) -> tuple[list[float], float, Any]:
    """Seconds of each epoch, test accuracy, and the first weights in order."""
    example = importlib.import_module(name)
    data, batch, norm, _ = EPOCHS[name]
    prepare = Compose([ToFloat(), Normalize(*norm)]) if norm else ToFloat()
    init_key, data_key = random.split(random.key(0))
    train = DataLoader(data(), batch, shuffle=True, key=data_key, transform=prepare)
    params = example.net.init(init_key)
    first = [np.asarray(x).copy() for x in tree.leaves(params)]
    state = example.optimizer.init(params)
    x, y = next(train.batches(0))
    copies = tree.map(lambda a: fgrad.numpy.array(a), (params, state))
    example.step(*copies, x, y)  # compile
    seconds = []
    for _ in range(epochs):
        begin = time.perf_counter()
        for x, y in train:
            params, state, _ = example.step(params, state, x, y)
        seconds.append(time.perf_counter() - begin)
    test = DataLoader(data(train=False), 1000, transform=prepare)
    right = [np.asarray(example.predict(params, x)) == np.asarray(y) for x, y in test]
    return seconds, float(np.concatenate(right).mean()), first


def torch_epochs(torch: Any, name: str, epochs: int, first: list[np.ndarray]) -> tuple[list[float], float]:
    data, batch, norm, make = EPOCHS[name]
    mean, deviation = norm or (0.0, 1.0)

    def tensors(train: bool) -> Any:
        found = data(train=train)
        images = (torch.from_numpy(np.asarray(found.images)).float() / 255 - mean) / deviation
        return torch.utils.data.TensorDataset(images, torch.from_numpy(np.asarray(found.labels)))

    net = torch_net(torch, name)
    # Dicts flatten in sorted order, so each layer gives (bias, weight); PyTorch's gives (weight, bias).
    order = [first[i ^ 1] for i in range(len(first))]
    with torch.no_grad():
        for p, value in zip(net.parameters(), order, strict=True):
            p.copy_(torch.from_numpy(value))
    optimizer = make(torch, net.parameters())
    torch.manual_seed(0)
    train = torch.utils.data.DataLoader(tensors(True), batch_size=batch, shuffle=True)
    seconds = []
    for _ in range(epochs):
        begin = time.perf_counter()
        for x, y in train:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - begin)
    right = 0
    with torch.no_grad():
        for x, y in torch.utils.data.DataLoader(tensors(False), batch_size=1000):
            right += int((net(x).argmax(1) == y).sum())
    return seconds, right / 10_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="mnist,fashion_mnist,cifar10", help="examples, comma separated")
    parser.add_argument("--epochs", type=int, help="epochs of each (default: 2, and 5 for fashion_mnist)")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    import torch

    rows = []
    for name in options.only.split(","):
        epochs = options.epochs or (5 if name == "fashion_mnist" else 2)
        ours, accuracy, first = fgrad_epochs(name, epochs)
        theirs, torch_accuracy = torch_epochs(torch, name, epochs, first)
        a, b = float(np.median(ours)), float(np.median(theirs))
        rows.append(
            {
                "workload": name,
                "epochs": epochs,
                "fgrad_s": a,
                "pytorch_s": b,
                "ratio": b / a,
                "fgrad_accuracy": 100 * accuracy,
                "pytorch_accuracy": 100 * torch_accuracy,
            }
        )
        print(rows[-1], flush=True)
    headings = {
        "workload": "example",
        "epochs": "epochs",
        "fgrad_s": "fgrad, s an epoch",
        "pytorch_s": "PyTorch, s an epoch",
        "ratio": "ratio",
        "fgrad_accuracy": "fgrad accuracy %",
        "pytorch_accuracy": "PyTorch accuracy %",
    }
    print("\n" + table(rows, headings))
    save(options.json, rows)


if __name__ == "__main__":
    main()
