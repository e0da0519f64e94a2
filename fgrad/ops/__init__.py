"""The primitives, a module a family; importing this package fills `fgrad.ir.REGISTRY`."""

from fgrad.ops import (
    builders,
    contract,
    conv,
    elementwise,
    index,
    pool,
    reduce,
    structure,
    transcendental,
)

__all__ = [
    "builders",
    "contract",
    "conv",
    "elementwise",
    "index",
    "pool",
    "reduce",
    "structure",
    "transcendental",
]
