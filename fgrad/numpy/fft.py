"""Discrete Fourier transforms, by `numpy.fft`'s names; float32 gives complex64, float64 complex128."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array
from fgrad.errors import FgradValueError, message
from fgrad.numpy.axes import axes_of
from fgrad.numpy.complexes import conj
from fgrad.numpy.creation import arange
from fgrad.numpy.elementwise import divide, multiply
from fgrad.numpy.joining import concatenate
from fgrad.numpy.manipulation import roll
from fgrad.ops import elementwise as ew
from fgrad.ops import fft as ff
from fgrad.ops import structure as st
from fgrad.ops.builders import full_like
from fgrad.ops.complex import complex_of

NORMS = ("backward", "ortho", "forward")


def _resized(a: Array, axes: Sequence[int], lengths: Sequence[int | None], call: str) -> Array:
    """Cut, or filled up with zeros, to the given lengths."""
    for axis, n in zip(axes, lengths, strict=True):
        if n is None or n == a.shape[axis]:
            continue
        if n < 1:
            raise FgradValueError(message(call, f"length {n} of axis {axis} must be positive"))
        stop = list(a.shape)
        stop[axis] = min(n, stop[axis])
        a = st.slice_(a, [0] * a.ndim, stop)
        high = [0] * a.ndim
        high[axis] = n - a.shape[axis]
        a = st.pad(a, 0, [0] * a.ndim, high)
    return a


def _scale(x: Array, n: int, norm: str | None, inverse: bool, call: str) -> Array:
    """The primitives follow norm="backward": the inverse divides by n."""
    if norm not in (None, *NORMS):
        raise FgradValueError(message(call, f"norm={norm!r}", f"use one of {', '.join(NORMS)}"))
    exponent = {None: 0.0, "backward": 0.0, "ortho": 0.5, "forward": 1.0}[norm] * (1 if inverse else -1)
    return x if exponent == 0 else multiply(x, full_like(x, float(n) ** exponent))


def _complex(x: Any, call: str) -> Array:
    a = as_array(x, call)
    a = ew.convert(a, dtypes.to_inexact(a.dtype))
    if dtypes.is_complex(a.dtype):
        return a
    return ew.convert(a, complex_of(dtypes.float32 if a.dtype.itemsize == 2 else a.dtype))


def _real(x: Any, call: str) -> Array:
    a = as_array(x, call)
    a = ew.convert(a, dtypes.to_inexact(a.dtype))
    return ew.convert(a, dtypes.float32) if a.dtype.itemsize == 2 else a


def _axes_and_lengths(
    a: Array, s: Sequence[int] | None, axes: Sequence[int] | None, call: str
) -> tuple[tuple[int, ...], list[int | None]]:
    if axes is None:
        chosen = tuple(range(a.ndim)) if s is None else tuple(range(a.ndim - len(s), a.ndim))
    else:
        chosen = axes_of(tuple(axes), a.ndim, call)
    lengths: list[int | None] = [None] * len(chosen) if s is None else list(s)
    if len(lengths) != len(chosen):
        raise FgradValueError(message(call, f"s={s} and axes={axes} differ in length"))
    return chosen, lengths


def _count(a: Array, axes: Sequence[int]) -> int:
    return int(np.prod([a.shape[i] for i in axes], dtype=np.int64))


def fftn(
    x: Any, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str | None = None
) -> Array:
    """The Fourier transform over several axes, of lengths `s`."""
    return _c2c("fftn", ff.fft, x, s, axes, norm, False)


def ifftn(
    x: Any, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str | None = None
) -> Array:
    """The inverse of `fftn`."""
    return _c2c("ifftn", ff.ifft, x, s, axes, norm, True)


def _c2c(
    call: str, op: Callable[..., Array], x: Any, s: Any, axes: Any, norm: str | None, inverse: bool
) -> Array:
    a = _complex(x, call)
    chosen, lengths = _axes_and_lengths(a, s, axes, call)
    a = _resized(a, chosen, lengths, call)
    return _scale(op(a, chosen), _count(a, chosen), norm, inverse, call)


def fft(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The Fourier transform along an axis, cut or filled with zeros to length `n`."""
    return _c2c("fft", ff.fft, x, None if n is None else (n,), (axis,), norm, False)


