"""Tracing: running a Python function on stand-ins (`Tracer`s) and writing down every operation as an equation.

Traces nest. `bind` records in the innermost one; arrays of outer traces, and concrete arrays, become captured inputs of
the inner graph. A trace may also carry values: each tracer then holds what it stands for *in the trace outside*, computed as
the function runs. That is how `grad` outside `jit` lets Python's `if` and `while` look at values, and why its backward pass
finds the forward values already there. Under `jit` there is nothing to look at, and `bool(tracer)` is an error.

The stack of active traces belongs to the thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgrad import show  # noqa: F401  (it gives graphs their text)
from fgrad.array import Array, ConcreteArray, wrap
from fgrad.device import (
    Unseen,
    backend_of,
    constant,
    near,
    placement,
    placing_on,
    run_on,
    with_numbers,
)
from fgrad.errors import (
    FgradError,
    FgradTypeError,
    Source,
    TracerError,
    describe,
    message,
    replayed,
    user_source,
)
from fgrad.ir import Atom, Eqn, Graph, Literal, Primitive, Type, Var, infer


class _State(threading.local):
    def __init__(self) -> None:
        self.stack: tuple[Trace, ...] = ()  # innermost last
        self.scope: str = ""


_state = _State()


class Trace:
    """One graph being written. `outer` is the stack of traces that were active when it began. `whole` says that it will be
    compiled as a whole: a jitted function called inside becomes part of it."""

    __slots__ = ("alive", "captured", "eqns", "outer", "values", "what", "whole")

    def __init__(self, what: str, values: dict[Var, Array] | None = None, whole: bool = False):
        self.what = what
        self.values = values
        self.whole = whole
        self.outer = _state.stack
        self.eqns: list[Eqn] = []
        self.captured: dict[int, tuple[Array, Var]] = {}
        self.alive = True

    def lift(self, x: Array) -> Atom:
        """The atom that stands for `x` in this trace; arrays from outside become captured inputs."""
        if isinstance(x, Tracer):
            if x.owner is self:
                return x.atom
            if x.owner not in self.outer:
                raise leaked(x)
        elif x.ndim == 0 and isinstance(x, ConcreteArray):
            return Literal(x.data, x.dtype)
        entry = self.captured.get(id(x))
        if entry is None:
            entry = (x, Var(x.type))
            self.captured[id(x)] = entry
        return entry[1]

    def value_of(self, x: Array) -> Array:
        """What `x` is outside this trace."""
        return x.value if isinstance(x, Tracer) and x.owner is self else x  # type: ignore[return-value]

    def record(self, prim: Primitive, args: Sequence[Array], params: dict[str, Any]) -> list[Tracer]:
        atoms = [self.lift(a) for a in args]
        source = replayed.source or user_source(_state.scope)
        types = _checked_infer(prim, [a.type for a in atoms], params, source)
        outputs = [Var(t) for t in types]
        self.eqns.append(Eqn(prim, atoms, params, outputs, source))
        if self.values is None:
            return [Tracer(self, v) for v in outputs]
        with entering(self.outer), at_source(source):
            values = [self.value_of(a) for a in args]
            known = (
                self.outer[-1].record(prim, values, params)
                if self.outer
                else _run(prim, values, params, types)
            )
        self.values.update(zip(outputs, known, strict=True))
        return [Tracer(self, v, x) for v, x in zip(outputs, known, strict=True)]

    @property
    def inputs_captured(self) -> tuple[Var, ...]:
        return tuple(v for _, v in self.captured.values())

    @property
    def arrays_captured(self) -> list[Array]:
        return [x for x, _ in self.captured.values()]


class Tracer(Unseen):
    """Stands for an array inside a trace. `value` is the array of the outer trace that it stands for, if that is known.

    `weak` is the Python type of an argument that was a bare scalar: it stays weak in promotion, as it is outside a trace."""

    __slots__ = ("__weakref__", "atom", "owner", "type", "value", "weak")

    def __init__(self, trace: Trace, atom: Atom, value: Array | None = None):
        self.owner, self.atom, self.value = trace, atom, value
        self.type = atom.type
        self.weak: type | None = None

    def _need(self, what: str) -> Any:
        if self.value is not None:
            if not self.owner.alive:
                raise leaked(self)
            return self.value
        if not self.owner.alive:
            raise leaked(self)
        remedy = _REMEDY.get(
            what, "compute with fgrad.numpy inside the function, or move this line out of it"
        )
        if what == "bool(tracer)" and self.owner.whole:
            remedy += "; or mark the argument static (static_argnums); or leave out jit, where Python's if and while work"
        elif what == "bool(tracer)" and self.owner.what == "vmap":
            remedy = "the examples of a batch may decide differently: use fgrad.numpy.where, fgrad.cond or fgrad.while_loop"
        raise TracerError(
            message(
                what,
                f"the value of a traced {self.type} is not known while {self.owner.what} traces the function",
                remedy,
            )
        )

    @property
    def device(self) -> str:
        """Where the value is that it stands for."""
        if self.value is not None:
            return self.value.device
        text = f"a traced {self.type} has no value yet, which could be somewhere"
        fix = "make arrays where it will be by fgrad.numpy.zeros_like(x) and fgrad.lax.iota(shape, like=x)"
        raise AttributeError(message("tracer.device", text, fix), name="device", obj=self)

    def __bool__(self) -> bool:
        return bool(self._need("bool(tracer)"))

    def __float__(self) -> float:
        return float(self._need("float(tracer)"))

    def __int__(self) -> int:
        return int(self._need("int(tracer)"))

    def __index__(self) -> int:
        return self._need("index(tracer)").__index__()

    def __complex__(self) -> complex:
        return complex(self._need("complex(tracer)"))

    def item(self, *index: int) -> Any:
        return self._need("tracer.item()").item(*index)

    def tolist(self) -> Any:
        return self._need("tracer.tolist()").tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._need("np.asarray(tracer)").__array__(dtype, copy)

    # NumPy's functions take arrays through `__array__` and return plain values: under `grad` outside `jit`, where values are
    # known, the derivative would be lost without a word.

    def _foreign(self, name: str) -> TracerError:
        fix = f"call fgrad.numpy.{name} (or, for the bare value outside jit, NumPy on np.asarray(x))"
        return TracerError(message(f"numpy.{name}", f"NumPy cannot compute with a traced {self.type}", fix))

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._need("tracer.__dlpack__()").__dlpack__(**kwargs)

    def block_until_ready(self) -> Tracer:
        return self

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if self.value is not None else repr(self)

    def __str__(self) -> str:
        return str(self.value) if self.value is not None else repr(self)

    def __repr__(self) -> str:
        if self.value is not None:
            return f"Tracer({self.type}, value={self.value!r})"
        return f"Tracer({self.type})"


_REMEDY = {
    "bool(tracer)": "use fgrad.numpy.where, fgrad.cond or fgrad.while_loop",
    "int(tracer)": "mark the argument static (static_argnums), or keep it an array",
    "index(tracer)": "shapes and Python indices must be static: mark the argument static, or use fgrad.lax.dynamic_slice / x[array] indexing",
    "tracer.item()": "return it from the function to read it; where a Python number is needed (a length, a shape), "
    "mark the argument static (static_argnums)",
    "float(tracer)": "keep it an array: fgrad.numpy functions accept it; return it from the function to read it",
    "np.asarray(tracer)": "call the fgrad.numpy function of the same name instead of the NumPy one",
}


def leaked(x: Tracer) -> TracerError:
    return TracerError(
        message(
            "leaked tracer",
            f"a traced {x.type} is used after {x.owner.what} has finished tracing (it was stored in a global, an attribute or a closure)",
            "return it from the traced function instead of storing it",
        )
    )


class entering:
    """Make `stack` the active traces. (A class, as a generator costs three times as much, and this runs at every equation.)"""

    __slots__ = ("saved", "stack")

    def __init__(self, stack: tuple[Trace, ...]):
        self.stack = stack

    def __enter__(self) -> None:
        self.saved, _state.stack = _state.stack, self.stack

    def __exit__(self, *_: object) -> None:
        _state.stack = self.saved


class at_source:
    """Equations recorded inside, and errors, are attributed to `source`."""

    __slots__ = ("saved", "source")

    def __init__(self, source: Source | None):
        self.source = source

    def __enter__(self) -> None:
        self.saved = replayed.source
        replayed.source = self.source or self.saved

    def __exit__(self, *_: object) -> None:
        replayed.source = self.saved


@contextmanager
def in_user_code() -> Iterator[None]:
    """Equations recorded inside are attributed to their own lines again: a rule that the user wrote is running."""
    saved, replayed.source = replayed.source, None
    try:
        yield
    finally:
        replayed.source = saved


@contextmanager
def named_scope(name: str) -> Iterator[None]:
    """Equations recorded inside carry `name` (nested names are joined by dots) beside their source line."""
    saved = _state.scope
    _state.scope = f"{saved}.{name}" if saved else name
    try:
        yield
    finally:
        _state.scope = saved


def current_stack() -> tuple[Trace, ...]:
    return _state.stack


def in_whole() -> bool:
    """Whether what is recorded now becomes part of a graph that is compiled as a whole (under `jit`, `make_graph`)."""
    return any(t.whole for t in _state.stack)


def _checked_infer(
    prim: Primitive, types: Sequence[Type], params: dict[str, Any], source: Source | None
) -> tuple[Type, ...]:
    try:
        return infer(prim, types, params)
    except FgradError:
        raise
    except Exception as e:
        raise FgradTypeError(
            message(prim.name, f"{e} (operands {', '.join(map(str, types))})", source=source)
        ) from e


def bind(prim: Primitive, *args: Array, **params: Any) -> Any:
    """Apply a primitive: run its NumPy definition, or record it in the innermost trace. Returns an Array, or a list if `multiple`."""
    stack = _state.stack
    if stack:
        outs: Any = stack[-1].record(prim, args, params)
    else:
        outs = _run(prim, args, params)
    return outs if prim.multiple else outs[0]


def _run(
    prim: Primitive, args: Sequence[Array], params: dict[str, Any], types: tuple[Type, ...] | None = None
) -> list[Any]:
    """Carry out `prim` by its NumPy definition, or on the device where its arguments are. `types`: of the results, if the caller
    knows them."""
    values = []
    for a in args:
        if type(a) is not ConcreteArray:
            return _run_elsewhere(prim, args, params, types)
        values.append(a.data)
    if placement() is not None and (not args or (with_numbers() and all(a.ndim == 0 for a in args))):
        return _run_elsewhere(prim, args, params, types)
    if types is None:
        types = _checked_infer(prim, [a.type for a in args], params, replayed.source)
    with np.errstate(all="ignore"):
        result = prim.impl(*values, **params)
    results = result if prim.multiple else (result,)
    outs = []
    for r, t in zip(results, types, strict=True):
        data = np.asarray(r)
        if data.dtype != t.dtype or data.shape != t.shape:
            raise FgradError(f"{prim.name}: its NumPy definition gave {describe(data)}, its type rule {t}")
        outs.append(wrap(data))
    return outs


def _run_elsewhere(
    prim: Primitive, args: Sequence[Array], params: dict[str, Any], types: tuple[Type, ...] | None
) -> list[Any]:
    """Carry out `prim` on the device where its arguments are, or, if they are all numbers, where arrays are made now."""
    for a in args:
        if isinstance(a, Tracer):
            raise leaked(a)
    if types is None:
        types = _checked_infer(prim, [a.type for a in args], params, replayed.source)
    backend = backend_of(args) or placement()
    assert backend is not None
    return run_on(backend, prim, args, params, types)


# ---------------------------------------------------------------------------------------------- functions to graphs


@dataclass(eq=False)
class Traced:
    """A graph with the arrays it captured (its last inputs) and, if the trace carried values, the value of each variable."""

    graph: Graph
    captured: list[Array]
    values: dict[Var, Array] | None
    aux: Any = None

    @property
    def out_values(self) -> list[Array]:
        assert self.values is not None
        return [
            self.values[a] if isinstance(a, Var) else wrap(np.asarray(a.value)) for a in self.graph.outputs
        ]


def trace(
    f: Callable[..., Any],
    in_types: Sequence[Type],
    values: Sequence[Array] | None = None,
    what: str = "fgrad",
    name: str | None = None,
    weak: Sequence[type | None] = (),
    whole: bool = False,
) -> Traced:
    """Trace `f(*tracers)`, which returns a list of arrays or (list of arrays, aux), to a graph.

    With `values` (arrays of the current, outer trace) every operation is also carried out on them. `weak` names the Python
    type of inputs that are bare scalars; for `whole` see `Trace`.
    """
    inputs = [Var(ty) for ty in in_types]
    known = None if values is None else dict(zip(inputs, values, strict=True))
    t = Trace(what, known, whole)
    tracers = [Tracer(t, v, known[v] if known is not None else None) for v in inputs]
    for tracer, kind in zip(tracers, weak):
        tracer.weak = kind
    aux = None
    backend = placement() if values is None else near(values)
    try:
        with entering((*t.outer, t)), placing_on(None if whole else backend):
            outs = f(*tracers)
            if isinstance(outs, tuple) and len(outs) == 2 and isinstance(outs[0], list):
                outs, aux = outs
            atoms = [t.lift(o) for o in outs]
    finally:
        t.alive = False
    if known is not None:
        known.update((v, x) for x, v in t.captured.values())
    graph = Graph(
        (*inputs, *t.inputs_captured), t.eqns, tuple(atoms), name or str(getattr(f, "__name__", "f"))
    )
    return Traced(graph, t.arrays_captured, known, aux)


@contextmanager
def deriving(what: str) -> Iterator[Trace]:
    """A trace in which a transform writes a graph derived from another: `Tracer(t, var)` stands for a variable of the old one."""
    t = Trace(what)
    try:
        with entering((*t.outer, t)):
            yield t
    finally:
        t.alive = False


def as_tracer(t: Trace, atom: Atom) -> Array:
    """`atom` of a graph being derived in `t`, as an array to compute with."""
    return wrap(np.asarray(atom.value)) if isinstance(atom, Literal) else Tracer(t, atom)


def evaluate(graph: Graph, args: Sequence[Array], known: dict[Var, Array] | None = None) -> list[Array]:
    """Carry out `graph` in the current context, one `bind` an equation: run it eagerly, or write it into the current trace.

    Variables in `known` are not computed again, nor is what only they need.
    """
    env: dict[Var, Array] = dict(known or ())
    env.update(zip(graph.inputs, args, strict=True))
    needed = {a for a in graph.outputs if isinstance(a, Var) and a not in env}
    todo: list[Eqn] = []
    for eqn in reversed(graph.eqns):
        if eqn.prim.effects or not needed.isdisjoint(eqn.outputs):
            todo.append(eqn)
            needed.update(a for a in eqn.inputs if isinstance(a, Var) and a not in env)

    def read(atom: Atom) -> Array:
        return env[atom] if isinstance(atom, Var) else wrap(np.asarray(atom.value))

    last_use: dict[Var, Eqn] = {}
    keep = {a for a in graph.outputs if isinstance(a, Var)}
    for eqn in todo:  # reversed order: the first time a variable is met is its last use
        for a in eqn.inputs:
            if isinstance(a, Var):
                last_use.setdefault(a, eqn)
    backend = near([*args, *known.values()] if known else args)
    for eqn in reversed(todo):
        inputs = [read(a) for a in eqn.inputs]
        with at_source(eqn.source), placing_on(backend):
            result = bind(eqn.prim, *inputs, **eqn.params)
        for v, x in zip(eqn.outputs, result if eqn.prim.multiple else (result,), strict=True):
            env[v] = x
        for a in eqn.inputs:
            if isinstance(a, Var) and last_use[a] is eqn and a not in keep:
                env.pop(a, None)
    with placing_on(backend):
        return [env[a] if isinstance(a, Var) else _number(a) for a in graph.outputs]


def _number(literal: Literal) -> Array:
    """A literal that is a result: a literal again in a trace, else an array where arrays are made now."""
    return wrap(np.asarray(literal.value)) if _state.stack else constant(np.asarray(literal.value))
