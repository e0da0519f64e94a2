"""`while_loop` and `fori_loop`: repetition as one equation.

A while loop can be differentiated forwards (its tangents are carried along), not backwards: the number of iterations, and so
the memory for what the backward pass needs, is unknown. `fori_loop` with static bounds is a `scan`, which has both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes, tree
from fgrad.array import Array
from fgrad.control.call import derived, tangent_graph, trace_to_graph
from fgrad.control.scan import check_carry, fixed_point, scan, settle_carry
from fgrad.convert import as_array
from fgrad.errors import FgradTypeError, describe, message
from fgrad.ir import Graph, Primitive, Type, Var, register
from fgrad.ops.builders import full, full_like
from fgrad.ops.elementwise import add, convert, lt, select
from fgrad.ops.reduce import reduce_or
from fgrad.ops.structure import broadcast
from fgrad.reference import run_numpy
from fgrad.trace import Tracer, as_tracer, bind, deriving, evaluate
from fgrad.transforms.vmap import batch_graph

F = Callable[..., Any]


def _while_type(
    *types: Type, cond: Graph, body: Graph, cond_consts: int, body_consts: int
) -> tuple[Type, ...]:
    return types[cond_consts + body_consts :]


def _while_impl(
    *args: np.ndarray, cond: Graph, body: Graph, cond_consts: int, body_consts: int
) -> list[np.ndarray]:
    cc, bc = args[:cond_consts], args[cond_consts : cond_consts + body_consts]
    carry = list(args[cond_consts + body_consts :])
    while bool(run_numpy(cond, [*cc, *carry])[0]):
        carry = run_numpy(body, [*bc, *carry])
    return carry


def _while_jvp(
    primals: Sequence[Array],
    tangents: Sequence[Array | None],
    outs: Any,
    *,
    cond: Graph,
    body: Graph,
    cond_consts: int,
    body_consts: int,
) -> list[Array | None]:
    start = cond_consts + body_consts
    const_t, carry_t = tangents[cond_consts:start], tangents[start:]
    const_on = [t is not None for t in const_t]
    carry_on = fixed_point(
        lambda on: tangent_graph(body, [*const_on, *on])[2], [t is not None for t in carry_t]
    )
    g, captured, _ = tangent_graph(body, [*const_on, *carry_on], carry_on)
    n_carry, n_on = len(carry_on), sum(carry_on)
    # g: (consts, carry, const tangents, carry tangents, captured) -> carry tangents. The loop carries (carry, carry tangents).
    k, nt = body_consts, sum(const_on)
    ins = g.inputs
    consts, carry = ins[:k], ins[k : k + n_carry]
    const_tangents, carry_tangents = (
        ins[k + n_carry : k + n_carry + nt],
        ins[k + n_carry + nt : k + n_carry + nt + n_on],
    )
    caps = ins[k + n_carry + nt + n_on :]
    have = set(body.eqns)  # the tangent graph shares equations with the body
    both = Graph(
        (*consts, *const_tangents, *caps, *carry, *carry_tangents),
        [*body.eqns, *[e for e in g.eqns if e not in have]],
        (*body.outputs, *g.outputs),
        f"jvp {body.name}",
    )
    wider = Graph((*cond.inputs, *[Var(v.type) for v in carry_tangents]), cond.eqns, cond.outputs, cond.name)
    first = [
        t if t is not None else full_like(p, 0)
        for t, p, on in zip(carry_t, primals[start:], carry_on, strict=True)
        if on
    ]
    result = bind(
        while_p,
        *primals[:start],
        *[t for t in const_t if t is not None],
        *captured,
        *primals[start:],
        *first,
        cond=wider,
        body=both,
        cond_consts=cond_consts,
        body_consts=k + nt + len(captured),
    )
    found = iter(result[n_carry:])
    return [next(found) if on else None for on in carry_on]


def _while_transpose(*_: Any, **__: Any) -> Any:
    raise FgradTypeError(
        message(
            "while_loop",
            "reverse-mode derivatives need a number of iterations known while tracing",
            "use fori_loop with Python integers as bounds, or scan; or differentiate forwards with jvp/jacfwd; "
            "or use a Python while loop outside jit",
        )
    )


def _while_batch(
    size: int,
    args: Sequence[Array],
    batched: Sequence[bool],
    *,
    cond: Graph,
    body: Graph,
    cond_consts: int,
    body_consts: int,
) -> tuple[list[Array], list[bool]]:
    start = cond_consts + body_consts
    cc_on, bc_on = list(batched[:cond_consts]), list(batched[cond_consts:start])

    def cond_on(on: list[bool]) -> bool:
        return derived(cond, ("vmap", size, *cc_on, *on), lambda: batch_graph(cond, size, [*cc_on, *on]))[1][
            0
        ]

    def step(on: list[bool]) -> list[bool]:
        if cond_on(on):
            return [True] * len(on)
        return derived(body, ("vmap", size, *bc_on, *on), lambda: batch_graph(body, size, [*bc_on, *on]))[1]

    carry_on = fixed_point(step, list(batched[start:]))
    by_example = cond_on(carry_on)
    b, _ = batch_graph(body, size, [*bc_on, *carry_on], carry_on)
    c, _ = batch_graph(cond, size, [*cc_on, *carry_on])
    carry = [
        x if was or not on else broadcast(x, (size, *x.shape), range(1, x.ndim + 1))
        for x, was, on in zip(args[start:], batched[start:], carry_on, strict=True)
    ]
    cc, bc = list(args[:cond_consts]), list(args[cond_consts:start])
    body_graph, cond_graph = (
        _consts_first(b.graph, body_consts, len(b.captured)),
        _consts_first(c.graph, cond_consts, len(c.captured)),
    )
    bc, cc = [*bc, *b.captured], [*cc, *c.captured]
    if by_example:
        body_graph, cond_graph, bc = _guarded(body_graph, cond_graph, bc, cc), _any(cond_graph), [*bc, *cc]
    outs = bind(
        while_p, *cc, *bc, *carry, cond=cond_graph, body=body_graph, cond_consts=len(cc), body_consts=len(bc)
    )
    return outs, carry_on


def _consts_first(graph: Graph, consts: int, captured: int) -> Graph:
    """Captured inputs stand last; a loop wants them among its constants, before the carry."""
    if not captured:
        return graph
    ins = graph.inputs
    return Graph(
        (*ins[:consts], *ins[-captured:], *ins[consts:-captured]), graph.eqns, graph.outputs, graph.name
    )


def _any(cond: Graph) -> Graph:
    """Go on while any example does."""
    with deriving("vmap") as t:
        p = evaluate(cond, [as_tracer(t, v) for v in cond.inputs])[0]
        out = t.lift(reduce_or(p, (0,)))
    return Graph(cond.inputs, t.eqns, (out,), cond.name)


def _guarded(body: Graph, cond: Graph, body_consts: Sequence[Array], cond_consts: Sequence[Array]) -> Graph:
    """The body for examples that go on; the others keep their carry. Constants: the body's, then the condition's."""
    extra = [Var(x.type) for x in cond_consts]
    nb = len(body_consts)
    inputs = (*body.inputs[:nb], *extra, *body.inputs[nb:])
    with deriving("vmap") as t:
        carry = [as_tracer(t, v) for v in body.inputs[nb:]]
        go = evaluate(cond, [*[as_tracer(t, v) for v in extra], *carry])[0]
        new = evaluate(body, [as_tracer(t, v) for v in body.inputs])
        outs = [t.lift(select(broadcast(go, n.shape, (0,)), n, c)) for n, c in zip(new, carry, strict=True)]
    return Graph(inputs, t.eqns, tuple(outs), body.name)


while_p = register(
    Primitive(
        "while_loop",
        _while_type,
        _while_impl,
        "control",
        multiple=True,
        jvp=_while_jvp,
        transpose=_while_transpose,
        batch=_while_batch,
    )
)


def while_loop(cond_fun: F, body_fun: F, init: Any) -> Any:
    """`while cond_fun(x): x = body_fun(x)`, starting from `init`; returns the last `x`. The types of `x` stay the same."""
    leaves, structure = tree.flatten(init)
    in_tree = tree.structure((init,))

    def trace_body(carry: Sequence[Array]) -> Any:
        return trace_to_graph(body_fun, in_tree, carry, "while_loop")

    arrays, (body, bc, body_tree) = settle_carry("while_loop", leaves, trace_body)
    cond, cc, _ = trace_to_graph(cond_fun, in_tree, arrays, "while_loop")
    if len(cond.outputs) != 1 or cond.out_types[0] != Type((), dtypes.bool_):
        raise FgradTypeError(
            message(
                "while_loop",
                f"cond_fun must return one boolean scalar, it returned {', '.join(map(str, cond.out_types))}",
                "return a comparison of scalars, or reduce it with .any() or .all()",
            )
        )
    check_carry("while_loop", [x.type for x in arrays], body.out_types, structure, body_tree)
    outs = bind(
        while_p,
        *cc,
        *bc,
        *arrays,
        cond=_consts_first(cond, 0, len(cc)),
        body=_consts_first(body, 0, len(bc)),
        cond_consts=len(cc),
        body_consts=len(bc),
    )
    return tree.unflatten(structure, outs)


def fori_loop(lower: Any, upper: Any, body_fun: F, init: Any) -> Any:
    """`for i in range(lower, upper): x = body_fun(i, x)`, returning the last `x`. Bounds whose values are known while tracing
    (Python or NumPy integers, untraced arrays) make it differentiable in reverse mode."""
    bounds = [as_array(bound, "fori_loop") for bound in (lower, upper)]
    for bound, b in zip((lower, upper), bounds):
        if b.shape != () or not dtypes.is_integer(b.dtype):
            raise FgradTypeError(
                message(
                    "fori_loop",
                    f"bounds must be integer scalars, got {describe(bound)}",
                    "convert with int(...)",
                )
            )
    first, last = (_value(b) for b in bounds)
    if first is not None and last is not None:
        length = max(last - first, 0)
        start = as_array(first, "fori_loop")

        def step(carry: Any, _: Any) -> Any:
            i, x = carry
            return (add(i, full((), 1, i.dtype)), body_fun(i, x)), None

        return scan(step, (start, init), None, length=length)[0][1]
    lo, hi = (convert(b, dtypes.int64) for b in bounds)

    def advance(carry: Any) -> Any:
        i, end, x = carry
        return (add(i, full((), 1, i.dtype)), end, body_fun(i, x))

    return while_loop(lambda c: lt(c[0], c[1]), advance, (lo, hi, init))[2]


def _value(x: Array) -> int | None:
    """The value of an integer scalar, if it is known while tracing."""
    while isinstance(x, Tracer):
        if x.value is None or not x.owner.alive:
            return None
        x = x.value
    return int(x)  # type: ignore[call-overload]
