"""Whole training steps of fgrad against PyTorch (eager and compiled), JAX and PyTensor: same weights, same batches, losses and
gradients compared.

    python benchmarks/peers.py [--only W1,W4] [--rounds 9] [--json FILE] [--threads N] [--pytensor-python PATH]

Each library runs in a process of its own, since the idle threads of one slow the others down; the rounds are interleaved, so that
all meet the same neighbours, and every round begins with untimed steps. Times are medians over the rounds; only ratios of one run mean
anything on a shared machine. Memory is the largest resident size while steps run, less that before the workload was made.

`torch.compile` runs in two forms, the loss compiled (and the optimizer of `torch.optim`) and the whole step written with `torch.func`
and compiled; the faster counts. Needs the `bench` extra; a peer that is not installed is left out. PyTensor wants another Numba than fgrad:
install it in an environment of its own and name its interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
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

from pytensor_peer import LOSSES as PYTENSOR
from pytensor_peer import pytensor_step
from timing import save, table
from workloads import (
    WORKLOADS,
    Workload,
    fgrad_ops,
    functional_step,
    jax_ops,
    torch_step,
    torch_whole_step,
)

# name -> what to install
PEERS = {
    "pytorch eager": "torch",
    "torch.compile loss": "torch",
    "torch.compile step": "torch",
    "jax jit": "jax",
    "pytensor": "pytensor",
}
WARM_UP_SECONDS = 0.2


def make(library: str, w: Workload, threads: int) -> Any:
    """(step, gradients) of a workload in one library; ImportError if that is absent."""
    if library == "fgrad":
        return functional_step(fgrad_ops(), w)
    if library == "jax jit":
        return functional_step(jax_ops(), w)
    if library == "pytensor":
        return pytensor_step(w)
    import torch

    torch.set_num_threads(threads)
    if library == "torch.compile step":
        return torch_whole_step(w)
    return torch_step(w, compiled=library == "torch.compile loss")


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM, the most since `forget_peak`; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(n.split()[1]) * 1024 for n in lines if n.startswith(field)), 0)


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def import_package(library: str) -> None:
    """Imported before memory is counted."""
    import importlib

    importlib.import_module(PEERS.get(library, "fgrad"))


def serve(library: str, workload: str, gradients: str, threads: int) -> None:
    """The worker: writes the first gradients to a file, prints the first loss, then for each line on stdin times a round and prints
    the microseconds of a step, and the bytes that the workload holds at most."""
    w = WORKLOADS[workload]
    try:
        import_package(library)
        before = resident("VmRSS")
        once, gradient = make(library, w, threads)
    except ImportError:
        print("absent", flush=True)
        return
    np.savez(gradients, **{n: np.asarray(v) for n, v in gradient().items()})
    print(float(once()), flush=True)
    for _ in sys.stdin:
        forget_peak()
        until = time.perf_counter() + WARM_UP_SECONDS
        while time.perf_counter() < until:
            once()
        begin = time.perf_counter()
        for _ in range(w.repeats):
            once()
        took = (time.perf_counter() - begin) / w.repeats * 1e6
        print(took, resident("VmHWM") - before, flush=True)


class Worker:
    """One library on one workload, in its own process."""

    def __init__(self, library: str, workload: str, folder: str, threads: int, python: str):
        self.library = library
        self.gradients = f"{folder}/{library.replace(' ', '_')}.npz"
        command = [python, __file__, "--serve", library, workload, self.gradients, str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (kept as long as the process)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=environment
        )
        answer = self._line()
        self.present = answer != "absent"
        self.loss = float(answer) if self.present else float("nan")
        self.rounds: list[float] = []
        self.bytes = 0

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            self.errors.seek(0)
            said = [n.strip() for n in self.errors.read().splitlines() if n.strip()]
            raise RuntimeError(
                next((n for n in reversed(said) if "Error" in n), "it ended without an answer")
            )
        return line

    def round(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        took, held = self._line().split()
        self.rounds.append(float(took))
        self.bytes = max(self.bytes, int(held))

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def close(self) -> None:
        self.process.communicate()


def start(w: Workload, folder: str, threads: int, pytensor_python: str) -> list[Worker]:
    """fgrad's worker first, then those of the peers that are there. One at a time: compiling is not to disturb anybody."""
    workers = [Worker("fgrad", w.name, folder, threads, sys.executable)]
    for library, package in PEERS.items():
        if library == "pytensor" and w.name not in PYTENSOR:
            continue
        python = pytensor_python if library == "pytensor" else sys.executable
        try:
            worker = Worker(library, w.name, folder, threads, python)
        except (RuntimeError, OSError) as error:
            print(f"{library} failed on {w.name}: {error}", file=sys.stderr)
            continue
        if not worker.present:
            print(f"{package} is not installed: pip install {package}", file=sys.stderr)
            worker.close()
            continue
        workers.append(worker)
    return workers


def compare(w: Workload, rounds: int, threads: int, pytensor_python: str) -> list[dict[str, Any]]:
    """The rows of one workload: one a peer."""
    with tempfile.TemporaryDirectory() as folder:
        workers = start(w, folder, threads, pytensor_python)
        for _ in range(rounds):
            for worker in workers:
                worker.round()
        for worker in workers:
            worker.close()
        gradients = {worker.library: dict(np.load(worker.gradients)) for worker in workers}
    ours, *others = workers
    mine = gradients["fgrad"]
    rows = []
    for worker in others:
        theirs = gradients[worker.library]
        difference = max(
            float(np.abs(mine[n] - theirs[n]).max() / max(np.abs(mine[n]).max(), 1e-30)) for n in mine
        )
        rows.append(
            {
                "workload": w.name,
                "what": w.what,
                "peer": worker.library,
                "peer_us": worker.median,
                "fgrad_us": ours.median,
                "ratio": worker.median / ours.median,
                "loss": ours.loss,
                "loss_rel_diff": abs(ours.loss - worker.loss) / abs(ours.loss),
                "grad_rel_diff": difference,
                "peer_bytes": worker.bytes,
                "fgrad_bytes": ours.bytes,
            }
        )
    return rows


def with_limits(rows: list[dict[str, Any]], names: list[str], threads: int) -> list[dict[str, Any]]:
    """The rows with the time that this machine's peaks, measured now, would allow (`benchmarks/limits.py`)."""
    import limits

    peaks = limits.peaks_of(limits.measure(threads, peers=False))
    found = {r["workload"]: r for r in limits.workload_limits(names, peaks, threads)}
    keys = ("mflop", "mbytes", "limit_us")
    return [r | {k: found[r["workload"]][k] for k in keys} for r in rows]


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
    parser.add_argument(
        "--pytensor-python", metavar="PATH", default=sys.executable, help="an interpreter that has PyTensor"
    )
    options = parser.parse_args()
    chosen = [n.strip() for n in options.only.split(",") if n.strip()] or list(WORKLOADS)
    unknown = [n for n in chosen if n not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workloads {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")

    rows: list[dict[str, Any]] = []
    for name in chosen:
        rows += (found := compare(WORKLOADS[name], options.rounds, options.threads, options.pytensor_python))
        for r in found:
            print(
                f"{name} {r['peer']:18} {r['peer_us']:10.1f} us   fgrad {r['fgrad_us']:10.1f} us   {r['ratio']:6.2f} x"
                f"   loss {r['loss_rel_diff']:.1e}   gradient {r['grad_rel_diff']:.1e}",
                flush=True,
            )
    if options.json:
        rows = with_limits(rows, chosen, options.threads)
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
