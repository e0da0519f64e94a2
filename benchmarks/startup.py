"""Seconds to import, and from import to the end of the first training step: cold (nothing cached) and warm (from the disk cache).

    python benchmarks/startup.py [--only W1,W3] [--runs 3] [--json FILE]

Every figure is the median over new processes. The cold runs use an empty cache directory of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

PROBE = """
import sys, time, json
sys.path.insert(0, {here!r})
begin = time.perf_counter()
import fgrad, fgrad.numpy
imported = time.perf_counter()
from workloads import WORKLOADS, fgrad_ops, functional_step
once, _ = functional_step(fgrad_ops(), WORKLOADS[{name!r}])
ready = time.perf_counter()
float(once())
print(json.dumps({{"import": imported - begin, "first_step": time.perf_counter() - ready, "numba": "numba" in sys.modules}}))
"""


def probe(name: str, cache: str) -> dict[str, Any]:
    environment = os.environ | {"FGRAD_CACHE_DIR": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    code = PROBE.format(here=str(HERE), name=name)
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="W1,W3,W4,W5,W6,W8,W9", help="workloads, comma separated")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()

    from timing import save, table

    rows = []
    with tempfile.TemporaryDirectory() as cache:  # what Python keeps of the modules is there from now on
        for _ in range(2):
            probe("W5", cache)
    for name in options.only.split(","):
        cold, warm = [], []
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory() as cache:
                cold.append(probe(name, cache))
                warm.append(probe(name, cache))
        assert not any(w["numba"] for w in warm), "a warm start must not import Numba"
        rows.append(
            {
                "workload": name,
                "import_s": statistics.median(r["import"] for r in cold + warm),
                "cold_s": statistics.median(r["first_step"] for r in cold),
                "warm_s": statistics.median(r["first_step"] for r in warm),
            }
        )
    print(
        table(
            rows,
            {
                "workload": "",
                "import_s": "import s",
                "cold_s": "first step, cold s",
                "warm_s": "first step, warm s",
            },
        )
    )
    save(options.json, rows)


if __name__ == "__main__":
    main()
