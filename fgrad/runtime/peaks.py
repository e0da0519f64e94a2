"""What this machine can do at best: multiply-adds a second, and bytes a second from each cache and from memory.

    >>> print(peaks())
    AMD EPYC: FMA 117 GFLOP/s float32, 59 float64 a thread, 233 and 117 on 2; copies in GB/s: L1 236, L2 111, L3 83,
    memory 46 a thread; ... on 2

Measured in a quarter of a second by loops written as LLVM IR: fused multiply-adds on registers, and copies between two arrays that
fill half of a cache, or twice the last one. The best of many short bursts counts, since others on the machine can only slow it down. The
result is kept on disk for each processor beside the compiled programs; `peaks(refresh=True)` measures again and keeps the better
figures, as does a later process while two threads look slower than they should. `benchmarks/limits.py` measures more (reads, triads, other libraries) with the same loops.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fgrad.codegen import peak_loops
from fgrad.codegen.target import TargetInfo, host
from fgrad.runtime import cache, threads

LEVELS = ("L1", "L2", "L3", "memory")
_BURST_SECONDS, _BURSTS = 5e-4, 8
_MEASUREMENTS = 5  # at most, while the threads together look too slow


@dataclass(frozen=True)
class Peaks:
    """Floating-point operations and bytes a second: of one thread, and of `threads` together (names ending in `_all`)."""

    cpu: str
    threads: int
    float32: float
    float64: float
    float32_all: float
    float64_all: float
    copy: tuple[float, ...]  # one a level, as `LEVELS`; bytes read and written
    copy_all: tuple[float, ...]
    sizes: tuple[int, ...]  # bytes of L1, L2, L3
    measured: int = 1  # how often

    @property
    def doubtful(self) -> bool:
        """Threads together do much less than one does alone: others were busy on the machine (or cores are shared in pairs)."""
        gains = self.float32_all / self.float32, self.float64_all / self.float64
        return min(gains) < 0.75 * self.threads

    def fma(self, itemsize: int = 4, workers: int = 1) -> float:
        """Floating-point operations a second of `workers` threads, a multiply-add counted as two."""
        one, every = (self.float64, self.float64_all) if itemsize == 8 else (self.float32, self.float32_all)
        return one if workers <= 1 else min(one * workers, every) if workers < self.threads else every

    def level(self, footprint: int) -> int:
        """The first cache that holds so many bytes, as an index into `LEVELS`. (Half of the first counts: others use it too.)"""
        return next((n for n, size in enumerate(self.sizes) if footprint <= size), len(self.sizes))

    def bandwidth(self, footprint: int, workers: int = 1) -> float:
        """Bytes a second, read and written together, of `workers` threads that move so many bytes between them."""
        level = self.level(footprint)
        return self.copy[level] if workers <= 1 else self.copy_all[level]

    def __str__(self) -> str:
        def rates(values: tuple[float, ...]) -> str:
            return ", ".join(f"{name} {v / 1e9:.0f}" for name, v in zip(LEVELS, values))

        return (
            f"{self.cpu}: FMA {self.float32 / 1e9:.0f} GFLOP/s float32, {self.float64 / 1e9:.0f} float64 a thread,"
            f" {self.float32_all / 1e9:.0f} and {self.float64_all / 1e9:.0f} on {self.threads};"
            f" copies in GB/s: {rates(self.copy)} a thread; {rates(self.copy_all)} on {self.threads}"
        )


def peaks(refresh: bool = False) -> Peaks:
    """This machine's peaks with `get_num_threads()` threads: those known, else measured now."""
    target, count = host(), threads.get_num_threads()
    key = f"{cpu_name()} {target.cpu} {target.features} {count}"
    known = _known.get(key)
    if known is None:
        known = _load(key)
        refresh = refresh or known is None or (known.doubtful and known.measured < _MEASUREMENTS)
    if refresh:
        found = measure(count)
        known = found if known is None else _better(known, found)
        _save(key, known)
    assert known is not None
    _known[key] = known
    return known


