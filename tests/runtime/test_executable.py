"""Programs written by hand, compiled and called: control flow, host steps, donation, output buffers."""

import threading

import numpy as np
import pytest

from fgrad import dtypes
from fgrad.codegen.contraction import dot_general_spec
from fgrad.codegen.loops import (
    Acc,
    Buffer,
    Const,
    Init,
    Kernel,
    Load,
    Loop,
    LoopVar,
    Op,
    Store,
    Update,
    const_index,
)
from fgrad.codegen.program import (
    Block,
    Buf,
    ContractStep,
    CopyStep,
    ForStep,
    HostStep,
    KernelStep,
    Program,
    SwitchStep,
    WhileStep,
)
from fgrad.errors import FgradValueError
from fgrad.ir import Primitive
from fgrad.memory import data_pointer
from fgrad.runtime.executable import compile_program

F4, I8, BOOL = dtypes.float32, dtypes.int64, dtypes.bool_


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch):
    monkeypatch.setenv("FGRAD_CACHE", "0")


def buf(name, shape, kind="temp", dtype=F4, **more):
    return Buf(name, shape, dtype, kind, **more)


def elementwise(out, args, value, in_place=()):
    """`out[i] = value(args[0][i], ...)`; a one-element argument is used for every i."""
    n = out.size
    i = LoopVar("i", n)
    ob = Buffer("out", out.dtype, n, "out")
    buffers = [Buffer(f"a{k}", a.dtype, a.size) for k, a in enumerate(args)]
    loads = [Load(b, i if b.size == n else const_index(0)) for b in buffers]
    kernel = Kernel("elementwise", (ob, *buffers), [Loop(i, [Store(ob, i, value(*loads))], "vector")])
    return KernelStep(kernel, (out, *args), in_place=tuple(in_place))


def total(out, x):
    n, s = x.size, Acc("s", x.dtype)
    i, ob, xb = LoopVar("i", x.size), Buffer("out", out.dtype, 1, "out"), Buffer("x", x.dtype, n)
    body = [
        Init(s, Const(0.0, x.dtype)),
        Loop(i, [Update(s, "add", Load(xb, i))], "vector"),
        Store(ob, const_index(0), s),
    ]
    return KernelStep(Kernel("total", (ob, xb), body), (out, x))


def op(name, *args, dtype=None):
    return Op(name, args, dtype or args[0].dtype)


def plus(c):
    return lambda x: op("add", x, Const(c, x.dtype))


def times(c):
    return lambda x: op("mul", x, Const(c, x.dtype))


def make(inputs, outputs, steps, **more):
    return Program("p", tuple(inputs), tuple(outputs), Block(list(steps)), **more)


def test_temporaries_constants_and_views(rng):
    x, y, t = buf("x", (4, 6), "input"), buf("y", (3,), "output"), buf("t", (4, 6))
    c = buf("c", (3,), "const", value=np.array([1, 2, 3], np.float32))
    part = buf("part", (3,), "view", base=t, byte_offset=4 * 6)  # t[1, :3]
    steps = [
        elementwise(t, [x], times(2.0)),
        elementwise(y, [part, c], lambda a, b: op("add", a, b)),
    ]
    call = compile_program(make([x], [y], steps))
    a = rng.normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_allclose(call([a])[0], 2 * a[1, :3] + [1, 2, 3], rtol=1e-6)
    assert call.peak_memory == 128 + 12 + 12


