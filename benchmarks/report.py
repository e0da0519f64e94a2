"""Write the measured tables into the README, from the JSON files that the benchmarks left.

python benchmarks/peers.py --json benchmarks/results/cpu.json
python benchmarks/epochs.py --json benchmarks/results/epochs.json
python benchmarks/fused_vs_eager.py --json benchmarks/results/fused_vs_eager.json
python benchmarks/startup.py --json benchmarks/results/startup.json
python benchmarks/limits.py --json benchmarks/results/limits.json
python benchmarks/profile_w3.py --json benchmarks/results/profile_w3.json
python benchmarks/products.py --json benchmarks/results/products.json
python benchmarks/contraction.py --json benchmarks/results/contraction.json
python benchmarks/operations.py --json benchmarks/results/operations.json
python benchmarks/overhead.py --json benchmarks/results/overhead.json
python benchmarks/gpu.py --json benchmarks/results/cuda.json          (on a machine with an NVIDIA GPU)
python benchmarks/report.py
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import report_gpu  # noqa: E402
import report_operations  # noqa: E402
from limits import tables as limit_tables  # noqa: E402
from timing import table  # noqa: E402

PROFILE = (
    "<!-- profile: written by benchmarks/report.py -->",
    "<!-- end of profile -->",
)
CUDA = ("<!-- cuda: written by benchmarks/report.py -->", "<!-- end of cuda -->")
BEGIN, END = "<!-- measured: written by benchmarks/report.py -->", "<!-- end of measured -->"


def load(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    found = json.loads((HERE / "results" / f"{name}.json").read_text())
    return found["machine"], found["rows"]


# What `benchmarks/peers.py` is to show at least: the ratio to the fastest peer, or to one by name.
TARGETS: dict[str, dict[str, float]] = {
    "W1": {"": 6},
    "W2": {"": 3.5},
    "W3": {"": 3},
    "W4": {"": 2.5},
    "W5": {"PyTensor": 1.3, "JAX": 2, "PyTorch": 20},
    "W6": {"": 1.3},
    "W7": {"": 1.8},
    "W8": {"": 1.6},
    "W9": {"": 1.6},
}
# column -> the peers of which the fastest counts
COLUMNS = {
    "PyTorch": ("pytorch eager",),
    "torch.compile": ("torch.compile loss", "torch.compile step"),
    "JAX": ("jax jit",),
    "PyTensor": ("pytensor",),
}


def merged_steps() -> list[dict[str, Any]]:
    """One row a workload: fgrad, each peer, the ratio to the fastest, how far that is from the target and the machine's limit."""
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for r in load("cpu")[1]:
        by_name.setdefault(r["workload"], {})[r["peer"]] = r
    merged = []
    for name, found in by_name.items():
        any_row = next(iter(found.values()))
        row = {k: any_row[k] for k in ("workload", "what", "fgrad_us")}
        for column, names in COLUMNS.items():
            times = [found[n]["peer_us"] for n in names if n in found]
            row[column] = min(times) if times else "–"
        times = {c: row[c] for c in COLUMNS if row[c] != "–"}
        row["best"] = min(times, key=lambda c: times[c])
        row["ratio"] = times[row["best"]] / row["fgrad_us"]
        wanted, missed = TARGETS.get(name, {}), []
        for peer, target in wanted.items():
            reached = (times.get(peer, math.nan) if peer else times[row["best"]]) / row["fgrad_us"]
            if not reached >= target:
                missed.append(f"{reached:.1f} of {target:g}" + (f" ({peer})" if peer else ""))
        row["target"] = ", ".join(f"{t:g}" + (f" ({p})" if p else "") for p, t in wanted.items())
        row["met"] = "**no**: " + ", ".join(missed) if missed else "yes"
        row["limit"] = f"{100 * any_row['limit_us'] / row['fgrad_us']:.0f}"
        row["memory"] = f"{any_row['fgrad_bytes'] / 1e6:,.0f}"
        torch_row = found.get("pytorch eager")
        row["torch_memory"] = f"{torch_row['peer_bytes'] / 1e6:,.0f}" if torch_row else "–"
        row["loss"] = f"{any_row['loss']:.4f}"
        row["loss_rel_diff"] = max(r["loss_rel_diff"] for r in found.values())
        row["grad_rel_diff"] = max(r["grad_rel_diff"] for r in found.values())
        merged.append(row)
    return merged


def steps() -> str:
    headings = {
        "workload": "",
        "what": "one training step of",
        "fgrad_us": "fgrad µs",
        **{c: f"{c} µs" for c in COLUMNS},
        "ratio": "fastest peer / fgrad",
        "target": "target",
        "met": "met",
        "limit": "% of the limit",
        "memory": "fgrad MB",
        "torch_memory": "PyTorch MB",
        "loss": "first loss",
        "loss_rel_diff": "loss, rel. difference",
        "grad_rel_diff": "gradients, rel. difference",
    }
    return table(merged_steps(), headings)


