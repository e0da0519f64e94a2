"""The operations below `fgrad.numpy` that are worth calling by name: convolution, pooling, blocks at computed positions.

Thin public forms of the primitives: arguments are normalised (one number stands for every axis) and checked here.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array, promote
from fgrad.device import beside, constant
from fgrad.errors import FgradTypeError, FgradValueError, describe, message
from fgrad.ops import contract, elementwise, index, pool, structure, transcendental
from fgrad.ops import conv as conv_ops
from fgrad.ops.builders import full_like
from fgrad.ops.conv import conv_spatial

__all__ = [
    "avg_pool",
    "bitcast",
    "conv",
    "conv_transpose",
    "dot_general",
    "dynamic_slice",
    "dynamic_update_slice",
    "gather",
    "iota",
    "max_pool",
    "max_pool_with_offset",
    "reciprocal",
    "rsqrt",
    "scatter",
    "stop_gradient",
    "sum_pool",
]

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]

# ------------------------------------------------------------------------------------------------ arguments


def _ints(call: str, name: str, value: Any, n: int) -> Ints:
    """One int for each of `n` spatial axes."""
    try:
        if isinstance(value, (tuple, list)):
            values = tuple(map(operator.index, value))
        else:
            values = (operator.index(value),) * n
    except TypeError as e:
        raise FgradTypeError(
            message(call, f"{name} must be an int or {n} ints, got {describe(value)}")
        ) from e
    if len(values) != n:
        raise FgradValueError(
            message(call, f"{name}={values} has {len(values)} entries for {n} spatial axes")
        )
    return values


def _pads(call: str, padding: Any, spatial: Ints, kernel: Ints, strides: Ints, dilation: Ints) -> Pads:
    """`padding` as ((lo, hi), ...): from an int, an int an axis, pairs, "valid" or "same"."""
    n = len(spatial)
    if isinstance(padding, str):
        kind = padding.lower()
        if kind == "valid":
            return ((0, 0),) * n
        if kind != "same":
            raise FgradValueError(
                message(call, f"padding={padding!r}", "use 'same', 'valid', an int or ((lo, hi), ...)")
            )
        pads = []
        for s, k, st, d in zip(spatial, kernel, strides, dilation, strict=True):
            total = max(
                (-(-s // st) - 1) * st + d * (k - 1) + 1 - s, 0
            )  # so that the output has ceil(s / stride)
            pads.append((total // 2, total - total // 2))
        return tuple(pads)
    if isinstance(padding, (tuple, list)) and padding and all(isinstance(p, (tuple, list)) for p in padding):
        if len(padding) != n or any(len(p) != 2 for p in padding):
            raise FgradValueError(
                message(call, f"padding={padding!r} must have one (lo, hi) for each of {n} spatial axes")
            )
        return tuple((operator.index(lo), operator.index(hi)) for lo, hi in padding)
    return tuple((p, p) for p in _ints(call, "padding", padding, n))


# ------------------------------------------------------------------------------------------------ convolution


def _conv_operands(call: str, x: Any, w: Any) -> tuple[Array, Array]:
    x, w = as_array(x, call), as_array(w, call)
    if x.dtype != w.dtype:
        raise FgradTypeError(
            message(
                call,
                f"input {x.type} and weight {w.type} differ in dtype",
                f"convert one: x.astype('{w.dtype}')",
            )
        )
    if x.ndim < 3 or x.ndim != w.ndim:
        raise FgradTypeError(
            message(
                call,
                f"expected input (N, C, *spatial) and weight (O, C/groups, *kernel) of as many axes, got {x.type} and {w.type}",
                "add a batch axis with x[None], or a channel axis with x[:, None]",
            )
        )
    return x, w


def conv(x: Any, w: Any, *, strides: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Array:
    """Convolution (cross-correlation, as in every neural-network library) in one or more spatial dimensions.

    Args:
        x: (N, C, *S).
        w: (O, C // groups, *K), of the same dtype.
        strides, dilation: an int, or one an axis.
        padding: an int, one an axis, ((lo, hi), ...), "valid", or "same" (output ceil(S / stride); where the padding is odd, the
            larger part comes last).

    Returns:
        (N, O, *S'), S' = (S + lo + hi - dilation * (K - 1) - 1) // stride + 1.

    Raises:
        FgradTypeError: shapes or dtypes that do not fit.
    """
    x, w = _conv_operands("conv", x, w)
    n = x.ndim - 2
    steps, gaps = _ints("conv", "strides", strides, n), _ints("conv", "dilation", dilation, n)
    pads = _pads("conv", padding, x.shape[2:], w.shape[2:], steps, gaps)
    return conv_ops.conv(x, w, steps, pads, gaps, groups)


def conv_transpose(
    x: Any,
    w: Any,
    *,
    strides: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Array:
    """Transposed convolution: the linear map that is the gradient of `conv` in its input.

    Args:
        x: (N, C, *S).
        w: (C, O // groups, *K), as in PyTorch.
        output_padding: added to one side of the output's shape (which `strides` leaves open).

    Returns:
        (N, O, *S'), S' = (S - 1) * stride - lo - hi + dilation * (K - 1) + output_padding + 1.
    """
    call = "conv_transpose"
    x, w = _conv_operands(call, x, w)
    n = x.ndim - 2
    steps, gaps = _ints(call, "strides", strides, n), _ints(call, "dilation", dilation, n)
    if isinstance(padding, str):
        raise FgradValueError(
            message(call, f"padding={padding!r}", "give the padding of the convolution as ints")
        )
    pads = _pads(call, padding, x.shape[2:], w.shape[2:], steps, gaps)
    extra = _ints(call, "output_padding", output_padding, n)
    if x.shape[1] != w.shape[0]:
        raise FgradTypeError(
            message(call, f"input {x.type} has {x.shape[1]} channels, weight {w.type} takes {w.shape[0]}")
        )
    spatial = tuple(
        (s - 1) * st - lo - hi + d * (k - 1) + e + 1
        for s, st, (lo, hi), d, k, e in zip(x.shape[2:], steps, pads, gaps, w.shape[2:], extra)
    )
    return conv_ops.conv_input_grad(x, w, spatial, steps, pads, gaps, groups)


# ------------------------------------------------------------------------------------------------ pooling


def _pool_arguments(
    call: str, x: Any, window: Any, strides: Any, padding: Any
) -> tuple[Array, Ints, Ints, Pads]:
    x = as_array(x, call)
    if x.ndim < 3:
        raise FgradTypeError(
            message(call, f"expected (N, C, *spatial), got {x.type}", "add a batch axis with x[None]")
        )
    n = x.ndim - 2
    size = _ints(call, "window", window, n)
    steps = size if strides is None else _ints(call, "strides", strides, n)
    return x, size, steps, _pads(call, padding, x.shape[2:], size, steps, (1,) * n)


def max_pool(x: Any, window: Any, *, strides: Any = None, padding: Any = 0) -> Array:
    """The maximum of each window of `x` (N, C, *S). `strides` is the window by default; padding counts as minus infinity."""
    return max_pool_with_offset(x, window, strides=strides, padding=padding)[0]


def max_pool_with_offset(
    x: Any, window: Any, *, strides: Any = None, padding: Any = 0
) -> tuple[Array, Array]:
    """`max_pool`, and each maximum's row-major position in its window (int32; the first one where several are equal)."""
    return pool.max_pool(*_pool_arguments("max_pool", x, window, strides, padding))


def sum_pool(x: Any, window: Any, *, strides: Any = None, padding: Any = 0) -> Array:
    """The sum of each window; padding counts as zero."""
    return pool.sum_pool(*_pool_arguments("sum_pool", x, window, strides, padding))


def avg_pool(
    x: Any, window: Any, *, strides: Any = None, padding: Any = 0, count_include_pad: bool = True
) -> Array:
    """The mean of each window; elements of the padding count as zeros, or not at all (`count_include_pad=False`)."""
    call = "avg_pool"
    x, size, steps, pads = _pool_arguments(call, x, window, strides, padding)
    if not dtypes.is_float(x.dtype):
        raise FgradTypeError(
            message(call, f"expected a floating dtype, got {x.type}", "convert: x.astype('float32')")
        )
    total = pool.sum_pool(x, size, steps, pads)
    if count_include_pad or not any(map(any, pads)):
        return elementwise.mul(total, full_like(total, 1 / np.prod(size)))
    out = conv_spatial(call, x.shape[2:], size, steps, pads, (1,) * len(size))
    counts = np.ones((), x.dtype)
    for s, k, st, (lo, _), o in zip(x.shape[2:], size, steps, pads, out):
        start = np.arange(o) * st - lo
        counts = np.multiply.outer(counts, (np.minimum(start + k, s) - np.maximum(start, 0)).astype(x.dtype))
    with beside(x):
        inside = structure.broadcast(constant(counts), total.shape, range(2, total.ndim))
    return elementwise.div(total, inside)


# ------------------------------------------------------------------------------------------------ products, blocks, indices


def dot_general(a: Any, b: Any, dims: contract.Dims) -> Array:
    """Sums of products. `dims = ((a_contract, b_contract), (a_batch, b_batch))`; the result has the batch axes, then the other
    axes of `a`, then those of `b` (as `jax.lax.dot_general`)."""
    a, b = promote(a, b, call="dot_general")
    return contract.dot_general(a, b, dims)


def _starts(call: str, x: Array, starts: Sequence[Any]) -> list[Array]:
    starts = list(starts) if isinstance(starts, (tuple, list)) else [starts]
    if len(starts) != x.ndim:
        raise FgradTypeError(message(call, f"{x.type} needs {x.ndim} start indices, got {len(starts)}"))
    made = [as_array(s, call) for s in starts]
    for s in made:
        if s.shape != () or not dtypes.is_integer(s.dtype):
            raise FgradTypeError(message(call, f"start indices are single integers, got {s.type}"))
    return [elementwise.convert(s, dtypes.int64) for s in made]


def dynamic_slice(x: Any, starts: Sequence[Any], sizes: Sequence[int]) -> Array:
    """The block of shape `sizes` that begins at `starts`, which may be traced integers; moved inside where it would stick out."""
    x = as_array(x, "dynamic_slice")
    return structure.dynamic_slice(x, _starts("dynamic_slice", x, starts), tuple(sizes))


def dynamic_update_slice(x: Any, update: Any, starts: Sequence[Any]) -> Array:
    """`x` with the block that begins at `starts` replaced by `update`; moved inside where it would stick out."""
    call = "dynamic_update_slice"
    x = as_array(x, call)
    new = elementwise.convert(as_array(update, call), x.dtype)
    return structure.dynamic_update_slice(x, new, _starts(call, x, starts))


def _indices(call: str, indices: Any, axes: Any) -> tuple[list[Array], Ints]:
    single = not isinstance(axes, (tuple, list))
    made = [as_array(i, call) for i in ((indices,) if single else indices)]
    for i in made:
        if not dtypes.is_integer(i.dtype):
            raise FgradTypeError(
                message(call, f"indices must be integers, got {i.type}", "convert: i.astype('int64')")
            )
    return [elementwise.convert(i, dtypes.int64) for i in made], (axes,) if single else tuple(axes)


def gather(x: Any, indices: Any, axes: Any = 0) -> Array:
    """Elements of `x` at integer `indices` along `axes` (an int with one array, or a tuple with as many arrays of one shape I).

    The result has shape I + (the other axes of `x`, in order). Negative indices count from the end.
    """
    x = as_array(x, "gather")
    made, places = _indices("gather", indices, axes)
    return index.gather(x, made, tuple(a % x.ndim for a in places))


def scatter(x: Any, updates: Any, indices: Any, axes: Any = 0, mode: str = "set") -> Array:
    """`x` with `updates` written where `gather(x, indices, axes)` reads: "set", "add", "mul", "minimum" or "maximum"."""
    x = as_array(x, "scatter")
    made, places = _indices("scatter", indices, axes)
    new = elementwise.convert(as_array(updates, "scatter"), x.dtype)
    return index.scatter(x, new, made, tuple(a % x.ndim for a in places), mode)


def iota(shape: Sequence[int], axis: int = 0, dtype: Any = dtypes.int64, like: Any = None) -> Array:
    """Each element's index along `axis`; on the device of the array `like`, if one is given."""
    return structure.iota(tuple(shape), dtypes.canonical(dtype), axis % max(len(tuple(shape)), 1), like)


# ------------------------------------------------------------------------------------------------ element by element


def _inexact(name: str, op: Any, doc: str) -> Any:
    def f(x: Any) -> Array:
        return op(promote(x, call=name, inexact=True)[0])

    f.__name__ = f.__qualname__ = name
    f.__doc__ = doc
    return f


rsqrt = _inexact("rsqrt", transcendental.rsqrt, "1 / sqrt(x).")
reciprocal = _inexact("reciprocal", elementwise.reciprocal, "1 / x.")


def stop_gradient(x: Any) -> Array:
    """`x`, as a constant to every derivative."""
    return elementwise.stop_gradient(as_array(x, "stop_gradient"))


def bitcast(x: Any, dtype: Any) -> Array:
    """The bits of `x` read as another dtype of the same width."""
    return elementwise.bitcast(as_array(x, "bitcast"), dtypes.canonical(dtype))
