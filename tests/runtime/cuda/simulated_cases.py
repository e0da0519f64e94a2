"""Compiled programs in Numba's simulator, over the simulated driver and over the driver for hardware with a fake API below it.

(Run by `simulated.py`.)
"""

from __future__ import annotations

import numpy as np

import fgrad
import fgrad.numpy as fnp
from fgrad.codegen.cuda.launch import CudaKernel
from fgrad.codegen.cuda.target import SIMULATED
from fgrad.runtime.cuda import device as runtime
from fgrad.runtime.cuda import nvidia
from fgrad.runtime.cuda.cubins import Cubin
from fgrad.runtime.cuda.simulator import compile_simulated, run_simulated
from fgrad_nn.data import DataLoader
from tests.runtime.cuda.fake_driver import FakeDriver

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.random((12, 5, 3), "float32"), RNG.integers(0, 3, 12)


def before_each() -> None:
    """A GPU of its own for each case."""
    runtime._devices.clear()


def faked(hasty: set[int]) -> FakeDriver:
    """fgrad's GPU from now on: a fake API whose kernels run in the simulator when their turn comes."""
    fake = FakeDriver()
    fake.hasty = hasty
    functions = {}

    def compiled(kernel: CudaKernel, capability: tuple[int, int]) -> Cubin:
        name = f"k{len(functions)}"
        functions[name] = compile_simulated(kernel)
        letters = ", ".join(f"a{n}" for n in range(len(kernel.params)))
        scope = {"run": lambda *at: run_at(kernel, functions[name], at)}
        exec(f"def {name}({letters}): run({letters})", scope)  # the fake counts parameters
        fake.kernels[name] = scope[name]
        return Cubin(b"code", name)

    nvidia.cubin_of = compiled
    driver = nvidia.NvidiaDriver("test", fake)
    driver.target = SIMULATED
    runtime._devices[0] = runtime.CudaDevice(driver)
    return fake


def run_at(kernel: CudaKernel, function, addresses) -> None:
    arrays = []
    for address, p in zip(addresses, kernel.params, strict=True):
        fields = {"shape": (p.size,), "typestr": p.stored.str, "data": (address, False), "version": 3}
        arrays.append(np.asarray(type("Memory", (), {"__array_interface__": fields})()))
    run_simulated(kernel, arrays, function)


def loss(w, x, y):
    logits = fnp.reshape(x, (x.shape[0], -1)) @ w
    return -fnp.mean(
        fnp.take_along_axis(logits - fnp.log(fnp.sum(fnp.exp(logits), 1, keepdims=True)), y[:, None], 1)
    )


def training(epochs: int = 2):
    """The parameters after a few steps, and the losses."""

    def step(w, x, y):
        value, g = fgrad.value_and_grad(loss)(w, x, y)
        return w - 0.5 * g, value

    train = fgrad.jit(step, donate=0)
    w, values = fgrad.device_put(np.zeros((15, 3), "float32"), "cuda"), []
    loader = DataLoader((IMAGES, LABELS), 4, shuffle=True, key=fgrad.random.key(0), device="cuda")
    runtime.AHEAD = 1  # these batches are small, and shall travel as large ones do
    for _ in range(epochs):
        for x, y in loader:
            w, value = train(w, x, y)
            values.append(value)
    return w, values


def case_training_agrees_whatever_the_order_of_work():
    w, values = training()
    expected = [np.asarray(fgrad.device_get(v)).tobytes() for v in (w, *values)]
    for hasty in (set(), {1}, {2}, {1, 2}):
        fake = faked(hasty)
        w, values = training()
        assert not fake.waits, f"hasty {hasty}: the loop waited {len(fake.waits)} times"
        found = [np.asarray(fgrad.device_get(v)).tobytes() for v in (w, *values)]
        assert found == expected, f"hasty {hasty}: other values"


def case_donation_copies_what_others_look_at():
    double = fgrad.jit(lambda x: x * 2, donate=0)
    x = fgrad.device_put(np.arange(4, dtype="float32"), "cuda")
    seen = np.from_dlpack(x)
    y = double(x)
    assert x.is_deleted and seen.tolist() == [0, 1, 2, 3] and y.tolist() == [0, 2, 4, 6]
    address = y.unsafe_buffer_pointer()
    z = double(y)
    assert z.unsafe_buffer_pointer() == address  # nobody looked: in place
    mine = np.arange(4, dtype="float32")

    class Foreign:
        __cuda_array_interface__ = {
            "shape": (4,),
            "typestr": "<f4",
            "data": (mine.ctypes.data, False),
            "version": 3,
        }

    assert double(fgrad.from_cuda(Foreign())).tolist() == [0, 2, 4, 6] and mine.tolist() == [0, 1, 2, 3]


def case_a_foreign_array_that_is_not_aligned():
    mine = np.arange(9, dtype="float32")[1:]
    shown = {"shape": (8,), "typestr": "<f4", "data": (mine.ctypes.data, False), "version": 3}
    x = fgrad.from_cuda(type("Foreign", (), {"__cuda_array_interface__": shown})())
    assert (x + 1).tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
