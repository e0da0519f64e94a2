"""The driver for hardware over NVIDIA's own bindings, below which a small library in C stands for `libcuda.so.1` (`driver_stub.c`).

What runs on a GPU is the same Python: the bindings check and convert every argument, and the stub what arrives.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("cuda.bindings", reason="NVIDIA's bindings come with numba-cuda, which is not installed")

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]

PROGRAM = """
import os
import numpy as np
from fgrad.codegen.cuda.launch import CudaKernel, Param
from fgrad.errors import FgradError
from fgrad.runtime.cuda import nvidia
from fgrad.runtime.cuda.cubins import Cubin
from fgrad.runtime.cuda.memory import MemoryPool

nvidia.cubin_of = lambda kernel, capability: Cubin(b"code\\0", kernel.name)
F32 = np.dtype("float32")

def kernel(name):
    text = f"@cuda.jit\\ndef {name}(y, x):\\n    {name}()\\n"
    return CudaKernel(name, text, (Param("y", F32, 8, "out"), Param("x", F32, 8)), (1, 2, 3), (4, 5, 6))

def fetched(memory, n=8):
    result = np.empty(n, F32)
    driver.download(result, memory.address)
    return result.tolist()

driver = nvidia.NvidiaDriver("test")
assert driver.description == "NVIDIA Stub" and driver.target.capability == (9, 0) and driver.target.multiprocessors == 132
pool = MemoryPool(driver, None)
a, b = pool.allocate(32), pool.allocate(32)
k = kernel("next")
f = driver.load(k)
driver.upload(a.address, np.arange(8, dtype=F32))
driver.launch(f, k, [b.address, a.address])
assert fetched(b) == [1, 2, 3, 4, 5, 6, 7, 8]
driver.begin_capture()
driver.launch(f, k, [a.address, b.address])
driver.copy(b.address, a.address, 32)
driver.clear(a.address, 32)
graph = driver.end_capture()
assert fetched(b) == [1, 2, 3, 4, 5, 6, 7, 8]
driver.replay(graph)
driver.replay(graph)
assert fetched(b) == [3, 4, 5, 6, 7, 8, 9, 10] and fetched(a) == [0] * 8

data = np.arange(9 << 20, dtype=F32)  # more than the ring holds
big = pool.upload_ahead(data)
assert fetched(big, len(data)) == data.tolist()
assert driver.elapsed(driver.mark(), driver.mark()) == 2.5e-3
assert driver.ordinal_of(big.address) == 0 and driver.ordinal_of(0) is None
assert driver.stream_handle == 0x1001
driver.follow_stream(1)
driver.settle()
driver.wait()
try:
    pool.allocate(2 << 30)
    raise AssertionError
except FgradError as error:
    assert "the device has no room for 2,147,483,648 bytes more" in str(error)
bad = kernel("fails")
g = driver.load(bad)
driver.begin_capture()
try:
    driver.launch(g, bad, [a.address, b.address])
    raise AssertionError
except FgradError as error:
    assert "CUDA_ERROR_LAUNCH_FAILED, unspecified launch failure" in str(error)
driver.end_capture()
del graph, big
pool.empty()
assert pool.held == 1024
print("done")
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory) -> dict[str, str]:
    """The environment in which `libcuda.so.1` is the stub."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the stub of the driver needs a C compiler on Linux")
    folder = tmp_path_factory.mktemp("stub")
    target = str(folder / "libcuda.so.1")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-o", target, str(HERE / "driver_stub.c")], check=True
    )
    found = os.environ.get("LD_LIBRARY_PATH", "")
    return {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{found}", "STUB_VERSION": "13000"}


def test_every_call_is_as_the_bindings_want_it(stub):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=stub, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[-4000:]
    said = done.stderr.splitlines()
    assert said.count("stream flags 1") == 3
    assert "image code" in said and "launch next (1, 2, 3) (4, 5, 6) 0 " in said
    assert "capture in stream 0x1003, mode 2" in said  # relaxed
    assert "upload 32 in stream 0x1001" in said and "upload 8388608 in stream 0x1002" in said
    assert "event in stream 0x1002" in said and "stream 0x1001 waits for an event, flags 0" in said
    assert said.count("graph destroyed") == 2 + 2  # each capture's, and what it was made into


def test_a_driver_that_is_too_old_is_named(stub):
    from cuda.bindings import driver

    major = driver.CUDA_VERSION // 1000
    program = "import fgrad.runtime.cuda.nvidia as n; n.NvidiaDriver('device_put')"
    env = {**stub, "STUB_VERSION": str((major - 1) * 1000 + 20)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    text = f"device_put: the NVIDIA driver is one for CUDA {major - 1}.2, the installed packages make code for CUDA {major}"
    assert done.returncode == 1 and text in done.stderr
