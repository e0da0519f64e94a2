"""Our own mathematical functions for generated code, by operation name.

Every function takes and gives :class:`~fgrad.codegen.mathbase.V` (float or double, scalar or LLVM vector) and is emitted
inline, straight-line and branch-free, so that LLVM vectorises the loop around it: the LLVM inside llvmlite has no vector
mathematics library, and ``llvm.exp`` and its like would become one C call per element.

Errors in units of the last place, as the tests assert them over the whole range, are given in
``tests/codegen/test_mathlib.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from fgrad.codegen import mathlib_exp as _e
from fgrad.codegen import mathlib_log as _l
from fgrad.codegen import mathlib_special as _s
from fgrad.codegen import mathlib_trig as _t
from fgrad.codegen.mathbase import V

UNARY: dict[str, Callable[[V], V]] = {
    "exp": _e.exp,
    "exp2": _e.exp2,
    "expm1": _e.expm1,
    "sigmoid": _e.sigmoid,
    "tanh": _e.tanh,
    "sinh": _e.sinh,
    "cosh": _e.cosh,
    "log": _l.log,
    "log2": _l.log2,
    "log10": _l.log10,
    "log1p": _l.log1p,
    "asinh": _l.asinh,
    "acosh": _l.acosh,
    "atanh": _l.atanh,
    "sin": _t.sin,
    "cos": _t.cos,
    "tan": _t.tan,
    "asin": _t.asin,
    "acos": _t.acos,
    "atan": _t.atan,
    "erf": _s.erf,
    "erfc": _s.erfc,
    "erfinv": _s.erfinv,
    "lgamma": _s.lgamma,
    "digamma": _s.digamma,
    "cbrt": _s.cbrt,
}

BINARY: dict[str, Callable[[V, V], V]] = {
    "pow": _l.pow,
    "logaddexp": _l.logaddexp,
    "atan2": _t.atan2,
    "hypot": _s.hypot,
}
