"""Batches on a GPU: the same as on the CPU, in order, and none waits for another but on the device.

The GPU is the memory of the simulated driver, or a driver API played by Python (`tests/runtime/cuda/fake_driver.py`), which does what
is queued as late as it may. Neither runs kernels of Numba's here.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.array import ConcreteArray
from fgrad.codegen.cuda.launch import CudaKernel, LaunchStep, Param
from fgrad.codegen.program import Block, Buf, Program
from fgrad.device import DeviceArray
from fgrad.runtime.cuda import device as runtime
from fgrad.runtime.cuda import nvidia
from fgrad.runtime.cuda.cubins import Cubin
from fgrad.runtime.cuda.driver import SimulatedDriver
from fgrad.runtime.cuda.executable import CudaExecutable
from fgrad_nn.data import DataLoader
from tests.runtime.cuda.fake_driver import FakeDriver

F32 = np.dtype("float32")
IMAGES = np.random.default_rng(0).random(
    (150, 24, 24), F32
)  # 73,728 bytes for 32: a batch is sent beside the queue
LABELS = np.arange(150)
BATCH = 32


@pytest.fixture
def simulated(monkeypatch):
    made = runtime.CudaDevice(SimulatedDriver())
    monkeypatch.setitem(runtime._devices, 0, made)
    return made


def total(y, x):
    size = BATCH * 24 * 24
    values = np.ctypeslib.as_array((ctypes.c_float * size).from_address(x))
    ctypes.c_double.from_address(y).value = values.sum(dtype="float64")


def halved(y, x):
    ctypes.c_double.from_address(y).value = ctypes.c_double.from_address(x).value / 2


@pytest.fixture(params=[set(), {1}, {2}, {1, 2}], ids=lambda hasty: f"hasty{sorted(hasty)}")
def fake(request, monkeypatch):
    """The API, its device being fgrad's GPU; `hasty` streams do their work at once."""
    monkeypatch.setattr(nvidia, "cubin_of", lambda kernel, capability: Cubin(b"code", kernel.name))
    made = FakeDriver()
    made.hasty, made.kernels = request.param, {"total": total, "halved": halved}
    monkeypatch.setitem(runtime._devices, 0, runtime.CudaDevice(nvidia.NvidiaDriver("test", made)))
    return made


def step(device) -> CudaExecutable:
    """Half the sum of a batch's images, in two launches."""
    f64 = np.dtype("float64")
    x, y, t = Buf("x", (BATCH, 24, 24), F32, "input"), Buf("y", (1,), f64, "output"), Buf("t", (1,), f64)

    def launch(name: str, to: Buf, source: Buf) -> LaunchStep:
        params = (Param("y", to.dtype, to.size, "out"), Param("x", source.dtype, source.size))
        text = f"@cuda.jit\ndef {name}(y, x):\n    {name}()\n"
        return LaunchStep(CudaKernel(name, text, params, (1, 1, 1), (32, 1, 1)), (to, source))

    body = Block([launch("total", t, x), launch("halved", y, t)])
    program = Program("step", (x,), (y,), body, arena_bytes=64, offsets={t: 0})
    return CudaExecutable(program, device.driver, device.pool)


def same(a, b) -> None:
    assert type(a) is DeviceArray and type(b) is ConcreteArray and a.dtype == b.dtype
    np.testing.assert_array_equal(a.get(), np.asarray(b))


# ------------------------------------------------------------------------------------------------ what batches are


