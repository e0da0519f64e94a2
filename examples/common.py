"""What the examples share and what has nothing to do with learning: the command line, progress bars, saving."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any

import numpy as np
from tqdm import tqdm

import fgrad_nn as nn
from fgrad import tree


def command_line(doc: str, *, epochs: int, name: str) -> argparse.ArgumentParser:
    """The options that every example has. `doc` begins with one line on what it does; `name` names its weights."""
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    save = pathlib.Path("runs", f"{name}.safetensors")
    parser.add_argument("--epochs", type=positive, default=epochs, help="passes over the training set")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal runs")
    parser.add_argument("--device", type=cpu, default="cpu", help="where to compute; so far only the cpu")
    parser.add_argument(
        "--data-dir",
        default=argparse.SUPPRESS,
        help="where the data are, or are downloaded to (default: $FGRAD_DATA_DIR, else ~/.cache/fgrad)",
    )
    parser.add_argument(
        "--save", type=pathlib.Path, default=save, metavar="FILE", help="where the weights go"
    )
    parser.add_argument("--limit", type=positive, help="so many batches an epoch, for a quick try")
    parser.set_defaults(data_dir=None)
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def cpu(text: str) -> str:
    if text != "cpu":
        raise argparse.ArgumentTypeError(
            f"{text!r} is not available: fgrad computes on the CPU only; use cpu"
        )
    return text


def progress(loader: Any, label: str, limit: int | None = None, epochs: int = 1) -> Any:
    """The batches of a loader (of each epoch the first `limit`), with a progress bar."""
    total = len(loader) if limit is None else min(limit, len(loader))
    batches = chain.from_iterable(islice(loader, total) for _ in range(epochs))
    return tqdm(batches, label, total * epochs, unit=" batches", dynamic_ncols=True)


def predictions(
    predict: Callable[..., Any], params: Any, batches: Iterable[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The predicted and the true classes of all examples; `predict(params, x)` gives those of one batch."""
    pairs = [(np.asarray(predict(params, x)), np.asarray(y)) for x, y in batches]
    predicted, true = zip(*pairs, strict=True)
    return np.concatenate(predicted), np.concatenate(true)


def saved_and_loaded(path: pathlib.Path, params: Any) -> Any:
    """`params` as they come back from the file: what is evaluated is what was saved."""
    nn.save(path, params)
    print(f"saved {sum(leaf.size for leaf in tree.leaves(params)):,} parameters to {path}")
    return nn.load_into(path, like=params)
