"""The driver for hardware over a driver API played by Python (`fake_driver.py`), which does what is queued as late as it may."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import pytest

from fgrad.errors import FgradError
from fgrad.runtime.cuda import nvidia
from fgrad.runtime.cuda.executable import CudaExecutable
from fgrad.runtime.cuda.memory import MemoryPool, size_class
from tests.runtime.cuda.fake_driver import LAUNCH_FAILED, OUT_OF_MEMORY
from tests.runtime.cuda.fake_programs import F32, ORDERS, N, expected, fetched, kernel, program, view

# ------------------------------------------------------------------------------------------------ threads


def test_another_thread_uploads_during_a_capture(fake, driver):
    """What it queues must not become part of the graph, and takes place once."""
    a, b = (MemoryPool(driver, None).allocate(4 * N) for _ in range(2))
    function, k = driver.load(kernel("shift")), kernel("shift")
    driver.upload(a.address, np.zeros(N, F32))
    driver.begin_capture()
    driver.launch(function, k, [b.address, a.address])
    other = threading.Thread(target=lambda: driver.upload(a.address, np.full(N, 5, F32)))
    other.start()
    other.join()
    graph = driver.end_capture()
    assert fake.calls["cuMemcpyHtoDAsync"] == 2 and len(fake.streams[0].queue) == 2
    driver.replay(graph)
    assert (fetched(driver, b) == 6).all()
    driver.upload(a.address, np.full(N, 7, F32))
    driver.replay(graph)
    assert (fetched(driver, b) == 8).all()


def test_two_threads_call_programs(fake, driver):
    pool, found = MemoryPool(driver, None), {}
    shared = CudaExecutable(program(), driver, pool)

    def work(number: int) -> None:
        own = CudaExecutable(program(2), driver, pool)
        for call in range(6):
            x, y, z = (pool.allocate(4 * N) for _ in range(3))
            driver.upload(x.address, np.full(N, number * 100 + call, F32))
            shared([x.address], [y.address])
            own([y.address], [z.address])
            found[number, call] = fetched(driver, z)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for (number, call), z in found.items():
        np.testing.assert_array_equal(z, expected(np.full(N, number * 100 + call, F32), 5))
    assert len(found) == 12


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_launch_that_fails_says_what_the_driver_says(fake, driver):
    run = CudaExecutable(program(), driver, MemoryPool(driver, None))
    fake.fail["cuLaunchKernel"] = [0, LAUNCH_FAILED]
    with pytest.raises(
        FgradError, match=r"CUDA_ERROR_LAUNCH_FAILED, unspecified launch failure(?s:.)*start it again"
    ):
        run([run.table[2]], [run.table[2]])


@pytest.mark.parametrize(
    "call", ["cuLaunchKernel", "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"]
)
def test_a_capture_that_fails_is_ended(fake, driver, call):
    pool = MemoryPool(driver, None)
    run = CudaExecutable(program(), driver, pool)
    x, y = pool.allocate(4 * N), pool.allocate(4 * N)
    driver.upload(x.address, np.ones(N, F32))
    run([x.address], [y.address])
    fake.fail[call] = [LAUNCH_FAILED]
    with pytest.raises(FgradError, match="CUDA_ERROR_LAUNCH_FAILED, unspecified launch failure"):
        run([x.address], [y.address])
    if call == "cuStreamEndCapture":
        fake.streams[2].graph = None  # it ends the capture, the fake's answer notwithstanding
    assert fake.streams[2].graph is None and not fake.graphs and not fake.executables
    for _ in range(2):
        driver.clear(y.address, 4 * N)
        run([x.address], [y.address])
        np.testing.assert_array_equal(fetched(driver, y), expected(np.ones(N, F32)))


def test_an_error_found_late_is_raised_by_who_waits(fake, driver):
    fake.lost = LAUNCH_FAILED
    for ask in (driver.wait, lambda: driver.allocate(512), lambda: driver.upload(1, np.ones(3))):
        with pytest.raises(FgradError, match="unspecified launch failure"):
            ask()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(count=0), r"does not start: CUDA_ERROR_NO_DEVICE(?s:.)*nvidia-smi(?s:.)*device='cpu'"),
        (
            dict(version=12080),
            r"is one for CUDA 12\.8(?s:.)*CUDA 13, which(?s:.)*pip install 'fgrad\[cuda12\]'",
        ),
        (dict(version=11080), r"is one for CUDA 11\.8(?s:.)*fix: install a newer driver"),
        (dict(capability=(7, 0)), r"NVIDIA Fake has compute capability 7\.0(?s:.)*7\.5 \(Turing\)"),
        (dict(fail={"cuInit": [3]}), r"initialization error(?s:.)*forked(?s:.)*spawn"),
        (dict(fail={"cuDevicePrimaryCtxRetain": [1]}), "CUDA_ERROR_INVALID_VALUE, invalid argument"),
    ],
)
def test_what_keeps_a_driver_from_starting(fake, change, text):
    for name, value in change.items():
        setattr(fake, name, value)
    with pytest.raises(FgradError, match=text):
        nvidia.NvidiaDriver("device_put", fake)


def test_packages_older_than_the_driver_are_fine(fake):
    fake.version, fake.CUDA_VERSION = 13010, 12090
    assert nvidia.NvidiaDriver("test", fake).description == "NVIDIA Fake"


def test_without_a_driver_the_error_names_it(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(nvidia.ctypes, "CDLL", missing)
    with pytest.raises(FgradError, match=r"device_put: no NVIDIA driver here(?s:.)*NUMBA_ENABLE_CUDASIM=1"):
        nvidia.NvidiaDriver("device_put")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_gets_an_error(fake, driver):
    pool = MemoryPool(driver, None)
    memory, ahead = pool.allocate(64), pool.upload_ahead(np.ones(100, F32))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with pool.lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = sum(fake.calls.values())
            del memory, ahead  # the lock of a thread that is not here is not waited for
            driver.release(1)
            for ask in (driver.wait, lambda: driver.allocate(5), lambda: driver.upload(1, np.ones(2))):
                with pytest.raises(FgradError, match=r"forked(?s:.)*get_context\('spawn'\)"):
                    ask()
            status = 0 if sum(fake.calls.values()) == before else 2
        finally:
            os._exit(status)
    done.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    driver.wait()


def test_each_thread_gets_the_context_back_that_others_took(fake, driver):
    fake.here.context = "another library's"
    memory = MemoryPool(driver, None).allocate(16)
    fake.here.context = None
    driver.upload(memory.address, np.ones(4, F32))
    driver.wait()
    assert (fetched(driver, memory, 4) == 1).all()


def test_marks_measure_time(fake, driver):
    a = MemoryPool(driver, None).allocate(64)
    begin = driver.mark()
    for _ in range(3):
        driver.clear(a.address, 64)
    assert driver.elapsed(begin, driver.mark()) == pytest.approx(4e-3)  # three, and the mark itself


# ------------------------------------------------------------------------------------------------ memory


def test_size_classes_lose_at_most_a_quarter():
    for n in [1, 512, 513, 4096, 5000, *np.random.default_rng(0).integers(1, 1 << 34, 200)]:
        size = size_class(int(n))
        assert size % 512 == 0 and n <= size and (size < 1.25 * n + 512)
        assert size_class(size) == size


def test_released_blocks_are_used_again(fake, driver):
    pool = MemoryPool(driver, None)
    a = pool.allocate(1000)
    address = a.address
    del a
    b = pool.allocate(900)
    assert b.address == address and fake.calls["cuMemAlloc"] == 1
    assert pool.allocate(900).address != address
    assert pool.used == 1024 and pool.held == 2048 and pool.peak == 2048


def test_out_of_memory_gives_back_what_is_free_then_says_so(fake, driver):
    pool = MemoryPool(driver, None)
    fake.room = 4096
    small = [pool.allocate(1024) for _ in range(4)]
    del small[1:]
    driver.clear(small[0].address, 1024)  # freeing waits for it: the fake insists
    big = pool.allocate(3072)  # fits in no free block
    assert pool.held == 4096 and fake.calls["cuMemFree"] == 3
    with pytest.raises(
        FgradError, match=r"no room for 512 bytes more; arrays and programs have 4,096(?s:.)*fix: use smaller"
    ):
        pool.allocate(10)
    del big
    pool.allocate(10)


def test_out_of_memory_collects_garbage(fake, driver):
    pool = MemoryPool(driver, None)
    fake.room = 1024
    cycle = [pool.allocate(1024)]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        assert pool.allocate(600).nbytes == 1024
    finally:
        gc.enable()


def test_an_error_other_than_out_of_memory_is_raised(fake, driver):
    fake.fail["cuMemAlloc"] = [LAUNCH_FAILED]
    with pytest.raises(FgradError, match="unspecified launch failure"):
        MemoryPool(driver, None).allocate(5)
    fake.fail["cuMemAlloc"] = [OUT_OF_MEMORY]
    MemoryPool(driver, None).allocate(5)


def test_nothing_leaks(fake, driver):
    pool = MemoryPool(driver, None)
    run = CudaExecutable(program(), driver, pool)
    for n in range(40):
        x, y = pool.upload_ahead(np.full(N, n, F32)), pool.allocate(4 * N)
        run([x.address], [y.address])
        driver.upload(y.address, np.zeros(N, F32))
    lent = pool.allocate(64)
    lent.lent = True
    del run, x, y, lent
    gc.collect()
    assert pool.used == 0
    pool.empty()
    assert pool.held == 0 and not fake.device and not fake.executables and not fake.graphs
    driver._small.marks = driver._ahead.marks = []
    assert not fake.events
    assert len(fake.pinned) == 2


def test_lent_memory_is_used_again_only_after_all_work_of_the_device(fake, driver):
    pool = MemoryPool(driver, None)
    a = pool.allocate(512)
    a.lent, address = True, a.address
    seen = []
    fake.push(7, lambda: seen.append("read by another library"))
    del a
    assert not seen
    assert pool.allocate(512).address == address and seen and fake.waits[-1][0] == "context"


# ------------------------------------------------------------------------------------------------ uploads


def test_uploads_wrap_around_the_ring_and_wait_before_they_overwrite(fake, driver):
    ring = driver._small
    ring.size, ring.segments, ring.marks = 1024, 4, [None] * 4
    pool = MemoryPool(driver, None)
    targets = [pool.allocate(4 * 200) for _ in range(30)]
    for n, memory in enumerate(targets):
        driver.upload(memory.address, np.full(200, n, F32))
    waited = len([w for w in fake.waits if w[0] == "event"])
    assert waited > 0 and len(fake.pinned) == 1
    for n, memory in enumerate(targets):
        assert (fetched(driver, memory, 200) == n).all()


@pytest.mark.parametrize("hasty", ORDERS)
@pytest.mark.parametrize("kilobytes", [1, 7, 64])
def test_uploads_larger_than_the_ring(fake, driver, hasty, kilobytes):
    fake.hasty = hasty
    for ring in (driver._small, driver._ahead):
        ring.size, ring.segments, ring.marks = 1024, 4, [None] * 4
    data = np.arange(kilobytes * 250 + 3, dtype=F32)
    pool = MemoryPool(driver, None)
    ahead, straight = pool.upload_ahead(data), pool.allocate(data.nbytes)
    driver.upload(straight.address, data)
    for memory in (ahead, straight):
        np.testing.assert_array_equal(fetched(driver, memory, len(data)), data)


@pytest.mark.parametrize("hasty", ORDERS)
def test_uploads_ahead_neither_come_late_nor_overwrite_what_is_read(fake, driver, hasty):
    """Batches go into a few blocks beside the queue, whose work reads each of them; nobody waits but the device."""
    fake.hasty = hasty
    pool = MemoryPool(driver, None)
    run = CudaExecutable(program(), driver, pool)
    results, ready = [], [pool.upload_ahead(np.full(N, 0, F32))]
    blocks = set()
    for n in range(12):
        data = np.full(N, n + 1, F32)
        ready.append(pool.upload_ahead(data))  # the next batch, while this one is computed with
        data[:] = -1
        x, y = ready.pop(0), pool.allocate(4 * N)
        run([x.address], [y.address])
        blocks.add(x._start)
        results.append(y)
        del x
    assert not fake.waits
    for n, y in enumerate(results):
        np.testing.assert_array_equal(fetched(driver, y), expected(np.full(N, n, F32)))
    assert len(blocks) <= 3


def test_an_upload_ahead_is_waited_for_at_first_use_only(fake, driver):
    pool = MemoryPool(driver, None)
    a = pool.upload_ahead(np.ones(N, F32))
    assert not fake.streams[0].queue  # nothing waits for it yet
    assert a.address == a.address and fake.calls["cuStreamWaitEvent"] == 1
    never = pool.upload_ahead(np.ones(N, F32))
    start = never._start
    del never
    again = pool.upload_ahead(np.full(N, 3, F32))
    assert again._start == start and (fetched(driver, again) == 3).all()


def test_wait_covers_uploads_ahead(fake, driver):
    a = MemoryPool(driver, None).upload_ahead(np.full(N, 4, F32))
    driver.wait()
    assert (view(a._start) == 4).all()
