"""Gather and scatter: errors, duplicates and ties, against NumPy."""

import numpy as np
import pytest

import fgrad
from fgrad.array import from_numpy
from fgrad.ops.index import gather, scatter, take_along


def _idx(*values):
    return [from_numpy(np.array(v)) for v in values]


def test_gather_is_numpy_indexing():
    x = np.arange(24.0).reshape(2, 3, 4)
    i, j = np.array([[0, -1], [1, 0]]), np.array([[3, -4], [0, 1]])
    np.testing.assert_array_equal(
        np.asarray(gather(from_numpy(x), _idx(i, j), (0, 2))), x.transpose(0, 2, 1)[i, j]
    )
    np.testing.assert_array_equal(
        np.asarray(gather(from_numpy(x), _idx(j, i), (2, 0))), x.transpose(2, 0, 1)[j, i]
    )


def test_take_along_is_numpys():
    x, i = np.random.default_rng(0).normal(size=(3, 4)), np.array([[0, 3], [1, 1], [-1, 0]])
    got = take_along(from_numpy(x), from_numpy(i), 1)
    np.testing.assert_array_equal(np.asarray(got), np.take_along_axis(x, i, 1))


@pytest.mark.parametrize("bad", [5, -6, 2**40])
def test_out_of_bounds_names_axis_size_and_index(bad):
    x = from_numpy(np.zeros((2, 5)))
    with pytest.raises(fgrad.FgradIndexError, match=rf"index {bad} is out of bounds for axis 1 with size 5"):
        gather(x, _idx([0, bad, 1]), (1,))
    with pytest.raises(IndexError, match="axis 1 with size 5"):
        scatter(x, from_numpy(np.zeros((1, 2))), _idx([bad]), (1,))


def test_indices_into_nothing():
    empty = from_numpy(np.zeros((0, 3)))
    assert gather(empty, [from_numpy(np.zeros((0,), np.int64))], (0,)).shape == (0, 3)
    with pytest.raises(fgrad.FgradIndexError, match="size 0"):
        gather(empty, _idx([0]), (0,))


def test_wrong_types_are_named():
    x = from_numpy(np.zeros((2, 5)))
    with pytest.raises(fgrad.FgradTypeError, match="int64"):
        gather(x, [from_numpy(np.zeros(2, np.int32))], (1,))
    with pytest.raises(fgrad.FgradTypeError, match=r"float64\[3,2\]"):
        scatter(x, from_numpy(np.zeros((3, 3))), _idx([0, 1, 2]), (1,))
    with pytest.raises(fgrad.FgradValueError, match="'sub'"):
        scatter(x, from_numpy(np.zeros((1, 2))), _idx([0]), (1,), "sub")


def test_duplicates():
    x, u, i = np.ones(4), np.array([2.0, 3.0, 5.0, 7.0]), np.array([1, -3, 0, 1])
    want = {
        "set": [5, 7, 1, 1],
        "add": [6, 13, 1, 1],
        "mul": [5, 42, 1, 1],
        "minimum": [1, 1, 1, 1],
        "maximum": [5, 7, 1, 1],
    }
    for mode, values in want.items():
        np.testing.assert_array_equal(
            np.asarray(scatter(from_numpy(x), from_numpy(u), _idx(i), (0,), mode)), values
        )


def test_gradient_of_set_goes_to_the_last_duplicate():
    """`jax.lax.scatter` leaves the order open; here the last one wins, forwards and backwards, however it is written."""
    x, u = from_numpy(np.zeros(3)), from_numpy(np.array([1.0, 2.0, 3.0]))
    _, pull = fgrad.vjp(lambda x, u: scatter(x, u, _idx([1, -2, 0]), (0,)), x, u)
    dx, du = pull(from_numpy(np.array([10.0, 20.0, 30.0])))
    np.testing.assert_array_equal(np.asarray(dx), [0, 0, 30])
    np.testing.assert_array_equal(np.asarray(du), [0, 20, 10])


def test_ties_share_the_gradient():
    x, u = from_numpy(np.array([2.0, 0.0])), from_numpy(np.array([2.0, 2.0, 1.0]))
    _, pull = fgrad.vjp(lambda x, u: scatter(x, u, _idx([0, 0, 0]), (0,), "maximum"), x, u)
    dx, du = pull(from_numpy(np.array([3.0, 5.0])))
    np.testing.assert_allclose(np.asarray(dx), [1, 5])
    np.testing.assert_allclose(np.asarray(du), [1, 1, 0])
