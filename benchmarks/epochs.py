"""Whole epochs on real data, end to end: the example scripts against the same training in PyTorch with its own DataLoader.

    FGRAD_DATA_DIR=DIR python benchmarks/epochs.py [--only mnist,cifar10_64] [--epochs N] [--json FILE]

Both sides start from the same weights and see the examples in the same order (augmentation draws its own numbers on each side). An
epoch is reading, normalising and every step, with the loss read after each; evaluating the test set is timed apart, and compiling is
outside (a first epoch costs it once). Each library runs in a process of its own, one after the other.

PyTorch gets what makes it fastest: images normalised once, before the clock starts, fused optimizers, and that one of three ways of
loading which a trial finds fastest: in the process, by two worker processes, or whole batches by a `BatchSampler`. fgrad reads the
bytes of the data set and normalises them in every batch. Needs the `bench` and `examples` extras.
"""

from __future__ import annotations

# ruff: noqa: E402  (the examples are imported from their folder)
import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

import numpy as np
from timing import save, table

TRIAL_SECONDS = 1.5


@dataclass(frozen=True)
class Case:
    what: str
    example: str
    data: str
    batch: int
    epochs: int
    norm: tuple[float, float] | None = None
    augment: bool = False


CASES = {
    "mnist": Case("MNIST CNN, Adam", "mnist", "MNIST", 64, 1, (0.1307, 0.3081)),
    "fashion_mnist": Case("FashionMNIST MLP, SGD", "fashion_mnist", "FashionMNIST", 64, 3),
    "cifar10": Case("CIFAR-10 LeNet, SGD momentum", "cifar10", "CIFAR10", 4, 1, (0.5, 0.5)),
    "cifar10_64": Case("CIFAR-10 LeNet, SGD momentum", "cifar10", "CIFAR10", 64, 3, (0.5, 0.5)),
    "cifar10_augmented": Case(
        "the same, cropped and mirrored at random", "cifar10", "CIFAR10", 64, 1, (0.5, 0.5), augment=True
    ),
}


# ------------------------------------------------------------------------------------------------ fgrad


def fgrad_epochs(case: Case, epochs: int, limit: int | None, start: Path) -> dict[str, Any]:
    import fgrad
    from fgrad import random, tree
    from fgrad_nn import data
    from fgrad_nn.data import Compose, DataLoader, Normalize, RandomCrop, RandomHorizontalFlip, ToFloat

    example = importlib.import_module(case.example)
    scale = [ToFloat(), *([Normalize(*case.norm)] if case.norm else [])]
    moves = [RandomCrop(32, padding=4), RandomHorizontalFlip()] if case.augment else []
    init_key, data_key = random.split(random.key(0))
    of = getattr(data, case.data)
    train = DataLoader(of(), case.batch, shuffle=True, key=data_key, transform=Compose([*moves, *scale]))
    params = example.net.init(init_key)
    state = example.optimizer.init(params)
    weights = {f"w{i}": np.asarray(x) for i, x in enumerate(tree.leaves(params))}
    np.savez(start, **weights, orders=np.stack([train.order(e) for e in range(epochs)]))

    *_, last = train.batches(0)
    for x, y in (next(train.batches(0)), last):  # the last batch has fewer examples: a program of its own
        copies = tree.map(lambda a: fgrad.numpy.array(a), (params, state))
        example.step(*copies, x, y)

    seconds, losses = [], []
    for _ in range(epochs):
        begin, total = time.perf_counter(), 0.0
        for x, y in islice(train, limit):
            params, state, loss = example.step(params, state, x, y)
            total += float(loss)
        seconds.append(time.perf_counter() - begin)
        losses.append(total / (limit or len(train)))
    test = DataLoader(of(train=False), 1000, transform=Compose(scale))
    example.predict(params, next(test.batches(0))[0])  # compile
    begin = time.perf_counter()
    right = [np.asarray(example.predict(params, x)) == np.asarray(y) for x, y in test]
    return {
        "s": float(np.median(seconds)),
        "eval_s": time.perf_counter() - begin,
        "accuracy": 100 * float(np.concatenate(right).mean()),
        "loss": losses[-1],
    }


# ------------------------------------------------------------------------------------------------ PyTorch


def torch_net(nn: Any, name: str) -> Any:
    if name == "fashion_mnist":
        hidden = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(512, 10))

    def block(*shape: int) -> list[Any]:
        return [nn.Conv2d(*shape), nn.ReLU(), nn.MaxPool2d(2)]

    if name == "mnist":
        dense = [nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10)]
        return nn.Sequential(*block(1, 32, 3), *block(32, 64, 3), *dense)
    dense = [nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*block(3, 6, 5), *block(6, 16, 5), *dense)


def torch_optimizer(torch: Any, name: str, parameters: Any) -> Any:
    if name == "mnist":
        return torch.optim.Adam(parameters, lr=1e-3, fused=True)
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9 if name == "cifar10" else 0.0, fused=True)


class Augmented:
    """A data set as PyTorch's tutorials write one: each image cropped and mirrored when it is asked for."""

    def __init__(self, torch: Any, images: Any, labels: Any):
        self.torch, self.images, self.labels = torch, images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        torch = self.torch
        row, column, mirrored = torch.randint(0, 18, (3,)).tolist()
        row, column, mirrored = row % 9, column % 9, mirrored % 2
        x = torch.nn.functional.pad(self.images[i], (4, 4, 4, 4))
        x = x[:, row : row + 32, column : column + 32]
        return (x.flip(-1) if mirrored else x), self.labels[i]


