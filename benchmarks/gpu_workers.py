"""What the processes of `gpu.py` do, each for one library: it reads jobs as JSON, one a line, and answers each with a line of JSON.

The first time that it sees a job it prepares it (uploads, compiles, runs it once, compares with float64) and says what it found; from then
on the same line is a round: untimed calls, then timed ones, from waiting for the device to waiting for it again. `wall_us` is by the
host's clock; `device_us` by events in the library's own queue, where it has them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from gpu_libraries import Absent, Answer, Clock, Fgrad, Library, fgrad_conv, library  # noqa: E402
from workloads import LARGE, WORKLOADS  # noqa: E402

CONV_BATCH = 128
CHAINS, LINES = 16, 4  # independent multiply-adds of a thread, and how many of each stand in the loop
Job = Mapping[str, Any]


@dataclass
class Prepared:
    """A job ready to be timed. `seconds` of a round; `after` tells what only running shows."""

    call: Callable[[], Any]
    found: Answer = field(default_factory=dict)
    after: Callable[[], Answer] = dict
    repeats: int = 0


def calibrated(call: Callable[[], Any], clock: Clock, seconds: float) -> int:
    """How many calls take about `seconds`. As calls are only queued, a few more are tried at a time, each time to their end."""
    count = 3
    while True:
        begin = time.perf_counter()
        for _ in range(count):
            last = call()
        clock.wait(last)
        took = time.perf_counter() - begin
        if took >= seconds / 4:
            return max(3, round(count * seconds / max(took, 1e-9)))
        count *= 2


def timed(prepared: Prepared, clock: Clock) -> Answer:
    """Microseconds of a call in one round."""
    call, repeats = prepared.call, prepared.repeats
    last = None
    for _ in range(max(1, repeats // 4)):
        last = call()
    clock.wait(last)
    begin = time.perf_counter()
    first = clock.mark() if clock.mark else None
    for _ in range(repeats):
        last = call()
    end = clock.mark() if clock.mark else None
    clock.wait(last)
    answer = {"wall_us": (time.perf_counter() - begin) / repeats * 1e6}
    if clock.elapsed:
        answer["device_us"] = clock.elapsed(first, end) / repeats * 1e6
    return answer | prepared.after()


# ------------------------------------------------------------------------------------------------ the jobs


def relative(found: np.ndarray, true: np.ndarray) -> float:
    """The largest error, of the largest true value."""
    return float(np.abs(found.astype(np.float64) - true).max() / max(np.abs(true).max(), 1e-30))


def step(at: Library, job: Job) -> Prepared:
    """A training step; the gradients at the first weights go to the file `gradients`, if one is named."""
    w = (WORKLOADS | LARGE)[job["name"]]
    once, gradients = at.step(w)
    begin = time.perf_counter()
    loss = float(once())
    found = {"first_s": time.perf_counter() - begin, "loss": loss}
    if job.get("gradients"):
        np.savez(job["gradients"], **{k: at.numpy(v) for k, v in gradients().items()})
    if w.optimizer == "none":  # the inputs read and their gradients written, each once
        found["bytes"] = 2 * sum(v.nbytes for v in w.params(np.random.default_rng(0)).values())
    return Prepared(at.settle(once), found, at.after)


def product(at: Library, job: Job) -> Prepared:
    n = job["n"]
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, n)).astype(np.float32) for _ in range(2))
    call = at.product(at.put(a), at.put(b))
    true = a[:8].astype(np.float64) @ b.astype(np.float64)
    return Prepared(call, {"flop": 2 * n**3, "error": relative(at.numpy(call())[:8], true)})


def convolution(at: Library, job: Job) -> Prepared:
    from contraction import CONVS, useful_flops

    import fgrad.numpy as fnp
    from fgrad.codegen.contraction import conv_output_spatial

    kind, small = job["kind"], CONVS[job["name"]]
    c = replace(small, x=(CONV_BATCH, *small.x[1:]))
    spatial = conv_output_spatial(c.x[2:], c.w[2:], (c.stride,) * 2, [(c.pad, c.pad)] * 2, (c.dilation,) * 2)
    rng = np.random.default_rng(0)
    shapes = (c.x, c.w, (c.x[0], c.w[0], *spatial))
    x, w, g = (rng.standard_normal(s, np.float32) for s in shapes)
    call = at.conv(kind, c, *(at.put(v) for v in (x, w, g)))
    # A part of the result by its definition: of the first sample, or between the first two channels.
    if kind == "weight gradient":
        part, some = (slice(2), slice(2)), (x[:, :2], w[:2, :2], g[:, :2])
    else:
        part, some = (slice(1),), (x[:1], w, g[:1])
    true = np.asarray(fgrad_conv(kind, c)(*(fnp.asarray(v.astype(np.float64)) for v in some)))
    return Prepared(call, {"flop": useful_flops(c), "error": relative(at.numpy(call())[part], true)})


def copy(at: Library, job: Job) -> Prepared:
    x = np.arange(job["elements"], dtype=np.float32)
    return Prepared(at.copy(at.put(x), job["how"]), {"bytes": 2 * x.nbytes})


def multiply_adds(at: Library, job: Job) -> Prepared:
    """Independent multiply-adds on registers, as many as the device does."""
    from fgrad.codegen.cuda.launch import CudaKernel, Param

    assert isinstance(at, Fgrad)
    target, rounds = at.driver.target, job["rounds"]
    blocks, threads = 8 * target.multiprocessors, target.threads
    lines = [
        "@cuda.jit",
        "def multiply_adds(y):",
        "    i = cuda.grid(1)",
        "    b = y[i]",
        *[f"    s{n} = b + float32({n})" for n in range(CHAINS)],
        f"    for _ in range({rounds}):",
        *[f"        s{n} = s{n} * float32(0.5) + b" for _ in range(LINES) for n in range(CHAINS)],
        f"    y[i] = {' + '.join(f's{n}' for n in range(CHAINS))}",
    ]
    y = Param("y", np.dtype("float32"), blocks * threads, "inout")
    source = "\n".join(lines) + "\n"
    kernel = CudaKernel("multiply_adds", source, (y,), (blocks, 1, 1), (threads, 1, 1))
    function = at.driver.load(kernel)
    memory = at.put(np.zeros(y.size, np.float32))
    address = memory.unsafe_buffer_pointer()

    def call() -> Any:
        at.driver.launch(function, kernel, [address])
        return memory

    return Prepared(call, {"flop": 2 * CHAINS * LINES * rounds * y.size})


def about(at: Library, job: Job) -> Answer:
    """What is measured on."""
    assert isinstance(at, Fgrad)
    names = ("fgrad", "numba-cuda", "cuda-bindings", "torch", "triton", "jax", "jaxlib", "nvmath-python")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    target = at.driver.target
    answer = {"gpu": at.driver.description, "simulated": target.simulated, "versions": versions}
    if target.simulated:
        return answer
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        said = ""
    answer["driver"], _, answer["highest_clock"] = said.partition(", ")
    answer["cuda"] = int(at.driver.ask(at.driver.api.cuDriverGetVersion()))
    return answer | {"capability": list(target.capability), "multiprocessors": target.multiprocessors}


def check(at: Library, job: Job) -> Answer:
    import gpu_check

    return gpu_check.primitive(job["name"])


TIMED = {
    "step": step,
    "product": product,
    "conv": convolution,
    "copy": copy,
    "multiply_adds": multiply_adds,
}
TOLD = {"about": about, "check": check}


def said(error: Exception) -> str:
    """The library's own text on one line, without the place in the source."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = "; ".join(line for line in lines if line and not line.startswith("at "))
    return text or type(error).__name__


def serve(name: str, precision: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    at: Library | None = None
    known: dict[str, Prepared] = {}
    for line in sys.stdin:
        try:
            at = at or library(name, precision)
            job = json.loads(line)
            if job["what"] in TOLD:
                answer = TOLD[job["what"]](at, job)
            elif line in known:
                answer = timed(known[line], at.clock)
            else:
                found = TIMED[job["what"]](at, job)
                found.repeats = calibrated(found.call, at.clock, job["seconds"])
                known[line], answer = found, found.found
        except Absent as error:
            answer = {"absent": str(error)}
        except Exception as error:
            answer = {"problem": said(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
