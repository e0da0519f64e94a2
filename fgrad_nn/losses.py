"""Losses, with PyTorch's definitions.

All take floating point arrays and return an array of the prediction's dtype. `reduction` is "mean" (over what PyTorch averages over), "sum"
or "none": a scalar, a scalar, or one loss for each element or label. Shapes are never broadcast against each other: predictions and
targets that differ in shape are an `FgradTypeError`, values out of range (labels, probabilities, `reduction`) an `FgradValueError`.

The label's logit is picked by comparing class numbers with the label and summing, not by indexing: the comparison is element-wise
and fuses with the log-sum-exp into one pass over each row, and its gradient, softmax - onehot, is dense anyway. A gather would need
a scatter of its own in the backward pass.
"""

from __future__ import annotations

from typing import Any

import fgrad.numpy as fnp
from fgrad import Array, lax
from fgrad.errors import FgradTypeError, FgradValueError, describe, message
from fgrad.special import softplus
from fgrad_nn.values import known

__all__ = ["bce", "bce_with_logits", "cross_entropy", "huber", "kl_div", "l1", "mse", "nll", "smooth_l1"]


def _reduced(call: str, losses: Array, reduction: str, weight: Array | None = None) -> Array:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return fnp.sum(losses)
    if reduction == "mean":
        return fnp.mean(losses) if weight is None else fnp.sum(losses) / fnp.sum(weight)
    raise FgradValueError(message(call, f"reduction={reduction!r}", "use 'mean', 'sum' or 'none'"))


def _array(call: str, name: str, x: Any) -> Any:
    try:
        return fnp.asarray(x)
    except (TypeError, ValueError) as e:
        problem = f"{name} must be an array, got {describe(x)}"
        raise FgradTypeError(message(call, problem, "convert it with fgrad.numpy.asarray")) from e


def _float(call: str, name: str, x: Any) -> Any:
    x = _array(call, name, x)
    if x.dtype.kind in "iubc":
        problem = f"{name} must be real floating point, got {describe(x)}"
        fix = (
            "take its real part, or its absolute value"
            if x.dtype.kind == "c"
            else "convert: x.astype('float32')"
        )
        raise FgradTypeError(message(call, problem, fix))
    return x


# ------------------------------------------------------------------------------------------------ classes


def _class_axis(x: Array) -> int:
    return 1 if x.ndim > 1 else 0


def _check_labels(call: str, x: Array, labels: Array, axis: int) -> None:
    """Labels fit the scores; out of range is an error where their values are known."""
    expected = (*x.shape[:axis], *x.shape[axis + 1 :])
    if labels.shape != expected:
        if labels.ndim == len(expected) + 1 and labels.shape[-1] == 1:
            hint = "drop the last axis: labels.reshape(-1)"
        elif labels.shape == x.shape:
            hint = "for one-hot labels pass floats (probabilities), or class numbers: fgrad.numpy.argmax(labels, 1)"
        else:
            hint = "scores are (N, C) or (N, C, ...), labels (N,) or (N, ...)"
        raise FgradTypeError(
            message(
                call, f"scores {describe(x)} need labels of shape {expected}, got {describe(labels)}", hint
            )
        )
    values = known(labels)
    if values is None:
        return
    outside = values[(values < 0) | (values >= x.shape[axis])]
    if outside.size:
        bad = outside.flat[0]
        raise FgradValueError(
            message(
                call,
                f"label {bad} is not one of the {x.shape[axis]} classes",
                f"class numbers run from 0 to {x.shape[axis] - 1}",
            )
        )


def _picked(x: Array, labels: Array, axis: int) -> Array:
    """x at the label along `axis`; NaN where the label is no class, so that a mistake under `jit` shows."""
    number = lax.iota(x.shape, axis, like=x)
    chosen = fnp.where(number == fnp.expand_dims(labels, axis), x, 0)
    inside = (labels >= 0) & (labels < x.shape[axis])
    return fnp.where(inside, fnp.sum(chosen, axis=axis), float("nan"))


def _of_labels(weight: Any, labels: Array, dtype: Any) -> Array:
    """The class weight of each label."""
    table = fnp.asarray(weight).astype(dtype)
    wide = (*labels.shape, table.shape[0])
    mine = lax.iota(wide, labels.ndim, like=labels) == fnp.expand_dims(labels, labels.ndim)
    return fnp.sum(fnp.where(mine, table, 0), axis=-1)


def _along(weight: Any, x: Array, axis: int, call: str) -> Array:
    table = fnp.asarray(weight).astype(x.dtype)
    if table.shape != (x.shape[axis],):
        raise FgradTypeError(
            message(
                call,
                f"weight must have shape ({x.shape[axis]},), got {describe(table)}",
                "give one factor for each class",
            )
        )
    return table.reshape((-1, *[1] * (x.ndim - axis - 1)))


