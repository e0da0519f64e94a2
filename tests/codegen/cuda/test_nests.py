"""Loop nests as CUDA kernels: what they compute, in the simulator, case by case."""

import pytest

from . import simulate

pytest.importorskip("numba_cuda", reason="CUDA kernels are simulated by numba-cuda, which is not installed")


FILES = ("nest_cases", "order_cases")


@pytest.mark.parametrize(("file", "case"), [(f, case) for f in FILES for case in simulate.case_names(f)])
def test_in_the_simulator(file, case):
    assert not simulate.results(file)[case]
