"""Memory that is shared with other libraries: in the simulator, whose memory NumPy and PyTorch can look at, and as on hardware, by
what the structures say."""

from __future__ import annotations

import ctypes
import gc
from types import SimpleNamespace

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import dtypes
from fgrad.device import DeviceArray
from fgrad.runtime.cuda import device as runtime
from fgrad.runtime.cuda import interop, nvidia
from fgrad.runtime.cuda.driver import SimulatedDriver
from tests.runtime.cuda.fake_driver import FakeDriver


@pytest.fixture
def simulated(monkeypatch):
    made = runtime.CudaDevice(SimulatedDriver())
    monkeypatch.setitem(runtime._devices, 0, made)
    return made


@pytest.fixture
def fake(monkeypatch):
    made = FakeDriver()
    monkeypatch.setitem(runtime._devices, 0, runtime.CudaDevice(nvidia.NvidiaDriver("test", made)))
    return made


def put(x, dtype=None) -> DeviceArray:
    return fgrad.device_put(fnp.asarray(x, dtype), "cuda")


def tensor_of(capsule):
    return interop._DLManagedTensor.from_address(interop._pointer_of(capsule, b"dltensor")).tensor


# ------------------------------------------------------------------------------------------------ lending


@pytest.mark.parametrize("dtype", sorted(dtypes.ALL - {dtypes.bfloat16}, key=str))
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_numpy_sees_the_same_bytes(simulated, dtype, shape):
    data = np.arange(int(np.prod(shape)), dtype="float64").reshape(shape).astype(dtype)
    x = put(data)
    assert x.__dlpack_device__() == (1, 0)
    seen = np.from_dlpack(x)
    assert seen.dtype == dtype and seen.shape == shape and not seen.flags.writeable
    np.testing.assert_array_equal(seen, data)
    assert not x.size or seen.ctypes.data == x.unsafe_buffer_pointer()


def test_pytorch_sees_the_same_bytes(simulated, torch):
    x = put([[1.5, 2], [3, 4]], "bfloat16")
    seen = torch.from_dlpack(x)
    assert seen.dtype == torch.bfloat16 and seen.tolist() == [[1.5, 2], [3, 4]]
    assert seen.data_ptr() == x.unsafe_buffer_pointer()
    y = put(np.arange(6).reshape(2, 3))
    assert torch.from_dlpack(y).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_memory_has_a_user_more_as_long_as_it_is_lent(simulated, torch):
    x = put([1.0, 2.0])
    assert x.held.users == 1
    a, b = np.from_dlpack(x), torch.from_dlpack(x)
    c = a[:1]
    assert x.held.users == 3 and x.held.lent
    del a, b
    assert x.held.users == 2
    del c
    x.__dlpack__()  # a capsule that nobody takes
    gc.collect()
    assert x.held.users == 1


def test_lent_memory_outlives_its_array(simulated):
    seen = np.from_dlpack(put(np.arange(5.0)))
    others = [put(np.full(5, 9.0)) for _ in range(3)]
    assert seen.tolist() == [0, 1, 2, 3, 4] and len(others) == 3
    del seen
    assert simulated.pool.lent and simulated.pool.used == 3 * 512


def test_a_copy_is_lent_if_asked_for(simulated):
    x = put([1.0, 2.0])
    seen = np.from_dlpack(x, copy=True)
    assert seen.tolist() == [1, 2] and seen.ctypes.data != x.unsafe_buffer_pointer() and x.held.users == 1


def test_a_device_that_the_array_is_not_on_is_refused(simulated, fake):
    x = put([1.0])  # on the second fixture's device
    assert x.__dlpack_device__() == (2, 0)
    with pytest.raises(BufferError, match=r"fgrad\.device_get\(x\)"):
        x.__dlpack__(dl_device=(1, 0))
    with pytest.raises((BufferError, RuntimeError)):
        np.from_dlpack(x)


