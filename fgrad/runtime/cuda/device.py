"""The GPU as fgrad's arrays and programs see it: memory, eager operations, compiled programs, errors found late."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, ConcreteArray, type_of
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.device import DeviceArray
from fgrad.errors import FgradTypeError, Source, message, replayed, user_source
from fgrad.ir import REGISTRY, Eqn, Graph, Primitive, Type, Var
from fgrad.passes import compile_graph
from fgrad.runtime.cuda import adapter, interop
from fgrad.runtime.cuda.compiled import CudaCompiled
from fgrad.runtime.cuda.driver import Driver, SimulatedDriver
from fgrad.runtime.cuda.executable import CudaExecutable
from fgrad.runtime.cuda.memory import DeviceMemory, MemoryPool
from fgrad.runtime.cuda.nvidia import NvidiaDriver
from fgrad.runtime.cuda.plan import plan_for_cuda
from fgrad.runtime.options import host_ops_allowed, matmul_precision_here

MOST_OPERATIONS = 4096  # programs of single operations that are kept
AHEAD = 64 << 10  # bytes from which an upload beside the queue is worth its events


class CudaDevice:
    """One GPU and the queue of work on it."""

    def __init__(self, driver: Driver, name: str = "cuda:0"):
        self.driver, self.name = driver, name
        self.pool = MemoryPool(driver, self)
        # Programs of single operations, the one used longest ago first, with the parameters that their keys name by identity.
        self._eager: OrderedDict[Any, tuple[CudaExecutable, Any]] = OrderedDict()
        # Programs with checks that ran since the last look, and the lines that called those of one operation.
        self._checked: dict[int, tuple[CudaExecutable, dict[Source | None, None]]] = {}
        self._lock = threading.RLock()

    @property
    def target(self) -> CudaTarget:
        return self.driver.target

    def __repr__(self) -> str:
        return f"CudaDevice({self.name}: {self.driver.description})"

    # -------------------------------------------------------------------------------------------- memory

    def upload(self, data: np.ndarray) -> DeviceMemory:
        """A copy of `data` in fresh memory. What is large is copied beside the queue, so that a batch travels while the step before it
        is computed."""
        if data.dtype not in dtypes.ALL:
            raise FgradTypeError(message("device_put", f"dtype {data.dtype} is not supported"))
        whole = np.ascontiguousarray(data)
        if whole.nbytes >= AHEAD:
            return self.pool.upload_ahead(whole)
        memory = self.pool.allocate(whole.nbytes)
        if whole.nbytes:
            self.driver.upload(memory.address, whole)
        return memory

    def put(self, data: np.ndarray) -> DeviceArray:
        return DeviceArray(self.upload(data), type_of(data.shape, data.dtype))

    def borrow(self, x: Any) -> DeviceArray:
        return interop.borrow(self, x)

    @property
    def dlpack_device(self) -> tuple[int, int]:
        return interop.dlpack_device(self)

    def export(self, x: DeviceArray, stream: Any, wanted: Any, copy: bool | None) -> Any:
        return interop.export(self, x, stream, wanted, copy)

    def get(self, x: DeviceArray) -> np.ndarray:
        result = np.empty(x.shape, x.dtype)
        if x.size:
            self.driver.download(result, x.held.address)
        self._raise_found()
        return result

    def copy(self, x: DeviceArray) -> DeviceArray:
        memory = self.pool.allocate(x.nbytes)
        self.driver.copy(memory.address, x.held.address, x.nbytes)
        return DeviceArray(memory, x.type)

    def memory_of(self, x: Array) -> DeviceMemory:
        """The memory of an array; one on the CPU is copied."""
        if isinstance(x, DeviceArray):
            return self.aligned(x)
        assert isinstance(x, ConcreteArray)
        return self.upload(x.data)

    def aligned(self, x: DeviceArray) -> Any:
        """The memory of an array as kernels expect it: vectors are read from addresses that are multiples of 16. Memory of fgrad's own
        always is; of a foreign slice that is not, a copy."""
        memory: Any = x.held
        if memory.address % 16 == 0:
            return memory
        return self.copy(x).memory

    def wait(self) -> None:
        self.driver.wait()
        self._raise_found()

    # -------------------------------------------------------------------------------------------- programs

    def compile(self, graph: Graph, donated: Mapping[int, int] | None = None) -> CudaExecutable:
        """The program of a graph, planned for this device and loaded."""
        program = compile_graph(graph, donated, target="cuda")
        plan_for_cuda(program, self.target, matmul_precision_here(), host_ops_allowed())
        return CudaExecutable(program, self.driver, self.pool)

    def compiled(
        self,
        graph: Graph,
        donated: Mapping[int, int],
        kinds: Sequence[Any],
        captured: Sequence[Array],
        out_tree: Any,
        forwarded: Mapping[int, int],
        moves: bool,
    ) -> CudaCompiled:
        """The program of a jitted function; see `CudaCompiled`."""
        executable = self.compile(graph, donated)
        gone = sorted({*donated, *executable.program.placed.values()})
        return CudaCompiled(kinds, executable, self, captured, out_tree, gone, forwarded, moves)

    def queue(
        self, executable: CudaExecutable, inputs: Sequence[int], outputs: Sequence[int], eager: bool = False
    ) -> None:
        """Queue a program; its checks are looked at when a value is next asked for. An `eager` one is used at many lines, so the
        line that calls it is kept for what they find."""
        executable(inputs, outputs)
        if executable.status is not None:
            source = (replayed.source or user_source()) if eager else None
            with self._lock:
                self._checked.setdefault(id(executable), (executable, {}))[1][source] = None

    def _raise_found(self) -> None:
        if not self._checked:
            return
        with self._lock:
            checked, self._checked = self._checked, {}
        # All are asked, as asking clears what is found, which must not be found again later.
        found = [
            executable.failure([s for s in sources if s is not None])
            for executable, sources in checked.values()
        ]
        for failure in found:
            if failure is not None:
                raise failure

    # -------------------------------------------------------------------------------------------- operations

    def run(
        self, prim: Primitive, args: Sequence[Array], params: dict[str, Any], types: tuple[Type, ...]
    ) -> list[DeviceArray]:
        """One operation: a program of one equation, compiled once for these types and parameters."""
        if prim.name in _SAME_BYTES and isinstance(args[0], DeviceArray):
            return [DeviceArray(args[0].held, type_of(types[0].shape, types[0].dtype))]
        on = tuple(isinstance(a, DeviceArray) for a in args)
        key = (
            prim,
            tuple((a.type.shape, a.type.dtype) for a in args),
            on,
            _frozen(params),
            matmul_precision_here(),
            host_ops_allowed(),
        )
        with self._lock:
            found = self._eager.get(key)
            if found is None:
                graph = _one_equation(prim, args, on, params, types)
                found = self._eager[key] = self.compile(graph), params
                if len(self._eager) > MOST_OPERATIONS:
                    self._eager.popitem(last=False)
            else:
                self._eager.move_to_end(key)
        executable = found[0]
        memories = [self._operand(a) for a in args]
        outputs = [self.pool.allocate(t.nbytes) for t in types]
        self.queue(executable, [m.address for m in memories], [m.address for m in outputs], eager=True)
        return [DeviceArray(m, type_of(t.shape, t.dtype)) for m, t in zip(outputs, types, strict=True)]

    def _operand(self, x: Array) -> Any:
        if isinstance(x, DeviceArray):
            return self.aligned(x)
        assert isinstance(x, ConcreteArray)
        return self.upload(x.data.reshape(-1)[:1] if x.ndim else x.data)  # a number, whatever its shape


_SAME_BYTES = frozenset({"reshape", "stop_gradient"})


def _one_equation(
    prim: Primitive, args: Sequence[Array], on: Sequence[bool], params: dict[str, Any], types: Sequence[Type]
) -> Graph:
    """The graph of one operation. Numbers come as arrays without dimensions and are broadcast inside."""
    source = replayed.source or user_source()
    inputs, operands, eqns = [], [], []
    broadcast = REGISTRY["broadcast"]
    for a, there in zip(args, on, strict=True):
        var = Var(a.type if there else Type((), a.type.dtype))
        inputs.append(var)
        if not there and a.type.shape:
            whole = Var(a.type)
            eqns.append(Eqn(broadcast, [var], {"shape": a.type.shape, "axes": ()}, [whole], source))
            var = whole
        operands.append(var)
    outputs = [Var(t) for t in types]
    eqns.append(Eqn(prim, operands, params, outputs, source))
    return Graph(tuple(inputs), eqns, tuple(outputs), prim.name)


class _Structure:
    """What a graph does, to compare graphs by: control flow outside of `jit` traces its bodies anew at each call."""

    __slots__ = ("_hash", "parts")

    def __init__(self, graph: Graph):
        numbers: dict[Any, int] = {}

        def atom(a: Any) -> Any:
            if isinstance(a, Var):
                return numbers.setdefault(a, len(numbers)), a.type.shape, a.type.dtype
            return _frozen(np.asarray(a.value))

        # Lines too: what a program finds wrong is told with the line that it has.
        self.parts = (
            tuple(map(atom, graph.inputs)),
            tuple(
                (e.prim, tuple(map(atom, e.inputs)), _frozen(e.params), tuple(map(atom, e.outputs)), e.source)
                for e in graph.eqns
            ),
            tuple(map(atom, graph.outputs)),
        )
        self._hash = hash(self.parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structure) and self.parts == other.parts


def _frozen(value: Any) -> Any:
    """A key for parameters: equal ones give equal keys; functions go by identity."""
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, Graph):
        found = value.meta.get(_Structure)
        if found is None:
            found = value.meta[_Structure] = _Structure(value)
        return found
    if callable(value):
        return id(value)
    return (type(value), value)


# ------------------------------------------------------------------------------------------------ the one device

_devices: dict[int, CudaDevice] = {}
_starting = threading.RLock()


def cuda_device(call: str) -> CudaDevice:
    """The GPU (or the simulator of one, with NUMBA_ENABLE_CUDASIM=1), started on first use.

    Raises:
        ImportError: the package numba-cuda is missing.
        FgradError: there is no driver, or no GPU.
    """
    with _starting:
        found = _devices.get(0)
        if found is None:
            found = _devices[0] = CudaDevice(_driver(call))
        return found


def _driver(call: str) -> Driver:
    adapter.cuda_module()
    return SimulatedDriver() if adapter.simulated() else NvidiaDriver(call)
