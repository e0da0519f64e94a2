"""Networks as text, and the walk over their layers that this and `Module` share.

Net(                                              parameters
  (conv1): Conv2d(1, 32, kernel_size=3)                  320  weight (32, 1, 3, 3), bias (32,)
  (fc): Linear(5408, 10)                              54,090  weight (10, 5408), bias (10,)
)                                                     54,410
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fgrad
from fgrad import tree


def is_layer(value: Any) -> bool:
    return callable(getattr(value, "init_state", None)) and not isinstance(value, type)


def items(value: Any) -> Iterator[tuple[str, Any]]:
    """The named layers in a list, tuple or dict of them."""
    if isinstance(value, Mapping):
        pairs = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = [(str(i), v) for i, v in enumerate(value)]
    else:
        pairs = []
    return ((name, v) for name, v in pairs if is_layer(v) or any(True for _ in items(v)))


def children(layer: Any) -> Iterator[tuple[str, Any]]:
    """The layers, and the lists, tuples and dicts of layers, among the attributes of `layer`, by name."""
    own = getattr(layer, "named_children", None)
    if own is not None:
        yield from own()
        return
    for name, value in vars(layer).items():
        if is_layer(value) or any(True for _ in items(value)):
            yield name, value


def child_of(owner: Any, name: str) -> Any:
    """The layer, or the collection of layers, that `owner` has under `name`; None if there is none."""
    found = children(owner) if is_layer(owner) else items(owner)
    return next((c for n, c in found if n == name), None)


def path_of(owner: Any, layer: Any) -> tuple[str, ...] | None:
    """Where `layer` stands among the attributes of `owner` (in its lists and dicts too); None if it does not."""
    for name, child in children(owner) if is_layer(owner) else items(owner):
        if child is layer:
            return (name,)
        if not is_layer(child):
            below = path_of(child, layer)
            if below is not None:
                return (name, *below)
    return None


def has_params(value: Any) -> bool:
    """Whether `value`, a layer or a collection of layers, makes parameters."""
    if is_layer(value):
        return value.makes_params or any(has_params(c) for _, c in children(value))
    return any(has_params(c) for _, c in items(value))


def shapes(init: Callable[[], Any]) -> Any:
    """The tree that `init` returns with `(shape, dtype)` for leaves, found by tracing: nothing is computed."""
    found: list[Any] = []

    def record() -> Any:
        made = init()
        found.append(tree.map(lambda a: Shape(tuple(a.shape), a.dtype), made))
        return made

    fgrad.make_graph(record)()
    return found[0]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Shape and dtype of one parameter."""

    shape: tuple[int, ...]
    dtype: Any


def count(params: Any) -> int:
    """The number of parameters in a tree of arrays (or of `Shape`s)."""
    return sum(math.prod(leaf.shape) for leaf in tree.leaves(params))


def layer_text(layer: Any) -> str:
    """`Conv2d(1, 32, 3, padding=1)`: required fields in order, the others where they differ from their defaults."""
    name = type(layer).__name__
    if not dataclasses.is_dataclass(layer):
        return name if any(True for _ in children(layer)) else f"{name}()"
    parts = []
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if field.default is dataclasses.MISSING or field.metadata.get("always"):
            parts.append(repr(value))
        elif value != field.default:
            parts.append(f"{field.name}={getattr(value, '__name__', None) or repr(value)}")
    return f"{name}({', '.join(parts)})"


def _rows_below(value: Any) -> list[tuple[str, Any]]:
    """What is printed inside of a layer or collection: its layers, and a Sequential's functions."""
    if not is_layer(value):
        return list(items(value))
    return list(value.rows() if hasattr(value, "rows") else children(value))


def _flat(params: Any, lead: str = "") -> Iterator[tuple[str, Any]]:
    """Parameters with dotted names, in the order in which `init` made them."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{lead}{name}.")
        else:
            yield f"{lead}{name}", value


def _lines(name: str, value: Any, params: Any, depth: int) -> Iterator[tuple[str, str, str]]:
    """Text of the description, parameter count, own parameters; a row a line."""
    lead = "  " * depth + (f"({name}): " if name else "")
    inner = _rows_below(value)
    if not inner:
        own = ", ".join(f"{n} {tuple(leaf.shape)}" for n, leaf in _flat(params)) if params else ""
        text = layer_text(value) if is_layer(value) else getattr(value, "__name__", None) or repr(value)
        yield lead + text, f"{count(params):,}" if params else "", own
        return
    kind = type(value).__name__
    yield f"{lead}{kind}(", "", ""
    below = params if isinstance(params, Mapping) else {}
    names = {n for n, _ in inner}
    for n, child in inner:
        yield from _lines(n, child, below.get(n), depth + 1)
    for path, leaf in _flat(
        {n: v for n, v in below.items() if n not in names}
    ):  # parameters beside the layers
        yield f"{'  ' * (depth + 1)}{path}", f"{count(leaf):,}", str(tuple(leaf.shape))
    yield "  " * depth + ")", f"{count(params):,}" if params else "", ""


def tree_text(layer: Any, shapes: Any = None) -> str:
    """The layers, nested; with `shapes` (of the params) also the number and shapes of each one's parameters."""
    rows = list(_lines("", layer, shapes, 0))
    if not shapes:
        return "\n".join(text for text, _, _ in rows)
    wide, tall = max(len(r[0]) for r in rows), max(*(len(r[1]) for r in rows), len("parameters"))
    head = [f"{rows[0][0]:{wide}}  {'parameters':>{tall}}"] if len(rows) > 1 else []
    body = rows[1:] if len(rows) > 1 else rows
    return "\n".join(
        line.rstrip() for line in [*head, *(f"{a:{wide}}  {b:>{tall}}  {c}" for a, b, c in body)]
    )
