"""Loop nests written by hand, compiled and run, against NumPy."""

import ml_dtypes
import numpy as np
import pytest

from fgrad import dtypes
from fgrad.codegen.canonical import kernel_text
from fgrad.codegen.llvm import Binding, emit_kernel, new_module
from fgrad.codegen.loops import (
    Acc,
    Affine,
    Buffer,
    Check,
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
    index_add,
    index_scale,
)
from fgrad.codegen.program import Block, Buf, CopyStep, KernelStep, Program
from fgrad.codegen.target import host
from fgrad.errors import FgradIndexError
from fgrad.runtime.executable import compile_program

F4, F8, I8, BOOL = dtypes.float32, dtypes.float64, dtypes.int64, dtypes.bool_


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch):
    monkeypatch.setenv("FGRAD_CACHE", "0")


def program_of(kernel: Kernel, checks=()) -> Program:
    """A program of one kernel: its inputs in order, its outputs in order; `inout` buffers are both."""
    args, inputs, outputs, steps, status = [], [], [], [], None
    for b in kernel.buffers:
        if b.name == "status":
            status = Buf("status", (1,), I8, "status")
            args.append(status)
        elif b.role == "in":
            args.append(Buf(b.name, (b.size,), b.dtype, "input"))
            inputs.append(args[-1])
        else:
            args.append(Buf(b.name, (b.size,), b.dtype, "output"))
            outputs.append(args[-1])
            if b.role == "inout":
                inputs.append(Buf(b.name + "_before", (b.size,), b.dtype, "input"))
                steps.append(CopyStep(args[-1], inputs[-1]))
    steps.append(KernelStep(kernel, tuple(args)))
    return Program(
        kernel.name, tuple(inputs), tuple(outputs), Block(steps), status=status, checks=list(checks)
    )


def run(kernel: Kernel, *arrays: np.ndarray, checks=()) -> list[np.ndarray]:
    return compile_program(program_of(kernel, checks))([a.reshape(-1) for a in arrays])


def op(name, *args, dtype=None):
    return Op(name, args, dtype or args[0].dtype)


def row_index(i, j, width):
    return index_add(index_scale(i, width), j)


@pytest.mark.parametrize("extent", [1, 2, 7, 16, 33, 257])
@pytest.mark.parametrize("kind", ["vector", "seq", "parallel", "unroll"])
def test_elementwise(rng, extent, kind):
    x, y, out = Buffer("x", F4, extent), Buffer("y", F4, extent), Buffer("out", F4, extent, "out")
    i = LoopVar("i", extent)
    value = op("maximum", op("sub", op("mul", Load(x, i), Load(y, i)), Const(0.5, F4)), Load(y, i))
    kernel = Kernel("chain", (out, x, y), [Loop(i, [Store(out, i, value)], kind)])
    a, b = rng.normal(size=(2, extent)).astype(np.float32)
    (got,) = run(kernel, a, b)
    np.testing.assert_allclose(got, np.maximum(a * b - np.float32(0.5), b), rtol=1e-6, atol=1e-6)


def softmax_kernel(rows, width, dtype):
    y, x = Buffer("y", dtype, rows * width, "out"), Buffer("x", dtype, rows * width)
    i, j = LoopVar("i", rows), LoopVar("j", width)
    at = row_index(i, j, width)
    m, s = Acc("m", dtype), Acc("s", dtype)
    e = op("exp", op("sub", Load(x, at), m))
    body = [
        Init(m, Const(-np.inf, dtype)),
        Loop(j, [Update(m, "maximum", Load(x, at))], "vector"),
        Init(s, Const(0.0, dtype)),
        Loop(j, [Update(s, "add", e)], "vector"),
        Loop(j, [Store(y, at, op("div", e, s))], "vector"),
    ]
    return Kernel("softmax_rows", (y, x), [Loop(i, body, "parallel")])


