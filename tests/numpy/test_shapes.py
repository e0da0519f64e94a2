"""Creation, joining, splitting, padding and rearranging against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fgrad
import fgrad.numpy as fnp

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
V = np.array([3.0, -1.0, 2.0, 5.0], np.float32)
SQUARE = np.arange(16.0).reshape(4, 4)


def equal(ours, theirs):
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            equal(a, b)
        return
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(np.asarray(ours).astype(theirs.dtype), theirs, rtol=1e-6)


# Each entry is called with both libraries.
CASES = {
    "reshape": lambda np: np.reshape(X, (4, -1)),
    "reshape to a number": lambda np: np.reshape(X, -1),
    "ravel": lambda np: np.ravel(X),
    "transpose": lambda np: np.transpose(X),
    "transpose by axes": lambda np: np.transpose(X, (1, -1, 0)),
    "permute_dims": lambda np: np.permute_dims(X, (2, 0, 1)),
    "matrix_transpose": lambda np: np.matrix_transpose(X),
    "swapaxes": lambda np: np.swapaxes(X, 0, -1),
    "moveaxis": lambda np: np.moveaxis(X, 0, -1),
    "moveaxis of several": lambda np: np.moveaxis(X, (0, 2), (2, 0)),
    "rollaxis": lambda np: np.rollaxis(X, 2),
    "rollaxis to the end": lambda np: np.rollaxis(X, 0, 3),
    "squeeze": lambda np: np.squeeze(X[:1, :, :1]),
    "squeeze one": lambda np: np.squeeze(X[:1, :, :1], -1),
    "expand_dims": lambda np: np.expand_dims(X, 1),
    "expand_dims of several": lambda np: np.expand_dims(X, (0, -1)),
    "atleast_1d": lambda np: np.atleast_1d(3.0),
    "atleast_2d": lambda np: np.atleast_2d(V),
    "atleast_3d": lambda np: np.atleast_3d(V, SQUARE, 1.0),
    "concatenate": lambda np: np.concatenate([X, X * 2], 1),
    "concatenate flat": lambda np: np.concatenate([X, V], None),
    "concat": lambda np: np.concat([X, X], -1),
    "stack": lambda np: np.stack([V, V * 2], 1),
    "stack scalars": lambda np: np.stack([1.0, 2.0]),
    "vstack": lambda np: np.vstack([V, SQUARE]),
    "hstack": lambda np: np.hstack([X, X]),
    "hstack of vectors": lambda np: np.hstack([V, V]),
    "dstack": lambda np: np.dstack([V, V]),
    "column_stack": lambda np: np.column_stack([V, SQUARE]),
    "append": lambda np: np.append(X, V),
    "append along": lambda np: np.append(X, X, 2),
    "block": lambda np: np.block([[SQUARE, SQUARE * 2], [np.ones((1, 4)), np.zeros((1, 4))]]),
    "block of vectors": lambda np: np.block([V, V, 7.0]),
    "split": lambda np: np.split(X, 2, 2),
    "split at": lambda np: np.split(X, [1, 3], 2),
    "split beyond": lambda np: np.split(V, [2, 9]),
    "array_split": lambda np: np.array_split(V, 3),
    "hsplit": lambda np: np.hsplit(X, 3),
    "vsplit": lambda np: np.vsplit(X, 2),
    "dsplit": lambda np: np.dsplit(X, [1]),
    "unstack": lambda np: np.unstack(X, axis=1),
    "tile": lambda np: np.tile(X, 2),
    "tile more axes": lambda np: np.tile(V, (2, 1, 3)),
    "tile fewer axes": lambda np: np.tile(X, (2, 3)),
    "repeat": lambda np: np.repeat(X, 2, 1),
    "repeat flat": lambda np: np.repeat(X, 3),
    "repeat each": lambda np: np.repeat(V, [1, 0, 2, 3]),
    "repeat each along": lambda np: np.repeat(X, [1, 2, 0], 1),
    "flip": lambda np: np.flip(X),
    "flip along": lambda np: np.flip(X, (0, 2)),
    "fliplr": lambda np: np.fliplr(X),
    "flipud": lambda np: np.flipud(X),
    "roll": lambda np: np.roll(X, 5),
    "roll along": lambda np: np.roll(X, -1, 2),
    "roll several": lambda np: np.roll(X, (1, 2), (0, 2)),
    "roll one shift": lambda np: np.roll(X, 1, (0, 2)),
    "resize": lambda np: np.resize(V, (3, 3)),
    "trim_zeros": lambda np: np.trim_zeros(np.array([0.0, 0, 1, 0, 2, 0])),
    "insert": lambda np: np.insert(V, 1, 9.0),
    "insert row": lambda np: np.insert(SQUARE, 2, V, axis=0),
    "insert column": lambda np: np.insert(SQUARE, 1, V, axis=1),
    "delete": lambda np: np.delete(V, 1),
    "delete several": lambda np: np.delete(SQUARE, [0, -1], 1),
    "broadcast_to": lambda np: np.broadcast_to(V, (2, 3, 4)),
    "diag": lambda np: np.diag(V),
    "diag above": lambda np: np.diag(V, 2),
    "diag below": lambda np: np.diag(V, -1),
    "diag of a matrix": lambda np: np.diag(SQUARE, 1),
    "diagflat": lambda np: np.diagflat(X[0], -1),
    "diagonal": lambda np: np.diagonal(X, 1, 0, 2),
    "diagonal below": lambda np: np.diagonal(X, -1, 1, 2),
    "diagonal outside": lambda np: np.diagonal(SQUARE, 9),
    "trace": lambda np: np.trace(X, 1, 1, 2),
    "tri": lambda np: np.tri(3, 5, 1),
    "tril": lambda np: np.tril(X, -1),
    "triu": lambda np: np.triu(X, 1),
    "tril of a vector": lambda np: np.tril(V),
    "tril_indices": lambda np: np.tril_indices(3, 1, 4),
    "triu_indices": lambda np: np.triu_indices(3, -1),
    "tril_indices_from": lambda np: np.tril_indices_from(SQUARE),
    "triu_indices_from": lambda np: np.triu_indices_from(SQUARE),
    "diag_indices": lambda np: np.diag_indices(3),
    "diag_indices_from": lambda np: np.diag_indices_from(SQUARE),
    "ix_": lambda np: np.ix_([0, 1], [2, 0, 1], [True, False]),
    "eye": lambda np: np.eye(3, 4, 1),
    "identity": lambda np: np.identity(3),
    "vander": lambda np: np.vander(V, 3),
    "vander increasing": lambda np: np.vander(V, increasing=True),
    "meshgrid": lambda np: np.meshgrid(V, V[:2], V[:3]),
    "meshgrid ij": lambda np: np.meshgrid(V, V[:2], indexing="ij"),
    "meshgrid sparse": lambda np: np.meshgrid(V, V[:2], sparse=True),
    "indices": lambda np: np.indices((2, 3)),
    "fromfunction": lambda np: np.fromfunction(lambda i, j: i * 10 + j, (2, 3)),
    "arange": lambda np: np.arange(7),
    "arange by": lambda np: np.arange(2, 11, 3),
    "arange down": lambda np: np.arange(5, -5, -2),
    "arange of floats": lambda np: np.arange(0.5, 3, 0.1),
    "arange of nothing": lambda np: np.arange(5, 2),
    "linspace": lambda np: np.linspace(-1, 2, 7),
    "linspace open": lambda np: np.linspace(0, 1, 4, endpoint=False),
    "linspace of one": lambda np: np.linspace(3, 5, 1),
    "linspace of integers": lambda np: np.linspace(0, 10, 4, dtype=np.int64),
    "linspace of arrays": lambda np: np.linspace(V, V * 3, 5),
    "linspace along": lambda np: np.linspace(V, V * 3, 5, axis=1),
    "linspace and step": lambda np: np.linspace(0, 1, 5, retstep=True),
    "logspace": lambda np: np.logspace(0, 2, 5),
    "geomspace": lambda np: np.geomspace(1, 256, 9),
    "full": lambda np: np.full((2, 3), 7.5),
    "full of an array": lambda np: np.full((2, 4), V),
    "zeros_like": lambda np: np.zeros_like(X),
    "ones_like": lambda np: np.ones_like(X, dtype=np.int32),
    "full_like": lambda np: np.full_like(X, 3),
    "unravel_index": lambda np: np.unravel_index(np.array([5, 23]), (2, 3, 4)),
    "ravel_multi_index": lambda np: np.ravel_multi_index(([0, 1], [2, 0], [3, 1]), (2, 3, 4)),
    "apply_along_axis": lambda np: np.apply_along_axis(lambda v: np.stack([v.sum(), v.max()]), 1, X),
    "apply_over_axes": lambda np: np.apply_over_axes(np.sum, X, [0, 2]),
    "hanning": lambda np: np.hanning(8) + 1,
    "hamming": lambda np: np.hamming(8),
    "blackman": lambda np: np.blackman(8) + 1,
    "bartlett": lambda np: np.bartlett(8),
    "kaiser": lambda np: np.kaiser(8, 3.0),
}
CASES.update({f"rot90 {k}": (lambda np, k=k: np.rot90(X, k, (0, 2))) for k in range(-1, 5)})
WIDTHS = {
    "one number": 2,
    "a pair": (1, 3),
    "a pair an axis": ((0, 1), (2, 0), (5, 7)),
    "only one axis": ((0, 0), (0, 0), (9, 1)),
}
CASES.update(
    {
        f"pad {mode} {what}": (lambda np, mode=mode, w=w: np.pad(X, w, mode))
        for mode in ("constant", "edge", "reflect", "symmetric", "wrap", "maximum", "minimum")
        for what, w in WIDTHS.items()
    }
)
CASES["pad values"] = lambda np: np.pad(X, ((1, 1), (0, 2), (3, 0)), constant_values=((1, 2), (3, 4), (5, 6)))
CASES["pad one value"] = lambda np: np.pad(X, 1, constant_values=-3)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_like_numpy(case):
    equal(case(fnp), case(np))


@pytest.mark.parametrize("name", ["zeros", "ones", "empty"])
def test_filled(name):
    assert getattr(fnp, name)((2, 3)).dtype == np.float32
    assert getattr(fnp, name)(3, "int8").dtype == np.int8
    equal(fnp.ones((2, 3)), np.ones((2, 3)))


def test_dtypes_of_creation():
    assert fnp.array(1).dtype == np.int64
    assert fnp.array(1.0).dtype == fnp.array([1.0, 2]).dtype == np.float32
    assert fnp.array([True, False]).dtype == bool
    assert fnp.array(1j).dtype == np.complex64
    assert fnp.array(np.ones(2)).dtype == np.float64
    assert fnp.array([1, 2], float).dtype == np.float32
    assert fnp.arange(3.0).dtype == fnp.linspace(0, 1).dtype == fnp.eye(2).dtype == np.float32
    assert fnp.arange(3, dtype="uint8").dtype == np.uint8
    assert fnp.asarray([1, 2.5]).dtype == np.float32
    with pytest.raises(TypeError, match="dtype <U1 is not supported"):
        fnp.array(["a"])


def test_array_copies_and_asarray_shares():
    data = np.zeros(3, np.float32)
    copied, shared = fnp.array(data), fnp.asarray(data)
    data[0] = 1
    assert copied[0] == 0 and shared[0] == 1
    assert fnp.array([1.0, 2.0], ndmin=3).shape == (1, 1, 2)


def test_lists_may_hold_traced_arrays():
    f = fgrad.jit(lambda x: fnp.array([[x[0], 1.0], [x[1], x[0] * 2]]))
    equal(f(fnp.array([3.0, 4.0])), np.array([[3.0, 1], [4, 6]]))


def test_dlpack_and_buffers():
    equal(fnp.from_dlpack(X), X)
    equal(fnp.frombuffer(np.arange(3, dtype=np.int32).tobytes(), "int32"), np.arange(3))


def test_pytorch_tensors_need_no_conversion(torch):
    t = torch.arange(6.0).reshape(2, 3)
    equal(fnp.sum(t.T, axis=0), [3, 12])
    equal(fgrad.jit(lambda x: x * 2)(t), t.numpy() * 2)
    shared = fnp.from_dlpack(t)
    assert np.asarray(shared).ctypes.data == t.data_ptr()
    assert torch.from_dlpack(shared).data_ptr() == t.data_ptr()
    with pytest.raises(TypeError, match=r"exp: cannot make an array.*detach"):
        fnp.exp(torch.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match=r"from_dlpack: .*(?s:.)*fix: "):
        fnp.from_dlpack(torch.ones(2, dtype=torch.bfloat16))


def test_long_ranges_are_exact():
    np.testing.assert_array_equal(fnp.arange(2**53 - 3, 2**53), np.arange(2**53 - 3, 2**53))
    np.testing.assert_array_equal(fnp.arange(0, 100, 0.1), np.arange(0, 100, 0.1).astype(np.float32))


@given(
    st.integers(1, 5),
    st.integers(0, 13),
    st.integers(0, 13),
    st.sampled_from(["reflect", "symmetric", "wrap", "edge"]),
)
def test_padding_beyond_the_length(n, low, high, mode):
    x = np.arange(n)
    np.testing.assert_array_equal(fnp.pad(x, (low, high), mode), np.pad(x, (low, high), mode))


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: fnp.reshape(X, (5, -1)), "cannot hold"),
        (lambda: fnp.reshape(X, (5, 5)), "24 elements.*has 25"),
        (lambda: fnp.transpose(X, (0, 1)), "not a permutation"),
        (lambda: fnp.squeeze(X, 0), "length 2, not 1"),
        (lambda: fnp.concatenate([X, V]), "differ outside axis"),
        (lambda: fnp.concatenate([]), "non-empty list"),
        (lambda: fnp.stack([V, SQUARE]), "all shapes must be equal"),
        (lambda: fnp.split(V, 3), "does not divide"),
        (lambda: fnp.broadcast_to(X, (2, 3)), "cannot be broadcast to"),
        (lambda: fnp.swapaxes(X, 0, 3), "axis 3 is out of bounds"),
        (lambda: fnp.pad(X, 1, "median"), "mode='median' is not supported"),
        (lambda: fnp.pad(X, -1), "negative widths"),
        (lambda: fnp.zeros((2, -1)), "negative dimensions"),
        (lambda: fnp.zeros((2, 1.5)), "made of integers"),
    ],
)
def test_errors_say_what_and_where(call, text):
    with pytest.raises((ValueError, TypeError), match=text) as e:
        call()
    assert "test_shapes.py" in str(e.value)
