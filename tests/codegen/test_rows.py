"""Rows two at a time, and buffers that one kernel alone uses as one row of memory: same results, by compiled kernels."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.codegen.jam import jam_rows
from fgrad.codegen.loops import Buffer, Load, Loop, LoopVar, Store, index_add, index_scale, statements
from fgrad.codegen.program import KernelStep, walk
from fgrad.codegen.rowlocal import keep_rows

F4 = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch):
    monkeypatch.setenv("FGRAD_CACHE", "0")


def softmax(x):
    e = fnp.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def layer_norm_loss(x, g, w):
    c = x - x.mean(1, keepdims=True)
    return (c / fnp.sqrt((c * c).mean(1, keepdims=True) + 1e-5) * g * w).sum()


def kernels(f, *args):
    program = fgrad.jit(f).lower(*args).compile().program
    return [s.kernel for s in walk(program.body) if isinstance(s, KernelStep)]


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 4098])
@pytest.mark.parametrize("width", [1, 5, 16, 65, 257])
def test_softmax(rng, rows, width):
    x = rng.normal(size=(rows, width)).astype(np.float32)
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(fgrad.jit(softmax)(x), e / e.sum(1, keepdims=True), rtol=2e-6, atol=1e-7)


def test_layer_norm_gradient_is_the_one_outside_jit(rng):
    x, g, w = rng.normal(size=(130, 96)), rng.normal(size=96), rng.normal(size=(130, 96))
    want = fgrad.grad(layer_norm_loss, argnums=(0, 1))(x, g, w)
    for a, b in zip(fgrad.jit(fgrad.grad(layer_norm_loss, argnums=(0, 1)))(x, g, w), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_pairs_of_rows(rng):
    (kernel,) = kernels(softmax, np.ones((64, 65), np.float32))
    (loop,) = jam_rows(kernel.body)
    assert isinstance(loop, Loop) and loop.var.extent == 32
    stores = [s for s in statements([loop]) if isinstance(s, Store)]
    assert len(stores) == 2 * len([s for s in statements(kernel.body) if isinstance(s, Store)])
    assert jam_rows(kernel.body, keep=kernel.body[0]) == kernel.body
    (odd,) = kernels(softmax, np.ones((63, 65), np.float32))
    assert jam_rows(odd.body) == odd.body


def test_a_private_buffer_becomes_one_row():
    (kernel,) = kernels(softmax, np.ones((64, 65), np.float32))
    stored = [s.buffer for s in statements(kernel.body) if isinstance(s, Store)]
    hidden = next(b for b in stored if b.role == "inout")
    local = {s.buffer for s in statements(keep_rows(kernel.body, [hidden])) if isinstance(s, Store)} - set(
        stored
    )
    assert [(b.role, b.size) for b in local] == [("local", 65)]


def test_what_rows_share_stays_in_memory():
    """A buffer whose place does not change from row to row, and one that is read before it is written."""
    i, j = LoopVar("i", 8), LoopVar("j", 16)
    x, y, t = Buffer("x", F4, 128), Buffer("y", F4, 128, "out"), Buffer("t", F4, 16, "inout")
    at = index_add(index_scale(i, 16), j)
    shared = [Loop(i, [Loop(j, [Store(t, j, Load(x, at))]), Loop(j, [Store(y, at, Load(t, j))])])]
    assert keep_rows(shared, [t]) == shared
    big = Buffer("t", F4, 128, "inout")
    early = [Loop(i, [Loop(j, [Store(y, at, Load(big, at))]), Loop(j, [Store(big, at, Load(x, at))])])]
    assert keep_rows(early, [big]) == early