def test_a_capsule_of_hardware_says_cuda_and_is_computed(fake):
    x = put([[1, 2, 3]], "bfloat16")
    assert not fake.waits
    capsule = x.__dlpack__(stream=1, max_version=(1, 0), dl_device=(2, 0))
    assert fake.waits and not fake.streams[0].queue
    t = tensor_of(capsule)
    assert (t.device_type, t.device_id, t.data) == (2, 0, x.unsafe_buffer_pointer())
    assert (t.code, t.bits, t.lanes, t.ndim, t.byte_offset) == (4, 16, 1, 2, 0)
    assert [t.shape[i] for i in range(2)] == [1, 3]
    waits = len(fake.waits)
    x.__dlpack__(stream=-1)
    assert len(fake.waits) == waits


def test_cuda_array_interface(fake):
    x = put(np.arange(6, dtype="float32").reshape(2, 3))
    shown = x.__cuda_array_interface__
    assert fake.waits  # computed, so there is no stream to wait for
    address = x.unsafe_buffer_pointer()
    assert shown == {
        "shape": (2, 3),
        "typestr": "<f4",
        "data": (address, False),
        "strides": None,
        "version": 3,
    }
    assert x.held.users == 2 and x.held.lent
    assert put(np.zeros((0, 2))).__cuda_array_interface__["data"][0] == 0
    with pytest.raises(AttributeError, match=r"view\('uint16'\)"):
        _ = put([1.0], "bfloat16").__cuda_array_interface__


# ------------------------------------------------------------------------------------------------ borrowing


class Foreign:
    """Another library's array, by the two protocols or one of them."""

    def __init__(self, address: int, shape, typestr="<f4", strides=None, version=3, **more):
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (address, False),
            "strides": strides,
            "version": version,
            **more,
        }


class Producer:
    """Lends fgrad's own capsules as if they were another library's."""

    def __init__(self, x: DeviceArray, device=(2, 0)):
        self.x, self.device, self.streams = x, device, []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        capsule = self.x.__dlpack__(stream=-1)
        tensor_of(capsule).device_id = self.device[1]
        return capsule


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "bfloat16", "complex64", "uint8", "float16"])
def test_from_cuda_of_pytorch(simulated, torch, dtype):
    t = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    x = fgrad.from_cuda(t)
    assert isinstance(x, DeviceArray) and x.dtype.name == dtype and x.unsafe_buffer_pointer() == t.data_ptr()
    np.testing.assert_array_equal(x.get().astype("complex64"), t.to(torch.complex64).numpy())
    part = fgrad.from_cuda(t[1])  # an offset
    np.testing.assert_array_equal(part.get().astype("complex64"), t[1].to(torch.complex64).numpy())
    with pytest.raises(ValueError, match=r"is not contiguous(?s:.)*x\.contiguous\(\)"):
        fgrad.from_cuda(t.T)
    with pytest.raises(TypeError, match=r"cannot be shared(?s:.)*x\.detach\(\)"):
        fgrad.from_cuda(torch.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match=r"cannot be shared|which fgrad has not"):
        fgrad.from_cuda(torch.zeros(3, dtype=torch.float8_e5m2))


def test_borrowed_memory_is_kept_alive_and_never_ours(simulated):
    data = np.arange(4, dtype="float32")
    owner = Foreign(data.ctypes.data, (4,))
    ended = []
    owner.end = type("End", (), {"__del__": lambda self: ended.append(1)})()
    x = fgrad.from_cuda(owner)
    del owner
    assert not ended and x.held.users == 2  # one more than its arrays, for good: donation copies
    assert x.unsafe_buffer_pointer() == data.ctypes.data and fgrad.from_cuda(x) is x
    used = simulated.pool.used
    del x
    assert ended and simulated.pool.used == used and not simulated.pool.free


