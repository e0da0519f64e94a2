"""One row or more a primitive: what `test_primitives` runs every check on."""

from __future__ import annotations

import numpy as np

from fgrad import dtypes
from fgrad.testing import Sample

rng = np.random.default_rng(0)
SAMPLES: dict[str, list[Sample]] = {}

HALF = (dtypes.float16, dtypes.bfloat16)
INTEGERS = (dtypes.int8, dtypes.int32, dtypes.int64, dtypes.uint8, dtypes.uint32)


def row(name: str, *samples: Sample) -> None:
    SAMPLES.setdefault(name, []).extend(samples)


def normal(*shape: int, dtype=np.float64) -> np.ndarray:
    return rng.normal(size=shape).astype(dtype)


def uniform(low: float, high: float, *shape: int, dtype=np.float64) -> np.ndarray:
    return rng.uniform(low, high, size=shape).astype(dtype)


def complex_normal(*shape: int, dtype=np.complex128) -> np.ndarray:
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)


def integers(low: int, high: int, *shape: int, dtype=np.int64) -> np.ndarray:
    return rng.integers(low, high, size=shape).astype(dtype)


SPECIAL = np.array(
    [
        np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        2.0,
        -2.5,
        3.5,
        1e-3,
        -30.0,
        88.0,
        700.0,
        1e30,
        -1e30,
    ],
    np.float32,
)

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

# ------------------------------------------------------------------------------------------------ structure

row(
    "broadcast",
    Sample([normal(3)], {"shape": (2, 3, 4), "axes": (1,)}),
    Sample([normal()], {"shape": (2, 2), "axes": ()}),
)
row(
    "broadcast",
    Sample([normal(2, 3)], {"shape": (3, 4, 2), "axes": (2, 0)}),
    Sample([normal(1, 0)], {"shape": (2, 1, 0), "axes": (1, 2)}),
)
row(
    "reshape",
    Sample([normal(2, 6)], {"shape": (3, 4)}),
    Sample([normal(1, 1)], {"shape": ()}),
    Sample([normal(0, 3)], {"shape": (5, 0)}),
)
row("reshape", Sample([integers(0, 9, 4, dtype=np.int8)], {"shape": (2, 1, 2)}))
row(
    "transpose",
    Sample([normal(2, 3, 4)], {"perm": (2, 0, 1)}),
    Sample([normal(0, 3)], {"perm": (1, 0)}),
    Sample([normal()], {"perm": ()}),
)
row("slice", Sample([normal(5, 6)], {"start": (1, 0), "stop": (4, 6), "step": (2, 3)}))
row(
    "slice",
    Sample([normal(5)], {"start": (2,), "stop": (2,), "step": (1,)}),
    Sample([normal(7)], {"start": (1,), "stop": (7,), "step": (4,)}),
)
row(
    "flip",
    Sample([normal(3, 4)], {"axes": (1,)}),
    Sample([normal(3, 4)], {"axes": (0, 1)}),
    Sample([normal(0)], {"axes": (0,)}),
)
for _low, _high, _interior in (((1, 0), (2, 1), (0, 0)), ((0, 2), (0, 0), (1, 2)), ((1, 1), (1, 1), (3, 0))):
    row("pad", Sample([normal(3, 2), normal()], {"low": _low, "high": _high, "interior": _interior}))
row("pad", Sample([normal(0), normal()], {"low": (2,), "high": (1,), "interior": (1,)}))
row(
    "concatenate",
    Sample([normal(2, 3), normal(2, 1), normal(2, 0)], {"axis": 1}),
    Sample([normal(2), normal(3)], {"axis": 0}),
)
row(
    "concatenate",
    Sample([integers(0, 9, 2, 2, dtype=np.int32), integers(0, 9, 1, 2, dtype=np.int32)], {"axis": 0}),
)
for _d in (dtypes.int64, dtypes.int32, dtypes.float32, dtypes.uint8, dtypes.bfloat16):
    row("iota", Sample([], {"shape": (2, 3), "dtype": _d, "axis": 1}))
