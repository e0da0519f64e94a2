"""Parts of complex numbers."""

from __future__ import annotations

import math
from typing import Any

from fgrad import dtypes
from fgrad.array import Array
from fgrad.convert import as_array
from fgrad.device import beside_arguments
from fgrad.ops import complex as cx
from fgrad.ops import elementwise as ew
from fgrad.ops import transcendental as tr
from fgrad.ops.builders import full_like


def real(x: Any) -> Array:
    """The real part (of real arrays: the array itself)."""
    a = as_array(x, "real")
    return cx.real(a) if dtypes.is_complex(a.dtype) else a


@beside_arguments
def imag(x: Any) -> Array:
    """The imaginary part (of real arrays: zeros)."""
    a = as_array(x, "imag")
    return cx.imag(a) if dtypes.is_complex(a.dtype) else full_like(a, 0)


def conj(x: Any) -> Array:
    """The complex conjugate (of real arrays: the array itself)."""
    a = as_array(x, "conj")
    return cx.conj(a) if dtypes.is_complex(a.dtype) else a


conjugate = conj


def angle(x: Any, deg: bool = False) -> Array:
    """The angle of a complex number in the plane, in radians or degrees."""
    a = as_array(x, "angle")
    if not dtypes.is_complex(a.dtype):
        a = ew.convert(a, dtypes.to_inexact(a.dtype))
    out = tr.atan2(imag(a), real(a))
    return ew.mul(out, full_like(out, 180 / math.pi)) if deg else out


def iscomplex(x: Any) -> Array:
    """True where the imaginary part is not 0."""
    part = imag(x)
    return ew.ne(part, full_like(part, 0))


def isreal(x: Any) -> Array:
    """True where the imaginary part is 0."""
    return ew.logical_not(iscomplex(x))
