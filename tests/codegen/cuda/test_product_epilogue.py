"""Epilogues of products on the GPU: which kernels are joined, and in Numba's CUDA simulator what they compute.

As in `test_product.py`, this file run as a program does all cases in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import fgrad.numpy as fnp
from fgrad import grad, lax
from fgrad.codegen.cuda.epilogues import attach_epilogues
from fgrad.codegen.cuda.product import lower_contraction
from fgrad.codegen.cuda.product_plan import Tile, plan_with_tile
from fgrad.codegen.cuda.target import SIMULATED
from fgrad.codegen.program import ContractStep, Program, Step, walk
from fgrad.ir import Type
from fgrad.passes import compile_graph
from fgrad.runtime.interpret import Interpreter
from fgrad.trace import trace
from tests.runtime.cuda import simulated

SMALL, FOURS = Tile(4, 4, 4, 2, 2), Tile(8, 8, 4, 4, 4)


def tensor(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def graph_of(f: Callable[..., Any], xs: tuple[np.ndarray, ...]) -> Any:
    def flat(*tracers: Any) -> list[Any]:
        result = f(*tracers)
        return list(result) if isinstance(result, tuple) else [result]

    return trace(flat, [Type(x.shape, x.dtype) for x in xs]).graph


def joined(f: Callable[..., Any], *xs: np.ndarray) -> Program:
    program = compile_graph(graph_of(f, xs))
    attach_epilogues(program, SIMULATED)
    return program


def contractions(program: Program) -> list[ContractStep]:
    return [s for s in walk(program.body) if isinstance(s, ContractStep)]


# ------------------------------------------------------------------------------------------------ cases


def dense(x, w, b):
    return fnp.maximum(x @ w + b, 0)


def conv(x, w, b):
    return fnp.tanh(lax.conv(x, w, padding=1) + b[:, None, None])


def residual(x, w, r):
    return (lax.conv(x, w, padding=1) + r) * 2


def kept(x, w, b):
    h = x @ w
    return fnp.maximum(h + b, 0), h.T @ h


def output_too(x, w, b):
    h = x @ w
    return h, fnp.exp(h + b)


def momentum(x, g, w, m):
    m = m * 0.9 + x.T @ g
    return m, w - 0.1 * m


def columns(x, w, b):
    return x @ w + b[:, None]


def chosen(x, w, b):
    h = x @ w
    return fnp.where(h > 0, h, 0.1 * fnp.expm1(h)) + b


def strided_gradient(x, w):
    """Its last product goes through the places of `x` by their residues (`product_order.by_residue`)."""
    return x * grad(lambda x: fnp.sum(lax.conv(x, w, strides=2, padding=1) ** 2))(x)


DENSE = (tensor(6, 8), tensor(8, 12), tensor(12))
RAGGED = (tensor(5, 7), tensor(7, 9), tensor(9))
IMAGE = (tensor(2, 3, 5, 6), tensor(4, 3, 3, 3), tensor(4))
ROWS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "dense": (dense, DENSE),
    "ragged": (dense, RAGGED),
    "conv": (conv, IMAGE),
    "residual": (residual, (*IMAGE[:2], tensor(2, 4, 5, 6))),
    "kept": (kept, DENSE),
    "output too": (output_too, RAGGED),
    "momentum": (momentum, (tensor(8, 6), tensor(8, 8), tensor(6, 8), tensor(6, 8))),
    "columns": (columns, (tensor(8, 5), tensor(5, 8), tensor(8))),
    "chosen": (chosen, DENSE),
    "strided gradient": (strided_gradient, (tensor(2, 3, 8, 8), tensor(4, 3, 3, 3))),
    "double": (dense, tuple(x.astype(np.float64) for x in DENSE)),
}
CASES = [
    f"{name} / {how}"
    for name in ROWS
    for how in ("small", "fours", "parts")
    if how != "fours" or name != "ragged"
]


class Simulated(Interpreter):
    """Contractions by their kernels, all else by its definition."""

    def __init__(self, program: Program, tile: Tile, parts: int):
        super().__init__(program)
        self.tile, self.parts = tile, parts

    def _step(self, step: Step) -> None:
        from fgrad.runtime.cuda.simulator import run_simulated

        if not isinstance(step, ContractStep):
            return super()._step(step)
        for launch in lower_contraction(
            step, SIMULATED, plan=plan_with_tile(step.spec, self.tile, self.parts)
        ):
            assert launch.eqns == step.eqns
            run_simulated(launch.kernel, [self.array(b).reshape(-1) for b in launch.args])
        return None


def check(name: str) -> None:
    row, how = name.split(" / ")
    f, xs = ROWS[row]
    program = joined(f, *xs)
    got = Simulated(program, FOURS if how == "fours" else SMALL, 2 if how == "parts" else 1).run(*xs)
    want = Interpreter(compile_graph(graph_of(f, xs))).run(*xs)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@simulated.needed
@pytest.mark.parametrize("name", CASES)
def test_simulated(name):
    found = simulated.outcome(__file__)[name]
    assert not found, found


# ------------------------------------------------------------------------------------------------ what is joined


@pytest.mark.parametrize("name", ROWS)
def test_joined(name):
    f, xs = ROWS[name]
    step, *others = contractions(joined(f, *xs))
    assert step.epilogue is not None
    assert all(s.epilogue is not None for s in others) or name == "kept"
    assert step.keeps_product == (name in ("kept", "output too"))


def test_not_joined_across_rows():
    (step,) = contractions(joined(lambda x, w: fnp.sum(x @ w, axis=1), *DENSE[:2]))
    assert step.epilogue is None


def test_text_of_an_epilogue():
    (step,) = contractions(joined(dense, *DENSE))
    (launch,) = lower_contraction(step, SIMULATED, plan=plan_with_tile(step.spec, FOURS))
    source = launch.kernel.source
    assert "return maximum((s + x0), float32(0.0))" in source
    assert "load4(x0, n)" in source and "store4(y0, 12*m + n" in source
    assert [p.name for p in launch.kernel.params] == ["y0", "x0", "lhs", "rhs"]
    assert any("dot_general" in note for note in launch.kernel.notes)


if __name__ == "__main__":
    simulated.report({name: partial(check, name) for name in CASES})
