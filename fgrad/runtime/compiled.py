"""A compiled program as `jit` calls it: with the leaves of its arguments, arrays of any make, some of them donated.

This is the general way, which takes everything that the program fits and raises every error. `fastcall.py` writes functions
that do the same for one structure of arguments without loops.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, ConcreteArray, deleted, is_scalar, type_of, wrap
from fgrad.convert import as_array
from fgrad.errors import FgradTypeError, describe, message
from fgrad.ir import Type
from fgrad.memory import Block, data_pointer, new_block, only_block, ownership
from fgrad.runtime.executable import Executable
from fgrad.runtime.fastcall import fast_call
from fgrad.trace import Tracer, leaked

_WRITE_AFTER = 2  # calls in the general way before a function is written: start-up does not pay for it
_MOST_WRITTEN = 4  # functions for one program; further kinds of arguments stay with the general way


class Compiled:
    """One program of a jitted function: for one structure of arguments, one type for each leaf, one set of static values.

    `kinds` are what leaves must be: their `Type`, or the type of a Python scalar. `captured` are the arrays that the function
    closes over, `donated` the numbers of the leaves that have no value after a call, `forwarded` the results that are leaves
    unchanged (number of the result -> of the leaf): these are handed back, not computed.
    """

    def __init__(
        self,
        kinds: Sequence[Any],
        executable: Executable,
        captured: Sequence[ConcreteArray],
        out_tree: Any,
        donated: Sequence[int],
        forwarded: Mapping[int, int],
    ):
        self.kinds, self.executable, self.out_tree, self.donated = kinds, executable, out_tree, donated
        self.forwarded = forwarded
        self.captured = [np.require(c.data, requirements=("C", "A")) for c in captured]
        self.captured_pointers = [data_pointer(c) for c in self.captured]
        self.out_types = [type_of(tuple(b.shape), b.dtype) for b in executable.program.outputs]
        self.onto = sorted(set(executable.program.placed.values()))  # donated leaves that outputs overwrite
        self.calls = 0
        self.unresolved: set[int] = set()  # leaves that came as arrays whose address was still to be found
        self.written: dict[tuple[type, ...], tuple[set[int], Callable[[Any, Any], Any] | None]] = {}

    def fast(self, args: Any, kwargs: Any, leaves: Sequence[Any]) -> Callable[[Any, Any], Any] | None:
        """The function for arguments like these, once the program has been called a few times; see `fast_call`."""
        self.calls += 1
        self.unresolved |= {i for i, x in enumerate(leaves) if type(x) is ConcreteArray and x._ptr is None}
        if self.calls <= _WRITE_AFTER:
            return None
        classes = tuple(map(type, leaves))
        if classes in self.written:
            known, written = self.written[classes]
            if self.unresolved <= known:
                return written
            self.unresolved = set(range(len(leaves)))  # expect it of any, so that there is no third time
        elif len(self.written) == _MOST_WRITTEN:
            return None
        written = fast_call(
            args,
            kwargs,
            self.kinds,
            dtypes.of_scalar,
            self.executable,
            self.captured_pointers,
            self.donated,
            self.out_types,
            self.out_tree,
            self.forwarded,
            set(self.unresolved),
            _resolve,
        )
        self.written[classes] = set(self.unresolved), written
        return written

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """Run the program on leaves of the kinds that it was compiled for."""
        pointers, memories = _gather(leaves, self.kinds)
        if self.donated:
            self._take_over(leaves, pointers, memories)
        executable = self.executable
        work = executable.workspace()
        blocks, targets = executable.memory_for(work)
        for j, i in executable.program.placed.items():
            blocks[j], targets[j] = memories[i], pointers[i]
        executable.launch(work, [*pointers, *self.captured_pointers], targets)
        outs = []
        for block, address, t in zip(blocks, targets, self.out_types, strict=True):
            x = ConcreteArray()
            x._memory, x._ptr, x.type = block, address, t
            outs.append(x)
        for n, i in sorted(self.forwarded.items()):
            leaf = leaves[i]  # an fgrad array does not change; of others, a copy as they are now
            outs.insert(
                n, leaf if type(leaf) is ConcreteArray else wrap(np.array(_elements(leaf, self.kinds[i])[0]))
            )
        return self.out_tree.unflatten(outs)

    def _take_over(self, leaves: Sequence[Any], pointers: list[int], memories: list[Any]) -> None:
        """End the life of donated arrays; those that outputs overwrite are copied first if anybody else may look at them."""
        arrays = [leaves[i] for i in self.donated if type(leaves[i]) is ConcreteArray]
        with ownership:
            for x in arrays:
                if x._memory is None:  # by another thread, just now
                    raise deleted()
            times = Counter(pointers)
            for i in self.onto:
                block = None
                if type(leaves[i]) is ConcreteArray and times[pointers[i]] == 1:
                    memories[i] = None
                    block = _own_block(leaves[i])
                if block is None:
                    nbytes = self.executable.program.inputs[i].nbytes
                    block, address = new_block(nbytes)
                    ctypes.memmove(address, pointers[i], nbytes)
                    times[pointers[i]] -= 1  # of an array given twice, one may be overwritten
                    pointers[i] = address
                memories[i] = block
            for x in arrays:  # before the call: an index error leaves it half overwritten
                x._memory = x._ptr = None


def _own_block(x: ConcreteArray) -> Block | None:
    """The memory of `x` if it is a program's output and nothing but `x` looks at its elements."""
    memory = x._memory
    if type(memory) is Block:
        return memory
    return None if memory is None else only_block(memory)


