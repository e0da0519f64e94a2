"""The tables of single operations for the README: products, convolutions, element-wise functions, and what of their targets is not met.

The targets: products faster than the better of NumPy and PyTorch; convolutions at 70 % of the FMA peak or twice PyTorch's speed; functions at least
as fast as NumPy and PyTorch; softmax, layer norm and cross-entropy at memory speed (of a large copy in the same run).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timing import table

FUNCTIONS = ("exp", "tanh", "sigmoid", "erf", "log", "sin", "cos")
AT_MEMORY_SPEED = ("softmax", "layer norm", "cross-entropy")
Rows = Sequence[dict[str, Any]]


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _verdict(rows: Rows, what: str) -> str:
    """How many rows meet their target, and which do not."""
    missed = [r["name"] for r in rows if not r["met"]]
    text = f"{what}: {len(rows) - len(missed)} of {len(rows)} meet the target"
    return f"{text}; not met: {', '.join(missed)}." if missed else f"{text}."


def products(rows: Rows) -> str:
    judged = [
        r | {"name": f"{r['size']} ({r['threads']} thread{'s' * (r['threads'] > 1)})", "met": r["ratio"] >= 1}
        for r in rows
    ]
    headings = {
        "name": "n (threads)",
        "fgrad": "fgrad GFLOP/s",
        "numpy": "NumPy GFLOP/s",
        "torch": "PyTorch GFLOP/s",
        "ratio": "fgrad / best peer",
    }
    text = _verdict(
        judged,
        "Square float32 products as users call them (`benchmarks/products.py`), faster than NumPy and PyTorch",
    )
    return f"{text}\n\n{_folded('all sizes', table(judged, headings))}"


def contractions(rows: Rows) -> str:
    """One thread: the convolutions of the workloads in each direction, and their products."""
    judged = []
    for r in rows:
        convolution = r["name"].endswith((" forward", " gradient"))
        enough = r["of_peak"] >= 0.7 or (r["ratio"] or 0) >= 2 if convolution else (r["ratio"] or 0) >= 1
        shown = {"percent": f"{100 * r['of_peak']:.0f}", "numpy_gflops": _or_dash(r["numpy_gflops"])}
        judged.append(r | shown | {"met": enough, "torch_gflops": _or_dash(r["torch_gflops"])})
    headings = {
        "name": "contraction",
        "us": "fgrad µs",
        "gflops": "fgrad GFLOP/s",
        "percent": "% of the FMA peak",
        "numpy_gflops": "NumPy GFLOP/s",
        "torch_gflops": "PyTorch GFLOP/s",
        "ratio": "fgrad / best peer",
    }
    what = "Contractions of the workloads on one thread, by CPU time (`benchmarks/contraction.py`; Winograd counted at the direct sum's FLOPs)"
    return f"{_verdict(judged, what)}\n\n{_folded('all contractions', table(judged, headings))}"


def _or_dash(value: float | None) -> float | str:
    return "–" if value is None else value


def operations(rows: Rows) -> str:
    judged = []
    for r in rows:
        name = f"{r['operation']}, {r['kind']}, {r['clock']}"
        if r["operation"].startswith(AT_MEMORY_SPEED):
            enough = r["of copy"] >= 0.7
        else:
            enough = r["ratio"] == "" or r["ratio"] >= 1
        judged.append(r | {"name": name, "met": enough, "copy": f"{100 * r['of copy']:.0f}"})
    libraries = [k for k in ("fgrad", "numpy", "torch", "jax") if any(r.get(k, "") != "" for r in rows)]
    headings = {
        "name": "operation",
        **{k: f"{k}, ns/element" for k in libraries},
        "ratio": "best peer / fgrad",
        "gbs": "GB/s",
        "copy": "% of a copy",
    }
    functions = [r for r in judged if r["operation"].split(",")[0] in FUNCTIONS and r["kind"] == "forward"]
    rest = [r for r in judged if r["operation"].startswith(AT_MEMORY_SPEED)]
    text = "\n\n".join(
        [
            _verdict(
                functions, "Element-wise functions (`benchmarks/operations.py`), as fast as NumPy and PyTorch"
            ),
            _verdict(rest, "Softmax, layer norm and cross-entropy at 70 % of a large copy's speed"),
        ]
    )
    return f"{text}\n\n{_folded('all operations', table(judged, headings))}"
