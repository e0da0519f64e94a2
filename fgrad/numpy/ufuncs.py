"""How NumPy's ufuncs are made of primitives: promote, broadcast, treat bools, apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, ConcreteArray, wrap
from fgrad.convert import as_array
from fgrad.ir import REGISTRY
from fgrad.numpy.axes import broadcast_all, operands
from fgrad.ops import elementwise as ew
from fgrad.trace import current_stack

BOOL = dtypes.bool_


def binary(
    name: str, op: Callable[..., Array], doc: str, *, on_bool: Any = None, inexact: bool = False
) -> Callable[..., Array]:
    """`on_bool`: what bools do instead: another primitive, or a dtype that they become first."""

    ufunc = ufunc_of(op)

    def f(x: Any, y: Any, /) -> Array:
        a, b = operands(name, x, y, inexact=inexact, broadcast=False)
        if ufunc is not None and a.dtype != BOOL:
            out = at_once(ufunc, a, b)
            if out is not None:
                return out
        if a.shape != b.shape:
            a, b = broadcast_all(name, [a, b])
        if a.dtype == BOOL and on_bool is not None:
            if callable(on_bool):
                return on_bool(a, b)
            a, b = ew.convert(a, on_bool), ew.convert(b, on_bool)
        return op(a, b)

    f.__name__ = f.__qualname__ = name
    f.__doc__ = doc + "\n\nOperands broadcast and are promoted; Python scalars take the dtype of the arrays."
    return f


def ufunc_of(op: Callable[..., Array]) -> np.ufunc | None:
    """The NumPy definition of an operation's primitive, if that is a ufunc."""
    prim = REGISTRY.get(op.__name__)
    return prim.impl if prim is not None and isinstance(prim.impl, np.ufunc) else None


def at_once(ufunc: np.ufunc, *arrays: Array) -> Array | None:
    """Outside of traces NumPy may do everything itself, broadcasting too: no copies of the smaller operand, and half the
    time of a primitive. None if that is not possible."""
    if current_stack():
        return None
    for a in arrays:
        if type(a) is not ConcreteArray:
            return None
    with np.errstate(all="ignore"):
        try:
            return wrap(np.asarray(ufunc(*[a.data for a in arrays])))  # type: ignore[attr-defined]
        except (ValueError, TypeError):  # shapes or dtypes that do not fit: the primitive's own rules say so
            return None


def unary(
    name: str, op: Callable[[Array], Array], doc: str, *, inexact: bool = True, on_bool: Any = None
) -> Callable[..., Array]:
    ufunc = ufunc_of(op)

    def f(x: Any, /) -> Array:
        a = as_array(x, name)
        if inexact and not dtypes.is_inexact(a.dtype):
            a = ew.convert(a, dtypes.default_float)
        elif a.dtype == BOOL and on_bool is not None:
            a = ew.convert(a, on_bool)
        if ufunc is not None and a.dtype != BOOL:
            out = at_once(ufunc, a)
            if out is not None:
                return out
        return op(a)

    f.__name__ = f.__qualname__ = name
    f.__doc__ = doc
    return f
