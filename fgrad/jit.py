"""`jit`: trace once to a graph, compile the graph to one native program, and from then on call that.

A compiled program is kept for each combination of argument structure, shapes, dtypes and static values. Called while another
`jit` traces, a jitted function is simply part of that trace; called under `grad` outside `jit`, it is one `call` equation,
compiled forwards and backwards.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np

from fgrad import dtypes, tree
from fgrad.array import Array, ConcreteArray
from fgrad.control.call import call_like, trace_to_graph
from fgrad.convert import as_array, weak_kind
from fgrad.device import DeviceArray, backend_named, backend_of, parse
from fgrad.errors import FgradDeviceError, FgradTypeError, FgradValueError, describe, message
from fgrad.ir import Graph, Type, Var
from fgrad.memory import held_at_fork
from fgrad.passes import compile_graph
from fgrad.runtime.compiled import Compiled, kind_key, kind_of
from fgrad.runtime.executable import Executable, compile_program
from fgrad.runtime.fastcall import MISS
from fgrad.runtime.options import (
    autotune_wanted,
    host_ops_allowed,
    matmul_precision_here,
    winograd_allowed,
)
from fgrad.trace import Tracer, bind, current_stack, in_whole

if TYPE_CHECKING:
    from fgrad.runtime.lowered import Lowered

F = Callable[..., Any]
_compiling = held_at_fork(threading.RLock())
_RECENT = 4  # written functions that a call tries before it looks for its program


def _compiled(
    graph: Graph, donated: Mapping[int, int] | None = None, autotune: bool | None = None
) -> Executable:
    """Compile a graph. Many objects are made and few dropped, so the garbage collector would look in vain for a fifth of the time."""
    measured = autotune_wanted(autotune)
    with _compiling:
        collecting = gc.isenabled()
        gc.disable()
        try:
            return compile_program(compile_graph(graph, donated), autotune=measured)
        finally:
            if collecting:
                gc.enable()


def executable_of(graph: Graph) -> Executable:
    """The compiled program of a graph, kept with it."""
    key = "executable", winograd_allowed()
    found = graph.meta.get(key)
    if found is None:
        with _compiling:
            found = graph.meta.get(key)
            if found is None:
                found = graph.meta[key] = _compiled(graph)
    return found


def _run_compiled(*args: np.ndarray, graph: Graph) -> list[np.ndarray]:
    return executable_of(graph)(args)


call_p = call_like("call", _run_compiled)


class Jitted:
    """A function compiled on first call for each kind of arguments. See `jit`."""

    def __init__(
        self,
        f: F,
        static_argnums: tuple[int, ...],
        static_argnames: tuple[str, ...],
        donate: tuple[int, ...],
        autotune: bool | None = None,
        device: str | None = None,
    ):
        self.f, self.autotune, self.device = f, autotune, device
        self.static_argnums, self.static_argnames, self.donate = static_argnums, static_argnames, donate
        self._programs: dict[Any, Compiled] = {}
        self._locks: dict[Any, Any] = {}  # of programs that are being compiled
        # Written functions, the last one that was missed first: without and with Winograd's algorithm ...
        self._recent: list[tuple[Callable[[Any, Any], Any], ...]] = [(), ()]
        # ... and the same for each static value.
        self._recent_of: dict[Any, tuple[Callable[[Any, Any], Any], ...]] = {}
        self._graphs: dict[Any, tuple[Graph, list[Array], Any]] = {}  # for calls under grad or vmap
        self._signature: inspect.Signature | None = None
        self._simple = not (static_argnums or static_argnames)
        self.call = f"jit of {getattr(f, '__name__', 'function')}"
        if static_argnums or static_argnames or donate:
            self._check_parameters()
        update_wrapper(self, f, updated=())  # not its __dict__: it may be a Jitted too

    # -------------------------------------------------------------------------------------------- calling

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        """As a method: the object is the first argument."""
        return self if obj is None else MethodType(self, obj)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if current_stack():
            return self._in_trace(args, kwargs)
        if self._simple:
            for call in self._recent[winograd_allowed()]:
                out = call(args, kwargs)
                if out is not MISS:
                    return out
            return self._call(args, kwargs, (args, kwargs), None)
        dynamic, statics = self._divide(args, kwargs)
        for call in self._recent_of.get((statics, winograd_allowed()), ()):
            out = call(*dynamic)
            if out is not MISS:
                return out
        return self._call(args, kwargs, dynamic, statics)

    def _call(self, args: Any, kwargs: Any, dynamic: Any, statics: Any) -> Any:
        """Find the program for these arguments, or compile it, and run it in the general way."""
        leaves, structure = tree.flatten(dynamic)
        allowed = winograd_allowed()
        backend = self._backend(leaves)
        how = allowed if backend is None else (backend.name, matmul_precision_here(), host_ops_allowed())
        key = (statics, structure, tuple([kind_key(x, self.call) for x in leaves]), how)
        found = self._programs.get(key)
        if found is None:
            # Threads that come with the same new kind of arguments wait for the first: it is compiled once. (A forked
            # child does not: the thread that was first may not be there.)
            mine = os.getpid(), key
            with self._locks.setdefault(mine, threading.RLock()):
                found = self._programs.get(key)
                if found is None:
                    found = self._compile(args, kwargs, leaves, structure, backend)
                    self._programs[key] = found
            self._locks.pop(mine, None)
        fast = found.fast(dynamic[0], dynamic[1], leaves)
        if fast is not None:
            old = self._recent[allowed] if self._simple else self._recent_of.get((statics, allowed), ())
            recent = (fast, *(f for f in old if f is not fast))[:_RECENT]
            if self._simple:
                self._recent[allowed] = recent
            else:
                self._recent_of[statics, allowed] = recent
        return found(leaves)

    def _in_trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if in_whole():
            if self.device is not None and parse(self.device, self.call)[0] != "cpu":
                text = f"it was asked for {self.device}, within a function that is compiled as a whole for where its arguments are"
                fix = f"ask for the device of the outer function: jit(f, device={self.device!r}), and leave this one without"
                raise FgradDeviceError(message(self.call, text, fix))
            return self.f(*args, **kwargs)
        dynamic, statics = self._divide(args, kwargs)
        leaves, structure = tree.flatten(dynamic)
        arrays = [as_array(x, self.call) for x in leaves]
        there = backend_of(arrays)
        if self.device is not None and there is not backend_named(self.device, self.call):
            text = f"it was asked for {self.device}, and a transform around it has arguments elsewhere"
            fix = f"put them there first (fgrad.device_put), or transform inside: jit(grad(f), device={self.device!r})"
            raise FgradDeviceError(message(self.call, text, fix))
        key = (
            statics,
            structure,
            tuple((x.type, weak_kind(leaf)) for x, leaf in zip(arrays, leaves, strict=True)),
            there and there.name,
        )
        cached = self._graphs.get(key)
        if cached is None:
            graph, captured, out_tree = self._trace(args, kwargs, leaves, structure)
            if there is not None:  # what a function closes over is sent once, as outside of transforms
                captured = [there.put(c.data) if isinstance(c, ConcreteArray) else c for c in captured]
            cached = graph, captured, out_tree
            if not any(isinstance(c, Tracer) for c in cached[1]):
                self._graphs[key] = cached
        graph, captured, out_tree = cached
        return tree.unflatten(out_tree, bind(call_p, *arrays, *captured, graph=graph))

    # -------------------------------------------------------------------------------------------- static arguments

    def _check_parameters(self) -> None:
        """Positions and names that `f` cannot be called with are mistakes (where `f` says what it takes)."""
        try:
            self._signature = inspect.signature(self.f)
        except (TypeError, ValueError):
            return
        kinds = [p.kind for p in self._signature.parameters.values()]
        fix = "count positions from 0; `self` is one of them"
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            n = sum(
                k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
                for k in kinds
            )
            for option, positions in (("static_argnums", self.static_argnums), ("donate", self.donate)):
                for p in positions:
                    if not -n <= p < n:
                        text = f"{option} has position {p}, the function takes {self._signature}"
                        raise FgradValueError(message(self.call, text, fix))
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            for name in self.static_argnames:
                if name not in self._signature.parameters:
                    text = f"static_argnames has {name!r}, the function takes {self._signature}"
                    raise FgradValueError(
                        message(self.call, text, "use the names in the function's signature")
                    )

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[set[int], set[str]]:
        """Positions and names of static arguments in this call; a name may have been given by position and vice versa."""
        positions = {p % len(args) if p < 0 else p for p in self.static_argnums if args}
        names = set(self.static_argnames)
        parameters = list(self._signature.parameters) if self._signature else []
        positions |= {parameters.index(n) for n in self.static_argnames if n in parameters}
        names |= {parameters[p] for p in self.static_argnums if 0 <= p < len(parameters)}
        return positions, names

    def _divide(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The traced arguments, and a hashable key of the static ones."""
        if self._simple:
            return (args, kwargs), None
        positions, names = self._bound(args, kwargs)
        dynamic = (
            tuple(a for i, a in enumerate(args) if i not in positions),
            {k: v for k, v in kwargs.items() if k not in names},
        )
        statics = (
            tuple((i, type(args[i]), args[i]) for i in sorted(positions) if i < len(args)),
            tuple((k, type(kwargs[k]), kwargs[k]) for k in sorted(names) if k in kwargs),
        )
        try:
            hash(statics)
        except TypeError as e:
            what = [v for part in statics for _, _, v in part]
            raise FgradTypeError(
                message(
                    self.call,
                    f"static arguments must be hashable, got {', '.join(describe(w) for w in what)}",
                    "pass tuples instead of lists, or make the argument traced",
                )
            ) from e
        return dynamic, statics

    def _function(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> F:
        """The function of the traced arguments alone."""
        if self._simple:
            return lambda a, k: self.f(*a, **k)
        positions, names = self._bound(args, kwargs)
        fixed = {k: v for k, v in kwargs.items() if k in names}

        def call(a: Sequence[Any], k: dict[str, Any]) -> Any:
            rest = iter(a)
            whole = [args[i] if i in positions else next(rest) for i in range(len(args))]
            return self.f(*whole, **k, **fixed)

        return call

    # -------------------------------------------------------------------------------------------- compiling

    def _trace(
        self, args: Any, kwargs: Any, leaves: Sequence[Any], structure: Any
    ) -> tuple[Graph, list[Array], Any]:
        arrays = [_type_or_array(x, self.call) for x in leaves]
        f = self._function(args, kwargs)

        def named(*xs: Any) -> Any:
            return f(*xs)

        named.__name__ = getattr(self.f, "__name__", "f")
        return trace_to_graph(named, structure, arrays, self.call, leaves, whole=True)

    def _backend(self, leaves: Sequence[Any]) -> Any:
        """The device to compute on: the one asked for, else where the arguments are; None is the CPU."""
        if self.device is None:
            return backend_of([x for x in leaves if isinstance(x, DeviceArray)])
        backend = backend_named(self.device, self.call)
        there = next((x for x in leaves if isinstance(x, DeviceArray)), None)
        if backend is None and there is not None:
            text = f"argument {describe(there)} is on {there.device}, the function was asked for the cpu"
            raise FgradDeviceError(message(self.call, text, "copy it: fgrad.device_get(x)"))
        return backend

    def _compile(self, args: Any, kwargs: Any, leaves: Sequence[Any], structure: Any, backend: Any) -> Any:
        kinds = [kind_of(x, self.call) for x in leaves]
        graph, captured, out_tree = self._trace(args, kwargs, leaves, structure)
        given = self._donated(args, kwargs)
        graph, forwarded = _without_forwarded(graph, len(leaves), given)
        donated = _pairs(graph, given)
        if backend is not None:
            return backend.compiled(
                graph, donated, kinds, captured, out_tree, forwarded, self.device is not None
            )
        elsewhere = next((c for c in captured if isinstance(c, DeviceArray)), None)
        if elsewhere is not None:
            text = f"the function closes over {describe(elsewhere)} on {elsewhere.device}, its arguments are on the cpu"
            fix = f"pass it as an argument, or compile for there: jit(f, device={elsewhere.device!r})"
            raise FgradDeviceError(message(self.call, text, fix))
        executable = _compiled(graph, donated, self.autotune)
        placed = getattr(executable.program, "placed", {})
        concrete = [c for c in captured if isinstance(c, ConcreteArray)]
        gone = sorted({*donated, *placed.values()})
        return Compiled(kinds, executable, concrete, out_tree, gone, forwarded)

    def _donated(self, args: Any, kwargs: Any) -> list[int]:
        """The numbers of the donated leaves."""
        if not self.donate:
            return []
        positions, _ = self._bound(args, kwargs) if not self._simple else (set(), set())
        wanted = {p % len(args) for p in self.donate if -len(args) <= p < len(args)}
        if wanted & positions:
            raise FgradValueError(
                message(self.call, f"arguments {sorted(wanted & positions)} are both static and donated")
            )
        at = 0
        given: list[int] = []
        for i, a in enumerate(args):
            if i in positions:
                continue
            n = len(tree.leaves(a))
            if i in wanted:
                given.extend(range(at, at + n))
            at += n
        return given

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """The stages of compiling for these arguments (arrays, or anything with shape and dtype), to look at."""
        dynamic, _ = self._divide(args, kwargs)
        leaves, structure = tree.flatten(dynamic)
        graph, captured, _ = self._trace(args, kwargs, leaves, structure)
        donations = self._donated(args, kwargs)
        graph, _ = _without_forwarded(graph, len(leaves), donations)
        donated = _pairs(graph, donations)
        given = [_type_or_array(x, self.call) for x in leaves]
        # What looks at programs (printers, costs, profiles) is loaded on first use: running them needs none of it.
        lowered: type[Lowered] = importlib.import_module("fgrad.runtime.lowered").Lowered
        measured = autotune_wanted(self.autotune)
        return lowered(graph, donated, getattr(self.f, "__name__", "f"), [*given, *captured], measured)

    def clear_cache(self) -> None:
        """Forget the programs compiled in this process (the disk cache stays)."""
        self._programs.clear()
        self._graphs.clear()
        self._recent = [(), ()]
        self._recent_of.clear()


def _pairs(graph: Graph, given: Sequence[int]) -> dict[int, int]:
    """Donated input leaf -> an output of the same type, each output once."""
    free = list(enumerate(graph.out_types))
    pairs: dict[int, int] = {}
    for i in given:
        match = next((j for j, t in free if t == graph.inputs[i].type), None)
        if match is not None:
            pairs[i] = match
            free = [(j, t) for j, t in free if j != match]
    return pairs


def _without_forwarded(graph: Graph, leaves: int, donated: Sequence[int]) -> tuple[Graph, dict[int, int]]:
    """The graph without the outputs that are arguments unchanged, and which these are: output -> leaf. (A program would copy them.)"""
    kept = set(donated)
    numbers = {v: i for i, v in enumerate(graph.inputs[:leaves]) if i not in kept}
    forwarded = {n: numbers[a] for n, a in enumerate(graph.outputs) if isinstance(a, Var) and a in numbers}
    if not forwarded:
        return graph, forwarded
    outputs = tuple(a for n, a in enumerate(graph.outputs) if n not in forwarded)
    return Graph(graph.inputs, graph.eqns, outputs, graph.name), forwarded


def _type_or_array(x: Any, call: str) -> Any:
    """`x` as an array, or its type if it only says what an array would be (`ShapeDtype` and the like)."""
    if hasattr(x, "shape") and hasattr(x, "dtype") and not hasattr(x, "__array__"):
        return Type(tuple(x.shape), dtypes.canonical(x.dtype))
    return as_array(x, call)


def jit(
    f: F | None = None,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    donate: int | Sequence[int] = (),
    autotune: bool | None = None,
    device: str | None = None,
) -> Any:
    """Compile `f` to one native program for each kind of arguments.

    Args:
        f: a pure function of pytrees of arrays. Side effects happen while tracing only.
        static_argnums, static_argnames: arguments that are not arrays; hashable; each value compiles its own program.
        donate: positions of arguments whose memory the outputs may take over (parameters, optimizer state). The donated
            arrays have no value afterwards; using one is an error.
        autotune: whether to choose by measurement how heavy products and convolutions are computed on the CPU, rather than by a cost model:
            compiling takes seconds longer (tens of them for a deep network), and the choices are kept in the disk cache, where later
            processes find them. Results agree up to rounding. None: as the environment variable `FGRAD_AUTOTUNE` says, which also
            counts for jitted functions differentiated outside `jit`; not without it.

        device: where to compute: "cpu" or "cuda". Arguments on the CPU are then copied to the GPU at each call, results stay there. None:
            where the arguments are (`fgrad.device_put`), and nothing is copied but numbers.

    An argument that `f` returns unchanged is handed back as it is (the same array, if it is one of fgrad's), so donating the result of such
    a call donates the argument too.

    Usable as `@jit`, `@jit(donate=0)` or `jit(f)`. `jit(f).lower(*args)` shows what is compiled.
    """

    def as_tuple(option: str, kind: type, x: Any) -> tuple[Any, ...]:
        try:
            items = (x,) if isinstance(x, (int, str)) else tuple(x)
        except TypeError:
            items = (x,)
        if not all(isinstance(i, kind) and not isinstance(i, bool) for i in items):
            what, example = ("a name", '"x"') if kind is str else ("a position", "0")
            problem = f"{option} is {describe(x)}"
            raise FgradTypeError(message("jit", problem, f"give {what} or several: {option}={example}"))
        return items

    positions = as_tuple("static_argnums", int, static_argnums)
    names = as_tuple("static_argnames", str, static_argnames)
    donated = as_tuple("donate", int, donate)
    if device is not None:
        parse(device, "jit")
    if autotune is not None and not isinstance(autotune, bool):
        raise FgradTypeError(message("jit", f"autotune is {describe(autotune)}", "use True, False or None"))

    def wrap(function: F) -> Jitted:
        if not callable(function):
            raise FgradTypeError(
                message(
                    "jit",
                    f"expected a function, got {describe(function)}",
                    "write jit(f), then call it: jit(f)(x)",
                )
            )
        return Jitted(function, positions, names, donated, autotune, device)

    return wrap if f is None else wrap(f)


def make_graph(f: F) -> F:
    """A function that returns the graph of `f` for given arguments (arrays, or `Type`-like specifications) instead of its value.

    >>> print(fgrad.make_graph(lambda x: x * 2)(1.0))
    """

    def made(*args: Any, **kwargs: Any) -> Graph:
        leaves, structure = tree.flatten((args, kwargs))
        arrays = [_type_or_array(x, "make_graph") for x in leaves]

        def call(a: Any, k: Any) -> Any:
            return f(*a, **k)

        call.__name__ = getattr(f, "__name__", "f")
        return trace_to_graph(call, structure, arrays, "make_graph", leaves, whole=True)[0]

    return made
