"""Kernels made of loop nests, at the sizes of real models, compiled to PTX and linked: what a GPU would get."""

import numpy as np
import pytest

from fgrad.codegen.cuda.nests import lower_kernel
from fgrad.codegen.cuda.target import HOPPER, TURING
from fgrad.codegen.program import KernelStep, walk
from fgrad.passes import compile_graph

from . import simulate

pytest.importorskip("numba_cuda", reason="CUDA kernels are compiled by numba-cuda, which is not installed")

from fgrad.runtime.cuda import adapter, linker


def launches(graph, target):
    program = compile_graph(graph, target="cuda")
    steps = [s for s in walk(program.body) if isinstance(s, KernelStep)]
    return [launch.kernel for s in steps for launch in lower_kernel(s, target)]


def _softmax(b, cases):
    return b.graph(cases.softmax(b, b.input((512, 1000))))


def _gelu(b, cases):
    x = b.input((8192, 3072))
    inner = b("mul", x, b.like(0.7071067811865476, x))
    return b.graph(b("mul", b("mul", x, b.like(0.5, x)), b("add", b("erf", inner), b.like(1.0, x))))


def _half(b, cases):
    x, bias = b.input((512, 1024), "bfloat16"), b.input((1024,), "bfloat16")
    return b.graph(b("tanh", b("add", x, b.spread(bias, (512, 1024), 1))))


def _embedding(b, cases):
    h = simulate.module("passes.helpers")
    table, ids, g = b.input((5000, 128)), b.input((4096,), "int64"), b.input((4096, 128))
    return b.graph(b(h.gather, table, ids, axes=(0,)), b(h.scatter, table, g, ids, axes=(0,), mode="add"))


def _pooling(kind, *shape):
    cases = simulate.module("order_cases")
    return cases.pooling_and_gradients(cases.POOLS[kind], *shape)


def _random(b, cases):
    c = b("iota", shape=(1 << 16,), dtype=np.dtype("uint32"), axis=0)
    return b.graph(*b("threefry2x32", c, c, c, c))


# name: the graph, and what its kernels must be made of
GRAPHS = {
    "softmax": (_softmax, {"shfl.sync", "bar.sync", "ld.global.v4", "st.global.v4"}),
    "layer norm": (lambda b, cases: cases.layer_norm(4096, 768), {"shfl.sync", "ld.global.v4"}),
    "cross-entropy": (lambda b, cases: cases.cross_entropy_and_gradient(128, 1000), {"shfl.sync"}),
    "small cross-entropy": (lambda b, cases: cases.cross_entropy_and_gradient(128, 10), {"shfl.sync"}),
    "adam": (lambda b, cases: cases.adam(784, 512), {"ld.global.v4", "st.global.v4"}),
    "gelu": (_gelu, {"ld.global.v4", "st.global.v4"}),
    "bfloat16": (_half, {"ld.global.v4", "st.global.v4"}),
    "pooling": (
        lambda b, cases: _pooling(0, 128, 32, 28, 28),
        {"st.global.v4"},
    ),
    "overlapping pooling": (
        lambda b, cases: _pooling(1, 32, 64, 56, 56),
        set(),
    ),
    "batch norm": (lambda b, cases: cases.batch_norm(128, 64, 56, 56), {"shfl.sync", "ld.global.v4"}),
    "batch norm of many channels": (lambda b, cases: cases.batch_norm(128, 512, 7, 7), {"shfl.sync"}),
    "bias gradient": (
        lambda b, cases: b.graph(b("reduce_sum", b.input((8192, 512)), axes=(0,))),
        {"bar.sync"},
    ),
    "mean": (
        lambda b, cases: b.graph(b("reduce_sum", b.input((1 << 20,)), axes=(0,))),
        {"shfl.sync", "ld.global.v4"},
    ),
    "argmax": (lambda b, cases: b.graph(b("argmax", b.input((128, 1000)), axis=1)), {"shfl.sync"}),
    "cumulative sum": (
        lambda b, cases: b.graph(b("cumsum", b.input((100000,)), axis=0, reverse=False)),
        set(),
    ),
    "embedding": (_embedding, {"ld.global.v4", "bar.red"}),
    "random bits": (_random, {"st.global.v4"}),
}


@pytest.mark.parametrize("target", [HOPPER, TURING], ids=["sm_90", "sm_75"])
@pytest.mark.parametrize("name", GRAPHS)
def test_compiles_without_spills(name, target):
    make, wanted = GRAPHS[name]
    cases = simulate.module("nest_cases")
    kernels = launches(make(cases.h.Build(), cases), target)
    texts = []
    for kernel in kernels:
        ptx, _ = adapter.compile_ptx(kernel, target.capability)
        linked = linker.link(ptx, target.capability)
        assert linked.spills == 0, (kernel.source, linked.registers)
        assert linked.registers * kernel.block[0] <= 65536
        assert linked.shared <= target.shared_bytes
        texts.append(ptx)
    missing = {w for w in wanted if not any(w in t for t in texts)}
    assert not missing, "\n".join(k.source for k in kernels)


def test_large_launches_fill_the_gpu():
    """Sizes of launches at real shapes: enough blocks for every multiprocessor."""
    cases = simulate.module("nest_cases")
    for name in ("softmax", "layer norm", "adam", "gelu", "batch norm", "bias gradient", "mean"):
        kernels = launches(GRAPHS[name][0](cases.h.Build(), cases), HOPPER)
        assert max(k.grid[0] for k in kernels) >= HOPPER.multiprocessors, name
