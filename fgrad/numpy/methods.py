"""Operators and methods of `Array`, concrete and traced alike, installed here: they call the functions of `fgrad.numpy`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fgrad.array import Array, is_scalar
from fgrad.convert import weak_kind
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.numpy import (
    bits,
    complexes,
    creation,
    cumulative,
    elementwise,
    indexing,
    joining,
    manipulation,
    products,
    reductions,
    searching,
    sorting,
)
from fgrad.numpy.at import At
from fgrad.numpy.axes import dtype_of
from fgrad.ops import structure as st
from fgrad.ops.elementwise import bitcast, convert
from fgrad.trace import Tracer

_OPERANDS = (Array, np.ndarray, np.generic, list, tuple)


_PYTHON_TYPE: dict[str, type] = {"b": bool, "i": int, "f": float, "c": complex}


def _as_python(result: Any, *operands: Any) -> Any:
    """The traced result of an operator on bare scalars is a bare scalar too: outside the trace Python computes it."""
    if isinstance(result, Tracer) and all(weak_kind(x) is not None for x in operands):
        result.weak = _PYTHON_TYPE.get(result.dtype.kind)
    return result


def _operator(f: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The method and its reflected twin; other types get their turn (NotImplemented)."""

    def method(self: Array, other: Any) -> Any:
        if not (is_scalar(other) or isinstance(other, _OPERANDS)):
            return NotImplemented
        return _as_python(f(self, other), self, other)

    def reflected(self: Array, other: Any) -> Any:
        if not (is_scalar(other) or isinstance(other, _OPERANDS)):
            return NotImplemented
        return _as_python(f(other, self), other, self)

    return method, reflected


_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": elementwise.add,
    "sub": elementwise.subtract,
    "mul": elementwise.multiply,
    "truediv": elementwise.divide,
    "floordiv": elementwise.floor_divide,
    "mod": elementwise.remainder,
    "pow": elementwise.power,
    "divmod": elementwise.divmod,
    "matmul": products.matmul,
    "lshift": bits.left_shift,
    "rshift": bits.right_shift,
    "and": bits.bitwise_and,
    "or": bits.bitwise_or,
    "xor": bits.bitwise_xor,
}
_COMPARISONS: dict[str, Callable[..., Any]] = {
    "eq": elementwise.equal,
    "ne": elementwise.not_equal,
    "lt": elementwise.less,
    "le": elementwise.less_equal,
    "gt": elementwise.greater,
    "ge": elementwise.greater_equal,
}


def _neg(self: Array) -> Array:
    return _as_python(elementwise.negative(self), self)


def _abs(self: Array) -> Array:
    return _as_python(elementwise.absolute(self), self)


def _iter(self: Array) -> Iterator[Array]:
    if self.ndim == 0:
        raise FgradTypeError(message("iter", "a 0-dimensional array cannot be iterated over"))
    return iter(joining.unstack(self))


def _contains(self: Array, value: Any) -> bool:
    return bool(reductions.any(elementwise.equal(self, value)))


def _shape_argument(args: tuple[Any, ...]) -> Any:
    return args[0] if len(args) == 1 else args


def _reshape(self: Array, *shape: Any, order: str = "C") -> Array:
    """`reshape(2, 3)` or `reshape((2, 3))`; -1 is worked out."""
    return manipulation.reshape(self, _shape_argument(shape), order)


def _transpose(self: Array, *axes: Any) -> Array:
    """Axes reversed, or in the order given: `transpose(1, 0)` or `transpose((1, 0))`."""
    return manipulation.transpose(self, _shape_argument(axes) if axes else None)


def _astype(self: Array, dtype: Any, copy: bool = True) -> Array:
    """The array converted to `dtype`."""
    return convert(self, dtype_of(dtype))


def _view(self: Array, dtype: Any) -> Array:
    """The same bits as another dtype; with another width, the last axis gets longer or shorter."""
    target = dtype_of(dtype)
    if target.itemsize == self.dtype.itemsize:
        return bitcast(self, target)
    raise FgradValueError(
        message(
            "view",
            f"{self.dtype} and {target} differ in width",
            "only dtypes of the same width are supported",
        )
    )


def _copy(self: Array) -> Array:
    """The same values in memory of their own, which outlives the donation of this array."""
    return creation.copy(self)


_METHODS: dict[str, Callable[..., Any]] = {
    "__getitem__": indexing.select_from,
    "__iter__": _iter,
    "__contains__": _contains,
    "__neg__": _neg,
    "__pos__": elementwise.positive,
    "__abs__": _abs,
    "__invert__": bits.invert,
    "__round__": elementwise.round,
    "__floor__": elementwise.floor,
    "__ceil__": elementwise.ceil,
    "__trunc__": elementwise.trunc,
    "reshape": _reshape,
    "transpose": _transpose,
    "astype": _astype,
    "view": _view,
    "copy": _copy,
    "conj": complexes.conj,
    "conjugate": complexes.conj,
    "ravel": manipulation.ravel,
    "flatten": manipulation.ravel,
    "squeeze": manipulation.squeeze,
    "swapaxes": manipulation.swapaxes,
    "diagonal": indexing.diagonal,
    "trace": indexing.trace,
    "sum": reductions.sum,
    "prod": reductions.prod,
    "mean": reductions.mean,
    "var": reductions.var,
    "std": reductions.std,
    "max": reductions.max,
    "min": reductions.min,
    "ptp": reductions.ptp,
    "argmax": reductions.argmax,
    "argmin": reductions.argmin,
    "all": reductions.all,
    "any": reductions.any,
    "clip": elementwise.clip,
    "round": elementwise.round,
    "dot": products.dot,
    "take": indexing.take,
    "cumsum": cumulative.cumsum,
    "cumprod": cumulative.cumprod,
    "sort": sorting.sort,
    "argsort": sorting.argsort,
    "searchsorted": sorting.searchsorted,
    "repeat": searching.repeat,
    "nonzero": searching.nonzero,
}


def _matrix_transpose(self: Array) -> Array:
    """The last two axes exchanged."""
    return manipulation.matrix_transpose(self)


def _all_transposed(self: Array) -> Array:
    """The axes reversed."""
    return st.transpose(self, range(self.ndim - 1, -1, -1))


_PROPERTIES: dict[str, Callable[..., Any]] = {
    "T": _all_transposed,
    "mT": _matrix_transpose,
    "at": At,
    "real": complexes.real,
    "imag": complexes.imag,
}


def install(methods: dict[str, Callable[..., Any]], properties: dict[str, Callable[..., Any]]) -> None:
    """Give `Array` methods and properties: functions whose first argument is the array."""
    for name, f in methods.items():
        setattr(Array, name, f)
    for name, f in properties.items():
        setattr(Array, name, property(f))


def install_operators() -> None:
    for name, f in _OPERATORS.items():
        method, reflected = _operator(f)
        setattr(Array, f"__{name}__", method)
        setattr(Array, f"__r{name}__", reflected)
    for name, f in _COMPARISONS.items():
        setattr(Array, f"__{name}__", _operator(f)[0])


install_operators()
install(_METHODS, _PROPERTIES)
