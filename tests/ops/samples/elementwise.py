"""Operations on corresponding elements."""

from __future__ import annotations

import numpy as np

from fgrad import dtypes
from fgrad.testing import Sample

from .common import HALF, INTEGERS, SPECIAL, complex_normal, integers, normal, rng, row, uniform

# ------------------------------------------------------------------------------------------------ elementwise, one operand


def unary(
    name: str,
    low: float,
    high: float,
    *,
    half: bool = True,
    ints: bool = False,
    special: bool = True,
    cplx: bool = False,
    **options,
) -> None:
    row(name, Sample([uniform(low, high, 3, 4)], **options))
    row(name, Sample([uniform(low, high, 2, 17, dtype=np.float32)], grad=False))
    row(name, Sample([np.zeros((0, 3), np.float32)], grad=False), Sample([uniform(low, high)], **options))
    if special:
        row(name, Sample([SPECIAL], grad=False), Sample([SPECIAL.astype(np.float64)], grad=False))
    if half:
        row(name, *[Sample([uniform(low, high, 5).astype(d)], grad=False) for d in HALF])
    if ints:
        row(name, *[Sample([integers(-5 if d.kind == "i" else 0, 6, 7, dtype=d)]) for d in INTEGERS])
    if cplx:
        row(name, Sample([complex_normal(2, 3)], rtol=1e-9))


unary("neg", -2, 2, ints=True, cplx=True)
unary("abs", 0.2, 2, ints=True)
unary("abs", -2, -0.2)
unary("sign", 0.2, 2, ints=True)
unary("floor", 0.1, 0.9)
unary("ceil", 0.1, 0.9)
unary("round", 0.6, 1.4)
unary("trunc", 0.1, 0.9)
unary("sqrt", 0.3, 3, cplx=True)
unary("rsqrt", 0.3, 3)
unary("cbrt", 0.3, 3)
unary("reciprocal", 0.5, 3, cplx=True)
unary("square", -2, 2, ints=True, cplx=True)
unary("exp", -2, 2, cplx=True)
unary("exp2", -2, 2)
unary("expm1", -2, 2)
unary("log", 0.3, 3, cplx=True)
unary("log2", 0.3, 3)
unary("log10", 0.3, 3)
unary("log1p", -0.5, 3)
unary("sin", -4, 4, cplx=True)
unary("cos", -4, 4, cplx=True)
unary("tan", -1.2, 1.2)
unary("asin", -0.9, 0.9)
unary("acos", -0.9, 0.9)
unary("atan", -3, 3)
unary("sinh", -2, 2)
unary("cosh", -2, 2)
unary("tanh", -2, 2, cplx=True)
unary("asinh", -2, 2)
unary("acosh", 1.3, 4)
unary("atanh", -0.8, 0.8)
unary("sigmoid", -4, 4)
unary("erf", -2, 2)
unary("erfc", -2, 2)
unary("erfinv", -0.9, 0.9)
unary("lgamma", 0.4, 5)
unary("digamma", 0.4, 5)
unary("identity", -2, 2, ints=True)
unary("stop_gradient", -2, 2, ints=True, grad=False)
unary("isnan", -2, 2)
unary("isinf", -2, 2)
unary("isfinite", -2, 2)
unary("signbit", 0.1, 2)

for n in (-3, -1, 0, 1, 2, 5):
    row("integer_pow", Sample([uniform(0.5, 2, 3, 4)], {"n": n}), Sample([SPECIAL], {"n": n}, grad=False))
row(
    "integer_pow",
    Sample([integers(-4, 5, 6, dtype=np.int32)], {"n": 3}),
    Sample([uniform(-1, 1, 4)], {"n": 3}),
)

for name in ("bitwise_not", "popcount", "clz"):
    row(name, *[Sample([integers(-128 if d.kind == "i" else 0, 127, 9, dtype=d)]) for d in INTEGERS])
    row(
        name,
        Sample([np.array([0, -1, 1, np.iinfo(np.int64).min], np.int64)]),
        Sample([np.zeros((0,), np.int32)]),
    )
row("logical_not", Sample([np.array([[True, False]])]), Sample([np.array(True)]))

for source in (np.float32, np.float64, np.int8, np.int64, np.uint8, np.bool_, *HALF):
    for target in (dtypes.float32, dtypes.float64, dtypes.int32, dtypes.uint8, dtypes.bool_, *HALF):
        row(
            "convert",
            Sample([integers(0, 2, 3, 2, dtype=source)], {"dtype": target}, grad=target not in HALF),
        )