def cross_entropy(
    logits: Any, labels: Any, *, weight: Any = None, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Array:
    """-log softmax(logits) at the label.

    Args:
        logits: (N, C), (N, C, ...) or (C,): unnormalised scores.
        labels: class numbers, of the shape of `logits` without the class axis; or probabilities, floats of the shape of `logits`.
        weight: (C,), a factor for each class; the mean is then weighted.
        label_smoothing: this much of the label's probability is spread evenly over all classes.

    Returns:
        A scalar, or with `reduction="none"` an array of the shape of `logits` without the class axis; of the logits' dtype.

    Raises:
        FgradTypeError: shapes or dtypes that do not fit.
        FgradValueError: a label that is no class. Under `jit`, where labels cannot be seen, such a label gives NaN.
    """
    call = "cross_entropy"
    x, labels = _float(call, "logits", logits), _array(call, "labels", labels)
    if x.ndim == 0:
        raise FgradTypeError(message(call, f"logits need a class axis, got {describe(x)}"))
    if not 0 <= label_smoothing <= 1:
        raise FgradValueError(message(call, f"label_smoothing={label_smoothing} must lie between 0 and 1"))
    axis, out = _class_axis(x), x.dtype
    x = (
        x if x.dtype.itemsize >= 4 else x.astype("float32")
    )  # sums of exponentials need more than half precision
    top = lax.stop_gradient(fnp.max(x, axis=axis, keepdims=True))
    total = fnp.log(fnp.sum(fnp.exp(x - top), axis=axis)) + fnp.squeeze(top, axis)  # log-sum-exp
    classes = x.shape[axis]
    if labels.dtype.kind not in "iu":
        if labels.shape != x.shape:
            raise FgradTypeError(
                message(
                    call,
                    f"probabilities must have the shape of the logits {describe(x)}, got {describe(labels)}",
                    "class numbers must be integers: labels.astype('int64')",
                )
            )
        share = labels.astype(x.dtype) * (1 - label_smoothing) + label_smoothing / classes
        if weight is not None:
            share = share * _along(weight, x, axis, call)
        losses = fnp.sum(share * (fnp.expand_dims(total, axis) - x), axis=axis)
        return _reduced(call, losses, reduction).astype(out)
    _check_labels(call, x, labels, axis)
    own = total - _picked(x, labels, axis)
    each = None
    if weight is not None:
        factor = _along(weight, x, axis, call)
        each = _of_labels(weight, labels, x.dtype)
        own = own * each
    if label_smoothing:
        spread = fnp.expand_dims(total, axis) - x
        even = fnp.sum(spread if weight is None else spread * factor, axis=axis)
        own = own * (1 - label_smoothing) + even * (label_smoothing / classes)
    return _reduced(call, own, reduction, each).astype(out)


def nll(log_probs: Any, labels: Any, *, weight: Any = None, reduction: str = "mean") -> Array:
    """-log_probs at the label: the cross entropy of log-probabilities (N, C), (N, C, ...) or (C,)."""
    x, labels = _float("nll", "log_probs", log_probs), _array("nll", "labels", labels)
    if labels.dtype.kind not in "iu":
        raise FgradTypeError(
            message(
                "nll",
                f"labels must be class numbers, got {describe(labels)}",
                "convert: labels.astype('int64')",
            )
        )
    axis = _class_axis(x)
    _check_labels("nll", x, labels, axis)
    own = -_picked(x, labels, axis)
    if weight is None:
        return _reduced("nll", own, reduction)
    _along(weight, x, axis, "nll")
    each = _of_labels(weight, labels, x.dtype)
    return _reduced("nll", own * each, reduction, each)


# ------------------------------------------------------------------------------------------------ numbers


def _pair(call: str, pred: Any, target: Any) -> tuple[Array, Array]:
    x, y = _float(call, "the prediction", pred), _array(call, "the target", target)
    if y.dtype.kind == "c":
        raise FgradTypeError(message(call, f"the target is {describe(y)}", "take its real part"))
    if x.shape != y.shape:
        hint = "broadcasting would compare every prediction with every target: give them one shape"
        if x.size == y.size:
            hint += f", as in pred.reshape({y.shape})"
        raise FgradTypeError(
            message(call, f"prediction {describe(x)} and target {describe(y)} differ in shape", hint)
        )
    return x, y.astype(x.dtype)


def _factor(call: str, name: str, value: Any, x: Array) -> Any:
    """Factors of the elements of `x`; they may not make the loss any larger than it."""
    value = _array(call, name, value)
    fits = value.ndim <= x.ndim and all(n in (1, m) for n, m in zip(value.shape[::-1], x.shape[::-1]))
    if not fits:
        problem = f"{name} {describe(value)} does not broadcast to the prediction {describe(x)}"
        raise FgradTypeError(message(call, problem, "give it the prediction's shape, or axes of length 1"))
    return value.astype(x.dtype)


def _positive(call: str, name: str, value: float) -> None:
    if not value > 0:
        raise FgradValueError(message(call, f"{name}={value!r}", f"{name} must be greater than 0"))


def mse(pred: Any, target: Any, *, reduction: str = "mean") -> Array:
    """(pred - target)² of two arrays of one shape; the target may be of integers."""
    x, y = _pair("mse", pred, target)
    return _reduced("mse", fnp.square(x - y), reduction)


def l1(pred: Any, target: Any, *, reduction: str = "mean") -> Array:
    """|pred - target| of two arrays of one shape; the target may be of integers."""
    x, y = _pair("l1", pred, target)
    return _reduced("l1", fnp.abs(x - y), reduction)


def huber(pred: Any, target: Any, *, delta: float = 1.0, reduction: str = "mean") -> Array:
    """d² / 2 up to |d| = delta, from there on delta * (|d| - delta / 2), for d = pred - target, two arrays of one shape."""
    _positive("huber", "delta", delta)
    x, y = _pair("huber", pred, target)
    d = fnp.abs(x - y)
    return _reduced("huber", fnp.where(d < delta, 0.5 * d * d, delta * (d - 0.5 * delta)), reduction)


def smooth_l1(pred: Any, target: Any, *, beta: float = 1.0, reduction: str = "mean") -> Array:
    """`huber` divided by its delta."""
    if beta == 0:
        return l1(pred, target, reduction=reduction)
    _positive("smooth_l1", "beta", beta)
    x, y = _pair("smooth_l1", pred, target)
    d = fnp.abs(x - y)
    return _reduced("smooth_l1", fnp.where(d < beta, 0.5 / beta * d * d, d - 0.5 * beta), reduction)


def bce(probs: Any, target: Any, *, weight: Any = None, reduction: str = "mean") -> Array:
    """Binary cross entropy of probabilities: -(y log p + (1 - y) log(1 - p)), each logarithm at least -100.

    Targets are 0 to 1. A probability outside of 0 to 1 is an error; under `jit`, where it cannot be seen, it gives NaN.
    """
    p, y = _pair("bce", probs, target)
    values = known(p)
    if values is not None and ((values < 0) | (values > 1)).any():
        bad = values[(values < 0) | (values > 1)].flat[0]
        problem = f"{bad:g} in {describe(p)} is not a probability"
        raise FgradValueError(message("bce", problem, "apply nn.sigmoid, or better use bce_with_logits"))

    def log(v: Array) -> Array:
        small = v <= 1e-38
        return fnp.where(small, -100.0, fnp.log(fnp.where(small, 1, v)))

    losses = -(y * log(p) + (1 - y) * log(1 - p))
    losses = fnp.where((p >= 0) & (p <= 1), losses, float("nan"))
    return _reduced(
        "bce", losses if weight is None else losses * _factor("bce", "weight", weight, p), reduction
    )


def bce_with_logits(
    logits: Any, target: Any, *, weight: Any = None, pos_weight: Any = None, reduction: str = "mean"
) -> Array:
    """`bce` of sigmoid(logits), without overflow. `pos_weight` multiplies the loss of positive targets."""
    call = "bce_with_logits"
    x, y = _pair(call, logits, target)
    factor = 1 if pos_weight is None else 1 + (_factor(call, "pos_weight", pos_weight, x) - 1) * y
    losses = (1 - y) * x + factor * softplus(-x)
    return _reduced(
        call, losses if weight is None else losses * _factor(call, "weight", weight, x), reduction
    )


def kl_div(log_probs: Any, target: Any, *, log_target: bool = False, reduction: str = "mean") -> Array:
    """target * (log target - log_probs), as PyTorch has it: the first argument is log-probabilities, the mean over all elements.

    `reduction="batchmean"` divides the sum by the batch size: the mathematical definition.
    """
    x, y = _pair("kl_div", log_probs, target)
    if log_target:
        losses = fnp.exp(y) * (y - x)
    else:
        none = y <= 0
        log_y = fnp.log(fnp.where(none, 1, y))
        losses = fnp.where(none, 0, y * (log_y - x))
    if reduction == "batchmean":
        if x.ndim == 0:
            raise FgradTypeError(message("kl_div", f"{describe(x)} has no batch axis", "use reduction='sum'"))
        return fnp.sum(losses) / x.shape[0]
    return _reduced("kl_div", losses, reduction)
