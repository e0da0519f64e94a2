"""Products and convolutions as kernels, in Numba's CUDA simulator, against the definition (`interpret.contract`).

The simulator wants a process of its own: this file, run as a program, does all cases and prints what became of each. Reads and writes
outside an array are errors there.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest

from fgrad import dtypes
from fgrad.codegen.contraction import (
    Contraction,
    Operand,
    conv_input_grad_spec,
    conv_output_spatial,
    conv_spec,
    conv_weight_grad_spec,
    dot_general_spec,
)
from fgrad.codegen.cuda.product import lower_contraction
from fgrad.codegen.cuda.product_plan import Tile, plan_with_tile
from fgrad.codegen.cuda.target import SIMULATED
from fgrad.codegen.program import Buf, ContractStep
from fgrad.runtime.interpret import contract
from tests.runtime.cuda import simulated

SMALL = Tile(4, 4, 4, 2, 2)
FOURS = Tile(8, 8, 4, 4, 4)  # sums in fours: vector accesses everywhere
TALL = Tile(8, 16, 8, 8, 4)  # eight sums down, as two fours apart
WARP = Tile(8, 16, 4, 2, 2)  # 32 threads: the order of threads in a warp

CASES: dict[str, Callable[[], None]] = {}


def length(operand: Operand, extents: dict[str, int]) -> int:
    """Elements of an array that an operand may address."""
    last = operand.offset
    for axis in operand.axes:
        high = axis.size - 1 if axis.size is not None else axis.span(extents)[1] // axis.divisor
        last += high * axis.stride
    return last + 1


def check(spec: Contraction, tile: Tile = SMALL, parts: int = 1, shift: int = 0) -> None:
    """`shift`: bytes that the operands lie after a multiple of 16."""
    from fgrad.runtime.cuda.simulator import run_simulated

    rng = np.random.default_rng(0)
    memory: dict[Buf, np.ndarray] = {}

    def buffer(name: str, operand: Operand) -> Buf:
        buf = Buf(name, (length(operand, spec.extents),), operand.dtype)
        if shift:
            buf = Buf(name, buf.shape, buf.dtype, "view", Buf("base", (buf.size + 16,), buf.dtype), shift)
        memory[buf] = rng.normal(size=buf.size).astype(buf.dtype)
        return buf

    lhs, rhs, out = (buffer(n, o) for n, o in (("lhs", spec.lhs), ("rhs", spec.rhs), ("out", spec.out)))
    want = memory[out].copy()
    contract(spec, want, memory[lhs], memory[rhs])
    launches = lower_contraction(
        ContractStep(spec, out, lhs, rhs), SIMULATED, plan=plan_with_tile(spec, tile, parts)
    )
    assert len(launches) == (1 if parts == 1 else 2)
    for step in launches:
        for buf in step.args:
            memory.setdefault(buf, np.full(buf.size, np.nan, buf.dtype))
        run_simulated(step.kernel, [memory[b] for b in step.args])
    exact = {2: 4e-3, 4: 2e-5, 8: 1e-13}[out.dtype.itemsize] * (4 if out.dtype.name == "bfloat16" else 1)
    wide = [a.astype(np.float64) for a in (memory[out], want)]
    np.testing.assert_allclose(*wide, rtol=exact, atol=exact)


# ------------------------------------------------------------------------------------------------ products

PLAIN = (((1,), (0,)), ((), ()))


def dot(a, b, dims=PLAIN, dtype="float32", strides=(None, None), out=None) -> Contraction:
    dtype = np.dtype(dtype)
    return dot_general_spec(a, b, dims, dtype, dtype, out or dtype, *strides)


def product_cases() -> None:
    specs = {
        "even": dot((8, 12), (12, 16)),
        "ragged": dot((5, 7), (7, 9)),
        "one term": dot((5, 1), (1, 8)),
        "lhs transposed": dot((8, 12), (8, 12), (((0,), (0,)), ((), ()))),
        "rhs transposed": dot((8, 12), (8, 12), (((1,), (1,)), ((), ()))),
        "by strides": dot((8, 12), (12, 8), strides=((1, 8), (1, 12))),
        "broadcast": dot((8, 12), (12, 8), strides=((12, 1), (0, 1))),
        "batched": dot((2, 3, 5, 4), (2, 3, 4, 6), (((3,), (2,)), ((0, 1), (0, 1)))),
        "batch inside": dot((5, 2, 4), (4, 2, 6), (((2,), (0,)), ((1,), (1,)))),
        "two of each": dot((2, 3, 4, 5), (5, 4, 3, 2), (((2, 3), (1, 0)), ((), ()))),
        "vector by matrix": dot((12,), (12, 20), (((0,), (0,)), ((), ()))),
        "matrix by vector": dot((20, 12), (12,)),
        "vectors": dot((13,), (13,), (((0,), (0,)), ((), ()))),
        "one": dot((1, 1), (1, 1)),
    }
    for name, spec in specs.items():
        for label, tile, parts in (("", SMALL, 1), (" fours", FOURS, 1), (" tall parts", TALL, 3)):
            if parts == 1 or any(d.extent >= 12 for d in spec.k):
                cut = parts if parts == 1 else 2
                CASES[name + label] = lambda s=spec, t=tile, p=cut: check(s, t, p)
    CASES["warp"] = lambda: check(dot((16, 8), (8, 40)), WARP)
    CASES["misaligned"] = lambda: check(dot((8, 12), (12, 8)), FOURS, shift=4)
    for dtype, tile in itertools.product(("float16", "bfloat16", "float64"), (SMALL, FOURS)):
        kind = dtypes.canonical(dtype)
        CASES[f"{dtype} {tile}"] = lambda k=kind, t=tile: check(dot((8, 12), (12, 8), dtype=k), t)
        CASES[f"{dtype} {tile} parts"] = lambda k=kind, t=tile: check(dot((6, 16), (16, 8), dtype=k), t, 2)
    CASES["half to float"] = lambda: check(
        dot((8, 12), (12, 8), dtype="float16", out=np.dtype("float32")), FOURS
    )
    choose = random.Random(1)
    for n in range(8):
        m, k, o = (choose.randint(1, 18) for _ in range(3))
        tile = choose.choice([SMALL, FOURS, TALL, Tile(4, 4, 8, 4, 1), Tile(2, 8, 4, 1, 4)])
        spec = dot((m, k), (o, k), (((1,), (1,)), ((), ())))
        CASES[f"random {n}"] = lambda s=spec, t=tile: check(s, t)


# ------------------------------------------------------------------------------------------------ convolutions


def conv_cases() -> None:
    shapes = {  # input, kernel, strides, padding, dilation, groups
        "valid": ((2, 3, 6, 5), (4, 3, 3, 2), (1, 1), [(0, 0), (0, 0)], (1, 1), 1),
        "padded": ((2, 2, 5, 6), (3, 2, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1),
        "block of channels": ((1, 8, 5, 4), (8, 8, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1),
        "strided": ((1, 4, 7, 8), (4, 4, 3, 3), (2, 2), [(1, 1), (0, 1)], (1, 1), 1),
        "strided by steps": ((2, 4, 8, 8), (4, 4, 3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), 1),
        "strided across tiles": ((1, 4, 6, 6), (4, 4, 3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), 1),
        "strided points": ((2, 4, 8, 8), (4, 4, 1, 1), (2, 2), [(0, 0), (0, 0)], (1, 1), 1),
        "dilated groups": ((2, 4, 7, 7), (6, 2, 2, 3), (1, 2), [(1, 2), (2, 0)], (2, 1), 2),
        "depthwise": ((2, 3, 5, 5), (3, 1, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 3),
        "points": ((2, 8, 4, 4), (8, 8, 1, 1), (1, 1), [(0, 0), (0, 0)], (1, 1), 1),
        "line": ((2, 3, 9), (4, 3, 3), (2,), [(1, 1)], (1,), 1),
        "volume": ((1, 2, 4, 3, 4), (2, 2, 2, 2, 2), (1, 1, 1), [(0, 0), (1, 0), (0, 1)], (1, 1, 1), 1),
    }
    f = np.dtype("float32")
    for name, (x, w, strides, padding, dilation, groups) in shapes.items():
        spatial = conv_output_spatial(x[2:], w[2:], strides, padding, dilation)
        g = (x[0], w[0], *spatial)
        specs = {
            "forward": conv_spec(x, w, strides, padding, dilation, groups, f),
            "input": conv_input_grad_spec(g, w, x[2:], strides, padding, dilation, groups, f),
            "weight": conv_weight_grad_spec(x, g, w[2:], strides, padding, dilation, groups, f),
        }
        for kind, spec in specs.items():
            tile = FOURS if name in ("points", "block of channels", "strided") else SMALL
            parts = 2 if kind == "weight" else 1
            CASES[f"conv {name} {kind}"] = lambda s=spec, t=tile, p=parts: check(s, t, p)


product_cases()
conv_cases()


@simulated.needed
@pytest.mark.parametrize("name", CASES)
def test_simulated(name):
    found = simulated.outcome(__file__)[name]
    assert not found, found


if __name__ == "__main__":
    simulated.report(CASES)
