"""fgrad on an NVIDIA GPU against PyTorch (eager, compiled, as CUDA graphs) and JAX there: training steps, products, convolutions, and
what the GPU can do at best.

    python benchmarks/gpu.py [--only steps,products] [--workloads W1,W3] [--rounds 7] [--json benchmarks/results/cuda.json]
    python benchmarks/gpu.py --check              the primitives' sample table on the GPU, and nothing else
    NUMBA_ENABLE_CUDASIM=1 python benchmarks/gpu.py --tiny        whether this script works, in Numba's simulator

Each library runs in a process of its own on the same GPU; rounds are interleaved, begin with untimed calls, and their median counts. Times
are those of many calls, from waiting for the device to waiting for it again; by events in the library's queue where it has them (fgrad and
PyTorch), and by the host's clock for all. Losses and gradients of the first step are compared. All compute in float32 (no TF32) unless a
row says otherwise; cuDNN chooses its algorithms by trial.

fgrad replays a step as one CUDA graph; "fgrad launches" queues each kernel by itself (`FGRAD_CUDA_GRAPHS=0`). PyTorch replays one in "graphs"
(`torch.compile(mode="reduce-overhead")`) and in "pytorch graph" (the eager step, captured by `torch.cuda.graph`).

`--json` replaces what was measured (a section; of training steps, a workload) in a file of the same GPU, and keeps the rest. Peers that are not
installed are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import gpu_check  # noqa: E402
import report_gpu  # noqa: E402
from timing import machine  # noqa: E402
from workloads import LARGE, WORKLOADS  # noqa: E402

STEPS = ("W1", "W2", "W3", "W4", "W5", "W7", "W8", "W6-128", "W7-32M")
WAYS = {
    "fgrad": {},
    "fgrad launches": {"FGRAD_CUDA_GRAPHS": "0"},
    "pytorch eager": {},
    "pytorch graph": {},
    "torch.compile loss": {},
    "torch.compile step": {},
    "torch.compile loss graphs": {},
    "torch.compile step graphs": {},
    "jax jit": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
}
SIZES = (1024, 2048, 4096, 8192)
PRECISIONS = ("float32", "tf32", "bf16")
KINDS = ("forward", "input gradient", "weight gradient")
COPIES = (4_000_000, 32_000_000, 1 << 27)  # numbers: as many as the two of W7 have, and 512 MiB of them
ROUND_SECONDS = 0.3
LONGEST = 1200.0  # seconds for one answer
Row = dict[str, Any]


class Failed(Exception):
    """A worker's answer is that it cannot do the job, or there was no answer."""


