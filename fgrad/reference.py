"""Running a graph by the NumPy definitions of its primitives: slow, obvious, and what everything else is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fgrad.ir import Atom, Graph, Var


def run_numpy(graph: Graph, args: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of `graph` for NumPy inputs. Variables are dropped after their last use."""
    last: dict[Var, int] = {}
    for n, eqn in enumerate(graph.eqns):
        for a in eqn.inputs:
            if isinstance(a, Var):
                last[a] = n
    for a in graph.outputs:
        if isinstance(a, Var):
            last[a] = len(graph.eqns)
    env: dict[Var, np.ndarray] = dict(zip(graph.inputs, args, strict=True))

    def read(atom: Atom) -> np.ndarray:
        return env[atom] if isinstance(atom, Var) else np.asarray(atom.value)

    for n, eqn in enumerate(graph.eqns):
        with np.errstate(all="ignore"):
            result = eqn.prim.impl(*[read(a) for a in eqn.inputs], **eqn.params)
        for v, x in zip(eqn.outputs, result if eqn.prim.multiple else (result,), strict=True):
            env[v] = np.asarray(x)
        for a in {a for a in eqn.inputs if isinstance(a, Var)}:
            if last[a] == n:
                del env[a]
    return [read(a) for a in graph.outputs]
