"""The graph: typed variables, equations, and the record that defines a primitive.

    graph f (a: float32[3], b: float32[3]):
        c: float32[3] = mul a b          # model.py:12
        d: float32[]  = reduce_sum c axes=(0,)
        return d

A `Graph` is in SSA form: each `Var` is defined once, by an input or by one equation, before it is used. Variables are
compared by identity, so transforms may share variables (and equations) between a graph and the graphs derived from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgrad.errors import GraphError, Source


@dataclass(frozen=True)
class Type:
    """Shape and dtype of an array, known while tracing."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def size(self) -> int:
        n = 1
        for s in self.shape:
            n *= s
        return n

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class Var:
    """One SSA variable."""

    __slots__ = ("type",)

    def __init__(self, type: Type):
        self.type = type

    def __repr__(self) -> str:
        return f"Var({self.type})"


class Literal:
    """A scalar constant in the graph (a 0-d array's value); larger constants are captured as inputs instead."""

    __slots__ = ("type", "value")

    def __init__(self, value: Any, dtype: np.dtype):
        self.value = np.asarray(value, dtype=dtype)[()]
        self.type = Type((), np.dtype(dtype))

    def __repr__(self) -> str:
        return f"Literal({self.value!r})"


Atom = Var | Literal


@dataclass(eq=False)
class Primitive:
    """Everything fgrad knows about one operation. Inputs never broadcast and are never promoted here.

    name        in graphs, errors and generated code.
    type_rule   `(*types, **params) -> Type` or a tuple of them if `multiple`.
    impl        NumPy definition `(*ndarrays, **params) -> ndarray` (or tuple): what the operation means.
    family      how the compiler treats it: "elementwise", "structure", "index", "reduce", "cumulative", "contract", "pool",
                "opaque" (always called through `impl`), "control".
    scalar      elementwise only: `(emit, *args, **params) -> expr(s)` over scalar expressions, see `codegen.loops`;
                None with family "elementwise" means the scalar op of the same name.
    jvp         `(primals, tangents, outs, **params) -> tangent` (or tuple): rules written with fgrad's own operations; a
                tangent is None where it is zero. At least one given tangent is not None.
    transpose   for equations linear in some inputs: `(cts, *inputs, **params) -> tuple` of cotangents, one an input, None for
                inputs that are not linear. Linear inputs arrive as `Linear(type)`. `ct` is None where zero (only if `multiple`).
    batch       `(size, args, batched, **params) -> (outs, out_batched)`; the batch axis is axis 0 of each batched argument.
    """

    name: str
    type_rule: Callable[..., Any]
    impl: Callable[..., Any]
    family: str = "opaque"
    multiple: bool = False
    scalar: Callable[..., Any] | None = None
    jvp: Callable[..., Any] | None = None
    transpose: Callable[..., Any] | None = None
    batch: Callable[..., Any] | None = None
    effects: bool = False  # kept although nothing reads its outputs
    doc: str = ""

    def __repr__(self) -> str:
        return f"Primitive({self.name})"


REGISTRY: dict[str, Primitive] = {}


def register(prim: Primitive) -> Primitive:
    if prim.name in REGISTRY:
        raise GraphError(f"primitive '{prim.name}' is registered twice")
    REGISTRY[prim.name] = prim
    return prim


@dataclass(frozen=True)
class Linear:
    """Stands for a linear input in transpose rules: it has a type and no value."""

    type: Type

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> np.dtype:
        return self.type.dtype


class Eqn:
    """`outputs = prim(*inputs, **params)`, and the user's line it comes from."""

    __slots__ = ("inputs", "outputs", "params", "prim", "source")

    def __init__(
        self,
        prim: Primitive,
        inputs: Sequence[Atom],
        params: dict[str, Any],
        outputs: Sequence[Var],
        source: Source | None,
    ):
        self.prim = prim
        self.inputs = tuple(inputs)
        self.params = params
        self.outputs = tuple(outputs)
        self.source = source

    def __repr__(self) -> str:
        return f"Eqn({self.prim.name}: {', '.join(str(i.type) for i in self.inputs)} -> {', '.join(str(o.type) for o in self.outputs)})"


@dataclass(eq=False)
class Graph:
    """Inputs, equations in order, outputs. Captured arrays are trailing inputs; who holds their values is the caller."""

    inputs: tuple[Var, ...]
    eqns: list[Eqn]
    outputs: tuple[Atom, ...]
    name: str = "f"
    meta: dict[Any, Any] = field(
        default_factory=dict
    )  # caches of derived graphs, keyed by the deriving transform

    @property
    def in_types(self) -> tuple[Type, ...]:
        return tuple(v.type for v in self.inputs)

    @property
    def out_types(self) -> tuple[Type, ...]:
        return tuple(v.type for v in self.outputs)


def infer(prim: Primitive, types: Sequence[Type], params: dict[str, Any]) -> tuple[Type, ...]:
    """Output types of `prim`."""
    result = prim.type_rule(*types, **params)
    return tuple(result) if prim.multiple else (result,)


def subgraphs(eqn: Eqn) -> list[Graph]:
    """The graphs among the parameters of a control-flow equation."""
    found: list[Graph] = []
    for value in eqn.params.values():
        if isinstance(value, Graph):
            found.append(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Graph):
            found.extend(value)
    return found


def check(graph: Graph) -> None:
    """Raise `GraphError` unless `graph` is well formed: SSA order, single definitions, types as the type rules say."""
    defined: set[Var] = set()

    def define(var: Var, where: str) -> None:
        if var in defined:
            raise GraphError(f"graph {graph.name}: {where} defines a variable a second time: {var}")
        defined.add(var)

    def use(atom: Atom, where: str) -> None:
        if isinstance(atom, Var) and atom not in defined:
            raise GraphError(f"graph {graph.name}: {where} uses a variable before its definition: {atom}")

    for var in graph.inputs:
        define(var, "the input list")
    for eqn in graph.eqns:
        for atom in eqn.inputs:
            use(atom, eqn.prim.name)
        expected = infer(eqn.prim, [a.type for a in eqn.inputs], eqn.params)
        actual = tuple(v.type for v in eqn.outputs)
        if expected != actual:
            raise GraphError(
                f"graph {graph.name}: {eqn.prim.name} has outputs {', '.join(map(str, actual))}; its type rule says "
                f"{', '.join(map(str, expected))} (at {eqn.source})"
            )
        for var in eqn.outputs:
            define(var, eqn.prim.name)
        for sub in subgraphs(eqn):
            check(sub)
    for atom in graph.outputs:
        use(atom, "the output list")


def dce(graph: Graph) -> Graph:
    """The graph without equations that no output needs (inputs stay)."""
    needed = {a for a in graph.outputs if isinstance(a, Var)}
    kept: list[Eqn] = []
    for eqn in reversed(graph.eqns):
        if eqn.prim.effects or not needed.isdisjoint(eqn.outputs):
            kept.append(eqn)
            needed.update(a for a in eqn.inputs if isinstance(a, Var))
    kept.reverse()
    return Graph(graph.inputs, kept, graph.outputs, graph.name)