_known: dict[str, Peaks] = {}


def measure(count: int | None = None, burst: float = _BURST_SECONDS, bursts: int = _BURSTS) -> Peaks:
    """Measure now. `count` threads (default: all that programs use); every figure is the best of `bursts` bursts."""
    count = threads.get_num_threads() if count is None else count
    sizes = cache_sizes()
    kernels = Kernels()

    def rates(workers: int) -> tuple[float, float, tuple[float, ...]]:
        copies = tuple(
            kernels.stream("copy", footprint(level, sizes), workers, burst, bursts)
            for level in range(len(LEVELS))
        )
        return kernels.fma(4, workers, burst, bursts), kernels.fma(8, workers, burst, bursts), copies

    one = rates(1)
    every = rates(count) if count > 1 else one
    return Peaks(cpu_name(), count, one[0], one[1], every[0], every[1], one[2], every[2], sizes)


def _better(a: Peaks, b: Peaks) -> Peaks:
    def most(x: Any, y: Any) -> Any:
        return tuple(max(p, q) for p, q in zip(x, y)) if isinstance(x, tuple) else max(x, y)

    rates = ("float32", "float64", "float32_all", "float64_all", "copy", "copy_all")
    return replace(
        b,
        measured=a.measured + b.measured,
        **{name: most(getattr(a, name), getattr(b, name)) for name in rates},
    )


# ------------------------------------------------------------------------------------------------ on disk


def _path(key: str) -> Path:
    return Path(cache.directory()) / f"peaks-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _load(key: str) -> Peaks | None:
    if not cache.enabled():
        return None
    try:
        found = json.loads(_path(key).read_text())
        lists = {k: tuple(v) for k, v in found.items() if isinstance(v, list)}
        return Peaks(**{**found, **lists})
    except (OSError, ValueError, TypeError):
        return None


def _save(key: str, found: Peaks) -> None:
    if cache.enabled():
        with contextlib.suppress(OSError):
            path = _path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(asdict(found)))
            os.replace(temporary, path)


