"""Whole training steps of fgrad against PyTorch eager and JAX jit: same weights, same batches, losses and gradients compared.

    python benchmarks/peers.py [--only W1,W4] [--rounds 9] [--json FILE] [--threads N]

Each library runs in a process of its own, since the idle threads of one slow the others down; the rounds are interleaved, so that
all meet the same neighbours, and every round begins with untimed steps. Times are medians over the rounds; only ratios of one run mean
anything on a shared machine. Needs the `bench` extra; a peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timing import save, table
from workloads import WORKLOADS, Workload, fgrad_ops, functional_step, jax_ops, torch_step

PEERS = {"pytorch eager": "torch", "jax jit": "jax"}  # name -> the package that it needs
WARM_UP_SECONDS = 0.2


def serve(library: str, workload: str, gradients: str, threads: int) -> None:
    """The worker: prints the first loss, writes the first gradients to a file, then times a round for each line on stdin."""
    w = WORKLOADS[workload]
    try:
        if library == "pytorch eager":
            import torch

            torch.set_num_threads(threads)
            once, gradient = torch_step(w)
        else:
            once, gradient = functional_step(fgrad_ops() if library == "fgrad" else jax_ops(), w)
    except ImportError:
        print("absent", flush=True)
        return
    np.savez(gradients, **{n: np.asarray(v) for n, v in gradient().items()})
    print(float(once()), flush=True)
    for _ in sys.stdin:
        until = time.perf_counter() + WARM_UP_SECONDS
        while time.perf_counter() < until:
            once()
        begin = time.perf_counter()
        for _ in range(w.repeats):
            once()
        print((time.perf_counter() - begin) / w.repeats * 1e6, flush=True)


class Worker:
    """One library on one workload, in its own process."""

    def __init__(self, library: str, workload: str, folder: str, threads: int):
        self.gradients = f"{folder}/{library.split()[0]}.npz"
        command = [sys.executable, __file__, "--serve", library, workload, self.gradients, str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        answer = self._line()
        self.present = answer != "absent"
        self.loss = float(answer) if self.present else float("nan")
        self.rounds: list[float] = []

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args)} ended without an answer")  # type: ignore[arg-type]
        return line

    def round(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rounds.append(float(self._line()))

    def close(self) -> None:
        self.process.communicate()


def compare(w: Workload, rounds: int, threads: int) -> list[dict[str, Any]]:
    """The rows of one workload: one a peer."""
    with tempfile.TemporaryDirectory() as folder:
        workers = {k: Worker(k, w.name, folder, threads) for k in ("fgrad", *PEERS)}
        for k, package in PEERS.items():
            if not workers[k].present:
                print(f"{package} is not installed: pip install 'fgrad[bench]'", file=sys.stderr)
        present = {k: worker for k, worker in workers.items() if worker.present}
        for _ in range(rounds):
            for worker in present.values():
                worker.round()
        for worker in workers.values():
            worker.close()
        gradients = {k: dict(np.load(worker.gradients)) for k, worker in present.items()}
    ours, mine = present["fgrad"], gradients["fgrad"]
    fgrad_us = statistics.median(ours.rounds)
    rows = []
    for peer, worker in present.items():
        if peer == "fgrad":
            continue
        peer_us = statistics.median(worker.rounds)
        difference = max(
            float(np.abs(mine[n] - gradients[peer][n]).max() / max(np.abs(mine[n]).max(), 1e-30))
            for n in mine
        )
        rows.append(
            {
                "workload": w.name,
                "what": w.what,
                "peer": peer,
                "peer_us": peer_us,
                "fgrad_us": fgrad_us,
                "ratio": peer_us / fgrad_us,
                "loss_rel_diff": abs(ours.loss - worker.loss) / abs(ours.loss),
                "grad_rel_diff": difference,
            }
        )
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        library, workload, gradients, threads = sys.argv[2:]
        serve(library, workload, gradients, int(threads))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="workloads, comma separated (default: all)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="threads for everyone (default: all cores)"
    )
    options = parser.parse_args()
    chosen = [n.strip() for n in options.only.split(",") if n.strip()] or list(WORKLOADS)
    unknown = [n for n in chosen if n not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workloads {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")

    rows: list[dict[str, Any]] = []
    for name in chosen:
        rows += (found := compare(WORKLOADS[name], options.rounds, options.threads))
        for r in found:
            print(
                f"{name} {r['peer']:14} {r['peer_us']:10.1f} us   fgrad {r['fgrad_us']:10.1f} us   {r['ratio']:6.2f} x"
                f"   loss {r['loss_rel_diff']:.1e}   gradient {r['grad_rel_diff']:.1e}",
                flush=True,
            )
    headings = {
        "workload": "",
        "what": "one step of",
        "peer": "peer",
        "peer_us": "peer µs",
        "fgrad_us": "fgrad µs",
        "ratio": "ratio",
        "loss_rel_diff": "loss, rel. difference",
    }
    print("\n" + table(rows, headings))
    save(options.json, rows)


if __name__ == "__main__":
    main()