def test_contraction_between_kernels(rng):
    x, w = buf("x", (5, 7), "input"), buf("w", (7, 9), "input")
    t, y = buf("t", (5, 9)), buf("y", (5, 9), "output")
    spec = dot_general_spec((5, 7), (7, 9), (((1,), (0,)), ((), ())), F4, F4, F4)
    steps = [ContractStep(spec, t, x, w), elementwise(y, [t], plus(1.0))]
    a, b = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(7, 9)).astype(np.float32)
    (got,) = compile_program(make([x, w], [y], steps))([a, b])
    np.testing.assert_allclose(got, a @ b + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index, want", [(-3, 1), (0, 1), (1, 2), (2, 3), (9, 3)])
def test_switch_clamps_its_index(index, want):
    k, x, y = buf("k", (), "input", I8), buf("x", (5,), "input"), buf("y", (5,), "output")
    branches = tuple(Block([elementwise(y, [x], times(float(c)))]) for c in (1, 2, 3))
    call = compile_program(make([k, x], [y], [SwitchStep(k, branches)]))
    a = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(call([np.array(index), a])[0], want * a)


def doubling(limit, host=None):
    """y = x; while sum(y) < limit: y = 2 y. With `host`, the body has a cut."""
    x, y = buf("x", (4,), "input"), buf("y", (4,), "output")
    state, new, s, pred = buf("state", (4,)), buf("new", (4,)), buf("s", ()), buf("pred", (), dtype=BOOL)
    cond = Block(
        [total(s, state), elementwise(pred, [s], lambda v: op("lt", v, Const(limit, F4), dtype=BOOL))]
    )
    double = HostStep(host, {}, (state,), (new,)) if host else elementwise(new, [state], times(2.0))
    body = Block([double, CopyStep(state, new)])
    return make([x], [y], [CopyStep(state, x), WhileStep(cond, pred, body), CopyStep(y, state)])


HOST_DOUBLE = Primitive("host_double", lambda t: t, lambda x: x * 2)


@pytest.mark.parametrize("host", [None, HOST_DOUBLE])
def test_while(host):
    call = compile_program(doubling(1000.0, host))
    x = np.array([1, 2, 3, 4], np.float32)
    np.testing.assert_array_equal(call([x])[0], x * 128)
    np.testing.assert_array_equal(call([x * 1000])[0], x * 1000)  # no iteration at all


def running(host=None, reverse=False):
    """y[i] = c_i with c_i = c_{i-1} + x[i]; by moving views, forwards or backwards."""
    n, m = 6, 3
    x, y = buf("x", (n, m), "input"), buf("y", (n, m), "output")
    first = 4 * m * (n - 1) if reverse else 0
    stride = -4 * m if reverse else 4 * m
    xi = buf("xi", (m,), "view", base=x, byte_offset=first, byte_stride=stride)
    yi = buf("yi", (m,), "view", base=y, byte_offset=first, byte_stride=stride)
    carry, new = buf("carry", (m,)), buf("new", (m,))
    zero = buf("zero", (m,), "const", value=np.zeros(m, np.float32))
    add = (
        HostStep(host, {}, (carry, xi), (new,))
        if host
        else elementwise(new, [carry, xi], lambda a, b: op("add", a, b))
    )
    body = Block([add, CopyStep(yi, new), CopyStep(carry, new)])
    return make([x], [y], [CopyStep(carry, zero), ForStep(n, body, (xi, yi))])


HOST_ADD = Primitive("host_add", lambda a, b: a, np.add)


@pytest.mark.parametrize("host", [None, HOST_ADD])
@pytest.mark.parametrize("reverse", [False, True])
def test_for_with_moving_views(rng, host, reverse):
    x = rng.normal(size=(6, 3)).astype(np.float32)
    (got,) = compile_program(running(host, reverse))([x])
    want = np.cumsum(x[::-1], 0)[::-1] if reverse else np.cumsum(x, 0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_host_steps_cut_the_program(rng):
    sort = Primitive(
        "sort_rows", lambda t: t, lambda x, axis: (np.sort(x, axis), np.argsort(x, axis)), multiple=True
    )
    x, y, order = buf("x", (3, 8), "input"), buf("y", (3, 8), "output"), buf("order", (3, 8), "output", I8)
    before, after = buf("before", (3, 8)), buf("after", (3, 8))
    steps = [
        elementwise(before, [x], times(-1.0)),
        HostStep(sort, {"axis": 1}, (before,), (after, order)),
        elementwise(y, [after], plus(10.0)),
    ]
    a = rng.normal(size=(3, 8)).astype(np.float32)
    got, at = compile_program(make([x], [y, order], steps))([a])
    np.testing.assert_allclose(got, np.sort(-a, 1) + 10, rtol=1e-6)
    np.testing.assert_array_equal(at, np.argsort(-a, 1))


def test_host_step_of_the_wrong_shape_says_so():
    wrong = Primitive("wrong", lambda t: t, lambda x: x[:-1])
    x, y = buf("x", (4,), "input"), buf("y", (4,), "output")
    call = compile_program(make([x], [y], [HostStep(wrong, {}, (x,), (y,))]))
    with pytest.raises(FgradValueError, match=r"wrong: its implementation returned shape \(3,\).*\(4,\)"):
        call([np.zeros(4, np.float32)])


def test_inputs_in_any_layout(rng):
    x, y = buf("x", (4, 6), "input"), buf("y", (4, 6), "output")
    call = compile_program(make([x], [y], [elementwise(y, [x], plus(1.0))]))
    base = rng.normal(size=(6, 8)).astype(np.float32)
    for a in (base.T[:4, :], base[:4, 1:7], base[3::-1, :6]):
        np.testing.assert_array_equal(call([a])[0], a + 1)
    odd = np.frombuffer(b"\0" + np.arange(24, dtype=np.float32).tobytes(), np.uint8)[1:].view(np.float32)
    np.testing.assert_array_equal(call([odd.reshape(4, 6)])[0], np.arange(24).reshape(4, 6) + 1)
    locked = np.ones((4, 6), np.float32)
    locked.flags.writeable = False
    np.testing.assert_array_equal(call([locked])[0], np.full((4, 6), 2))


def test_wrong_inputs_are_refused():
    x, y = buf("x", (4,), "input"), buf("y", (4,), "output")
    call = compile_program(make([x], [y], [elementwise(y, [x], plus(1.0))]))
    with pytest.raises(FgradValueError, match=r"input 0 of float32\[4\], got float64\[4\]"):
        call([np.zeros(4)])
    with pytest.raises(FgradValueError, match=r"got float32\[5\]"):
        call([np.zeros(5, np.float32)])
    with pytest.raises(FgradValueError, match="takes 1 arrays, got 2"):
        call([np.zeros(4, np.float32)] * 2)


def sgd(in_place):
    w, g = buf("w", (8,), "input"), buf("g", (8,), "input")
    new, norm = buf("new", (8,), "output"), buf("norm", (), "output")
    minus = elementwise(new, [w, g], lambda a, b: op("sub", a, b), [(new, w)] if in_place else [])
    return make([w, g], [new, norm], [total(norm, g), minus], donated={0: 0})


@pytest.mark.parametrize("in_place", [True, False])
def test_donated_input_becomes_the_output(in_place):
    call = compile_program(sgd(in_place))
    w, g = np.arange(8, dtype=np.float32), np.ones(8, np.float32)
    new, norm = call([w, g])
    assert new is w
    np.testing.assert_array_equal(new, np.arange(8) - 1)
    assert norm == 8
    new, _ = call.call_pointers([data_pointer(w), data_pointer(g)], [w, None])
    np.testing.assert_array_equal(new, np.arange(8) - 2)


def test_donated_memory_that_others_own_is_copied():
    call = compile_program(sgd(True))
    g = np.ones(8, np.float32)
    locked = np.arange(8, dtype=np.float32)
    locked.flags.writeable = False
    foreign = np.frombuffer(bytearray(np.arange(8, dtype=np.float32).tobytes()), np.float32)
    for w in (locked, foreign):
        new, _ = call([w, g])
        np.testing.assert_array_equal(new, np.arange(8) - 1)
        np.testing.assert_array_equal(w, np.arange(8))
    new, _ = call([g, g])  # the same array twice: its old value is still needed
    np.testing.assert_array_equal(new, np.zeros(8))
    np.testing.assert_array_equal(g, np.ones(8))


def test_an_output_buffer_is_not_reused_while_any_view_of_it_lives(rng):
    x, y = buf("x", (64,), "input"), buf("y", (64,), "output")
    call = compile_program(make([x], [y], [elementwise(y, [x], plus(1.0))]))
    inputs = rng.normal(size=(40, 64)).astype(np.float32)
    kept = []
    for n, a in enumerate(inputs):
        (out,) = call([a])
        kept.append((a, [out, out[3:], out[::-1][1:], out.reshape(8, 8).T, memoryview(out)][n % 5]))
        del out
        call([a * 0])
    for n, (a, view) in enumerate(kept):
        want = a + 1
        expected = [want, want[3:], want[::-1][1:], want.reshape(8, 8).T, want][n % 5]
        np.testing.assert_array_equal(np.asarray(view), expected)


def test_output_memory_is_reused_and_aligned():
    x, y = buf("x", (1000,), "input"), buf("y", (1000,), "output")
    call = compile_program(make([x], [y], [elementwise(y, [x], plus(1.0))]))
    a = np.zeros(1000, np.float32)
    addresses = {data_pointer(call([a])[0]) for _ in range(20)}
    assert len(addresses) == 1
    assert all(address % 64 == 0 for address in addresses)


def test_many_threads_call_one_executable(rng):
    call = compile_program(running())
    inputs = rng.normal(size=(8, 6, 3)).astype(np.float32)
    wrong = []

    def work(x):
        for _ in range(300):
            (got,) = call([x])
            if not np.allclose(got, np.cumsum(x, 0), rtol=1e-4, atol=1e-5):
                wrong.append(x)

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_equal_kernels_are_printed_once():
    x, y = buf("x", (32,), "input"), buf("y", (32,), "output")
    t = [buf(f"t{i}", (32,)) for i in range(3)]
    steps = [elementwise(b, [a], times(2.0)) for a, b in zip([x, *t], [*t, y])]
    call = compile_program(make([x], [y], steps))
    np.testing.assert_array_equal(call([np.ones(32, np.float32)])[0], np.full(32, 16))
    # First and last differ from the others in what is known of their pointers' alignment.
    assert call.ir_text.count('define internal void @"kernel.') == 3


def test_program_without_steps():
    x = buf("x", (3,), "input")
    assert compile_program(make([x], [], []))([np.zeros(3, np.float32)]) == []


def test_empty_arrays():
    x, y = buf("x", (0, 3), "input"), buf("y", (0, 3), "output")
    (got,) = compile_program(make([x], [y], [elementwise(y, [x], plus(1.0))]))([np.zeros((0, 3), np.float32)])
    assert got.shape == (0, 3)
