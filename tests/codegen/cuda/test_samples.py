"""Every primitive as CUDA kernels: its rows of the sample table, loop nests in the simulator, against the NumPy definition."""

import pytest

from . import simulate

pytest.importorskip("numba_cuda", reason="CUDA kernels are simulated by numba-cuda, which is not installed")

PARTS = 2  # processes, one after the other


@pytest.mark.parametrize(
    ("part", "name"), [(n % PARTS, name) for n, name in enumerate(simulate.sample_names())]
)
def test_primitive_in_the_simulator(part, name):
    assert not simulate.results("samples", str(part), str(PARTS))[name]