row("iota", Sample([], {"shape": (0,), "dtype": dtypes.int64, "axis": 0}))
for _starts in ((1, 0, 2), (-3, 0, 9)):
    row("dynamic_slice", Sample([normal(4, 3, 5), *_starts], {"sizes": (2, 3, 2)}))
    row("dynamic_update_slice", Sample([normal(4, 3, 5), normal(2, 3, 2), *_starts]))
row("dynamic_slice", Sample([normal(4), 1], {"sizes": (0,)}), Sample([normal(4), 1], {"sizes": (4,)}))
row(
    "dynamic_update_slice",
    Sample([normal(4), normal(4), 1]),
    Sample([integers(0, 9, 4), integers(0, 9, 1), 3]),
)

# ------------------------------------------------------------------------------------------------ index

row(
    "gather",
    Sample([normal(5, 3), integers(-5, 5, 4)], {"axes": (0,)}),
    Sample([normal(5, 3), integers(-3, 3, 2, 2)], {"axes": (1,)}),
)
row("gather", Sample([normal(4, 3, 2), integers(-4, 4, 5), integers(-2, 2, 5)], {"axes": (0, 2)}))
row("gather", Sample([normal(4, 3), integers(-3, 3, 5), integers(-4, 4, 5)], {"axes": (1, 0)}))
row(
    "gather",
    Sample([normal(5), np.zeros((0,), np.int64)], {"axes": (0,)}),
    Sample([normal(5), np.array(-2)], {"axes": (0,)}),
)
row(
    "gather",
    Sample([normal(0, 3), np.zeros((0, 2), np.int64)], {"axes": (0,)}),
    Sample([integers(0, 9, 5), integers(0, 5, 3)], {"axes": (0,)}),
)
for _mode in ("set", "add", "mul", "minimum", "maximum"):
    row("scatter", Sample([normal(5, 3), normal(4, 3), integers(-5, 5, 4)], {"axes": (0,), "mode": _mode}))
    row(
        "scatter",
        Sample([normal(5, 3), normal(2, 2, 5), integers(-3, 3, 2, 2)], {"axes": (1,), "mode": _mode}),
    )
    row(
        "scatter",
        Sample(
            [normal(4, 3, 2), normal(5, 3), integers(0, 4, 5), integers(0, 2, 5)],
            {"axes": (0, 2), "mode": _mode},
        ),
    )
    row(
        "scatter",
        Sample([normal(5), normal(8), np.array([1, 1, -4, 1, 0, 0, 1, 4])], {"axes": (0,), "mode": _mode}),
    )
    row("scatter", Sample([normal(5), normal(), np.array(-2)], {"axes": (0,), "mode": _mode}))
    row("scatter", Sample([normal(5), normal(0), np.zeros((0,), np.int64)], {"axes": (0,), "mode": _mode}))
    row(
        "scatter",
        Sample([integers(0, 9, 5), integers(0, 9, 3), integers(0, 5, 3)], {"axes": (0,), "mode": _mode}),
    )
row(
    "scatter",
    Sample([normal(4), np.array([0.0, 2.0, 3.0]), np.array([1, 1, 2])], {"axes": (0,), "mode": "mul"}),
)
row(
    "scatter",
    Sample([normal(3, 4), normal(3), np.arange(3), integers(0, 4, 3)], {"axes": (0, 1), "mode": "add"}),
)

# ------------------------------------------------------------------------------------------------ reduce, cumulative

for _name in ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min"):
    for _axes in ((0,), (1,), (0, 2), (0, 1, 2)):
        row(_name, Sample([normal(2, 3, 4)], {"axes": _axes}))
    row(
        _name,
        Sample([normal(4, 0)], {"axes": (0,)}),
        Sample([normal(1)], {"axes": (0,)}),
        Sample([normal()], {"axes": ()}),
    )
    row(_name, *[Sample([integers(0, 4, 3, 3, dtype=d)], {"axes": (1,)}) for d in INTEGERS])
    row(_name, *[Sample([uniform(0.5, 1, 3, 3).astype(d)], {"axes": (1,)}, grad=False) for d in HALF])
    row(_name, Sample([np.array([[np.nan, 1], [np.inf, -np.inf]], np.float32)], {"axes": (1,)}, grad=False))
