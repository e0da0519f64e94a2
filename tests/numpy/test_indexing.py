"""x[index] and x.at[index] against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fgrad
import fgrad.numpy as fnp

X = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
MASK = X[:, :, 0, 0] % 40 < 30

INDICES = {
    "int": 1,
    "negative": -1,
    "ints": (1, 2),
    "all ints": (1, 2, 3, 4),
    "slice": np.s_[1:],
    "slices": np.s_[:, 1:3, ::2],
    "negative step": np.s_[::-1, :, 3:0:-2],
    "negative bounds": np.s_[-1:, -3:-1],
    "empty slice": np.s_[:, 2:1],
    "beyond": np.s_[:, 1:100],
    "ellipsis": np.s_[..., 1],
    "ellipsis in the middle": np.s_[0, ..., 1:3],
    "ellipsis of nothing": np.s_[0, 1, ..., 2, 3],
    "only an ellipsis": np.s_[...],
    "None": np.s_[None, :, None, 1],
    "None at the end": np.s_[..., None],
    "list": [1, 0, 1],
    "nested list": [[1, 0], [0, 0]],
    "empty list": [],
    "array": np.array([0, 1, -1]),
    "array after slices": np.s_[:, :, [0, 3, 3]],
    "adjacent arrays": np.s_[:, [0, 2], [1, 3]],
    "broadcast arrays": np.s_[:, [[0], [2]], [1, 3, 0]],
    "arrays apart": np.s_[[0, 1], :, [1, 3]],
    "arrays apart, in front": np.s_[:, [0, 1], :, [1, 3]],
    "array and int": np.s_[:, [0, 1], 2],
    "int apart from an array": np.s_[0, :, [1, 3]],
    "arrays around None": np.s_[:, [0, 1], None, [1, 3]],
    "None before arrays": np.s_[None, :, [0, 1], [1, 3]],
    "array and negative step": np.s_[::-1, [0, 2], 1:3],
    "0-d array": np.array(1),
    "0-d array and slice": np.s_[:, np.array(1)],
    "mask": MASK,
    "mask of everything": X > 50,
    "mask and slice": np.s_[MASK, 1:],
    "mask of one axis": np.s_[:, np.array([True, False, True])],
    "mask and array": np.s_[np.array([True, True]), [0, 2]],
    "True": True,
    "False": False,
    "True and array": np.s_[True, [0, 1]],
    "numpy integer": np.int8(1),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
def test_getitem(index):
    expected = X[index]
    ours = fnp.array(X)[index]
    assert ours.shape == expected.shape
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
@pytest.mark.parametrize("mode", ["set", "add", "mul", "min", "max"])
def test_at(index, mode):
    rng = np.random.default_rng(1)
    values = rng.integers(-50, 50, X[index].shape).astype(np.float32)
    expected = X.copy()
    if mode == "set":
        expected[index] = values
    else:
        ufunc = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}[mode]
        ufunc.at(expected, index, values)
    x = fnp.array(X)
    np.testing.assert_array_equal(getattr(x.at[index], mode)(values), expected)
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
def test_scalars_written_and_elements_changed_by_a_function(index):
    expected = X.copy()
    expected[index] = 7
    np.testing.assert_array_equal(fnp.array(X).at[index].set(7), expected)
    changed = X.copy()
    changed[index] = X[index] * 2 + 1
    np.testing.assert_array_equal(fnp.array(X).at[index].apply(lambda v: v * 2 + 1), changed)
    np.testing.assert_array_equal(fnp.array(X).at[index].get(), X[index])


@pytest.mark.parametrize("index", [k for k in INDICES if "mask" not in k])
def test_derivatives_of_reading_and_writing(index):
    index = INDICES[index]
    w = np.random.default_rng(2).standard_normal(X[index].shape).astype(np.float32)
    gradient = fgrad.grad(lambda x: (x[index] * w).sum())(fnp.array(X))
    expected = np.zeros_like(X)
    np.add.at(expected, index, w)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    # A write followed by a read of the same places hands the values through, so their gradient is the weights
    # (of values that were overwritten by later ones: zero).
    dv = fgrad.grad(lambda v: (fnp.array(X).at[index].set(v)[index] * w).sum())(fnp.zeros(w.shape))
    if np.unique(np.arange(X.size).reshape(X.shape)[index]).size == w.size:
        np.testing.assert_allclose(dv, w, rtol=1e-6)


@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4), st.data())
def test_basic_indexing(shape, data):
    x = np.arange(np.prod(shape)).reshape(shape)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    expected = x[index]
    np.testing.assert_array_equal(fnp.array(x)[index], expected)
    changed = x.copy()
    changed[index] = -1
    np.testing.assert_array_equal(fnp.array(x).at[index].set(-1), changed)
    added = x.copy()
    added[index] += 5
    np.testing.assert_array_equal(fnp.array(x).at[index].add(5), added)


@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4), st.data())
def test_indexing_by_arrays(shape, data):
    x = np.arange(np.prod(shape)).reshape(shape)
    arrays = data.draw(
        hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=3))
    )
    items = list(arrays)
    for k in range(len(items)):  # some of them become slices or integers
        kind = data.draw(st.sampled_from(["array", "array", "slice", "int"]))
        if kind == "slice":
            items[k] = data.draw(st.slices(shape[k]))
        elif kind == "int":
            items[k] = data.draw(st.integers(-shape[k], shape[k] - 1))
    if data.draw(st.booleans()):
        items.insert(data.draw(st.integers(0, len(items))), None)
    index = tuple(items)
    np.testing.assert_array_equal(fnp.array(x)[index], x[index])
    if x[index].size:
        changed = x.copy()
        np.add.at(changed, index, 3)
        np.testing.assert_array_equal(fnp.array(x).at[index].add(3), changed)


def test_values_broadcast_and_take_the_arrays_dtype():
    x = fnp.zeros((3, 4), "int32")
    y = x.at[1:, :].set([1.7, 2, 3, 4])
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, [[0, 0, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4]])
    np.testing.assert_array_equal(x.at[0].set(np.ones((1, 4)))[0], np.ones(4))
    np.testing.assert_array_equal(x.at[0].add(2).at[0].multiply(3).at[0].subtract(1)[0], [5] * 4)
    np.testing.assert_array_equal(fnp.ones(3).at[1].divide(4), [1, 0.25, 1])
    np.testing.assert_array_equal(fnp.full(3, 3.0).at[1].power(2), [3, 9, 3])


def test_bools_are_written():
    x = fnp.zeros((3, 4), bool)
    assert x.at[1, 2].set(True).sum() == 1
    assert x.at[[0, 0], [1, 2]].add(True).sum() == 2
    assert x.at[1:].max(True).sum() == 8


@pytest.mark.parametrize(
    "index, error",
    [
        (2, "out of bounds for axis 0 with size 2"),
        ((0, -4), "out of bounds for axis 1 with size 3"),
        ((0, 0, 0, 0, 0), "too many indices"),
        ((..., ...), "single ellipsis"),
        ([0, 5], "index 5 is out of bounds"),
        (np.array([0.5]), "must be of integers or bools"),
        (0.5, "not an index"),
        ("a", "not an index"),
        (np.array([True, False, True]), "did not match indexed array along axis 0; size of axis is 2"),
        (([0, 1], [0, 1, 2]), "cannot be broadcast"),
    ],
)
def test_errors(index, error):
    with pytest.raises((IndexError, ValueError), match=error):
        fnp.array(X)[index]


def test_values_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"values of shape \(3,\) do not broadcast"):
        fnp.zeros((2, 4)).at[0].set(fnp.ones(3))


def test_traced_indices():
    x = fnp.array(X)
    pick = fgrad.jit(lambda x, i: x[i, :, i + 1, ::2])
    np.testing.assert_array_equal(pick(x, 1), X[1, :, 2, ::2])
    np.testing.assert_array_equal(pick(x, -2), X[-2, :, -1, ::2])
    rows = fgrad.jit(lambda x, i: x[:, i])
    np.testing.assert_array_equal(rows(x, fnp.array([2, 0])), X[:, [2, 0]])
    put = fgrad.jit(lambda x, i, v: x.at[i, 1].set(v))
    expected = X.copy()
    expected[1, 1] = 5
    np.testing.assert_array_equal(put(x, 1, 5.0), expected)


def test_masks_under_jit():
    x = fnp.array([1.0, -2.0, 3.0])
    with pytest.raises(TypeError, match="where"):
        fgrad.jit(lambda x: x[x > 0])(x)
    np.testing.assert_array_equal(fgrad.jit(lambda x: x.at[x < 0].set(0))(x), [1, 0, 3])
    np.testing.assert_array_equal(fgrad.grad(lambda x: (x[x > 0] ** 2).sum())(x), [2, 0, 6])


def test_iteration_length_and_containment():
    x = fnp.array(X[0, :, :, 0])
    assert len(x) == 3
    np.testing.assert_array_equal([np.asarray(r) for r in x], X[0, :, :, 0])
    assert 20 in x and -1 not in x
    np.testing.assert_allclose(fgrad.grad(lambda x: sum(r[0] ** 2 for r in x))(x)[:, 0], 2 * X[0, :, 0, 0])
    with pytest.raises(TypeError, match="iterated"):
        iter(fnp.array(1.0))


def test_take_and_take_along_axis():
    i = np.array([[2, 0], [-1, 1]])
    for axis in (0, 1, 2, 3, -1):
        bound = X.shape[axis]
        np.testing.assert_array_equal(fnp.take(X, i % bound, axis), np.take(X, i % bound, axis))
        np.testing.assert_array_equal(
            fnp.take(X, i + 3, axis, mode="wrap"), np.take(X, i + 3, axis, mode="wrap")
        )
        np.testing.assert_array_equal(
            fnp.take(X, i * 5, axis, mode="clip"), np.take(X, i * 5, axis, mode="clip")
        )
        order = np.argsort(-X, axis)
        np.testing.assert_array_equal(fnp.take_along_axis(X, order, axis), np.take_along_axis(X, order, axis))
        top = X.argmax(axis, keepdims=True)
        expected = X.copy()
        np.put_along_axis(expected, top, -1, axis)
        np.testing.assert_array_equal(fnp.put_along_axis(X, top, -1, axis), expected)
    np.testing.assert_array_equal(fnp.take(X, [5, 7]), np.take(X, [5, 7]))
    with pytest.raises(IndexError, match="out of bounds"):
        fnp.take(X, [9], 0)
