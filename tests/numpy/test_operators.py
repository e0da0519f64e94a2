"""Operators and methods of Array, concrete and traced; names; errors with the user's line."""

import operator

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp

X = np.array([[1.5, -2.0, 3.0], [0.5, 4.0, -1.0]], np.float32)
I = np.array([[5, -7, 9], [2, 4, -3]])
BINARY = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.pow,
]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
BITS = [operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift]


@pytest.mark.parametrize("op", [*BINARY, *COMPARISONS], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "other",
    [2, 2.0, np.float32(3), np.array([1.0, 2.0, 3.0], np.float32), [1, 2, 4]],
    ids=["int", "float", "scalar", "array", "list"],
)
def test_operators(op, other):
    x, expected_other = np.abs(X), np.asarray(other, np.float32)
    for f in (lambda v: op(v, other), lambda v: op(other, v)):
        ours, expected = f(fnp.array(x)), np.asarray(f(x))
        assert isinstance(ours, fnp.ndarray) and ours.dtype == (
            np.float32 if expected.dtype != bool else bool
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
        np.testing.assert_allclose(fgrad.jit(f)(fnp.array(x)), expected, rtol=1e-5, atol=1e-6)
    assert expected_other.dtype == np.float32


@pytest.mark.parametrize("op", [*BINARY[:3], *BINARY[4:6], *COMPARISONS, *BITS], ids=lambda f: f.__name__)
def test_integer_operators(op):
    for other in (2, np.array([1, 2, 3])):
        np.testing.assert_array_equal(op(fnp.array(I), other), op(I, other))
        np.testing.assert_array_equal(op(other, fnp.array(np.abs(I))), op(other, np.abs(I)))


def test_unary_operators_and_conversions():
    x = fnp.array(X)
    np.testing.assert_array_equal(-x, -X)
    np.testing.assert_array_equal(+x, X)
    np.testing.assert_array_equal(abs(x), abs(X))
    np.testing.assert_array_equal(~(x > 0), ~(X > 0))
    np.testing.assert_array_equal(round(x, 1), np.round(X, 1))
    q, r = divmod(x, 2)
    np.testing.assert_array_equal(q, np.divmod(X, 2)[0])
    np.testing.assert_array_equal(r, np.divmod(X, 2)[1])
    np.testing.assert_allclose(x @ x.T, X @ X.T)
    np.testing.assert_allclose(X @ x.T, X @ X.T)
    assert x[0, 0] == 1.5 and float(x[0, 0]) == 1.5 and int(x[1, 1]) == 4 and bool(x[0, 0] > 1)
    assert (x == None) is False and (x != "a") is True  # noqa: E711


def test_in_place_operators_make_new_arrays():
    x = y = fnp.array(X)
    x += 1
    x *= 2
    x -= 1
    x /= 2
    np.testing.assert_array_equal(y, X)
    np.testing.assert_allclose(x, ((X + 1) * 2 - 1) / 2)
    with pytest.raises(TypeError, match=r"x.at\[index\].set"):
        x[0] = 1


def test_operands_of_other_types_get_their_turn():
    class Other:
        def __radd__(self, x):
            return "mine"

    assert fnp.array(X) + Other() == "mine"
    with pytest.raises(TypeError, match="unsupported operand"):
        fnp.array(X) + {}


METHODS = {
    "sum": lambda x: x.sum(),
    "sum axis": lambda x: x.sum(axis=1, keepdims=True),
    "prod": lambda x: x.prod(0),
    "mean": lambda x: x.mean(-1),
    "var": lambda x: x.var(0),
    "std": lambda x: x.std(axis=1, ddof=1),
    "max": lambda x: x.max(),
    "min": lambda x: x.min(0),
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: x.argmin(),
    "all": lambda x: x.all(),
    "any": lambda x: x.any(0),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(0),
    "clip": lambda x: x.clip(-1, 2),
    "dot": lambda x: x.dot(x.T),
    "argsort": lambda x: x.argsort(),
    "take": lambda x: x.take(np.array([2, 0]), 1),
    "repeat": lambda x: x.repeat(2, 0),
    "round": lambda x: x.round(1),
    "diagonal": lambda x: x.diagonal(1),
    "trace": lambda x: x.trace(),
    "reshape": lambda x: x.reshape(3, 2),
    "reshape tuple": lambda x: x.reshape((3, -1)),
    "ravel": lambda x: x.ravel(),
    "flatten": lambda x: x.flatten(),
    "transpose": lambda x: x.transpose(),
    "transpose axes": lambda x: x.transpose(1, 0),
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "squeeze": lambda x: x[:1].squeeze(),
    "astype": lambda x: x.astype("int32"),
    "astype by type": lambda x: x.astype(np.float64),
    "view": lambda x: x.view("int32"),
    "copy": lambda x: x.copy(),
    "conj": lambda x: x.conj(),
    "real": lambda x: x.real,
    "imag": lambda x: x.imag,
    "nonzero": lambda x: x.nonzero()[0],
    "searchsorted": lambda x: x[0].cumsum().searchsorted(2.0),
    "item": lambda x: np.float32(x.item(2)),
    "len": lambda x: np.asarray(len(x)),
    "iteration": lambda x: next(iter(x)),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    method = METHODS[name]
    ours, expected = method(fnp.array(X)), np.asarray(method(X))
    assert ours.shape == expected.shape and ours.dtype == expected.dtype
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    if name not in ("item", "len", "nonzero"):
        np.testing.assert_allclose(fgrad.jit(method)(fnp.array(X)), expected, rtol=1e-5)


def test_methods_that_return_copies_here():
    x = fnp.array(X)
    np.testing.assert_array_equal(x.sort(), np.sort(X))
    np.testing.assert_array_equal(x.ptp(1), np.ptp(X, 1))


def test_at_least_200_of_numpys_functions():
    shared = [
        n
        for n in dir(fnp)
        if not n.startswith("_") and callable(getattr(np, n, None)) and not isinstance(getattr(np, n), type)
    ]
    shared += [
        f"linalg.{n}"
        for n in dir(fnp.linalg)
        if callable(getattr(np.linalg, n, None)) and not n.startswith("_")
    ]
    shared += [
        f"fft.{n}" for n in dir(fnp.fft) if callable(getattr(np.fft, n, None)) and not n.startswith("_")
    ]
    assert len(shared) >= 300, len(shared)
    without = [
        n for n in shared if "." not in n and callable(getattr(fnp, n)) and not getattr(fnp, n).__doc__
    ]
    assert not without, f"no docstring: {without}"


def test_constants_and_dtypes():
    assert (
        fnp.pi == np.pi and fnp.e == np.e and fnp.inf == np.inf and np.isnan(fnp.nan) and fnp.newaxis is None
    )
    assert fnp.dtype(fnp.float32) == np.float32 and fnp.float32(3) == 3 and fnp.bool_ is np.bool_
    assert fnp.finfo(fnp.float32).eps == np.finfo(np.float32).eps and fnp.iinfo("int8").max == 127
    assert fnp.result_type(fnp.ones(2), 1.0, np.int32(1)) == np.float32
    assert fnp.promote_types("int64", "float16") == np.float16
    assert fnp.can_cast("int8", "int64") and not fnp.can_cast("int64", "int8")
    assert fnp.issubdtype(fnp.ones(1).dtype, fnp.floating) and fnp.isdtype("int8", "integral")
    assert fnp.isscalar(1.0) and not fnp.isscalar(fnp.ones(()))
    assert fnp.iscomplexobj(1j) and fnp.isrealobj(1)
    assert fnp.dtype("bfloat16") == fnp.bfloat16 and fnp.dtype(float) == np.float32
    assert fnp.shape(X) == (2, 3) and fnp.ndim(X) == 2 and fnp.size(X) == 6 and fnp.size(X, 1) == 3


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda x: x + fnp.ones(4), r"add: shapes \(2, 3\) and \(4,\) cannot be broadcast together"),
        (
            lambda x: x + fnp.ones(2),
            r"add 1 trailing ax.s to the operand of shape \(2,\), as in y\[..., None\]",
        ),
        (lambda x: x @ x, "matmul: axis 1 of float32\\[2,3\\] \\(length 3\\) and axis 0"),
        (lambda x: x & 1, "bitwise_and: needs integers or bools"),
        (lambda x: (x > 0) - (x < 0), "subtract: bool arrays"),
        (lambda x: fnp.sin({"a": x}), "sin: expected an array, got dict"),
        (lambda x: fnp.sin(None), "sin: expected an array, got NoneType"),
        (lambda x: fnp.where(x > 0), "x and y are both needed"),
        (lambda x: x.sum(axis=2), "sum: axis 2 is out of bounds"),
        (lambda x: x.sum(axis="a"), "axis must be an integer"),
        (lambda x: x.reshape(4), "6 elements, shape \\(4,\\) has 4"),
        (lambda x: x.astype("U3"), "not a supported dtype"),
        (lambda x: x.view("float64"), "differ in width"),
    ],
)
def test_errors_name_the_call_the_line_and_the_fix(call, text):
    for f in (call, fgrad.jit(call)):
        with pytest.raises((TypeError, ValueError), match=text) as e:
            f(fnp.array(X))
        assert "test_operators.py" in str(e.value)