def torch_loaders(torch: Any, dataset: Any, case: Case, order: list[int]) -> dict[str, Callable[[], Any]]:
    """The ways of loading an epoch in a given order."""
    tools = torch.utils.data
    found = {
        "in the process": lambda: tools.DataLoader(dataset, case.batch, sampler=order),
        "2 workers": lambda: tools.DataLoader(dataset, case.batch, sampler=order, num_workers=2),
    }
    if not case.augment:
        batches = tools.BatchSampler(order, case.batch, False)
        found["whole batches"] = lambda: tools.DataLoader(dataset, sampler=batches, batch_size=None)
    return found


def torch_epochs(case: Case, epochs: int, limit: int | None, start: Path) -> dict[str, Any]:
    import torch

    from fgrad_nn import data

    held = np.load(start)
    mean, deviation = case.norm or (0.0, 1.0)

    def tensors(train: bool) -> tuple[Any, Any]:
        found = getattr(data, case.data)(train=train)
        images = (torch.from_numpy(np.asarray(found.images)).float() / 255 - mean) / deviation
        return images, torch.from_numpy(np.asarray(found.labels))

    def fresh() -> tuple[Any, Any]:
        net = torch_net(torch.nn, case.example)
        with torch.no_grad():
            for i, p in enumerate(net.parameters()):
                # Dicts flatten in sorted order, so each layer gives (bias, weight); PyTorch's gives (weight, bias).
                p.copy_(torch.from_numpy(held[f"w{i ^ 1}"]))
        return net, torch_optimizer(torch, case.example, net.parameters())

    def steps(net: Any, optimizer: Any, batches: Any) -> Iterator[float]:
        for x, y in batches:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            yield loss.item()

    torch.manual_seed(0)
    dataset = (
        Augmented(torch, *tensors(True)) if case.augment else torch.utils.data.TensorDataset(*tensors(True))
    )
    orders = held["orders"].tolist()
    speed = {}
    for name, loader in torch_loaders(torch, dataset, case, orders[0]).items():
        training = steps(*fresh(), loader())
        next(training)
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < TRIAL_SECONDS and next(training, None) is not None:
            count += 1
        speed[name] = count / (time.perf_counter() - begin)
        training.close()
    best = max(speed, key=speed.__getitem__)

    net, optimizer = fresh()
    seconds, losses = [], []
    for order in orders:
        begin, total = time.perf_counter(), 0.0
        loader = torch_loaders(torch, dataset, case, order)[best]()
        for loss in islice(steps(net, optimizer, loader), limit):
            total += loss
        seconds.append(time.perf_counter() - begin)
        losses.append(total / (limit or len(loader)))
    test = torch.utils.data.TensorDataset(*tensors(False))
    begin, right = time.perf_counter(), 0
    with torch.inference_mode():
        thousands = torch.utils.data.BatchSampler(range(len(test)), 1000, False)
        for x, y in torch.utils.data.DataLoader(test, sampler=thousands, batch_size=None):
            right += int((net(x).argmax(1) == y).sum())
    return {
        "s": float(np.median(seconds)),
        "eval_s": time.perf_counter() - begin,
        "accuracy": right / 100,
        "loss": losses[-1],
        "loading": best,
    }


# ------------------------------------------------------------------------------------------------ both


def in_own_process(library: str, name: str, epochs: int, limit: int | None, start: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--serve", library, name, str(epochs), str(limit or 0), str(start)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def serve(library: str, name: str, epochs: str, limit: str, start: str) -> None:
    run = fgrad_epochs if library == "fgrad" else torch_epochs
    print(json.dumps(run(CASES[name], int(epochs), int(limit) or None, Path(start))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CASES), help="workloads, comma separated (default: all)")
    parser.add_argument("--epochs", type=int, help="epochs of each (default: 1 to 3)")
    parser.add_argument("--limit", type=int, help="only so many batches an epoch, to try the script")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(*options.serve)
    rows = []
    for name in options.only.split(","):
        case = CASES[name]
        epochs = options.epochs or case.epochs
        with tempfile.TemporaryDirectory() as folder:
            start = Path(folder, "start.npz")
            ours, theirs = (
                in_own_process(lib, name, epochs, options.limit, start) for lib in ("fgrad", "torch")
            )
        row: dict[str, Any] = {"workload": name, "what": f"{case.what}, batch {case.batch}", "epochs": epochs}
        row |= {"ratio": theirs["s"] / ours["s"], "eval_ratio": theirs["eval_s"] / ours["eval_s"]}
        row |= {f"fgrad_{key}": value for key, value in ours.items()}
        row |= {f"pytorch_{key}": value for key, value in theirs.items()}
        rows.append(row)
        print(row, flush=True)
    headings = {
        "workload": "",
        "what": "an epoch of",
        "epochs": "epochs",
        "fgrad_s": "fgrad s",
        "pytorch_s": "PyTorch s",
        "ratio": "ratio",
        "pytorch_loading": "PyTorch loads",
        "fgrad_eval_s": "fgrad test s",
        "pytorch_eval_s": "PyTorch test s",
        "fgrad_loss": "fgrad loss",
        "pytorch_loss": "PyTorch loss",
        "fgrad_accuracy": "fgrad accuracy %",
        "pytorch_accuracy": "PyTorch accuracy %",
    }
    print("\n" + table(rows, headings))
    save(options.json, rows)
    return None


if __name__ == "__main__":
    main()
