"""Putting arrays onto devices and getting them back: the only calls that copy between devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fgrad import tree
from fgrad.array import ConcreteArray, from_numpy
from fgrad.convert import as_array
from fgrad.device import DeviceArray, backend_named, parse, placing_on
from fgrad.errors import FgradError, FgradTypeError, describe, message
from fgrad.trace import Tracer


def devices() -> tuple[str, ...]:
    """The names of the devices that can be computed on here: "cpu", and "cuda:0" if there is a GPU, its driver and numba-cuda."""
    try:
        found = backend_named("cuda", "devices")
    except (ImportError, FgradError):
        found = None
    return ("cpu",) if found is None else ("cpu", found.name)


def device_put(x: Any, device: str) -> Any:
    """A pytree of arrays, copied to a device; arrays that are there already are not copied.

    Nobody waits for the copy: `x` is first copied to page-locked memory (and may be changed afterwards), from where the device fetches
    it beside its other work, also that of steps that are already queued. What uses the array waits for it, on the device.

    Args:
        x: a pytree of arrays, numbers, or what has `__array__` or `__dlpack__` on the CPU. What another library holds on the GPU is an
            error: `fgrad.from_cuda` shares it.
        device: "cpu" or "cuda".

    Raises:
        ImportError, FgradError: computing on the device needs what is not there (numba-cuda, a driver, a GPU).
    """
    parse(device, "device_put")
    backend = backend_named(device, "device_put")
    if backend is None:
        return device_get(x)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, DeviceArray):
            leaf.held  # noqa: B018  (it raises, if the array was donated)
            return leaf
        if isinstance(leaf, Tracer):
            raise _traced("device_put", leaf)
        array = as_array(leaf, "device_put")
        assert isinstance(array, ConcreteArray)
        return backend.put(array.data)

    return tree.map(put, x)


def device_get(x: Any) -> Any:
    """A pytree of arrays, copied to the CPU (as fgrad arrays) once they have been computed; arrays on the CPU are not copied."""

    def get(leaf: Any) -> Any:
        if isinstance(leaf, DeviceArray):
            return from_numpy(leaf.get(), "device_get")
        if isinstance(leaf, Tracer):
            raise _traced("device_get", leaf)
        return as_array(leaf, "device_get")

    return tree.map(get, x)


def _traced(call: str, x: Tracer) -> FgradTypeError:
    text = f"{describe(x)} is traced: a function that is compiled or differentiated computes on one device"
    return FgradTypeError(message(call, text, "call it on the arguments before, or on the results after"))


@contextmanager
def default_device(device: str) -> Iterator[None]:
    """Where arrays are made that follow from nothing but numbers: `with fgrad.default_device("cuda"): x = fnp.zeros((3, 4))`.

    Arrays made from lists or NumPy arrays are on the CPU all the same: `device_put` moves them. A jitted function computes
    where its arguments are (or where `jit(f, device=...)` says), and what a transform calls makes arrays where its arguments are.
    """
    backend = backend_named(device, "default_device")
    with placing_on(backend, numbers=False):
        yield


def from_cuda(x: Any) -> Any:
    """What another library holds on the GPU, as an fgrad array over the same memory, without a copy.

    Work that the other library has queued is waited for (on the device). Its memory is kept alive by the array, and never written to:
    donating the array copies it. The caller does not write to it either as long as the array is used.

    Args:
        x: has `__dlpack__` (CuPy, JAX, PyTorch) or `__cuda_array_interface__` (Numba), is contiguous and on the first GPU.

    Raises:
        FgradTypeError: it is not on a GPU, or of a dtype that fgrad has not.
        FgradValueError: it is not contiguous, or on another GPU.
    """
    backend: Any = backend_named("cuda", "from_cuda")
    return backend.borrow(x)


__all__ = ["default_device", "device_get", "device_put", "devices", "from_cuda"]
