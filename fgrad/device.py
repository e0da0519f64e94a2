"""Arrays on a device: `DeviceArray`, and what this floor asks of the devices' runtime (`Backend`), which stands above.

    x = fgrad.device_put(np.ones(3, "float32"), "cuda")     the one way onto a device
    y = x * 2 + x                                            computed there, operation by operation; numbers go anywhere
    fgrad.device_get(y)                                      the one way back (also y.item(), y.tolist(), print(y))

Nothing moves by itself: an operation on arrays of two devices, and `np.asarray` of an array on a device, are errors.
"""

from __future__ import annotations

import functools
import importlib
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from fgrad.array import Array, ConcreteArray, deleted, from_numpy, is_scalar, one_element
from fgrad.errors import FgradDeviceError, FgradTypeError, FgradValueError, describe, message
from fgrad.ir import Primitive, Type


class Backend(Protocol):
    """A device as operations see it."""

    name: str  # "cuda:0"

    def run(
        self, prim: Primitive, args: Sequence[Array], params: dict[str, Any], types: tuple[Type, ...]
    ) -> list[DeviceArray]:
        """Carry out `prim` on arrays of this device and numbers (arrays of one value, on the CPU)."""
        ...

    def put(self, data: np.ndarray) -> DeviceArray:
        """A copy of `data` on the device."""
        ...

    def get(self, x: DeviceArray) -> np.ndarray:
        """A copy of `x`, once all that it depends on has been computed."""
        ...

    def copy(self, x: DeviceArray) -> DeviceArray:
        """A copy of `x` on the device."""
        ...

    def wait(self) -> None:
        """Return when all that was begun is done; raise what it found wrong."""
        ...

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """How DLPack calls the device: a kind (2 is CUDA) and a number."""
        ...

    def export(self, x: DeviceArray, stream: Any, wanted: Any, copy: bool | None) -> Any:
        """The DLPack capsule of `x`; see `DeviceArray.__dlpack__`."""
        ...


class Memory(Protocol):
    """Bytes on a device. They live as long as somebody refers to them; `users` counts the arrays that do, and `lent` says whether
    another library has been shown them, whose work on them may still be queued when it lets go."""

    backend: Any
    address: int
    nbytes: int
    users: int
    lent: bool


class Unseen(Array):
    """An array whose elements NumPy cannot see: operators between it and NumPy's arrays are ours, NumPy's functions an error."""

    __slots__ = ()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        op = UFUNC_OPERATORS.get(ufunc.__name__)
        if op is not None and method == "__call__" and not kwargs:
            return op(*[x if isinstance(x, Array) or is_scalar(x) else from_numpy(x) for x in inputs])
        raise self._foreign(ufunc.__name__)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func in (np.shape, np.ndim, np.size) and not kwargs and isinstance(args[0], Unseen):
            return func(np.broadcast_to(np.False_, args[0].shape), *args[1:])
        raise self._foreign(func.__name__)

    def _foreign(self, name: str) -> FgradTypeError:
        """The error of NumPy's function `name`."""
        raise NotImplementedError


