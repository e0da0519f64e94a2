"""What the examples share and what has nothing to do with learning: the command line, progress bars, saving."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any

import numpy as np
from tqdm import tqdm

import fgrad
import fgrad_nn as nn
from fgrad import tree


def command_line(doc: str, *, epochs: int, name: str, batch: int) -> argparse.ArgumentParser:
    """The options that every example has. `doc` begins with one line on what it does; `name` names its weights."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    option = parser.add_argument
    option(
        "--epochs", type=positive, default=epochs, help="passes over the training set (default: %(default)s)"
    )
    option("--seed", type=int, default=0, help="equal seeds give equal runs (default: %(default)s)")
    option("--device", type=device, default="cpu", help="where to compute: cpu (the default) or cuda")
    option(
        "--batch-size",
        type=positive,
        metavar="N",
        help=f"examples a step, and a step of the test (default: {batch} and 1000)",
    )
    option(
        "--data-dir",
        help="where data are, or are downloaded to (default: $FGRAD_DATA_DIR, else ~/.cache/fgrad)",
    )
    option(
        "--save",
        type=pathlib.Path,
        default=pathlib.Path("runs", f"{name}.safetensors"),
        metavar="FILE",
        help="where the trained weights go (default: %(default)s)",
    )
    option("--limit", type=positive, metavar="N", help="only N batches an epoch, for a quick try")
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def device(text: str) -> str:
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: use cpu or cuda")
    try:
        fgrad.device_put(0.0, text)  # starts it
    except (ImportError, fgrad.FgradError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not available here: {error}") from None
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
    pairs = [[np.asarray(z) for z in fgrad.device_get((predict(params, x), y))] for x, y in batches]
    predicted, true = zip(*pairs, strict=True)
    return np.concatenate(predicted), np.concatenate(true)


def saved_and_loaded(path: pathlib.Path, params: Any, device: str) -> Any:
    """`params` as they come back from the file: what is evaluated is what was saved."""
    params = fgrad.device_get(params)
    nn.save(path, params)
    print(f"saved {sum(leaf.size for leaf in tree.leaves(params)):,} parameters to {path}")
    return fgrad.device_put(nn.load_into(path, like=params), device)
