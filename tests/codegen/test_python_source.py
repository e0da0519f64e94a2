"""The plain-Python form of kernels: its text, and that running it gives NumPy's values."""

import numpy as np
import pytest

from fgrad import dtypes
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
)
from fgrad.codegen.python_source import compile_python, python_source

F = dtypes.float32


def row_sums():
    y, x = Buffer("y", F, 3, "out"), Buffer("x", F, 12)
    i, j, s = LoopVar("i", 3), LoopVar("j", 4), Acc("s", F)
    value = Load(x, Affine(0, [(i, 4), (j, 1)]))
    inner = Loop(j, [Update(s, "add", Op("mul", [value, value], F))], "vector")
    return Kernel(
        "rows", (y, x), [Loop(i, [Init(s, Const(0.0, F)), inner, Store(y, i, s)], "parallel")], ("a note",)
    )


def test_text():
    assert python_source(row_sums()) == (
        "def rows(y, x):\n"
        "    # a note\n"
        "    for i in range(3):  # parallel\n"
        "        s = float32(0.0)\n"
        "        for j in range(4):  # vector\n"
        "            t1 = x[4*i + j]\n"
        "            s = s + (t1 * t1)\n"
        "        y[i] = s\n"
    )


def test_running_it():
    x = np.arange(12, dtype=np.float32)
    y = np.zeros(3, np.float32)
    compile_python(row_sums())(y, x)
    np.testing.assert_array_equal(y, (x.reshape(3, 4) ** 2).sum(1))


def test_masked_loads_stay_inside_the_buffer():
    y, x = Buffer("y", F, 5, "out"), Buffer("x", F, 3)
    i = LoopVar("i", 5)
    inside = Op("lt", [i, Const(3, dtypes.int64)], dtypes.bool_)
    kernel = Kernel("k", (y, x), [Loop(i, [Store(y, i, Load(x, i, inside, Const(-1.0, F)))])])
    out = np.zeros(5, np.float32)
    compile_python(kernel)(out, np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(out, [1, 2, 3, -1, -1])


def test_a_value_read_before_an_update_is_not_reused_after_it():
    y, s = Buffer("y", F, 2, "out"), Acc("s", F)
    twice = Op("add", [s, s], F)
    body = [
        Init(s, Const(1.0, F)),
        Store(y, Affine(0, ()), twice),
        Update(s, "set", Const(5.0, F)),
        Store(y, Affine(1, ()), twice),
    ]
    out = np.zeros(2, np.float32)
    compile_python(Kernel("k", (y,), body))(out)
    np.testing.assert_array_equal(out, [2, 10])


def test_checks_keep_the_first_failure():
    status, x = Buffer("status", dtypes.int64, 1, "inout"), Buffer("x", dtypes.int64, 3)
    i = LoopVar("i", 3)
    small = Op("lt", [Load(x, i), Const(2, dtypes.int64)], dtypes.bool_)
    even = Op("ne", [Load(x, i), Const(1, dtypes.int64)], dtypes.bool_)
    kernel = Kernel("k", (status, x), [Loop(i, [Check(small, status, 7), Check(even, status, 8)])])
    out = np.zeros(1, np.int64)
    compile_python(kernel)(out, np.array([0, 1, 5]))
    assert out[0] == 8


NUMPY = {
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "round": np.rint,
    "asin": np.arcsin,
    "neg": np.negative,
    "square": np.square,
    "floor": np.floor,
    "cbrt": np.cbrt,
}


@pytest.mark.parametrize("name", NUMPY)
def test_functions(name):
    y, x = Buffer("y", F, 4, "out"), Buffer("x", F, 4)
    i = LoopVar("i", 4)
    kernel = Kernel("k", (y, x), [Loop(i, [Store(y, i, Op(name, [Load(x, i)], F))])])
    value, out = np.array([0.1, 0.5, 0.9, 1.0], np.float32), np.zeros(4, np.float32)
    compile_python(kernel)(out, value)
    np.testing.assert_allclose(out, NUMPY[name](value), rtol=1e-6)


def test_shifts_by_the_width_and_bits():
    u = dtypes.uint32
    y, x, k = Buffer("y", u, 3, "out"), Buffer("x", u, 3), Buffer("k", u, 3)
    i = LoopVar("i", 3)
    for name, want in (
        ("shift_left", [2, 0, 0]),
        ("shift_right_logical", [0, 0, 0x7FFFFFFF]),
    ):
        kernel = Kernel("k", (y, x, k), [Loop(i, [Store(y, i, Op(name, [Load(x, i), Load(k, i)], u))])])
        out = np.zeros(3, np.uint32)
        shift = (
            np.array([1, 32, 1], np.uint32)
            if name == "shift_right_logical"
            else np.array([1, 32, 40], np.uint32)
        )
        compile_python(kernel)(out, np.array([1, 5, 0xFFFFFFFF], np.uint32), shift)
        np.testing.assert_array_equal(out, np.array(want, np.uint32))