class DeviceArray(Unseen):
    """An array in a device's memory, contiguous. `memory` is None after donation."""

    __slots__ = ("__weakref__", "memory", "type")
    memory: Memory | None

    def __init__(self, memory: Memory, type: Type):
        self.memory, self.type = memory, type
        memory.users += 1

    def __del__(self) -> None:
        memory = getattr(self, "memory", None)
        if memory is not None:
            memory.users -= 1

    # -------------------------------------------------------------------------------------------- where it is

    @property
    def held(self) -> Memory:
        """The memory; raises if the array was donated."""
        if self.memory is None:
            raise deleted()
        return self.memory

    @property
    def backend(self) -> Backend:
        return self.held.backend

    @property
    def device(self) -> str:
        return self.backend.name

    @property
    def is_deleted(self) -> bool:
        return self.memory is None

    def block_until_ready(self) -> DeviceArray:
        """Return once the array's value has been computed."""
        self.backend.wait()
        return self

    def unsafe_buffer_pointer(self) -> int:
        """The address of the first element. Work that is still queued may be about to write it: see `block_until_ready`."""
        return self.held.address

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the protocol by which CuPy, Numba and PyTorch see these bytes without a copy, once they have been computed
        (so it names no stream to wait for). Nobody may write to them: the protocol has a flag for that, but PyTorch refuses it."""
        if self.dtype.name == "bfloat16":
            raise AttributeError("__cuda_array_interface__ has no bfloat16: use DLPack, or x.view('uint16')")
        memory = self.held
        self.backend.wait()
        memory.users += 1  # for good: who looks at the bytes from outside is not known here
        memory.lent = True
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (memory.address if self.size else 0, False),
            "strides": None,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """(2, 0), the first CUDA device; in the simulator, whose memory is the process's own, (1, 0), the CPU."""
        return self.backend.dlpack_device

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """A capsule by which CuPy, JAX and PyTorch (and NumPy, in the simulator) see these bytes without a copy; do not write to them.

        The array has been computed when this returns, so no stream of the consumer's has to wait, whichever it is; -1 says that it
        waits by itself. As long as the consumer holds the bytes, donating the array copies it. With `copy`, they are a
        copy's on the device. bfloat16 goes through.

        Raises:
            BufferError: `dl_device` is not where the array is.
        """
        return self.backend.export(self, stream, dl_device, copy)

    # -------------------------------------------------------------------------------------------- its value

    def get(self) -> np.ndarray:
        """The value as a NumPy array: a copy."""
        return self.backend.get(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise FgradDeviceError(
            message(
                "np.asarray",
                f"{self.type} is on {self.device}, and nothing is copied from there silently",
                "fgrad.device_get(x) copies it to the CPU",
            )
        )

    def _foreign(self, name: str) -> FgradDeviceError:
        text = f"NumPy cannot compute with {self.type} on {self.device}"
        fix = f"call fgrad.numpy.{name}, or NumPy's on fgrad.device_get(x)"
        return FgradDeviceError(message(f"numpy.{name}", text, fix))

    def item(self, *index: int) -> Any:
        """The only element (or the one at `index`) as a Python scalar, once it has been computed."""
        if not index:
            one_element("item", self, "use x.tolist(), or x.item(i)")
        return self.get().item(*index)

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        one_element("bool", self, "use x.any() or x.all()")
        return bool(self.get())

    def __float__(self) -> float:
        return float(self._single("float"))

    def __int__(self) -> int:
        return int(self._single("int"))

    def __complex__(self) -> complex:
        return complex(self._single("complex"))

    def _single(self, call: str) -> np.ndarray:
        one_element(call, self, "reduce it first (x.sum()), pick one element (x[0]), or use x.tolist()")
        return self.get().reshape(())

    def __index__(self) -> int:
        return operator.index(self._single("index")[()])

    def __format__(self, spec: str) -> str:
        value = self.get()
        return format(value[()] if self.ndim == 0 else value, spec)

    def __str__(self) -> str:
        return str(self.get())

    def __repr__(self) -> str:
        if self.memory is None:
            return f"Array({self.type}, donated)"
        body = np.array2string(self.get(), separator=", ", prefix="Array(")
        return f"Array({body}, dtype={self.dtype}, device={self.device})"

    def __copy__(self) -> DeviceArray:
        return self

    def __deepcopy__(self, memo: Any) -> DeviceArray:
        return self.backend.copy(self)

    def __reduce__(self) -> Any:
        raise FgradDeviceError(
            message("pickle", f"{self.type} is on {self.device}", "pickle fgrad.device_get(x) instead")
        )


UFUNC_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "power": operator.pow,
    "matmul": operator.matmul,
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "bitwise_xor": operator.xor,
    "left_shift": operator.lshift,
    "right_shift": operator.rshift,
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "negative": operator.neg,
    "absolute": operator.abs,
}
"""What NumPy's functions of these names mean to arrays that are not NumPy's, by the operators that they have of their own."""


# ------------------------------------------------------------------------------------------------ which device


class _Placement(threading.local):
    backend: Backend | None = None  # where arrays are made
    numbers: bool = False  # whether operations on nothing but numbers are carried out there too


_placement = _Placement()


class placing_on:
    """Within, arrays that are made of nothing but numbers (zeros, ranges) are made on this device (None: the CPU).

    Operations on numbers alone are carried out there as well, as arrays without axes may be results of what is there; not so where a user
    only says where new arrays go (`numbers=False`): there they may be results of what is on the CPU.

    (A class, as a generator costs three times as much, and this runs at every equation of a backward pass.)
    """

    __slots__ = ("backend", "before", "numbers")

    def __init__(self, backend: Backend | None, numbers: bool = True):
        self.backend, self.numbers = backend, numbers

    def __enter__(self) -> None:
        self.before = _placement.backend, _placement.numbers
        if (
            self.backend is not _placement.backend or not self.numbers
        ):  # the same again says nothing new of numbers
            _placement.backend, _placement.numbers = self.backend, self.numbers

    def __exit__(self, *_: object) -> None:
        _placement.backend, _placement.numbers = self.before