def ifft(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The inverse of `fft`."""
    return _c2c("ifft", ff.ifft, x, None if n is None else (n,), (axis,), norm, True)


def fft2(
    x: Any, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str | None = None
) -> Array:
    """The Fourier transform over two axes."""
    return fftn(x, s, axes, norm)


def ifft2(
    x: Any, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str | None = None
) -> Array:
    """The inverse of `fft2`."""
    return ifftn(x, s, axes, norm)


def rfftn(
    x: Any, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str | None = None
) -> Array:
    """The Fourier transform of real `x`: of the last axis only the n // 2 + 1 coefficients that determine the others."""
    a = _real(x, "rfftn")
    chosen, lengths = _axes_and_lengths(a, s, axes, "rfftn")
    a = _resized(a, chosen, lengths, "rfftn")
    return _scale(ff.rfft(a, chosen), _count(a, chosen), norm, False, "rfftn")


def irfftn(
    x: Any, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str | None = None
) -> Array:
    """The inverse of `rfftn`, real; the last axis gets length `s[-1]`, or 2 (m - 1)."""
    a = _complex(x, "irfftn")
    chosen, lengths = _axes_and_lengths(a, s, axes, "irfftn")
    last = lengths[-1] if lengths[-1] is not None else 2 * (a.shape[chosen[-1]] - 1)
    a = _resized(a, chosen, [*lengths[:-1], last // 2 + 1], "irfftn")
    return _scale(ff.irfft(a, chosen, last), _count(a, chosen[:-1]) * last, norm, True, "irfftn")


def rfft(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The Fourier transform of real `x` along an axis: n // 2 + 1 coefficients."""
    return rfftn(x, None if n is None else (n,), (axis,), norm)


def irfft(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The inverse of `rfft`, real, of length `n` or 2 (m - 1)."""
    return irfftn(x, None if n is None else (n,), (axis,), norm)


def rfft2(
    x: Any, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str | None = None
) -> Array:
    """`rfftn` over two axes."""
    return rfftn(x, s, axes, norm)


def irfft2(
    x: Any, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str | None = None
) -> Array:
    """`irfftn` over two axes."""
    return irfftn(x, s, axes, norm)


_OPPOSITE = {None: "forward", "backward": "forward", "ortho": "ortho", "forward": "backward"}


def hfft(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The transform of a signal with Hermitian symmetry, real."""
    return irfft(conj(_complex(x, "hfft")), n, axis, _OPPOSITE.get(norm, norm))


def ihfft(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The inverse of `hfft`."""
    return conj(rfft(x, n, axis, _OPPOSITE.get(norm, norm)))


def fftfreq(n: int, d: float = 1.0) -> Array:
    """The frequencies of the coefficients of `fft`, of samples `d` apart."""
    k = concatenate([arange(0, (n - 1) // 2 + 1), arange(-(n // 2), 0)])
    return divide(ew.convert(k, dtypes.default_float), n * d)


def rfftfreq(n: int, d: float = 1.0) -> Array:
    """The frequencies of the coefficients of `rfft`, of samples `d` apart."""
    return divide(ew.convert(arange(0, n // 2 + 1), dtypes.default_float), n * d)


def fftshift(x: Any, axes: Any = None) -> Array:
    """The zero frequency moved to the middle."""
    a = as_array(x, "fftshift")
    chosen = axes_of(axes, a.ndim, "fftshift")
    return roll(a, tuple(a.shape[i] // 2 for i in chosen), chosen)


def ifftshift(x: Any, axes: Any = None) -> Array:
    """The inverse of `fftshift`."""
    a = as_array(x, "ifftshift")
    chosen = axes_of(axes, a.ndim, "ifftshift")
    return roll(a, tuple(-(a.shape[i] // 2) for i in chosen), chosen)
