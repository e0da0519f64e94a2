"""Threefry-2x32 with 20 rounds: the counter-based generator below `fgrad.random`.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. A keyed hash of a
64-bit counter: element i of an array hashes i, so random bits are an element-wise function of an index. They need no state and
no order, and compiled programs compute them inside of whatever kernel uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradTypeError, message
from fgrad.ir import Primitive, Type, register
from fgrad.ops.builders import batch_all, same_types, zero_jvp
from fgrad.trace import bind

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA  # Threefish's constant: the third word of the key schedule is PARITY ^ k0 ^ k1


def _type(k0: Type, k1: Type, c0: Type, c1: Type) -> tuple[Type, Type]:
    types = (k0, k1, c0, c1)
    if any(t.dtype != dtypes.uint32 for t in types):
        raise FgradTypeError(
            message("threefry2x32", f"operands must be uint32, got {', '.join(map(str, types))}")
        )
    same_types("threefry2x32", types)
    return k0, k0


def _impl(k0: np.ndarray, k1: np.ndarray, c0: np.ndarray, c1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    schedule = (k0, k1, k0 ^ k1 ^ np.uint32(PARITY))
    x0, x1 = np.asarray(c0 + k0), np.asarray(c1 + k1)  # fresh arrays, so the rounds may work in place
    left = np.empty_like(x1)
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            np.add(x0, x1, out=x0)
            np.left_shift(x1, np.uint32(r), out=left)
            np.right_shift(x1, np.uint32(32 - r), out=x1)
            np.bitwise_or(x1, left, out=x1)
            np.bitwise_xor(x1, x0, out=x1)
        np.add(x0, schedule[(i + 1) % 3], out=x0)
        np.add(x1, schedule[(i + 2) % 3], out=x1)
        np.add(x1, np.uint32(i + 1), out=x1)
    return x0, x1


def _scalar(emit: Any, k0: Any, k1: Any, c0: Any, c1: Any) -> tuple[Any, Any]:
    """The same 20 rounds as integer operations of a kernel:

    x0 = x0 + x1;  x1 = ((x1 << r) | (x1 >> 32 - r)) ^ x0
    """
    schedule = (k0, k1, emit("bitwise_xor", emit("bitwise_xor", k0, k1), PARITY))
    x0, x1 = emit("add", c0, k0), emit("add", c1, k1)
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            x0 = emit("add", x0, x1)
            rotated = emit("bitwise_or", emit("shift_left", x1, r), emit("shift_right_logical", x1, 32 - r))
            x1 = emit("bitwise_xor", rotated, x0)
        x0 = emit("add", x0, schedule[(i + 1) % 3])
        x1 = emit("add", emit("add", x1, schedule[(i + 2) % 3]), i + 1)
    return x0, x1


def _batch(size: int, args: Sequence[Array], batched: Sequence[bool]) -> tuple[list[Array], list[bool]]:
    return bind(threefry2x32_p, *batch_all(size, args, batched)), [True, True]


threefry2x32_p = register(
    Primitive(
        "threefry2x32",
        _type,
        _impl,
        "elementwise",
        multiple=True,
        scalar=_scalar,
        jvp=zero_jvp,
        batch=_batch,
        doc="20 rounds of Threefry-2x32: (key, counter) words to two random words",
    )
)


def threefry2x32(k0: Array, k1: Array, c0: Array, c1: Array) -> tuple[Array, Array]:
    """Hash counters `(c0, c1)` with keys `(k0, k1)`: four uint32 arrays of one shape to two."""
    x0, x1 = bind(threefry2x32_p, k0, k1, c0, c1)
    return x0, x1
