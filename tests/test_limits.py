"""The limits of the benchmarks' workloads: their FLOP against counts by hand, and the figures as tables."""

import importlib
import pathlib
import sys

import pytest

from fgrad.runtime.peaks import Peaks

FOLDER = str(pathlib.Path(__file__).parents[1] / "benchmarks")
COPY = (200e9, 100e9, 50e9, 20e9)
PEAKS = Peaks("test", 2, 100e9, 50e9, 200e9, 100e9, COPY, COPY, (32 << 10, 1 << 20, 32 << 20))


@pytest.fixture(scope="module")
def limits():
    sys.path.insert(0, FOLDER)
    try:
        yield importlib.import_module("limits")
    finally:
        sys.path.remove(FOLDER)


def test_steps_of_workloads(limits):
    mlp, tiny, chain = limits.workload_limits(["W4", "W5", "W7"], PEAKS)
    # Forward and the gradient for the weights of both layers; the one for the input of the second.
    flops = 2 * 64 * (2 * (784 * 128 + 128 * 10) + 128 * 10)
    assert mlp["mflop"] == pytest.approx(flops / 1e6)
    assert tiny["mflop"] == pytest.approx(2 * (2 * (6 * 8 + 8 * 5) + 8 * 5) / 1e6)
    assert mlp["limit_us"] == pytest.approx(max(flops / 200e9, mlp["mbytes"] * 1e6 / 50e9) * 1e6)
    assert chain["mbytes"] == pytest.approx(32, rel=1e-3)  # x in, its gradient out
    assert chain["limit_us"] == pytest.approx(32e6 / 50e9 * 1e6, rel=1e-3)
    assert all(r["limit_us"] <= r["steps_us"] * 1.001 for r in (mlp, tiny, chain))


def test_figures_as_a_table(limits, monkeypatch):
    monkeypatch.setattr(limits, "BURST", 1e-4)
    monkeypatch.setattr(limits, "BURSTS", 1)
    found = limits.measure(1, peers=False)
    assert limits.peaks_of(found).float32 == found["fma_gflops"]["float32"]["1"] * 1e9
    text = limits.tables(found)
    assert "FMA on registers, float32" in text and "triad, memory" in text and "region" not in text
