"""What a program without a GPU pays for GPUs (nothing), and what it is told when it asks for one (one thing)."""

from __future__ import annotations

import ctypes
import os
import pathlib
import subprocess
import sys

import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.errors import FgradError
from fgrad.runtime.cuda import adapter, device, nvidia

ROOT = pathlib.Path(__file__).resolve().parents[3]

ASKING = {
    "device_put": lambda: fgrad.device_put(1.0, "cuda"),
    "default_device": lambda: fgrad.default_device("cuda:0").__enter__(),
    "from_cuda": lambda: fgrad.from_cuda(None),
    "jit of <lambda>": lambda: fgrad.jit(lambda x: x, device="cuda")(1.0),
}

USING_THE_CPU = """
import sys, fgrad, fgrad.numpy as fnp, fgrad_nn as nn
loaded = [m for m in sys.modules if m.startswith(("fgrad.runtime.cuda", "numba.", "numba_cuda", "cuda"))]
assert not loaded, loaded
params = nn.Linear(3, 2).init(fgrad.random.key(0))
step = fgrad.jit(fgrad.grad(lambda p, x: (nn.Linear(3, 2)(p, x) ** 2).sum()))
step(params, fnp.ones((4, 3)))
fgrad.device_get(fgrad.device_put(params, "cpu"))
with fgrad.default_device("cpu"):
    fnp.zeros(3)
loaded = [m for m in sys.modules if m.startswith(("fgrad.runtime.cuda", "numba.cuda", "numba_cuda", "cuda."))]
assert not loaded, loaded
"""

ASKING_FOR_A_GPU = """
import sys
import fgrad

for ask in (fgrad.devices, fgrad.devices):
    assert ask() == ("cpu",)
for _ in range(2):
    try:
        fgrad.device_put(1.0, "cuda")
    except ImportError as e:
        text = str(e)
        assert text.count("pip install 'fgrad[cuda]'") == 1 and e.__context__ is None, text
    else:
        raise AssertionError("no error")
assert not [m for m in sys.modules if m.startswith(("numba.cuda", "numba_cuda"))]
"""

# Before anything else: Python looks for modules as if numba-cuda were not there.
HIDDEN = """
import sys
from importlib.machinery import PathFinder

sys.meta_path[:] = [f for f in sys.meta_path if "numba_cuda" not in type(f).__module__]
find = PathFinder.find_spec

def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] == "numba_cuda" else find(name, path, target)

PathFinder.find_spec = find_others
"""


def python(code: str, **environment: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"} | environment
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_cpu_needs_nothing_of_it():
    python(USING_THE_CPU)


@pytest.fixture
def no_device(monkeypatch):
    """As at the start of a process: no device was asked for yet."""
    monkeypatch.setattr(device, "_devices", {})
    adapter.cuda_module.cache_clear()
    yield
    adapter.cuda_module.cache_clear()


@pytest.mark.parametrize("call", ASKING)
def test_without_the_package(call, no_device, monkeypatch):
    monkeypatch.setattr(adapter, "installed", lambda: False)
    with pytest.raises(
        ImportError, match=r"needs the package 'numba-cuda'(?s:.)*fix: pip install 'fgrad\[cuda\]'"
    ) as e:
        ASKING[call]()
    assert e.value.__context__ is None  # one error
    assert fgrad.devices() == ("cpu",)


def test_without_the_package_in_a_process_of_its_own():
    python(HIDDEN + ASKING_FOR_A_GPU)


@pytest.mark.parametrize("call", ASKING)
def test_without_a_driver(call, no_device, monkeypatch):
    pytest.importorskip("numba_cuda", reason="asks for a GPU by numba-cuda, which is not installed")

    load = ctypes.CDLL

    def missing(name, *rest, **options):
        if name in ("libcuda.so.1", "nvcuda.dll"):
            raise OSError(f"{name}: cannot open shared object file")
        return load(name, *rest, **options)

    monkeypatch.setattr(nvidia.ctypes, "CDLL", missing)
    text = (
        rf"{call}: no NVIDIA driver here(?s:.)*test_without_gpu.py(?s:.)*fix: install the driver of the GPU"
    )
    with pytest.raises(FgradError, match=text):
        ASKING[call]()
    assert fgrad.devices() == ("cpu",)
    assert float(fnp.ones(3).sum()) == 3  # the CPU computes all the same
