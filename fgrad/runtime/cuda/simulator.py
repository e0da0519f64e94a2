"""The names of `adapter.py` as Python functions, for kernels that run in Numba's CUDA simulator.

The simulator runs each CUDA thread as one of Python's, block after block. It knows no warps, so lanes exchange values through
the block: all of its threads must take part, as they do in generated kernels. A pointer is a `Pointer`, which
refuses to be read or written outside its array. Threads wait for each other at barriers of Python's own (`_Block`): Numba's
manager asks every thread in turn whether it waits, which takes most of the time of a kernel with barriers, and does not
notice a thread that leaves while others still wait for it. With FGRAD_CUDASIM_RACES=1 races are errors: see `races.py`.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.codegen.cuda.launch import CudaKernel
from fgrad.codegen.cuda.target import SIMULATED
from fgrad.codegen.python_source import NAMESPACE
from fgrad.ir import REGISTRY
from fgrad.memory import data_pointer
from fgrad.runtime.cuda import races, tensor_cores
from fgrad.runtime.cuda.functions import DEVICE_FUNCTIONS


class Pointer:
    """A flat array as kernels see it. (Not an ndarray: of those the simulator makes copies.)"""

    __slots__ = ("address", "array", "log", "name")

    def __init__(self, array: np.ndarray, name: str = "", log: races.Log | None = None):
        self.array, self.name = array, name
        self.log = None if name == "status" else log
        self.address = data_pointer(array)  # arrays that share memory share elements

    def _checked(self, i: Any) -> Any:
        if not 0 <= i < len(self.array):
            raise IndexError(f"a kernel reads or writes element {i} of {len(self.array)}")
        return i

    def __getitem__(self, i: Any) -> Any:
        value = self.array[self._checked(i)]
        if self.log is not None:
            self.log.note_read(self.address + int(i) * self.array.itemsize, self.name, i)
        return value

    def __setitem__(self, i: Any, value: Any) -> None:
        self.array[self._checked(i)] = value
        if self.log is not None:
            self.log.note_write(self.address + int(i) * self.array.itemsize, self.name, i, self.array[i])


def _load4(x: Any, i: Any) -> tuple[Any, ...]:
    if i % 4:
        raise IndexError(f"load4 at {i}, which is not a multiple of four")
    return x[i], x[i + 1], x[i + 2], x[i + 3]


def _store4(x: Any, i: Any, *values: Any) -> None:
    if i % 4:
        raise IndexError(f"store4 at {i}, which is not a multiple of four")
    for k, value in enumerate(values):
        x[i + k] = value


def _shuffle_xor(value: Any, mask: int) -> Any:
    """Through a table of the block: write, wait for all, read, wait for all."""
    thread: Any = threading.current_thread()
    manager = thread._manager
    table = manager.__dict__.setdefault("exchanged", {})
    table[thread.thread_id] = value
    manager.exchange.wait()
    found = table[thread.thread_id ^ mask]
    manager.exchange.wait()
    return found


def _converting(dtype: np.dtype) -> Any:
    """`dtype` as a name in kernels: a type for arrays, and a conversion that never raises, as the hardware's."""

    def convert(cls: Any, x: Any = 0) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(x).astype(dtype)[()]

    return type(dtype.name, (dtype.type,), {"__new__": convert})


def _index32(name: str) -> Any:
    def of(i: Any, d: Any) -> int:
        if not 0 <= i < 2**31 or d <= 0:
            raise ValueError(f"{name}({i}, {d}): for indices below 2**31 and positive divisors only")
        return int(i) // int(d) if name == "quotient" else int(i) % int(d)

    return of


def _as(dtype: np.dtype, bits: np.dtype) -> tuple[Any, Any]:
    """From the bits of a half-precision number to float32, and back by rounding."""
    return (
        lambda x: np.asarray(x, bits).view(dtype).astype(np.float32)[()],
        lambda x: np.asarray(x, np.float32).astype(dtype).view(bits)[()],
    )


@functools.cache
def namespace() -> dict[str, Any]:
    """The names that the text of a kernel may use, but for `cuda`, which belongs to the simulator."""
    names: dict[str, Any] = dict(NAMESPACE)
    names |= {"inf": float("inf"), "nan": float("nan"), "abs": abs, "range": range, "min": min, "max": max}
    exec(compile(DEVICE_FUNCTIONS, "<cuda device functions>", "exec"), names)
    names |= {d.name: _converting(d) for d in (*dtypes.INTS, dtypes.float32, dtypes.float64)}
    names["boolean"] = np.bool_
    names |= {"load4": _load4, "store4": _store4, "shuffle_xor": _shuffle_xor}
    names |= {"quotient": _index32("quotient"), "modulo": _index32("modulo")}
    names |= {
        "float_pow": lambda a, b: np.power(np.asarray([a]), np.asarray([b]))[0],
        "one": lambda x: type(x)(1),
        "zero": lambda x: type(x)(0),
    }
    names["bitcast"] = lambda x, dtype: np.asarray(x).view(np.dtype(dtype))[()]
    names["erfinv"] = REGISTRY["erfinv"].impl
    names["fmod"] = np.fmod
    names["from_half"], names["to_half"] = _as(dtypes.float16, dtypes.uint16)
    names["from_bfloat"], names["to_bfloat"] = _as(dtypes.bfloat16, dtypes.uint16)
    return names | tensor_cores.simulated()


