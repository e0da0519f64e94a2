"""Convolutions and pooling, values and gradients, against PyTorch; transposed convolution; errors."""

import itertools

import numpy as np
import pytest

import fgrad
from fgrad.array import from_numpy
from fgrad.ops.conv import conv, conv_input_grad
from fgrad.ops.pool import max_pool, sum_pool

_rng = np.random.default_rng(4)

CONVOLUTIONS = [
    # spatial, kernel, strides, padding, dilation, groups
    ((9,), (3,), (1,), (0,), (1,), 1),
    ((9,), (4,), (3,), (2,), (2,), 3),
    ((8, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((8, 7), (3, 2), (2, 3), (1, 0), (1, 2), 2),
    ((6, 6), (1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((6, 6), (5, 5), (1, 1), (2, 2), (1, 1), 6),
    ((5, 4, 6), (2, 3, 2), (1, 2, 2), (1, 1, 0), (2, 1, 1), 1),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv_and_gradients(case, torch):
    spatial, kernel, strides, padding, dilation, groups = case
    x, w = _rng.normal(size=(2, 6, *spatial)), _rng.normal(size=(12, 6 // groups, *kernel))
    pads = [(p, p) for p in padding]
    y, pull = fgrad.vjp(
        lambda x, w: conv(x, w, strides, pads, dilation, groups), from_numpy(x), from_numpy(w)
    )
    ct = _rng.normal(size=y.shape)
    dx, dw = pull(from_numpy(ct))
    xt, wt = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    f = getattr(torch.nn.functional, f"conv{len(spatial)}d")
    yt = f(xt, wt, None, strides, padding, dilation, groups)
    yt.backward(torch.tensor(ct))
    np.testing.assert_allclose(np.asarray(y), yt.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(np.asarray(dx), xt.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(np.asarray(dw), wt.grad.numpy(), atol=1e-12)


def test_double_backward(torch):
    x, w = _rng.normal(size=(2, 4, 6, 5)), _rng.normal(size=(6, 2, 3, 2))
    at = ((2, 1), ((1, 1), (0, 0)), (1, 1), 2)

    def penalty(x, w):
        gx, gw = fgrad.grad(lambda x, w: (conv(x, w, *at) ** 3).sum(), (0, 1))(x, w)
        return (gx**2).sum() + (gw**2).sum()

    got = fgrad.grad(penalty, (0, 1))(from_numpy(x), from_numpy(w))
    xt, wt = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    y = (torch.nn.functional.conv2d(xt, wt, None, (2, 1), (1, 0), 1, 2) ** 3).sum()
    gx, gw = torch.autograd.grad(y, (xt, wt), create_graph=True)
    want = torch.autograd.grad((gx**2).sum() + (gw**2).sum(), (xt, wt))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), b.numpy(), rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_transposed_convolution(torch):
    g, w = _rng.normal(size=(2, 4, 5, 3)), _rng.normal(size=(4, 3, 3, 2))
    want = torch.nn.functional.conv_transpose2d(
        torch.tensor(g), torch.tensor(w), None, (2, 3), (1, 0), (1, 2), 1, (1, 1)
    ).numpy()
    got = conv_input_grad(from_numpy(g), from_numpy(w), want.shape[2:], (2, 3), ((1, 1), (0, 0)), (1, 1), 1)
    np.testing.assert_allclose(np.asarray(got), want, atol=1e-12)


def test_half_precision_accumulates_in_single():
    x, w = np.full((1, 4096, 1), 1.0, np.float16), np.full((1, 4096, 1), 0.5, np.float16)
    y = conv(from_numpy(x), from_numpy(w), (1,), ((0, 0),), (1,))
    assert y.dtype == np.float16 and float(np.asarray(y)[0, 0, 0]) == 2048.0


POOLS = [
    ((8,), (3,), (2,), (1,)),
    ((6, 8), (2, 2), (2, 2), (0, 0)),
    ((7, 8), (3, 2), (2, 1), (1, 1)),
    ((7, 7), (3, 3), (1, 1), (1, 1)),
    ((4, 5, 6), (2, 3, 2), (2, 1, 3), (1, 0, 0)),
]


@pytest.mark.parametrize(("kind", "case"), list(itertools.product(["max", "sum"], POOLS)), ids=str)
def test_pool_and_gradient(kind, case, torch):
    spatial, window, strides, padding = case
    x = _rng.normal(size=(2, 3, *spatial))
    pads = [(p, p) for p in padding]
    functional, n = torch.nn.functional, len(spatial)
    xt = torch.tensor(x, requires_grad=True)
    if kind == "max":
        y, pull = fgrad.vjp(lambda x: max_pool(x, window, strides, pads)[0], from_numpy(x))
        yt = getattr(functional, f"max_pool{n}d")(xt, window, strides, padding)
    else:
        y, pull = fgrad.vjp(lambda x: sum_pool(x, window, strides, pads), from_numpy(x))
        yt = getattr(functional, f"avg_pool{n}d")(xt, window, strides, padding) * np.prod(window)
    ct = _rng.normal(size=y.shape)
    yt.backward(torch.tensor(ct))
    np.testing.assert_allclose(np.asarray(y), yt.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.asarray(pull(from_numpy(ct))[0]), xt.grad.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("window", "strides"), [((3, 3), (1, 1)), ((3, 3), (2, 2)), ((2, 2), (2, 2))])
def test_padding_is_never_the_maximum(window, strides, jit, torch):
    """Where a window holds nothing but -inf, its first element inside the input is chosen."""
    x = np.full((1, 1, 5, 5), -np.inf)
    x[0, 0, 2, 2], x[0, 0, 4, 4] = 1, np.nan
    t = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.max_pool2d(t, window, strides, 1)
    ct = torch.arange(1.0, y.numel() + 1, dtype=torch.float64).reshape(y.shape)
    y.backward(ct)

    def gradient(x, ct):
        return fgrad.vjp(lambda x: max_pool(x, window, strides, ((1, 1), (1, 1)))[0], x)[1](ct)[0]

    got = (fgrad.jit(gradient) if jit else gradient)(from_numpy(x), from_numpy(ct.numpy()))
    np.testing.assert_array_equal(np.asarray(got), t.grad.numpy())


def test_errors_name_the_numbers():
    x, w = from_numpy(np.zeros((1, 4, 5, 5), np.float32)), from_numpy(np.zeros((6, 4, 3, 3), np.float32))
    one, none = (1, 1), ((0, 0), (0, 0))
    with pytest.raises(fgrad.FgradTypeError, match=r"groups=2"):
        conv(x, w, one, none, one, 2)
    with pytest.raises(fgrad.FgradValueError, match="spans 9 elements, the padded input has 5"):
        conv(x, w, one, none, (4, 4))
    with pytest.raises(fgrad.FgradTypeError, match="need 2 entries"):
        conv(x, w, (1,), none, one)
    with pytest.raises(fgrad.FgradValueError, match="must be positive"):
        max_pool(x, (2, 2), (0, 2), none)
