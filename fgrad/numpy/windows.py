"""Window functions of signal processing: float32, of a length that is known."""

from __future__ import annotations

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.device import constant


def hanning(M: int) -> Array:
    """The Hann window 0.5 - 0.5 cos(2 pi n / (M - 1))."""
    return constant(np.hanning(M).astype(dtypes.default_float))


def hamming(M: int) -> Array:
    """The Hamming window 0.54 - 0.46 cos(2 pi n / (M - 1))."""
    return constant(np.hamming(M).astype(dtypes.default_float))


def blackman(M: int) -> Array:
    """The Blackman window 0.42 - 0.5 cos(2 pi n / (M - 1)) + 0.08 cos(4 pi n / (M - 1))."""
    return constant(np.blackman(M).astype(dtypes.default_float))


def bartlett(M: int) -> Array:
    """The Bartlett (triangular) window, 0 at both ends."""
    return constant(np.bartlett(M).astype(dtypes.default_float))


def kaiser(M: int, beta: float) -> Array:
    """The Kaiser window I0(beta sqrt(1 - (2 n / (M - 1) - 1)²)) / I0(beta)."""
    return constant(np.kaiser(M, beta).astype(dtypes.default_float))