def _gather(leaves: Sequence[Any], kinds: Sequence[Any]) -> tuple[list[int], list[Any]]:
    """The addresses of the leaves' elements, and what keeps these alive. (A function of its own, as its variables must not
    be among the references that `only_block` counts.)"""
    pointers: list[int] = []
    memories: list[Any] = []
    for leaf, kind in zip(leaves, kinds, strict=True):
        memory, pointer = _elements(leaf, kind)
        memories.append(memory)
        pointers.append(pointer)
    return pointers, memories


def _elements(leaf: Any, kind: Any) -> tuple[Any, int]:
    """What keeps a leaf's elements alive, and their address."""
    cls = type(leaf)
    if cls is ConcreteArray:
        memory, pointer = leaf._memory, leaf._ptr  # in this order: donation takes the address away first
        if memory is None or pointer is None:
            memory, pointer = _resolve(leaf)
        leaf.type = kind  # equal, and now identical
        return memory, pointer
    if cls is np.ndarray and leaf.dtype.isnative:
        data = leaf if _is_plain(leaf) else np.array(leaf, order="C")
    elif cls is kind:  # a Python scalar
        data = np.asarray(leaf, dtypes.of_scalar(leaf))
    else:
        data = np.require(as_array(leaf, "jit").data, requirements=("C", "A"))  # type: ignore[attr-defined]
    return data, data_pointer(data)


def _resolve(x: ConcreteArray) -> tuple[np.ndarray, int]:
    """The elements of an array whose address is not known yet; raises if it was donated."""
    with ownership:
        data = x.data
        if not _is_plain(data):
            data = x._memory = np.array(data, order="C")
        pointer = x._ptr = data_pointer(data)
        return data, pointer


def _is_plain(data: np.ndarray) -> bool:
    flags = data.flags
    return flags.c_contiguous and flags.aligned


# ------------------------------------------------------------------------------------------------ kinds of leaves


def kind_key(x: Any, call: str) -> Any:
    """What a program for this leaf is found by: shape and dtype, or the type of a Python scalar."""
    cls = type(x)
    if cls is ConcreteArray:
        return x.type.shape, x.type.dtype
    if cls is np.ndarray and x.dtype.isnative:
        return x.shape, x.dtype
    kind = kind_of(x, call)
    return (kind.shape, kind.dtype) if type(kind) is Type else kind


def kind_of(x: Any, call: str) -> Any:
    """What an argument has to be for a program to fit: a Type, or the Python type of a bare scalar."""
    check_argument(x, call)
    weak = is_scalar(x) and dtypes.of_scalar(x) != dtypes.uint64
    t = as_array(x, call).type
    return type(x) if weak else type_of(t.shape, t.dtype)


def check_argument(x: Any, call: str) -> None:
    if isinstance(x, Tracer):
        raise leaked(x)
    if not (
        isinstance(x, (Array, np.ndarray, np.generic))
        or is_scalar(x)
        or hasattr(x, "__array__")
        or hasattr(x, "__dlpack__")
        or hasattr(x, "__cuda_array_interface__")  # which `as_array` says what to do with
    ):
        fix = "mark it static with static_argnums or static_argnames, or close over it"
        raise FgradTypeError(message(call, f"argument {describe(x)} is not an array", fix))
