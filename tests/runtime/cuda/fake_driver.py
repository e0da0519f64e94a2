"""`cuda.bindings.driver` played by Python: device memory is the host's, and what is queued is done late.

Work waits in its stream until somebody waits for it. A stream in `FakeDriver.hasty` does all it can at once instead, which is
as far as events let it. A program that is right gives the same bytes however many streams are hasty; one that forgets to wait does not.

    fake = FakeDriver()
    fake.kernels["double"] = lambda y, x: ...         called with addresses, when the launch's turn comes
    fake.fail["cuMemAlloc"] = [0, 2]                  its second call answers 2
    fake.calls["cuStreamSynchronize"]                 how often something was called
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import numpy as np

SUCCESS, INVALID, OUT_OF_MEMORY, NO_CONTEXT = 0, 1, 2, 201
NOT_READY, UNSUPPORTED, INVALIDATED, LAUNCH_FAILED = 600, 900, 901, 719

TEXTS = {
    0: ("CUDA_SUCCESS", "no error"),
    1: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    3: ("CUDA_ERROR_NOT_INITIALIZED", "initialization error"),
    100: ("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"),
    201: ("CUDA_ERROR_INVALID_CONTEXT", "invalid device context"),
    600: ("CUDA_ERROR_NOT_READY", "device not ready"),
    719: ("CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"),
    900: ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"),
    901: ("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"),
}


class Stream:
    def __init__(self, number: int):
        self.number = number
        self.queue: deque[Any] = deque()
        self.graph: list[Any] | None = None  # what is captured
        self.spoiled = False

    def __int__(self) -> int:
        return 0x1000 + self.number


class Record:
    """What an event stands for: a place in a stream."""

    def __init__(self, stream: Stream):
        self.stream, self.reached, self.time = stream, False, 0


class Event:
    record: Record | None = None


class FakeDriver:
    CUDA_VERSION = 13000
    CUresult = enum.IntEnum("CUresult", {name: code for code, (name, _) in TEXTS.items()})
    CUstream_flags = enum.IntEnum("CUstream_flags", {"CU_STREAM_NON_BLOCKING": 1})
    CUstreamCaptureMode = enum.IntEnum("CUstreamCaptureMode", {"CU_STREAM_CAPTURE_MODE_RELAXED": 2})
    CUpointer_attribute = enum.IntEnum("CUpointer_attribute", {"CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL": 9})
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=16,
    )

    def __init__(self, room: int = 1 << 30):
        self.room = room  # bytes of device memory
        self.version, self.count, self.capability = 13000, 1, (9, 0)
        self.kernels: dict[str, Any] = {}
        self.fail: dict[str, list[int]] = {}
        self.lost = 0  # the error that every call answers from now on
        self.calls: Counter[str] = Counter()
        self.waits: list[tuple[str, str]] = []  # what waited for the device, and in which thread
        self.hasty: set[int] = set()  # numbers of streams: 1 all work, 2 uploads ahead
        self.device: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.graphs: set[Any] = set()
        self.executables: set[Any] = set()
        self.events: set[Event] = set()
        self.streams: list[Stream] = []
        self.loose = Stream(0)  # for handles that are other libraries'
        self.clock = 0  # milliseconds: one for each piece of work
        self.here = threading.local()
        self.lock = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return found

        def call(*args: Any) -> tuple[Any, ...]:
            with self.lock:
                self.calls[name] += 1
                planned = self.fail.get(name)
                code = planned.pop(0) if planned else SUCCESS
                if not code and not name.startswith("cuGetError"):
                    code = self.lost
                if (
                    not code
                    and name not in _WITHOUT_CONTEXT
                    and getattr(self.here, "context", None) != "context"
                ):
                    code = NO_CONTEXT
                if code:
                    if name == "cuLaunchKernel" and code == LAUNCH_FAILED and args[8].graph is not None:
                        args[8].spoiled = True
                    return self.CUresult(code), None
                answer = found(*args)
                code, *rest = answer if isinstance(answer, tuple) else (answer,)
                return self.CUresult(code or 0), *rest

        return call

    # -------------------------------------------------------------------------------------------- doing what is queued

    def advance(self, stream: Stream, until: Record | None = None, patient: bool = True) -> None:
        """Do a stream's work, to a record or to its end; `patient`: with that of other streams that it waits for."""
        while stream.queue and not (until is not None and until.reached):
            work = stream.queue[0]
            if isinstance(work, Record) and work.stream is not stream and not work.reached:
                if not patient:
                    return
                self.advance(work.stream, work)
            stream.queue.popleft()
            self.clock += 1
            if not isinstance(work, Record):
                work()
            elif work.stream is stream:
                work.reached, work.time = True, self.clock

    def push(self, stream: Any, work: Any) -> None:
        stream = stream if isinstance(stream, Stream) else self.loose
        if stream.graph is not None:
            stream.graph.append(work)
            return
        stream.queue.append(work)
        before = -1
        while before != self.clock:
            before = self.clock
            for other in self.streams:
                if other.number in self.hasty:
                    self.advance(other, patient=False)

    def waiting(self, name: str) -> None:
        self.waits.append((name, threading.current_thread().name))

    # -------------------------------------------------------------------------------------------- the API

    def cuGetErrorName(self, error: Any) -> Any:
        return SUCCESS, TEXTS[int(error)][0].encode()

    def cuGetErrorString(self, error: Any) -> Any:
        return SUCCESS, TEXTS[int(error)][1].encode()

    def cuDriverGetVersion(self) -> Any:
        return SUCCESS, self.version

    def cuInit(self, flags: int) -> Any:
        return SUCCESS if self.count else 100

    def cuDeviceGetCount(self) -> Any:
        return SUCCESS, self.count

    def cuDeviceGet(self, ordinal: int) -> Any:
        return SUCCESS, ordinal

    def cuDeviceGetName(self, length: int, device: Any) -> Any:
        return SUCCESS, b"NVIDIA Fake\0   "

    def cuDeviceGetAttribute(self, kind: int, device: Any) -> Any:
        return SUCCESS, {75: self.capability[0], 76: self.capability[1], 16: 4}[kind]

    def cuDevicePrimaryCtxRetain(self, device: Any) -> Any:
        return SUCCESS, "context"

    def cuCtxSetCurrent(self, context: Any) -> Any:
        self.here.context = context

    def cuCtxSynchronize(self) -> Any:
        if any(s.graph is not None for s in self.streams):
            return UNSUPPORTED
        self.waiting("context")
        for stream in [*self.streams, self.loose]:
            self.advance(stream)

    def cuStreamCreate(self, flags: int) -> Any:
        assert flags == 1
        self.streams.append(Stream(len(self.streams) + 1))
        return SUCCESS, self.streams[-1]

    def cuStreamSynchronize(self, stream: Stream) -> Any:
        if stream.graph is not None:
            stream.spoiled = True
            return UNSUPPORTED
        self.waiting("stream")
        self.advance(stream)

    def cuStreamWaitEvent(self, stream: Stream, event: Event, flags: int) -> Any:
        assert flags == 0 and event in self.events
        if event.record is not None:
            self.push(stream, event.record)

    def cuEventCreate(self, flags: int) -> Any:
        event = Event()
        self.events.add(event)
        return SUCCESS, event

    def cuEventRecord(self, event: Event, stream: Any) -> Any:
        event.record = Record(stream if isinstance(stream, Stream) else self.loose)
        self.push(stream, event.record)

    def cuEventQuery(self, event: Event) -> Any:
        return SUCCESS if event.record is None or event.record.reached else NOT_READY

    def cuEventSynchronize(self, event: Event) -> Any:
        self.waiting("event")
        if event.record is not None:
            self.advance(event.record.stream, event.record)

    def cuEventElapsedTime(self, begin: Event, end: Event) -> Any:
        if not (begin.record and end.record and begin.record.reached and end.record.reached):
            return NOT_READY, None
        return SUCCESS, float(end.record.time - begin.record.time)

    def cuEventDestroy(self, event: Event) -> Any:
        self.events.remove(event)

    # memory

    def _block(self, nbytes: int) -> tuple[int, np.ndarray]:
        block = np.full(nbytes + 256, 0xCD, np.uint8)  # not zero: what nobody wrote should show
        return block.ctypes.data + -block.ctypes.data % 256, block

    def cuMemAlloc(self, nbytes: int) -> Any:
        assert nbytes > 0
        if sum(len(b) - 256 for b in self.device.values()) + nbytes > self.room:
            return OUT_OF_MEMORY, None
        address, block = self._block(nbytes)
        self.device[address] = block
        return SUCCESS, address

    def cuMemFree(self, address: int) -> Any:
        assert not any(s.queue for s in self.streams), "memory is freed while work is queued"
        del self.device[address]

    def cuMemHostAlloc(self, nbytes: int, flags: int) -> Any:
        address, block = self._block(nbytes)
        self.pinned[address] = block
        return SUCCESS, address

    def _inside(self, blocks: dict[int, np.ndarray], address: int, nbytes: int) -> None:
        assert any(a <= address and address + nbytes <= a + len(b) - 256 for a, b in blocks.items()), (
            f"{nbytes} bytes at {address:#x} are not inside one allocation"
        )

    def cuMemcpyHtoDAsync(self, target: int, source: int, nbytes: int, stream: Stream) -> Any:
        self._inside(self.device, target, nbytes)
        self._inside(self.pinned, source, nbytes)  # or the driver would wait
        self.push(stream, lambda: ctypes.memmove(target, source, nbytes))

    def cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, stream: Stream) -> Any:
        self._inside(self.device, source, nbytes)
        self.push(stream, lambda: ctypes.memmove(target, source, nbytes))

    def cuMemcpyDtoDAsync(self, target: int, source: int, nbytes: int, stream: Stream) -> Any:
        self._inside(self.device, target, nbytes)
        self._inside(self.device, source, nbytes)
        self.push(stream, lambda: ctypes.memmove(target, source, nbytes))

    def cuMemsetD8Async(self, target: int, value: int, nbytes: int, stream: Stream) -> Any:
        self._inside(self.device, target, nbytes)
        self.push(stream, lambda: ctypes.memset(target, value, nbytes))

    def cuPointerGetAttribute(self, kind: int, address: int) -> Any:
        known = any(a <= address < a + len(b) for a, b in self.device.items())
        return (SUCCESS, 0) if known else (INVALID, None)

    # kernels and graphs

    def cuModuleLoadData(self, image: bytes) -> Any:
        return SUCCESS, SimpleNamespace(image=image)

    def cuModuleGetFunction(self, module: Any, name: bytes) -> Any:
        return SUCCESS, self.kernels[name.decode()]

    def cuLaunchKernel(self, function: Any, *args: Any) -> Any:
        gx, gy, gz, bx, by, bz, shared, stream, params, extra = args
        assert min(gx, gy, gz, bx, by, bz) > 0 and shared == 0 and extra == 0
        count = function.__code__.co_argcount
        places = (ctypes.c_void_p * count).from_address(params)
        values = [ctypes.c_uint64.from_address(place).value for place in places]
        self.push(stream, lambda: function(*values))

    def cuStreamBeginCapture(self, stream: Stream, mode: Any) -> Any:
        assert stream.graph is None
        stream.graph, stream.spoiled = [], False

    def cuStreamEndCapture(self, stream: Stream) -> Any:
        found, stream.graph = stream.graph, None
        if stream.spoiled:
            return INVALIDATED, None
        graph = tuple(found or ())
        handle = SimpleNamespace(work=graph)
        self.graphs.add(id(handle))
        return SUCCESS, handle

    def cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        assert id(graph) in self.graphs and flags == 0
        handle = SimpleNamespace(work=graph.work)
        self.executables.add(id(handle))
        return SUCCESS, handle

    def cuGraphDestroy(self, graph: Any) -> Any:
        self.graphs.remove(id(graph))

    def cuGraphExecDestroy(self, graph: Any) -> Any:
        self.executables.remove(id(graph))

    def cuGraphLaunch(self, graph: Any, stream: Stream) -> Any:
        assert id(graph) in self.executables

        def replay() -> None:
            for work in graph.work:
                work()

        self.push(stream, replay)


_WITHOUT_CONTEXT = frozenset(
    {"cuInit", "cuDriverGetVersion", "cuCtxSetCurrent", "cuGetErrorName", "cuGetErrorString"}
    | {"cuGraphExecDestroy", "cuEventDestroy", "cuDevicePrimaryCtxRetain", "cuGraphDestroy"}
    | {name for name in vars(FakeDriver) if name.startswith("cuDevice")}
)
