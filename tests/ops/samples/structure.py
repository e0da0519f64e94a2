"""Moving, indexing, reducing."""

from __future__ import annotations

import numpy as np

from fgrad import dtypes
from fgrad.testing import Sample

from .common import HALF, INTEGERS, complex_normal, integers, normal, rng, row, uniform

# ------------------------------------------------------------------------------------------------ structure

row(
    "broadcast",
    Sample([normal(3)], {"shape": (2, 3, 4), "axes": (1,)}),
    Sample([normal()], {"shape": (2, 2), "axes": ()}),
)
row(
    "broadcast",
    Sample([normal(2, 3)], {"shape": (3, 4, 2), "axes": (2, 0)}),
    Sample([normal(1, 0)], {"shape": (2, 1, 0), "axes": (1, 2)}),
)
row(
    "reshape",
    Sample([normal(2, 6)], {"shape": (3, 4)}),
    Sample([normal(1, 1)], {"shape": ()}),
    Sample([normal(0, 3)], {"shape": (5, 0)}),
)
row("reshape", Sample([integers(0, 9, 4, dtype=np.int8)], {"shape": (2, 1, 2)}))
row(
    "transpose",
    Sample([normal(2, 3, 4)], {"perm": (2, 0, 1)}),
    Sample([normal(0, 3)], {"perm": (1, 0)}),
    Sample([normal()], {"perm": ()}),
)
row("slice", Sample([normal(5, 6)], {"start": (1, 0), "stop": (4, 6), "step": (2, 3)}))
row(
    "slice",
    Sample([normal(5)], {"start": (2,), "stop": (2,), "step": (1,)}),
    Sample([normal(7)], {"start": (1,), "stop": (7,), "step": (4,)}),
)
row(
    "flip",
    Sample([normal(3, 4)], {"axes": (1,)}),
    Sample([normal(3, 4)], {"axes": (0, 1)}),
    Sample([normal(0)], {"axes": (0,)}),
)
for _low, _high, _interior in (((1, 0), (2, 1), (0, 0)), ((0, 2), (0, 0), (1, 2)), ((1, 1), (1, 1), (3, 0))):
    row("pad", Sample([normal(3, 2), normal()], {"low": _low, "high": _high, "interior": _interior}))
row("pad", Sample([normal(0), normal()], {"low": (2,), "high": (1,), "interior": (1,)}))
row(
    "concatenate",
    Sample([normal(2, 3), normal(2, 1), normal(2, 0)], {"axis": 1}),
    Sample([normal(2), normal(3)], {"axis": 0}),
)
row(
    "concatenate",
    Sample([integers(0, 9, 2, 2, dtype=np.int32), integers(0, 9, 1, 2, dtype=np.int32)], {"axis": 0}),
)
for _d in (dtypes.int64, dtypes.int32, dtypes.float32, dtypes.uint8, dtypes.bfloat16):
    row("iota", Sample([], {"shape": (2, 3), "dtype": _d, "axis": 1}))
row("iota", Sample([], {"shape": (0,), "dtype": dtypes.int64, "axis": 0}))
for _starts in ((1, 0, 2), (-3, 0, 9)):
    row("dynamic_slice", Sample([normal(4, 3, 5), *_starts], {"sizes": (2, 3, 2)}))
    row("dynamic_update_slice", Sample([normal(4, 3, 5), normal(2, 3, 2), *_starts]))
row("dynamic_slice", Sample([normal(4), 1], {"sizes": (0,)}), Sample([normal(4), 1], {"sizes": (4,)}))
row(
    "dynamic_update_slice",
    Sample([normal(4), normal(4), 1]),
    Sample([integers(0, 9, 4), integers(0, 9, 1), 3]),
)


# ------------------------------------------------------------------------------------------------ index

