"""What the simulator finds: races, missed barriers, accesses outside an array. Run by `simulated.py`."""

import numpy as np
import pytest

from fgrad.codegen.cuda.launch import CudaKernel, Param
from fgrad.runtime.cuda.races import Race
from fgrad.runtime.cuda.simulator import MissedBarrier, run_simulated

F32 = np.dtype("float32")


def run(body, x=(1, 2, 3, 4), blocks=1):
    source = "@cuda.jit\ndef k(y, x):\n    t = cuda.threadIdx.x\n    s = cuda.shared.array(4, float32)\n"
    source += "".join(f"    {line}\n" for line in body.split("\n"))
    params = (Param("y", F32, 4, "out"), Param("x", F32, 4))
    y = np.zeros(4, F32)
    run_simulated(CudaKernel("k", source, params, (blocks, 1, 1), (4, 1, 1)), [y, np.array(x, F32)])
    return y.tolist()


def case_a_barrier_orders():
    assert run("s[t] = x[t]\ncuda.syncthreads()\ny[t] = s[3 - t]") == [4, 3, 2, 1]


def case_without_a_barrier_it_is_a_race():
    with pytest.raises(Race, match="a shared array"):
        run("s[t] = x[t]\ny[t] = s[3 - t]")


def case_a_shuffle_is_no_barrier():
    assert run("y[t] = shuffle_xor(x[t], 2)") == [3, 4, 1, 2]
    with pytest.raises(Race, match="a shared array"):
        run("s[t] = x[t]\nv = shuffle_xor(x[t], 1)\ny[t] = s[3 - t]")


def case_a_barrier_too_few_in_a_loop():
    """The second round overwrites what others still read of the first."""
    two = "for k in range(2):\n    s[t] = x[t] + k\n    cuda.syncthreads()\n    y[t] = s[3 - t]"
    with pytest.raises(Race, match="with no barrier"):
        run(two)
    assert run(f"{two}\n    cuda.syncthreads()") == [5, 4, 3, 2]


def case_different_values_in_one_place():
    with pytest.raises(Race, match=r"y\[0\] is written"):
        run("y[0] = x[t]")
    assert run("y[0] = x[0]") == [1, 0, 0, 0]


def case_blocks_are_in_no_order():
    with pytest.raises(Race, match=r"y\[0\] is written"):
        run("if t == 0:\n    y[0] = cuda.blockIdx.x", blocks=2)


def case_a_thread_that_misses_a_barrier():
    with pytest.raises(MissedBarrier):
        run("if t < 3:\n    cuda.syncthreads()\ny[t] = x[t]")


def case_outside_of_an_array():
    with pytest.raises(IndexError, match="element 4 of 4"):
        run("y[t] = x[t + 1]")
    with pytest.raises(IndexError, match="element -1 of 4"):
        run("y[t] = x[t - 1]")
    with pytest.raises(IndexError, match="not a multiple of four"):
        run("y[t] = load4(x, 2)[0]")
