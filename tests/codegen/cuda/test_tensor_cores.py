"""Products on tensor cores: exact in the simulator where nothing is rounded, rounded as they should where it is, and `mma` in the PTX.

As in `test_product.py`, this file run as a program does the cases that need Numba's CUDA simulator.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from fgrad import dtypes
from fgrad.codegen.contraction import Contraction, conv_spec, conv_weight_grad_spec, dot_general_spec
from fgrad.codegen.cuda.product import lower_contraction
from fgrad.codegen.cuda.product_plan import Tile, core_for, plan_product, plan_with_tile
from fgrad.codegen.cuda.target import HOPPER, SIMULATED, TURING
from fgrad.codegen.program import Buf, ContractStep
from fgrad.runtime.cuda import adapter
from fgrad.runtime.interpret import contract
from tests.runtime.cuda import simulated

TF32, BF16 = Tile(16, 8, 8, 16, 8, "tf32"), Tile(16, 8, 16, 16, 8, "bf16")  # one instruction a step
MORE = Tile(32, 16, 16, 16, 16, "tf32")  # two warps, of two instructions side by side and two steps
MORE_BF16 = Tile(32, 16, 32, 16, 16, "bf16")
PLAIN = (((1,), (0,)), ((), ()))
f32, f16, bf16 = dtypes.float32, dtypes.float16, dtypes.bfloat16


def dot(a, b, dims=PLAIN, dtype=f32) -> Contraction:
    return dot_general_spec(a, b, dims, dtype, dtype, dtype)


def step_of(spec: Contraction) -> tuple[ContractStep, tuple[Buf, Buf, Buf]]:
    def buffer(name, operand):
        last = sum((a.size - 1 if a.size else a.span(spec.extents)[1]) * a.stride for a in operand.axes)
        return Buf(name, (last + 1,), operand.dtype)

    bufs = (buffer("out", spec.out), buffer("lhs", spec.lhs), buffer("rhs", spec.rhs))
    return ContractStep(spec, *bufs), bufs


def run(spec: Contraction, tile: Tile, parts: int, make: Callable[[int], np.ndarray]):
    """Result of the kernels, and of the definition."""
    from fgrad.runtime.cuda.simulator import run_simulated

    step, (out, lhs, rhs) = step_of(spec)
    memory = {b: make(b.size).astype(b.dtype) for b in (out, lhs, rhs)}
    want = memory[out].copy()
    contract(spec, want, memory[lhs], memory[rhs])
    for launch in lower_contraction(step, SIMULATED, plan=plan_with_tile(spec, tile, parts)):
        assert ("mma" in launch.kernel.features) == ("_sum" not in launch.kernel.name)
        for buf in launch.args:
            memory.setdefault(buf, np.full(buf.size, np.nan, buf.dtype))
        run_simulated(launch.kernel, [memory[b] for b in launch.args])
    return memory, want, (out, lhs, rhs)


def exact(spec: Contraction, tile: Tile, parts: int = 1) -> None:
    """Of small whole numbers nothing is lost in any type."""
    rng = np.random.default_rng(0)
    memory, want, (out, *_) = run(spec, tile, parts, lambda n: rng.integers(-4, 5, size=n))
    np.testing.assert_array_equal(memory[out].astype(np.float64), want.astype(np.float64))


def rounded(tile: Tile, digits: int) -> None:
    """The operands are rounded to so many binary digits, to the nearest, and the sums are not."""
    rng = np.random.default_rng(0)
    memory, _, (out, lhs, rhs) = run(dot((16, 16), (16, 8)), tile, 1, lambda n: rng.normal(size=n))
    scaled = [np.frexp(memory[b].astype(np.float64)) for b in (lhs, rhs)]
    a, b = (np.ldexp(np.round(np.ldexp(m, digits)), e - digits) for m, e in scaled)
    want = a.reshape(16, 16) @ b.reshape(16, 8)
    np.testing.assert_allclose(memory[out].reshape(16, 8), want, rtol=1e-6, atol=1e-6)


CONV = ((1, 4, 5, 4), (4, 4, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1, f32)
WEIGHT = ((2, 3, 4, 4), (2, 4, 4, 4), (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1, f32)
CASES: dict[str, Callable[[], None]] = {
    "tf32": lambda: exact(dot((16, 8), (8, 8)), TF32),
    "tf32 ragged": lambda: exact(dot((18, 11), (11, 9)), TF32),
    "tf32 warps": lambda: exact(dot((32, 32), (32, 16)), MORE),
    "tf32 of float16": lambda: exact(dot((16, 8), (8, 8), dtype=f16), TF32),
    "tf32 of bfloat16": lambda: exact(dot((16, 8), (8, 8), dtype=bf16), TF32),
    "tf32 conv": lambda: exact(conv_spec(*CONV), TF32),
    "bf16": lambda: exact(dot((16, 16), (16, 8)), BF16),
    "bf16 ragged": lambda: exact(dot((18, 19), (19, 9)), BF16),
    "bf16 by rows": lambda: exact(dot((20, 16), (20, 8), (((0,), (0,)), ((), ()))), BF16),
    "bf16 by columns": lambda: exact(dot((16, 20), (8, 20), (((1,), (1,)), ((), ()))), BF16),
    "bf16 warps": lambda: exact(dot((32, 64), (64, 16)), MORE_BF16),
    "bf16 of bfloat16": lambda: exact(dot((16, 20), (20, 8), dtype=bf16), BF16),
    "bf16 weight gradient": lambda: exact(conv_weight_grad_spec(*WEIGHT), BF16, 2),
    "tf32 rounds": lambda: rounded(TF32, 11),
    "bf16 rounds": lambda: rounded(BF16, 8),
}


@simulated.needed
@pytest.mark.parametrize("name", CASES)
def test_simulated(name):
    found = simulated.outcome(__file__)[name]
    assert not found, found


# ------------------------------------------------------------------------------------------------ compiled


SHAPES = {
    "square": dot((4096, 4096), (4096, 4096)),
    "half": dot((4096, 4096), (4096, 4096), dtype=bf16),
    "conv": conv_spec((128, 64, 56, 56), (64, 64, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1, f32),
    "weight": conv_weight_grad_spec(
        (128, 64, 56, 56), (128, 64, 56, 56), (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1, f32
    ),
}


@pytest.mark.skipif(not adapter.installed(), reason="needs the package numba-cuda")
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_ptx(name, precision):
    from fgrad.runtime.cuda.linker import link

    step, _ = step_of(SHAPES[name])
    launch = lower_contraction(step, HOPPER, precision)[0]
    ptx, _ = adapter.compile_ptx(launch.kernel, HOPPER.capability)
    kind = "m16n8k8.row.col.f32.tf32" if precision == "tf32" else "m16n8k16.row.col.f32.bf16"
    assert f"mma.sync.aligned.{kind}" in ptx and "fma.rn" not in ptx
    linked = link(ptx, HOPPER.capability)
    assert (linked.spills, linked.stack) == (0, 0)
    shared = [int(n) for n in re.findall(r"\.shared .*\[(\d+)\];", ptx)]
    assert 0 < sum(shared) <= HOPPER.shared_bytes and not any(n % 64 for n in shared)


# ------------------------------------------------------------------------------------------------ when


def test_only_where_asked_for_and_possible():
    square = SHAPES["square"]
    assert not plan_product(square, HOPPER).tile.core
    assert plan_product(square, HOPPER, "tf32").tile.core == "tf32"
    assert plan_product(square, HOPPER, "bf16").tile.core == "bf16"
    assert not plan_product(square, TURING, "tf32").tile.core  # no such instruction before 8.0
    assert core_for(dot((8, 8), (8, 8), dtype=f16), HOPPER, "bf16") == "tf32"  # bfloat16 has fewer digits
    assert core_for(dot((8, 8), (8, 8), dtype=dtypes.float64), HOPPER, "bf16") == ""
    with pytest.raises(ValueError, match="precision"):
        plan_product(square, HOPPER, "tf16")


if __name__ == "__main__":
    simulated.report(CASES)
