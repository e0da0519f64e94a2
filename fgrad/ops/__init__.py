"""The primitives, a module a family; importing this package fills `fgrad.ir.REGISTRY`."""

from fgrad.ops import (
    builders,
    complex,
    contract,
    conv,
    cumulative,
    elementwise,
    fft,
    index,
    linalg,
    pool,
    reduce,
    sort,
    structure,
    threefry,
    transcendental,
)

__all__ = [
    "builders",
    "complex",
    "contract",
    "conv",
    "cumulative",
    "elementwise",
    "fft",
    "index",
    "linalg",
    "pool",
    "reduce",
    "sort",
    "structure",
    "threefry",
    "transcendental",
]
