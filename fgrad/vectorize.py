"""`vmap`: a function of one example, applied to a batch of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from fgrad import tree
from fgrad.array import Array
from fgrad.convert import as_array, weak_kind
from fgrad.device import beside
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.ir import Type
from fgrad.ops.builders import batch_operand
from fgrad.ops.structure import move_axis
from fgrad.trace import evaluate, trace
from fgrad.transforms.vmap import batch_graph

F = Callable[..., Any]


def _axes_of(spec: Any, tree_: Any, what: str, count: int) -> list[int | None]:
    """One axis (or None) a leaf, from a prefix tree of ints and Nones."""
    if spec is None or isinstance(spec, int):
        return [spec] * count
    try:
        axes = tree.broadcast_prefix(spec, tree_, is_leaf=lambda x: x is None)
    except ValueError as e:
        raise FgradValueError(
            message("vmap", f"{what}={spec!r} is not a prefix of the structure it describes: {e}")
        ) from e
    return axes


def vmap(f: F, in_axes: Any = 0, out_axes: Any = 0, axis_size: int | None = None) -> F:
    """Map `f` over an axis of its arguments.

    Args:
        f: written for one example; any pytrees in and out.
        in_axes: an int, None (not mapped), or a tuple of them (or prefix pytrees), one an argument.
        out_axes: likewise for the outputs: where the mapped axis goes.
        axis_size: needed only if no argument is mapped.
    """

    @wraps(f, updated=())
    def vmapped(*args: Any, **kwargs: Any) -> Any:
        spec = tuple(in_axes) if isinstance(in_axes, list) else in_axes
        if isinstance(spec, tuple) and len(spec) != len(args):
            raise FgradValueError(
                message(
                    "vmap",
                    f"in_axes has {len(spec)} entries for {len(args)} positional arguments",
                    "give one entry an argument, None where it is not mapped",
                )
            )
        leaves, in_tree = tree.flatten((args, kwargs))
        n_args = len(tree.leaves(args))
        axes = _axes_of(spec, args, "in_axes", n_args) + [0] * (len(leaves) - n_args)
        arrays = [as_array(x, "vmap") for x in leaves]
        size = axis_size
        moved: list[Array] = []
        types: list[Type] = []
        for x, axis in zip(arrays, axes, strict=True):
            if axis is None:
                moved.append(x)
                types.append(x.type)
                continue
            if not -x.ndim <= axis < x.ndim:
                raise FgradValueError(
                    message(
                        "vmap",
                        f"in_axes={axis} for an argument {x.type}",
                        "give an axis it has, or None to not map it",
                    )
                )
            axis %= x.ndim
            if size is not None and x.shape[axis] != size:
                raise FgradTypeError(
                    message(
                        "vmap",
                        f"mapped axes differ in length: {size} and {x.shape[axis]} ({x.type}, axis {axis})",
                        "map over axes of one length (in_axes chooses), or use None for what is not mapped",
                    )
                )
            size = x.shape[axis]
            moved.append(move_axis(x, axis, 0))
            types.append(Type(tuple(n for i, n in enumerate(x.shape) if i != axis), x.dtype))
        if size is None:
            raise FgradValueError(
                message(
                    "vmap", "no argument is mapped", "give an in_axes entry that is not None, or axis_size"
                )
            )

        structures: list[Any] = []

        def flat(*tracers: Array) -> list[Array]:
            call_args, call_kwargs = tree.unflatten(in_tree, tracers)
            out_leaves, out_tree = tree.flatten(f(*call_args, **call_kwargs))
            structures.append(out_tree)
            return [as_array(x, "vmap") for x in out_leaves]

        weak = [weak_kind(x) for x in leaves]
        with beside(*arrays):
            traced = trace(flat, types, what="vmap", name=getattr(f, "__name__", "f"), weak=weak)
        on = [a is not None for a in axes] + [False] * len(traced.captured)
        derived, out_on = batch_graph(traced.graph, size, on)
        outs = evaluate(derived.graph, [*moved, *traced.captured, *derived.captured])
        out_tree = structures[0]
        targets = _axes_of(out_axes, tree.unflatten(out_tree, outs), "out_axes", len(outs))
        results = []
        for x, mapped, axis in zip(outs, out_on, targets, strict=True):
            if axis is None:
                if mapped:
                    raise FgradValueError(
                        message("vmap", "out_axes is None for an output that depends on the mapped axis")
                    )
                results.append(x)
                continue
            if not mapped:
                with beside(*arrays):
                    x = batch_operand(x, size)
            if not -x.ndim <= axis < x.ndim:
                raise FgradValueError(message("vmap", f"out_axes={axis} for an output {x.type}"))
            results.append(move_axis(x, 0, axis % x.ndim))
        return tree.unflatten(out_tree, results)

    return vmapped
