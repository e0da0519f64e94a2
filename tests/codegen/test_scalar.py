"""Plain scalar operations, casts and storage formats of generated code against NumPy and ml_dtypes."""

import itertools

import llvmlite.ir as ir
import ml_dtypes
import numpy as np
import pytest

from fgrad.codegen import scalar, scalar_cast

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SIGNED = [np.dtype(f"int{b}") for b in (8, 16, 32, 64)]
UNSIGNED = [np.dtype(f"uint{b}") for b in (8, 16, 32, 64)]
FLOATS = [np.dtype("float16"), BFLOAT16, np.dtype("float32"), np.dtype("float64")]
WIDE = FLOATS[2:]
BOOL = np.dtype("bool")
INTS = SIGNED + UNSIGNED


def ids(dtype):
    return str(dtype)


def values(rng, dtype, n=300):
    """Random values with every special one; floats of all magnitudes and small integral ones."""
    if dtype == BOOL:
        return rng.integers(0, 2, n).astype(bool)
    if dtype in INTS:
        info = np.iinfo(dtype)
        special = np.array([0, 1, 2, info.max, info.max - 1, info.min, info.min + 1], dtype)
        if dtype in SIGNED:
            special = np.concatenate([special, np.array([-1, -2, -3], dtype)])
        spread = rng.integers(info.min, info.max, n, dtype, endpoint=True)
        small = rng.integers(-9 if dtype in SIGNED else 0, 10, n).astype(dtype)
        return np.concatenate([special, spread, small])
    info = ml_dtypes.finfo(dtype)
    top, tiny = float(info.max), float(info.smallest_subnormal)
    special = [
        0.0,
        -0.0,
        1,
        -1,
        0.5,
        -0.5,
        1.5,
        2.5,
        np.inf,
        -np.inf,
        np.nan,
        top,
        -top,
        tiny,
        -tiny,
        float(info.tiny),
    ]
    x = np.concatenate(
        [special, rng.integers(-9, 10, n), rng.uniform(-5, 5, n), np.exp(rng.uniform(-8, 8, n))]
    )
    return x.astype(dtype)


def pairs(rng, dtype):
    """All special values against each other, and random pairs."""
    x, y = values(rng, dtype), values(rng, dtype)
    a, b = (v.ravel() for v in np.meshgrid(x[:16], y[:16]))
    return np.concatenate([a, x]), np.concatenate([b, rng.permutation(y)])


def same(got, want):
    """Equal values, equal signs of zero; NaN equals NaN."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype
    if got.dtype in FLOATS:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            a, b = got.astype(np.float64), want.astype(np.float64)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.signbit(a)[b == 0], np.signbit(b)[b == 0])
    else:
        np.testing.assert_array_equal(got, want)


UNARY_FLOAT = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "sqrt": np.sqrt,
    "reciprocal": np.reciprocal,
    "square": np.square,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "signbit": np.signbit,
}
TO_BOOL = {"isnan", "isinf", "isfinite", "signbit", "eq", "ne", "lt", "le", "gt", "ge"}


@pytest.mark.parametrize("dtype", FLOATS, ids=ids)
@pytest.mark.parametrize("op", UNARY_FLOAT)
def test_unary_floats(op, dtype, elementwise, rng):
    x = values(rng, dtype)
    with np.errstate(all="ignore"):
        want = UNARY_FLOAT[op](x)
        if dtype == BFLOAT16 and op not in TO_BOOL:
            # One rounding of the float32 result is the definition.
            want = UNARY_FLOAT[op](x.astype(np.float32)).astype(dtype) if op != "rsqrt" else want
    same(elementwise(op, [dtype], BOOL if op in TO_BOOL else dtype)(x), want)


BINARY_FLOAT = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "fmod": np.fmod,
    "remainder": np.remainder,
    "floordiv": np.floor_divide,
    "copysign": np.copysign,
    "fmax": np.fmax,
    "fmin": np.fmin,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@pytest.mark.parametrize("dtype", FLOATS, ids=ids)
@pytest.mark.parametrize("op", BINARY_FLOAT)
def test_binary_floats(op, dtype, elementwise, rng):
    x, y = pairs(rng, dtype)
    if op in ("maximum", "minimum", "fmax", "fmin"):
        # NumPy's choice between 0 and -0 depends on the machine.
        x = np.where(x == 0, np.array(0, dtype), x)
        y = np.where(y == 0, np.array(0, dtype), y)
    with np.errstate(all="ignore"):
        if dtype == BFLOAT16:
            want = BINARY_FLOAT[op](x.astype(np.float32), y.astype(np.float32))
            want = want if op in TO_BOOL else want.astype(dtype)
        else:
            want = BINARY_FLOAT[op](x, y)
    same(elementwise(op, [dtype, dtype], BOOL if op in TO_BOOL else dtype)(x, y), want)


@pytest.mark.parametrize("dtype", WIDE, ids=ids)
def test_nextafter(dtype, elementwise, rng):
    x, y = pairs(rng, dtype)
    with np.errstate(all="ignore"):
        same(elementwise("nextafter", [dtype, dtype], dtype)(x, y), np.nextafter(x, y))


def _popcount(x):
    return np.array([bin(int(v) & ((1 << 8 * x.itemsize) - 1)).count("1") for v in x], x.dtype)


def _clz(x):
    bits = 8 * x.itemsize
    return np.array([bits - (int(v) & ((1 << bits) - 1)).bit_length() for v in x], x.dtype)


def _identity(x):
    return x


UNARY_INT = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "square": np.square,
    "bitwise_not": np.invert,
    "popcount": _popcount,
    "clz": _clz,
    "floor": _identity,
    "round": _identity,
}


@pytest.mark.parametrize("dtype", INTS, ids=ids)
@pytest.mark.parametrize("op", UNARY_INT)
def test_unary_integers(op, dtype, elementwise, rng):
    x = values(rng, dtype)
    same(elementwise(op, [dtype], dtype)(x), UNARY_INT[op](x))


def _python_shift(op):
    """Python's integers as the definition: a count of the width or more, or below 0, leaves 0 (or the sign)."""

    def f(x, y):
        bits = 8 * x.itemsize
        mask = (1 << bits) - 1
        out = []
        for a, n in zip(x.tolist(), y.tolist(), strict=True):
            n = n if 0 <= n < bits else bits
            value = {"left": a << n, "arithmetic": a >> n, "logical": (a & mask) >> n}[op] & mask
            out.append(value - (1 << bits) if x.dtype.kind == "i" and value >> (bits - 1) else value)
        return np.array(out, x.dtype)

    return f


