"""Whole training steps of fgrad against PyTorch eager and JAX jit: same weights, same batches, losses and gradients compared.

    python benchmarks/peers.py [--only W1,W4] [--rounds 9] [--json FILE] [--threads N]

Needs the `bench` extra; a peer that is not installed is left out. Times are medians of interleaved rounds; only ratios of
one run mean anything on a shared machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="workloads, comma separated (default: all)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="threads for the peers (default: all cores)"
    )
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))

    import numpy as np
    from timing import interleaved, save, table
    from workloads import WORKLOADS, fgrad_ops, functional_step, jax_ops, torch_step

    chosen = [n.strip() for n in options.only.split(",") if n.strip()] or list(WORKLOADS)
    unknown = [n for n in chosen if n not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workloads {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")

    rows: list[dict[str, Any]] = []
    for name in chosen:
        w = WORKLOADS[name]
        made = {"fgrad": functional_step(fgrad_ops(), w)}
        try:
            import torch

            torch.set_num_threads(options.threads)
            made["pytorch eager"] = torch_step(w)
        except ImportError:
            print("PyTorch is not installed: pip install 'fgrad[bench]'", file=sys.stderr)
        try:
            made["jax jit"] = functional_step(jax_ops(), w)
        except ImportError:
            print("JAX is not installed: pip install 'fgrad[bench]'", file=sys.stderr)

        losses = {k: float(once()) for k, (once, _) in made.items()}
        gradients = {k: {n: np.asarray(v) for n, v in g().items()} for k, (_, g) in made.items()}
        times = interleaved({k: once for k, (once, _) in made.items()}, w.repeats, options.rounds)
        ours, mine = losses["fgrad"], gradients["fgrad"]
        for peer in made:
            if peer == "fgrad":
                continue
            difference = max(
                float(np.abs(mine[n] - gradients[peer][n]).max() / max(np.abs(mine[n]).max(), 1e-30))
                for n in mine
            )
            rows.append(
                {
                    "workload": name,
                    "what": w.what,
                    "peer": peer,
                    "peer_us": times[peer],
                    "fgrad_us": times["fgrad"],
                    "ratio": times[peer] / times["fgrad"],
                    "loss_rel_diff": abs(ours - losses[peer]) / abs(ours),
                    "grad_rel_diff": difference,
                }
            )
            r = rows[-1]
            print(
                f"{name} {peer:14} {r['peer_us']:10.1f} us   fgrad {r['fgrad_us']:10.1f} us   {r['ratio']:6.2f} x   loss {r['loss_rel_diff']:.1e}   gradient {difference:.1e}"
            )
    headings = {
        "workload": "",
        "what": "one step of",
        "peer": "peer",
        "peer_us": "peer µs",
        "fgrad_us": "fgrad µs",
        "ratio": "ratio",
        "loss_rel_diff": "loss, rel. difference",
    }
    print("\n" + table(rows, headings))
    save(options.json, rows)


if __name__ == "__main__":
    main()