def beside(*arrays: Any) -> placing_on:
    """Within, arrays that are made of nothing but numbers are made where `arrays` are."""
    return placing_on(near(arrays))


def near(arrays: Sequence[Any]) -> Backend | None:
    """Where arrays are to be made that will meet these: on the device of one of them; on the CPU (None) if one is there; where arrays
    are made now if there are only numbers, or nothing is known."""
    found = backend_of(arrays)
    if found is not None or _placement.backend is None:
        return found
    for x in arrays:
        while isinstance(x, Array) and type(x) is not ConcreteArray:
            x = x.value
        if (isinstance(x, np.ndarray) and x.ndim) or (
            isinstance(x, ConcreteArray) and not (_placement.numbers and is_number(x))
        ):
            return None
    return _placement.backend


F = TypeVar("F", bound=Callable[..., Any])


def beside_arguments(f: F) -> F:
    """`f`, and the arrays that it makes of nothing but numbers on the way are made where its arguments are."""

    @functools.wraps(f)
    def placed(*args: Any, **kwargs: Any) -> Any:
        backend = near((*args, *kwargs.values()) if kwargs else args)
        if backend is _placement.backend:
            return f(*args, **kwargs)
        with placing_on(backend):
            return f(*args, **kwargs)

    return placed  # type: ignore[return-value]


def constant(data: np.ndarray) -> Array:
    """An array of values that follow from numbers (index tables, windows), where such arrays are made now."""
    backend = _placement.backend
    return from_numpy(data) if backend is None else backend.put(np.asarray(data))


def placement() -> Backend | None:
    """Where arrays that are made of nothing but numbers are made now."""
    return _placement.backend


def with_numbers() -> bool:
    """Whether operations on numbers alone are carried out there too."""
    return _placement.numbers


def backend_of(arrays: Sequence[Any]) -> Backend | None:
    """The device of the first array that is on one; of a tracer, that of the value it stands for."""
    for x in arrays:
        while type(x) is not ConcreteArray and isinstance(x, Array):
            if isinstance(x, DeviceArray):
                return x.backend
            x = x.value
    return None


def is_number(x: Array) -> bool:
    """Whether an array on the CPU has at most one value: one element, one that is broadcast, or none."""
    return isinstance(x, ConcreteArray) and (x.size <= 1 or not any(x.data.strides))


def run_on(
    backend: Backend, prim: Primitive, args: Sequence[Array], params: dict[str, Any], types: tuple[Type, ...]
) -> list[Any]:
    """Carry out `prim` on a device. Raises if an argument is elsewhere."""
    for x in args:
        if isinstance(x, DeviceArray):
            if x.backend is not backend:
                raise _elsewhere(prim.name, x.device, x, backend.name)
        elif not is_number(x):
            raise _elsewhere(prim.name, "cpu", x, backend.name)
    return backend.run(prim, args, params, types)


def _elsewhere(call: str, where: str, x: Array, other: str) -> FgradDeviceError:
    return FgradDeviceError(
        message(
            call,
            f"operands are on two devices: {describe(x)} on {where}, others on {other}",
            f"move one of them: fgrad.device_put(x, {other!r}), or fgrad.device_get(y) for the CPU",
        )
    )


# ------------------------------------------------------------------------------------------------ devices by name


def parse(name: Any, call: str) -> tuple[str, int]:
    """("cuda", 0) of "cuda" or "cuda:0"; ("cpu", 0) of "cpu"."""
    kind, _, number = str(name).partition(":")
    if kind == "cpu" and number in ("", "0"):
        return "cpu", 0
    if kind == "cuda" and (not number or number.isdecimal()):
        if int(number or 0) > 0:
            text = f"{name!r}: computing on several GPUs is not there yet"
            raise NotImplementedError(
                message(call, text, "use 'cuda', and CUDA_VISIBLE_DEVICES to choose the GPU")
            )
        return "cuda", 0
    raise FgradValueError(message(call, f"{name!r} is no device", "use 'cpu' or 'cuda'"))


def backend_named(name: Any, call: str) -> Backend | None:
    """The device of this name, started if need be; None is the CPU.

    Raises:
        ImportError, FgradError: what CUDA needs is not there; the text says what to install.
    """
    if parse(name, call)[0] == "cpu":
        return None
    # Loaded on first use: programs that stay on the CPU need none of it.
    return importlib.import_module("fgrad.runtime.cuda.device").cuda_device(call)