row(
    "gather",
    Sample([normal(5, 3), integers(-5, 5, 4)], {"axes": (0,)}),
    Sample([normal(5, 3), integers(-3, 3, 2, 2)], {"axes": (1,)}),
)
row("gather", Sample([normal(4, 3, 2), integers(-4, 4, 5), integers(-2, 2, 5)], {"axes": (0, 2)}))
row("gather", Sample([normal(4, 3), integers(-3, 3, 5), integers(-4, 4, 5)], {"axes": (1, 0)}))
row(
    "gather",
    Sample([normal(5), np.zeros((0,), np.int64)], {"axes": (0,)}),
    Sample([normal(5), np.array(-2)], {"axes": (0,)}),
)
row(
    "gather",
    Sample([normal(0, 3), np.zeros((0, 2), np.int64)], {"axes": (0,)}),
    Sample([integers(0, 9, 5), integers(0, 5, 3)], {"axes": (0,)}),
)
for _mode in ("set", "add", "mul", "minimum", "maximum"):
    row("scatter", Sample([normal(5, 3), normal(4, 3), integers(-5, 5, 4)], {"axes": (0,), "mode": _mode}))
    row(
        "scatter",
        Sample([normal(5, 3), normal(2, 2, 5), integers(-3, 3, 2, 2)], {"axes": (1,), "mode": _mode}),
    )
    row(
        "scatter",
        Sample(
            [normal(4, 3, 2), normal(5, 3), integers(0, 4, 5), integers(0, 2, 5)],
            {"axes": (0, 2), "mode": _mode},
        ),
    )
    row(
        "scatter",
        Sample([normal(5), normal(8), np.array([1, 1, -4, 1, 0, 0, 1, 4])], {"axes": (0,), "mode": _mode}),
    )
    row("scatter", Sample([normal(5), normal(), np.array(-2)], {"axes": (0,), "mode": _mode}))
    row("scatter", Sample([normal(5), normal(0), np.zeros((0,), np.int64)], {"axes": (0,), "mode": _mode}))
    row(
        "scatter",
        Sample([integers(0, 9, 5), integers(0, 9, 3), integers(0, 5, 3)], {"axes": (0,), "mode": _mode}),
    )
row(
    "scatter",
    Sample([normal(4), np.array([0.0, 2.0, 3.0]), np.array([1, 1, 2])], {"axes": (0,), "mode": "mul"}),
)
row(
    "scatter",
    Sample([normal(3, 4), normal(3), np.arange(3), integers(0, 4, 3)], {"axes": (0, 1), "mode": "add"}),
)


# ------------------------------------------------------------------------------------------------ reduce, cumulative

for _name in ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min"):
    for _axes in ((0,), (1,), (0, 2), (0, 1, 2)):
        row(_name, Sample([normal(2, 3, 4)], {"axes": _axes}))
    row(
        _name,
        Sample([normal(4, 0)], {"axes": (0,)}),
        Sample([normal(1)], {"axes": (0,)}),
        Sample([normal()], {"axes": ()}),
    )
    row(_name, *[Sample([integers(0, 4, 3, 3, dtype=d)], {"axes": (1,)}) for d in INTEGERS])
    row(_name, *[Sample([uniform(0.5, 1, 3, 3).astype(d)], {"axes": (1,)}, grad=False) for d in HALF])
    row(_name, Sample([np.array([[np.nan, 1], [np.inf, -np.inf]], np.float32)], {"axes": (1,)}, grad=False))
for _name in ("reduce_sum", "reduce_prod"):
    row(_name, Sample([normal(3, 0)], {"axes": (1,)}))
row(
    "reduce_sum",
    Sample([complex_normal(3, 2)], {"axes": (0,)}),
    Sample([normal(7, 300, dtype=np.float32)], {"axes": (1,)}, grad=False),
)
row(
    "reduce_prod",
    Sample([np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 5.0], [1.0, 2.0, 3.0]])], {"axes": (1,)}),
    Sample([normal(7)], {"axes": (0,)}),
)
for _name in ("reduce_and", "reduce_or"):
    row(
        _name,
        Sample([rng.random((3, 4)) < 0.5], {"axes": (1,)}),
        Sample([np.zeros((2, 0), bool)], {"axes": (1,)}),
    )
    row(_name, *[Sample([integers(0, 100, 3, 2, dtype=d)], {"axes": (0,)}) for d in INTEGERS])
