"""Arrays on the device: making them, looking at them, and the mistakes that can be made with them. See test_device_arrays.py."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import dtypes, lax, random
from fgrad.array import ConcreteArray
from fgrad.device import DeviceArray
from fgrad.errors import FgradDeviceError, FgradIndexError, FgradTypeError, FgradValueError

HOST = np.arange(6, dtype="float32")
X = fgrad.device_put(HOST, "cuda")
M = X.reshape(2, 3)
HERE = fnp.asarray(HOST)
BOTH = r"operands are on two devices: \w+\[6\] on cpu, others on cuda:0(?s:.)*device_array_cases.py:\d+ in (?s:.)*fix: move one of them: fgrad.device_put"


def equal(x, want):
    assert isinstance(x, DeviceArray) and x.device == "cuda:0"
    np.testing.assert_array_equal(np.asarray(fgrad.device_get(x)), want)


# ------------------------------------------------------------------------------------------------ there and back


def case_putting_and_getting():
    assert fgrad.devices() == ("cpu", "cuda:0")
    for dtype in sorted(dtypes.ALL, key=str):
        for shape in ((), (5,), (0, 3), (2, 1, 3)):
            data = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
            x = fgrad.device_put(data, "cuda:0")
            assert x.dtype == dtype and x.shape == shape and isinstance(x, fgrad.Array)
            equal(x, data)
    tree = fgrad.device_put({"a": [HOST, 1.5, np.float64(2), [1, 2]], "b": None, "c": HERE}, "cuda")
    assert [str(x.type) for x in fgrad.tree.leaves(tree)] == [
        "float32[6]",
        "float32[]",
        "float64[]",
        "int64[]",
        "int64[]",
        "float32[6]",
    ]
    back = fgrad.device_get(tree)
    assert all(isinstance(x, ConcreteArray) for x in fgrad.tree.leaves(back)) and back["b"] is None
    assert fgrad.device_put(X, "cuda") is X and fgrad.device_get(HERE) is HERE
    assert fgrad.device_put(X, "cpu").device == "cpu" and fgrad.device_put(HERE, "cpu") is HERE


def case_what_is_put_there_may_change_afterwards():
    data = HOST.copy()
    x = fgrad.device_put(data, "cuda")
    data[:] = 9
    equal(x, HOST)
    got = np.array(fgrad.device_get(x))
    got[:] = 7
    equal(x, HOST)
    view = fgrad.device_put(HOST[::-2], "cuda")  # not contiguous
    equal(view, HOST[::-2])


def case_looking_at_one():
    assert repr(X) == "Array([0., 1., 2., 3., 4., 5.], dtype=float32, device=cuda:0)"
    assert str(X) == str(HOST) and f"{X[1]:.2f}" == "1.00" and X.tolist() == HOST.tolist()
    assert float(X[1]) == 1.0 and int(X[2]) == 2 and complex(X[3]) == 3 and bool(X[1]) and X.item(4) == 4.0
    assert len(X) == 6 and X.size == 6 and X.nbytes == 24 and X.ndim == 1 and M.T.shape == (3, 2)
    assert (np.shape(M), np.ndim(M), np.size(M)) == ((2, 3), 2, 6)
    assert 3.0 in X and 9.0 not in X and [1, 2, 3][X[2].astype("int64")] == 3
    assert [float(v) for v in X] == HOST.tolist() and all(row.device == "cuda:0" for row in M)
    assert X.block_until_ready() is X and fgrad.block_until_ready({"a": X})["a"] is X and not X.is_deleted
    assert fgrad.device_put(np.ones(2, ml_dtypes.bfloat16), "cuda").tolist() == [1, 1]


def case_copies():
    assert copy.copy(X) is X
    for made in (copy.deepcopy({"a": X})["a"], X.copy(), fnp.array(X), fnp.copy(X)):
        equal(made, HOST)
        assert made.unsafe_buffer_pointer() != X.unsafe_buffer_pointer()
    assert (
        fnp.asarray(X) is X
        and fnp.from_dlpack(X) is X
        and M.unsafe_buffer_pointer() == X.unsafe_buffer_pointer()
    )


def case_where_arrays_are_made():
    for make in (
        fnp.zeros_like,
        fnp.ones_like,
        lambda x: fnp.full_like(x, 3),
        lambda x: lax.iota((2, 3), like=x),
    ):
        assert make(X).device == make(X[0]).device == "cuda:0" and make(HERE).device == "cpu"
    with fgrad.default_device("cuda"):
        assert fnp.zeros(3).device == random.key(0).device == "cuda:0"
        assert fnp.asarray(HOST).device == fnp.asarray([1, 2]).device == "cpu"  # data are where they are
    assert fnp.zeros(3).device == "cpu"


# ------------------------------------------------------------------------------------------------ two devices


def case_operators_with_arrays_of_the_cpu():
    numpys = (HOST, HERE)
    for other in numpys:
        for f in (lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b, lambda a, b: a**b, lambda a, b: a @ b,
                  lambda a, b: a // b, lambda a, b: a % b, lambda a, b: a == b, lambda a, b: a < b, lambda a, b: a >= b):  # fmt: skip
            for a, b in ((X, other), (other, X)):
                with pytest.raises(FgradDeviceError, match=BOTH):
                    f(a, b)
    flags = fgrad.device_put(np.ones(6, bool), "cuda")
    for f in (lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a ^ b):
        with pytest.raises(FgradDeviceError, match=BOTH):
            f(np.ones(6, bool) & (HOST > 2), flags)
    with pytest.raises(FgradDeviceError, match=BOTH):
        X + [1, 2, 3, 4, 5, 6]


def case_numbers_of_the_cpu_go_along():
    for one in (
        2,
        2.0,
        np.float32(2),
        np.ones((), "float32") * 2,
        np.full(1, 2, "float32"),
        fnp.asarray(2.0),
        fnp.full(6, 2.0),
        fnp.full((1, 6), 2),
    ):
        want = HOST * 2
        for found in (X * one, one * X):
            equal(found.reshape(6), want)
            assert found.dtype == "float32"
    equal(fnp.where(X > 2, X, 0), np.where(HOST > 2, HOST, 0))
    empty = fgrad.device_put(np.zeros((0, 6), "float32"), "cuda")
    equal(fnp.concatenate([fnp.zeros((0, 6)), X[None]]), HOST[None])
    equal(empty + np.zeros((0, 6), "float32"), np.zeros((0, 6)))


def case_functions_with_arrays_of_the_cpu():
    calls = {
        "where": lambda: fnp.where(X > 0, X, HOST),
        "concatenate": lambda: fnp.concatenate([X, HERE]),
        "a list of both": lambda: fnp.array([X, HERE]),
        "matmul": lambda: M @ HOST.reshape(3, 2),
        "einsum": lambda: fnp.einsum("i,i", X, HOST),
        "conv": lambda: lax.conv(X.reshape(1, 1, 6), HOST.reshape(1, 1, 6)),
        "take": lambda: fnp.take(X, np.array([0, 1])),
        "clip": lambda: fnp.clip(X, HOST, HOST + 1),
        "interp": lambda: fnp.interp(X, HOST, HOST),
        "searchsorted": lambda: fnp.searchsorted(HERE, X),
        "dynamic_update_slice": lambda: lax.dynamic_update_slice(X, HOST[:2], (1,)),
        "at": lambda: X.at[:2].set(HOST[:2]),
        "at of a mask": lambda: X.at[HOST > 2].set(0.0),
        "random": lambda: random.uniform(random.key(0), (6,), minval=X),
        "random with a key there": lambda: random.uniform(
            fgrad.device_put(random.key(0), "cuda"), (6,), minval=HOST
        ),
        "grad": lambda: fgrad.grad(lambda a, b: (a * b).sum())(X, HOST),
        "vjp": lambda: fgrad.vjp(lambda a: a * 2, X)[1](HERE),
        "jvp": lambda: fgrad.jvp(lambda a: a * 2, (X,), (HERE,)),
        "vmap": lambda: fgrad.vmap(lambda a, b: a + b)(X, HOST),
        "scan": lambda: fgrad.scan(lambda c, v: (c + v, c), HERE[:2], M.T),
        "cond": lambda: fgrad.cond(X[0] < 1, lambda v: v + HERE, lambda v: v, X),
        "while_loop": lambda: fgrad.while_loop(lambda s: s[0] < 3, lambda s: s + HERE, X),
        "fori_loop": lambda: fgrad.fori_loop(0, 3, lambda i, s: s + HERE, X),
        "an index there": lambda: HERE[fgrad.device_put(np.array([0, 1]), "cuda")],
    }
    for name, call in calls.items():
        with pytest.raises(
            FgradDeviceError, match=r"operands are on two devices(?s:.)*device_array_cases.py(?s:.)*fix: "
        ) as e:
            call()
        assert "device_array_cases.py" in str(e.value).split("\n")[1], name


def case_index_arrays_of_the_cpu():
    text = r"x\[index\]: the index array (int64|bool)\[\d\] is on cpu, x \(float32\[.*\]\) on cuda:0(?s:.)*device_array_cases.py(?s:.)*fgrad.device_put\(index"
    for use in (
        lambda: X[np.array([0, 1])],
        lambda: X[fnp.arange(2)],
        lambda: M[:, np.array([0, 1])],
        lambda: X.at[fnp.arange(2)].set(1.0),
        lambda: X[HOST > 2],
    ):
        with pytest.raises(FgradDeviceError, match=text):
            use()
    equal(X[[0, 2]], HOST[[0, 2]])  # lists of numbers are part of the program, as slices are
    equal(X[np.array([3])], HOST[[3]])
    equal(X[np.int64(3)], HOST[3])
    equal(M[[0, 1], [2, 0]], HOST.reshape(2, 3)[[0, 1], [2, 0]])
    equal(X[[True, False, True, False, False, False]], HOST[[0, 2]])
    for use in (lambda: X[9], lambda: X[[0, 9]], lambda: X.at[9].set(1.0)):
        with pytest.raises(FgradIndexError, match=r"index 9 is out of bounds(?s:.)*device_array_cases.py"):
            use()


# ------------------------------------------------------------------------------------------------ NumPy and Python


def case_numpy_functions():
    for call, name in (
        (lambda: np.sin(X), "numpy.sin"),
        (lambda: np.add.reduce(X), "numpy.add"),
        (lambda: np.concatenate([X]), "numpy.concatenate"),
        (lambda: np.sum(X), "numpy.sum"),
        (lambda: np.stack([X, X]), "numpy.stack"),
    ):
        with pytest.raises(
            FgradDeviceError,
            match=rf"{name}: NumPy cannot compute with float32\[6\] on cuda:0(?s:.)*cases.py(?s:.)*device_get",
        ):
            call()
    for call in (
        lambda: np.asarray(X),
        lambda: np.array([X, X]),
        lambda: np.testing.assert_array_equal(X, X),
        lambda: np.float32(X),
    ):
        with pytest.raises(
            FgradDeviceError, match=r"(np.asarray|numpy.float32)(?s:.)*device_array_cases.py(?s:.)*device_get"
        ):
            call()
    with pytest.raises(FgradDeviceError, match=r"np.asarray"):
        fgrad.grad(lambda x: (x * np.asarray(x)).sum())(X)


def case_what_python_asks_for():
    with pytest.raises(
        FgradDeviceError, match=r"pickle: float32\[6\] is on cuda:0(?s:.)*cases.py(?s:.)*device_get"
    ):
        pickle.dumps({"a": X})
    with pytest.raises(FgradTypeError, match=r"not hashable(?s:.)*cases.py"):
        {X: 1}
    with pytest.raises(FgradTypeError, match=r"0-dimensional(?s:.)*cases.py"):
        iter(X[0])
    with pytest.raises(FgradTypeError, match=r"0-dimensional(?s:.)*cases.py"):
        len(X[0])
    with pytest.raises(FgradTypeError, match=r"float: float32\[6\] has 6 elements"):
        float(X)
    with pytest.raises(FgradValueError, match=r"bool: float32\[6\] has 6 elements"):
        bool(X)
    with pytest.raises(FgradTypeError, match="immutable"):
        X[0] = 1.0


def case_habits_of_pytorch():
    for name, fix in (
        ("cuda", "fgrad.device_put"),
        ("cpu", "fgrad.device_get"),
        ("to", "fgrad.device_put"),
        ("numpy", "fgrad.device_get"),
        ("detach", "stop_gradient"),
    ):
        for x in (X, HERE):
            with pytest.raises(
                AttributeError, match=rf"arrays have no attribute '{name}'(?s:.)*cases.py(?s:.)*fix: .*{fix}"
            ):
                getattr(x, name)()


def case_device_names():
    for call in (
        lambda d: fgrad.device_put(HOST, d),
        lambda d: fgrad.default_device(d).__enter__(),
        lambda d: fgrad.jit(lambda x: x, device=d),
    ):
        for name in ("gpu", "cuda:x", "cuda:-1", "", "CUDA"):
            with pytest.raises(
                FgradValueError,
                match=rf"'{name}' is no device(?s:.)*device_array_cases.py(?s:.)*use 'cpu' or 'cuda'",
            ):
                call(name)
        with pytest.raises(
            NotImplementedError,
            match=r"'cuda:1': computing on several GPUs(?s:.)*cases.py(?s:.)*CUDA_VISIBLE_DEVICES",
        ):
            call("cuda:1")
    with pytest.raises(FgradTypeError, match=r"device_put: expected an array(?s:.)*cases.py"):
        fgrad.device_put([object()], "cuda")


def case_the_device_of_a_tracer():
    seen = []
    fgrad.grad(lambda x: seen.append(x.device) or x.sum())(X)
    fgrad.grad(lambda x: seen.append(x.device) or x.sum())(HERE)
    assert seen == ["cuda:0", "cpu"]
    with pytest.raises(AttributeError, match=r"tracer.device(?s:.)*cases.py(?s:.)*zeros_like"):
        fgrad.jit(lambda x: x.device)(X)
