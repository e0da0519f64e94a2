"""Complex numbers and their parts.

Cotangents of complex values follow JAX: the pairing is Re(ct * tangent), without conjugation, so the gradient of a real
function of z = x + iy comes out as df/dx - i df/dy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradTypeError, message
from fgrad.ir import Linear, Type
from fgrad.ops.builders import elementwise, full_like, same_types
from fgrad.ops.elementwise import add, div, eq, mul, neg, select
from fgrad.trace import bind

_COMPLEX: dict[np.dtype, np.dtype] = {dtypes.float32: dtypes.complex64, dtypes.float64: dtypes.complex128}


def complex_of(dtype: np.dtype) -> np.dtype:
    """The complex dtype whose parts are `dtype`."""
    if dtype not in _COMPLEX:
        raise FgradTypeError(
            message("complex", f"dtype {dtype} has no complex form", "use float32 or float64")
        )
    return _COMPLEX[dtype]


def _complex_type(re: Type, im: Type) -> Type:
    return Type(re.shape, complex_of(same_types("complex", (re, im)).dtype))


def _complex_impl(re: np.ndarray, im: np.ndarray) -> np.ndarray:
    out = np.empty(re.shape, complex_of(re.dtype))
    out.real, out.imag = re, im
    return out


def _part_type(name: str) -> Any:
    def type_rule(z: Type) -> Type:
        if z.dtype not in dtypes.COMPLEX:
            raise FgradTypeError(message(name, f"expected a complex array, got {z}"))
        return Type(z.shape, dtypes.real_of(z.dtype))

    return type_rule


def _complex_jvp(primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any) -> Array:
    re, im = (t if t is not None else full_like(x, 0) for x, t in zip(primals, tangents, strict=True))
    return complex_(re, im)


def _complex_transpose(cts: Sequence[Array], re: Any, im: Any) -> tuple[Any, Any]:
    return (
        real(cts[0]) if isinstance(re, Linear) else None,
        neg(imag(cts[0])) if isinstance(im, Linear) else None,
    )


def _abs_jvp(primals: Sequence[Array], tangents: Sequence[Array], outs: Sequence[Array]) -> Array:
    """Along z / |z|; zero at the origin."""
    (z,), (t,), (size,) = primals, tangents, outs
    zero = eq(size, full_like(size, 0))
    safe = select(zero, full_like(size, 1), size)
    return div(add(mul(real(z), real(t)), mul(imag(z), imag(t))), safe)


complex_p = elementwise(
    "complex", _complex_impl, type_rule=_complex_type, transpose=_complex_transpose, family="opaque"
)
complex_p.jvp = _complex_jvp
real_p = elementwise(
    "real",
    lambda z: z.real,
    type_rule=_part_type("real"),
    linear=True,
    transpose=lambda cts, z: (complex_(cts[0], full_like(cts[0], 0)),),
    family="opaque",
)
imag_p = elementwise(
    "imag",
    lambda z: z.imag,
    type_rule=_part_type("imag"),
    linear=True,
    transpose=lambda cts, z: (complex_(full_like(cts[0], 0), neg(cts[0])),),
    family="opaque",
)
conj_p = elementwise(
    "conj",
    np.conj,
    linear=True,
    transpose=lambda cts, z: (conj(cts[0]),),
    accepts=dtypes.is_complex,
    family="opaque",
)
complex_abs_p = elementwise(
    "complex_abs", np.abs, type_rule=_part_type("complex_abs"), family="opaque", doc="the modulus"
)
complex_abs_p.jvp = _abs_jvp


def complex_(re: Array, im: Array) -> Array:
    """`re + i im`; float32 gives complex64, float64 complex128."""
    return bind(complex_p, re, im)


def real(z: Array) -> Array:
    """The real part of a complex array."""
    return bind(real_p, z)


def imag(z: Array) -> Array:
    """The imaginary part of a complex array."""
    return bind(imag_p, z)


def conj(z: Array) -> Array:
    """The complex conjugate of a complex array."""
    return bind(conj_p, z)


def complex_abs(z: Array) -> Array:
    """The modulus of a complex array, a real array."""
    return bind(complex_abs_p, z)
