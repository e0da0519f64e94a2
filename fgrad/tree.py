"""Pytrees: nested tuples, lists, dicts, namedtuples and registered classes, on top of optree.

`None` is an empty node (no leaf), as in JAX. Dicts are flattened in sorted key order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optree

NAMESPACE = "fgrad"
Structure = optree.PyTreeSpec


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """Leaves of `tree`, left to right, and the structure that puts them back."""
    leaves, structure = optree.tree_flatten(tree, namespace=NAMESPACE)
    return leaves, structure


def unflatten(structure: Structure, leaves: Iterable[Any]) -> Any:
    return optree.tree_unflatten(structure, leaves)


def text(structure: Structure) -> str:
    """`{'a': *, 'b': (*, *)}`: a structure as errors show it."""
    return re.sub(r"^PyTreeSpec\((.*?)(, NoneIsLeaf)?(, namespace='\w*')?\)$", r"\1", str(structure))


def leaves(tree: Any) -> list[Any]:
    return optree.tree_leaves(tree, namespace=NAMESPACE)


def structure(tree: Any) -> Structure:
    return optree.tree_structure(tree, namespace=NAMESPACE)


def map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `f` to corresponding leaves; `rest` must have `tree` as a prefix of their structure."""
    return optree.tree_map(f, tree, *rest, namespace=NAMESPACE)


def leaves_with_path(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with dotted names (`conv1.weight`, `0.bias`, and a namedtuple's fields: `mu.0.bias`)."""
    accessors, found, _ = optree.tree_flatten_with_accessor(tree, namespace=NAMESPACE)
    names = (
        ".".join(str(getattr(entry, "field", entry.entry)) for entry in accessor) for accessor in accessors
    )
    return list(zip(names, found, strict=True))


def broadcast_prefix(prefix: Any, tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """Repeat the leaves of `prefix` over the leaves of `tree` below them."""
    return optree.broadcast_prefix(prefix, tree, is_leaf=is_leaf, none_is_leaf=True, namespace=NAMESPACE)


def register(
    cls: type, flatten_fn: Callable[[Any], tuple[Iterable[Any], Any]], unflatten_fn: Callable[[Any, Any], Any]
) -> type:
    """Register `cls` as a node: `flatten_fn(x) -> (children, metadata)`, `unflatten_fn(metadata, children)`."""
    optree.register_pytree_node(cls, flatten_fn, unflatten_fn, namespace=NAMESPACE)  # type: ignore[arg-type]
    return cls


def is_node(x: Any) -> bool:
    """Whether `x` is a container (None, a tuple, list, dict, namedtuple or registered class) rather than a leaf."""
    return not optree.all_leaves([x], namespace=NAMESPACE)


def keys(x: dict[Any, Any]) -> Sequence[Any]:
    """The keys of a dict in the order in which its leaves are taken."""
    return optree.tree_flatten_one_level(x, namespace=NAMESPACE).entries  # type: ignore[arg-type]


def flattener(cls: type) -> Callable[[Any], tuple[Any, ...]] | None:
    """What `register` was given for `cls`; None for classes that optree itself knows."""
    found = optree.register_pytree_node.get(cls, namespace=NAMESPACE)
    return found.flatten_func if found is not None and found.namespace == NAMESPACE else None