@pytest.mark.parametrize("prefetch", [None, 0, 1, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_those_of_the_cpu(simulated, prefetch, shuffle):
    key = fgrad.random.key(3)

    def noisy(x, key):
        return x + fgrad.random.normal(key, x.shape)

    for transform in (None, noisy):
        how = dict(shuffle=shuffle, key=key, transform=transform, prefetch=prefetch)
        here = DataLoader((IMAGES, LABELS), BATCH, **how)
        there = DataLoader((IMAGES, LABELS), BATCH, **how, device="cuda")
        for _ in range(2):
            pairs = list(zip(there, here, strict=True))
            assert len(pairs) == 5
            for (x, y), (u, v) in pairs:
                assert x.device == y.device == "cuda:0"
                same(x, u)
                same(y, v)


def test_batches_of_examples(simulated):
    examples = [({"a": IMAGES[n], "n": n}, n % 3) for n in range(10)]
    here, there = (DataLoader(examples, 4, device=d) for d in ("cpu", "cuda"))
    assert here.prefetch == there.prefetch == 2
    for a, b in zip(there, here, strict=True):
        assert list(a[0]) == ["a", "n"]
        fgrad.tree.map(same, a, b)


def test_preparation_is_on_the_cpu_whatever_the_program_computes_on(simulated):
    loader = DataLoader(
        (IMAGES, LABELS), BATCH, shuffle=True, key=fgrad.random.key(0), prefetch=0, device="cuda"
    )
    plain = DataLoader((IMAGES, LABELS), BATCH, shuffle=True, key=fgrad.random.key(0), prefetch=0)
    with fgrad.default_device("cuda"):
        batches = list(loader)
        assert fnp.asarray(next(iter(plain))[0]).device == "cpu"
    plain.epoch = 0
    for (x, _), (u, _) in zip(batches, plain, strict=True):
        same(x, u)


def test_threads_are_the_default_only_on_a_gpu(simulated):
    assert DataLoader((IMAGES, LABELS), BATCH).prefetch == 0
    assert DataLoader((IMAGES, LABELS), BATCH, device="cpu").prefetch == 0
    assert DataLoader((IMAGES, LABELS), BATCH, device="cuda").prefetch == 2


def test_errors_come_when_the_loader_is_made(simulated, monkeypatch):
    with pytest.raises(ValueError, match=r"'gpu' is no device"):
        DataLoader((IMAGES, LABELS), BATCH, device="gpu")
    key = fgrad.device_put(fgrad.random.key(0), "cuda")
    with pytest.raises(TypeError, match=r"key is on cuda:0(?s:.)*fgrad\.device_get\(key\)"):
        DataLoader((IMAGES, LABELS), BATCH, shuffle=True, key=key, device="cuda")

    def missing(call):
        raise ImportError(f"{call}: install it")

    monkeypatch.setattr(runtime, "cuda_device", missing)
    with pytest.raises(ImportError, match="install it"):
        DataLoader((IMAGES, LABELS), BATCH, device="cuda")


def test_a_batch_is_not_held_by_its_loader(simulated):
    batches = iter(DataLoader((IMAGES, LABELS), BATCH, device="cuda", prefetch=0))
    x, _ = next(batches)
    assert x.held.users == 1


# ------------------------------------------------------------------------------------------------ how they come


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_nobody_waits_and_no_batch_comes_late_or_is_overwritten(fake, prefetch):
    device = runtime.cuda_device("test")
    run, results, labels, blocks = step(device), [], [], set()
    how = dict(shuffle=True, key=fgrad.random.key(1), drop_last=True)
    loader = DataLoader((IMAGES, LABELS), BATCH, **how, prefetch=prefetch, device="cuda")
    for _ in range(4):
        for x, y in loader:
            out = device.pool.allocate(8)
            run([x.held.address], [out.address])
            results.append(out)
            labels.append(y)
            blocks.add(x.unsafe_buffer_pointer())
            del x, y
    assert not fake.waits  # sixteen steps are queued, and not one has waited for anything
    here = DataLoader((IMAGES, LABELS), BATCH, **how)
    expected = [batch for _ in range(4) for batch in here]
    for out, y, (u, v) in zip(results, labels, expected, strict=True):
        found = np.empty(1)
        device.driver.download(found, out.address)
        assert found[0] == np.asarray(u).sum(dtype="float64") / 2
        same(y, v)
    assert len(blocks) <= prefetch + 3  # used again and again


def test_what_device_put_was_given_may_change_at_once(fake):
    data = np.ones((64, 24, 24), F32)
    x = fgrad.device_put({"w": data, "b": data[:2]}, "cuda")
    data[:] = 7
    assert not fake.waits
    assert (fgrad.device_get(x["w"]).data == 1).all() and (fgrad.device_get(x["b"]).data == 1).all()
