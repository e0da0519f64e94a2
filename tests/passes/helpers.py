"""Graphs by hand: build equations, evaluate them by the primitives' NumPy definitions, run their compiled programs."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import numpy as np

import fgrad
import fgrad.control
import fgrad.ops
from fgrad.codegen.program import HostStep, KernelStep, Program, walk
from fgrad.ir import REGISTRY, Atom, Eqn, Graph, Literal, Primitive, Type, Var, check, infer
from fgrad.passes import compile_graph
from fgrad.runtime.interpret import interpret

for _package in (fgrad.ops, fgrad.control):
    for _module in pkgutil.iter_modules(_package.__path__):
        importlib.import_module(f"{_package.__name__}.{_module.name}")


class Build:
    """`b = Build(); x = b.input((3, 4)); b.graph(b("exp", x))`."""

    def __init__(self) -> None:
        self.inputs: list[Var] = []
        self.eqns: list[Eqn] = []

    def input(self, shape: tuple[int, ...], dtype: Any = "float32") -> Var:
        var = Var(Type(tuple(shape), np.dtype(dtype)))
        self.inputs.append(var)
        return var

    def __call__(self, name: str | Primitive, *args: Any, **params: Any) -> Any:
        prim = REGISTRY[name] if isinstance(name, str) else name
        kind = next((a.type.dtype for a in args if isinstance(a, (Var, Literal))), np.dtype("float32"))
        atoms: list[Atom] = [a if isinstance(a, (Var, Literal)) else Literal(a, kind) for a in args]
        outs = [Var(t) for t in infer(prim, [a.type for a in atoms], params)]
        self.eqns.append(Eqn(prim, atoms, params, outs, None))
        return outs if prim.multiple else outs[0]

    def like(self, value: float, x: Var) -> Var:
        return self("broadcast", Literal(value, x.type.dtype), shape=x.type.shape, axes=())

    def spread(self, x: Var, shape: tuple[int, ...], *axes: int) -> Var:
        return self("broadcast", x, shape=shape, axes=axes)

    def graph(self, *outs: Atom) -> Graph:
        graph = Graph(tuple(self.inputs), self.eqns, tuple(outs))
        check(graph)
        return graph


def evaluate(graph: Graph, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The definition: every equation by its `impl`."""
    env: dict[Var, np.ndarray] = dict(zip(graph.inputs, inputs, strict=True))

    def read(a: Atom) -> np.ndarray:
        return np.asarray(a.value, a.type.dtype) if isinstance(a, Literal) else env[a]

    with np.errstate(all="ignore"):
        for e in graph.eqns:
            result = e.prim.impl(*[read(a) for a in e.inputs], **e.params)
            results = result if e.prim.multiple else (result,)
            env.update(zip(e.outputs, [np.asarray(r) for r in results], strict=True))
    return [read(a) for a in graph.outputs]


def inputs_for(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    out = []
    for v in graph.inputs:
        if v.type.dtype.kind in "iu":
            out.append(rng.integers(0, 3, v.type.shape).astype(v.type.dtype))
        elif v.type.dtype.kind == "b":
            out.append(rng.random(v.type.shape) > 0.5)
        else:
            out.append(np.asarray(rng.normal(size=v.type.shape)).astype(v.type.dtype))
    return out


def agree(got: np.ndarray, want: np.ndarray, rtol: float = 2e-5) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape, (got.dtype, want.dtype, got.shape, want.shape)
    if got.dtype.kind in "biu":
        np.testing.assert_array_equal(got, want)
    else:
        wide = np.complex128 if got.dtype.kind == "c" else np.float64
        if got.dtype.itemsize == 2:
            rtol = 2e-2
        np.testing.assert_allclose(got.astype(wide), want.astype(wide), rtol=rtol, atol=rtol)


def run(graph: Graph, inputs: list[np.ndarray] | None = None) -> Program:
    """Compile, run in the interpreter, compare with the definition; the program, for more questions."""
    inputs = inputs_for(graph) if inputs is None else inputs
    program = compile_graph(graph)
    want = evaluate(graph, inputs)
    for got, expected in zip(interpret(program, inputs), want, strict=True):
        agree(got, expected)
    return program


def kernels(program: Program) -> list[Any]:
    return [s.kernel for s in walk(program.body) if isinstance(s, KernelStep)]


def host_steps(program: Program) -> list[HostStep]:
    return [s for s in walk(program.body) if isinstance(s, HostStep)]


gather, scatter = REGISTRY["gather"], REGISTRY["scatter"]
max_pool, sum_pool, sum_pool_grad = (REGISTRY[n] for n in ("max_pool", "sum_pool", "sum_pool_grad"))
pool_put, pool_take = REGISTRY["pool_put"], REGISTRY["pool_take"]
