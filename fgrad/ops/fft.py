"""Discrete Fourier transforms along one axis each; linear, so the transposes are Fourier transforms again.

Scaled as NumPy's default: the forward transforms not at all, the inverse ones by 1/n. float32 stays in complex64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.device import constant
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.ir import Linear, Primitive, Type
from fgrad.ops.builders import linear
from fgrad.ops.complex import complex_of, conj, real
from fgrad.ops.elementwise import convert, mul
from fgrad.ops.structure import broadcast, pad
from fgrad.trace import bind


def _check(name: str, x: Type, axis: int, wants_complex: bool) -> None:
    if (x.dtype in dtypes.COMPLEX) != wants_complex or not dtypes.is_inexact(x.dtype):
        kind = "complex" if wants_complex else "float32 or float64"
        raise FgradTypeError(message(name, f"expected a {kind} array, got {x}", "convert with x.astype(...)"))
    if not 0 <= axis < x.ndim:
        raise FgradValueError(message(name, f"axis {axis} of {x}"))
    if x.shape[axis] < 1:
        raise FgradValueError(message(name, f"axis {axis} of {x} is empty"))


def _transform(name: str, type_rule: Any, impl: Any, transpose: Callable[..., Array]) -> Primitive:
    def batch(
        size: int, args: Sequence[Array], batched: Any, *, axis: int, **params: Any
    ) -> tuple[Array, bool]:
        return bind(prim, args[0], axis=axis + 1, **params), True

    prim: Primitive = linear(name, type_rule, impl, transpose, batch, "opaque")
    return prim


def _complex_type(name: str) -> Any:
    def type_rule(x: Type, *, axis: int) -> Type:
        _check(name, x, axis, True)
        return x

    return type_rule


def _rfft_type(x: Type, *, axis: int) -> Type:
    _check("rfft", x, axis, False)
    return Type((*x.shape[:axis], x.shape[axis] // 2 + 1, *x.shape[axis + 1 :]), complex_of(x.dtype))


def _irfft_type(x: Type, *, axis: int, n: int) -> Type:
    _check("irfft", x, axis, True)
    if n < 1 or x.shape[axis] != n // 2 + 1:
        raise FgradValueError(
            message(
                "irfft",
                f"{n} real values come from {n // 2 + 1} complex ones, axis {axis} of {x} has {x.shape[axis]}",
            )
        )
    return Type((*x.shape[:axis], n, *x.shape[axis + 1 :]), dtypes.real_of(x.dtype))


def _rfft_transpose(ct: Array, x: Linear, *, axis: int) -> Array:
    high = [0] * ct.ndim
    high[axis] = x.shape[axis] - ct.shape[axis]
    return real(bind(fft_p, pad(ct, 0, [0] * ct.ndim, high), axis=axis))


def _irfft_transpose(ct: Array, x: Linear, *, axis: int, n: int) -> Array:
    """All coefficients but the first (and for even n the last) stand for two, themselves and their conjugates."""
    count = np.full(n // 2 + 1, 2 / n)
    count[0] = 1 / n
    if n % 2 == 0:
        count[-1] = 1 / n
    spectrum = conj(bind(rfft_p, ct, axis=axis))
    weights = broadcast(constant(count.astype(ct.dtype)), spectrum.shape, (axis,))
    return mul(spectrum, convert(weights, spectrum.dtype))


def _impl(f: Callable[..., np.ndarray]) -> Any:
    def impl(x: np.ndarray, *, axis: int, **params: Any) -> np.ndarray:
        return f(x, axis=axis, **params)

    return impl


fft_p: Primitive = _transform(
    "fft", _complex_type("fft"), _impl(np.fft.fft), lambda ct, x, *, axis: bind(fft_p, ct, axis=axis)
)
ifft_p: Primitive = _transform(
    "ifft", _complex_type("ifft"), _impl(np.fft.ifft), lambda ct, x, *, axis: bind(ifft_p, ct, axis=axis)
)
rfft_p: Primitive = _transform("rfft", _rfft_type, _impl(np.fft.rfft), _rfft_transpose)
irfft_p: Primitive = _transform("irfft", _irfft_type, _impl(np.fft.irfft), _irfft_transpose)


def fft(x: Array, axes: Sequence[int]) -> Array:
    """The Fourier transform of a complex array over `axes`, one after the other."""
    for axis in axes:
        x = bind(fft_p, x, axis=axis)
    return x


def ifft(x: Array, axes: Sequence[int]) -> Array:
    """The inverse Fourier transform of a complex array over `axes`."""
    for axis in axes:
        x = bind(ifft_p, x, axis=axis)
    return x


def rfft(x: Array, axes: Sequence[int]) -> Array:
    """The Fourier transform of a real array; the last of `axes` keeps its n // 2 + 1 coefficients that determine the rest."""
    return fft(bind(rfft_p, x, axis=tuple(axes)[-1]), tuple(axes)[:-1])


def irfft(x: Array, axes: Sequence[int], n: int) -> Array:
    """The inverse of `rfft`: real, of length `n` along the last of `axes`, where `x` has n // 2 + 1 coefficients."""
    return bind(irfft_p, ifft(x, tuple(axes)[:-1]), axis=tuple(axes)[-1], n=n)
