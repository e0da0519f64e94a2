"""What the generated code is made of, asserted on its assembly text: full-width FMA and no spills in the hot loops of
contractions, packed instructions and no calls in those of element-wise kernels; for this machine and for lesser ones."""

import functools
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fgrad.codegen.target import host, level

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86-64 assembly"
)

ROOT = Path(__file__).resolve().parents[2]
REGISTER = {16: "%xmm", 32: "%ymm", 64: "%zmm"}

PROGRAMS = """
import json, sys
import numpy as np
import fgrad, fgrad.numpy as fnp
from fgrad import lax, special

def softmax(x):
    e = fnp.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)

def adam(p, m, v, g):
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * (g * g)
    return p - 1e-3 * m / (fnp.sqrt(v) + 1e-8), m, v

def layer_norm(x, g, b):
    c = x - x.mean(1, keepdims=True)
    return c / fnp.sqrt((c * c).mean(1, keepdims=True) + 1e-5) * g + b

def f32(*shape):
    return fnp.asarray(np.ones(shape, np.float32))

PROGRAMS = {
    "chain": (lambda x: (fnp.tanh(2.0 * x + 1.0) * special.sigmoid(x) + fnp.exp(-x * x)), [f32(4096)]),
    "waves": (lambda x: fnp.sin(x) * fnp.cos(x) + special.erf(x) + fnp.log(x), [f32(4096)]),
    "softmax": (softmax, [f32(64, 128)]),
    "odd softmax": (softmax, [f32(64, 77)]),
    "layer norm": (fgrad.value_and_grad(lambda *a: (layer_norm(*a) ** 2).sum(), argnums=(0, 1, 2)),
                   [f32(64, 256), f32(256), f32(256)]),
    "adam": (adam, [f32(4096)] * 4),
    "mean": (lambda x: x.mean(), [f32(65536)]),
    "product": (lambda x, y: x @ y, [f32(256, 256), f32(256, 256)]),
    "convolution": (lambda x, w: lax.conv(x, w, padding=1), [f32(8, 32, 16, 16), f32(32, 32, 3, 3)]),
    "convolution gradients": (fgrad.grad(lambda x, w: (lax.conv(x, w, padding=1) ** 2).sum(), argnums=(0, 1)),
                              [f32(8, 32, 16, 16), f32(32, 32, 3, 3)]),
}
chosen = sys.argv[1:] or list(PROGRAMS)
print(json.dumps({n: str(fgrad.jit(PROGRAMS[n][0]).lower(*PROGRAMS[n][1]).show("assembly")) for n in chosen}))
"""