@pytest.mark.parametrize("dtype, tolerance", [(F4, 1e-6), (F8, 1e-14)])
@pytest.mark.parametrize("width", [1, 3, 10, 16, 50, 200])
def test_softmax_rows(rng, width, dtype, tolerance):
    x = rng.normal(size=(9, width)).astype(dtype) * 5
    (got,) = run(softmax_kernel(9, width, dtype), x)
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(
        got.reshape(x.shape), e / e.sum(1, keepdims=True), rtol=tolerance * 10, atol=tolerance
    )


def reduce_kernel(update, init, extent, dtype):
    out, x, j, acc = (
        Buffer("out", dtype, 1, "out"),
        Buffer("x", dtype, extent),
        LoopVar("j", extent),
        Acc("a", dtype),
    )
    body = [
        Init(acc, Const(init, dtype)),
        Loop(j, [Update(acc, update, Load(x, j))], "vector"),
        Store(out, const_index(0), acc),
    ]
    return Kernel("reduce", (out, x), body)


@pytest.mark.parametrize("extent", [1, 5, 37, 64, 1000])
@pytest.mark.parametrize("dtype", [F4, F8, dtypes.int32, I8, dtypes.uint8])
@pytest.mark.parametrize(
    "update, init, reference",
    [("add", 0, np.sum), ("mul", 1, np.prod), ("maximum", "lowest", np.max), ("minimum", "highest", np.min)],
)
def test_reductions(rng, update, init, reference, dtype, extent):
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    init = {"lowest": limits.min, "highest": limits.max}.get(init, init)
    if dtype.kind == "f":
        x = rng.uniform(0.9, 1.1, extent).astype(dtype)
    else:
        x = rng.integers(1, 3, extent).astype(dtype)
    (got,) = run(reduce_kernel(update, init, extent, dtype), x)
    want = reference(x, dtype=dtype) if update in ("add", "mul") else reference(x)
    if dtype.kind == "f":
        np.testing.assert_allclose(got[0], want, rtol=2e-5 if dtype == F4 else 1e-12)
    else:
        assert got[0] == want


@pytest.mark.parametrize("update", ["maximum", "minimum"])
@pytest.mark.parametrize("at", [0, 17, 99])
def test_extremes_propagate_nan(rng, update, at):
    x = rng.normal(size=100).astype(np.float32)
    x[at] = np.nan
    (got,) = run(reduce_kernel(update, -np.inf if update == "maximum" else np.inf, 100, F4), x)
    assert np.isnan(got[0])


@pytest.mark.parametrize(
    "update, init, reference", [("bitwise_and", True, np.all), ("bitwise_or", False, np.any)]
)
def test_bool_reductions(update, init, reference):
    for x in (np.zeros(50, bool), np.ones(50, bool), np.arange(50) == 49):
        (got,) = run(reduce_kernel(update, init, 50, BOOL), x)
        assert got[0] == reference(x)


def test_bfloat16_elements_are_rounded_as_ml_dtypes_rounds_them(rng):
    kind, n = dtypes.bfloat16, 45
    x, out, i = Buffer("x", kind, n), Buffer("out", kind, n, "out"), LoopVar("i", n)
    kernel = Kernel(
        "square", (out, x), [Loop(i, [Store(out, i, op("mul", Load(x, i), Load(x, i)))], "vector")]
    )
    a = rng.normal(size=n).astype(ml_dtypes.bfloat16)
    (got,) = run(kernel, a)
    assert got.dtype == kind
    np.testing.assert_array_equal(got.view(np.uint16), (a * a).view(np.uint16))


@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
def test_masked_loads_and_stores(rng, monkeypatch, vector_bytes):
    if vector_bytes > host().vector_bytes:
        pytest.skip("this processor has no vectors so wide")
    monkeypatch.setattr("fgrad.runtime.executable.host", lambda: host().with_vector_bytes(vector_bytes))
    # out[i] = x[i - 3] inside, -1 outside; only even positions are stored.
    n, m = 40, 30
    x, out, i = Buffer("x", F4, m), Buffer("out", F4, n, "inout"), LoopVar("i", n)
    at = Affine(-3, [(i, 1)])
    inside = op(
        "bitwise_and",
        op("ge", at, Const(0, I8), dtype=BOOL),
        op("lt", at, Const(m, I8), dtype=BOOL),
    )
    even = op("eq", op("bitwise_and", i, Const(1, I8)), Const(0, I8), dtype=BOOL)
    value = Load(x, at, inside, Const(-1.0, F4))
    kernel = Kernel("pad", (out, x), [Loop(i, [Store(out, i, value, mask=even)], "vector")])
    before, a = np.full(n, 7.0, np.float32), rng.normal(size=m).astype(np.float32)
    (got,) = run(kernel, before, a)
    want = np.full(n, -1.0, np.float32)
    want[3 : 3 + m] = a
    np.testing.assert_array_equal(got, np.where(np.arange(n) % 2 == 0, want, 7.0))


