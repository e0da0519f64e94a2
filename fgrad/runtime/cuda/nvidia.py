"""A GPU through NVIDIA's driver API (`cuda.bindings.driver`, of CUDA 12 or 13): memory, queues of work, kernels, CUDA graphs.

There are three streams:

    stream      all work, which is therefore done in the order in which it was queued
    copies      uploads that run beside it (`upload_ahead`); events say who waits for whom
    captures    where launches are written down as a CUDA graph, and nothing is run: other threads queue work in `stream` meanwhile,
                which would otherwise become part of the graph

Captures are of the relaxed kind. During one, the garbage collector may free memory of other libraries in this thread, which any
other kind of capture answers by failing; a graph here depends on no allocation made on its way.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrad.codegen.cuda.launch import CudaKernel
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.errors import FgradError, message, missing_extra
from fgrad.memory import data_pointer
from fgrad.runtime.cuda.compilers import compile_beside
from fgrad.runtime.cuda.cubins import cubin_of
from fgrad.runtime.cuda.staging import Staging

OLDEST = (7, 5)  # compute capability that the current compilers know
_MEANWHILE = "use device='cpu' meanwhile"
_OUT_OF_MEMORY, _NOT_INITIALIZED, _NOT_READY = 2, 3, 600
# After these the driver refuses everything until the process ends.
_FOR_GOOD = frozenset({700, 702, 709, 710, 714, 715, 716, 717, 718, 719})


class _Function:
    """A loaded kernel, and room for the addresses of one launch: `void *params[n]` and what they point to."""

    def __init__(self, handle: Any, module: Any, count: int):
        self.handle, self.module = handle, module
        self.values = (ctypes.c_uint64 * max(count, 1))()
        start, size = ctypes.addressof(self.values), ctypes.sizeof(ctypes.c_uint64)
        self.pointers = (ctypes.c_void_p * max(count, 1))(*[start + size * n for n in range(max(count, 1))])
        self.address = ctypes.addressof(self.pointers)


class _Graph:
    """An instantiated CUDA graph; destroyed with this object (the driver keeps it until it has run)."""

    def __init__(self, driver: NvidiaDriver, handle: Any):
        self.driver, self.handle = driver, handle

    def __del__(self) -> None:
        if self.driver.alive:
            self.driver.api.cuGraphExecDestroy(self.handle)


class Mark:
    """A place in a stream: an event recorded there; destroyed with this object (the driver keeps it until it is reached)."""

    def __init__(self, driver: NvidiaDriver, handle: Any):
        self.driver, self.handle = driver, handle

    def __del__(self) -> None:
        if self.driver.alive:
            self.driver.api.cuEventDestroy(self.handle)


class _Thread(threading.local):
    stream: Any = None  # where launches of this thread go while it captures
    failure: FgradError | None = None  # what went wrong first in the capture


class NvidiaDriver:
    """The first visible GPU. `api` is `cuda.bindings.driver`, or what tests put in its place.

    `alive` ends when Python does, and is False in a forked child, where the driver must not be called.

    Raises:
        ImportError: the package cuda-bindings is missing.
        FgradError: no driver, one that is too old, no GPU, or one that is too old.
    """

    def __init__(self, call: str, api: Any = None):
        self.api = api if api is not None else _bindings(call)
        self.alive = self.forked = False
        self._here = _Thread()
        self._loading = threading.Lock()
        self._capturing = threading.Lock()
        self._modules: dict[str, tuple[Any, Any]] = {}
        self._start(call)
        device = self.ask(self.api.cuDeviceGet(0))
        kinds = self.api.CUdevice_attribute
        major, minor, multiprocessors = (
            int(
                self.ask(self.api.cuDeviceGetAttribute(getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}"), device))
            )
            for name in ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "MULTIPROCESSOR_COUNT")
        )
        name = self.ask(self.api.cuDeviceGetName(128, device))
        self.description = (name.decode() if isinstance(name, bytes) else str(name)).split("\0")[0].strip()
        if (major, minor) < OLDEST:
            text = f"{self.description} has compute capability {major}.{minor}"
            raise FgradError(
                message(call, text, "fgrad needs a GPU of 7.5 (Turing) or later; use device='cpu'")
            )
        self.target = CudaTarget((major, minor), multiprocessors)
        # The primary context is the one that PyTorch, CuPy and Numba use, so addresses and streams can be exchanged.
        self.context = self.ask(self.api.cuDevicePrimaryCtxRetain(device))
        self.ask(self.api.cuCtxSetCurrent(self.context))
        # Not to wait for the default stream, nor to have it wait, as other libraries use it.
        flag = int(self.api.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.stream, self.copies, self.captures = (self.ask(self.api.cuStreamCreate(flag)) for _ in range(3))
        self.stream_handle: int | None = int(self.stream)
        self._small = Staging(self, self.stream, 8, 512 << 10)
        self._ahead = Staging(self, self.copies, 4, 8 << 20)
        self.alive = True
        _drivers.add(self)

    def _start(self, call: str) -> None:
        try:
            version = int(self.ask(self.api.cuDriverGetVersion()))
        except RuntimeError as error:  # the bindings' own, where the driver lacks what they are made for
            fix = f"install a newer driver; {_MEANWHILE}"
            raise FgradError(message(call, f"the NVIDIA driver cannot be used: {error}", fix)) from error
        packages = int(getattr(self.api, "CUDA_VERSION", 0))
        if 0 < version // 1000 < packages // 1000:
            text = f"the NVIDIA driver is one for CUDA {version // 1000}.{version % 1000 // 10}, the installed packages "
            text += f"make code for CUDA {packages // 1000}, which it cannot run"
            other = "pip install 'fgrad[cuda12]', or " if version // 1000 == 12 else ""
            raise FgradError(message(call, text, f"{other}install a newer driver; {_MEANWHILE}"))
        code = self.api.cuInit(0)[0]
        if int(code):
            text = f"the NVIDIA driver does not start: {self._text(code)}"
            fix = f"see whether `nvidia-smi` finds the GPU; {_MEANWHILE}"
            if int(code) == _NOT_INITIALIZED:
                text, fix = text + " (it does so in processes forked from one that uses the GPU)", _SPAWN
            raise FgradError(message(call, text, fix))
        if self.ask(self.api.cuDeviceGetCount()) == 0:
            fix = f"see CUDA_VISIBLE_DEVICES and `nvidia-smi`; {_MEANWHILE}"
            raise FgradError(message(call, "the NVIDIA driver finds no GPU", fix))

    # -------------------------------------------------------------------------------------------- errors, threads

    def _text(self, error: Any) -> str:
        """`CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access was encountered`."""
        parts = []
        for ask in (self.api.cuGetErrorName, self.api.cuGetErrorString):
            failed, *found = ask(error)
            if not int(failed) and found and found[0]:
                parts.append(found[0].decode() if isinstance(found[0], bytes) else str(found[0]))
        return ", ".join(parts) or f"CUDA error {int(error)}"

    def ask(self, answer: tuple[Any, ...]) -> Any:
        """The result of a call of the API, which answers with a tuple; raises if the call failed."""
        error, *rest = answer
        if not int(error):
            return rest[0] if len(rest) == 1 else None
        fix = "the GPU is lost to this process: start it again" if int(error) in _FOR_GOOD else ""
        failure = FgradError(message("cuda", f"the NVIDIA driver says: {self._text(error)}", fix))
        if self._here.stream is not None and self._here.failure is None:
            self._here.failure = failure
        raise failure

    def _enter(self) -> None:
        """Make the context that of this thread: each has its own, and other libraries set theirs."""
        if not self.alive:
            if self.forked:
                text = "this process was forked from one that uses the GPU, where CUDA cannot be used"
                raise FgradError(message("cuda", text, _SPAWN))
            raise FgradError(message("cuda", "Python is shutting down"))
        answer = self.api.cuCtxSetCurrent(self.context)
        if int(answer[0]):
            self.ask(answer)

    # -------------------------------------------------------------------------------------------- memory

    def allocate(self, nbytes: int) -> int | None:
        self._enter()
        answer = self.api.cuMemAlloc(nbytes)
        return None if int(answer[0]) == _OUT_OF_MEMORY else int(self.ask(answer))

    def release(self, address: int) -> None:
        if self.alive:
            self.wait()  # freeing may wait by itself, which is not promised
            self.ask(self.api.cuMemFree(address))

    def upload(self, address: int, data: np.ndarray) -> None:
        if data.nbytes:
            self._enter()
            self._small.send(address, data_pointer(data), data.nbytes)

    def download(self, data: np.ndarray, address: int) -> None:
        if data.nbytes:
            self._enter()
            self.ask(self.api.cuMemcpyDtoHAsync(data_pointer(data), address, data.nbytes, self.stream))
            self.ask(self.api.cuStreamSynchronize(self.stream))

    def copy(self, target: int, source: int, nbytes: int) -> None:
        if nbytes:
            self._enter()
            stream = self._here.stream or self.stream
            self.ask(self.api.cuMemcpyDtoDAsync(target, source, nbytes, stream))

    def clear(self, address: int, nbytes: int) -> None:
        if nbytes:
            self._enter()
            self.ask(self.api.cuMemsetD8Async(address, 0, nbytes, self._here.stream or self.stream))

    # -------------------------------------------------------------------------------------------- beside the queue

    def upload_ahead(self, address: int, data: np.ndarray, after: Mark | None) -> Mark:
        self._enter()
        with self._ahead.lock:
            if after is not None:
                self.ask(self.api.cuStreamWaitEvent(self.copies, after.handle, 0))
            self._ahead.send(address, data_pointer(data), data.nbytes)
            return self.mark_in(self.copies)

    def mark(self) -> Mark:
        self._enter()
        return self.mark_in(self.stream)

    def follow(self, mark: Mark) -> None:
        self._enter()
        self.ask(self.api.cuStreamWaitEvent(self.stream, mark.handle, 0))

    def follow_stream(self, handle: int) -> None:
        """What is queued from now on waits for what another library has queued in its stream: its handle, or 1 for the
        default stream, 2 for that of the thread."""
        self._enter()
        self.follow(self.mark_in(handle))

    def mark_in(self, stream: Any) -> Mark:
        """A mark behind all that is in a stream."""
        mark = Mark(self, self.ask(self.api.cuEventCreate(0)))
        self.ask(self.api.cuEventRecord(mark.handle, stream))
        return mark

    def reach(self, mark: Mark) -> None:
        """Return when what was queued before the mark is done."""
        if int(self.api.cuEventQuery(mark.handle)[0]) == _NOT_READY:
            self.ask(self.api.cuEventSynchronize(mark.handle))

    def elapsed(self, begin: Mark, end: Mark) -> float:
        self._enter()
        self.ask(self.api.cuEventSynchronize(end.handle))
        return float(self.ask(self.api.cuEventElapsedTime(begin.handle, end.handle))) / 1e3

    def ordinal_of(self, address: int) -> int | None:
        self._enter()
        kind = self.api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        error, *found = self.api.cuPointerGetAttribute(kind, address)
        return None if int(error) else int(found[0])

    # -------------------------------------------------------------------------------------------- kernels

    def prepare(self, kernels: Sequence[CudaKernel]) -> None:
        """Compile what is to be loaded next, several kernels at once."""
        with self._loading:
            compile_beside([k for k in kernels if k.text not in self._modules], self.target.capability)

    def load(self, kernel: CudaKernel) -> _Function:
        self._enter()
        with self._loading:
            known = self._modules.get(kernel.text)
            if known is None:
                cubin = cubin_of(kernel, self.target.capability)
                module = self.ask(self.api.cuModuleLoadData(cubin.code))
                handle = self.ask(self.api.cuModuleGetFunction(module, cubin.entry.encode()))
                known = self._modules[kernel.text] = (handle, module)
        return _Function(*known, len(kernel.params))

    def launch(self, function: _Function, kernel: CudaKernel, addresses: list[int]) -> None:
        self._enter()
        # The driver has copied them when the call returns.
        function.values[: len(addresses)] = addresses  # type: ignore[assignment]
        answer = self.api.cuLaunchKernel(
            function.handle,
            *kernel.grid,
            *kernel.block,
            0,
            self._here.stream or self.stream,
            function.address,
            0,
        )
        if int(answer[0]):
            self.ask(answer)

    # -------------------------------------------------------------------------------------------- the queue

    def wait(self) -> None:
        self._enter()
        self.ask(self.api.cuStreamSynchronize(self.copies))
        self.ask(self.api.cuStreamSynchronize(self.stream))

    def settle(self) -> None:
        self._enter()
        with self._capturing:  # not to be asked while any stream of the context captures
            self.ask(self.api.cuCtxSynchronize())

    def begin_capture(self) -> None:
        self._enter()
        if self._here.stream is not None:
            raise RuntimeError("begin_capture: this thread captures already")
        self._capturing.acquire()
        try:
            mode = self.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
            self.ask(self.api.cuStreamBeginCapture(self.captures, mode))
        except BaseException:
            self._capturing.release()
            raise
        self._here.stream = self.captures

    def end_capture(self) -> _Graph:
        """The graph. To be called whatever happened in between; raises what the driver refused there, if that spoiled the capture."""
        failure, self._here.failure, self._here.stream = self._here.failure, None, None
        try:
            answer = self.api.cuStreamEndCapture(self.captures)  # the capture ends even if this is an error
            if int(answer[0]) and failure is not None:
                raise failure
            graph = self.ask(answer)
            try:
                handle = self.ask(self.api.cuGraphInstantiate(graph, 0))
            finally:
                self.api.cuGraphDestroy(graph)
            return _Graph(self, handle)
        finally:
            self._capturing.release()

    def replay(self, graph: _Graph) -> None:
        self._enter()
        self.ask(self.api.cuGraphLaunch(graph.handle, self.stream))


# ------------------------------------------------------------------------------------------------ the end of drivers

_SPAWN = "start processes that use the GPU with multiprocessing.get_context('spawn')"
_drivers: weakref.WeakSet[NvidiaDriver] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """Graphs and events that are still there go with the process: the driver may end before Python's last objects do."""
    for driver in list(_drivers):
        with contextlib.suppress(FgradError):
            if driver.alive:
                driver.wait()  # the device may still be fetching from memory that is about to go
        driver.alive = False


def _in_child() -> None:
    for driver in list(_drivers):
        driver.alive, driver.forked = False, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _bindings(call: str) -> Any:
    """`cuda.bindings.driver`, once it is known that there is a driver to bind to."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        text = "no NVIDIA driver here (libcuda.so.1 cannot be loaded)"
        fix = "install the driver of the GPU; without one use device='cpu', or the simulator: NUMBA_ENABLE_CUDASIM=1"
        raise FgradError(message(call, text, fix)) from None
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError:
        raise missing_extra("cuda-bindings", "cuda", "computing on an NVIDIA GPU") from None