def run(code, *args, target=None):
    """The standard output of a Python process for `target`; nothing may appear on standard error."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "FGRAD_CACHE": "0", "FGRAD_WINOGRAD": "0"}
    env.pop("FGRAD_TARGET", None)
    if target:
        env["FGRAD_TARGET"] = target
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=590
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def reachable(target):
    """The description of `target`; the test is skipped where the processor cannot run it."""
    if target is None:
        return host()
    import llvmlite.binding as llvm

    try:
        return level(target, dict(llvm.get_host_cpu_features()), l1=1 << 15, l2=1 << 20)
    except ValueError as problem:
        pytest.skip(str(problem))


@functools.cache
def assemblies(target):
    return json.loads(run(PROGRAMS, target=target))


def innermost_loops(assembly):
    """The instructions of each innermost loop: from a label to a jump back to it, with no such pair inside."""
    lines = [line.split("#")[0].strip() for line in assembly.splitlines()]
    lines = [line for line in lines if line and (not line.startswith(".") or line.endswith(":"))]
    at = {line[:-1]: n for n, line in enumerate(lines) if line.endswith(":")}
    spans = []
    for n, line in enumerate(lines):
        jump = re.match(r"j\w+\s+(\S+)$", line)
        if jump and at.get(jump[1], n) < n:
            spans.append((at[jump[1]], n))
    inner = [s for s in spans if not any(s[0] <= t[0] and t[1] <= s[1] and t != s for t in spans)]
    return [[x for x in lines[a : b + 1] if not x.endswith(":")] for a, b in inner]


def test_loops_are_found():
    text = "f:\n\tmovl $1, %eax\n.LBB0_1:\n\taddl $1, %eax\n.LBB0_2:\n\tvmulps %zmm1, %zmm2, %zmm3\n\tjne .LBB0_2\n\tjne .LBB0_1\n\tretq"
    assert innermost_loops(text) == [["vmulps %zmm1, %zmm2, %zmm3", "jne .LBB0_2"]]


TARGETS = [None, "x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["product", "convolution", "convolution gradients"])
def test_hot_loops_of_contractions(name, target):
    info = reachable(target)
    wide = REGISTER[info.vector_bytes]
    multiply = "vfmadd" if info.fma else "mulps"
    loops = innermost_loops(assemblies(target)[name])
    counts = {
        n: sum(line.startswith(multiply) and wide in line for line in loop) for n, loop in enumerate(loops)
    }
    most = max(counts.values(), default=0)
    assert most >= (8 if info.vector_bytes > 16 else 4), "no register tile on the widest registers"
    for n, count in counts.items():
        if count < most // 2:
            continue
        hot = loops[n]
        # SSE's instructions overwrite an operand, and the direct gradient's tile with its taps loaded ahead takes more than 16
        # registers: LLVM keeps a few copies on the stack there.
        if info.fma and (info.registers == 32 or name != "convolution gradients"):
            spills = [x for x in hot if "%rsp" in x or "%rbp)" in x]
            assert not spills, "\n".join(hot)
        assert not [x for x in hot if x.startswith("call")]
        scalar = [x for x in hot if re.match(r"v?(mul|add|fmadd\w*)s[sd]\b", x)]
        assert not scalar, "\n".join(hot)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["chain", "waves", "softmax", "odd softmax", "layer norm", "adam", "mean"])
def test_elementwise_loops_and_row_loops_are_vectors(name, target):
    info = reachable(target)
    wide = REGISTER[info.vector_bytes]
    loops = innermost_loops(assemblies(target)[name])
    arithmetic = re.compile(r"v?(add|mul|div|sub|sqrt|max|min|fmadd\w*|fnmadd\w*|fmsub\w*)p[sd]\b")
    packed = [loop for loop in loops if any(arithmetic.match(x) and wide in x for x in loop)]
    assert packed, "no loop on the widest registers"
    for loop in loops:
        assert not [x for x in loop if x.startswith("call")], "\n".join(loop)
    if (
        name != "odd softmax" or info.masked_stores
    ):  # what vectors leave over is done one by one without masks
        for loop in packed:
            work = [x for x in loop if arithmetic.match(x)]
            # Sums along a row end in additions of ever fewer lanes.
            narrow = [x for x in work if wide not in x]
            assert name in ("softmax", "odd softmax", "layer norm") or not narrow, "\n".join(loop)
    scalar_functions = [
        x
        for x in assemblies(target)[name].splitlines()
        if re.search(r"call\S*\s+(exp|tanh|log|sin|cos|erf|fma)f?\b", x)
    ]
    assert not scalar_functions


SILENT = """
import numpy as np
import fgrad, fgrad.numpy as fnp
x = fnp.asarray(np.ones((4, 3, 2)))
fgrad.jit(lambda x, i, j: x[i, :, j])(x, np.array([1, 2]), np.array([0, 1]))
fgrad.jit(lambda x: fnp.argmax(x, axis=1))(fnp.asarray(np.ones((8, 64), np.float32)))
fgrad.jit(lambda x: (x > 0).any(axis=1))(fnp.asarray(np.ones((8, 64))))
fgrad.jit(lambda x: fnp.cumsum(x, axis=0))(fnp.asarray(np.ones((8, 64))))

def attention(q, k, v):
    scores = (q @ k.swapaxes(-1, -2)) * (1 / np.sqrt(32))
    scores = fnp.where(np.tril(np.ones((16, 16), bool)), scores, -np.inf)
    e = fnp.exp(scores - scores.max(-1, keepdims=True))
    return ((e / e.sum(-1, keepdims=True)) @ v).sum()

a = fnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 32)))
fgrad.jit(fgrad.grad(attention, argnums=(0, 1, 2)))(a, a, a)
fgrad.jit(fgrad.grad(attention, argnums=(0, 1, 2)))(*(fnp.asarray(np.ones((2, 16, 32), np.float32)),) * 3)
"""


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
def test_compiling_prints_nothing(target):
    """LLVM reports loops that it was told to make vectors of and could not: fgrad writes vectors itself."""
    reachable(target)
    assert run(SILENT, target=target) == ""
