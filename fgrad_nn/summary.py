"""A table of a network's layers as it runs: path, kind, output shape, number of parameters."""

from __future__ import annotations

from typing import Any

import fgrad
from fgrad import random, tree
from fgrad_nn import show
from fgrad_nn.module import Bound, Module, Run


def summary(net: Module, params: Any, *inputs: Any, state: Any = None) -> str:
    """The table, as text. Nothing is computed: the network is traced with the shapes.

        >>> print(nn.summary(net, params, (64, 1, 28, 28)))
        layer   kind                output            parameters
        conv1   Conv2d(1, 32, 3)    (64, 32, 26, 26)         320
        ...

    Args:
        params: of the network; None makes them up.
        inputs: for each input a shape (of float32), or an array, or anything with `shape` and `dtype`.
        state: of the network; made up if None.
    """
    if params is None:
        params = show.shapes(lambda: net.init(random.key(0)))
    state = net.init_state() if state is None else state
    specs = [show.Shape(tuple(x), "float32") if isinstance(x, (tuple, list)) else x for x in inputs]
    rows: list[tuple[str, str, str, str]] = []

    def on_call(path: tuple[str, ...], layer: Any, out: Any) -> None:
        own = params
        for name in path:
            own = own.get(name, {}) if isinstance(own, dict) else {}
        inner = any(True for _ in show.children(layer))
        kind = type(layer).__name__ if inner else show.layer_text(layer)
        rows.append(
            (".".join(path) or "(network)", kind, _shapes(out), f"{show.count(own):,}" if own else "")
        )

    def record(params: Any, state: Any, *arrays: Any) -> Any:
        run = Run(None, False, state)
        run.on_call = on_call
        return net._enter(Bound(net, params, run, ()), arrays, {})

    fgrad.make_graph(record)(params, state, *specs)
    head = ("layer", "kind", "output", "parameters")
    total = show.count(params)
    body = [r for r in rows if r[0] != "(network)"]
    widths = [max(len(r[i]) for r in [head, *body]) for i in range(4)]
    rule = "-" * (sum(widths) + 6)
    lines = [_line(head, widths), rule, *(_line(r, widths) for r in body), rule]
    size = sum(leaf.dtype.itemsize * show.count(leaf) for leaf in tree.leaves(params))
    lines.append(f"output {rows[-1][2]}; {total:,} parameters, {_bytes(size)}")
    return "\n".join(lines)


def _line(row: tuple[str, str, str, str], widths: list[int]) -> str:
    a, b, c, d = row
    return f"{a:{widths[0]}}  {b:{widths[1]}}  {c:{widths[2]}}  {d:>{widths[3]}}".rstrip()


def _shapes(out: Any) -> str:
    return ", ".join(str(tuple(leaf.shape)) for leaf in tree.leaves(out))


def _bytes(n: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.4g} {unit}"
        n /= 1024  # type: ignore[assignment]
    return f"{n:.4g} GiB"
