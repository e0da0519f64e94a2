"""`scan`: a loop of known length over leading axes, with a carry.

    carry, ys = scan(f, init, xs)          f(carry, x) -> (carry, y)

Its JVP is two scans: one that computes the values again together with what the tangents need (the residuals, stacked), and one
that is linear in the tangents. The transpose of the second runs backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes, tree
from fgrad.array import Array
from fgrad.control.call import derived, tangent_graph, trace_to_graph
from fgrad.convert import as_array, weak_kind
from fgrad.device import beside
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.ir import Graph, Linear, Primitive, Type, Var, register
from fgrad.ops.builders import batch_operand, full
from fgrad.ops.elementwise import add
from fgrad.ops.structure import move_axis
from fgrad.reference import run_numpy
from fgrad.trace import as_tracer, bind, deriving, evaluate
from fgrad.transforms.jvp import instantiate
from fgrad.transforms.residuals import fewer_residuals, free_vars
from fgrad.transforms.split import split
from fgrad.transforms.transpose import transpose_graph
from fgrad.transforms.vmap import batch_graph

F = Callable[..., Any]


def _scan_type(
    *types: Type, body: Graph, consts: int, carry: int, length: int, reverse: bool
) -> tuple[Type, ...]:
    for t in types[consts + carry :]:
        if not t.shape or t.shape[0] != length:
            raise FgradTypeError(message("scan", f"scanned arrays need a leading axis of {length}, got {t}"))
    ys = body.out_types[carry:]
    return (*types[consts : consts + carry], *[Type((length, *y.shape), y.dtype) for y in ys])


def _scan_impl(
    *args: np.ndarray, body: Graph, consts: int, carry: int, length: int, reverse: bool
) -> list[np.ndarray]:
    fixed, state, xs = list(args[:consts]), list(args[consts : consts + carry]), args[consts + carry :]
    stacked = [np.empty((length, *y.shape), y.dtype) for y in body.out_types[carry:]]
    for i in reversed(range(length)) if reverse else range(length):
        outs = run_numpy(body, [*fixed, *state, *[x[i] for x in xs]])
        state = outs[:carry]
        for ys, y in zip(stacked, outs[carry:], strict=True):
            ys[i] = y
    return [*state, *stacked]


def fixed_point(step: Callable[[list[bool]], list[bool]], start: list[bool]) -> list[bool]:
    """Grow a mask over the carry until the body maps it into itself."""
    while True:
        new = [a or b for a, b in zip(start, step(start), strict=True)]
        if new == start:
            return start
        start = new


def _scan_jvp(
    primals: Sequence[Array],
    tangents: Sequence[Array | None],
    outs: Any,
    *,
    body: Graph,
    consts: int,
    carry: int,
    length: int,
    reverse: bool,
) -> list[Array | None]:
    ct, st, xt = tangents[:consts], tangents[consts : consts + carry], tangents[consts + carry :]
    const_on, x_on = [t is not None for t in ct], [t is not None for t in xt]
    carry_on = fixed_point(
        lambda on: tangent_graph(body, [*const_on, *on, *x_on])[2][:carry], [t is not None for t in st]
    )
    active = [*const_on, *carry_on, *x_on]
    mask = tangent_graph(body, active)[2]
    y_on = mask[carry:]
    g, captured, _ = tangent_graph(body, active, [*carry_on, *y_on])
    n_in, n_new = len(body.inputs), sum(active)
    both = Graph(g.inputs, g.eqns, g.outputs, g.name)
    parts = split(both, [n_in <= i < n_in + n_new for i in range(len(g.inputs))])
    # What the linear scan reads: residuals, and forced zeros, which depend on no tangent. Some follow from others at little cost.
    caps, new = g.inputs[n_in + n_new :], g.inputs[n_in : n_in + n_new]
    known_eqns = _merge(body.eqns, parts.known.eqns)
    const_vars = (*body.inputs[:consts], *caps)
    x_vars = dict(zip(body.inputs[consts + carry :], primals[consts + carry :], strict=True))
    by_y = {y: n for n, y in enumerate(body.outputs) if n >= carry and isinstance(y, Var)}
    wanted = [v for v in free_vars(parts.unknown.eqns, g.outputs) if v not in new]
    fixed = _depend_only_on(const_vars, known_eqns)
    computed_once = _defined(e for e in fixed if e.prim.name not in ("broadcast", "iota"))
    _, again = fewer_residuals(known_eqns, wanted, (*const_vars, *x_vars, *by_y, *computed_once))
    linear_eqns = [*again, *parts.unknown.eqns]
    residuals = [v for v in free_vars(linear_eqns, g.outputs) if v not in new]
    still = set(const_vars) | _defined(fixed)
    invariant = [r for r in residuals if r in still]
    scanned = [r for r in residuals if r in x_vars]  # stacked already: the scanned arrays themselves
    stacked = [r for r in residuals if r not in still and r not in x_vars]
    extra = [r for r in stacked if r not in by_y]

    # 1. Values and residuals.
    first = Graph(
        (*body.inputs[:consts], *caps, *body.inputs[consts:]),
        known_eqns,
        (*body.outputs, *extra),
        f"residuals {body.name}",
    )
    results = bind(
        scan_p,
        *primals[:consts],
        *captured,
        *primals[consts:],
        body=first,
        consts=consts + len(captured),
        carry=carry,
        length=length,
        reverse=reverse,
    )
    at = {**by_y, **{v: len(body.outputs) + n for n, v in enumerate(extra)}}
    saved = [results[at[v]] for v in stacked]
    values = evaluate(Graph(const_vars, fixed, tuple(invariant)), [*primals[:consts], *captured])

    # 2. The linear scan: constants (invariant residuals, tangents of constants), carry tangents, (residuals, tangents of xs).
    nc, ns = sum(const_on), sum(carry_on)
    tc, ts, tx = new[:nc], new[nc : nc + ns], new[nc + ns :]
    linear = Graph(
        (*invariant, *tc, *ts, *scanned, *stacked, *tx), linear_eqns, g.outputs, f"linear {body.name}"
    )
    t0 = [
        instantiate(t, p)
        for t, p, on in zip(st, primals[consts : consts + carry], carry_on, strict=True)
        if on
    ]
    found = iter(
        bind(
            scan_p,
            *values,
            *[t for t in ct if t is not None],
            *t0,
            *[x_vars[v] for v in scanned],
            *saved,
            *[t for t in xt if t is not None],
            body=linear,
            consts=len(invariant) + nc,
            carry=ns,
            length=length,
            reverse=reverse,
        )
    )
    return [next(found) if on else None for on in (*carry_on, *y_on)]


def _depend_only_on(given: Sequence[Var], eqns: Sequence[Any]) -> list[Any]:
    """The equations that are the same in every iteration."""
    known, found = set(given), []
    for e in eqns:
        if not e.prim.effects and all(not isinstance(a, Var) or a in known for a in e.inputs):
            known.update(e.outputs)
            found.append(e)
    return found


def _defined(eqns: Iterable[Any]) -> set[Var]:
    return {v for e in eqns for v in e.outputs}


def _merge(a: list[Any], b: list[Any]) -> list[Any]:
    """Two lists of equations that share some: each once. Those of `a` missing from `b` depend on nothing in `b`."""
    have = set(a)
    return [*a, *[e for e in b if e not in have]]


def _scan_transpose(
    cts: Sequence[Array | None],
    *inputs: Any,
    body: Graph,
    consts: int,
    carry: int,
    length: int,
    reverse: bool,
) -> list[Array | None]:
    wanted = [isinstance(x, Linear) for x in inputs]
    # A carry that starts from a known zero and takes up linear values is linear too.
    on = list(wanted)
    on[consts : consts + carry] = fixed_point(
        lambda mask: _depends(body, [*on[:consts], *mask, *on[consts + carry :]])[:carry],
        wanted[consts : consts + carry],
    )
    if not all(on[consts : consts + carry]):
        raise NotImplementedError(
            message("scan", "the transpose of a scan with a carry that is only partly linear")
        )
    fixed_c = [x for x, o in zip(inputs[:consts], on[:consts], strict=True) if not o]
    fixed_x = [x for x, o in zip(inputs[consts + carry :], on[consts + carry :], strict=True) if not o]
    n_lin_c = sum(on[:consts])
    key = ("transpose", *on)
    back, _ = derived(body, key, lambda: transpose_graph(body, on, force=True))
    g = back.graph
    # g: (fixed consts, fixed xs, cts of carry, cts of ys, captured) -> cts of (linear consts, carry, linear xs)
    nf, nx = len(fixed_c), len(fixed_x)
    ny = len(body.outputs) - carry
    with deriving("transpose") as t:
        t.eqns.extend(g.eqns)
        sums = [Var(v.type) for v, o in zip(body.inputs[:consts], on[:consts], strict=True) if o]
        added = [
            t.lift(add(as_tracer(t, s), as_tracer(t, o)))
            for s, o in zip(sums, g.outputs[:n_lin_c], strict=True)
        ]
    ins = g.inputs
    ct_carry, ct_ys, caps = (
        ins[nf + nx : nf + nx + carry],
        ins[nf + nx + carry : nf + nx + carry + ny],
        ins[nf + nx + carry + ny :],
    )
    step = Graph(
        (*ins[:nf], *caps, *sums, *ct_carry, *ins[nf : nf + nx], *ct_ys),
        t.eqns,
        (*added, *g.outputs[n_lin_c : n_lin_c + carry], *g.outputs[n_lin_c + carry :]),
        f"transpose {body.name}",
    )
    out_types = [
        *body.out_types[:carry],
        *[Type((length, *y.shape), y.dtype) for y in body.out_types[carry:]],
    ]
    full_cts = [instantiate(c, ty) for c, ty in zip(cts, out_types, strict=True)]
    result = bind(
        scan_p,
        *fixed_c,
        *back.captured,
        *[full(s.type.shape, 0, s.type.dtype) for s in sums],
        *full_cts[:carry],
        *fixed_x,
        *full_cts[carry:],
        body=step,
        consts=nf + len(caps),
        carry=n_lin_c + carry,
        length=length,
        reverse=not reverse,
    )
    found_c, found_s, found_x = (
        iter(result[:n_lin_c]),
        iter(result[n_lin_c : n_lin_c + carry]),
        iter(result[n_lin_c + carry :]),
    )
    sources = [found_c] * consts + [found_s] * carry + [found_x] * (len(inputs) - consts - carry)
    every = [next(s) if o else None for s, o in zip(sources, on, strict=True)]
    return [x if w else None for x, w in zip(every, wanted, strict=True)]


def _depends(graph: Graph, on: Sequence[bool]) -> list[bool]:
    """Which outputs depend on the marked inputs."""
    reached = {v for v, o in zip(graph.inputs, on, strict=True) if o}
    for eqn in graph.eqns:
        if any(isinstance(a, Var) and a in reached for a in eqn.inputs):
            reached.update(eqn.outputs)
    return [isinstance(a, Var) and a in reached for a in graph.outputs]


def _scan_batch(
    size: int,
    args: Sequence[Array],
    batched: Sequence[bool],
    *,
    body: Graph,
    consts: int,
    carry: int,
    length: int,
    reverse: bool,
) -> tuple[list[Array], list[bool]]:
    c_on, x_on = list(batched[:consts]), list(batched[consts + carry :])

    def step(on: list[bool]) -> list[bool]:
        return derived(
            body, ("vmap", size, *c_on, *on, *x_on), lambda: batch_graph(body, size, [*c_on, *on, *x_on])
        )[1][:carry]

    s_on = fixed_point(step, list(batched[consts : consts + carry]))
    free = batch_graph(body, size, [*c_on, *s_on, *x_on])[1][carry:]
    found, _ = batch_graph(body, size, [*c_on, *s_on, *x_on], [*s_on, *free])
    state = [
        batch_operand(x, size) if on and not was else x
        for x, on, was in zip(
            args[consts : consts + carry], s_on, batched[consts : consts + carry], strict=True
        )
    ]
    xs = [move_axis(x, 0, 1) if on else x for x, on in zip(args[consts + carry :], x_on, strict=True)]
    k = len(found.captured)
    ins = found.graph.inputs
    ordered = Graph(
        (*ins[:consts], *ins[len(ins) - k :], *ins[consts : len(ins) - k]),
        found.graph.eqns,
        found.graph.outputs,
        found.graph.name,
    )
    outs = bind(
        scan_p,
        *args[:consts],
        *found.captured,
        *state,
        *xs,
        body=ordered,
        consts=consts + k,
        carry=carry,
        length=length,
        reverse=reverse,
    )
    ys = [move_axis(y, 1, 0) if on else y for y, on in zip(outs[carry:], free, strict=True)]
    return [*outs[:carry], *ys], [*s_on, *free]


scan_p = register(
    Primitive(
        "scan",
        _scan_type,
        _scan_impl,
        "control",
        multiple=True,
        jvp=_scan_jvp,
        transpose=_scan_transpose,
        batch=_scan_batch,
    )
)


def scan(
    f: F, init: Any, xs: Any = None, length: int | None = None, reverse: bool = False
) -> tuple[Any, Any]:
    """`carry, ys`: apply `f(carry, x) -> (carry, y)` along the leading axis of `xs`, stacking the `y`s.

    Args:
        f: carry and x are pytrees; the carry keeps its structure, shapes and dtypes.
        init: the first carry.
        xs: pytree of arrays with one leading axis length, or None with `length`.
        reverse: go from the last element to the first; `ys` keeps the order of `xs`.
    """
    x_leaves = [as_array(x, "scan") for x in tree.leaves(xs)]
    lengths = {x.shape[0] if x.ndim else None for x in x_leaves}
    if length is not None:
        lengths.add(int(length))
    if len(lengths) != 1 or None in lengths:
        got = ", ".join(str(x.type) for x in x_leaves)
        raise FgradValueError(
            message(
                "scan",
                f"scanned arrays must share one leading axis length{f' equal to length={length}' if length is not None else ''}, got {got or 'no xs and no length'}",
                "scan over arrays of one length; pass what stays the same by closure or in the carry",
            )
        )
    n = int(lengths.pop())  # type: ignore[arg-type]
    if n < 0:
        raise FgradValueError(
            message("scan", f"length={n} is negative", "give the number of iterations, 0 or more")
        )
    leaves, structure = tree.flatten(init)
    x_types = [Type(x.shape[1:], x.dtype) for x in x_leaves]

    def step(c: Any, x: Any) -> Any:
        out = f(c, x)
        if not (isinstance(out, tuple) and len(out) == 2):
            raise FgradTypeError(
                message(
                    "scan",
                    f"the function must return (carry, y), it returned {type(out).__name__}",
                    "return (carry, None) if there is nothing to stack",
                )
            )
        return out

    in_tree = tree.structure((init, xs))

    def trace_body(carry: Sequence[Array]) -> Any:
        return trace_to_graph(step, in_tree, [*[c.type for c in carry], *x_types], "scan")

    with beside(*leaves, *x_leaves):
        carry, (graph, captured, out_tree) = settle_carry("scan", leaves, trace_body)
    carry_tree, y_tree = out_tree.children()
    check_carry(
        "scan", [c.type for c in carry], graph.out_types[: carry_tree.num_leaves], structure, carry_tree
    )
    k, nc = len(captured), len(carry)
    ins = graph.inputs
    body = Graph(
        (*ins[len(ins) - k :], *ins[: len(ins) - k]),
        graph.eqns,
        graph.outputs,
        getattr(f, "__name__", "body"),
    )
    outs = bind(
        scan_p, *captured, *carry, *x_leaves, body=body, consts=k, carry=nc, length=n, reverse=reverse
    )
    return tree.unflatten(structure, outs[:nc]), tree.unflatten(y_tree, outs[nc:])


def settle_carry(
    call: str, leaves: Sequence[Any], trace_body: Callable[[list[Array]], Any]
) -> tuple[list[Array], Any]:
    """The first carry as arrays, and the traced body. Bare scalars take the dtype that the body makes of them."""
    carry = [as_array(x, call) for x in leaves]
    traced = trace_body(carry)
    after = traced[0].out_types
    settled = list(carry)
    for i, (x, c, t) in enumerate(zip(leaves, carry, after)):
        kind = weak_kind(x)
        if (
            kind is not None
            and t != c.type
            and not t.shape
            and dtypes.weak_promote(t.dtype, kind()) == t.dtype
        ):
            settled[i] = as_array(x, call, t.dtype)
    return (
        (settled, trace_body(settled)) if any(a is not b for a, b in zip(settled, carry)) else (carry, traced)
    )


def check_carry(
    call: str, before: Sequence[Type], after: Sequence[Type], before_tree: Any, after_tree: Any
) -> None:
    """A loop's body must hand on a carry of the types that it was given."""
    if before_tree != after_tree:
        raise FgradTypeError(
            message(
                call,
                f"the body returns a carry of structure {tree.text(after_tree)}, the initial carry has {tree.text(before_tree)}",
                "return the carry with the structure that it came with",
            )
        )
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        if a != b:
            raise FgradTypeError(
                message(
                    call,
                    f"the body returns {b} for the carry's leaf {i}, which began as {a}",
                    "make the types equal, e.g. with .astype on the initial value",
                )
            )


def map_(f: F, xs: Any) -> Any:
    """`f` applied to each element along the leading axis of `xs`, one after another, stacked. (`vmap` does them at once.)"""
    return scan(lambda _, x: (None, f(x)), None, xs)[1]