def chart() -> str:
    """Draw the ratios as bars, into `results/cpu.png`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = merged_steps()
    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(COLUMNS)
    for n, column in enumerate(COLUMNS):
        at = [i + (n - (len(COLUMNS) - 1) / 2) * width for i, r in enumerate(rows) if r[column] != "–"]
        heights = [r[column] / r["fgrad_us"] for r in rows if r[column] != "–"]
        axes.bar(at, heights, width, label=column)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.set_yticks([0.5, 1, 2, 5, 10, 20], labels=["0.5", "1", "2", "5", "10", "20"])
    axes.set_xticks(range(len(rows)), labels=[r["workload"] for r in rows])
    axes.set_ylabel("times as long as fgrad")
    axes.set_title("One training step: how many times as long each library takes")
    figure.legend(ncols=len(COLUMNS), frameon=False, loc="outside lower center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "results" / "cpu.png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return "![How many times as long each library takes for one training step](benchmarks/results/cpu.png)"


def epochs() -> str:
    headings = {
        "workload": "",
        "what": "an epoch of",
        "epochs": "epochs",
        "fgrad_s": "fgrad, s an epoch",
        "pytorch_s": "PyTorch, s an epoch",
        "ratio": "ratio",
        "pytorch_loading": "PyTorch loads",
        "fgrad_eval_s": "fgrad, s to test",
        "pytorch_eval_s": "PyTorch, s to test",
        "fgrad_accuracy": "fgrad accuracy %",
        "pytorch_accuracy": "PyTorch accuracy %",
    }
    return table(load("epochs")[1], headings)


def eager() -> str:
    headings = {
        "workload": "",
        "what": "what",
        "fused_us": "compiled µs",
        "eager_us": "fgrad eager µs",
        "numpy_us": "NumPy µs",
        "eager_ratio": "eager / compiled",
    }
    return table(load("fused_vs_eager")[1], headings)


def startup() -> str:
    headings = {
        "workload": "",
        "import_s": "import s",
        "cold_s": "first step, cold s",
        "warm_s": "from the disk cache s",
    }
    return table(load("startup")[1], headings)


def overhead() -> str:
    """What a call costs, if `overhead.py` has left it."""
    if not (HERE / "results" / "overhead.json").exists():
        return ""
    headings = {
        "leaves": "arrays in and out",
        "kind": "",
        "fgrad_us": "fgrad µs",
        "jax_us": "jax.jit µs",
        "ratio": "ratio",
    }
    text = "\nA call of a compiled function that does next to nothing (`benchmarks/overhead.py`):\n\n"
    return f"{text}{table(load('overhead')[1], headings)}\n"


def operations() -> str:
    """Single operations, as far as their benchmarks have left results."""
    makers = {
        "products": report_operations.products,
        "contraction": report_operations.contractions,
        "operations": report_operations.operations,
    }
    found = [
        make(load(name)[1]) for name, make in makers.items() if (HERE / "results" / f"{name}.json").exists()
    ]
    return "\nSingle operations:\n\n" + "\n\n".join(found) + "\n" if found else ""


def limits() -> str:
    """What the machine can do at best, if `limits.py` has left it."""
    found = HERE / "results" / "limits.json"
    if not found.exists():
        return ""
    text = "\nThe machine at its best (`benchmarks/limits.py`), which is what per cents of the limit refer to:\n\n"
    return f"{text}{limit_tables(json.loads(found.read_text()))}\n"


def cuda() -> str:
    """What `gpu.py` measured, or that nothing was."""
    found = HERE / "results" / "cuda.json"
    return report_gpu.tables(json.loads(found.read_text())) if found.exists() else report_gpu.NOTHING


def profile() -> str:
    """What `fgrad.profile` prints for a training step of W3, if `profile_w3.py` has left it."""
    found = HERE / "results" / "profile_w3.json"
    return f"```text\n{json.loads(found.read_text())['text']}\n```" if found.exists() else ""


def between(text: str, marks: tuple[str, str], new: str) -> str:
    """`text` with what stands between two marks replaced."""
    before, rest = text.split(marks[0], 1)
    return f"{before}{marks[0]}\n\n{new}\n\n{marks[1]}{rest.split(marks[1], 1)[1]}"


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    machine, _ = load("cpu")
    text = f"""{BEGIN}

Measured on {machine["cores"]} cores ({machine["cpu"]}), Python {machine["python"]}, float32, all libraries with all cores; medians of interleaved rounds of
one run of `benchmarks/peers.py`, each library in its own process, which also compares losses and gradients. Ratios above 1: fgrad is faster. The limit
is the time that the products take at the measured FMA peak of all cores, or that inputs and outputs take through memory, whichever is longer.
torch.compile is the faster of its two forms (neither compiles W9's LSTM). More than 100 % of the limit is Winograd's work, which does with fewer products. W6's
gradients jump where an activation of two million changes sign in rounding, as those of JAX do; with tanh for ReLU they agree with float64 to 1e-4 (`tests/test_workloads.py`). Memory is what a process holds at most while steps run, beyond what it held after importing the library.

{chart()}

{steps()}

Whole epochs on real data, loading included (`benchmarks/epochs.py`, PyTorch with its own `DataLoader`):

{epochs()}

Compiled and eager (`benchmarks/fused_vs_eager.py`; both in one process beside NumPy's threads, so compare within this table only), and
starting up in a new process (`benchmarks/startup.py`):

{eager()}

{startup()}
{overhead()}{operations()}{limits()}
{END}"""
    readme = HERE.parent / "README.md"
    old = readme.read_text()
    before, rest = old.split(BEGIN, 1)
    new = before + text + rest.split(END, 1)[1]
    if shown := profile():
        new = between(new, PROFILE, shown)
    new = between(new, CUDA, cuda())
    readme.write_text(new)
    print(f"written to {readme}")


if __name__ == "__main__":
    main()
