"""What the rows are made with."""

from __future__ import annotations

import numpy as np

from fgrad import dtypes
from fgrad.testing import Sample

rng = np.random.default_rng(0)
SAMPLES: dict[str, list[Sample]] = {}

HALF = (dtypes.float16, dtypes.bfloat16)
INTEGERS = (dtypes.int8, dtypes.int32, dtypes.int64, dtypes.uint8, dtypes.uint32)


def row(name: str, *samples: Sample) -> None:
    SAMPLES.setdefault(name, []).extend(samples)


def normal(*shape: int, dtype=np.float64) -> np.ndarray:
    return rng.normal(size=shape).astype(dtype)


def uniform(low: float, high: float, *shape: int, dtype=np.float64) -> np.ndarray:
    return rng.uniform(low, high, size=shape).astype(dtype)


def complex_normal(*shape: int, dtype=np.complex128) -> np.ndarray:
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)


def integers(low: int, high: int, *shape: int, dtype=np.int64) -> np.ndarray:
    return rng.integers(low, high, size=shape).astype(dtype)


SPECIAL = np.array(
    [
        np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        2.0,
        -2.5,
        3.5,
        1e-3,
        -30.0,
        88.0,
        700.0,
        1e30,
        -1e30,
    ],
    np.float32,
)
