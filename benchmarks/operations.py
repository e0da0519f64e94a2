"""Single operations that are not contractions, against NumPy, PyTorch eager and JAX jit: nanoseconds an element, and GB/s of the least
possible traffic against a large copy in the same run.

    python benchmarks/operations.py [--only exp,softmax] [--rounds 7] [--json FILE] [--threads 2]

One thread is measured by CPU time, `--threads` of them by wall time; each library and each of the two in a process of its own, the
rounds interleaved, the smallest time of the rounds taken. `bytes` counts each array once: what a perfect kernel would move. Libraries
write their results into new arrays, as users do; NumPy has the element-wise functions only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timing import save, table

MILLION = 1 << 20
LIBRARIES = ("fgrad", "numpy", "torch", "jax")
COPY = "copy 64 MB"
ROUND_SECONDS = 0.02


@dataclass(frozen=True)
class Operation:
    """`loss(ops, *arrays)` is differentiated with respect to the first `wrt` arrays; `value(ops, *arrays)` is the forward pass.
    `moved`: elements that forward and gradient cannot avoid to read or write."""

    name: str
    arrays: Callable[[np.random.Generator], list[np.ndarray]]
    value: Callable[..., Any]
    moved: tuple[int, int]
    elements: int
    wrt: int = 1
    loss: Callable[..., Any] | None = None  # None: the sum of the value


def _floats(*shape: int) -> Callable[[np.random.Generator], list[np.ndarray]]:
    return lambda rng: [rng.normal(size=shape).astype(np.float32)]


def _positive(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.uniform(0.1, 10.0, MILLION).astype(np.float32)]


def _unary(name: str) -> Operation:
    arrays = _positive if name == "log" else _floats(MILLION)
    return Operation(
        f"{name}, 1 M", arrays, lambda o, x: getattr(o, name)(x), (2 * MILLION, 2 * MILLION), MILLION
    )


def _softmax(rows: int, width: int) -> Operation:
    n = rows * width
    return Operation(
        f"softmax {rows}x{width}",
        lambda rng: [rng.normal(size=(rows, width)).astype(np.float32) for _ in range(2)],
        lambda o, x, w: o.softmax(x),
        (2 * n, 3 * n),
        n,
        loss=lambda o, x, w: (o.softmax(x) * w).sum(),
    )


def _layer_norm(rows: int, width: int) -> Operation:
    n = rows * width

    def arrays(rng: np.random.Generator) -> list[np.ndarray]:
        shapes = ((rows, width), (width,), (width,), (rows, width))
        return [rng.normal(size=s).astype(np.float32) for s in shapes]

    return Operation(
        f"layer norm {rows}x{width}",
        arrays,
        lambda o, x, g, b, w: o.layer_norm(x, g, b),
        (2 * n, 3 * n),
        n,
        3,
        lambda o, x, g, b, w: (o.layer_norm(x, g, b) * w).sum(),
    )


def _cross_entropy(rows: int, width: int) -> Operation:
    n = rows * width
    return Operation(
        f"cross-entropy {rows}x{width}",
        lambda rng: [rng.normal(size=(rows, width)).astype(np.float32), rng.integers(0, width, rows)],
        lambda o, x, y: o.cross_entropy(x, y),
        (n, 2 * n),
        n,
        loss=lambda o, x, y: o.cross_entropy(x, y),
    )


def _batch_norm(*shape: int) -> Operation:
    n, channels = int(np.prod(shape)), shape[1]

    def arrays(rng: np.random.Generator) -> list[np.ndarray]:
        return [rng.normal(size=s).astype(np.float32) for s in (shape, (channels,), (channels,), shape)]

    return Operation(
        "batch norm " + "x".join(map(str, shape)),
        arrays,
        lambda o, x, g, b, w: o.batch_norm(x, g, b),
        (2 * n, 3 * n),
        n,
        3,
        lambda o, x, g, b, w: (o.batch_norm(x, g, b) * w).sum(),
    )


def _max_pool(*shape: int) -> Operation:
    n = int(np.prod(shape))
    half = (*shape[:2], shape[2] // 2, shape[3] // 2)
    return Operation(
        "max-pool 2x2 " + "x".join(map(str, shape)),
        lambda rng: [rng.normal(size=s).astype(np.float32) for s in (shape, half)],
        lambda o, x, w: o.max_pool(x),
        (n + n // 4, 2 * n + n // 4),
        n,
        loss=lambda o, x, w: (o.max_pool(x) * w).sum(),
    )


ADAM = "Adam update, 1 M"
OPERATIONS = {
    op.name: op
    for op in (
        *map(_unary, ("exp", "tanh", "sigmoid", "erf", "log", "sin", "cos", "gelu")),
        _softmax(1024, 65),
        _softmax(4096, 1000),
        _layer_norm(1024, 128),
        _layer_norm(4096, 1000),
        _cross_entropy(1024, 65),
        _cross_entropy(4096, 1000),
        _batch_norm(32, 64, 32, 32),
        _max_pool(64, 32, 26, 26),
    )
}

# ------------------------------------------------------------------------------------------------ the libraries


def _composed(np_: Any, stop: Any, erf: Any, one_hot: Any, pool: Any) -> dict[str, Any]:
    """What is written in terms of array functions, for the libraries that compile."""

    def softmax(x: Any) -> Any:
        e = np_.exp(x - stop(x.max(1, keepdims=True)))
        return e / e.sum(1, keepdims=True)

    def norm(x: Any, axes: Any, g: Any, b: Any) -> Any:
        centred = x - x.mean(axes, keepdims=True)
        return centred / np_.sqrt((centred * centred).mean(axes, keepdims=True) + 1e-5) * g + b

    def cross_entropy(x: Any, y: Any) -> Any:
        shifted = x - stop(x.max(1, keepdims=True))
        logp = shifted - np_.log(np_.exp(shifted).sum(1, keepdims=True))
        return -np_.where(one_hot(y, x.shape[1]), logp, 0.0).sum() / x.shape[0]

    return {
        "gelu": lambda x: 0.5 * x * (1.0 + erf(x * 0.7071067811865476)),
        "softmax": softmax,
        "layer_norm": lambda x, g, b: norm(x, 1, g, b),
        "batch_norm": lambda x, g, b: norm(x, (0, 2, 3), g[:, None, None], b[:, None, None]),
        "cross_entropy": cross_entropy,
        "max_pool": pool,
    }


def _adam(np_: Any) -> Callable[..., Any]:
    def update(p: Any, m: Any, v: Any, g: Any) -> Any:
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        return p - 1e-3 * (m / 0.1) / (np_.sqrt(v / 0.001) + 1e-8), m, v

    return update


def _adam_arrays(rng: np.random.Generator) -> list[np.ndarray]:
    p, m, v, g = (rng.normal(size=MILLION).astype(np.float32) for _ in range(4))
    return [p, m, v * v, g]


def _functional(ops: SimpleNamespace, module: Any, array: Any, wait: Any, jit: Any, donating: Any) -> Any:
    """The calls of a library with jit and value_and_grad."""

    def call(name: str, kind: str) -> Callable[[], Any] | None:
        rng = np.random.default_rng(0)
        if name == ADAM:
            p, m, v, g = map(array, _adam_arrays(rng))
            state, step = [p, m, v], donating(_adam(ops.np))

            def update() -> None:
                state[:] = step(*state, g)
                wait(state[0])

            return update if kind == "forward" else None
        if name == COPY:
            return None
        op = OPERATIONS[name]
        arrays = [array(a) for a in op.arrays(rng)]
        loss = op.loss or (lambda o, *a: op.value(o, *a).sum())
        if kind == "forward":
            f = jit(lambda *a: op.value(ops, *a))
        else:
            f = jit(module.value_and_grad(lambda *a: loss(ops, *a), argnums=tuple(range(op.wrt))))
        return lambda: wait(f(*arrays))

    return call


def fgrad_calls(threads: int) -> Any:
    import fgrad
    import fgrad.numpy as fnp
    from fgrad import lax, special

    pool = lambda x: lax.max_pool(x, 2)
    one_hot = lambda y, n: y[:, None] == fnp.arange(n)
    ops = SimpleNamespace(
        np=fnp,
        erf=special.erf,
        sigmoid=special.sigmoid,
        **{n: getattr(fnp, n) for n in ("exp", "tanh", "log", "sin", "cos")},
        **_composed(fnp, fgrad.stop_gradient, special.erf, one_hot, pool),
    )
    return _functional(
        ops, fgrad, fnp.asarray, lambda x: x, fgrad.jit, lambda f: fgrad.jit(f, donate=(0, 1, 2))
    )


def jax_calls(threads: int) -> Any:
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    import jax.numpy as jnp

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    erf = jax.scipy.special.erf
    ops = SimpleNamespace(
        np=jnp,
        erf=erf,
        sigmoid=jax.nn.sigmoid,
        **{n: getattr(jnp, n) for n in ("exp", "tanh", "log", "sin", "cos")},
        **_composed(jnp, jax.lax.stop_gradient, erf, lambda y, n: y[:, None] == jnp.arange(n), pool),
    )
    donating = lambda f: jax.jit(f, donate_argnums=(0, 1, 2))
    return _functional(ops, jax, jnp.asarray, jax.block_until_ready, jax.jit, donating)


def torch_calls(threads: int) -> Any:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    ops = SimpleNamespace(
        **{n: getattr(torch, n) for n in ("exp", "tanh", "log", "sin", "cos", "sigmoid", "erf")},
        gelu=F.gelu,
        softmax=lambda x: F.softmax(x, 1),
        layer_norm=lambda x, g, b: F.layer_norm(x, x.shape[1:], g, b),
        batch_norm=lambda x, g, b: F.batch_norm(x, None, None, g, b, training=True),
        cross_entropy=F.cross_entropy,
        max_pool=lambda x: F.max_pool2d(x, 2),
    )

    def call(name: str, kind: str) -> Callable[[], Any] | None:
        rng = np.random.default_rng(0)
        if name == ADAM:
            p, _, _, g = map(torch.from_numpy, _adam_arrays(rng))
            p.grad = g
            optimizer = torch.optim.Adam([p.requires_grad_()], lr=1e-3, fused=True)
            return optimizer.step if kind == "forward" else None
        if name == COPY:
            x, y = torch.ones(2, MILLION * 16)
            return lambda: y.copy_(x)
        op = OPERATIONS[name]
        arrays = [torch.from_numpy(a) for a in op.arrays(rng)]
        if kind == "forward":
            return lambda: op.value(ops, *arrays)
        loss = op.loss or (lambda o, *a: op.value(o, *a).sum())
        wanted = [a.requires_grad_() for a in arrays[: op.wrt]]
        return lambda: torch.autograd.grad(loss(ops, *arrays), wanted)

    return call


def numpy_calls(threads: int) -> Any:
    def call(name: str, kind: str) -> Callable[[], Any] | None:
        if kind != "forward" or threads > 1:
            return None
        if name == COPY:
            x, y = np.ones((2, MILLION * 16), np.float32)
            return lambda: np.copyto(y, x)
        plain = name.split(",")[0]
        if plain not in ("exp", "tanh", "log", "sin", "cos"):
            return None
        (x,) = OPERATIONS[name].arrays(np.random.default_rng(0))
        return lambda: getattr(np, plain)(x)

    return call


# ------------------------------------------------------------------------------------------------ measuring


def serve(library: str, threads: int) -> None:
    """The worker: for each line `name<tab>kind` on stdin, the nanoseconds of one call, or "absent"."""
    try:
        calls = globals()[f"{library}_calls"](threads)
    except ImportError:
        calls = lambda name, kind: None
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    ready: dict[str, tuple[Callable[[], Any], int] | None] = {}
    for line in sys.stdin:
        name, kind = line.rstrip("\n").split("\t")
        if line not in ready:
            f = calls(name, kind)
            ready.clear()  # the arrays of the last operation
            if f is not None:
                for _ in range(3):
                    f()
                begin = time.perf_counter()
                f()
                ready[line] = f, max(1, int(ROUND_SECONDS / 4 / (time.perf_counter() - begin)))
            else:
                ready[line] = None
        found = ready[line]
        if found is None:
            print("absent", flush=True)
            continue
        f, repeats = found
        best = float("inf")
        for _ in range(4):
            begin = clock()
            for _ in range(repeats):
                f()
            best = min(best, (clock() - begin) / repeats)
        print(best, flush=True)


class Worker:
    def __init__(self, library: str, threads: int):
        command = [sys.executable, __file__, "--serve", library, str(threads)]
        limits = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | limits
        )

    def ask(self, name: str, kind: str) -> float | None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{name}\t{kind}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"{' '.join(self.process.args)} ended at {name}, {kind}")  # type: ignore[arg-type]
        return None if answer == "absent" else float(answer)


def best_times(workers: dict[str, Worker], name: str, kind: str, rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for library, worker in workers.items():
            ns = worker.ask(name, kind)
            if ns is not None:
                found.setdefault(library, []).append(ns)
    return {library: min(times) for library, times in found.items()}


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        return serve(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="beginnings of names, comma separated (default: all)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="threads of the second measurement")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    chosen = [n.strip() for n in options.only.split(",") if n.strip()]
    names = [n for n in (*OPERATIONS, ADAM) if not chosen or any(n.startswith(c) for c in chosen)]
    settings = {1: "CPU, 1 thread", options.threads: f"wall, {options.threads} threads"}
    rows: list[dict[str, Any]] = []
    for threads, clock in settings.items():
        workers = {library: Worker(library, threads) for library in LIBRARIES}
        copies = best_times(workers, COPY, "forward", options.rounds)
        copy = max(8.0 * 16 * MILLION / ns for ns in copies.values())
        print(f"# {clock}: a copy of 64 MB, read and written, GB/s: {copy:.1f}", flush=True)
        for name in names:
            elements, moved = (
                (MILLION, (7 * MILLION, 0))
                if name == ADAM
                else (OPERATIONS[name].elements, OPERATIONS[name].moved)
            )
            for kind, traffic in zip(("forward", "value and gradient"), moved):
                times = best_times(workers, name, kind, options.rounds)
                if "fgrad" not in times:
                    continue
                row: dict[str, Any] = {"operation": name, "kind": kind, "clock": clock}
                for library in LIBRARIES:
                    row[library] = times[library] / elements if library in times else ""
                peers = [t for library, t in times.items() if library != "fgrad"]
                row["ratio"] = min(peers) / times["fgrad"] if peers else ""
                row["gbs"] = 4.0 * traffic / times["fgrad"]
                row["of copy"] = row["gbs"] / copy
                rows.append(row)
                shown = "  ".join(f"{n} {row[n]:7.3f}" for n in LIBRARIES if row[n] != "")
                print(
                    f"{name:28} {kind:19} ns/element: {shown}   x{row['ratio']:.2f}  {row['gbs']:.1f} GB/s",
                    flush=True,
                )
        for worker in workers.values():
            worker.process.communicate()
    headings = {"operation": "operation", "kind": "", "clock": ""} | {
        library: f"{library}, ns/element" for library in LIBRARIES
    }
    headings |= {"ratio": "best peer / fgrad", "gbs": "GB/s", "of copy": "of a copy"}
    print("\n" + table(rows, headings))
    save(options.json, rows)


if __name__ == "__main__":
    main()
