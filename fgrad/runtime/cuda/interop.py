"""Arrays over memory that is shared with other libraries (CuPy, Numba, PyTorch, JAX), without a copy, in both directions.

    fgrad.from_cuda(x)          of DLPack or `__cuda_array_interface__`: `borrow`
    torch.from_dlpack(y)        of an array of fgrad's: `export`

What neither protocol settles is when memory may be used again after the other side let go of it, since its last work may still
be in a queue. Borrowed memory is therefore held until fgrad's queue is empty, and lent memory used again only after all of the
device's work.

In the simulator the memory is the process's own, and goes by the name of the CPU: NumPy and PyTorch can look at it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import type_of
from fgrad.device import DeviceArray
from fgrad.errors import FgradError, FgradTypeError, FgradValueError, describe, message

CPU, CUDA, CUDA_MANAGED = 1, 2, 13  # DLPack's numbers of kinds of devices


class BorrowedMemory:
    """Memory of another library, which `owner` keeps alive. Never written to (its user does not end, so donation copies),
    and never used again by fgrad."""

    __slots__ = ("__weakref__", "address", "backend", "lent", "nbytes", "owner", "users")

    def __init__(self, address: int, nbytes: int, backend: Any, owner: Any):
        self.address, self.nbytes, self.backend, self.owner = address, nbytes, backend, owner
        self.users = 1
        self.lent = True

    def __del__(self) -> None:
        """Wait for what still reads it here, as its owner may write to it as soon as we let go."""
        try:
            if self.backend.driver.alive:
                self.backend.driver.wait()
        except FgradError:
            pass  # found by whoever asks for a value next


# ------------------------------------------------------------------------------------------------ borrowing


def borrow(device: Any, x: Any) -> DeviceArray:
    """An array over the memory of `x`, which has `__dlpack__` or `__cuda_array_interface__`; see `fgrad.from_cuda`."""
    if isinstance(x, DeviceArray):
        return x
    kind = _dlpack_kind(x)
    if kind in (CUDA, CUDA_MANAGED) or (kind == CPU and device.target.simulated):
        return _from_dlpack(device, x, kind)
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is not None:
        return _from_interface(device, interface, x)
    fix = "fgrad.device_put copies from the CPU"
    raise FgradTypeError(message("from_cuda", f"{describe(x)} is not an array on a GPU", fix))


def _dlpack_kind(x: Any) -> int | None:
    if not (hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__")):
        return None
    return int(x.__dlpack_device__()[0])


def _array(
    device: Any, address: int, shape: tuple[int, ...], dtype: Any, strides: Any, owner: Any, what: str
) -> DeviceArray:
    """The array over borrowed memory. `strides` are bytes; None: contiguous."""
    dtype = np.dtype(dtype)
    if dtype not in dtypes.ALL or not dtype.isnative:
        fix = "convert it first, in the library that it comes from"
        raise FgradTypeError(message("from_cuda", f"{what} has dtype {dtype}, which fgrad has not", fix))
    type_ = type_of(shape, dtype)
    if strides is not None and type_.size:
        expected = dtype.itemsize
        for length, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
            if length != 1 and stride != expected:
                text = f"{what} of shape {shape} is not contiguous: strides of {tuple(strides)} bytes"
                fix = "make it so first: x.contiguous() in PyTorch, cupy.ascontiguousarray(x)"
                raise FgradValueError(message("from_cuda", text, fix))
            expected *= length
    if type_.size:
        ordinal = device.driver.ordinal_of(address)
        if ordinal != 0:
            where = "no memory of a GPU" if ordinal is None else f"on GPU {ordinal}"
            fix = "move it to the first GPU: computing on several is not there yet"
            raise FgradValueError(message("from_cuda", f"{what} is {where}", fix))
    return DeviceArray(BorrowedMemory(address, type_.nbytes, device, owner), type_)


def _from_interface(device: Any, interface: dict[str, Any], owner: Any) -> DeviceArray:
    """By the protocol of CuPy and Numba; `stream` is that of its version 3."""
    if interface.get("mask") is not None:
        fix = "pass its values and its mask each by itself"
        raise FgradTypeError(message("from_cuda", f"{type(owner).__name__} has a mask", fix))
    stream = interface.get("stream")
    if stream is not None:
        if int(stream) == 0:
            text = "stream 0 in __cuda_array_interface__, which the protocol does not allow"
            raise FgradValueError(message("from_cuda", text, "1 is the default stream"))
        device.driver.follow_stream(int(stream))
    elif int(interface.get("version", 0)) < 3:
        device.driver.settle()  # earlier versions say nothing of queues, and so nothing of what is not done yet
    shape = tuple(int(n) for n in interface["shape"])
    address, strides = int(interface["data"][0]), interface.get("strides")
    return _array(device, address, shape, interface["typestr"], strides, owner, type(owner).__name__)


# ------------------------------------------------------------------------------------------------ DLPack's structures


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_BFLOAT = 4
_CODES = {0: "int", 1: "uint", 2: "float", _BFLOAT: "bfloat", 5: "complex"}
_NAME, _USED = b"dltensor", b"used_dltensor"  # a capsule refers to its name, so these are never dropped

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.restype, _rename.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)


class _Tensor:
    """A tensor taken out of a capsule: ours to end."""

    def __init__(self, pointer: int):
        self.pointer = pointer
        self.managed = _DLManagedTensor.from_address(pointer)
        self.end = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.managed.deleter or 0)

    def __del__(self) -> None:
        if self.end:
            self.end(self.pointer)


def _from_dlpack(device: Any, x: Any, kind: int) -> DeviceArray:
    """By DLPack. The producer makes our queue wait for its own."""
    try:
        capsule = x.__dlpack__() if kind == CPU else x.__dlpack__(stream=device.driver.stream_handle)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        fix = "in PyTorch, a tensor that requires a gradient: x.detach()"
        text = f"{describe(x)} cannot be shared: {error}"
        raise FgradTypeError(message("from_cuda", text, fix)) from error
    if not _is_valid(capsule, _NAME):
        text = f"{describe(x)}.__dlpack__ gave no capsule named 'dltensor'"
        raise FgradTypeError(
            message("from_cuda", text, "use its __cuda_array_interface__, or a newer version of it")
        )
    owner = _Tensor(_pointer_of(capsule, _NAME))
    _rename(capsule, _USED)
    t = owner.managed.tensor
    what = type(x).__name__
    if t.device_type != CPU and t.device_id != 0:
        text = f"{what} is on GPU {t.device_id}"
        raise FgradValueError(
            message("from_cuda", text, "move it to the first GPU: computing on several is not there yet")
        )
    name = "bool" if (t.code, t.bits) == (6, 8) else f"{_CODES.get(t.code, 'code')}{t.bits}"
    known = {d.name: d for d in dtypes.ALL}
    if t.lanes != 1 or name not in known:
        text = f"{what} has DLPack's type {name} in {t.lanes} lanes, which fgrad has not"
        raise FgradTypeError(
            message("from_cuda", text, "convert it first, in the library that it comes from")
        )
    shape = tuple(t.shape[i] for i in range(t.ndim))
    strides = [t.strides[i] * t.bits // 8 for i in range(t.ndim)] if t.strides else None
    return _array(device, (t.data or 0) + t.byte_offset, shape, known[name], strides, owner, what)


# ------------------------------------------------------------------------------------------------ lending


class _Lent:
    """What a NumPy array over an array's memory refers to: as long as it lives, one more user of the memory."""

    def __init__(self, memory: Any, shape: tuple[int, ...], dtype: np.dtype):
        self.memory = memory
        memory.users += 1
        memory.lent = True
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (memory.address, False),
            "strides": None,
            "version": 3,
        }

    def __del__(self) -> None:
        self.memory.users -= 1


