"""`fgrad.lax` against `jax.lax` and PyTorch: arguments in all their forms, and what is said about wrong ones."""

import numpy as np
import pytest

import fgrad
from fgrad import lax
from fgrad.errors import FgradError

f32 = np.float32


@pytest.mark.parametrize("strides", [1, 2, (2, 3)])
@pytest.mark.parametrize("padding", ["same", "valid", 1, (0, 2), ((1, 0), (2, 1))])
def test_conv_padding(jax, rng, padding, strides):
    x, w = rng.normal(size=(2, 3, 9, 8)).astype(f32), rng.normal(size=(4, 3, 4, 3)).astype(f32)
    pairs = {1: ((1, 1), (1, 1)), (0, 2): ((0, 0), (2, 2))}.get(padding, padding)
    theirs = jax.lax.conv_general_dilated(
        x,
        w,
        (strides, strides) if isinstance(strides, int) else strides,
        pairs.upper() if isinstance(pairs, str) else pairs,
    )
    ours = lax.conv(x, w, strides=strides, padding=padding)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=1e-5)


def test_conv_transpose_is_the_transpose(rng):
    x, w = rng.normal(size=(2, 3, 9, 8)).astype(f32), rng.normal(size=(4, 3, 4, 3)).astype(f32)
    y, pull = fgrad.vjp(lambda v: lax.conv(v, w, strides=2, padding=1), x)
    g = rng.normal(size=y.shape).astype(f32)
    back = lax.conv_transpose(g, w, strides=2, padding=1, output_padding=(1, 1))
    np.testing.assert_allclose(np.asarray(back), np.asarray(pull(g)[0]), rtol=1e-4, atol=1e-5)


def test_avg_pool_of_a_constant_is_the_constant():
    x = np.full((1, 2, 7, 5), 3.0, f32)
    y = lax.avg_pool(x, 3, strides=2, padding=1, count_include_pad=False)
    np.testing.assert_allclose(np.asarray(y), 3.0, rtol=1e-6)


def test_max_pool_with_offset():
    x = np.arange(16, dtype=f32).reshape(1, 1, 4, 4)[..., ::-1].copy()
    values, offset = lax.max_pool_with_offset(x, 2)
    assert np.asarray(values).ravel().tolist() == [7, 5, 15, 13]
    assert np.asarray(offset).ravel().tolist() == [2, 2, 2, 2]


def test_blocks(jax, rng):
    x, update = rng.normal(size=(5, 6)).astype(f32), rng.normal(size=(2, 3)).astype(f32)
    for at in [(0, 0), (2, 1), (4, 5), (-1, 3)]:
        np.testing.assert_array_equal(
            np.asarray(fgrad.jit(lambda i, j: lax.dynamic_slice(x, (i, j), (2, 3)))(*at)),
            np.asarray(jax.lax.dynamic_slice(x, [max(i, 0) for i in at], (2, 3))),
        )
        np.testing.assert_array_equal(
            np.asarray(lax.dynamic_update_slice(x, update, at)),
            np.asarray(jax.lax.dynamic_update_slice(x, update, [max(i, 0) for i in at])),
        )


def test_gather_and_scatter(rng):
    x = rng.normal(size=(5, 6, 2)).astype(f32)
    i, j = np.array([0, 4, -1]), np.array([1, 1, 5])
    np.testing.assert_array_equal(np.asarray(lax.gather(x, i)), x[i])
    np.testing.assert_array_equal(np.asarray(lax.gather(x, (i, j), (0, 1))), x[i, j])
    expected = x.copy()
    np.add.at(expected, (i, j), 1)
    ones = np.ones((3, 2), f32)
    np.testing.assert_allclose(np.asarray(lax.scatter(x, ones, (i, j), (0, 1), "add")), expected, rtol=1e-6)


def test_small_ones(rng):
    x = rng.random(5).astype(f32) + 0.1
    np.testing.assert_allclose(np.asarray(lax.rsqrt(x)), 1 / np.sqrt(x), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(lax.reciprocal(x)), 1 / x, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(lax.bitcast(x, "int32")), x.view(np.int32))
    np.testing.assert_array_equal(np.asarray(lax.iota((2, 3), 1)), [[0, 1, 2]] * 2)
    assert (np.asarray(fgrad.grad(lambda v: (v * lax.stop_gradient(v)).sum())(x)) == x).all()
    a, b = rng.normal(size=(4, 2, 3)).astype(f32), rng.normal(size=(4, 3, 5)).astype(f32)
    product = lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))))
    np.testing.assert_allclose(np.asarray(product), a @ b, rtol=1e-5, atol=1e-6)


x4, w4 = np.ones((2, 3, 5, 5), f32), np.ones((4, 3, 3, 3), f32)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: lax.conv(x4[0], w4), r"x\[None\]"),
        (lambda: lax.conv(x4.astype(np.float64), w4), r"x.astype\('float32'\)"),
        (lambda: lax.conv(x4[:, :2], w4), "2 input channels"),
        (lambda: lax.conv(x4, w4, padding="full"), "'same', 'valid'"),
        (lambda: lax.conv(x4, w4, strides=(1, 1, 1)), "3 entries for 2 spatial axes"),
        (lambda: lax.conv(x4, w4, strides=1.5), "must be an int or 2 ints"),
        (lambda: lax.conv(x4, w4, dilation=3), "spans 7"),
        (lambda: lax.max_pool(x4[0, 0], 2), r"x\[None\]"),
        (lambda: lax.avg_pool(x4.astype(int), 2), "floating dtype"),
        (lambda: lax.dynamic_slice(x4, (0, 1), (1, 1, 1, 1)), "4 start indices"),
        (lambda: lax.dynamic_slice(x4[0, 0], (0, 1.5), (1, 1)), "single integers"),
        (lambda: lax.gather(x4, np.ones(2, f32)), "must be integers"),
        (lambda: lax.gather(x4, np.array([7])), "out of bounds"),
    ],
)
def test_errors_say_what_to_do(call, text):
    with pytest.raises(FgradError, match=text) as info:
        call()
    assert "test_lax.py" in str(info.value)