@pytest.mark.parametrize("extent", [4, 13, 16, 40, 77])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
def test_rows_read_backwards(rng, monkeypatch, extent, dtype, vector_bytes):
    """out[i] = x[extent - 1 - i], and the same of a row that is moved by 3 and has nothing beyond its ends."""
    if vector_bytes > host().vector_bytes:
        pytest.skip("this processor has no vectors so wide")
    monkeypatch.setattr("fgrad.runtime.executable.host", lambda: host().with_vector_bytes(vector_bytes))
    kind = np.dtype(dtype)
    x, i = Buffer("x", kind, extent), LoopVar("i", extent)
    out, moved = Buffer("out", kind, extent, "out"), Buffer("moved", kind, extent, "out")
    at, beyond = Affine(extent - 1, [(i, -1)]), Affine(extent + 2, [(i, -1)])
    inside = op("lt", beyond, Const(extent, I8), dtype=BOOL)
    stores = [Store(out, i, Load(x, at)), Store(moved, i, Load(x, beyond, inside, Const(7, kind)))]
    call = compile_program(program_of(Kernel("mirror", (out, moved, x), [Loop(i, stores, "vector")])))
    a = (rng.integers(0, 256, extent)).astype(dtype)
    got, got_moved = call([a])
    np.testing.assert_array_equal(got, a[::-1])
    np.testing.assert_array_equal(got_moved, np.concatenate([np.full(3, 7), a[::-1]])[:extent].astype(dtype))


def test_masked_load_of_an_empty_buffer():
    x, out, i = Buffer("x", F4, 0), Buffer("out", F4, 6, "out"), LoopVar("i", 6)
    never = op("lt", i, Const(0, I8), dtype=BOOL)
    kernel = Kernel("k", (out, x), [Loop(i, [Store(out, i, Load(x, i, never, Const(2.5, F4)))], "vector")])
    (got,) = run(kernel, np.zeros(0, np.float32))
    np.testing.assert_array_equal(got, np.full(6, 2.5, np.float32))


def test_accumulating_store_with_repeated_indices(rng):
    n, bins = 200, 7
    out, x, index = Buffer("out", F4, bins, "inout"), Buffer("x", F4, n), Buffer("index", I8, n)
    i = LoopVar("i", n)
    kernel = Kernel("scatter", (out, x, index), [Loop(i, [Store(out, Load(index, i), Load(x, i), op="add")])])
    a, at = rng.normal(size=n).astype(np.float32), rng.integers(0, bins, n)
    want = np.zeros(bins, np.float32)
    np.add.at(want, at, a)
    (got,) = run(kernel, np.zeros(bins, np.float32), a, at)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_failed_check_is_an_index_error_with_its_text_and_the_result_is_safe():
    n = 20
    x, index, out = Buffer("x", F4, 5), Buffer("index", I8, n), Buffer("out", F4, n, "out")
    status, i = Buffer("status", I8, 1, "inout"), LoopVar("i", n)
    at = Load(index, i)
    ok = op("bitwise_and", op("ge", at, Const(0, I8), dtype=BOOL), op("lt", at, Const(5, I8), dtype=BOOL))
    body = [Check(ok, status, 2), Store(out, i, Load(x, at, ok, Const(0.0, F4)))]
    kernel = Kernel("gather", (out, x, index, status), [Loop(i, body, "vector")])
    program = program_of(kernel, checks=[("not this", None), ("index out of bounds", None)])
    call = compile_program(program)
    values = np.arange(5, dtype=np.float32)
    good = np.arange(n) % 5
    np.testing.assert_array_equal(call([values, good])[0], values[good])
    bad = good.copy()
    bad[11] = 5
    with pytest.raises(FgradIndexError, match="index out of bounds"):
        call([values, bad])
    np.testing.assert_array_equal(call([values, good])[0], values[good])  # the status word was cleared


