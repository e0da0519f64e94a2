"""Anything array-like to an `Array`, in the terms of the current trace: the entrance of every public function."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, concrete, is_scalar
from fgrad.device import backend_of
from fgrad.errors import FgradDeviceError, FgradError, FgradTypeError, TracerError, describe, message
from fgrad.ops.elementwise import convert
from fgrad.ops.structure import concatenate, reshape
from fgrad.trace import Tracer

_PROTOCOLS = ("__array__", "__dlpack__", "__cuda_array_interface__")


def as_array(x: Any, call: str = "asarray", dtype: np.dtype | None = None) -> Array:
    """`x` as an Array: Arrays pass through, scalars, lists and NumPy arrays become concrete ones; lists may hold tracers."""
    if isinstance(x, Array):
        if isinstance(x, Tracer) and x.weak is not None:
            x = Tracer(x.owner, x.atom, x.value)  # made an array, a bare scalar is weak no longer
        return x if dtype is None else convert(x, dtype)
    if is_scalar(x) or isinstance(x, (np.ndarray, np.generic)):
        return concrete(x, dtype, call)
    if isinstance(x, (list, tuple)) and _holds_array(x):
        from_parts = [as_array(v, call) for v in x]
        return _stack(from_parts, call, dtype)
    if isinstance(x, (list, tuple)) or any(hasattr(x, name) for name in _PROTOCOLS):
        if on_gpu(x):
            # Some libraries would copy it to the CPU without a word.
            fix = "fgrad.from_cuda(x) shares its memory; a copy on the CPU is that library's to make"
            raise FgradTypeError(message(call, f"{describe(x)} of {type(x).__module__} is on a GPU", fix))
        try:
            data = x if isinstance(x, (list, tuple)) else np.asarray(x)
            return concrete(data, dtype, call)
        except FgradError:
            raise
        except (
            ValueError,
            TypeError,
            RuntimeError,
        ) as e:  # RuntimeError: a PyTorch tensor that requires grad
            raise FgradTypeError(message(call, f"cannot make an array of {describe(x)}: {e}")) from e
    hint = (
        "flatten it with fgrad.tree.leaves or use fgrad.tree.map"
        if isinstance(x, dict) or x is None
        else "pass an array, a number or a list of numbers"
    )
    raise FgradTypeError(message(call, f"expected an array, got {describe(x)}", hint))


def on_gpu(x: Any) -> bool:
    """Whether `x` is another library's array in the memory of a GPU."""
    if hasattr(x, "__dlpack_device__"):
        try:
            # DLPack's numbers for CUDA and its managed memory
            return int(x.__dlpack_device__()[0]) in (2, 13)
        except (RuntimeError, TypeError, ValueError, BufferError):  # on no device that DLPack knows
            return False
    return hasattr(x, "__cuda_array_interface__")


def _holds_array(x: Any) -> bool:
    if isinstance(x, (list, tuple)):
        return any(_holds_array(v) for v in x)
    return isinstance(x, Array)


def _stack(parts: list[Array], call: str, dtype: np.dtype | None) -> Array:
    target = dtype or common_dtype([p.dtype for p in parts])
    if any(p.shape != parts[0].shape for p in parts):
        raise FgradTypeError(
            message(call, f"the list's parts differ in shape: {', '.join(describe(p) for p in parts)}")
        )
    return concatenate([reshape(convert(p, target), (1, *p.shape)) for p in parts], 0)


def common_dtype(found: list[np.dtype]) -> np.dtype:
    result = found[0]
    for d in found[1:]:
        result = dtypes.promote(result, d)
    return result


def weak_kind(x: Any) -> type | None:
    """The Python type of a weak scalar (a bare number, or the tracer of one), else None."""
    if is_scalar(x):
        return type(x)
    return x.weak if isinstance(x, Tracer) else None


def promote(*xs: Any, call: str, inexact: bool = False) -> list[Array]:
    """Arrays of one dtype. Python scalars are weak: they take the dtype of the arrays (unless of a higher kind)."""
    kinds = [weak_kind(x) for x in xs]
    made = [x if k is not None else as_array(x, call) for x, k in zip(xs, kinds, strict=True)]
    strong = [x.dtype for x, k in zip(made, kinds, strict=True) if k is None]
    if strong:
        dtype = common_dtype(strong)
        for k in kinds:
            if k is not None:
                dtype = dtypes.weak_promote(dtype, k())
    else:
        dtype = common_dtype(
            [dtypes.of_scalar(x if is_scalar(x) else k()) for x, k in zip(xs, kinds, strict=True) if k]
        )
    if inexact:
        dtype = dtypes.to_inexact(dtype)
    return [concrete(x, dtype) if is_scalar(x) else convert(x, dtype) for x in made]


def known(call: str, x: Array, fix: str) -> np.ndarray:
    """The values of `x`, which decide the shape of the result of `call`."""
    if isinstance(x, Tracer) and x.value is None:
        text = f"the shape of the result depends on the values of the traced {x.type}"
        raise TracerError(message(call, text, fix))
    there = backend_of([x])
    if there is not None:
        text = f"the shape of the result depends on the values of {x.type}, which are on {there.name}"
        raise FgradDeviceError(
            message(call, text, f"{fix}; or copy it to the CPU first: fgrad.device_get(x)")
        )
    return np.asarray(x)