# ------------------------------------------------------------------------------------------------ the machine


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cache_sizes() -> tuple[int, ...]:
    """Bytes of L1 (data), L2 and L3 that one core uses; plausible ones where the system does not say."""
    found = {1: 32 << 10, 2: 512 << 10, 3: 16 << 20}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            if (index / "type").read_text().strip() == "Instruction":
                continue
            text = (index / "size").read_text().strip()
            size = int(text.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
            found[int((index / "level").read_text())] = size
    return found[1], found[2], max(found[3], 2 * found[2])


def footprint(level: int, sizes: tuple[int, ...]) -> int:
    """Bytes that lie in a level for sure: half of a cache, twice the last one (but 256 MiB at most)."""
    if level < len(sizes):
        return sizes[level] // 2
    return min(2 * sizes[-1], 256 << 20)


# ------------------------------------------------------------------------------------------------ the loops


class Kernels:
    """The loops, compiled for this machine (or for `target`, which it must be able to run)."""

    def __init__(self, target: TargetInfo | None = None):
        import llvmlite.binding as llvm

        target = target or host()
        self.target = target
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(target.cpu, target.features, opt=3)
        module = llvm.parse_assembly(peak_loops.module_text(target))
        module.verify()
        self.engine = llvm.create_mcjit_compiler(module, machine)
        self.engine.finalize_object()

    def function(self, name: str) -> Callable[..., None]:
        address = self.engine.get_function_address(name)
        return ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
        )(address)

    def fma(
        self, itemsize: int = 4, workers: int = 1, burst: float = _BURST_SECONDS, bursts: int = _BURSTS
    ) -> float:
        """Floating-point operations a second of `workers` threads in multiply-adds on registers."""
        run = self.function(f"fma{8 * itemsize}")
        flops = 2 * peak_loops.STEPS * peak_loops.chains(self.target) * self.target.lanes(itemsize)
        data = [np.zeros(64 * 32, np.uint8) for _ in range(workers)]

        def call(worker: int, rounds: int) -> None:
            at = data[worker].ctypes.data
            run(at, at, at, 0, rounds)

        return flops * _rate(call, workers, burst, bursts)

    def stream(
        self, name: str, nbytes: int, workers: int = 1, burst: float = 1e-3, bursts: int = 12
    ) -> float:
        """Bytes a second that `workers` threads read and write, each going over arrays of `nbytes` bytes together again and again.

        name  "read": one array; "copy": from one to another; "triad": a = b + c. Of arrays beyond the caches, `workers` share `nbytes`.
        """
        arrays, step = peak_loops.STREAMS[name], 8 * self.target.vector_bytes
        outside = nbytes > cache_sizes()[-1]
        each = max(nbytes // arrays // (workers if outside else 1) // step, 1) * step
        memory = [_aligned(each * arrays) for _ in range(workers)]
        names = [name, f"{name}.past"] if outside and name != "read" else [name]

        def caller(run: Callable[..., None]) -> Callable[[int, int], None]:
            def call(worker: int, rounds: int) -> None:
                at = memory[worker].ctypes.data
                run(at, at + each * (arrays > 1), at + each * (arrays - 1), each, rounds)

            return call

        return arrays * each * max(_rate(caller(self.function(n)), workers, burst, bursts) for n in names)

    def region(self, workers: int = 2, rounds: int = 200) -> float:
        """Seconds to hand out pieces with nothing to do to `workers` threads and wait for them; NaN where there are no helpers."""
        pool = threads.pool()
        address = self.engine.get_function_address("region")
        run = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int64)(address)
        best = float("inf")
        for _ in range(10):
            with threads.taken() as free:
                if not free or workers < 2:
                    return float("nan")
                begin = time.perf_counter()
                run(pool, workers, rounds)
                best = min(best, (time.perf_counter() - begin) / rounds)
        return best

    def launch(self, rounds: int = 20_000) -> float:
        """Seconds to call compiled code from Python, as a program is called."""
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(
            self.engine.get_function_address("nothing")
        )
        best = float("inf")
        for _ in range(5):
            begin = time.perf_counter()
            for _ in range(rounds):
                run(0, 0)
            best = min(best, (time.perf_counter() - begin) / rounds)
        return best


def _rate(call: Callable[[int, int], None], workers: int, burst: float, bursts: int) -> float:
    """The most rounds a second that all workers together do, each calling `call(worker, rounds)` at the same time."""
    rounds, took = 1, 0.0
    while True:
        begin = time.perf_counter()
        call(0, rounds)
        took = time.perf_counter() - begin
        if took >= burst / 4 or rounds >= 1 << 40:
            break
        rounds *= 2 if took * 16 > burst else 8
    rounds = max(1, round(rounds * burst / took))
    if workers == 1:
        best = float("inf")
        for _ in range(bursts):
            begin = time.perf_counter()
            call(0, rounds)
            best = min(best, time.perf_counter() - begin)
        return rounds / best
    spans: list[list[tuple[float, float]]] = [[] for _ in range(workers)]
    barrier = threading.Barrier(workers)

    def work(worker: int) -> None:
        call(worker, 1)
        for _ in range(bursts):
            barrier.wait()
            begin = time.perf_counter()
            call(worker, rounds)
            spans[worker].append((begin, time.perf_counter()))

    team = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    return rounds * max(_together(found) for found in zip(*spans))


def _together(spans: tuple[tuple[float, float], ...]) -> float:
    """The sum of all rates if they ran at nearly the same time; else only what they did in the whole time."""
    begins, ends = zip(*spans)
    whole = max(ends) - min(begins)
    if min(ends) - max(begins) > 0.7 * whole:
        return sum(1 / (end - begin) for begin, end in spans)
    return len(spans) / whole


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.ones(nbytes + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + nbytes]