def test_borrowed_memory_is_let_go_after_the_work_that_reads_it(fake):
    address = fake.cuMemAlloc(512)[1]
    x = fgrad.from_cuda(Foreign(address, (4,)))
    y = put(np.zeros(4, "float32"))
    runtime.cuda_device("test").driver.copy(y.held.address, x.held.address, 16)
    assert fake.streams[0].queue
    del x
    assert not fake.streams[0].queue


def test_the_stream_of_a_producer_is_waited_for_on_the_device(fake):
    address, data = fake.cuMemAlloc(512)[1], np.full(4, 5, "float32")
    fake.push(
        7, lambda: ctypes.memmove(address, data.ctypes.data, 16)
    )  # its library's queue has not written it yet
    x = fgrad.from_cuda(Foreign(address, (4,), stream=7))
    assert not fake.waits
    assert x.tolist() == [5, 5, 5, 5]
    fake.push(7, lambda: None)
    fake.waits.clear()
    y = fgrad.from_cuda(Foreign(address, (4,), version=2))  # which says nothing of streams
    assert y.shape == (4,) and fake.waits == [("context", "MainThread")] and not fake.loose.queue


def test_dlpack_from_hardware(fake):
    producer = Producer(put(np.arange(6.0).reshape(2, 3)))
    x = fgrad.from_cuda(producer)
    assert producer.streams == [int(fake.streams[0])]
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]] and producer.x.held.users == 2
    del x
    gc.collect()
    assert producer.x.held.users == 1  # the capsule's end was called
    with pytest.raises(ValueError, match=r"on GPU 1(?s:.)*first GPU"):
        fgrad.from_cuda(Producer(producer.x, (2, 1)))
    assert producer.x.held.users == 1


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(strides=(4, 8)), ValueError, r"not contiguous: strides of \(4, 8\)(?s:.)*ascontiguousarray"),
        (dict(typestr=">f4"), TypeError, "which fgrad has not"),
        (dict(typestr="<U4"), TypeError, "which fgrad has not"),
        (dict(mask=object()), TypeError, "has a mask"),
        (dict(stream=0), ValueError, "does not allow"),
        (dict(address=12345), ValueError, "is no memory of a GPU"),
    ],
)
def test_what_cannot_be_borrowed(fake, change, error, text):
    how = dict(address=fake.cuMemAlloc(512)[1], shape=(2, 3)) | change
    with pytest.raises(error, match=text):
        fgrad.from_cuda(Foreign(**how))


def test_strides_of_contiguous_arrays_are_fine(fake):
    address = fake.cuMemAlloc(512)[1]
    assert fgrad.from_cuda(Foreign(address, (2, 1, 3), strides=(12, 400, 4))).shape == (2, 1, 3)
    assert fgrad.from_cuda(Foreign(0, (0, 3), strides=(1, 1))).shape == (0, 3)


# ------------------------------------------------------------------------------------------------ no silent copies


@pytest.mark.parametrize(
    "call",
    [fnp.asarray, lambda x: fgrad.device_put(x, "cuda"), fgrad.jit(lambda x: x), fnp.from_dlpack, fnp.sum],
)
def test_another_librarys_gpu_array_is_never_copied_silently(fake, call):
    class Copying(Foreign):
        def __array__(self, dtype=None, copy=None):
            raise AssertionError("copied to the CPU")

    for x in (Copying(fake.cuMemAlloc(512)[1], (2,)), Producer(put([1.0]))):
        with pytest.raises(TypeError, match=r"is on a GPU(?s:.)*fgrad\.from_cuda\(x\)"):
            call(x)


def test_from_cuda_of_what_is_on_the_cpu(fake):
    for x in (np.ones(2), [1.0], SimpleNamespace(), fnp.ones(2)):
        with pytest.raises(TypeError, match=r"is not an array on a GPU(?s:.)*fgrad\.device_put"):
            fgrad.from_cuda(x)


def test_from_dlpack_of_an_array_on_a_gpu_is_that_array(simulated):
    x = put([1.0])
    assert fnp.from_dlpack(x) is x
