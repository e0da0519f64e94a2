"""Microseconds that calling a compiled function takes, by the number of arrays that go in and come out; fgrad against `jax.jit`.

    python benchmarks/overhead.py [--leaves 1,5,40,200] [--rounds 9] [--json FILE]

The function adds one to every array of a dict of `float32[4]`, so its own work is next to nothing. Without donation it is called with the same
arrays each time; with donation each call takes the results of the one before. "numpy" passes NumPy arrays, as a batch of data comes.
Each library runs in a process of its own, in interleaved rounds; a figure is the median over the rounds of the fastest
of many batches of calls, each batch waiting for its last result. JAX is left out if it is not installed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timing import save, table

LIBRARIES = ("fgrad", "jax")
KINDS = ("plain", "donated", "numpy")
BATCHES = 40
BATCH_SECONDS = 0.002


def add_one(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf + 1.0 for name, leaf in tree.items()}


def caller(library: str, kind: str, leaves: int) -> Callable[[int], Any]:
    """A function that makes `n` calls and waits for the last."""
    if library == "fgrad":
        import fgrad as lib
        from fgrad.numpy import asarray

        jit = lib.jit(add_one, donate=0) if kind == "donated" else lib.jit(add_one)
        wait = lib.block_until_ready
    else:
        import jax as lib
        from jax.numpy import asarray

        jit = lib.jit(add_one, donate_argnums=0) if kind == "donated" else lib.jit(add_one)
        wait = lib.block_until_ready
    tree: Any = {f"layer{i}.weight": np.full(4, i, np.float32) for i in range(leaves)}
    if kind != "numpy":
        tree = {name: asarray(leaf) for name, leaf in tree.items()}

    def same(n: int) -> None:
        out = None
        for _ in range(n):
            out = jit(tree)
        wait(out)

    def chained(n: int) -> None:
        nonlocal tree
        for _ in range(n):
            tree = jit(tree)
        wait(tree)

    return chained if kind == "donated" else same


def measure(calls: Callable[[int], Any]) -> float:
    """Microseconds a call: the fastest of many batches."""
    calls(10)
    n = 10
    while True:
        begin = time.perf_counter()
        calls(n)
        spent = time.perf_counter() - begin
        if spent >= BATCH_SECONDS:
            break
        n *= 2
    best = spent
    for _ in range(BATCHES):
        begin = time.perf_counter()
        calls(n)
        best = min(best, time.perf_counter() - begin)
    return best / n * 1e6


def serve(library: str) -> None:
    """The worker: for each line `kind leaves` on stdin it prints a measurement."""
    try:
        __import__(library)
    except ImportError:
        print("absent", flush=True)
        return
    print("ready", flush=True)
    made: dict[str, Callable[[int], Any]] = {}
    for line in sys.stdin:
        kind, leaves = line.split()
        if line not in made:
            made[line] = caller(library, kind, int(leaves))
        print(measure(made[line]), flush=True)


class Worker:
    """A library in its own process."""

    def __init__(self, library: str):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.present = self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} ended without an answer")  # type: ignore[arg-type]
        return line

    def ask(self, kind: str, leaves: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {leaves}\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leaves", default="1,5,40,200", help="numbers of arrays, comma separated")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    workers = {name: Worker(name) for name in LIBRARIES}
    present = {name: w for name, w in workers.items() if w.present}
    for name in workers.keys() - present.keys():
        print(f"{name} is not installed: pip install 'fgrad[bench]'", file=sys.stderr)
    rows = []
    for leaves in map(int, options.leaves.split(",")):
        for kind in KINDS:
            rounds: dict[str, list[float]] = {name: [] for name in present}
            for _ in range(options.rounds):
                for name, worker in present.items():
                    rounds[name].append(worker.ask(kind, leaves))
            found = {f"{name}_us": statistics.median(times) for name, times in rounds.items()}
            row: dict[str, Any] = {"leaves": leaves, "kind": kind, **found}
            if "jax_us" in found:
                row["ratio"] = found["jax_us"] / found["fgrad_us"]
            rows.append(row)
    for worker in workers.values():
        worker.close()
    headings = {"leaves": "arrays in and out", "kind": "", "fgrad_us": "fgrad µs", "jax_us": "jax.jit µs"}
    print(table(rows, headings | {"ratio": "ratio"}))
    save(options.json, rows)


if __name__ == "__main__":
    main()
