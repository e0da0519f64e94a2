"""Our mathematical functions against mpmath and NumPy, in units of the last place, over the whole range of arguments."""

import math
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np
import pytest

from fgrad.codegen import mathlib

MANTISSA = {4: 23, 8: 52}
SMALLEST = {4: -149, 8: -1074}


class Case(NamedTuple):
    """Reference by NumPy or `math` in float64 (for float32), by mpmath (for float64), and the errors allowed, in ulp."""

    wide: Any
    exact: Any
    ulp32: float
    ulp64: float
    low: float = -20.0
    high: float = 20.0


def _each(f):
    def g(v):
        try:
            return f(v)
        except (ValueError, OverflowError):
            return math.nan

    return lambda x: np.array([g(v) for v in x.tolist()], dtype=np.float64)


def _erfinv(x):
    return mp.erfinv(x) if abs(x) > mp.mpf(10) ** -25 else x * mp.sqrt(mp.pi) / 2


CASES = {
    "exp": Case(np.exp, mp.exp, 1.1, 1.1, -750, 720),
    "exp2": Case(np.exp2, lambda x: mp.power(2, x), 1.1, 1.1, -1080, 1030),
    "expm1": Case(np.expm1, mp.expm1, 1.5, 1.5, -50, 720),
    "sigmoid": Case(lambda x: 1 / (1 + np.exp(-x)), lambda x: 1 / (1 + mp.exp(-x)), 2.5, 2.0, -750, 50),
    "tanh": Case(np.tanh, mp.tanh, 1.5, 1.5, -4, 4),
    "sinh": Case(np.sinh, mp.sinh, 0.51, 2.0, -720, 720),
    "cosh": Case(np.cosh, mp.cosh, 0.51, 2.0, -720, 720),
    "log": Case(np.log, mp.log, 1.0, 1.0, 0, 10),
    "log2": Case(np.log2, lambda x: mp.log(x, 2), 1.0, 1.0, 0, 10),
    "log10": Case(np.log10, mp.log10, 1.0, 1.0, 0, 10),
    "log1p": Case(np.log1p, mp.log1p, 1.0, 1.0, -1, 3),
    "asinh": Case(np.arcsinh, mp.asinh, 0.51, 2.0),
    "acosh": Case(np.arccosh, mp.acosh, 0.51, 2.0, 1, 5),
    "atanh": Case(np.arctanh, mp.atanh, 0.51, 2.0, -1, 1),
    "sin": Case(np.sin, mp.sin, 1.5, 1.0),
    "cos": Case(np.cos, mp.cos, 1.5, 1.0),
    "tan": Case(np.tan, mp.tan, 0.51, 2.5),
    "asin": Case(np.arcsin, mp.asin, 0.51, 2.5, -1, 1),
    "acos": Case(np.arccos, mp.acos, 0.51, 2.0, -1, 1),
    "atan": Case(np.arctan, mp.atan, 0.51, 2.0),
    "erf": Case(_each(math.erf), mp.erf, 1.5, 1.5, -4, 4),
    "erfc": Case(_each(math.erfc), lambda x: mp.erfc(max(-100, min(x, 100))), 0.51, 2.5, -5, 28),
    "erfinv": Case(_each(lambda x: float(_erfinv(mp.mpf(x)))), _erfinv, 2.5, 2.5, -1, 1),
    "cbrt": Case(np.cbrt, lambda x: mp.sign(x) * mp.cbrt(abs(x)), 0.51, 1.0),
}
assert set(CASES) | {"lgamma", "digamma"} == set(mathlib.UNARY)


def _samples(rng, dtype, n, low, high):
    """All bit patterns alike, the stated range, and the neighbourhoods of 0 and 1."""
    patterns = rng.integers(0, 2 ** (8 * dtype.itemsize), n, dtype=f"u{dtype.itemsize}").view(dtype)
    if dtype.itemsize == 4:
        low, high = max(low, -150.0), min(high, 130.0)
    near = [rng.uniform(low, high, n), rng.uniform(-1, 1, n), 1 + 0.1 * rng.standard_normal(n)]
    return np.concatenate([patterns, *(v.astype(dtype) for v in near)])