for _name in ("reduce_sum", "reduce_prod"):
    row(_name, Sample([normal(3, 0)], {"axes": (1,)}))
row(
    "reduce_sum",
    Sample([complex_normal(3, 2)], {"axes": (0,)}),
    Sample([normal(7, 300, dtype=np.float32)], {"axes": (1,)}, grad=False),
)
row(
    "reduce_prod",
    Sample([np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 5.0], [1.0, 2.0, 3.0]])], {"axes": (1,)}),
    Sample([normal(7)], {"axes": (0,)}),
)
for _name in ("reduce_and", "reduce_or"):
    row(
        _name,
        Sample([rng.random((3, 4)) < 0.5], {"axes": (1,)}),
        Sample([np.zeros((2, 0), bool)], {"axes": (1,)}),
    )
    row(_name, *[Sample([integers(0, 100, 3, 2, dtype=d)], {"axes": (0,)}) for d in INTEGERS])
for _name in ("argmax", "argmin"):
    row(
        _name,
        Sample([normal(3, 4)], {"axis": 0}),
        Sample([normal(3, 4)], {"axis": 1}),
        Sample([normal(1)], {"axis": 0}),
    )
    row(
        _name, Sample([np.array([[1, np.nan, 5, np.nan], [2, 2, 1, 1]], np.float32)], {"axis": 1}, grad=False)
    )
    row(
        _name, Sample([integers(0, 3, 5, 4, dtype=np.int8)], {"axis": 1}), Sample([normal(0, 4)], {"axis": 1})
    )
for _name in ("cumsum", "cumprod", "cummax", "cummin"):
    for _reverse in (False, True):
        row(
            _name,
            Sample([normal(3, 5)], {"axis": 1, "reverse": _reverse}),
            Sample([normal(4, 3)], {"axis": 0, "reverse": _reverse}),
        )
        row(
            _name,
            Sample([normal(2, 0)], {"axis": 1, "reverse": _reverse}),
            Sample([normal(1)], {"axis": 0, "reverse": _reverse}),
        )
        row(_name, Sample([integers(-3, 4, 6, dtype=np.int8)], {"axis": 0, "reverse": _reverse}))
        row(
            _name,
            Sample([np.array([1, 3, np.nan, 2], np.float32)], {"axis": 0, "reverse": _reverse}, grad=False),
        )
    row(
        _name,
        *[Sample([uniform(0.5, 1, 3).astype(d)], {"axis": 0, "reverse": False}, grad=False) for d in HALF],
    )
row("cumprod", Sample([np.array([2.0, 0.0, 3.0, 0.0, 4.0])], {"axis": 0, "reverse": False}))

# ------------------------------------------------------------------------------------------------ contract, pool


def dot(a: np.ndarray, b: np.ndarray, contract, batch=((), ()), **options) -> None:
    row("dot_general", Sample([a, b], {"dims": (contract, batch)}, **options))


dot(normal(3, 4), normal(4, 5), ((1,), (0,)))
dot(normal(4, 3), normal(5, 4), ((0,), (1,)))
dot(normal(2, 3, 4), normal(2, 4, 5), ((2,), (1,)), ((0,), (0,)))
dot(normal(3, 2, 4), normal(4, 5, 2), ((2,), (0,)), ((1,), (2,)))
dot(normal(2, 3, 4), normal(4, 3, 5), ((1, 2), (1, 0)))
dot(normal(3, 4, 2), normal(2, 5, 3), ((2, 0), (0, 2)))
dot(normal(3), normal(4), ((), ()))
dot(normal(3), normal(3), ((0,), (0,)))
dot(normal(3, 0), normal(0, 2), ((1,), (0,)))
dot(normal(0, 3), normal(3, 2), ((1,), (0,)))
dot(normal(17, 33, dtype=np.float32), normal(33, 19, dtype=np.float32), ((1,), (0,)), grad=False)
dot(integers(-5, 5, 3, 4), integers(-5, 5, 4, 2), ((1,), (0,)))
dot(complex_normal(3, 4), complex_normal(4, 2), ((1,), (0,)))
for _d in HALF:
    dot(normal(3, 4).astype(_d), normal(4, 2).astype(_d), ((1,), (0,)), grad=False)


