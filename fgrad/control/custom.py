"""Derivatives given by the user: `custom_jvp` and `custom_vjp`.

@fgrad.custom_vjp
def f(x): ...
f.defvjp(fwd, bwd)      # fwd(x) -> (out, residuals);  bwd(residuals, cotangent) -> (cotangent of x,)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import update_wrapper
from types import MethodType
from typing import Any

import numpy as np

from fgrad import dtypes, tree
from fgrad.array import Array
from fgrad.control.call import derived, trace_to_graph
from fgrad.convert import as_array
from fgrad.device import beside
from fgrad.errors import FgradTypeError, FgradValueError, describe, message
from fgrad.ir import Graph, Linear, Primitive, Type, register
from fgrad.ops.builders import batch_operand, full
from fgrad.ops.reduce import reduce_sum
from fgrad.reference import run_numpy
from fgrad.trace import bind, current_stack, in_user_code
from fgrad.transforms.jvp import instantiate
from fgrad.transforms.vmap import batch_graph
from fgrad.vectorize import vmap

F = Callable[..., Any]


def _call_type(*types: Type, graph: Graph, **_: Any) -> tuple[Type, ...]:
    return graph.out_types


def _call_impl(*args: np.ndarray, graph: Graph, **_: Any) -> list[np.ndarray]:
    return run_numpy(graph, args)


def _zeros_kept(t: Array | None, like: Any) -> Array:
    return instantiate(t, like) if dtypes.is_inexact(like.dtype) else full(like.shape, 0, dtypes.float32)


def _no_outside(name: str, tangents: Sequence[Array | None]) -> None:
    if any(t is not None for t in tangents):
        raise FgradTypeError(
            message(
                name,
                "the function closes over a value that is being differentiated, for which it has no rule",
                "pass that value as an argument",
            )
        )


def positional(f: F, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments in the order of the signature: rules take them by position."""
    bound = inspect.signature(f).bind(*args, **kwargs)
    if bound.kwargs:
        call, names = getattr(f, "__name__", "function"), ", ".join(bound.kwargs)
        raise FgradTypeError(
            message(
                call,
                f"keyword-only arguments ({names}) of a function with a derivative of its own",
                "make them positional",
            )
        )
    return bound.args


# ------------------------------------------------------------------------------------------------ custom_jvp


def _custom_jvp_rule(
    primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, *, graph: Graph, rule: F, n: int
) -> list[Array | None]:
    _no_outside("custom_jvp", tangents[n:])
    return rule(primals[:n], [_zeros_kept(t, p) for t, p in zip(tangents[:n], primals[:n], strict=True)])