def dlpack_device(device: Any) -> tuple[int, int]:
    """What arrays of a device say in `__dlpack_device__`."""
    return (CPU, 0) if device.target.simulated else (CUDA, 0)


def export(
    device: Any, x: DeviceArray, stream: Any, wanted: tuple[int, int] | None, copy: bool | None
) -> Any:
    """The DLPack capsule of an array, once it has been computed: no queue of the consumer's has to wait (`stream` is not
    looked at, but for -1, by which the consumer says that it waits by itself).

    The capsule is NumPy's, of an array that nobody reads: its address is one on the device, and so is what the structure says of
    it when we have corrected it. What ends it is then written in C, and safe wherever and whenever it is called.
    """
    here = dlpack_device(device)
    if wanted is not None and tuple(map(int, wanted)) != here:
        text = f"{x.type} is on {device.name} (DLPack's {here}), not on {tuple(wanted)}; fix: fgrad.device_get(x) copies it"
        raise BufferError(text)
    memory: Any = x.held
    if copy:
        fresh = device.pool.allocate(x.nbytes)
        device.driver.copy(fresh.address, memory.address, x.nbytes)
        memory = fresh
    if stream != -1:
        device.wait()
    bfloat = x.dtype == dtypes.bfloat16
    shown = np.asarray(_Lent(memory, x.shape, np.dtype(np.uint16) if bfloat else x.dtype))
    capsule = shown.__dlpack__()
    t = _DLManagedTensor.from_address(_pointer_of(capsule, _NAME)).tensor
    t.device_type, t.device_id = here
    if bfloat:
        t.code = _BFLOAT
    return capsule


__all__ = ["BorrowedMemory", "borrow", "dlpack_device", "export"]
