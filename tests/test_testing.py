"""The checks themselves: each must fail on a record with one wrong part, and name the part."""

import dataclasses

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.ir import REGISTRY
from fgrad.testing import Sample, assert_close, check_compiled, check_grads, check_primitive
from fgrad.trace import bind

X, Y = np.array([[0.3, -0.7, 1.1], [2.0, 0.5, -1.5]]), np.array([[1.0, 2.0, -0.5], [0.2, 3.0, 0.4]])


def _broken(name, **changes):
    return dataclasses.replace(REGISTRY[name], **changes)


def test_right_records_pass():
    check_primitive("mul", (X, Y))
    check_primitive("reduce_sum", (X,), {"axes": (1,)})


def test_wrong_jvp():
    wrong = _broken("sin", jvp=lambda primals, tangents, outs: bind(REGISTRY["mul"], tangents[0], outs[0]))
    with pytest.raises(AssertionError, match="jvp of sin"):
        check_primitive(wrong, (X,))


def test_missing_tangent():
    wrong = _broken(
        "mul",
        jvp=lambda primals, tangents, outs: (
            None if tangents[0] is None else bind(REGISTRY["mul"], tangents[0], primals[1])
        ),
    )
    with pytest.raises(AssertionError, match="jvp of mul"):
        check_primitive(wrong, (X, Y))


def test_wrong_transpose():
    real = REGISTRY["cumsum"]

    def transpose(cts, x, *, axis, reverse):
        return (bind(real, cts[0], axis=axis, reverse=reverse),)

    wrong = _broken("cumsum", transpose=transpose)
    wrong.jvp = lambda primals, tangents, outs, **p: bind(wrong, tangents[0], **p)
    with pytest.raises(AssertionError, match="vjp of cumsum"):
        check_primitive(wrong, (X,), {"axis": 1, "reverse": False})


def test_wrong_batching():
    def batch(size, args, batched, *, axes):
        return bind(REGISTRY["flip"], args[0], axes=axes), True

    with pytest.raises(AssertionError, match="vmap of flip"):
        check_primitive(_broken("flip", batch=batch), (X,), {"axes": (0,)})


def test_wrong_type_rule():
    with pytest.raises(fgrad.FgradError, match="its NumPy definition gave"):
        check_primitive(
            _broken("square", type_rule=lambda x: dataclasses.replace(x, dtype=np.dtype("int64"))), (X,)
        )


def test_wrong_second_derivative():
    """The first derivative is right, but hides what it depends on."""
    stop = REGISTRY["stop_gradient"]
    wrong = _broken(
        "sin", jvp=lambda p, t, outs: bind(REGISTRY["mul"], t[0], bind(stop, bind(REGISTRY["cos"], p[0])))
    )
    with pytest.raises(AssertionError, match="jvp of vjp of sin"):
        check_primitive(wrong, (X,))


def test_compiled_code_is_compared():
    """A definition that disagrees with the kernel of the same name."""
    with pytest.raises(AssertionError, match="compiled exp"):
        check_compiled(_broken("exp", impl=np.exp2), [Sample([X], grad=False)])


def test_check_grads():
    check_grads(lambda p, x: {"y": fnp.tanh(p["w"] @ x), "n": fnp.argmax(x)}, {"w": X}, Y.T)
    with pytest.raises(AssertionError, match="jvp"):
        check_grads(lambda x: x * fgrad.stop_gradient(x), X)


def test_assert_close():
    assert_close(np.float32([1, np.nan, np.inf]), np.float32([1 + 1e-6, np.nan, np.inf]))
    for other in (
        np.float32([1, 0, np.inf]),
        np.float64([1, np.nan, np.inf]),
        np.float32([1, np.nan, -np.inf]),
    ):
        with pytest.raises(AssertionError):
            assert_close(other, np.float32([1, np.nan, np.inf]))