row(
    "convert",
    Sample([normal(3)], {"dtype": dtypes.complex128}),
    Sample([complex_normal(3)], {"dtype": dtypes.float64}),
)
row("convert", Sample([np.array([1.7, -1.7, 100.4], np.float32)], {"dtype": dtypes.int32}))
row(
    "bitcast",
    Sample([SPECIAL], {"dtype": dtypes.int32}, grad=False),
    Sample([integers(-9, 9, 2, 3)], {"dtype": dtypes.float64}),
)
row("bitcast", Sample([normal(5, dtype=np.float16)], {"dtype": dtypes.uint16}, grad=False))


# ------------------------------------------------------------------------------------------------ elementwise, two or more


def pairs(values: np.ndarray) -> list[np.ndarray]:
    x, y = np.meshgrid(values, values)
    return [x.ravel().copy(), y.ravel().copy()]


def binary(
    name: str,
    a: tuple[float, float],
    b: tuple[float, float],
    *,
    ints: bool = False,
    half: bool = True,
    special: bool = True,
    **options,
) -> None:
    row(
        name,
        Sample([uniform(*a, 3, 4), uniform(*b, 3, 4)], **options),
        Sample([uniform(*a), uniform(*b)], **options),
    )
    row(name, Sample([uniform(*a, 33, dtype=np.float32), uniform(*b, 33, dtype=np.float32)], grad=False))
    row(name, Sample([np.zeros((2, 0), np.float32)] * 2, grad=False))
    if special:
        row(name, Sample(pairs(SPECIAL), grad=False))
    if half:
        row(name, *[Sample([uniform(*a, 5).astype(d), uniform(*b, 5).astype(d)], grad=False) for d in HALF])
    if ints:
        for d in INTEGERS:
            low = -9 if d.kind == "i" else 1
            y = integers(low, 10, 12, dtype=d)
            y[y == 0] = 1
            row(name, Sample([integers(low, 10, 12, dtype=d), y]))


binary("add", (-2, 2), (-2, 2), ints=True)
binary("sub", (-2, 2), (-2, 2), ints=True)
binary("mul", (-2, 2), (-2, 2), ints=True)
binary("div", (-2, 2), (0.5, 2))
binary("floordiv", (1.1, 1.9), (1, 1.05), ints=True)
binary("remainder", (1.1, 1.9), (1, 1.05), ints=True)
binary("remainder", (-1.9, -1.1), (1, 1.05), special=False)
binary("fmod", (-1.9, -1.1), (1, 1.05), ints=True)
binary("pow", (0.5, 2), (-2, 2))
row("pow", *[Sample([integers(0, 5, 8, dtype=d), integers(0, 4, 8, dtype=d)]) for d in INTEGERS])
binary("atan2", (0.5, 2), (-2, 2))
binary("hypot", (0.5, 2), (-2, 2))
binary("copysign", (0.5, 2), (-2, -0.5))
binary("nextafter", (-2, 2), (-2, 2), half=False, grad=False)
for _name in ("maximum", "minimum", "fmax", "fmin"):
    binary(_name, (-2, 0), (0.1, 2), ints=True)
    binary(_name, (0.1, 2), (-2, 0), special=False, half=False)
binary("logaddexp", (-2, 2), (-2, 2))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    binary(_name, (-2, 2), (-2, 2), ints=True)
    row(_name, Sample([np.array([True, True, False, False]), np.array([True, False, True, False])]))
for _name in ("add", "sub", "mul", "div"):
    row(_name, Sample([complex_normal(2, 3), complex_normal(2, 3)]))
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    row(_name, *[Sample([integers(0, 100, 9, dtype=d), integers(0, 100, 9, dtype=d)]) for d in INTEGERS])
    row(_name, Sample([np.array([True, True, False, False]), np.array([True, False, True, False])]))
for _name in ("shift_left", "shift_right_arithmetic", "shift_right_logical"):
    for _d in INTEGERS:
        _low = -100 if _d.kind == "i" else 0
        row(
            _name, Sample([integers(_low, 100, 12, dtype=_d), integers(0, 8 * _d.itemsize + 3, 12, dtype=_d)])
        )

_c = rng.random((3, 4)) < 0.5
row("select", Sample([_c, normal(3, 4), normal(3, 4)]), Sample([np.array(True), normal(), normal()]))
row(
    "select",
    *[Sample([_c, normal(3, 4).astype(d), normal(3, 4).astype(d)], grad=False) for d in (*HALF, *INTEGERS)],
)
row("select", Sample([np.zeros((0,), bool), normal(0), normal(0)]), Sample([_c, ~_c, _c & ~_c]))
row("threefry2x32", Sample([integers(0, 2**32, 2, 5, dtype=np.uint32) for _ in range(4)]))
row("threefry2x32", Sample([np.zeros((0,), np.uint32)] * 4))
