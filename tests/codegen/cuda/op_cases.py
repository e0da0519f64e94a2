"""The text of every scalar operation, evaluated with the simulator's names, against the NumPy definition: see test_text.py."""

from __future__ import annotations

import numpy as np

from fgrad import dtypes as d
from fgrad.codegen import scalar
from fgrad.codegen.cuda.launch import stored_as
from fgrad.codegen.cuda.text import load_text, op_text, to_stored
from fgrad.codegen.python_source import NAMESPACE
from fgrad.ir import REGISTRY
from fgrad.runtime.cuda import simulator

DTYPES = (
    d.float32,
    d.float64,
    d.float16,
    d.bfloat16,
    d.int8,
    d.int32,
    d.int64,
    d.uint8,
    d.uint32,
    d.uint64,
    d.bool_,
)
SAME = ("cast", "bitcast", "select")  # not of one dtype in and the same, or bool, out


def operations(dtype):
    """Names and numbers of arguments of what is defined on `dtype`, with the dtype of the result."""
    for op, (n, kinds) in scalar._TABLE.items():
        kind = "b" if dtype == d.bool_ else dtype.kind if dtype.kind in "iu" else "f"
        if kind in kinds and op not in SAME:
            out = d.bool_ if op in scalar._TO_BOOL else dtype
            if scalar.supports(op, [dtype] * n, out):
                yield op, n, out


def _values(dtype):
    if dtype == d.bool_:
        return np.array([True, False])
    if d.is_float(dtype):
        special = [0.0, -0.0, 1, -1, 0.5, -2.5, 3.0, np.inf, -np.inf, np.nan, 0.3, -0.7, 7.25]
        return np.array(special, dtype)
    info = np.iinfo(dtype)
    signed = [-1, -2, -7, info.min + 1] if dtype.kind == "i" else []
    return np.array([0, 1, 2, 3, 5, 7, 31, info.max, *signed], dtype)


def _expected(op, inputs):
    prim = REGISTRY.get(op)
    if prim is not None:
        return np.asarray(prim.impl(*inputs))
    return np.array([NAMESPACE[op](*x) for x in zip(*inputs)])


def _check(dtype):
    names = simulator.namespace()
    for op, n, out in operations(dtype):
        inputs = [g.reshape(-1) for g in np.meshgrid(*[_values(dtype)] * n, indexing="ij")]
        if op == "pow" and dtype.kind in "iu":
            inputs[1] = np.abs(inputs[1]).astype(dtype) % dtype.type(8)
        want = _expected(op, inputs)
        text = to_stored(op_text(op, [load_text(x, "0", dtype) for x in "abc"[:n]], dtype, out), out)
        code = compile(text, text, "eval")
        got = np.empty(want.shape, stored_as(out))
        views = [v.view(stored_as(dtype)) for v in inputs]
        for i in range(len(want)):
            got[i] = eval(code, names, {x: [v[i]] for x, v in zip("abc", views)})
        if op == "sign" and dtype == d.bfloat16:
            want = want + dtype.type(0)  # ml_dtypes keeps the sign of -0, NumPy does not
        # Of two zeros, which is the larger is not defined.
        signs = op not in ("maximum", "minimum", "fmax", "fmin")
        _agree(got.view(out), want, f"{op} of {dtype}: {text}", signs)


def _agree(got, want, what, signs=True):
    if not d.is_float(want.dtype):
        np.testing.assert_array_equal(got, want, err_msg=what)
        return
    a, b = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_allclose(
        a, b, rtol=1e-5 if want.dtype.itemsize >= 4 else 2e-2, atol=1e-30, err_msg=what
    )
    if signs:
        np.testing.assert_array_equal(np.signbit(a)[~np.isnan(b)], np.signbit(b)[~np.isnan(b)], err_msg=what)


def case_float32():
    _check(d.float32)


def case_float64():
    _check(d.float64)


def case_float16():
    _check(d.float16)


def case_bfloat16():
    _check(d.bfloat16)


def case_signed_integers():
    for dtype in (d.int8, d.int32, d.int64):
        _check(dtype)


def case_unsigned_integers():
    for dtype in (d.uint8, d.uint32, d.uint64):
        _check(dtype)


def case_bool():
    _check(d.bool_)


def case_casts():
    names = simulator.namespace()
    for source in DTYPES:
        values = np.array([0, 1, 2, 100], source) if source != d.bool_ else _values(source)
        for out in DTYPES:
            code = compile(
                to_stored(op_text("cast", [load_text("a", "0", source)], source, out), out), "cast", "eval"
            )
            raw = values.view(stored_as(source))
            got = np.array([eval(code, names, {"a": [v]}) for v in raw], stored_as(out)).view(out)
            _agree(got, values.astype(out), f"{source} to {out}")


def case_floats_out_of_an_integer_s_range():
    """They go to the nearest that fits, NaN to 0, as on the CPU."""
    import fgrad

    x = np.array([300, -1, 2.7, -2.7, 1e20, -1e20, np.nan, np.inf, -np.inf, 127.5, 2**31, -(2.0**63)], "f4")
    for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
        for wide in ("float32", "float64", "bfloat16"):
            here = fgrad.jit(lambda v, name=name: v.astype(name))(fgrad.numpy.asarray(x).astype(wide))
            there = fgrad.device_put(fgrad.numpy.asarray(x).astype(wide), "cuda").astype(name)
            np.testing.assert_array_equal(fgrad.device_get(there), here, err_msg=f"{wide} to {name}")


def case_remainders_and_overflow_at_the_ends():
    import fgrad
    import fgrad.numpy as fnp

    for name in ("int8", "int32", "int64"):
        ends = np.iinfo(name)
        a, b = np.array([ends.min, -7, 7, ends.max] * 2, name), np.array([3] * 4 + [-3] * 4, name)
        got = fnp.fmod(*fgrad.device_put((a, b), "cuda"))
        np.testing.assert_array_equal(fgrad.device_get(got), np.fmod(a, b))
    most = fgrad.device_put(np.array([2**63 - 1, 5]), "cuda")
    more = fgrad.jit(lambda v: (v + 1 > v, v * v, -v))(most)
    assert [fgrad.device_get(m).tolist() for m in more] == [[False, True], [1, 25], [1 - 2**63, -5]]