BINARY_INT = {
    **{
        k: BINARY_FLOAT[k]
        for k in ("add", "sub", "mul", "fmod", "remainder", "floordiv", "maximum", "minimum", "fmax", "fmin")
    },
    **{k: BINARY_FLOAT[k] for k in ("eq", "ne", "lt", "le", "gt", "ge")},
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "shift_left": _python_shift("left"),
    "shift_right_arithmetic": _python_shift("arithmetic"),
    "shift_right_logical": _python_shift("logical"),
}


@pytest.mark.parametrize("dtype", INTS, ids=ids)
@pytest.mark.parametrize("op", BINARY_INT)
def test_binary_integers(op, dtype, elementwise, rng):
    x, y = pairs(rng, dtype)
    with np.errstate(all="ignore"):
        want = BINARY_INT[op](x, y)
    same(elementwise(op, [dtype, dtype], BOOL if op in TO_BOOL else dtype)(x, y), want)


@pytest.mark.parametrize("dtype", INTS, ids=ids)
def test_integer_powers(dtype, elementwise, rng):
    x, y = pairs(rng, dtype)
    ok = y >= 0
    x, y = x[ok], y[ok]
    same(elementwise("pow", [dtype, dtype], dtype)(x, y), np.power(x, y))


def test_negative_integer_powers_are_truncated_quotients(elementwise):
    x, y = np.array([1, -1, -1, 2, 0]), np.array([-3, -3, -4, -1, -1])
    assert elementwise("pow", ["int64", "int64"], "int64")(x, y).tolist() == [1, -1, 1, 0, 0]


BOOLEAN = {
    "add": np.add,
    "mul": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "bitwise_and": np.logical_and,
    "bitwise_or": np.logical_or,
    "bitwise_xor": np.logical_xor,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "ge": np.greater_equal,
}


@pytest.mark.parametrize("op", BOOLEAN)
def test_bools(op, elementwise):
    x, y = np.array([False, False, True, True] * 16), np.array([False, True] * 32)
    same(elementwise(op, [BOOL, BOOL], BOOL)(x, y), BOOLEAN[op](x, y))
    same(elementwise("logical_not", [BOOL], BOOL)(x), ~x)


@pytest.mark.parametrize(
    ("source", "goal"), list(itertools.product([BOOL, *INTS, *FLOATS], repeat=2)), ids=ids
)
def test_casts(source, goal, elementwise, rng):
    x = values(rng, source)
    if source in FLOATS and goal in INTS:
        # In range; NumPy leaves the rest to the machine.
        info = np.iinfo(goal)
        wide = x.astype(np.float64)
        x = x[(np.trunc(wide) >= float(info.min)) & (wide < float(info.max))]
    if source == np.float64 and goal in FLOATS[:2]:
        # Halfway cases, and values just beside them: one rounding or two.
        ties = 1 + np.array(
            [2.0**-11, 2.0**-11 + 2.0**-40, 2.0**-11 - 2.0**-40, 2.0**-9, 3 * 2.0**-11, 2.0**-25 - 1]
        )
        x = np.concatenate([x, ties, 65519.999 * ties[:1], 2.0**-25 * ties])
    with np.errstate(all="ignore"):
        want = x.astype(goal)
    same(elementwise("cast", [source], goal)(x), want)