class Worker:
    """One library in a process of its own."""

    def __init__(
        self, library: str, precision: str = "float32", environment: Mapping[str, str] | None = None
    ):
        self.library = library
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (kept as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "gpu_workers.py"), library, precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **WAYS.get(library, {}), **(environment or {})},
        )

    def ask(self, job: Row) -> Row:
        assert self.process.stdin is not None and self.process.stdout is not None
        watch = threading.Timer(LONGEST, self.process.kill)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            self.errors.seek(0)
            said = [n.strip() for n in self.errors.read().splitlines() if n.strip()]
            raise Failed(f"it ended without an answer: {said[-1] if said else 'it said nothing'}")
        answer = json.loads(line)
        if "absent" in answer:
            _say_once(answer["absent"])
            raise Failed("")
        if "problem" in answer:
            raise Failed(answer["problem"])
        return answer

    def close(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(OSError):  # it has ended
                self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.errors.close()


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text and text not in _said:
        _said.add(text)
        print(text, file=sys.stderr, flush=True)


def measured(jobs: Iterable[tuple[Worker, Row]], rounds: int, what: str) -> dict[str, Row]:
    """What each worker found, by library, and the medians of its rounds. Jobs are prepared one after the other, then timed in turn."""
    ready: list[tuple[Worker, Row, Row, list[Row]]] = []
    for worker, job in jobs:
        try:
            ready.append((worker, job, worker.ask(job), []))
        except Failed as error:
            _say_once(f"{worker.library} failed on {what}: {error}" if str(error) else "")
    for _ in range(rounds):
        for entry in list(ready):
            worker, job, _, times = entry
            try:
                times.append(worker.ask(job))
            except Failed as error:
                _say_once(f"{worker.library} failed on {what}: {error}")
                ready.remove(entry)
    return {
        worker.library: found | {k: statistics.median(t[k] for t in times) for k in times[0]}
        for worker, _, found, times in ready
    }


# ------------------------------------------------------------------------------------------------ sections


class Run:
    """The options of one run, and its sections: each gives rows, and says what it finds as it goes."""

    def __init__(self, rounds: int, names: list[str], tiny: bool):
        self.rounds, self.names, self.tiny = rounds, names, tiny
        self.seconds = 0.0 if tiny else ROUND_SECONDS
        self.peers = not tiny

    def job(self, what: str, **options: Any) -> Row:
        return {"what": what, "seconds": self.seconds, **options}

    def steps(self) -> list[Row]:
        rows = []
        for name in self.names:
            w = (WORKLOADS | LARGE)[name]
            ways = [way for way in WAYS if self.peers or way.startswith("fgrad")]
            with tempfile.TemporaryDirectory() as folder:
                files = {way: f"{folder}/{n}.npz" for n, way in enumerate(ways)}
                workers = [Worker(way) for way in ways]
                jobs = [(k, self.job("step", name=name, gradients=files[k.library])) for k in workers]
                found = measured(jobs, self.rounds, name)
                for worker in workers:
                    worker.close()
                gradients = {way: dict(np.load(files[way])) for way in found}
            if found.get("fgrad launches", {}).get("replays"):
                _say_once("fgrad launches: left out, as FGRAD_CUDA_GRAPHS=0 is not heeded")
                del found["fgrad launches"]
            for way, r in found.items():
                row = {"workload": name, "what": w.what, "way": way, **r}
                if "bytes" in r:
                    row["gbs"] = r["bytes"] / r.get("device_us", r["wall_us"]) / 1e3
                if way != "fgrad" and "fgrad" in found:
                    row["loss_rel_diff"] = abs(r["loss"] / found["fgrad"]["loss"] - 1)
                    row["grad_rel_diff"] = _difference(gradients["fgrad"], gradients[way])
                rows.append(row)
                device = f"{r['device_us']:10.1f} us" if "device_us" in r else " " * 13
                print(f"{name:7} {way:26} {r['wall_us']:10.1f} us by the host {device} by events", flush=True)
        return rows

    def _single(
        self, cases: dict[str, Row], libraries: tuple[str, ...], show: Callable[[Row], str]
    ) -> list[Row]:
        """Rows of single operations, in each precision, by each library."""
        rows = []
        for precision in PRECISIONS[: 1 if self.tiny else None]:
            chosen = libraries if self.peers else libraries[:1]
            workers = [Worker(library, precision) for library in chosen]
            for name, job in cases.items():
                found = measured(((k, job) for k in workers), self.rounds, f"{name}, {precision}")
                for library, r in found.items():
                    row = {"case": name, "precision": precision, "library": library, **r}
                    rows.append(row)
                    print(f"{name:40} {precision:8} {library:8} {show(row)}", flush=True)
            for worker in workers:
                worker.close()
        return rows

    def products(self) -> list[Row]:
        cases = {f"{n}^3": self.job("product", n=n) for n in ((16,) if self.tiny else SIZES)}
        return self._single(cases, ("fgrad", "torch", "nvmath"), _tflops)

    def convolutions(self) -> list[Row]:
        from contraction import CONVS

        names = [n for n in CONVS if n.startswith("resnet")]
        cases = {f"{n} {kind}": self.job("conv", name=n, kind=kind) for n in names for kind in KINDS}
        return self._single(cases, ("fgrad", "torch"), _tflops)

    def ceilings(self) -> list[Row]:
        """The fastest copies and multiply-adds."""
        rows = []
        ways = [("fgrad", "kernel"), ("fgrad", "driver")] + [("torch", "copy_")] * self.peers
        workers = {library: Worker(library) for library, _ in ways}
        for elements in (1024,) if self.tiny else COPIES:
            for library, how in ways:
                job = self.job("copy", elements=elements, how=how)
                for r in measured([(workers[library], job)], self.rounds, f"a copy ({how})").values():
                    gbs = r["bytes"] / r["device_us"] / 1e3
                    rows.append({"ceiling": "copy", "elements": elements, "how": how, "gbs": gbs, **r})
                    print(f"copy of {4 * elements / 1e6:7.1f} MB by {library}'s {how:8} {gbs:10.1f} GB/s")
        job = self.job("multiply_adds", rounds=2 if self.tiny else 20_000)
        for r in measured([(workers["fgrad"], job)], self.rounds, "multiply-adds").values():
            rows.append({"ceiling": "multiply_adds", "tflops": r["flop"] / r["device_us"] / 1e6, **r})
            print(f"multiply-adds on registers {rows[-1]['tflops']:10.3f} TFLOP/s", flush=True)
        for worker in workers.values():
            worker.close()
        return rows

    def startup(self) -> list[Row]:
        """Seconds of a first step in a new process: with an empty disk cache, and with what that left there."""
        rows = []
        for name in self.names:
            row: Row = {"workload": name}
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("cold_s", "warm_s"):
                    worker = Worker("fgrad", environment={"FGRAD_CACHE_DIR": cache})
                    for r in measured([(worker, self.job("step", name=name))], 1, name).values():
                        row[kind] = r["first_s"]
                    worker.close()
            rows.append(row)
            print(f"{name:7} first step: {row}", flush=True)
        return rows

    def check(self, only: list[str]) -> list[Row]:
        """The primitives' samples (of `only`, if that names some)."""
        names = only or sorted(gpu_check.samples())
        many = max(1, min(8, (os.cpu_count() or 1) // 2, len(names)))  # compiling takes longest
        with ThreadPoolExecutor(many) as pool:
            parts = list(pool.map(self._check, [names[n::many] for n in range(many)]))
        return sorted((r for part in parts for r in part), key=lambda r: r["primitive"])

    def _check(self, names: list[str]) -> list[Row]:
        """By one process; where a failure may have taken the device from it, by another from there on."""
        rows, worker = [], Worker("fgrad")
        for name in names:
            job = self.job("check", name=name)
            try:
                row = worker.ask(job)
            except Failed as error:
                row = dict.fromkeys(gpu_check.OUTCOMES, 0) | {"failed": 1}
                row |= {"failures": [f"{name}: {error}"], "without": []}
            rows.append({"primitive": name, **row})
            if row["failed"]:
                print("\n".join(row["failures"]), flush=True)
                worker.close()
                worker = Worker("fgrad")
        worker.close()
        return rows


def _difference(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(mine[n] - theirs[n]).max() / max(np.abs(mine[n]).max(), 1e-30)) for n in mine)


def _tflops(row: Row) -> str:
    row["tflops"] = row["flop"] / row["device_us"] / 1e6
    return f"{row['device_us']:10.1f} us {row['tflops']:10.3f} TFLOP/s   error {row['error']:.1e}"


SECTIONS = ("ceilings", "products", "convolutions", "steps", "startup", "check")


# ------------------------------------------------------------------------------------------------ the whole


def about() -> Row:
    """What there is to measure on. Raises Failed."""
    worker = Worker("fgrad")
    try:
        return worker.ask({"what": "about"})
    finally:
        worker.close()


def save(path: str, on: Row, sections: dict[str, list[Row]]) -> None:
    file, kept = Path(path), {}
    if file.exists():
        old = json.loads(file.read_text())
        if old["machine"]["gpu"] == on["gpu"]:
            kept = {k: v for k, v in old.items() if k != "machine"}
    for name in set(sections) & {"steps", "startup"}:
        new = {r["workload"] for r in sections[name]}
        older = [r for r in kept.get(name, ()) if r["workload"] not in new]
        sections = sections | {name: older + sections[name]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": on, **kept, **sections}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help=f"some of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--workloads", default="", help=f"some of {', '.join(STEPS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--tiny", action="store_true", help="the least of some sections, without peers")
    parser.add_argument(
        "--check", nargs="?", const="", metavar="PRIMITIVES", help="only the sample table, or rows of it"
    )
    options = parser.parse_args()
    listed = lambda text: [n.strip() for n in text.split(",") if n.strip()]
    default = SECTIONS[:2] + SECTIONS[3:4] if options.tiny else SECTIONS
    chosen = listed(options.only) or list(default)
    names = listed(options.workloads) or (["W5"] if options.tiny else list(STEPS))
    primitives = listed(options.check or "")
    for what, wrong in (
        ("sections", set(chosen) - set(SECTIONS)),
        ("workloads", set(names) - set(WORKLOADS | LARGE)),
        ("primitives", set(primitives) - set(gpu_check.samples()) if primitives else ()),
    ):
        if wrong:
            parser.error(f"unknown {what} {', '.join(sorted(wrong))}")
    try:
        on = machine() | about()
    except Failed as error:
        print(error, file=sys.stderr)
        return 2
    if on["simulated"] and not options.tiny and options.check is None:
        print("this is Numba's simulator of a GPU, which only --tiny and --check run on", file=sys.stderr)
        return 2
    run = Run(1 if options.tiny else options.rounds, names, options.tiny)
    found: dict[str, list[Row]] = {}
    if options.check is not None:
        chosen = ["check"]
    for section in SECTIONS:
        if section in chosen:
            found[section] = run.check(primitives) if section == "check" else getattr(run, section)()
            if options.json:
                save(options.json, on, {section: found[section]})
    print("\n" + report_gpu.tables({"machine": on, **found}))
    return 1 if any(r["failed"] for r in found.get("check", ())) else 0


if __name__ == "__main__":
    sys.exit(main())