def test_loop_invariants_and_accumulators_of_outer_loops(rng):
    # out[i] = sum_j (sqrt(x[i]) * y[j]) + running, where running grows with i
    n, m = 6, 20
    x, y, out = Buffer("x", F8, n), Buffer("y", F8, m), Buffer("out", F8, n, "out")
    i, j, s, running = LoopVar("i", n), LoopVar("j", m), Acc("s", F8), Acc("running", F8)
    body = [
        Init(s, running),
        Loop(j, [Update(s, "add", op("mul", op("sqrt", Load(x, i)), Load(y, j)))], "vector"),
        Store(out, i, s),
        Update(running, "set", s),
    ]
    kernel = Kernel("k", (out, x, y), [Init(running, Const(0.0, F8)), Loop(i, body)])
    a, b = rng.uniform(1, 2, n), rng.normal(size=m)
    (got,) = run(kernel, a, b)
    np.testing.assert_allclose(got, np.cumsum(np.sqrt(a) * b.sum()), rtol=1e-12)


def test_a_stored_value_is_read_back_after_the_store(rng):
    # The same Load object before and after a store to its buffer.
    buf, out, i = Buffer("buf", F4, 8, "inout"), Buffer("out", F4, 8, "out"), LoopVar("i", 8)
    old = Load(buf, i)
    body = [Store(buf, i, op("add", old, Const(1.0, F4))), Store(out, i, old)]
    a = rng.normal(size=8).astype(np.float32)
    got, after = run(Kernel("k", (buf, out), [Loop(i, body)]), a)
    np.testing.assert_array_equal(got, a + 1)
    np.testing.assert_array_equal(after, a + 1)


def test_long_expression_chains_do_not_hit_the_recursion_limit():
    n = 5000
    x, out, i = Buffer("x", F4, 4), Buffer("out", F4, 4, "out"), LoopVar("i", 4)
    value = Load(x, i)
    for _ in range(n):
        value = op("neg", value)
    (got,) = run(Kernel("k", (out, x), [Loop(i, [Store(out, i, value)])]), np.arange(4, dtype=np.float32))
    np.testing.assert_array_equal(got, np.arange(4))


def test_vector_loops_become_vectors():
    call = compile_program(program_of(softmax_kernel(32, 256, F4)))
    assembly = call.assembly
    assert any(f"{register}0" in assembly for register in ("zmm", "ymm", "xmm", "v")), assembly[:2000]
    packed = ("vaddps", "addps", "fadd\tv", "vmaxps", "maxps")
    assert any(name in assembly for name in packed)


def test_names_do_not_matter_in_the_canonical_text():
    first, second = softmax_kernel(4, 8, F4), softmax_kernel(4, 8, F4)
    second.name = "other"
    assert kernel_text(first) == kernel_text(second)
    assert kernel_text(first) != kernel_text(softmax_kernel(4, 9, F4))
    assert kernel_text(first) != kernel_text(softmax_kernel(4, 8, F8))


def test_buffers_bound_to_one_place_share_a_parameter():
    kernel = softmax_kernel(4, 8, F4)
    module = new_module("m")
    assert len(emit_kernel(module, kernel, "two").args) == 2
    one = emit_kernel(module, kernel, "one", Binding((0, 0), (True,), (64,)))
    assert len(one.args) == 1


def test_reading_an_accumulator_before_its_init_is_an_error():
    out = Buffer("out", F4, 1, "out")
    kernel = Kernel("k", (out,), [Store(out, const_index(0), Acc("never", F4))])
    with pytest.raises(ValueError, match="never is read before its Init"):
        emit_kernel(new_module("m"), kernel, "k")