class MissedBarrier(RuntimeError):
    """A thread ended while others of its block wait for it at a barrier."""


class _Barrier:
    """Where all threads of a block wait for the last of them."""

    def __init__(self, count: int):
        self.count, self.waiting, self.passed, self.left = count, 0, 0, 0
        self.changed = threading.Condition()

    def wait(self) -> None:
        with self.changed:
            mine = self.passed
            self.waiting += 1
            if self.waiting == self.count:
                self.waiting = 0
                self.passed += 1
                self.changed.notify_all()
                return
            while mine == self.passed:
                if self.left:
                    raise MissedBarrier("a thread of the block has ended and does not come to this barrier")
                self.changed.wait()

    def leave(self) -> None:
        with self.changed:
            self.left += 1
            self.changed.notify_all()


@functools.cache
def _cuda() -> Any:
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") in ("", "0"):
        raise RuntimeError("the simulator runs in a process that was started with NUMBA_ENABLE_CUDASIM=1")
    # Threads that wait in turn for each other would wait 5 ms each time.
    sys.setswitchinterval(1e-4)
    from numba import cuda

    running: Any = importlib.import_module("numba.cuda.simulator.kernel")
    api: Any = importlib.import_module("numba.cuda.simulator.kernelapi")

    class Thread(running.BlockThread):
        def syncthreads(self) -> None:
            self._manager.barrier.wait()

        def run(self) -> None:
            with np.errstate(all="ignore"):  # which each thread has to say for itself
                super().run()
            self._manager.barrier.leave()
            self._manager.exchange.leave()

    class Block(running.BlockManager):
        def run(self, grid_point: Any, *args: Any) -> None:
            self.barrier, self.exchange = (_Barrier(int(np.prod(self._block_dim))) for _ in range(2))
            points = np.ndindex(*self._block_dim)
            threads = [Thread(lambda: self._f(*args), self, grid_point, p, self._debug) for p in points]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            found = [t.exception for t in threads if t.exception]
            # A thread that fails leaves the others waiting: its error is the cause of theirs.
            found.sort(key=lambda e: isinstance(e[0], MissedBarrier))
            if found:
                raise found[0][0].with_traceback(found[0][1])

    allocating = threading.Lock()

    class Shared(api.FakeCUDAShared):
        def array(self, shape: Any, dtype: Any, alignment: Any = None) -> Any:
            """One array for each line that asks, whichever thread comes first: Numba's own may make two."""
            frame = sys._getframe(1)
            line = frame.f_code.co_filename, frame.f_lineno
            with allocating:
                made = self._allocations.get(line)
                if made is None:
                    made = np.empty(shape, dtype)
                    if races.wanted():
                        made = races.SharedWatch(made, races.Log(), line)
                    self._allocations[line] = made
                return made

    running.BlockManager, api.FakeCUDAShared = Block, Shared
    return cuda


def compile_simulated(kernel: CudaKernel) -> Any:
    """The kernel in Numba's simulator: launch it as `f[grid, block](*pointers)`."""
    scope = {**namespace(), **dict(kernel.functions), "cuda": _cuda()}
    # Device functions as plain ones: the simulator would exchange all their globals at each call.
    source = kernel.source.replace("@cuda.jit(device=True)\n", "")
    exec(compile(source, f"<cuda kernel {kernel.name}>", "exec"), scope)  # its text is all our own
    return scope[kernel.name]


def run_simulated(kernel: CudaKernel, arrays: list[np.ndarray], function: Any = None) -> None:
    """Launch `kernel` on flat NumPy arrays, one for each parameter, in the types that memory has (`Param.stored`)."""
    pointers = []
    for array, param in zip(arrays, kernel.params, strict=True):
        flat = array.reshape(-1).view(param.stored)
        if flat.size < param.size or (not np.shares_memory(flat, array) and flat.size):
            raise ValueError(f"{kernel.name}: parameter {param.name} needs {param.size} contiguous elements")
        pointers.append((flat, param.name))
    launch_simulated(function or compile_simulated(kernel), kernel, pointers)


def launch_simulated(function: Any, kernel: CudaKernel, arrays: Sequence[tuple[np.ndarray, str]]) -> None:
    """Run a kernel on flat arrays of the types that memory has, with their names."""
    log = races.Log() if races.wanted() else None
    pointers = [Pointer(array, name, log) for array, name in arrays]
    # One at a time: the simulator exchanges `cuda` among a kernel's globals while it runs.
    with _launching, np.errstate(all="ignore"):
        function[kernel.grid, kernel.block](*pointers)


_launching = threading.Lock()

__all__ = ["SIMULATED", "Pointer", "compile_simulated", "launch_simulated", "namespace", "run_simulated"]