def test_half_precision_without_the_machines_help(elementwise, monkeypatch, rng):
    """The integer code for processors without float16 conversion, on every float16 and around every rounding."""
    monkeypatch.setattr(scalar_cast, "_native_half", lambda: False)
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    same(elementwise("cast", ["float16"], "float32")(every), every.astype(np.float32))
    finite = every[np.isfinite(every)].astype(np.float32)
    with np.errstate(over="ignore"):
        following = np.nextafter(finite.astype(np.float16), np.float16(np.inf)).astype(np.float32)
    between = (finite + following) / 2
    patterns = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([finite, between, np.nextafter(between, 0), np.nextafter(between, np.inf), patterns])
    with np.errstate(all="ignore"):
        same(elementwise("cast", ["float32"], "float16")(x), x.astype(np.float16))
        same(elementwise("add", ["float16"] * 2, "float16")(every, every[::-1]), every + every[::-1])


@pytest.mark.parametrize("goal", INTS, ids=ids)
def test_floats_out_of_range_saturate(goal, elementwise):
    info = np.iinfo(goal)
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30])
    for source in ("float32", "float64"):
        got = elementwise("cast", [source], goal)(x).tolist()
        assert got == [0, info.max, info.min, info.max, info.min]


@pytest.mark.parametrize("dtype", [BOOL, *INTS, *FLOATS], ids=ids)
def test_select(dtype, elementwise, rng):
    x, y = pairs(rng, dtype)
    c = rng.integers(0, 2, x.size).astype(bool)
    same(elementwise("select", [BOOL, dtype, dtype], dtype)(c, x, y), np.where(c, x, y))


@pytest.mark.parametrize(
    ("source", "goal"),
    [
        ("float32", "int32"),
        ("uint32", "float32"),
        ("float64", "uint64"),
        ("float16", "int16"),
        ("uint16", BFLOAT16),
        ("int8", "uint8"),
    ],
)
def test_bitcasts(source, goal, elementwise, rng):
    x = values(rng, np.dtype(source))
    # A NaN may become quiet on its way through a register.
    with np.errstate(invalid="ignore"):
        x = x[~np.isnan(x.view(goal).astype(np.float64)) & ~np.isnan(x.astype(np.float64))]
    same(elementwise("bitcast", [source], goal)(x), x.view(goal))


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=ids)
@pytest.mark.parametrize("op", ["exp", "tanh", "log", "sigmoid", "erf"])
def test_half_precision_functions_round_the_float32_result(op, dtype, elementwise, rng):
    x = values(rng, dtype)
    single = elementwise(op, ["float32"], "float32")(x.astype(np.float32))
    with np.errstate(over="ignore"):
        same(elementwise(op, [dtype], dtype)(x), single.astype(dtype))


@pytest.mark.parametrize("dtype", [BOOL, *INTS, *FLOATS], ids=ids)
def test_constants_are_exact(dtype):
    for v in values(np.random.default_rng(1), dtype, 20):
        constant = scalar.constant(v, dtype)
        assert constant.type == scalar.llvm_type(dtype)
        held = constant.constant
        if dtype in FLOATS:
            np.testing.assert_equal(float(held), float(v))
        else:
            assert held == int(v) % (1 << constant.type.width)


@pytest.mark.parametrize("op", ["add", "maximum", "sign", "select", "lt", "floordiv", "shift_left"])
@pytest.mark.parametrize("dtype", [np.dtype("int32"), np.dtype("float32"), BFLOAT16], ids=ids)
def test_vectors_as_scalars(op, dtype, elementwise, rng):
    arity = {"sign": 1, "select": 3}.get(op, 2)
    inputs = [BOOL, dtype, dtype] if op == "select" else [dtype] * arity
    out = BOOL if op == "lt" else dtype
    if not scalar.supports(op, inputs, out):
        assert op == "shift_left"
        return
    arrays = [values(rng, d)[:64] for d in inputs]
    same(elementwise(op, inputs, out, lanes=8)(*arrays), elementwise(op, inputs, out)(*arrays))


def test_maximum_with_a_constant_is_one_instruction_and_keeps_nan(elementwise):
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.FloatType(), [ir.FloatType()]), "relu")
    builder = ir.IRBuilder(function.append_basic_block())
    zero = scalar.constant(0, np.float32)
    builder.ret(scalar.emit(builder, "maximum", [function.args[0], zero], ["float32"] * 2, np.float32))
    assert [i.opname for i in function.blocks[0].instructions] == ["fcmp", "select", "ret"]


def test_what_is_not_supported_says_so():
    complex64 = np.dtype("complex64")
    assert not scalar.supports("add", [complex64, complex64], complex64)
    assert not scalar.supports("fft", ["float32"], "float32")
    assert not scalar.supports("exp", ["int32"], "int32")
    assert not scalar.supports("add", ["float32", "float64"], "float64")
    assert not scalar.supports("bitcast", ["float32"], "int64")
    builder = ir.IRBuilder(
        ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), []), "f").append_basic_block()
    )
    with pytest.raises(NotImplementedError, match=r"no code for exp\(int32\) -> int32"):
        scalar.emit(builder, "exp", [ir.Constant(ir.IntType(32), 0)], ["int32"], "int32")
