"""This machine's limits, measured now: multiply-adds, bytes a second from each cache and from memory, and what a call costs.

    python benchmarks/limits.py [--json FILE] [--threads N] [--no-peers] [--workloads W1,W3]

The loops are those of `fgrad.runtime.peaks`, run longer; NumPy's and PyTorch's product of 2048 x 2048 matrices stand beside them, each in a
process of its own. Every figure is the best of many bursts, as other programs can only make it smaller. `--workloads` adds the limit of each
training step: its products on the FMA units, or its inputs and outputs through memory, whichever takes longer.

    import limits
    found = limits.measure()                       # a dict; found["peaks"] is a fgrad.runtime.peaks.Peaks as a dict
    rows = limits.workload_limits(["W3"], limits.peaks_of(found))
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from timing import machine, table  # noqa: E402
from workloads import WORKLOADS, Workload, fgrad_ops, functional_state, whole_step  # noqa: E402

from fgrad.runtime import threads as pool  # noqa: E402
from fgrad.runtime.cost import Cost  # noqa: E402
from fgrad.runtime.peaks import LEVELS, Kernels, Peaks, cache_sizes, cpu_name, footprint  # noqa: E402

BURST, BURSTS = 2e-3, 25
PRODUCT = 2048
STREAMS = ("read", "copy", "triad")


def measure(threads: int | None = None, peers: bool = True) -> dict[str, Any]:
    """All of it as a dict for JSON: GFLOP/s, GB/s and microseconds, by number of threads (1, and `threads`)."""
    count = pool.get_num_threads() if threads is None else threads
    counts = sorted({1, count})
    kernels, sizes = Kernels(), cache_sizes()
    fma = {
        f"float{8 * size}": {str(n): kernels.fma(size, n, BURST, BURSTS) / 1e9 for n in counts}
        for size in (4, 8)
    }
    streams: dict[str, Any] = {}
    for name in STREAMS:
        streams[name] = {
            level: {
                str(n): kernels.stream(name, footprint(at, sizes), n, BURST, BURSTS) / 1e9 for n in counts
            }
            for at, level in enumerate(LEVELS)
        }
    last = str(count)
    copies = [tuple(streams["copy"][level][n] * 1e9 for level in LEVELS) for n in ("1", last)]
    found = Peaks(
        cpu_name(),
        count,
        fma["float32"]["1"] * 1e9,
        fma["float64"]["1"] * 1e9,
        fma["float32"][last] * 1e9,
        fma["float64"][last] * 1e9,
        copies[0],
        copies[1],
        sizes,
    )
    return {
        "machine": machine(),
        "threads": count,
        "fma_gflops": fma,
        "gbytes": streams,
        "caches": dict(zip(LEVELS, sizes)),
        "launch_us": 1e6 * kernels.launch(),
        "region_us": 1e6 * kernels.region(count) if count > 1 else None,
        "product_gflops": {k: {str(n): product(k, n) for n in counts} for k in ("numpy", "torch")}
        if peers
        else {},
        "peaks": dataclasses.asdict(found),
    }


def peaks_of(found: dict[str, Any]) -> Peaks:
    """The `Peaks` in a dict made by `measure` (or read from its JSON)."""
    return Peaks(**{k: tuple(v) if isinstance(v, list) else v for k, v in found["peaks"].items()})


def product(library: str, threads: int) -> float | None:
    """GFLOP/s of a float32 product of 2048 x 2048 matrices in a process of its own; None if the library is not installed."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    command = [sys.executable, __file__, "--product", library]
    environment = os.environ | dict.fromkeys(names, str(threads))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else None


def _product(library: str) -> float:
    a = np.ones((PRODUCT, PRODUCT), np.float32)
    if library == "torch":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        t = torch.from_numpy(a)
        run = lambda: torch.mm(t, t)
    else:
        run = lambda: a @ a
    best = float("inf")
    for _ in range(6):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return 2 * PRODUCT**3 / best / 1e9


# ------------------------------------------------------------------------------------------------ workloads


def workload_cost(w: Workload) -> Cost:
    """What one step of fgrad on a workload takes, told without running it."""
    o, rng = fgrad_ops(), np.random.default_rng(0)
    start = w.params(rng)
    batch = [o.array(b) for b in w.batch(rng)]
    compile_step = o.jit_plain if w.optimizer == "none" else o.jit
    params = {k: o.array(v) for k, v in start.items()}
    return compile_step(whole_step(o, w)).lower(params, functional_state(w, start, o.array), *batch).cost()


def workload_limits(names: Sequence[str], peaks: Peaks, threads: int | None = None) -> list[dict[str, Any]]:
    """A row for each workload: FLOP of its products, bytes of its inputs and outputs, and the limit that they set, in us."""
    count = peaks.threads if threads is None else threads
    rows = []
    for name in names:
        cost = workload_cost(WORKLOADS[name])
        rows.append(
            {
                "workload": name,
                "what": WORKLOADS[name].what,
                "mflop": cost.model_flops / 1e6,
                "mbytes": cost.compulsory / 1e6,
                "limit_us": 1e6 * cost.limit(peaks, count),
                "steps_us": 1e6 * cost.seconds(peaks, count),
                "kernels": cost.kernels,
                "peak_memory": cost.peak_memory,
            }
        )
    return rows


# ------------------------------------------------------------------------------------------------ as text


def tables(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    counts = [str(n) for n in sorted({1, found["threads"]})]
    labels = {n: f"{n} thread{'s' if n != '1' else ''}" for n in counts}
    rows: list[dict[str, Any]] = []
    for kind, by_count in found["fma_gflops"].items():
        rows.append({"what": f"FMA on registers, {kind}, GFLOP/s", **by_count})
    for name, by_count in found["product_gflops"].items():
        label = {"numpy": "NumPy", "torch": "PyTorch"}[name]
        rows.append({"what": f"{label}, float32 product {PRODUCT}, GFLOP/s", **_known(by_count)})
    for name in STREAMS:
        for level in LEVELS:
            rows.append({"what": f"{name}, {level}, GB/s", **found["gbytes"][name][level]})
    rows.append({"what": "calling compiled code from Python, us", "1": found["launch_us"]})
    if found["region_us"] is not None:
        rows.append({"what": "handing out pieces to all threads, us", counts[-1]: found["region_us"]})
    return table(rows, {"what": "", **labels})


def _known(by_count: dict[str, float | None]) -> dict[str, Any]:
    return {n: "absent" if v is None else v for n, v in by_count.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-peers", action="store_true", help="leave NumPy and PyTorch out")
    parser.add_argument("--workloads", default="", help="comma separated, or 'all'")
    parser.add_argument("--product", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.product:
        print(_product(options.product))
        return
    if options.threads is not None:
        pool.set_num_threads(options.threads)
    found = measure(options.threads, not options.no_peers)
    print(tables(found))
    names = [n.strip() for n in options.workloads.split(",") if n.strip()]
    if names:
        found["workloads"] = workload_limits(list(WORKLOADS) if names == ["all"] else names, peaks_of(found))
        headings = {
            "workload": "",
            "what": "one step of",
            "mflop": "MFLOP in products",
            "mbytes": "MB of inputs and outputs",
            "limit_us": "limit us",
            "steps_us": "its steps at the peaks us",
            "kernels": "kernels",
        }
        print("\n" + table(found["workloads"], headings))
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
        print(f"written to {options.json}")


if __name__ == "__main__":
    main()