def _ulp_error(got, reference, dtype):
    """|got - reference| in ulp of the reference (an mpmath number or a float64)."""
    if not math.isfinite(got):
        return math.inf
    if reference == 0:
        return 0.0 if got == 0 else math.inf
    exponent = mp.mag(mp.mpf(reference)) - 1 - MANTISSA[dtype.itemsize]
    return float(abs(mp.mpf(got) - reference) * mp.mpf(2) ** -max(exponent, SMALLEST[dtype.itemsize]))


@pytest.mark.parametrize("op", CASES)
def test_float32_error_in_ulp(op, elementwise, rng):
    case, dtype = CASES[op], np.dtype(np.float32)
    x = _samples(rng, dtype, 2000 if op == "erfinv" else 50_000, case.low, case.high)
    got = elementwise(op, [dtype], dtype)(x)
    with np.errstate(all="ignore"):
        want = case.wide(x.astype(np.float64))
        overflow = np.abs(want) >= 2.0**128
        ok = np.isfinite(want) & ~overflow
        assert not np.isfinite(got[overflow & np.isfinite(x)]).any()
        np.testing.assert_array_equal(
            np.isnan(got[~ok & np.isfinite(x)]), np.isnan(want[~ok & np.isfinite(x)])
        )
        exponent = np.floor(np.log2(np.abs(want[ok]) + 1e-300)) - 23
        error = np.abs(got[ok].astype(np.float64) - want[ok]) / 2.0 ** np.maximum(exponent, -149)
    assert np.isfinite(got[ok]).all()
    worst = int(np.argmax(error))
    assert error[worst] <= case.ulp32, (x[ok][worst], got[ok][worst], want[ok][worst])


@pytest.mark.parametrize("op", CASES)
def test_float64_error_in_ulp(op, elementwise, rng):
    case, dtype = CASES[op], np.dtype(np.float64)
    x = _samples(rng, dtype, 500, case.low, case.high)
    got = elementwise(op, [dtype], dtype)(x)
    worst = (0.0, 0.0, 0.0)
    with mp.workprec(200):
        for v, y in zip(x.tolist(), got.tolist(), strict=True):
            if not math.isfinite(v):
                continue
            if op == "tanh" and abs(v) > 100:
                want = mp.sign(v)
            elif op == "erfinv" and abs(v) >= 1:
                assert abs(v) == 1 or math.isnan(y)
                continue
            else:
                want = (
                    case.exact(mp.mpf(v)) if v != 0 or not op.startswith("log") or op == "log1p" else mp.inf
                )
            if isinstance(want, mp.mpc) and want.imag != 0:
                assert math.isnan(y), (op, v, y)
            elif abs(want) < mp.mpf(2) ** 1024:
                worst = max(worst, (_ulp_error(y, want, dtype), v, y))
            elif v != 0:
                assert math.isinf(y), (op, v, y)
    assert worst[0] <= case.ulp64, worst


