"""Losses and their gradients against PyTorch; labels and shapes that do not fit."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad.errors import FgradError

f32 = np.float32


def compare(torch, ours, theirs, x, rtol=1e-5, atol=1e-6):
    """Value and gradient in `x` of `ours(x)` and `theirs(tensor)`, eager and compiled."""
    tx = torch.tensor(x, requires_grad=True)
    expected = theirs(tx)
    seed = np.random.default_rng(1).normal(size=tuple(expected.shape)).astype(x.dtype)
    expected.backward(torch.tensor(seed))

    def scalar(v):
        y = ours(v)
        return fnp.sum(y * seed), y

    for f in (scalar, fgrad.jit(scalar)):
        (_, y), slope = fgrad.value_and_grad(f, has_aux=True)(x)
        np.testing.assert_allclose(np.asarray(y), expected.detach().numpy(), rtol=rtol, atol=atol)
        np.testing.assert_allclose(np.asarray(slope), tx.grad.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 2, 4), (5,)])
def test_cross_entropy(torch, rng, shape, reduction):
    x = (4 * rng.normal(size=shape)).astype(f32)
    labels = rng.integers(0, 5, size=(*shape[:1], *shape[2:]) if len(shape) > 1 else ())
    F = torch.nn.functional
    compare(
        torch,
        lambda v: nn.cross_entropy(v, labels, reduction=reduction),
        lambda t: F.cross_entropy(t, torch.tensor(labels), reduction=reduction),
        x,
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("probabilities", [False, True])
def test_cross_entropy_options(torch, rng, probabilities, smoothing, weighted, reduction):
    x = rng.normal(size=(6, 5, 3)).astype(f32)
    weight = rng.random(5).astype(f32) if weighted else None
    if probabilities:
        labels = np.exp(rng.normal(size=x.shape)).astype(f32)
        labels /= labels.sum(1, keepdims=True)
    else:
        labels = rng.integers(0, 5, size=(6, 3))
    options = {"label_smoothing": smoothing, "reduction": reduction}
    compare(
        torch,
        lambda v: nn.cross_entropy(v, labels, weight=weight, **options),
        lambda t: torch.nn.functional.cross_entropy(
            t, torch.tensor(labels), weight=None if weight is None else torch.tensor(weight), **options
        ),
        x,
    )


def test_cross_entropy_of_extreme_logits(torch):
    x = np.array([[1e4, 0, -1e4], [-np.inf, 0, 1], [88, 89, 90]], f32)
    labels = np.array([0, 1, 2])
    compare(
        torch,
        lambda v: nn.cross_entropy(v, labels, reduction="none"),
        lambda t: torch.nn.functional.cross_entropy(t, torch.tensor(labels), reduction="none"),
        x,
    )


def test_cross_entropy_in_half_precision(rng):
    x = rng.normal(size=(4, 1000)).astype(f32)
    labels = np.arange(4)
    half = nn.cross_entropy(fnp.asarray(x).astype("float16"), labels)
    assert half.dtype == np.float16
    assert abs(float(half) - float(nn.cross_entropy(x, labels))) < 0.02


@pytest.mark.parametrize("weighted", [False, True])
def test_nll(torch, rng, weighted):
    x = np.log(rng.random(size=(6, 5, 2))).astype(f32)
    labels = rng.integers(0, 5, size=(6, 2))
    weight = rng.random(5).astype(f32) if weighted else None
    compare(
        torch,
        lambda v: nn.nll(v, labels, weight=weight),
        lambda t: torch.nn.functional.nll_loss(
            t, torch.tensor(labels), weight=None if weight is None else torch.tensor(weight)
        ),
        x,
    )


REGRESSION = {
    "mse": (nn.mse, "mse_loss", {}),
    "l1": (nn.l1, "l1_loss", {}),
    "huber": (nn.huber, "huber_loss", {"delta": 0.7}),
    "smooth_l1": (nn.smooth_l1, "smooth_l1_loss", {"beta": 0.5}),
    "kl_div": (nn.kl_div, "kl_div", {}),
    "kl_div log": (nn.kl_div, "kl_div", {"log_target": True}),
}


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", REGRESSION)
def test_regression(torch, rng, name, reduction):
    ours, theirs, options = REGRESSION[name]
    x, y = rng.normal(size=(2, 4, 5)).astype(f32)
    if name == "kl_div":
        y = np.abs(y)
    compare(
        torch,
        lambda v: ours(v, y, reduction=reduction, **options),
        lambda t: getattr(torch.nn.functional, theirs)(t, torch.tensor(y), reduction=reduction, **options),
        x,
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bce(torch, rng, reduction):
    p, y = rng.random(size=(2, 4, 5)).astype(f32)
    y[0] = np.round(y[0])
    compare(
        torch,
        lambda v: nn.bce(v, y, reduction=reduction),
        lambda t: torch.nn.functional.binary_cross_entropy(t, torch.tensor(y), reduction=reduction),
        p,
        rtol=1e-4,
    )


def test_bce_at_0_and_1(torch):
    p, y = np.array([0, 1, 0, 1], f32), np.array([0, 1, 1, 0], f32)
    expected = torch.nn.functional.binary_cross_entropy(torch.tensor(p), torch.tensor(y), reduction="none")
    value, slope = fgrad.value_and_grad(lambda v: nn.bce(v, y, reduction="sum"))(p)
    np.testing.assert_allclose(float(value), expected.sum().item())
    assert np.isfinite(np.asarray(slope)).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_bce_with_logits(torch, rng, weighted):
    x, y = (5 * rng.normal(size=(4, 3))).astype(f32), rng.random(size=(4, 3)).astype(f32)
    x[0] = [0, 200, -200]
    weight = rng.random(3).astype(f32) + 1 if weighted else None
    compare(
        torch,
        lambda v: nn.bce_with_logits(v, y, pos_weight=weight, reduction="none"),
        lambda t: torch.nn.functional.binary_cross_entropy_with_logits(
            t, torch.tensor(y), pos_weight=None if weight is None else torch.tensor(weight), reduction="none"
        ),
        x,
    )


def test_label_outside_gives_nan_when_compiled():
    x = np.zeros((2, 3), f32)
    loss = fgrad.jit(lambda v, y: nn.cross_entropy(v, y, reduction="none"))(x, np.array([1, 3]))
    assert np.isnan(np.asarray(loss)).tolist() == [False, True]


def test_what_is_no_probability_gives_nan_when_compiled():
    p = np.array([0.5, 1.5, -0.5, np.nan], f32)
    loss = fgrad.jit(lambda v: nn.bce(v, np.ones(4, f32), reduction="none"))(p)
    assert np.isnan(np.asarray(loss)).tolist() == [False, True, True, True]


x23 = np.zeros((2, 3), f32)


@pytest.mark.parametrize(
    "call, text, fix",
    [
        (
            lambda: nn.cross_entropy(x23, np.array([1, 3])),
            "label 3 is not one of the 3 classes",
            "from 0 to 2",
        ),
        (lambda: nn.cross_entropy(x23, np.array([-1, 0])), "label -1", "from 0 to 2"),
        (lambda: nn.cross_entropy(x23, np.array([[1], [2]])), "need labels of shape", "reshape(-1)"),
        (
            lambda: nn.cross_entropy(x23, np.eye(3, dtype=int)[:2]),
            "need labels of shape",
            "argmax(labels, 1)",
        ),
        (lambda: nn.cross_entropy(x23, np.array([1, 2, 0])), "need labels of shape", "labels (N,)"),
        (
            lambda: nn.cross_entropy(x23, np.array([1.0, 2.0])),
            "shape of the logits",
            "labels.astype('int64')",
        ),
        (lambda: nn.cross_entropy(x23.astype(int), np.array([1, 2])), "floating point", "astype('float32')"),
        (
            lambda: nn.cross_entropy(x23, np.array([1, 2]), reduction="avg"),
            "reduction='avg'",
            "'mean', 'sum' or 'none'",
        ),
        (
            lambda: nn.cross_entropy(x23, np.array([1, 2]), weight=np.ones(2, f32)),
            "shape (3,)",
            "one factor for each",
        ),
        (lambda: nn.cross_entropy(x23, np.array([1, 2]), label_smoothing=2), "between 0 and 1", ""),
        (lambda: nn.nll(x23, np.array([1.0, 2.0])), "class numbers", "astype('int64')"),
        (lambda: nn.mse(np.zeros((4, 1), f32), np.zeros(4, f32)), "differ in shape", "pred.reshape((4,))"),
        (lambda: nn.mse(np.zeros(4, f32), np.zeros(4) * 1j), "complex128[4]", "real part"),
        (lambda: nn.mse(np.zeros(4, f32), "target"), "the target must be an array", "asarray"),
        (lambda: nn.cross_entropy(None, np.array([1])), "logits must be an array, got NoneType", "asarray"),
        (lambda: nn.huber(x23, x23, delta=-1), "delta=-1", "greater than 0"),
        (lambda: nn.smooth_l1(x23, x23, beta=-1), "beta=-1", "greater than 0"),
        (lambda: nn.bce(x23 - 2, x23), "-2 in float32[2,3] is not a probability", "bce_with_logits"),
        (lambda: nn.bce(x23, x23, weight=np.ones((3, 1), f32)), "does not broadcast", "prediction's shape"),
        (lambda: nn.bce_with_logits(x23, x23, pos_weight=np.ones(2)), "does not broadcast", "length 1"),
        (lambda: nn.bce(np.zeros((4, 1), f32), np.zeros((4, 2), f32)), "differ in shape", "one shape"),
    ],
)
def test_errors_say_what_to_do(call, text, fix):
    with pytest.raises(FgradError) as info:
        call()
    assert text in str(info.value)
    assert fix in str(info.value)
    assert "test_losses.py" in str(info.value)
