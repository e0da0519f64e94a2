"""Product kernels of real sizes as PTX and machine code: no sum leaves its register, and what can be loaded in fours is.

Neither a GPU nor a driver is needed; numba-cuda and NVIDIA's linker are.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from fgrad.codegen.contraction import (
    Contraction,
    Dim,
    conv_input_grad_spec,
    conv_output_spatial,
    conv_spec,
    conv_weight_grad_spec,
    dot_general_spec,
)
from fgrad.codegen.cuda.addresses import Address, levels
from fgrad.codegen.cuda.launch import LaunchStep
from fgrad.codegen.cuda.product import lower_contraction
from fgrad.codegen.cuda.product_plan import plan_product
from fgrad.codegen.cuda.target import HOPPER, TURING, CudaTarget
from fgrad.codegen.program import Buf, ContractStep
from fgrad.runtime.cuda import adapter

pytestmark = pytest.mark.skipif(not adapter.installed(), reason="needs the package numba-cuda")
f32 = np.dtype("float32")


def conv(samples, channels, outputs, side, taps=3, padding=0, stride=1) -> dict[str, Contraction]:
    x, w, pads = (samples, channels, side, side), (outputs, channels, taps, taps), [(padding, padding)] * 2
    spatial = conv_output_spatial((side, side), (taps, taps), (stride, stride), pads, (1, 1))
    g, rest = (samples, outputs, *spatial), ((stride, stride), pads, (1, 1), 1, f32)
    return {
        "forward": conv_spec(x, w, *rest),
        "input": conv_input_grad_spec(g, w, (side, side), *rest),
        "weight": conv_weight_grad_spec(x, g, (taps, taps), *rest),
    }


def dense(m, k, n, dtype=f32) -> dict[str, Contraction]:
    dtypes = (dtype, dtype, dtype)
    return {
        "forward": dot_general_spec((m, k), (k, n), (((1,), (0,)), ((), ())), *dtypes),
        "input": dot_general_spec((m, n), (k, n), (((1,), (1,)), ((), ())), *dtypes),
        "weight": dot_general_spec((m, k), (m, n), (((0,), (0,)), ((), ())), *dtypes),
    }


LAYERS = {
    "mnist conv 1": conv(64, 1, 32, 28),
    "mnist conv 2": conv(64, 32, 64, 26),
    "mnist dense 1": dense(64, 1600, 128),
    "mnist dense 2": dense(64, 128, 10),
    "cifar conv 1": conv(64, 3, 6, 32, taps=5),
    "cifar conv 2": conv(64, 6, 16, 14, taps=5),
    "fashion 1": dense(64, 784, 512),
    "fashion 3": dense(64, 512, 10),
    "resnet 64": conv(128, 64, 64, 56, padding=1),
    "resnet 128, strided": conv(128, 64, 128, 56, padding=1, stride=2),
    "resnet 512": conv(128, 512, 512, 7, padding=1),
    "transformer": dense(2048, 128, 512),
    "square": dense(4096, 4096, 4096),
}
# Those whose operands lie in rows of a multiple of four, so that both are loaded in fours.
IN_FOURS = {"mnist dense 1", "fashion 1", "transformer", "square"}
# Enough to see every kind of kernel in the time that a test has; the others are "slow".
QUICK = {
    ("mnist conv 1", "forward"),
    ("mnist conv 2", "input"),
    ("mnist conv 2", "weight"),
    ("mnist dense 2", "forward"),
    ("fashion 1", "weight"),
    ("resnet 128, strided", "input"),
    ("resnet 512", "forward"),
    ("square", "forward"),
}


def launches(spec: Contraction, target: CudaTarget, **options) -> list[LaunchStep]:
    def buffer(name, operand, dims):
        return Buf(name, tuple(d.extent for d in dims), operand.dtype)

    step = ContractStep(
        spec,
        buffer("out", spec.out, (*spec.batch, *spec.m, *spec.n)),
        buffer("lhs", spec.lhs, (*spec.batch, *spec.m, *spec.k)),
        buffer("rhs", spec.rhs, (*spec.batch, *spec.n, *spec.k)),
    )
    return lower_contraction(step, target, **options)


def code(launch: LaunchStep, target: CudaTarget) -> str:
    """PTX that keeps everything in registers."""
    from fgrad.runtime.cuda.linker import link

    ptx, _ = adapter.compile_ptx(launch.kernel, target.capability)
    linked = link(ptx, target.capability)
    assert (linked.spills, linked.stack) == (0, 0), launch.kernel.source
    shared = [int(n) for n in re.findall(r"\.shared .*\[(\d+)\];", ptx)]
    assert sum(shared) <= target.shared_bytes and not any(n % 64 for n in shared)
    assert linked.registers * launch.kernel.block[0] <= 65_536
    assert not re.search(r"\bcall", ptx), "a device function was not inlined"
    return ptx


def _cases():
    for layer, kinds in LAYERS.items():
        for kind in kinds:
            marks = [] if (layer, kind) in QUICK else [pytest.mark.slow]
            yield pytest.param(layer, kind, HOPPER, id=f"{layer} {kind}", marks=marks)
    yield pytest.param("resnet 64", "forward", TURING, id="turing conv")
    yield pytest.param("fashion 1", "input", TURING, id="turing dense")


@pytest.mark.parametrize("layer, kind, target", list(_cases()))
def test_registers(layer, kind, target):
    spec = LAYERS[layer][kind]
    first, *last = launches(spec, target)
    ptx = code(first, target)
    tile = plan_product(spec, target).tile
    assert ptx.count("fma.rn.f32") == tile.bm * tile.bn * tile.bk // tile.threads
    assert ("ld.global.v4" in ptx) == ("vector" in first.kernel.features)
    if layer in IN_FOURS:
        assert "ld.global.v4" in ptx and "ld.global.f32" not in ptx
        assert "st.global.v4" in ptx or tile.tn < 4
    for launch in last:
        assert "ld.global.v4" in code(launch, target) or math.prod(launch.args[0].shape) % 4


@pytest.mark.parametrize("name", ["float16", "float64"])
def test_other_types(name):
    (first, *_) = launches(dense(512, 512, 512, np.dtype(name))["forward"], HOPPER)
    ptx = code(first, HOPPER)
    assert f"fma.rn.{'f64' if name == 'float64' else 'f32'}" in ptx
    assert re.search(r"ld\.global\.v4\.u16" if name == "float16" else r"ld\.global\.v2\.f64", ptx)


# ------------------------------------------------------------------------------------------------ plans


def test_big_products_take_big_tiles():
    plan = plan_product(LAYERS["square"]["forward"], HOPPER)
    assert (plan.tile.bm, plan.tile.bn, plan.parts) == (128, 128, 1)


@pytest.mark.parametrize("layer", ["mnist conv 2", "resnet 64", "resnet 512", "cifar conv 1"])
def test_weight_gradients_fill_the_machine(layer):
    plan = plan_product(LAYERS[layer]["weight"], HOPPER)
    assert plan.parts > 1 and plan.blocks >= HOPPER.multiprocessors // 2


@pytest.mark.parametrize("m, n", [(1, 4096), (4096, 1), (4, 4096), (4096, 8)])
def test_narrow_products_take_narrow_tiles(m, n):
    spec = dense(m, 4096, n)["forward"]
    plan = plan_product(spec, HOPPER)
    assert min(plan.tile.bm, plan.tile.bn) <= 2 * min(m, n)
    assert plan.blocks >= HOPPER.multiprocessors // 2


def test_strided_gradients_skip_taps():
    """Three quarters of the products with zeros are passed over."""
    layer = LAYERS["resnet 128, strided"]
    plan = plan_product(layer["input"], HOPPER)
    assert [d.name for d in plan.spec.n] == ["x0_rest", "x1_rest", "n", "x0_step", "x1_step"]
    assert plan.useful == 1 / 4
    assert "next_step" in launches(layer["input"], HOPPER)[0].kernel.source
    assert plan_product(layer["forward"], HOPPER).useful == 1


def test_long_indices_are_divided_in_64_bits():
    dims = (Dim("a", 2**17), Dim("b", 2**17))
    (_, inner) = levels(dims, [Address(0, {"a": 2**18, "b": 1})])
    assert inner.digit("n") == f"n % {2**17}"
    (_, inner) = levels((Dim("a", 2**10), Dim("b", 2**10)), [Address(0, {"a": 2**11, "b": 1})])
    assert inner.digit("n") == f"modulo(n, {2**10})"


def test_channels_of_a_block_come_last():
    plan = plan_product(LAYERS["resnet 512"]["forward"], HOPPER)
    names = [d.name for d in plan.spec.k]
    assert names == ["i_block", "t0", "t1", "i_in"] and plan.spec.k[-1].extent == plan.tile.bk
    assert [d.name for d in plan_product(LAYERS["resnet 512"]["weight"], HOPPER).spec.k] == ["n", "y0", "y1"]


def test_tiles_of_float64_fit_shared_memory():
    """A tile that is for float32 may not."""
    spec = dense(100_000, 64, 16, np.float64)["forward"]
    (launch,) = launches(spec, HOPPER)
    assert "ld.global" in code(launch, HOPPER)
    plan = plan_product(spec, HOPPER)
    assert 2 * plan.tile.bk * (plan.tile.bm + plan.tile.bn + 8) * 8 <= HOPPER.shared_bytes


@pytest.mark.parametrize("m, n, k", [(6, 8, 4), (400, 120, 4), (84, 120, 4)])
def test_small_products_do_not_take_large_tiles(m, n, k):
    plan = plan_product(dense(m, k, n)["forward"], HOPPER)
    assert plan.tile.bm * plan.tile.bn <= 32 * 32