for _name in ("argmax", "argmin"):
    row(
        _name,
        Sample([normal(3, 4)], {"axis": 0}),
        Sample([normal(3, 4)], {"axis": 1}),
        Sample([normal(1)], {"axis": 0}),
    )
    row(
        _name, Sample([np.array([[1, np.nan, 5, np.nan], [2, 2, 1, 1]], np.float32)], {"axis": 1}, grad=False)
    )
    row(
        _name, Sample([integers(0, 3, 5, 4, dtype=np.int8)], {"axis": 1}), Sample([normal(0, 4)], {"axis": 1})
    )
for _name in ("cumsum", "cumprod", "cummax", "cummin"):
    for _reverse in (False, True):
        row(
            _name,
            Sample([normal(3, 5)], {"axis": 1, "reverse": _reverse}),
            Sample([normal(4, 3)], {"axis": 0, "reverse": _reverse}),
        )
        row(
            _name,
            Sample([normal(2, 0)], {"axis": 1, "reverse": _reverse}),
            Sample([normal(1)], {"axis": 0, "reverse": _reverse}),
        )
        row(_name, Sample([integers(-3, 4, 6, dtype=np.int8)], {"axis": 0, "reverse": _reverse}))
        row(
            _name,
            Sample([np.array([1, 3, np.nan, 2], np.float32)], {"axis": 0, "reverse": _reverse}, grad=False),
        )
    row(
        _name,
        *[Sample([uniform(0.5, 1, 3).astype(d)], {"axis": 0, "reverse": False}, grad=False) for d in HALF],
    )
row("cumprod", Sample([np.array([2.0, 0.0, 3.0, 0.0, 4.0])], {"axis": 0, "reverse": False}))


# ------------------------------------------------------------------------------------------------ complex, moved about

_z = complex_normal(2, 3)
row(
    "broadcast",
    Sample([_z], {"shape": (4, 2, 3), "axes": (1, 2)}),
    Sample([np.array(1 + 2j)], {"shape": (3,), "axes": ()}),
)
row("pad", Sample([_z, np.array(1j)], {"low": (1, 0), "high": (0, 2), "interior": (0, 1)}))
row("transpose", Sample([_z], {"perm": (1, 0)}))
row("reshape", Sample([_z], {"shape": (6,)}))
row("slice", Sample([_z], {"start": (0, 1), "stop": (2, 3), "step": (1, 2)}))
row("concatenate", Sample([_z, _z], {"axis": 1}))
row("flip", Sample([_z], {"axes": (1,)}))
row("iota", Sample([], {"shape": (3,), "dtype": dtypes.complex64, "axis": 0}))
row("select", Sample([rng.random((2, 3)) < 0.5, _z, _z * 2]))
row("gather", Sample([_z, np.array([0, 1, -1])], {"axes": (0,)}))
row(
    "scatter",
    *[
        Sample([_z, complex_normal(2, 3), np.array([0, 0])], {"axes": (0,), "mode": m})
        for m in ("set", "add", "mul")
    ],
)
row("dynamic_slice", Sample([_z, 0, 1], {"sizes": (1, 2)}))
row("dynamic_update_slice", Sample([_z, _z[:1, :2], 1, 1]))
row("reduce_prod", Sample([_z], {"axes": (1,)}))
row("cumsum", Sample([_z], {"axis": 1, "reverse": False}))
row("cumprod", Sample([_z], {"axis": 1, "reverse": True}))
row("eq", Sample([_z, _z]))
row("pow", Sample([_z, complex_normal(2, 3)], rtol=1e-9))
row("integer_pow", Sample([_z], {"n": 3}), Sample([_z], {"n": -2}))
row("rsqrt", Sample([_z], rtol=1e-9))
row("isnan", Sample([_z]))
