"""Optimizers as pairs of pure functions, which compose.

    opt = chain(clip_by_global_norm(1.0), adam(1e-3))
    state = opt.init(params)
    updates, state = opt.update(grads, state, params)      # inside the jitted step, with everything else
    params = apply_updates(params, updates)

`updates` are to be added to the params. A state is a NamedTuple of arrays and of trees shaped like the params.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import fgrad.numpy as fnp
from fgrad import Array, tree
from fgrad.errors import FgradTypeError, FgradValueError, describe, message

Schedule = Callable[[Any], Any]  # step (from 0) -> learning rate
Rate = float | Array | Schedule


class Optimizer(NamedTuple):
    """`init(params) -> state` and `update(grads, state, params) -> (updates, state)`."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


class Empty(NamedTuple):
    """The state of a transformation that has none."""


def rate_at(rate: Rate, step: Array) -> Any:
    """The learning rate of a step."""
    return rate(step) if callable(rate) else rate


def checked_rate(call: str, rate: Rate) -> Rate:
    if isinstance(rate, (int, float)) and not rate >= 0:
        raise FgradValueError(message(call, f"the learning rate must not be negative, got {rate}"))
    return rate


def first_step() -> Array:
    """The step counter of a new state."""
    return fnp.zeros((), "int64")


def zeros_like(params: Any) -> Any:
    return tree.map(fnp.zeros_like, params)


def map_leaves(call: str, f: Callable[..., Any], grads: Any, *rest: Any) -> Any:
    """`f` on corresponding leaves, after a check that gradients, params and state belong together."""
    wanted = tree.structure(grads)
    for other in rest:
        if other is None:
            raise FgradTypeError(
                message(call, "update needs the params", "call opt.update(grads, state, params)")
            )
        if tree.structure(other) != wanted:
            problem = (
                f"gradients and params (or state) differ in structure: {names(grads)} and {names(other)}"
            )
            raise FgradTypeError(
                message(call, problem, "make the state by opt.init(params) with the params that are trained")
            )
    return tree.map(f, grads, *rest)


def names(value: Any) -> str:
    """The first names of a tree's leaves, for errors."""
    found = [name for name, _ in tree.leaves_with_path(value)]
    return f"({', '.join(found[:6])}{', ...' if len(found) > 6 else ''})"


def unzip(pairs: Any, like: Any, n: int) -> tuple[Any, ...]:
    """A tree of n-tuples at the leaves of `like`, as n trees."""
    structure = tree.structure(like)
    leaves = tree.leaves(pairs)
    return tuple(tree.unflatten(structure, leaves[i::n]) for i in range(n))


def apply_updates(params: Any, updates: Any) -> Any:
    """`params + updates`, each leaf in its own dtype."""

    def add(p: Array, u: Array) -> Array:
        if u.shape != p.shape:
            raise FgradTypeError(
                message("apply_updates", f"an update {describe(u)} for a parameter {describe(p)}")
            )
        return (p + u).astype(p.dtype)

    return map_leaves("apply_updates", add, params, updates)


def chain(*optimizers: Optimizer) -> Optimizer:
    """Transformations in order: each gets the updates of the one before."""

    def init(params: Any) -> Any:
        return tuple(o.init(params) for o in optimizers)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new = []
        for o, s in zip(optimizers, state, strict=True):
            grads, s = o.update(grads, s, params)
            new.append(s)
        return grads, tuple(new)

    return Optimizer(init, update)


def global_norm(values: Any) -> Array:
    """The Euclidean norm of all elements of all leaves together."""
    leaves = tree.leaves(values)
    if not leaves:
        return fnp.zeros((), "float32")
    total = sum(
        fnp.sum(fnp.square(leaf.astype("float32") if leaf.dtype.itemsize < 4 else leaf)) for leaf in leaves
    )
    return fnp.sqrt(total)


def clip_by_global_norm(max_norm: float) -> Optimizer:
    """Gradients scaled down where their `global_norm` exceeds `max_norm`, as `torch.nn.utils.clip_grad_norm_` does it."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = fnp.minimum(max_norm / (global_norm(grads) + 1e-6), 1.0)
        return tree.map(lambda g: (g * factor).astype(g.dtype), grads), state

    return Optimizer(lambda params: Empty(), update)


def clip_by_value(limit: float) -> Optimizer:
    """Each element of the gradients limited to ±limit."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return tree.map(lambda g: fnp.clip(g, -limit, limit), grads), state

    return Optimizer(lambda params: Empty(), update)


def add_decayed_weights(weight_decay: float) -> Optimizer:
    """weight_decay * params added to the gradients: an L2 penalty."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return map_leaves("add_decayed_weights", lambda g, p: g + weight_decay * p, grads, params), state

    return Optimizer(lambda params: Empty(), update)
