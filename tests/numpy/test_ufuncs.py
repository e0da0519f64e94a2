"""Elementwise functions against NumPy: values, broadcasting, dtypes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fgrad.numpy as fnp
from fgrad.errors import FgradError

FLOATS = np.array([-2.5, -1.0, -0.5, -0.0, 0.0, 0.3, 0.5, 1.0, 1.5, 3.0, np.inf, -np.inf, np.nan])
INTS = np.array([-7, -2, -1, 0, 1, 2, 3, 5, 100])

UNARY = [
    "abs",
    "absolute",
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctanh",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "cbrt",
    "ceil",
    "cos",
    "cosh",
    "deg2rad",
    "degrees",
    "exp",
    "exp2",
    "expm1",
    "fabs",
    "floor",
    "isfinite",
    "isinf",
    "isnan",
    "isneginf",
    "isposinf",
    "log",
    "log10",
    "log1p",
    "log2",
    "logical_not",
    "negative",
    "positive",
    "rad2deg",
    "radians",
    "reciprocal",
    "rint",
    "sign",
    "signbit",
    "sin",
    "sinc",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "trunc",
    "fix",
    "nan_to_num",
    "real",
    "imag",
    "conj",
    "conjugate",
    "angle",
    "iscomplex",
    "isreal",
]

BINARY = [
    "add",
    "subtract",
    "multiply",
    "divide",
    "true_divide",
    "floor_divide",
    "remainder",
    "mod",
    "fmod",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "arctan2",
    "atan2",
    "hypot",
    "logaddexp",
    "logaddexp2",
    "copysign",
    "heaviside",
    "power",
    "pow",
    "float_power",
    "equal",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "logical_and",
    "logical_or",
    "logical_xor",
]

BITS = [
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "left_shift",
    "right_shift",
    "bitwise_left_shift",
    "bitwise_right_shift",
    "gcd",
    "lcm",
]


def same(ours, numpys, rtol=2e-6, atol=1e-6):
    numpys = np.asarray(numpys)
    assert ours.shape == numpys.shape
    np.testing.assert_allclose(np.asarray(ours).astype(numpys.dtype), numpys, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "bool"])
def test_unary(name, dtype):
    x = (INTS if dtype in ("int32", "uint8") else FLOATS).astype(dtype, casting="unsafe")
    with np.errstate(all="ignore"):
        try:
            expected = getattr(np, name)(x)
        except TypeError:
            if name == "positive":
                return
            with pytest.raises(FgradError):
                getattr(fnp, name)(x)
            return
        if name == "reciprocal" or (expected.dtype.kind == "f" and x.dtype.kind in "iub"):
            expected = getattr(np, name)(
                x.astype(dtype if dtype.startswith("float") else "float32")
            )  # our rule
    ours = getattr(fnp, name)(x)
    same(ours, expected, rtol=1e-12 if dtype == "float64" else 3e-6)
    if expected.dtype.kind in "fc" and dtype in ("int32", "uint8", "bool"):
        assert ours.dtype == np.float32
    elif dtype in ("float32", "float64") or expected.dtype == bool:
        assert ours.dtype == expected.dtype


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_binary(name, dtype):
    values = (INTS if dtype in ("int64", "uint8") else FLOATS).astype(dtype, casting="unsafe")
    if name in ("power", "pow") and dtype == "int64":
        values = np.array([0, 1, 2, 3, 5])
    x, y = values[:, None], values[::-1]
    if "divide" in name or name in ("remainder", "mod", "fmod"):
        y = y[y != 0] if dtype != "bool" else y[y]
        if dtype.startswith("float"):  # infinities divided by infinities: NumPy's own sign conventions
            x, y = x[np.isfinite(x)][:, None], y[np.isfinite(y)]
    with np.errstate(all="ignore"):
        try:
            expected = getattr(np, name)(x, y)
        except TypeError:
            with pytest.raises(FgradError):
                getattr(fnp, name)(x, y)
            return
        if name == "float_power" and dtype != "float64":
            expected = expected.astype(np.float32)
    ours = getattr(fnp, name)(x, y)
    same(ours, expected, rtol=1e-12 if dtype == "float64" else 1e-5)
    if name == "float_power":
        assert ours.dtype == (np.float64 if dtype == "float64" else np.float32)
    elif dtype in ("float32", "float64"):
        assert ours.dtype == expected.dtype


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "uint32"])
def test_bits(name, dtype):
    x = np.array([0, 1, 2, 7, 12, 100]).astype(dtype)[:, None]
    y = np.array([0, 1, 2, 5]).astype(dtype)
    expected = getattr(np, name)(x, y)
    ours = getattr(fnp, name)(x, y)
    np.testing.assert_array_equal(np.asarray(ours), expected)
    assert ours.dtype == expected.dtype


def test_invert_count_modf_divmod_ldexp_nextafter():
    x = np.array([0, 1, -5, 100], np.int16)
    np.testing.assert_array_equal(fnp.invert(x), np.invert(x))
    np.testing.assert_array_equal(fnp.bitwise_not(x > 0), np.invert(x > 0))
    np.testing.assert_array_equal(fnp.bitwise_count(x), np.bitwise_count(x))
    f = np.array([-2.5, -0.0, 1.25, np.inf, -np.inf], np.float32)
    for ours, theirs in zip(fnp.modf(f), np.modf(f), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(fnp.divmod(x, 3), np.divmod(x, 3), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(fnp.ldexp(f[:3], [1, 2, 3]), np.ldexp(f[:3], [1, 2, 3]))
    np.testing.assert_array_equal(fnp.nextafter(f[:3], np.float32(9)), np.nextafter(f[:3], np.float32(9)))


@pytest.mark.parametrize("decimals", [0, 1, 2, -1, -2])
def test_round(decimals):
    x = np.array([0.5, 1.5, 2.345, -17.25, 151.0], np.float64)
    np.testing.assert_allclose(fnp.round(x, decimals), np.round(x, decimals), rtol=1e-15)
    i = np.array([4, 15, 25, -151])
    np.testing.assert_array_equal(fnp.around(i, decimals), np.around(i, decimals))


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 7, -1, -2, 0.5, 2.0, -0.5, 1.7, 200])
def test_power_with_a_python_exponent(exponent):
    x = np.array([0.3, 1.0, 1.01, 2.5], np.float64)
    np.testing.assert_allclose(fnp.power(x, exponent), np.power(x, exponent), rtol=1e-13)
    if isinstance(exponent, int) and 0 <= exponent < 10:
        i = np.array([-3, 0, 2, 5])
        np.testing.assert_array_equal(fnp.power(i, exponent), i**exponent)
    np.testing.assert_allclose(
        exponent ** fnp.array([1.0, 2.0, 3.0]), float(exponent) ** np.array([1.0, 2.0, 3.0]), rtol=1e-6
    )


def test_integers_have_no_negative_integer_powers():
    with pytest.raises(ValueError, match="negative power -2"):
        fnp.array([1, 2]) ** -2


# ------------------------------------------------------------------------------------------------ promotion

ALL = [
    "bool",
    "int8",
    "int32",
    "int64",
    "uint8",
    "uint32",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
]


@pytest.mark.parametrize("a", ALL)
@pytest.mark.parametrize("b", ALL)
def test_dtypes_of_sums_are_numpys_but_for_the_stated_differences(a, b):
    x, y = fnp.ones(2, a), fnp.ones(2, b)
    result = (x + y).dtype
    floats = {"float16", "bfloat16", "float32", "float64", "complex64"}
    if {a, b} == {"float16", "bfloat16"}:
        assert result == np.float32
    elif a in floats and b not in floats:
        assert result == x.dtype
    elif b in floats and a not in floats:
        assert result == y.dtype
    elif "bfloat16" in (a, b):
        assert result == (x.dtype if b == "bfloat16" else y.dtype)
    else:
        assert result == np.promote_types(a, b)


@pytest.mark.parametrize("dtype", ALL)
def test_python_scalars_are_weak(dtype):
    x = fnp.ones(2, dtype)
    assert (x + 1).dtype == (np.int64 if dtype == "bool" else x.dtype)
    inexact = dtype.startswith(("float", "bfloat", "complex"))
    assert (x * 2.0).dtype == (x.dtype if inexact else np.float32)
    assert (True + x).dtype == x.dtype
    assert (x + 1j).dtype == (np.complex128 if dtype == "float64" else np.complex64)


def test_numpy_scalars_are_not_weak():
    assert (fnp.ones(2) * np.float64(2)).dtype == np.float64
    assert (np.float64(2) * fnp.ones(2)).dtype == np.float64
    assert isinstance(np.ones(2) + fnp.ones(2), fnp.ndarray)


def test_a_python_integer_must_fit():
    with pytest.raises(ValueError, match="does not fit uint8"):
        fnp.ones(2, "uint8") + 300


def test_bfloat16_is_computed():
    x = fnp.array([1.0, 2.0, 3.0], dtype="bfloat16")
    assert x.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(np.asarray(fnp.exp(x), np.float32), np.exp([1.0, 2, 3]), rtol=1e-2)
    assert fnp.finfo("bfloat16").eps == 0.0078125
    assert fnp.issubdtype("bfloat16", fnp.floating)


@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, max_side=3), st.integers(0, 2**16))
def test_broadcasting(shapes, seed):
    rng = np.random.default_rng(seed)
    x, y, z = (rng.standard_normal(s) for s in shapes.input_shapes)
    np.testing.assert_array_equal(fnp.add(x, y), x + y)
    np.testing.assert_array_equal(fnp.where(x > 0, y, z), np.where(x > 0, y, z))
    for ours, theirs in zip(fnp.broadcast_arrays(x, y, z), np.broadcast_arrays(x, y, z), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert fnp.broadcast_shapes(x.shape, y.shape) == np.broadcast_shapes(x.shape, y.shape)


@given(st.lists(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), min_size=2, max_size=2))
def test_shapes_that_do_not_broadcast_are_errors(shapes):
    x, y = (np.ones(s) for s in shapes)
    try:
        x + y
    except ValueError:
        with pytest.raises(ValueError, match="cannot be broadcast together"):
            fnp.add(x, y)
    else:
        fnp.add(x, y)


def test_choice_and_clipping():
    x = np.array([-2.0, 0.5, 7.0], np.float32)
    np.testing.assert_array_equal(fnp.clip(x, 0, 1), np.clip(x, 0, 1))
    np.testing.assert_array_equal(fnp.clip(x, None, 1), np.clip(x, None, 1))
    assert fnp.clip(x, 0, 1).dtype == np.float32
    assert fnp.where(x > 0, x, 0).dtype == np.float32
    y = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    np.testing.assert_array_equal(fnp.nan_to_num(y), np.nan_to_num(y))
    np.testing.assert_array_equal(fnp.nan_to_num(y, 5, 6, 7), np.nan_to_num(y, nan=5, posinf=6, neginf=7))
    conditions, choices = [x < 0, x > 5], [x * 2, x + 100]
    np.testing.assert_array_equal(fnp.select(conditions, choices, 9), np.select(conditions, choices, 9))
    np.testing.assert_array_equal(
        fnp.piecewise(x, [x < 0, x > 5], [-1, lambda v: v * 2, 3]),
        np.piecewise(x, [x < 0, x > 5], [-1, lambda v: v * 2, 3]),
    )
    i = np.array([0, 1, 1])
    np.testing.assert_array_equal(fnp.choose(i, [x, x + 1]), np.choose(i, [x, x + 1]))


def test_complex_numbers():
    z = np.array([1 + 2j, -3j, 2.5], np.complex64)
    for name in (
        "abs",
        "real",
        "imag",
        "conj",
        "angle",
        "exp",
        "sqrt",
        "square",
        "negative",
        "sin",
        "iscomplex",
    ):
        np.testing.assert_allclose(getattr(fnp, name)(z), getattr(np, name)(z), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(z * fnp.array(z) / 2, z * z / 2, rtol=1e-6)
    np.testing.assert_allclose(fnp.array(z).real, z.real)
    np.testing.assert_allclose(fnp.vdot(z, z), np.vdot(z, z), rtol=1e-6)
