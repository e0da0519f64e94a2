"""The profile of one training step of the MNIST net (W3): each kernel's time, share of the machine's peaks, layer and line.

python benchmarks/profile_w3.py [--json FILE] [--batch 64] [--repeat 50] [--all]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timing import machine

import fgrad
import fgrad_nn as nn
from fgrad.runtime.peaks import peaks

net = nn.Sequential(
    nn.Conv2d(1, 32, 3),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(1600, 128),
    nn.ReLU(),
    nn.Linear(128, 10),
)
optimizer = nn.adam(1e-3)


def loss(params: Any, x: Any, y: Any) -> Any:
    return nn.cross_entropy(net(params, x), y)


@fgrad.jit(donate=(0, 1))
def step(params: Any, state: Any, x: Any, y: Any) -> Any:
    value, grads = fgrad.value_and_grad(loss)(params, x, y)
    updates, state = optimizer.update(grads, state, params)
    return nn.apply_updates(params, updates), state, value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--all", action="store_true", help="a row for every kernel, however short")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    params = net.init(fgrad.random.key(0))
    x = rng.normal(size=(options.batch, 1, 28, 28)).astype(np.float32)
    y = rng.integers(0, 10, size=options.batch)
    peaks(refresh=True)
    found = fgrad.profile(step, repeat=options.repeat, budget=5.0)(params, optimizer.init(params), x, y)
    print(found.text(lowest=0.0 if options.all else None))
    if options.json:
        text = found.text(lowest=0.01, rich=False)
        everything = {"machine": machine(), "text": text, "profile": found.to_dict()}
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(everything, indent=1).replace(
            f"{Path(__file__).resolve().parents[1]}/", ""
        )  # not where it was run
        Path(options.json).write_text(text + "\n")
        print(f"written to {options.json}")


if __name__ == "__main__":
    main()
