"""Matrix products and convolutions: one step each, over buffers. Transposed or broadcast operands are read through strides."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.codegen.contraction import conv_input_grad_spec, conv_spec, conv_weight_grad_spec, dot_general_spec
from fgrad.codegen.program import Buf, ContractStep
from fgrad.ir import Atom, Eqn
from fgrad.passes.lowering import Lowering, Rule, row_major


def supported(dtype: np.dtype) -> bool:
    """The engine's element types; the others are multiplied by NumPy."""
    return dtypes.is_float(dtype)


def _step(low: Lowering, eqn: Eqn, spec: Any, lhs: Buf, rhs: Buf) -> None:
    (var,) = eqn.outputs
    out = low.buf_for(var)
    low.emit(ContractStep(spec, out, lhs, rhs, eqns=(eqn,)))
    low.env[var] = low.of_buf(out)


def _strided(low: Lowering, atom: Atom) -> tuple[Buf, tuple[int, ...]]:
    """A buffer and strides for `atom`: its own memory where it is a relabelling of some buffer."""
    value = low.value(atom)
    if value.buf is None and value.view is not None and value.view[0].byte_stride == 0:
        buf, offset, strides = value.view
        if not offset:
            return buf, strides
    buf = low.atom_buf(atom)
    return buf, row_major(buf.shape)


def dot_general(low: Lowering, eqn: Eqn) -> None:
    a, b = eqn.inputs
    (var,) = eqn.outputs
    if not supported(a.type.dtype) or var.type.size == 0 or a.type.size == 0:
        return low.host(eqn)
    (lhs, lhs_strides), (rhs, rhs_strides) = _strided(low, a), _strided(low, b)
    spec = dot_general_spec(
        a.type.shape,
        b.type.shape,
        eqn.params["dims"],
        a.type.dtype,
        b.type.dtype,
        var.type.dtype,
        lhs_strides,
        rhs_strides,
    )
    _step(low, eqn, spec, lhs, rhs)
    return None


def _empty(eqn: Eqn) -> bool:
    return eqn.outputs[0].type.size == 0 or any(a.type.size == 0 for a in eqn.inputs)


def conv(low: Lowering, eqn: Eqn) -> None:
    x, w = eqn.inputs
    p = eqn.params
    if not supported(x.type.dtype) or _empty(eqn):
        return low.host(eqn)
    spec = conv_spec(
        x.type.shape, w.type.shape, p["strides"], p["padding"], p["dilation"], p["groups"], x.type.dtype
    )
    _step(low, eqn, spec, low.atom_buf(w), low.atom_buf(x))
    return None


def conv_input_grad(low: Lowering, eqn: Eqn) -> None:
    g, w = eqn.inputs
    p = eqn.params
    if not supported(g.type.dtype) or _empty(eqn):
        return low.host(eqn)
    spec = conv_input_grad_spec(
        g.type.shape,
        w.type.shape,
        p["spatial"],
        p["strides"],
        p["padding"],
        p["dilation"],
        p["groups"],
        g.type.dtype,
    )
    _step(low, eqn, spec, low.atom_buf(w), low.atom_buf(g))
    return None


def conv_weight_grad(low: Lowering, eqn: Eqn) -> None:
    x, g = eqn.inputs
    p = eqn.params
    if not supported(x.type.dtype) or _empty(eqn):
        return low.host(eqn)
    spec = conv_weight_grad_spec(
        x.type.shape,
        g.type.shape,
        p["kernel"],
        p["strides"],
        p["padding"],
        p["dilation"],
        p["groups"],
        x.type.dtype,
    )
    _step(low, eqn, spec, low.atom_buf(g), low.atom_buf(x))
    return None


RULES: dict[str, Rule] = {
    "dot_general": dot_general,
    "conv": conv,
    "conv_input_grad": conv_input_grad,
    "conv_weight_grad": conv_weight_grad,
}
