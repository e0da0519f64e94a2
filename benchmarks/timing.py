"""Timing that noise moves little: rounds of all candidates in turn, the median over rounds, losses compared."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def interleaved(candidates: Mapping[str, Callable[[], Any]], repeats: int, rounds: int) -> dict[str, float]:
    """Median microseconds a call of each candidate; every round times each of them once, `repeats` calls."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        for _ in range(3):
            call()
    for _ in range(rounds):
        for name, call in candidates.items():
            begin = time.perf_counter()
            for _ in range(repeats):
                call()
            times[name].append((time.perf_counter() - begin) / repeats * 1e6)
    return {name: statistics.median(found) for name, found in times.items()}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def table(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as a Markdown table; `columns` maps keys to headings."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return (
                f"{value:.1e}"
                if value and abs(value) < 1e-3
                else f"{value:,.2f}"
                if value < 100
                else f"{value:,.0f}"
            )
        return str(value)

    lines = ["| " + " | ".join(columns.values()) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(cell(r.get(k, "")) for k in columns) + " |" for r in rows]
    return "\n".join(lines)


def save(path: str | None, rows: list[dict[str, Any]]) -> None:
    """Rows as JSON, with the machine beside them."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
        print(f"written to {path}")
