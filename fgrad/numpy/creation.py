"""Making arrays: from data, filled, counted, and with a given structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, ConcreteArray, concrete, from_numpy, is_scalar
from fgrad.convert import as_array, on_gpu
from fgrad.device import DeviceArray, beside
from fgrad.errors import FgradTypeError, FgradValueError, describe, message
from fgrad.numpy.axes import Shape, axis_of, broadcast_to, dtype_of, operands, positive_shape
from fgrad.numpy.elementwise import absolute, add, divide, exp, floor, log, multiply, power, sign, subtract
from fgrad.ops import builders
from fgrad.ops.elementwise import convert, eq, ge, select
from fgrad.ops.structure import broadcast, concatenate, iota, move_axis, reshape, slice_


def array(x: Any, dtype: Any = None, copy: bool = True, ndmin: int = 0) -> Array:
    """An array with the values of `x`: numbers, nested lists, NumPy arrays, fgrad arrays, or anything with `__array__`.

    Python floats become float32, ints int64; NumPy arrays keep their dtype unless `dtype` is given. The data are copied, so later
    writes to a NumPy array do not show, and the copy outlives the donation of an fgrad array.
    """
    result = as_array(x, "array", dtype_of(dtype))
    if copy and result is x and isinstance(x, DeviceArray):
        result = x.backend.copy(x)
    elif copy and isinstance(result, ConcreteArray) and not is_scalar(x) and not isinstance(x, (list, tuple)):
        result = from_numpy(result.data.copy())
    if result.ndim < ndmin:
        result = reshape(result, (1,) * (ndmin - result.ndim) + result.shape)
    return result


def asarray(x: Any, dtype: Any = None) -> Array:
    """`x` as an array, without a copy where its memory can be used: do not write to a NumPy array afterwards."""
    return as_array(x, "asarray", dtype_of(dtype))


def from_dlpack(x: Any) -> Array:
    """An array on the memory of any object with `__dlpack__` (PyTorch, JAX, NumPy) on the CPU, without a copy. An array of fgrad's on a
    GPU is returned as it is."""
    if isinstance(x, DeviceArray):
        return x
    if on_gpu(x):
        text = f"{describe(x)} is on a GPU"
        raise FgradTypeError(message("from_dlpack", text, "fgrad.from_cuda(x) shares its memory"))
    try:
        return from_numpy(np.from_dlpack(x))
    except (AttributeError, TypeError, RuntimeError, BufferError) as e:
        fix = "pass a CPU tensor of a dtype that NumPy has, without gradient: x.detach().cpu().float()"
        raise FgradTypeError(message("from_dlpack", f"{describe(x)} cannot be shared: {e}", fix)) from e


def frombuffer(buffer: Any, dtype: Any = float, count: int = -1, offset: int = 0) -> Array:
    """A 1-d array of a copy of the bytes in `buffer`."""
    return from_numpy(np.frombuffer(buffer, dtype_of(dtype), count, offset).copy())


def copy(x: Any) -> Array:
    """An array with the same values and memory of its own, which outlives the donation of `x`."""
    return array(x)


def astype(x: Any, dtype: Any) -> Array:
    """`x` converted to `dtype`."""
    return convert(as_array(x, "astype"), dtype_of(dtype))


# ------------------------------------------------------------------------------------------------ filled


def full(shape: Shape, fill_value: Any, dtype: Any = None) -> Array:
    """An array of `shape`, every element `fill_value` (which may broadcast)."""
    value = as_array(fill_value, "full", dtype_of(dtype))
    dims = positive_shape(shape, "full")
    return (
        builders.full(dims, value.item(), value.dtype) if is_scalar(fill_value) else broadcast_to(value, dims)
    )


def zeros(shape: Shape, dtype: Any = None) -> Array:
    """Zeros of `shape`, float32 unless `dtype` is given."""
    return builders.full(positive_shape(shape, "zeros"), 0, dtype_of(dtype, dtypes.default_float))


def ones(shape: Shape, dtype: Any = None) -> Array:
    """Ones of `shape`, float32 unless `dtype` is given."""
    return builders.full(positive_shape(shape, "ones"), 1, dtype_of(dtype, dtypes.default_float))


def empty(shape: Shape, dtype: Any = None) -> Array:
    """Zeros: arrays are immutable, so there is nothing to gain from uninitialised memory."""
    return zeros(shape, dtype)


def full_like(x: Any, fill_value: Any, dtype: Any = None, shape: Shape | None = None) -> Array:
    """`fill_value` in the shape and dtype of `x`, unless others are given."""
    a = as_array(x, "full_like")
    with beside(a):
        return full(a.shape if shape is None else shape, fill_value, dtype_of(dtype, a.dtype))


def zeros_like(x: Any, dtype: Any = None, shape: Shape | None = None) -> Array:
    """Zeros in the shape and dtype of `x`, unless others are given."""
    return full_like(x, 0, dtype, shape)


def ones_like(x: Any, dtype: Any = None, shape: Shape | None = None) -> Array:
    """Ones in the shape and dtype of `x`, unless others are given."""
    return full_like(x, 1, dtype, shape)


empty_like = zeros_like

# ------------------------------------------------------------------------------------------------ counted


def _static(x: Any, what: str) -> Any:
    """A Python number of a bound that decides a length."""
    return x if isinstance(x, (int, float)) else x.item()


def _ramp(n: int, start: float, step: float, dtype: np.dtype) -> Array:
    """start, start + step, ...: in float64 (as NumPy), then rounded once. Integers are exact."""
    if not dtypes.is_inexact(dtype):
        wide = iota((n,), dtypes.int64, 0)
        if step != 1:
            wide = multiply(wide, int(step))
        return convert(add(wide, int(start)) if start else wide, dtype)
    wide = convert(iota((n,), dtypes.int64, 0), dtypes.float64)
    if step != 1:
        wide = multiply(wide, float(step))
    return convert(add(wide, float(start)) if start else wide, dtype)


def arange(start: Any, stop: Any = None, step: Any = None, dtype: Any = None) -> Array:
    """start, start + step, ... below `stop` (`arange(n)`: 0 .. n - 1). Bounds decide the shape, so they must be known numbers."""
    bounds = [_static(v, "arange") for v in (start, stop, step) if v is not None]
    if stop is None:
        first, last = 0, bounds[0]
    else:
        first, last = bounds[0], bounds[1]
    by = bounds[-1] if step is not None else 1
    if by == 0:
        raise FgradValueError(message("arange", "step must not be 0"))
    given = [v.dtype for v in (start, stop, step) if isinstance(v, (Array, np.generic, np.ndarray))]
    default = dtypes.default_float if any(isinstance(v, float) for v in bounds) else dtypes.default_int
    for d in given:
        default = dtypes.promote(default, d)
    n = (
        max(0, math.ceil((last - first) / by))
        if isinstance(by, float) or isinstance(last - first, float)
        else max(0, -((first - last) // by))
    )
    return _ramp(n, first, by, dtype_of(dtype, default))


def linspace(
    start: Any,
    stop: Any,
    num: int = 50,
    endpoint: bool = True,
    retstep: bool = False,
    dtype: Any = None,
    axis: int = 0,
) -> Any:
    """`num` evenly spaced values from `start` to `stop`, which is the last one if `endpoint`. Bounds may be arrays."""
    if num < 0:
        raise FgradValueError(message("linspace", f"num={num} must not be negative"))
    a, b = operands("linspace", start, stop, inexact=True)
    wanted = dtype_of(dtype, a.dtype)
    if (
        is_scalar(start) and is_scalar(stop) and not dtypes.is_complex(a.dtype)
    ):  # in float64 and rounded once, as arange
        a, b = concrete(start, dtypes.float64), concrete(stop, dtypes.float64)
    step = divide(subtract(b, a), max(num - 1 if endpoint else num, 1))
    count = iota((num, *a.shape), dtypes.int64, 0, step if a.shape else None)
    out = add(a, multiply(convert(count, a.dtype), step))
    if endpoint and num > 1:  # the last value is `stop` exactly
        out = select(eq(count, builders.full_like(count, num - 1)), broadcast_to(b, out.shape), out)
    if dtypes.is_integer(wanted):
        out = floor(out)
    out = move_axis(convert(out, wanted), 0, axis_of(axis, out.ndim, "linspace"))
    return (out, convert(step, dtypes.to_inexact(wanted))) if retstep else out


def logspace(
    start: Any,
    stop: Any,
    num: int = 50,
    endpoint: bool = True,
    base: Any = 10.0,
    dtype: Any = None,
    axis: int = 0,
) -> Array:
    """`base` to the powers `linspace(start, stop, num)`."""
    exponent = linspace(start, stop, num, endpoint, axis=axis)
    out = power(full_like(exponent, base) if is_scalar(base) else base, exponent)
    return out if dtype is None else convert(out, dtype_of(dtype))


def geomspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, dtype: Any = None, axis: int = 0
) -> Array:
    """`num` values from `start` to `stop`, each a constant multiple of the one before. Bounds are of one sign, not 0."""
    a, b = operands("geomspace", start, stop, inexact=True)
    exponent = linspace(log(absolute(a)), log(absolute(b)), num, endpoint, axis=axis)
    out = multiply(sign(a), exp(exponent))
    return out if dtype is None else convert(out, dtype_of(dtype))


# ------------------------------------------------------------------------------------------------ with structure


def _diagonal_mask(n: int, m: int, k: int, below: bool = False) -> Array:
    """True on the k-th diagonal of an (n, m) matrix, or on and below it."""
    rows, columns = iota((n, m), dtypes.int64, 0), iota((n, m), dtypes.int64, 1)
    shifted = rows if k == 0 else add(rows, k)
    return ge(shifted, columns) if below else eq(shifted, columns)


def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = None) -> Array:
    """An (N, M) matrix with ones on its k-th diagonal."""
    n, m = positive_shape((N, N if M is None else M), "eye")
    return convert(_diagonal_mask(n, m, k), dtype_of(dtype, dtypes.default_float))


def identity(n: int, dtype: Any = None) -> Array:
    """The n by n identity matrix."""
    return eye(n, dtype=dtype)


def tri(N: int, M: int | None = None, k: int = 0, dtype: Any = None) -> Array:
    """Ones on and below the k-th diagonal."""
    n, m = positive_shape((N, N if M is None else M), "tri")
    return convert(_diagonal_mask(n, m, k, below=True), dtype_of(dtype, dtypes.default_float))


def _triangle(call: str, x: Any, k: int, lower: bool) -> Array:
    a = as_array(x, call)
    if a.ndim == 1:
        a = broadcast_to(a, (a.size, a.size))
    if a.ndim < 2:
        raise FgradTypeError(message(call, f"needs a matrix, got {a.type}"))
    with beside(a):
        mask = _diagonal_mask(a.shape[-2], a.shape[-1], k if lower else k - 1, below=True)
    mask = broadcast_to(mask, a.shape)
    zero = builders.full_like(a, 0)
    return select(mask, a, zero) if lower else select(mask, zero, a)


def tril(x: Any, k: int = 0) -> Array:
    """`x` with zeros above the k-th diagonal of its last two axes."""
    return _triangle("tril", x, k, True)


def triu(x: Any, k: int = 0) -> Array:
    """`x` with zeros below the k-th diagonal of its last two axes."""
    return _triangle("triu", x, k, False)


def vander(x: Any, N: int | None = None, increasing: bool = False) -> Array:
    """The matrix of powers of `x`, one row an element; the highest first unless `increasing`."""
    a = as_array(x, "vander")
    n = a.size if N is None else N
    powers = [power(a, i) for i in (range(n) if increasing else range(n - 1, -1, -1))]
    if not powers:
        return builders.full((a.size, 0), 0, a.dtype)
    return concatenate([reshape(p, (a.size, 1)) for p in powers], 1)


def meshgrid(*xs: Any, indexing: str = "xy", sparse: bool = False) -> list[Array]:
    """Coordinate arrays of the grid spanned by 1-d arrays; "xy" has the first two axes swapped, "ij" has not."""
    if indexing not in ("xy", "ij"):
        raise FgradValueError(message("meshgrid", f"indexing={indexing!r}", 'use "xy" or "ij"'))
    arrays = [reshape(a, (a.size,)) for a in (as_array(x, "meshgrid") for x in xs)]
    order = list(range(len(arrays)))
    if indexing == "xy" and len(order) > 1:
        order[0], order[1] = 1, 0
    shape = [0] * len(arrays)
    for a, at in zip(arrays, order, strict=True):
        shape[at] = a.size
    if sparse:
        return [
            reshape(a, [a.size if i == at else 1 for i in range(len(shape))])
            for a, at in zip(arrays, order, strict=True)
        ]
    return [broadcast(a, shape, (at,)) for a, at in zip(arrays, order, strict=True)]


def indices(dimensions: Sequence[int], dtype: Any = None) -> Array:
    """Of a grid of shape `dimensions`, the index along each axis: shape (ndim, *dimensions)."""
    shape = positive_shape(dimensions, "indices")
    wanted = dtype_of(dtype, dtypes.int64)
    if not shape:
        return builders.full((0,), 0, wanted)
    return concatenate([iota((1, *shape), wanted, i + 1) for i in range(len(shape))], 0)


def fromfunction(function: Callable[..., Any], shape: Sequence[int], dtype: Any = float) -> Any:
    """`function(i, j, ...)` of the index arrays of a grid of `shape`."""
    grid = indices(shape, dtype)
    return function(
        *[reshape(slice_(grid, (i, *[0] * len(shape)), (i + 1, *shape)), shape) for i in range(len(shape))]
    )
