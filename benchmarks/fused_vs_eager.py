"""fgrad compiled against fgrad eager and, where it is a formula, against NumPy written by hand.

    python benchmarks/fused_vs_eager.py [--only W1,W7] [--rounds 5] [--json FILE]

Needs nothing but fgrad. Results are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fgrad
import fgrad.numpy as fnp

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timing import interleaved, save, table
from workloads import WORKLOADS, fgrad_ops, functional_step

# ------------------------------------------------------------------------------------------------ formulas: (fgrad, NumPy, inputs)


def softmax(x: Any) -> Any:
    e = fnp.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def numpy_softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def layer_norm(x: Any) -> Any:
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / fnp.sqrt(fnp.mean(centred * centred, axis=1, keepdims=True) + 1e-5)


def numpy_layer_norm(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt(np.mean(centred * centred, axis=1, keepdims=True) + np.float32(1e-5))


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + fnp.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def numpy_gelu(x: np.ndarray) -> np.ndarray:
    half, k, c = np.float32(0.5), np.float32(0.7978845608), np.float32(0.044715)
    return half * x * (1 + np.tanh(k * (x + c * x * x * x)))


def normals(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


FORMULAS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any], np.ndarray, int]] = {
    "gelu": ("gelu, 1 M", gelu, numpy_gelu, normals(1_000_000), 10),
    "softmax": ("softmax of 4096 rows of 256", softmax, numpy_softmax, normals(4096, 256), 10),
    "layernorm": ("layer norm of 4096 rows of 256", layer_norm, numpy_layer_norm, normals(4096, 256), 10),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names, comma separated (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    chosen = [n.strip() for n in options.only.split(",") if n.strip()] or [*FORMULAS, *WORKLOADS]

    rows: list[dict[str, Any]] = []
    for name in chosen:
        if name in FORMULAS:
            what, f, by_numpy, data, repeats = FORMULAS[name]
            x, compiled = fnp.asarray(data), fgrad.jit(f)
            reference = by_numpy(data)
            difference = float(np.abs(np.asarray(compiled(x)) - reference).max() / np.abs(reference).max())
            candidates: dict[str, Callable[[], Any]] = {
                "fused": lambda compiled=compiled, x=x: compiled(x),
                "eager": lambda f=f, x=x: f(x),
                "numpy": lambda by_numpy=by_numpy, data=data: by_numpy(data),
            }
        elif name in WORKLOADS:
            w = WORKLOADS[name]
            fused, eager = (
                functional_step(fgrad_ops(), w)[0],
                functional_step(fgrad_ops(), w, compiled=False)[0],
            )
            a, b = float(fused()), float(eager())
            difference = abs(a - b) / abs(b)
            candidates = {"fused": fused, "eager": eager}
            what, repeats = w.what, max(1, w.repeats // 10)
        else:
            parser.error(f"unknown name {name!r}; there are {', '.join([*FORMULAS, *WORKLOADS])}")
        times = interleaved(candidates, repeats, options.rounds)
        row = {"workload": name, "what": what, "difference": difference}
        row |= {f"{k}_us": v for k, v in times.items()}
        row["eager_ratio"] = times["eager"] / times["fused"]
        if "numpy" in times:
            row["numpy_ratio"] = times["numpy"] / times["fused"]
        rows.append(row)
        print(
            f"{name:10} fused {times['fused']:12.1f} us   eager {row['eager_ratio']:6.2f} x slower   difference {difference:.1e}"
        )
    headings = {
        "workload": "",
        "what": "what",
        "fused_us": "fused µs",
        "eager_us": "eager µs",
        "numpy_us": "NumPy µs",
        "eager_ratio": "eager / fused",
        "numpy_ratio": "NumPy / fused",
        "difference": "rel. difference",
    }
    print("\n" + table(rows, headings))
    save(options.json, rows)


if __name__ == "__main__":
    main()
