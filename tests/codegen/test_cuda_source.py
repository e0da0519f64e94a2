"""The loop nests as `numba.cuda` kernels, run in Numba's CUDA simulator in a process of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

SETUP = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from passes import helpers as h
from fgrad.codegen.cuda_source import compile_cuda
from fgrad.ir import Literal
from fgrad.passes import compile_graph
from fgrad.runtime.interpret import Interpreter

def check(graph, inputs=None):
    inputs = h.inputs_for(graph) if inputs is None else inputs
    program = compile_graph(graph)
    machine = Interpreter(program)
    for kernel in h.kernels(program):
        machine.compiled[kernel] = compile_cuda(kernel, threads=4)
    for got, want in zip(machine.run(*inputs), h.evaluate(graph, inputs)):
        h.agree(got, want)
    return len(h.kernels(program))

b = h.Build()
"""

CASES = {
    "elementwise": """
x, y = b.input((6, 5)), b.input((6, 5))
t = b("tanh", b("mul", x, y))
z = b("select", b("gt", t, x), b("exp", t), b("maximum", b("sigmoid", y), b("rsqrt", b("square", x))))
check(b.graph(z, b("convert", b("abs", z), dtype=np.dtype("int32"))))
""",
    "softmax": """
x = b.input((6, 5))
m = b("reduce_max", x, axes=(1,))
e = b("exp", b("sub", x, b.spread(m, (6, 5), 0)))
y = b("div", e, b.spread(b("reduce_sum", e, axes=(1,)), (6, 5), 0))
assert check(b.graph(y)) == 1
""",
    "reductions": """
x = b.input((3, 4, 5))
sets = [(0,), (1,), (2,), (0, 2), (0, 1, 2)]
outs = [b(n, x, axes=a) for n in ("reduce_sum", "reduce_max", "reduce_min") for a in sets]
check(b.graph(*outs, b("argmax", x, axis=2), b("argmin", x, axis=0), b("cumsum", x, axis=1, reverse=True)))
""",
    "cross_entropy": """
from passes.test_fuse import cross_entropy
x, labels = b.input((6, 5)), b.input((6,), "int64")
loss, _, logp = cross_entropy(b, x, labels)
check(b.graph(loss, logp))
""",
    "pooling_and_scatter": """
p = dict(window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)))
x, i, u = b.input((2, 3, 4, 4)), b.input((3,), "int64"), b.input((3, 2))
y, offset = b(h.max_pool, x, **p)
g = b(h.pool_put, y, offset, spatial=(4, 4), **p)
check(b.graph(y, g, b(h.scatter, b.input((4, 2)), u, i, axes=(0,), mode="add")))
""",
    "random_bits": """
c = b("iota", shape=(8,), dtype=np.dtype("uint32"), axis=0)
k = b.spread(Literal(7, np.dtype("uint32")), (8,))
check(b.graph(*b("threefry2x32", k, k, c, c)))
""",
}


@pytest.mark.parametrize("case", CASES)
def test_in_the_simulator(case):
    code = SETUP.format(tests=str(ROOT / "tests")) + CASES[case]
    env = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
