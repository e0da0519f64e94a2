"""What `gpu.py` measured, as Markdown: printed after a run, and written into the README by `report.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timing import table

NOTHING = "No figures from hardware yet: no GPU was at hand; `python benchmarks/gpu.py` measures them."
# column -> the ways of which the fastest counts
COLUMNS = {
    "fgrad": ("fgrad",),
    "fgrad, launch by launch": ("fgrad launches",),
    "PyTorch": ("pytorch eager",),
    "PyTorch, CUDA graph": ("pytorch graph",),
    "torch.compile": ("torch.compile loss", "torch.compile step"),
    "torch.compile, CUDA graphs": ("torch.compile loss graphs", "torch.compile step graphs"),
    "JAX": ("jax jit",),
}
LAUNCH_BOUND = ("W1", "W2", "W3", "W4", "W5")
TARGETS = {"PyTorch": 5.0, "JAX": 1.5}
Row = dict[str, Any]
Found = dict[str, Any]


def tables(found: Found) -> str:
    """All that was measured; `found` is what the JSON file holds."""
    parts = [_machine(found["machine"])]
    for section, write in (
        ("ceilings", _ceilings),
        ("products", _products),
        ("convolutions", _convolutions),
        ("steps", _steps),
        ("startup", _startup),
        ("check", _check),
    ):
        if found.get(section):
            parts.append(write(found))
    return "\n\n".join(parts)


def _machine(on: Row) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in on["versions"].items())
    driver = f", driver {on['driver']}" if on.get("driver") else ""
    clock = f", at most {on['highest_clock']}" if on.get("highest_clock") else ""
    return f"On {on['gpu']}{clock}{driver}, Python {on['python']}: {versions}."


def _met(reached: float, target: float) -> str:
    return "yes" if reached >= target else f"**no**: {reached:.2f} of {target:g}"


def _device(r: Row) -> float:
    return r.get("device_us", r["wall_us"])


# ------------------------------------------------------------------------------------------------ ceilings


def _copy(found: Found, nbytes: int) -> float | None:
    """GB/s of the fastest copy of about as many bytes as something else moves."""
    copies = [r for r in found.get("ceilings", ()) if r["ceiling"] == "copy"]
    if not copies:
        return None
    nearest = min((r["bytes"] for r in copies), key=lambda b: abs(b - nbytes))
    return max(r["gbs"] for r in copies if r["bytes"] == nearest)


def _multiply_adds(found: Found) -> float | None:
    return next((r["tflops"] for r in found.get("ceilings", ()) if r["ceiling"] == "multiply_adds"), None)


def _ceilings(found: Found) -> str:
    hows = {"kernel": "a kernel of fgrad's", "driver": "the driver (cuMemcpy)", "copy_": "PyTorch"}
    rows = [
        {"what": f"copy of {r['bytes'] / 2e6:,.0f} MB by {hows[r['how']]}, GB/s", "found": r["gbs"]}
        for r in found["ceilings"]
        if r["ceiling"] == "copy"
    ]
    if (peak := _multiply_adds(found)) is not None:
        rows.append({"what": "float32 multiply-adds on registers, TFLOP/s", "found": peak})
    products = found.get("products", [])
    for precision in dict.fromkeys(r["precision"] for r in products):
        best = max((r for r in products if r["precision"] == precision), key=lambda r: r["tflops"])
        what = f"fastest product, {precision} ({best['library']}, {best['case']}), TFLOP/s"
        rows.append({"what": what, "found": best["tflops"]})
    text = "What the GPU can do at best (bytes read and written both count):\n\n"
    return text + table(rows, {"what": "", "found": ""})


# ------------------------------------------------------------------------------------------------ single operations


def _merged(rows: list[Row]) -> list[Row]:
    """One row for each case and precision, the libraries beside each other."""
    by_case: dict[tuple[str, str], dict[str, Row]] = {}
    for r in rows:
        by_case.setdefault((r["case"], r["precision"]), {})[r["library"]] = r
    merged = []
    for (case, precision), by in by_case.items():
        row: Row = {"case": case, "precision": precision}
        for library, r in by.items():
            row[library] = r["tflops"]
            row[f"{library} error"] = r["error"]
        peers = [v["tflops"] for k, v in by.items() if k != "fgrad"]
        row["best"] = max(peers) if peers else None
        row["ratio"] = row["fgrad"] / max(peers) if peers and "fgrad" in row else "–"
        merged.append(row)
    return merged


NAMES = {"fgrad": "fgrad", "torch": "PyTorch", "nvmath": "cuBLASLt (nvmath)"}


def _headings(rows: list[Row], ratio: str) -> dict[str, str]:
    there = [k for k in NAMES if any(k in r for r in rows)]
    speeds = {k: f"{NAMES[k]} TFLOP/s" for k in there}
    errors = {f"{k} error": f"{NAMES[k]}, error" for k in there}
    return {"case": "", "precision": "operands", **speeds, "ratio": ratio, **errors}


def _products(found: Found) -> str:
    rows, peak = _merged(found["products"]), _multiply_adds(found)
    for r in rows:
        if "fgrad" not in r:
            continue
        if r["precision"] == "float32" and peak:
            r["share"] = f"{100 * r['fgrad'] / peak:.0f}"
            r["met"] = _met(r["fgrad"] / peak, 0.7)
        elif r["precision"] == "tf32" and r["best"]:
            r["met"] = _met(r["ratio"], 0.5)
    headings = _headings(rows, "fgrad / best peer")
    headings |= {"share": "% of the multiply-adds", "met": "70 % of those, or half of cuBLAS in TF32"}
    text = "Square products (bf16: the arrays are bfloat16 too; errors are the largest, of the largest true value):"
    return f"{text}\n\n{table(rows, headings)}"


def _convolutions(found: Found) -> str:
    rows = _merged(found["convolutions"])
    text = "Convolutions of ResNet-18 at batch 128, against cuDNN through PyTorch:"
    return f"{text}\n\n{table(rows, _headings(rows, 'fgrad / PyTorch'))}"


# ------------------------------------------------------------------------------------------------ training steps


def _steps(found: Found) -> str:
    by_name: dict[str, dict[str, Row]] = {}
    for r in found["steps"]:
        by_name.setdefault(r["workload"], {})[r["way"]] = r
    rows, moved = [], []
    for name, by in by_name.items():
        if "fgrad" not in by:
            continue
        ours = by["fgrad"]
        row: Row = {"workload": name, "what": ours["what"], "wall": ours["wall_us"]}
        for column, ways in COLUMNS.items():
            times = [_device(by[way]) for way in ways if way in by]
            row[column] = min(times) if times else "–"
        missed = []
        for column, target in TARGETS.items():
            if row[column] == "–":
                row[f"{column} ratio"] = "–"
                continue
            # JAX has no events of its own: then both by the host's clock.
            row[f"{column} ratio"] = ratio = row[column] / (row["wall"] if column == "JAX" else row["fgrad"])
            if name in LAUNCH_BOUND and ratio < target:
                missed.append(f"{ratio:.2f} of {target:g} ({column})")
        judged = name in LAUNCH_BOUND and any(row[c] != "–" for c in TARGETS)
        row["met"] = ("**no**: " + ", ".join(missed) if missed else "yes") if judged else ""
        others = [r for way, r in by.items() if way != "fgrad"]
        for key in ("loss_rel_diff", "grad_rel_diff"):
            row[key] = max((r[key] for r in others), default="–")
        rows.append(row)
        if "gbs" in ours and (copy := _copy(found, ours["bytes"])):
            share = ours["gbs"] / copy
            moved.append({"workload": name, "gbs": ours["gbs"], "copy": copy, "met": _met(share, 0.8)})
    headings = {
        "workload": "",
        "what": "one training step of",
        **{c: f"{c} µs" for c in COLUMNS},
        "wall": "fgrad µs by the host's clock",
        "PyTorch ratio": "PyTorch / fgrad",
        "JAX ratio": "JAX / fgrad",
        "met": "5 × PyTorch, 1.5 × JAX",
        "loss_rel_diff": "loss, rel. difference",
        "grad_rel_diff": "gradients, rel. difference",
    }
    text = "Training steps, by events in the queue (JAX by the host's clock, as is fgrad where the two are compared):"
    text = f"{text}\n\n{table(rows, headings)}"
    if moved:
        columns = {
            "workload": "",
            "gbs": "GB/s",
            "copy": "the fastest copy of this size, GB/s",
            "met": "80 %",
        }
        text += f"\n\nMemory traffic (the input read and its gradient written, each once):\n\n{table(moved, columns)}"
    return text


# ------------------------------------------------------------------------------------------------ the rest


def _startup(found: Found) -> str:
    headings = {"workload": "", "cold_s": "first step, cold s", "warm_s": "from the disk cache s"}
    return f"Starting up in a new process:\n\n{table(found['startup'], headings)}"


def _check(found: Found) -> str:
    rows = found["check"]
    total = {k: sum(r[k] for r in rows) for k in ("float64", "own type", "no kernel", "failed")}
    # A primitive by name; if it has kernels for some types, with those for which it has none.
    without = [
        r["primitive"]
        if not any(r[k] for k in ("float64", "own type", "failed"))
        else f"{r['primitive']} ({'; '.join(r['without'])})"
        for r in rows
        if r["no kernel"]
    ]
    lines = [
        f"The sample table on the device, {len(rows)} primitives: {total['float64']} samples agree with float64 on the CPU, "
        f"{total['own type']} whose definition depends on the type agree with that, {total['no kernel']} have no kernel, "
        f"{total['failed']} fail."
    ]
    if without:
        lines.append(f"Without a kernel: {', '.join(without)}.")
    failures = [f"- {text}" for r in rows for text in r["failures"]]
    return "\n\n".join([*lines, *(["\n".join(failures)] if failures else [])])
