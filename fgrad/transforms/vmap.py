"""Batching: a graph to the graph that does it for a whole batch at once.

Every batched variable has its batch axis at axis 0; rules keep it there. What does not depend on a batched input is
computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

from fgrad.array import Array
from fgrad.errors import message
from fgrad.ir import Atom, Graph, Type, Var
from fgrad.ops.builders import batch_operand, full
from fgrad.trace import as_tracer, at_source, deriving
from fgrad.transforms.jvp import Derived


def batch_graph(
    graph: Graph, size: int, batched: Sequence[bool], out_batched: Sequence[bool] | bool | None = None
) -> tuple[Derived, list[bool]]:
    """`graph` with a new axis 0 of `size` on the inputs marked `batched`; returns it with a mask of batched outputs.

    `out_batched=True` (or a mask) repeats outputs that came out unbatched, for control flow that needs fixed types.
    """
    with deriving("vmap") as t:
        env: dict[Var, tuple[Array, bool]] = {}
        inputs = []
        for v, on in zip(graph.inputs, batched, strict=True):
            new = Var(Type((size, *v.type.shape), v.type.dtype)) if on else v
            inputs.append(new)
            env[v] = (as_tracer(t, new), on)

        def read(atom: Atom) -> tuple[Array, bool]:
            return env[atom] if isinstance(atom, Var) else (as_tracer(t, atom), False)

        for eqn in graph.eqns:
            args = [read(a) for a in eqn.inputs]
            if not any(on for _, on in args):
                from_unbatched = _replay(t, eqn, [a for a, _ in args])
                env.update((v, (x, False)) for v, x in zip(eqn.outputs, from_unbatched, strict=True))
                continue
            if size == 0:  # no example: nothing to compute, and rules may divide by the size
                empty = [full((0, *v.type.shape), 0, v.type.dtype) for v in eqn.outputs]
                env.update((v, (x, True)) for v, x in zip(eqn.outputs, empty, strict=True))
                continue
            if eqn.prim.batch is None:
                raise NotImplementedError(
                    message("vmap", f"{eqn.prim.name} has no batching rule", source=eqn.source)
                )
            with at_source(eqn.source):
                outs, on = eqn.prim.batch(size, [a for a, _ in args], [b for _, b in args], **eqn.params)
            if not eqn.prim.multiple:
                outs, on = [outs], [on]  # type: ignore[assignment]
            env.update((v, (x, b)) for v, x, b in zip(eqn.outputs, outs, on, strict=True))  # type: ignore[call-overload]
        results = [read(a) for a in graph.outputs]
        if out_batched is not None:
            wanted = [out_batched] * len(results) if isinstance(out_batched, bool) else out_batched
            results = [
                (batch_operand(x, size), True) if w and not on else (x, on)
                for (x, on), w in zip(results, wanted, strict=True)
            ]
        atoms = tuple(t.lift(x) for x, _ in results)
    derived = Graph((*inputs, *t.inputs_captured), t.eqns, atoms, f"vmap {graph.name}")
    return Derived(derived, t.arrays_captured), [on for _, on in results]


def _replay(t, eqn, args):  # type: ignore[no-untyped-def]
    with at_source(eqn.source):
        return t.record(eqn.prim, args, eqn.params)
