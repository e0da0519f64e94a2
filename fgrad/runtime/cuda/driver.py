"""What running programs asks of a GPU, and the simulator's way to do it. `nvidia.py` is the way on hardware.

Everything that is queued (launches, copies within the device, uploads) happens in the order in which it was queued, but for
uploads ahead, which run beside the queue: marks say what they wait for, and what waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fgrad.codegen.cuda.launch import CudaKernel
from fgrad.codegen.cuda.target import SIMULATED, CudaTarget
from fgrad.memory import data_pointer
from fgrad.runtime.cuda.simulator import compile_simulated, launch_simulated


class Driver(Protocol):
    """One GPU. Addresses are those of bytes in its memory."""

    description: str  # "NVIDIA H200"
    target: CudaTarget
    stream_handle: int | None  # of the queue, for other libraries
    alive: bool  # False where the driver must not be called any more: at the end of Python, in a forked child

    def allocate(self, nbytes: int) -> int | None:
        """The address of as many bytes, aligned to 256; None if there is no room."""
        ...

    def release(self, address: int) -> None:
        """Give an allocation back, once what is queued is done."""
        ...

    def upload(self, address: int, data: np.ndarray) -> None:
        """Queue copying contiguous `data` to the device; `data` may change as soon as this returns."""
        ...

    def download(self, data: np.ndarray, address: int) -> None:
        """Copy to contiguous `data`, after what is queued; returns when it is there."""
        ...

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy within the device."""
        ...

    def clear(self, address: int, nbytes: int) -> None:
        """Queue writing zeros."""
        ...

    def upload_ahead(self, address: int, data: np.ndarray, after: Any) -> Any:
        """Begin copying contiguous `data` beside what is queued, once the mark `after` is reached (None: at once). `data` may
        change as soon as this returns. The mark of its end: what reads or writes the address is queued after a `follow` of it."""
        ...

    def mark(self) -> Any:
        """A mark in the queue: reached when all that was queued before is done."""
        ...

    def follow(self, mark: Any) -> None:
        """What is queued from now on waits for the mark; the caller does not."""
        ...

    def elapsed(self, begin: Any, end: Any) -> float:
        """Seconds between two marks, by the device's clock; waits for the second."""
        ...

    def ordinal_of(self, address: int) -> int | None:
        """The number of the GPU that an address belongs to; None if it belongs to none."""
        ...

    def follow_stream(self, handle: int) -> None:
        """As `follow`, for all that another library has queued in the stream with this handle."""
        ...

    def settle(self) -> None:
        """Return when all of the device's work is done, that of other libraries too."""
        ...

    def prepare(self, kernels: Sequence[CudaKernel]) -> None:
        """These will be loaded next: compile several at once, if that saves time."""
        ...

    def load(self, kernel: CudaKernel) -> Any:
        """The kernel, compiled (or found in the disk cache) and ready to be launched."""
        ...

    def launch(self, function: Any, kernel: CudaKernel, addresses: list[int]) -> None:
        """Queue a kernel on one address for each of its parameters."""
        ...

    def wait(self) -> None:
        """Return when all that was queued is done, and all uploads."""
        ...

    def begin_capture(self) -> None:
        """From now on what is queued is written down instead."""
        ...

    def end_capture(self) -> Any:
        """What was written down, as something to `replay`."""
        ...

    def replay(self, graph: Any) -> None:
        """Queue all of it at once."""
        ...


class SimulatedDriver:
    """A GPU in Numba's CUDA simulator: its memory is the process's own, and nothing is queued but done at once."""

    def __init__(self, target: CudaTarget = SIMULATED):
        self.description, self.target, self.alive = "CUDA simulator", target, True
        self.stream_handle: int | None = None
        self._blocks: dict[int, np.ndarray] = {}
        self._capturing: list[Any] | None = None
        self.launches = 0

    def allocate(self, nbytes: int) -> int:
        block = np.full(nbytes + 256, 0xCD, np.uint8)  # not zero: reading what nobody wrote should show
        address = data_pointer(block) + -data_pointer(block) % 256
        self._blocks[address] = block
        return address

    def release(self, address: int) -> None:
        del self._blocks[address]

    def _bytes(self, address: int, nbytes: int) -> np.ndarray:
        return np.ctypeslib.as_array((_BYTE * nbytes).from_address(address))

    def upload(self, address: int, data: np.ndarray) -> None:
        self._bytes(address, data.nbytes)[:] = data.reshape(-1).view(np.uint8)

    def download(self, data: np.ndarray, address: int) -> None:
        data.reshape(-1).view(np.uint8)[:] = self._bytes(address, data.nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        if self._capturing is not None:
            self._capturing.append(lambda: self.copy(target, source, nbytes))
            return
        self._bytes(target, nbytes)[:] = self._bytes(source, nbytes).copy()

    def clear(self, address: int, nbytes: int) -> None:
        if self._capturing is not None:
            self._capturing.append(lambda: self.clear(address, nbytes))
            return
        self._bytes(address, nbytes)[:] = 0

    def upload_ahead(self, address: int, data: np.ndarray, after: Any) -> None:
        self.upload(address, data)

    def mark(self) -> float:
        return time.perf_counter()

    def follow(self, mark: Any) -> None:
        pass

    def elapsed(self, begin: float, end: float) -> float:
        return end - begin

    def ordinal_of(self, address: int) -> int:
        return 0

    def follow_stream(self, handle: int) -> None:
        pass

    def settle(self) -> None:
        pass

    def prepare(self, kernels: Sequence[CudaKernel]) -> None:
        pass

    def load(self, kernel: CudaKernel) -> Any:
        return compile_simulated(kernel)

    def launch(self, function: Any, kernel: CudaKernel, addresses: list[int]) -> None:
        if self._capturing is not None:
            self._capturing.append(lambda: self.launch(function, kernel, addresses))
            return
        self.launches += 1
        arrays = []
        for address, p in zip(addresses, kernel.params, strict=True):
            raw = self._bytes(address, p.size * p.stored.itemsize)
            arrays.append((raw.view(p.stored), p.name))
        launch_simulated(function, kernel, arrays)

    def wait(self) -> None:
        pass

    def begin_capture(self) -> None:
        self._capturing = []

    def end_capture(self) -> Any:
        found, self._capturing = self._capturing, None
        return found

    def replay(self, graph: Any) -> None:
        for act in graph:
            act()


_BYTE = np.ctypeslib.as_ctypes_type(np.uint8)
