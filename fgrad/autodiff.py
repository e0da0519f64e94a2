"""`grad`, `vjp`, `jvp` and their kin on Python functions of pytrees.

Each runs the function on its arguments once, recording as it goes (see `trace`): outside `jit` the recorded values are at
hand, so Python control flow works and the backward pass computes nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np

from fgrad import dtypes, tree
from fgrad.array import Array
from fgrad.convert import as_array, weak_kind
from fgrad.device import beside, constant, near, placing_on
from fgrad.errors import FgradTypeError, FgradValueError, describe, message
from fgrad.ir import Graph, Type, Var, dce
from fgrad.ops.builders import full, full_like
from fgrad.ops.structure import reshape, slice_
from fgrad.trace import Traced, Tracer, evaluate, trace
from fgrad.transforms.jvp import Derived, jvp_graph
from fgrad.transforms.transpose import transpose_graph, vjp_graph
from fgrad.vectorize import vmap

F = Callable[..., Any]


class _Recorded:
    """A function run on given arguments, with the graph of what it did."""

    def __init__(self, f: F, args: Sequence[Any], kwargs: dict[str, Any], call: str, has_aux: bool = False):
        leaves, self.in_tree = tree.flatten(tuple(args))
        self.inputs = [as_array(x, call) for x in leaves]
        self.call = call

        def flat(*tracers: Array) -> Any:
            out = f(*tree.unflatten(self.in_tree, tracers), **kwargs)
            aux = None
            if has_aux:
                if not (isinstance(out, tuple) and len(out) == 2):
                    raise FgradTypeError(
                        message(
                            call,
                            f"has_aux=True needs the function to return (value, aux), got {describe(out)}",
                            "return (value, aux), or leave has_aux out",
                        )
                    )
                out, aux = out
            found, self.out_tree = tree.flatten(out)
            return [as_array(x, call) for x in found], aux

        self.traced: Traced = trace(
            flat,
            [x.type for x in self.inputs],
            self.inputs,
            what=call,
            name=getattr(f, "__name__", "f"),
            weak=[weak_kind(x) for x in leaves],
        )
        self.outputs = self.traced.out_values
        self.aux = tree.map(
            lambda x: x.value if isinstance(x, Tracer) and x.value is not None and not x.owner.alive else x,
            self.traced.aux,
        )

    @property
    def out(self) -> Any:
        return tree.unflatten(self.out_tree, self.outputs)


class _Derivation:
    """A derived graph with the values it needs of the recorded one, ready to be evaluated any number of times."""

    def __init__(self, derived: Derived, recorded: _Recorded, n_new: int):
        known = recorded.traced.values or {}
        graph = derived.graph
        needed = {a for a in graph.outputs if isinstance(a, Var)}
        kept = []
        for eqn in reversed(graph.eqns):
            if any(v in needed and v not in known for v in eqn.outputs):
                kept.append(eqn)
                needed.update(a for a in eqn.inputs if isinstance(a, Var))
        n_old = len(recorded.traced.graph.inputs)
        self.new_inputs = graph.inputs[n_old : n_old + n_new]
        captured = dict(zip(graph.inputs[n_old + n_new :], derived.captured, strict=True))
        self.residuals = {v: known[v] for v in needed if v in known} | captured
        self.graph = Graph(self.new_inputs, kept[::-1], graph.outputs, graph.name)
        self.backend = near([*recorded.inputs, *recorded.outputs])

    def __call__(self, new: Sequence[Array]) -> list[Array]:
        with placing_on(self.backend):
            return evaluate(self.graph, new, self.residuals)


def _check_differentiable(arrays: Sequence[Array], call: str) -> None:
    for x in arrays:
        if not dtypes.is_float(x.dtype):
            hint = (
                "convert it with x.astype('float32')"
                if not dtypes.is_complex(x.dtype)
                else "complex derivatives are not supported yet"
            )
            raise FgradTypeError(
                message(
                    call,
                    f"cannot differentiate with respect to {x.type}",
                    f"{hint}, or leave it out of argnums",
                )
            )


def _active(rec: _Recorded) -> list[bool]:
    """Which inputs of the recorded graph are differentiated. Integers have zero derivatives; complex inputs would have wrong ones."""
    for x in rec.inputs:
        if dtypes.is_complex(x.dtype):
            raise FgradTypeError(
                message(
                    rec.call,
                    f"cannot differentiate with respect to {x.type}: complex derivatives are not supported yet",
                    "make it a function of the real and the imaginary part",
                )
            )
    return [dtypes.is_float(x.dtype) for x in rec.inputs] + [False] * len(rec.traced.captured)


# ------------------------------------------------------------------------------------------------ reverse mode


def _cotangents(call: str, given: Any, out_tree: Any, types: Sequence[Type]) -> list[Array]:
    """The leaves of `given`, which has to have the structure and types of the output."""
    leaves, structure = tree.flatten(given)
    if structure != out_tree:
        text = f"cotangents have structure {tree.text(structure)}, the output has {tree.text(out_tree)}"
        raise FgradTypeError(message(call, text, "give one cotangent for each output"))
    cts = []
    for i, (c, t) in enumerate(zip(leaves, types, strict=True)):
        ct = as_array(c, call, t.dtype if isinstance(c, (int, float)) else None)
        if ct.type != t:
            text = f"cotangent {i} is {ct.type}, the output is {t}"
            raise FgradTypeError(message(call, text, "give a cotangent of the output's shape and dtype"))
        cts.append(ct)
    return cts


def vjp(f: F, *primals: Any, has_aux: bool = False) -> Any:
    """`(f(*primals), pullback)`; `pullback(cotangents) -> tuple of cotangents`, one for each primal.

    `cotangents` has the structure, shapes and dtypes of the output. With `has_aux`, `f` returns `(output, aux)` and the
    result is `(output, pullback, aux)`. Inputs that are not floating point get zero cotangents of dtype float32.
    """
    rec = _Recorded(f, primals, {}, "vjp", has_aux)
    pull = _pullback(rec)

    def pullback(cotangents: Any) -> Any:
        cts = _cotangents("pullback", cotangents, rec.out_tree, [o.type for o in rec.outputs])
        return tree.unflatten(rec.in_tree, pull(cts))

    return (rec.out, pullback, rec.aux) if has_aux else (rec.out, pullback)


def _pullback(rec: _Recorded) -> Callable[[Sequence[Array]], list[Array]]:
    active = _active(rec)
    derived, out_mask, in_mask = vjp_graph(rec.traced.graph, active)
    derivation = _Derivation(derived, rec, sum(out_mask))

    def pull(cts: Sequence[Array]) -> list[Array]:
        found = iter(derivation([c for c, on in zip(cts, out_mask, strict=True) if on]))
        has = iter(in_mask)
        results = []
        for x, on in zip(rec.inputs, active, strict=False):
            zero_dtype = x.dtype if on else dtypes.float32
            if on and next(has):
                results.append(next(found))
                continue
            with beside(x):
                results.append(full(x.shape, 0, zero_dtype))
        return results

    return pull


def value_and_grad(f: F, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> F:
    """A function that returns `(f(...), gradient)` for a scalar-valued `f`.

    Args:
        f: returns a 0-d floating array, or `(that, aux)` with `has_aux`.
        argnums: the position(s) of the arguments to differentiate; each may be a pytree. An int gives the gradient itself, a
            sequence a tuple of gradients.
        has_aux: `aux` is any pytree, handed through: the result is `((value, aux), gradient)`.
    """
    single = isinstance(argnums, int)
    positions: tuple[int, ...] = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    call = f"grad of {getattr(f, '__name__', 'function')}"

    @wraps(f, updated=())
    def value_and_grad_f(*args: Any, **kwargs: Any) -> Any:
        for p in positions:
            if not -len(args) <= p < len(args):
                raise FgradValueError(
                    message(
                        call,
                        f"argnums={argnums} with {len(args)} positional arguments",
                        "pass the differentiated arguments by position",
                    )
                )
        chosen = [p % len(args) for p in positions]

        def of_chosen(*xs: Any) -> Any:
            full_args = list(args)
            for p, x in zip(chosen, xs, strict=True):
                full_args[p] = x
            return f(*full_args, **kwargs)

        of_chosen.__name__ = getattr(f, "__name__", "f")
        rec = _Recorded(of_chosen, [args[p] for p in chosen], {}, call, has_aux)
        _check_differentiable(rec.inputs, call)
        outs = rec.outputs
        if len(outs) != 1 or outs[0].shape != () or not dtypes.is_float(outs[0].dtype):
            got = ", ".join(str(o.type) for o in outs) or "nothing"
            raise FgradTypeError(
                message(
                    call,
                    f"the function must return one floating point scalar, it returned {got}",
                    "reduce it with .sum() or .mean(); for several outputs use jacrev or vjp; for a value on the side has_aux=True",
                )
            )
        with beside(*rec.inputs, *outs):
            one = full_like(outs[0], 1)
        grads = tree.unflatten(rec.in_tree, _pullback(rec)([one]))
        gradient = grads[0] if single else grads
        value = rec.out
        return ((value, rec.aux) if has_aux else value), gradient

    return value_and_grad_f


def grad(f: F, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> F:
    """The gradient function of a scalar-valued `f`; with `has_aux` it returns `(gradient, aux)`. See `value_and_grad`.

    >>> fgrad.grad(lambda x: x**3)(2.0)
    Array(12., dtype=float32)
    """
    both = value_and_grad(f, argnums, has_aux)

    @wraps(f, updated=())
    def grad_f(*args: Any, **kwargs: Any) -> Any:
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return grad_f


# ------------------------------------------------------------------------------------------------ forward mode


def linearize(f: F, *primals: Any) -> tuple[Any, F]:
    """`(f(*primals), f_jvp)`: `f_jvp(*tangents)` gives the tangent of the output, without running `f` again."""
    rec = _Recorded(f, primals, {}, "linearize")
    push = _pushforward(rec)

    def f_jvp(*tangents: Any) -> Any:
        leaves, structure = tree.flatten(tuple(tangents))
        if structure != rec.in_tree:
            raise FgradTypeError(
                message(
                    "jvp",
                    f"tangents have structure {tree.text(structure)}, the primals have {tree.text(rec.in_tree)}",
                    "give the tangents the structure of the primals",
                )
            )
        return tree.unflatten(rec.out_tree, push([as_array(x, "jvp") for x in leaves]))

    return rec.out, f_jvp


def _pushforward(rec: _Recorded) -> Callable[[Sequence[Array]], list[Array]]:
    active = _active(rec)
    derived, out_mask = jvp_graph(rec.traced.graph, active)
    n_out = len(rec.outputs)
    g = derived.graph
    tangent_only = Derived(Graph(g.inputs, g.eqns, g.outputs[n_out:], g.name), derived.captured)
    derivation = _Derivation(tangent_only, rec, sum(active))

    def push(tangents: Sequence[Array]) -> list[Array]:
        given = []
        for i, (t, x, on) in enumerate(zip(tangents, rec.inputs, active, strict=False)):
            if on:
                if t.shape != x.shape:
                    raise FgradTypeError(
                        message(
                            "jvp",
                            f"tangent {i} is {t.type}, the primal is {x.type}",
                            "a tangent has its primal's shape and dtype",
                        )
                    )
                given.append(as_array(t, "jvp", x.dtype))
        found = iter(derivation(given))
        with beside(*rec.inputs, *rec.outputs):
            return [
                next(found) if on else full_like(o, 0) for o, on in zip(rec.outputs, out_mask, strict=True)
            ]

    return push


def jvp(f: F, primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False) -> Any:
    """`(f(*primals), tangent of the output)` along `tangents`, which has the structure of `primals`."""
    if not (isinstance(primals, (tuple, list)) and isinstance(tangents, (tuple, list))):
        got = f"primals {describe(primals)} and tangents {describe(tangents)}"
        raise FgradTypeError(
            message(
                "jvp", f"expected two tuples, one entry an argument, got {got}", "write jvp(f, (x,), (t,))"
            )
        )
    if len(primals) != len(tangents):
        raise FgradTypeError(
            message(
                "jvp",
                f"{len(primals)} primals and {len(tangents)} tangents",
                "give one tangent for each primal",
            )
        )
    rec = _Recorded(f, tuple(primals), {}, "jvp", has_aux)
    leaves, structure = tree.flatten(tuple(tangents))
    if structure != rec.in_tree:
        raise FgradTypeError(
            message(
                "jvp",
                f"tangents have structure {tree.text(structure)}, the primals have {tree.text(rec.in_tree)}",
                "give the tangents the structure of the primals",
            )
        )
    given = [
        as_array(t, "jvp", x.dtype if isinstance(t, (int, float)) else None)
        for t, x in zip(leaves, rec.inputs, strict=True)
    ]
    out_tangent = tree.unflatten(rec.out_tree, _pushforward(rec)(given))
    return (rec.out, out_tangent, rec.aux) if has_aux else (rec.out, out_tangent)


def linear_transpose(f: F, *primals: Any) -> F:
    """The transpose of a function that is linear in all its arguments: `transposed(cotangents) -> tuple`, one a primal.

    `primals` give shapes and dtypes only. A function that is not linear is an error (FgradTypeError) that names the first
    operation to blame.
    """
    leaves, in_tree = tree.flatten(tuple(primals))
    structures: list[Any] = []

    def flat(*tracers: Array) -> list[Array]:
        out_leaves, out_tree = tree.flatten(f(*tree.unflatten(in_tree, tracers)))
        structures.append(out_tree)
        return [as_array(x, "linear_transpose") for x in out_leaves]

    with beside(*leaves):
        traced = trace(
            flat, [getattr(x, "type", None) or as_array(x).type for x in leaves], what="linear_transpose"
        )
    n = len(leaves)
    linear = [i < n for i in range(len(traced.graph.inputs))]
    _check_linear(traced.graph, linear)
    derived, mask = transpose_graph(traced.graph, linear)

    def transposed(cotangents: Any) -> Any:
        cts = _cotangents("linear_transpose", cotangents, structures[0], traced.graph.out_types)
        # inputs of the transposed graph: captured by the trace, cotangents, captured by the transpose rules
        found = iter(evaluate(derived.graph, [*traced.captured, *cts, *derived.captured]))
        types = traced.graph.in_types[:n]
        with beside(*cts):
            results = [
                next(found) if on else full(t.shape, 0, t.dtype) for t, on in zip(types, mask, strict=True)
            ]
        return tree.unflatten(in_tree, results)

    return transposed


def _check_linear(graph: Graph, linear: Sequence[bool]) -> None:
    """The derivative of a linear function does not look at the point where it is taken."""
    forward, _ = jvp_graph(graph, linear)
    n_in, n_out = len(graph.inputs), len(graph.outputs)
    tangents = dce(Graph(forward.graph.inputs, forward.graph.eqns, forward.graph.outputs[n_out:], graph.name))
    primal = {v for v, on in zip(forward.graph.inputs[:n_in], linear, strict=True) if on}
    for eqn in tangents.eqns:
        if any(isinstance(a, Var) and a in primal for a in eqn.inputs):
            text = f"the function is not linear: {eqn.prim.name} depends on the value of an argument"
            fix = "close over what is constant, or use vjp, which linearizes at a point"
            raise FgradTypeError(message("linear_transpose", text, fix, source=eqn.source))


# ------------------------------------------------------------------------------------------------ Jacobians


def _basis(like: Sequence[Array]) -> list[Array]:
    """All unit vectors of the product space: leaf i has shape (total size, *its shape); on the device of `like`."""
    total = sum(x.size for x in like)
    at = 0
    result: list[Array] = []
    for x in like:
        block = np.zeros((total, x.size), x.dtype)
        block[at : at + x.size] = np.eye(x.size, dtype=x.dtype)
        with beside(*like):
            result.append(constant(block.reshape((total, *x.shape))))
        at += x.size
    return result


def _split_rows(x: Array, like: Sequence[Array]) -> list[Array]:
    at, parts = 0, []
    for y in like:
        rows = slice_(x, (at, *[0] * (x.ndim - 1)), (at + y.size, *x.shape[1:]))
        parts.append(reshape(rows, (*y.shape, *x.shape[1:])))
        at += y.size
    return parts


def _chosen(
    f: F, argnums: int | Sequence[int], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[F, list[Any]]:
    positions = [argnums] if isinstance(argnums, int) else list(argnums)

    def of_chosen(*xs: Any) -> Any:
        full_args = list(args)
        for p, x in zip(positions, xs, strict=True):
            full_args[p] = x
        return f(*full_args, **kwargs)

    return of_chosen, [args[p] for p in positions]


def jacrev(f: F, argnums: int | Sequence[int] = 0) -> F:
    """The Jacobian by reverse mode, one row an output element (good for few outputs). Entry: output shape + input shape."""

    @wraps(f, updated=())
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        of_chosen, xs = _chosen(f, argnums, args, kwargs)
        rec = _Recorded(of_chosen, xs, {}, "jacrev")
        _check_differentiable(rec.inputs, "jacrev")
        pull = _pullback(rec)
        rows = vmap(lambda *cts: pull(cts))(*_basis(rec.outputs))
        by_input = [_split_rows(r, rec.outputs) for r in rows]
        per_out = [
            tree.unflatten(rec.in_tree, [by_input[i][o] for i in range(len(by_input))])
            for o in range(len(rec.outputs))
        ]
        result = [p[0] if isinstance(argnums, int) else p for p in per_out]
        return tree.unflatten(rec.out_tree, result)

    return jacobian


def jacfwd(f: F, argnums: int | Sequence[int] = 0) -> F:
    """The Jacobian by forward mode, one column an input element (good for few inputs). Entry: output shape + input shape."""

    @wraps(f, updated=())
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        of_chosen, xs = _chosen(f, argnums, args, kwargs)
        rec = _Recorded(of_chosen, xs, {}, "jacfwd")
        _check_differentiable(rec.inputs, "jacfwd")
        push = _pushforward(rec)
        columns = vmap(lambda *ts: push(ts), out_axes=-1)(*_basis(rec.inputs))
        per_out = []
        for c in columns:
            at, parts = 0, []
            for x in rec.inputs:
                block = slice_(c, (*[0] * (c.ndim - 1), at), (*c.shape[:-1], at + x.size))
                parts.append(reshape(block, (*block.shape[:-1], *x.shape)))
                at += x.size
            p = tree.unflatten(rec.in_tree, parts)
            per_out.append(p[0] if isinstance(argnums, int) else p)
        return tree.unflatten(rec.out_tree, per_out)

    return jacobian


def hessian(f: F, argnums: int | Sequence[int] = 0) -> F:
    """Second derivatives of a scalar function, by forward over reverse mode."""
    return jacfwd(jacrev(f, argnums), argnums)
