"""The bytes that arrays live in: where a NumPy array has its own, and aligned blocks for what compiled programs write.

A `Block` is memory that a program's outputs share. It is an ndarray, so that NumPy arrays over it keep it alive, but of a type
of its own: NumPy then does not collapse chains of views beyond an output's own array, and the references to that array tell
whether anything else looks at the output's bytes; those to the block tell whether anything looks at the block at all.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any

import numpy as np

ALIGN = 64
HAS_REFCOUNTS = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


def held_at_fork(lock: Any) -> Any:
    """`lock`, taken while the process forks: a child never finds it held by a thread that it does not have, nor what it guards half done.

    Those made first are taken last, so a lock that is held while another is wanted must be made after that one.
    """
    if hasattr(os, "register_at_fork"):

        def release() -> None:
            lock.__exit__(None, None, None)

        os.register_at_fork(before=lock.__enter__, after_in_parent=release, after_in_child=release)
    return lock


# Held while the memory of an array changes hands: when it is first looked at through NumPy, and when it is donated.
# Re-entrant, since making an object may run the garbage collector, and that may run anything.
ownership = held_at_fork(threading.RLock())


class Block(np.ndarray):
    """Memory of outputs; see the module's text."""

    __slots__ = ()


class Header(ctypes.Structure):
    """The part of NumPy's `PyArrayObject` after the object header that its C API lays open."""

    _fields_ = (
        ("data", ctypes.c_size_t),
        ("nd", ctypes.c_int),
        ("dimensions", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("descr", ctypes.c_void_p),
        ("flags", ctypes.c_int),
    )


HEADER_AT = object.__basicsize__
PLAIN = 0x101  # NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED


def _headers_are_readable() -> bool:
    """Whether arrays here are laid out as `Header` says; asked once, of arrays that differ in all that is read."""
    if sys.implementation.name != "cpython":
        return False
    square, odd = np.zeros((2, 2)), np.zeros(25, np.uint8)[1:].view(np.float64)
    for array in (square, square[:, 1], square[1:], odd):
        try:
            header = Header.from_address(id(array) + HEADER_AT)
        except (ValueError, TypeError):
            return False
        plain = array.flags.c_contiguous and array.flags.aligned
        if header.data != array.__array_interface__["data"][0] or (header.flags & PLAIN == PLAIN) != plain:
            return False
    return True


READABLE = _headers_are_readable()
_at = ctypes.c_size_t.from_address


def data_pointer(array: np.ndarray) -> int:
    """The address of an array's first element; four times faster than `array.ctypes.data`."""
    return _at(id(array) + HEADER_AT).value if READABLE else array.__array_interface__["data"][0]


def new_block(nbytes: int) -> tuple[Block, int]:
    """Memory, and the address of its first aligned byte, from which there are `nbytes`."""
    block = Block((nbytes + ALIGN,), np.uint8)
    start = data_pointer(block)
    return block, start + -start % ALIGN


def view(block: Block, pointer: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The NumPy array over a block's bytes from `pointer` on."""
    return np.ndarray(shape, dtype, block, pointer - data_pointer(block))


# ------------------------------------------------------------------------------------------------ who looks at memory


def _count(array: np.ndarray) -> int:
    return sys.getrefcount(array)


def _count_of_lone() -> int:
    """What `_count` says of an array that only one variable and one slot hold; it differs between Pythons."""
    array = np.zeros(1)
    slot = [array]
    return _count(array) if slot else 0


_LONE = _count_of_lone()


def only_block(array: np.ndarray) -> Block | None:
    """The block below an output's NumPy array if nothing but its wrapper (and the caller's variable) holds that array.

    Views of whatever depth, exported buffers and other wrappers hold the array itself.
    """
    base = array.base
    return base if HAS_REFCOUNTS and type(base) is Block and sys.getrefcount(array) <= _LONE else None
