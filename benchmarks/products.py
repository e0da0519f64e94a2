"""Square float32 products as users call them: fgrad's `jit` against NumPy (OpenBLAS) and PyTorch, on one thread and on all.

    python benchmarks/products.py [--sizes 64,512] [--rounds 5] [--json FILE]

Each library runs in a process of its own for each number of threads; rounds are interleaved, each is the best of several bursts by wall time,
and the median over the rounds counts. Calling is included, which matters for small sizes.
"""

from __future__ import annotations

import argparse
import os
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

SIZES = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
LIBRARIES = ("fgrad", "numpy", "torch")
BURSTS, BURST_SECONDS = 5, 0.03


def product(library: str, n: int, threads: int) -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, n)).astype(np.float32) for _ in range(2))
    if library == "numpy":
        return lambda: a @ b
    if library == "torch":
        import torch

        torch.set_num_threads(threads)
        x, y = torch.from_numpy(a), torch.from_numpy(b)
        return lambda: x @ y
    import fgrad
    import fgrad.numpy as fnp

    fgrad.set_num_threads(threads)
    f = fgrad.jit(fnp.matmul)
    x, y = fnp.asarray(a), fnp.asarray(b)
    np.testing.assert_allclose(np.asarray(f(x, y)), a @ b, rtol=1e-3, atol=1e-3)
    return lambda: f(x, y)


def serve(library: str, threads: int) -> None:
    """For each size on stdin: the seconds of one product, the best of some bursts."""
    known: dict[int, Callable[[], Any]] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        n = int(line)
        if n not in known:
            known[n] = product(library, n, threads)
        call = known[n]
        for _ in range(10 if n <= 512 else 3):
            call()
        best = float("inf")
        for _ in range(BURSTS):
            count, begin = 0, time.perf_counter()
            while time.perf_counter() - begin < BURST_SECONDS or not count:
                call()
                count += 1
            best = min(best, (time.perf_counter() - begin) / count)
        print(best, flush=True)


class Worker:
    def __init__(self, library: str, threads: int):
        number = str(threads)
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), number
        )
        command = [sys.executable, __file__, "--serve", library, number]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.ask("")

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        if line:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"{' '.join(self.process.args)} ended without an answer")  # type: ignore[arg-type]
        return answer


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rows = []
    for threads in sorted({1, os.cpu_count() or 1}):
        workers = {library: Worker(library, threads) for library in LIBRARIES}
        for n in map(int, options.sizes.split(",")):
            times: dict[str, list[float]] = {library: [] for library in LIBRARIES}
            for _ in range(options.rounds):
                for library, worker in workers.items():
                    times[library].append(float(worker.ask(str(n))))
            speed = {k: 2 * n**3 / statistics.median(v) / 1e9 for k, v in times.items()}
            ratio = speed["fgrad"] / max(speed["numpy"], speed["torch"])
            rows.append({"size": n, "threads": threads, **speed, "ratio": ratio})
            print(
                f"{n:5} {threads} threads  "
                + "  ".join(f"{k} {v:6.1f}" for k, v in speed.items())
                + f"  {ratio:.2f} x",
                flush=True,
            )
        for worker in workers.values():
            worker.process.communicate()
    headings = {
        "size": "n",
        "threads": "threads",
        **{k: f"{k} GFLOP/s" for k in LIBRARIES},
        "ratio": "fgrad / best peer",
    }
    print("\n" + table(rows, headings))
    save(options.json, rows)


if __name__ == "__main__":
    main()
