"""A compiled program as `jit` calls it with arguments on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, ConcreteArray, deleted, is_scalar, type_of
from fgrad.convert import as_array
from fgrad.device import DeviceArray, is_number
from fgrad.errors import FgradDeviceError, FgradTypeError, describe, message
from fgrad.runtime.cuda.memory import DeviceMemory


class CudaCompiled:
    """One program of a jitted function, as `runtime.compiled.Compiled` is on the CPU.

    With `moves`, the function was asked for this device by name: arrays on the CPU are then copied there at each call. Numbers
    (Python's, and arrays of one value) go along in either case; one that is as it was in the last call is not sent again.
    """

    def __init__(
        self,
        kinds: Sequence[Any],
        executable: Any,
        device: Any,
        captured: Sequence[Array],
        out_tree: Any,
        donated: Sequence[int],
        forwarded: Mapping[int, int],
        moves: bool,
    ):
        self.kinds, self.executable, self.device, self.out_tree = kinds, executable, device, out_tree
        self.donated, self.forwarded, self.moves = tuple(donated), dict(forwarded), moves
        program = executable.program
        self.captured = [device.memory_of(c) for c in captured]  # what a function closes over is sent once
        self.out_types = [type_of(tuple(b.shape), b.dtype) for b in program.outputs]
        self.placed: dict[int, int] = dict(program.placed)
        self.sent: dict[int, tuple[DeviceMemory, bytes]] = {}  # numbers: where they are, and their last value

    def fast(self, args: Any, kwargs: Any, leaves: Sequence[Any]) -> None:
        """There are no functions written for one structure of arguments, as on the CPU."""
        return None

    def __call__(self, leaves: Sequence[Any]) -> Any:
        with self.executable.lock:
            memories = [self._memory(i, leaf) for i, leaf in enumerate(leaves)]
            self._take_over(leaves, memories)
            targets: list[DeviceMemory] = []
            for j, t in enumerate(self.out_types):
                i = self.placed.get(j)
                targets.append(self.device.pool.allocate(t.nbytes) if i is None else memories[i])
            addresses = [m.address for m in memories] + [c.address for c in self.captured]
            self.device.queue(self.executable, addresses, [m.address for m in targets])
        outs: list[Any] = [DeviceArray(m, t) for m, t in zip(targets, self.out_types, strict=True)]
        for n, i in sorted(self.forwarded.items()):
            leaf = leaves[i]
            outs.insert(
                n, leaf if isinstance(leaf, DeviceArray) else DeviceArray(memories[i], as_array(leaf).type)
            )
            if not isinstance(leaf, DeviceArray):
                self.sent.pop(i, None)  # it is an array now, and must not be written again
        return self.out_tree.unflatten(outs)

    def _memory(self, i: int, leaf: Any) -> DeviceMemory:
        if type(leaf) is DeviceArray:
            memory: Any = leaf.held
            if memory.backend is not self.device:
                raise self._elsewhere(i, leaf)
            return self.device.aligned(leaf)
        x = self._concrete(leaf)
        if is_number(x):
            return self._number(i, x.data)
        if not self.moves:
            raise self._elsewhere(i, x)
        return self.device.upload(x.data)

    def _concrete(self, leaf: Any) -> ConcreteArray:
        if is_scalar(leaf):
            return as_array(np.asarray(leaf, dtypes.of_scalar(leaf)))  # type: ignore[return-value]
        x = as_array(leaf, "jit")
        if not isinstance(x, ConcreteArray):
            raise FgradTypeError(message("jit", f"argument {describe(leaf)} is no array with a value"))
        return x

    def _number(self, i: int, data: np.ndarray) -> DeviceMemory:
        whole = np.ascontiguousarray(data)
        value = whole.reshape(-1)[:1].tobytes()
        known = self.sent.get(i)
        if known is None or known[1] != value or i in self.donated:
            memory = (
                known[0]
                if known is not None and i not in self.donated
                else self.device.pool.allocate(whole.nbytes)
            )
            self.device.driver.upload(memory.address, whole)
            known = self.sent[i] = (memory, value)
        return known[0]

    def _take_over(self, leaves: Sequence[Any], memories: list[DeviceMemory]) -> None:
        """End the life of donated arrays; what others still look at is copied before it is overwritten."""
        onto = set(self.placed.values())
        for i in self.donated:
            leaf = leaves[i]
            if not isinstance(leaf, DeviceArray):
                continue
            if leaf.memory is None:
                raise deleted()
            twice = sum(m is memories[i] for m in memories) > 1
            if i in onto and (memories[i].users > 1 or twice):
                fresh = self.device.pool.allocate(leaf.nbytes)
                self.device.driver.copy(fresh.address, memories[i].address, leaf.nbytes)
                memories[i] = fresh
        for i in self.donated:
            leaf = leaves[i]
            if isinstance(leaf, DeviceArray) and leaf.memory is not None:
                leaf.memory.users -= 1
                leaf.memory = None

    def _elsewhere(self, i: int, x: Array) -> FgradDeviceError:
        where, device = x.device if isinstance(x, DeviceArray) else "cpu", self.device.name
        return FgradDeviceError(
            message(
                f"jit of {self.executable.program.name}",
                f"arguments are on two devices: leaf {i}, {describe(x)}, on {where}, others on {device}",
                f"move it: fgrad.device_put(x, {device!r}); or let every call copy what is on the CPU: jit(f, device={device!r})",
            )
        )
