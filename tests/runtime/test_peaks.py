"""The machine's peaks: the loops do what they say, figures are kept on disk, and better ones replace worse."""

import ctypes
import dataclasses

import numpy as np
import pytest

from fgrad.codegen.peak_loops import chains
from fgrad.codegen.target import host
from fgrad.runtime import peaks as module
from fgrad.runtime.peaks import Kernels, Peaks, cache_sizes, footprint, measure, peaks


@pytest.fixture(scope="module")
def kernels():
    return Kernels()


def test_streams_move_what_they_say(kernels):
    step = 8 * host().vector_bytes
    raw = np.zeros(8 * step + 64, np.uint8)
    start = -raw.ctypes.data % 64
    x, y, z, _ = raw[start : start + 8 * step].view(np.float32).reshape(4, -1)
    y[:], z[:] = np.arange(y.size), 1
    pointers = [a.ctypes.data for a in (x, y, z)]
    for name, expected in (("copy", y), ("copy.past", y), ("triad", y + z), ("triad.past", y + z)):
        x[:] = -1
        kernels.function(name)(*pointers, x.nbytes, 2)
        np.testing.assert_array_equal(x, expected)
    kernels.function("read")(pointers[1], 0, 0, y.nbytes, 1)


@pytest.mark.parametrize("itemsize", [4, 8])
def test_multiply_adds_are_carried_out(kernels, itemsize):
    dtype = np.dtype(f"f{itemsize}")
    lanes = host().lanes(itemsize)
    data = np.zeros(64 * 32 // itemsize, dtype)
    data[:lanes], data[64 // itemsize : 64 // itemsize + lanes] = 2, 0
    kernels.function(f"fma{8 * itemsize}")(data.ctypes.data, 0, 0, 0, 1)
    stored = data[: chains(host()) * lanes]
    assert (stored == stored[0]).all() and stored[0] in (0, 2)


def test_measured_figures_are_plausible():
    found = measure(2, burst=1e-4, bursts=2)
    assert found.threads == 2 and len(found.copy) == len(found.copy_all) == 4
    rates = (found.float32, found.float64, found.float32_all, *found.copy, *found.copy_all)
    assert all(1e8 < r < 1e14 for r in rates)
    assert str(found).count("GFLOP/s") == 1


def test_figures_are_kept_and_improved(monkeypatch, tmp_path):
    calls = []
    copy = (4e9, 3e9, 2e9, 1e9)
    first = Peaks("cpu", 1, 10e9, 5e9, 10e9, 5e9, copy, copy, (1, 2, 3))
    second = dataclasses.replace(first, float32=12e9, float64=4e9, copy=(5e9, 1e9, 1e9, 1e9))
    answers = [first, second]

    def fake(count):
        calls.append(count)
        return answers[len(calls) - 1]

    monkeypatch.setattr(module, "measure", fake)
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setenv("FGRAD_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FGRAD_CACHE", "1")
    assert peaks() == first and peaks() == first
    module._known.clear()
    assert peaks() == first and len(calls) == 1  # from the disk
    both = peaks(refresh=True)
    assert (both.float32, both.float64, both.copy) == (12e9, 5e9, (5e9, 3e9, 2e9, 1e9))
    assert len(calls) == both.measured == 2
    next(tmp_path.glob("peaks-*.json")).write_text("{")
    module._known.clear()
    calls.clear()
    assert peaks() == first  # a damaged file is measured again


def test_sizes():
    sizes = cache_sizes()
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert [footprint(n, (100, 1000, 10_000)) for n in range(4)] == [50, 500, 5000, 20_000]


def test_launch_and_region(kernels):
    assert 0 < kernels.launch(100) < 1e-2
    region = kernels.region(2, 5)
    assert np.isnan(region) or 0 < region < 1
    assert ctypes.sizeof(ctypes.c_void_p) == 8
