"""Optimizers as pairs of pure functions, which compose.

    opt = chain(clip_by_global_norm(1.0), adam(1e-3))
    state = opt.init(params)
    updates, state = opt.update(grads, state, params)      # inside the jitted step, with everything else
    params = apply_updates(params, updates)

`updates` are to be added to the params. A state is a NamedTuple of arrays and of trees shaped like the params.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
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
    if isinstance(rate, Mapping):
        problem = "lr is a dict: the parameters are not passed here"
        raise FgradTypeError(message(call, problem, f"opt = {call}(1e-3); state = opt.init(params)"))
    if not callable(rate):
        check_at_least_0(call, lr=rate)
    return rate


def check_at_least_0(call: str, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, numbers.Real):
            if not float(value) >= 0:
                problem = f"{name}={value!r} is not a number of at least 0"
                raise FgradValueError(message(call, problem, f"pass {name}={abs(float(value))}, for one"))
        elif getattr(value, "shape", None) != ():
            raise FgradTypeError(message(call, f"{name}={describe(value)} is not a number", "pass a number"))


def check_fraction(call: str, **values: Any) -> None:
    """Factors of running means."""
    for name, value in values.items():
        if not (isinstance(value, numbers.Real) and 0 <= float(value) < 1):
            raise FgradValueError(message(call, f"{name}={value!r}", f"{name} must lie in [0, 1)"))


def check_state(call: str, state: Any, kind: type) -> None:
    """`state` is the one that this optimizer makes."""
    if not isinstance(state, kind):
        got = type(state).__name__
        fix = "the order is opt.update(grads, state, params), with state = opt.init(params) of the same optimizer"
        raise FgradTypeError(message(call, f"the state must be {kind.__name__}, got {got}", fix))


def first_step(params: Any) -> Array:
    """The step counter of a new state, on the device of the params."""
    leaves = tree.leaves(params)
    return fnp.zeros_like(leaves[0], "int64", ()) if leaves else fnp.zeros((), "int64")


def zeros_like(params: Any) -> Any:
    return tree.map(fnp.zeros_like, params)


def map_leaves(
    call: str,
    f: Callable[..., Any],
    first: Any,
    *rest: Any,
    kinds: tuple[str, str] = ("gradients", "params (or state)"),
    fix: str = "make the state by opt.init(params) with the params that are trained",
) -> Any:
    """`f` on corresponding leaves, after a check that the trees (`kinds` names them) belong together."""
    wanted = tree.structure(first)
    for other in rest:
        if other is None:
            raise FgradTypeError(
                message(call, "update needs the params", "call opt.update(grads, state, params)")
            )
        if tree.structure(other) != wanted:
            problem = f"{kinds[0]} and {kinds[1]} differ in structure: {names(first)} and {names(other)}"
            raise FgradTypeError(message(call, problem, fix))
        for (name, a), b in zip(tree.leaves_with_path(first), tree.leaves(other)):
            if fnp.shape(a) != fnp.shape(b):
                problem = f"'{name}' is {describe(a)} in the {kinds[0]} and {describe(b)} in the {kinds[1]}"
                raise FgradTypeError(message(call, problem, fix))
    return tree.map(f, first, *rest)


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
        return (p + u).astype(p.dtype)

    fix = "the order is apply_updates(params, updates), with updates from opt.update(grads, state, params)"
    return map_leaves("apply_updates", add, params, updates, kinds=("params", "updates"), fix=fix)


def chain(*optimizers: Optimizer) -> Optimizer:
    """Transformations in order: each gets the updates of the one before."""
    for i, o in enumerate(optimizers):
        if not (callable(getattr(o, "init", None)) and callable(getattr(o, "update", None))):
            problem = f"argument {i} is {getattr(o, '__name__', None) or describe(o)}, not an optimizer"
            raise FgradTypeError(
                message("chain", problem, "call it first: chain(clip_by_global_norm(1.0), adam(1e-3))")
            )

    def init(params: Any) -> Any:
        return tuple(o.init(params) for o in optimizers)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if type(state) is not tuple or len(state) != len(optimizers):
            problem = f"the state must be a tuple of {len(optimizers)} states, got {type(state).__name__}"
            raise FgradTypeError(message("chain", problem, "make it by opt.init(params) of this chain"))
        new = []
        for o, s in zip(optimizers, state):
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
    check_at_least_0("clip_by_global_norm", max_norm=max_norm)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = fnp.minimum(max_norm / (global_norm(grads) + 1e-6), 1.0)
        return tree.map(lambda g: (g * factor).astype(g.dtype), grads), state

    return Optimizer(lambda params: Empty(), update)


def clip_by_value(limit: float) -> Optimizer:
    """Each element of the gradients limited to ±limit."""
    check_at_least_0("clip_by_value", limit=limit)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return tree.map(lambda g: fnp.clip(g, -limit, limit), grads), state

    return Optimizer(lambda params: Empty(), update)


def add_decayed_weights(weight_decay: float) -> Optimizer:
    """weight_decay * params added to the gradients: an L2 penalty."""
    check_at_least_0("add_decayed_weights", weight_decay=weight_decay)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return map_leaves("add_decayed_weights", lambda g, p: g + weight_decay * p, grads, params), state

    return Optimizer(lambda params: Empty(), update)
