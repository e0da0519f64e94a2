"""Graphs as text.

graph loss(w: float32[3,2], x: float32[4,3]) -> (float32[]):
  a: float32[4,2] = dot_general x w dims=(((1,), (0,)), ((), ()))   # train.py:12
  ...
"""

from __future__ import annotations

from collections.abc import Iterator
from keyword import iskeyword
from typing import Any

from fgrad.ir import Atom, Eqn, Graph, Literal, Var


def _names() -> Iterator[str]:
    n = 0
    while True:
        text, k = "", n
        while True:
            text = chr(ord("a") + k % 26) + text
            k = k // 26 - 1
            if k < 0:
                break
        if not iskeyword(text):  # kernels are printed as Python with these names
            yield text
        n += 1


class Namer:
    """Short names for variables, in order of first request."""

    def __init__(self) -> None:
        self._fresh = _names()
        self._names: dict[Var, str] = {}

    def __call__(self, atom: Atom) -> str:
        if isinstance(atom, Literal):
            return repr(atom.value.item()) if atom.value.dtype.kind != "V" else str(atom.value)
        if atom not in self._names:
            self._names[atom] = next(self._fresh)
        return self._names[atom]


def _param(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)


def eqn_text(eqn: Eqn, name: Namer, comment: bool = True) -> str:
    """`c: float32[3] = mul a b   # model.py:12`, without nested graphs."""
    outs = ", ".join(f"{name(v)}: {v.type}" for v in eqn.outputs)
    params = [f"{k}={_param(v)}" for k, v in eqn.params.items() if v is not None and not _has_graph(v)]
    text = " ".join([f"{outs} = {eqn.prim.name}", *[name(a) for a in eqn.inputs], *params])
    return f"{text}   # {eqn.source.short}" if comment and eqn.source else text


def _has_graph(value: Any) -> bool:
    return isinstance(value, Graph) or (
        isinstance(value, tuple) and bool(value) and isinstance(value[0], Graph)
    )


def graph_text(graph: Graph, indent: str = "") -> str:
    """The whole graph, nested graphs indented below the equation that holds them."""
    name = Namer()
    inputs = ", ".join(f"{name(v)}: {v.type}" for v in graph.inputs)
    lines = [f"{indent}graph {graph.name}({inputs}):"]
    for eqn in graph.eqns:
        lines.append(f"{indent}  {eqn_text(eqn, name)}")
        for key, value in eqn.params.items():
            if _has_graph(value):
                for n, sub in enumerate(value if isinstance(value, tuple) else (value,)):
                    label = f"{key}[{n}]" if isinstance(value, tuple) else key
                    lines.append(f"{indent}    {label}:")
                    lines.append(graph_text(sub, indent + "      "))
    lines.append(f"{indent}  return {', '.join(name(a) for a in graph.outputs)}")
    return "\n".join(lines)


Graph.__str__ = Graph.__repr__ = graph_text  # type: ignore[method-assign,assignment]  # printing a graph is this module's business
