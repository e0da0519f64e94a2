"""Questions about dtypes: promotion, casting, limits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from fgrad import dtypes
from fgrad.convert import as_array, common_dtype, weak_kind


def dtype(x: Any) -> np.dtype:
    """The `numpy.dtype` that `x` names; `float` and `int` mean float32 and int64."""
    return dtypes.canonical(x)


def finfo(x: Any) -> Any:
    """The limits of a floating dtype: `.max`, `.min`, `.eps`, `.tiny`, `.bits`."""
    return ml_dtypes.finfo(dtypes.canonical(x if isinstance(x, type) else getattr(x, "dtype", x)))


def iinfo(x: Any) -> Any:
    """The limits of an integer dtype: `.max`, `.min`, `.bits`."""
    return ml_dtypes.iinfo(dtypes.canonical(x if isinstance(x, type) else getattr(x, "dtype", x)))


def promote_types(a: Any, b: Any) -> np.dtype:
    """The dtype of an operation between arrays of two dtypes."""
    return dtypes.promote(dtypes.canonical(a), dtypes.canonical(b))


def result_type(*args: Any) -> np.dtype:
    """The dtype of an operation on arrays, dtypes and Python scalars (which are weak)."""
    kinds = [weak_kind(a) for a in args]
    weak = [k() for k in kinds if k is not None]
    strong = [_dtype_of(a) for a, k in zip(args, kinds, strict=True) if k is None]
    if not strong:
        return common_dtype([dtypes.of_scalar(w) for w in weak])
    result = common_dtype(strong)
    for w in weak:
        result = dtypes.weak_promote(result, w)
    return result


def _dtype_of(x: Any) -> np.dtype:
    if isinstance(x, (np.dtype, type, str)):
        return dtypes.canonical(x)
    return as_array(x, "result_type").dtype


def can_cast(source: Any, target: Any, casting: Any = "safe") -> bool:
    """Whether a conversion between two dtypes is allowed under a casting rule of NumPy."""
    return bool(np.can_cast(_dtype_of(source), dtypes.canonical(target), casting))


def issubdtype(x: Any, kind: Any) -> bool:
    """Whether a dtype belongs to a kind, such as `numpy.floating`; bfloat16 counts as floating."""
    if not isinstance(x, type) or not issubclass(x, np.generic):
        x = dtypes.canonical(x)
    if x == dtypes.bfloat16:
        return kind in (np.floating, np.inexact, np.number, np.generic) or kind == dtypes.bfloat16
    return bool(np.issubdtype(x, kind))


def isdtype(x: Any, kind: Any) -> bool:
    """Whether a dtype is of a kind of the array API: "bool", "integral", "real floating", "numeric", ..."""
    x = dtypes.canonical(x)
    if isinstance(kind, tuple):
        return any(isdtype(x, k) for k in kind)
    if x == dtypes.bfloat16:
        return kind in ("real floating", "numeric") or kind == dtypes.bfloat16
    return bool(np.isdtype(x, kind))


def iscomplexobj(x: Any) -> bool:
    """Whether the dtype is complex."""
    return dtypes.is_complex(as_array(x, "iscomplexobj").dtype)


def isrealobj(x: Any) -> bool:
    """Whether the dtype is not complex."""
    return not iscomplexobj(x)


def isscalar(x: Any) -> bool:
    """Whether `x` is a Python or NumPy scalar (a 0-d array is not)."""
    return bool(np.isscalar(x))