def _custom_jvp_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, graph: Graph, rule: F, n: int
) -> tuple[list[Array], list[bool]]:
    found, _ = derived(graph, ("vmap", size, *batched, True), lambda: batch_graph(graph, size, batched, True))
    axes = tuple(0 if b else None for b in batched[:n])

    def batched_rule(primals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        tangent_axes = tuple(
            0 if b or dtypes.is_inexact(p.dtype) else None for b, p in zip(batched[:n], primals, strict=True)
        )
        spread = [
            batch_operand(t, size) if a == 0 and not b else t
            for t, a, b in zip(tangents, tangent_axes, batched[:n], strict=True)
        ]
        return vmap(lambda p, t: rule(p, t), in_axes=(list(axes), list(tangent_axes)))(list(primals), spread)

    outs = bind(custom_jvp_p, *args, *found.captured, graph=found.graph, rule=batched_rule, n=n)
    return outs, [True] * len(outs)


custom_jvp_p = register(
    Primitive(
        "custom_jvp_call",
        _call_type,
        _call_impl,
        "control",
        multiple=True,
        jvp=_custom_jvp_rule,
        batch=_custom_jvp_batch,
    )
)


class custom_jvp:
    """A function with its own forward derivative: `@f.defjvp def rule(primals, tangents): return out, tangent_out`.

    Reverse mode follows by transposition, so the rule must be linear in the tangents. Arguments are positional pytrees.
    """

    def __init__(self, f: F):
        self.f = f
        self.rule: F | None = None
        update_wrapper(self, f, updated=())

    def defjvp(self, rule: F) -> F:
        self.rule = rule
        return rule

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        return self if obj is None else MethodType(self, obj)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = positional(self.f, args, kwargs) if kwargs else args
        if self.rule is None:
            raise FgradValueError(
                message(
                    f"custom_jvp {self.f.__name__}", "no derivative is defined", "define it with @f.defjvp"
                )
            )
        leaves, in_tree = tree.flatten(tuple(args))
        if not current_stack():
            with beside(*leaves):  # as in a trace
                return self.f(*args)
        arrays = [as_array(x, "custom_jvp") for x in leaves]
        graph, captured, out_tree = trace_to_graph(self.f, in_tree, arrays, "custom_jvp", leaves)
        user_rule = self.rule

        def rule(primals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
            with in_user_code():
                out = user_rule(tree.unflatten(in_tree, primals), tree.unflatten(in_tree, tangents))
            if not (isinstance(out, tuple) and len(out) == 2) or tree.structure(out[1]) != out_tree:
                raise FgradTypeError(
                    message(
                        "custom_jvp",
                        f"the rule of {user_rule.__name__} must return (out, tangent_out), each structured as the function's output; got {describe(out)}",
                    )
                )
            return [as_array(x, "custom_jvp") for x in tree.leaves(out[1])]

        outs = bind(custom_jvp_p, *arrays, *captured, graph=graph, rule=rule, n=len(arrays))
        return tree.unflatten(out_tree, outs)


# ------------------------------------------------------------------------------------------------ custom_vjp


def _custom_vjp_rule(
    primals: Sequence[Array],
    tangents: Sequence[Array | None],
    outs: Sequence[Array],
    *,
    graph: Graph,
    fwd: F,
    bwd: F,
    n: int,
) -> list[Array]:
    _no_outside("custom_vjp", tangents[n:])
    residuals, res_tree = fwd(primals[:n])
    full_tangents = [_zeros_kept(t, p) for t, p in zip(tangents[:n], primals[:n], strict=True)]
    return bind(
        custom_linear_p,
        *residuals,
        *full_tangents,
        bwd=lambda res, cts: bwd(tree.unflatten(res_tree, res), cts),
        n_residuals=len(residuals),
        out_types=tuple(o.type for o in outs),
    )


def _custom_vjp_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, graph: Graph, fwd: F, bwd: F, n: int
) -> tuple[list[Array], list[bool]]:
    found, _ = derived(graph, ("vmap", size, *batched, True), lambda: batch_graph(graph, size, batched, True))
    axes = [0 if b else None for b in batched[:n]]

    def batched_fwd(primals: Sequence[Array]) -> tuple[list[Array], Any]:
        trees = []

        def one(*xs: Array) -> list[Array]:
            residuals, res_tree = fwd(xs)
            trees.append(res_tree)
            return residuals

        return vmap(one, in_axes=tuple(axes), axis_size=size)(*primals), trees[0]

    def batched_bwd(res: Any, cts: Sequence[Array]) -> list[Array | None]:
        leaves, res_tree = tree.flatten(res)
        masks = []

        def one(res_leaves: Any, ct: Any) -> list[Array]:
            results = bwd(tree.unflatten(res_tree, res_leaves), ct)
            masks.append([r is not None for r in results])
            return [r for r in results if r is not None]

        found_cts = iter(vmap(one)(leaves, list(cts)))
        results = [next(found_cts) if on else None for on in masks[0]]
        from_batch = [
            r if r is None or b else reduce_sum(r, (0,)) for r, b in zip(results, batched[:n], strict=True)
        ]
        return from_batch

    outs = bind(
        custom_vjp_p, *args, *found.captured, graph=found.graph, fwd=batched_fwd, bwd=batched_bwd, n=n
    )
    return outs, [True] * len(outs)


custom_vjp_p = register(
    Primitive(
        "custom_vjp_call",
        _call_type,
        _call_impl,
        "control",
        multiple=True,
        jvp=_custom_vjp_rule,
        batch=_custom_vjp_batch,
    )
)


def _linear_type(*types: Type, bwd: F, n_residuals: int, out_types: tuple[Type, ...]) -> tuple[Type, ...]:
    return out_types


def _linear_impl(*args: np.ndarray, **_: Any) -> Any:
    raise FgradTypeError(
        message(
            "custom_vjp",
            "forward-mode derivatives of a function with custom_vjp are not defined",
            "use custom_jvp, or reverse mode (grad, vjp, jacrev)",
        )
    )


def _linear_transpose(
    cts: Sequence[Array | None], *inputs: Any, bwd: F, n_residuals: int, out_types: tuple[Type, ...]
) -> list[Array | None]:
    residuals, linear = inputs[:n_residuals], inputs[n_residuals:]
    results = bwd(list(residuals), [instantiate(c, t) for c, t in zip(cts, out_types, strict=True)])
    if len(results) != len(linear):
        raise FgradTypeError(
            message(
                "custom_vjp",
                f"bwd returned {len(results)} cotangents for {len(linear)} inputs",
                "return a tuple with one entry an argument (None for zero)",
            )
        )
    found: list[Array | None] = [None] * n_residuals
    for r, x in zip(results, linear, strict=True):
        if not isinstance(x, Linear) or r is None:
            found.append(None)
            continue
        ct = as_array(r, "custom_vjp")
        if ct.type != x.type:
            raise FgradTypeError(
                message(
                    "custom_vjp",
                    f"bwd returned a cotangent {ct.type} for an input {x.type}",
                    "a cotangent has the shape and dtype of its input",
                )
            )
        found.append(ct)
    return found


custom_linear_p = register(
    Primitive(
        "custom_vjp_linear", _linear_type, _linear_impl, "control", multiple=True, transpose=_linear_transpose
    )
)


class custom_vjp:
    """A function with its own reverse derivative.

    `f.defvjp(fwd, bwd)`: `fwd(*args) -> (out, residuals)`, `bwd(residuals, cotangent) -> tuple of cotangents`, one an argument
    (None for zero). Forward mode is not available for it. Derivatives of derivatives apply the rule to the value again, and
    differentiate what `bwd` computes.
    """

    def __init__(self, f: F):
        self.f = f
        self.fwd: F | None = None
        self.bwd: F | None = None
        update_wrapper(self, f, updated=())

    def defvjp(self, fwd: F, bwd: F) -> None:
        self.fwd, self.bwd = fwd, bwd

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        return self if obj is None else MethodType(self, obj)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = positional(self.f, args, kwargs) if kwargs else args
        if self.fwd is None or self.bwd is None:
            raise FgradValueError(
                message(
                    f"custom_vjp {self.f.__name__}",
                    "no derivative is defined",
                    "define it with f.defvjp(fwd, bwd)",
                )
            )
        leaves, in_tree = tree.flatten(tuple(args))
        if not current_stack():
            with beside(*leaves):  # as in a trace
                return self.f(*args)
        arrays = [as_array(x, "custom_vjp") for x in leaves]
        graph, captured, out_tree = trace_to_graph(self.f, in_tree, arrays, "custom_vjp", leaves)
        user_fwd, user_bwd = self.fwd, self.bwd

        def fwd(primals: Sequence[Array]) -> tuple[list[Array], Any]:
            with in_user_code():
                out = user_fwd(*tree.unflatten(in_tree, primals))
            if not (isinstance(out, tuple) and len(out) == 2):
                raise FgradTypeError(
                    message("custom_vjp", f"fwd must return (out, residuals), got {describe(out)}")
                )
            res_leaves, res_tree = tree.flatten(out[1])
            return [as_array(x, "custom_vjp") for x in res_leaves], res_tree

        def bwd(residuals: Any, cts: Sequence[Array]) -> list[Array | None]:
            with in_user_code():
                results = user_bwd(residuals, tree.unflatten(out_tree, cts))
            if not isinstance(results, tuple) or len(results) != len(args):
                raise FgradTypeError(
                    message(
                        "custom_vjp",
                        f"bwd must return a tuple of {len(args)} cotangents, got {describe(results)}",
                        "return a tuple with one entry an argument (None for zero)",
                    )
                )
            flat: list[Array | None] = []
            for arg, result in zip(args, results, strict=True):
                count = len(tree.leaves(arg))
                flat.extend([None] * count if result is None else tree.leaves(result))
            return flat

        outs = bind(custom_vjp_p, *arrays, *captured, graph=graph, fwd=fwd, bwd=bwd, n=len(arrays))
        return tree.unflatten(out_tree, outs)
