"""Write the measured tables into the README, from the JSON files that the benchmarks left.

python benchmarks/peers.py --json benchmarks/results/peers.json
python benchmarks/epochs.py --json benchmarks/results/epochs.json
python benchmarks/fused_vs_eager.py --json benchmarks/results/fused_vs_eager.json
python benchmarks/startup.py --json benchmarks/results/startup.json
python benchmarks/limits.py --json benchmarks/results/limits.json
python benchmarks/profile_w3.py --json benchmarks/results/profile_w3.json
python benchmarks/report.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from limits import tables as limit_tables  # noqa: E402
from timing import table  # noqa: E402

PROFILE = (
    "<!-- profile: written by benchmarks/report.py -->",
    "<!-- end of profile -->",
)
BEGIN, END = "<!-- measured: written by benchmarks/report.py -->", "<!-- end of measured -->"


def load(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    found = json.loads((HERE / "results" / f"{name}.json").read_text())
    return found["machine"], found["rows"]


def steps() -> str:
    """One row a workload: fgrad, each peer, and the ratios."""
    _, rows = load("peers")
    merged: dict[str, dict[str, Any]] = {}
    for r in rows:
        row = merged.setdefault(
            r["workload"], {"workload": r["workload"], "what": r["what"], "fgrad_us": r["fgrad_us"]}
        )
        row[r["peer"]], row[f"{r['peer']} ratio"] = r["peer_us"], r["ratio"]
        row["loss_rel_diff"] = max(row.get("loss_rel_diff", 0.0), r["loss_rel_diff"])
    headings = {
        "workload": "",
        "what": "one training step of",
        "fgrad_us": "fgrad µs",
        "pytorch eager": "PyTorch eager µs",
        "pytorch eager ratio": "ratio",
        "jax jit": "JAX jit µs",
        "jax jit ratio": "ratio",
        "loss_rel_diff": "loss, rel. difference",
    }
    return table(list(merged.values()), headings)


def epochs() -> str:
    headings = {
        "workload": "example",
        "epochs": "epochs",
        "fgrad_s": "fgrad, s an epoch",
        "pytorch_s": "PyTorch, s an epoch",
        "ratio": "ratio",
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


def limits() -> str:
    """What the machine can do at best, if `limits.py` has left it."""
    found = HERE / "results" / "limits.json"
    if not found.exists():
        return ""
    text = "\nThe machine at its best (`benchmarks/limits.py`), which is what per cents of the limit refer to:\n\n"
    return f"{text}{limit_tables(json.loads(found.read_text()))}\n"


def profile() -> str:
    """What `fgrad.profile` prints for a training step of W3, if `profile_w3.py` has left it."""
    found = HERE / "results" / "profile_w3.json"
    return f"```text\n{json.loads(found.read_text())['text']}\n```" if found.exists() else ""


def between(text: str, marks: tuple[str, str], new: str) -> str:
    """`text` with what stands between two marks replaced."""
    before, rest = text.split(marks[0], 1)
    return f"{before}{marks[0]}\n\n{new}\n\n{marks[1]}{rest.split(marks[1], 1)[1]}"


def main() -> None:
    machine, _ = load("peers")
    text = f"""{BEGIN}

Measured on {machine["cores"]} cores ({machine["cpu"]}), Python {machine["python"]}, float32, all libraries with all cores; medians of interleaved rounds of
one run of `benchmarks/peers.py`, each library in its own process, which also compares losses and gradients. Ratios above 1: fgrad is faster.

{steps()}

Whole epochs on real data, loading included (`benchmarks/epochs.py`, PyTorch with its own `DataLoader`):

{epochs()}

Compiled and eager (`benchmarks/fused_vs_eager.py`; both in one process beside NumPy's threads, so compare within this table only), and
starting up in a new process (`benchmarks/startup.py`):

{eager()}

{startup()}
{limits()}
{END}"""
    readme = HERE.parent / "README.md"
    old = readme.read_text()
    before, rest = old.split(BEGIN, 1)
    new = before + text + rest.split(END, 1)[1]
    if shown := profile():
        new = between(new, PROFILE, shown)
    readme.write_text(new)
    print(f"written to {readme}")


if __name__ == "__main__":
    main()