def convolution(spatial, kernel, strides, padding, dilation, groups, n=2, c=4, o=6, dtype=np.float64) -> None:
    params = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    out = tuple(
        (s + lo + hi - d * (k - 1) - 1) // st + 1
        for s, k, st, (lo, hi), d in zip(spatial, kernel, strides, padding, dilation, strict=True)
    )
    x, w, g = (
        normal(n, c, *spatial, dtype=dtype),
        normal(o, c // groups, *kernel, dtype=dtype),
        normal(n, o, *out, dtype=dtype),
    )
    grad = dtype == np.float64
    row("conv", Sample([x, w], params, grad=grad))
    row("conv_input_grad", Sample([g, w], {"spatial": spatial, **params}, grad=grad))
    row("conv_weight_grad", Sample([x, g], {"kernel": kernel, **params}, grad=grad))


convolution((7,), (3,), (1,), ((0, 0),), (1,), 1)
convolution((7,), (3,), (2,), ((1, 2),), (2,), 2)
convolution((6, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
convolution((6, 5), (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2)
convolution((5, 5), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
convolution((5, 6), (1, 1), (2, 2), ((0, 0), (1, 1)), (1, 1), 1, n=1)
convolution((5, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4, c=4, o=4)
convolution((5, 5), (2, 2), (3, 3), ((0, 0), (0, 0)), (1, 1), 1, c=1, o=1)
convolution((4, 3, 5), (2, 2, 3), (1, 1, 2), ((0, 1), (1, 0), (1, 1)), (1, 1, 1), 1, c=2, o=3)
convolution((3, 3), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
convolution((5, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, n=0)
convolution((9, 11), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, n=3, c=5, o=17, dtype=np.float32)


def pooling(spatial, window, strides, padding, n=2, c=3) -> None:
    params = {"window": window, "strides": strides, "padding": padding}
    out = tuple(
        (s + lo + hi - k) // st + 1
        for s, k, st, (lo, hi) in zip(spatial, window, strides, padding, strict=True)
    )
    x, g = normal(n, c, *spatial), normal(n, c, *out)
    padded = np.pad(x, ((0, 0), (0, 0), *padding), constant_values=-np.inf)
    view = np.lib.stride_tricks.sliding_window_view(padded, window, axis=tuple(range(2, x.ndim)))
    view = view[(slice(None), slice(None), *[slice(None, None, s) for s in strides])]
    offset = (
        view.reshape(n, c, *out, -1).argmax(-1).astype(np.int32)
        if x.size
        else np.zeros((n, c, *out), np.int32)
    )
    # An offset belongs to the place where it was found: batches differ in values only.
    vary = {"vary": lambda a, k: a if a.dtype == np.int32 else np.roll(a.ravel(), k).reshape(a.shape)}
    row("max_pool", Sample([x], params), Sample([x.astype(np.float32)], params, grad=False))
    row("pool_take", Sample([x, offset], params, **vary))
    row("pool_put", Sample([g, offset], {"spatial": spatial, **params}, **vary))
    row("sum_pool", Sample([x], params))
    row("sum_pool_grad", Sample([g], {"spatial": spatial, **params}))


pooling((6,), (2,), (2,), ((0, 0),))
pooling((6, 7), (2, 2), (2, 2), ((0, 0), (0, 0)))
pooling((6, 7), (3, 2), (2, 1), ((1, 1), (0, 1)))
pooling((5, 5), (3, 3), (1, 1), ((1, 1), (1, 1)))
pooling((5, 5), (1, 1), (2, 2), ((0, 0), (0, 0)))
pooling((4, 5, 3), (2, 2, 2), (2, 1, 2), ((0, 0), (1, 0), (1, 0)))
pooling((4, 4), (2, 2), (2, 2), ((0, 0), (0, 0)), n=0)
_same = {"window": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0))}
row("max_pool", Sample([np.array([[[[1, 1, np.nan, 2], [1, 1, 3, np.nan]]]], np.float32)], _same, grad=False))
row("max_pool", Sample([integers(-9, 9, 1, 2, 4, 4, dtype=np.int32)], _same))

# ------------------------------------------------------------------------------------------------ opaque

row(
    "sort",
    Sample([normal(3, 5)], {"axis": 1, "num_keys": 1}),
    Sample([normal(4, 2)], {"axis": 0, "num_keys": 1}),
)
row("sort", Sample([integers(0, 2, 3, 5), normal(3, 5), normal(3, 5)], {"axis": 1, "num_keys": 2}))
row(
    "sort",
    Sample([integers(0, 2, 6), integers(0, 9, 6)], {"axis": 0, "num_keys": 1}),
    Sample([normal(2, 0)], {"axis": 1, "num_keys": 1}),
)
row("sort", Sample([SPECIAL], {"axis": 0, "num_keys": 1}, grad=False))
row("sort", *[Sample([normal(6).astype(d)], {"axis": 0, "num_keys": 1}, grad=False) for d in HALF])


def scaled(x: np.ndarray, k: int) -> np.ndarray:
    """Batches of matrices stay positive definite, triangular, or well conditioned."""
    return x * (1 + 0.25 * k)


def regular(*shape: int) -> np.ndarray:
    return normal(*shape) + 3 * np.eye(shape[-1])


def positive(*shape: int) -> np.ndarray:
    a = normal(*shape)
    return a @ a.swapaxes(-1, -2) + np.eye(shape[-1])


_loose = {"vary": scaled, "rtol": 1e-9}
row(
    "solve",
    Sample([regular(3, 3), normal(3, 2)], **_loose),
    Sample([regular(2, 4, 4), normal(2, 4, 1)], **_loose),
)
row("solve", Sample([regular(2, 2) + 1j * normal(2, 2), complex_normal(2, 2)], **_loose))
for _lower in (False, True):
    for _transposed in (False, True):
        for _unit in (False, True):
            _p = {"lower": _lower, "transpose_a": _transposed, "unit_diagonal": _unit}
            row("triangular_solve", Sample([regular(2, 3, 3), normal(2, 3, 2)], _p, **_loose))
row(
    "inv",
    Sample([regular(3, 3)], **_loose),
    Sample([regular(2, 2, 2)], **_loose),
    Sample([np.zeros((0, 3, 3))], **_loose),
)
row(
    "det",
    Sample([regular(3, 3)], **_loose),
    Sample([normal(2, 4, 4)], **_loose),
    Sample([normal(1, 1)], **_loose),
)
row("det", Sample([np.array([[1.0, 2.0], [2.0, 4.0]])], order=1, **_loose))  # singular
row("cofactor", Sample([regular(3, 3)], **_loose), Sample([normal(2, 2, 2)], **_loose))
row("slogdet", Sample([regular(3, 3)], **_loose), Sample([normal(2, 4, 4)], **_loose))
row(
    "cholesky",
    Sample([positive(3, 3)], **_loose),
    Sample([positive(2, 4, 4)], **_loose),
    Sample([positive(1, 1)], **_loose),
)
for _shape in ((3, 3), (5, 3), (2, 4, 2)):
    row("qr", Sample([normal(*_shape)], {"full_matrices": False}, **_loose))
row("qr", Sample([normal(2, 4)], {"full_matrices": False}, grad=False, **_loose))
row("qr", Sample([normal(5, 3)], {"full_matrices": True}, grad=False, **_loose))
for _shape in ((3, 3), (5, 3), (2, 5), (2, 4, 2)):
    row("svd", Sample([normal(*_shape)], {"full_matrices": False}, **_loose))
row("svd", Sample([normal(5, 3)], {"full_matrices": True}, grad=False, **_loose))
row("svd", Sample([normal(3, 3)], {"full_matrices": True}, **_loose))
row(
    "svdvals",
    Sample([normal(3, 3)], **_loose),
    Sample([normal(2, 5, 3)], **_loose),
    Sample([normal(2, 5)], **_loose),
)
row(
    "eigh",
    Sample([positive(3, 3)], **_loose),
    Sample([normal(2, 4, 4)], **_loose),
    Sample([normal(1, 1)], **_loose),
)

for _name in ("fft", "ifft"):
    row(_name, Sample([complex_normal(3, 5)], {"axis": 1}), Sample([complex_normal(4, 3)], {"axis": 0}))
    row(
        _name,
        Sample([complex_normal(8, dtype=np.complex64)], {"axis": 0}, grad=False),
        Sample([complex_normal(1)], {"axis": 0}),
    )
for _n in (1, 2, 5, 8):
    row(
        "rfft",
        Sample([normal(2, _n)], {"axis": 1}),
        Sample([normal(_n, 2, dtype=np.float32)], {"axis": 0}, grad=False),
    )
    row("irfft", Sample([complex_normal(2, _n // 2 + 1)], {"axis": 1, "n": _n}))
row(
    "complex",
    Sample([normal(2, 3), normal(2, 3)]),
    Sample([normal(3, dtype=np.float32), normal(3, dtype=np.float32)], grad=False),
)
for _name in ("real", "imag", "conj", "complex_abs"):
    row(
        _name,
        Sample([complex_normal(2, 3)]),
        Sample([complex_normal(4, dtype=np.complex64)], grad=False),
        Sample([complex_normal()]),
    )

# ------------------------------------------------------------------------------------------------ complex, moved about

_z = complex_normal(2, 3)
row(
    "broadcast",
    Sample([_z], {"shape": (4, 2, 3), "axes": (1, 2)}),
    Sample([np.array(1 + 2j)], {"shape": (3,), "axes": ()}),
)
row("pad", Sample([_z, np.array(1j)], {"low": (1, 0), "high": (0, 2), "interior": (0, 1)}))
row("transpose", Sample([_z], {"perm": (1, 0)}))
row("reshape", Sample([_z], {"shape": (6,)}))
row("slice", Sample([_z], {"start": (0, 1), "stop": (2, 3), "step": (1, 2)}))
row("concatenate", Sample([_z, _z], {"axis": 1}))
row("flip", Sample([_z], {"axes": (1,)}))
row("iota", Sample([], {"shape": (3,), "dtype": dtypes.complex64, "axis": 0}))
row("select", Sample([rng.random((2, 3)) < 0.5, _z, _z * 2]))
row("gather", Sample([_z, np.array([0, 1, -1])], {"axes": (0,)}))
row(
    "scatter",
    *[
        Sample([_z, complex_normal(2, 3), np.array([0, 0])], {"axes": (0,), "mode": m})
        for m in ("set", "add", "mul")
    ],
)
row("dynamic_slice", Sample([_z, 0, 1], {"sizes": (1, 2)}))
row("dynamic_update_slice", Sample([_z, _z[:1, :2], 1, 1]))
row("reduce_prod", Sample([_z], {"axes": (1,)}))
row("cumsum", Sample([_z], {"axis": 1, "reverse": False}))
row("cumprod", Sample([_z], {"axis": 1, "reverse": True}))
row("eq", Sample([_z, _z]))
row("pow", Sample([_z, complex_normal(2, 3)], rtol=1e-9))
row("integer_pow", Sample([_z], {"n": 3}), Sample([_z], {"n": -2}))
row("rsqrt", Sample([_z], rtol=1e-9))
row("isnan", Sample([_z]))