NUMPY = {name: case.wide for name, case in CASES.items() if isinstance(case.wide, np.ufunc)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", NUMPY)
def test_special_values_are_numpys(op, dtype, elementwise):
    info = np.finfo(dtype)
    tiny, big = info.smallest_subnormal, info.max
    x = np.array(
        [0.0, -0.0, 1, -1, 2, -2, np.inf, -np.inf, np.nan, tiny, -tiny, info.tiny, -info.tiny, big, -big],
        dtype,
    )
    got = elementwise(op, [dtype], dtype)(x)
    with np.errstate(all="ignore"):
        want = NUMPY[op](x)
    np.testing.assert_allclose(got, want, rtol=4 * info.eps, atol=0)
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values_without_a_numpy_function(dtype, elementwise):
    def at(op, x):
        return elementwise(op, [dtype], dtype)(np.array(x, dtype)).tolist()

    inf, nan = math.inf, math.nan
    np.testing.assert_array_equal(at("sigmoid", [0.0, inf, -inf, nan]), [0.5, 1, 0, nan])
    np.testing.assert_array_equal(at("erf", [-0.0, inf, -inf, nan]), [-0.0, 1, -1, nan])
    np.testing.assert_array_equal(at("erfc", [0.0, inf, -inf, nan]), [1, 0, 2, nan])
    np.testing.assert_array_equal(at("erfinv", [0.0, 1, -1, 2, nan, inf]), [0, inf, -inf, nan, nan, nan])
    np.testing.assert_array_equal(
        at("lgamma", [0.0, -1, -7, inf, -inf, 1, 2, nan]), [inf, inf, inf, inf, inf, 0, 0, nan]
    )
    np.testing.assert_array_equal(
        at("digamma", [0.0, -0.0, -1, inf, -inf, nan]), [-inf, inf, nan, inf, nan, nan]
    )


def test_the_hardest_arguments_of_sine_and_cosine(elementwise):
    """The float64 nearest to a multiple of pi/2 (Muller and others, Handbook of Floating-Point Arithmetic), and huge ones."""
    dtype = np.dtype(np.float64)
    x = np.array([6381956970095103 * 2.0**797, math.pi, 1e22, 2.0**1023, -1.7e308, 355.0])
    with mp.workprec(1500):
        for op, exact in (("sin", mp.sin), ("cos", mp.cos), ("tan", mp.tan)):
            got = elementwise(op, [dtype], dtype)(x).tolist()
            assert (
                max(_ulp_error(g, exact(mp.mpf(v)), dtype) for g, v in zip(got, x.tolist(), strict=True))
                < 2.5
            )


@pytest.mark.parametrize(
    ("op", "exact"),
    [("lgamma", lambda x: mp.re(mp.loggamma(x))), ("digamma", mp.digamma)],
    ids=["lgamma", "digamma"],
)
def test_gamma_functions(op, exact, elementwise, rng):
    """Relative error, or absolute where the result is below 1 (both have zeros that are no floats)."""
    x = np.concatenate(
        [rng.uniform(-8, 25, 1500), np.exp(rng.uniform(-700, 600, 500)), rng.uniform(0, 3, 500)]
    )
    for dtype in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            values = x.astype(dtype)
        values = values[np.isfinite(values) & (values != 0)]
        got = elementwise(op, [dtype], dtype)(values)
        for v, y in zip(values.tolist(), got.tolist(), strict=True):
            want = exact(mp.mpf(v))
            if abs(want) < float(np.finfo(dtype).max):
                # Near a pole on the negative axis the distance to it, a rounded argument's, is what counts.
                slack = 1 + (abs(v) / abs(v - round(v)) if v < -0.5 else 0)
                assert abs(y - want) <= 8 * float(np.finfo(dtype).eps) * max(1, abs(want)) * slack, (
                    op,
                    v,
                    y,
                    want,
                )


BINARY = {
    "pow": (np.power, mp.power, 1.5),
    "atan2": (np.arctan2, mp.atan2, 2.0),
    "hypot": (np.hypot, mp.hypot, 1.5),
}
assert set(BINARY) | {"logaddexp"} == set(mathlib.BINARY)


def _pairs(rng, dtype, n):
    def bits():
        return rng.integers(0, 2 ** (8 * dtype.itemsize), n, dtype=f"u{dtype.itemsize}").view(dtype)

    x = [
        bits(),
        rng.uniform(0, 10, n),
        np.exp(rng.uniform(-80, 80, n)),
        1 + 0.01 * rng.standard_normal(n),
        rng.uniform(-3, 3, n),
    ]
    y = [
        bits(),
        rng.uniform(-30, 30, n),
        rng.uniform(-9, 9, n),
        3000 * rng.standard_normal(n),
        rng.integers(-9, 9, n),
    ]
    return (np.concatenate([v.astype(dtype) for v in values]) for values in (x, y))


@pytest.mark.parametrize("op", BINARY)
def test_two_argument_functions(op, elementwise, rng):
    wide, exact, allowed = BINARY[op]
    single, double = np.dtype(np.float32), np.dtype(np.float64)
    with np.errstate(all="ignore"):
        x, y = _pairs(rng, single, 20_000)
        want = wide(x.astype(double), y.astype(double))
        got = elementwise(op, [single, single], single)(x, y)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        ok = np.abs(want) < 2.0**127
        exponent = np.floor(np.log2(np.abs(want[ok]) + 1e-300)) - 23
        assert (np.abs(got[ok] - want[ok]) / 2.0 ** np.maximum(exponent, -149)).max() <= 0.51

        x, y = _pairs(rng, double, 500)
        got, near = elementwise(op, [double, double], double)(x, y), wide(x, y)
    with mp.workprec(200):
        for a, b, g, n in zip(x.tolist(), y.tolist(), got.tolist(), near.tolist(), strict=True):
            if not math.isfinite(n) or n == 0:
                np.testing.assert_equal(g, n)
                continue
            want = (
                exact(mp.mpf(abs(a)), b) * (-1 if a < 0 and b % 2 else 1)
                if op == "pow"
                else exact(mp.mpf(a), mp.mpf(b))
            )
            assert _ulp_error(g, want, double) <= allowed, (op, a, b, g, n)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", [*BINARY, "logaddexp"])
def test_two_argument_special_values(op, dtype, elementwise):
    f = BINARY[op][0] if op in BINARY else np.logaddexp
    big = np.finfo(dtype).max
    s = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1,
        -1,
        2,
        -2,
        0.5,
        -0.5,
        3,
        -3,
        big,
        -big,
        1e-310,
        1e30,
        1e-40,
        2.0**53 + 2,
        2.0**53 - 1,
    ]
    x, y = (v.ravel().astype(dtype) for v in np.meshgrid(np.array(s), np.array(s)))
    got = elementwise(op, [dtype, dtype], dtype)(x, y)
    with np.errstate(all="ignore"):
        want = f(x, y)
    np.testing.assert_allclose(
        got, want, rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).smallest_subnormal
    )
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logaddexp(dtype, elementwise, rng):
    """The sum cancels where the result is near 0, so the error is relative to the larger argument."""
    x, y = (rng.uniform(-40, 40, 2000).astype(dtype) for _ in range(2))
    got = elementwise("logaddexp", [dtype, dtype], dtype)(x, y).astype(np.float64)
    want = np.logaddexp(x.astype(np.longdouble), y.astype(np.longdouble))
    assert (np.abs(got - want) <= np.finfo(dtype).eps * np.maximum(np.abs(x), np.abs(y))).all()


@pytest.mark.parametrize(
    "op", ["exp", "exp2", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos", "erfinv"]
)
def test_the_loop_is_vectorised_without_calls(op, elementwise):
    text = elementwise(op, ["float32"], "float32").text
    assert "x float>" in text
    calls = [line for line in text.splitlines() if " call " in line and "@llvm." not in line]
    assert not calls


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", mathlib.UNARY)
def test_explicit_vectors_give_the_same_bits(op, dtype, elementwise, rng):
    """Over the whole range: vectors have instructions and branches of their own."""
    case = CASES.get(op)
    low, high = (case.low, case.high) if case else (-50, 50)
    x = _samples(rng, np.dtype(dtype), 2048, low, high)
    x[:4] = 0.0, np.inf, np.nan, 1e30
    x = np.concatenate([x, np.abs(rng.uniform(-3, 3, 64)).astype(dtype)])  # vectors without rare arguments
    one, *vectors = (elementwise(op, [dtype], dtype, lanes=lanes)(x) for lanes in (0, 8, 16))
    for vector in vectors:
        np.testing.assert_array_equal(one, vector)
