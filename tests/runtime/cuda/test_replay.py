"""Programs replayed as CUDA graphs, whatever addresses they are given."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from fgrad.codegen.cuda.launch import LaunchStep
from fgrad.codegen.program import Block, Buf, Program
from fgrad.runtime.cuda.executable import CudaExecutable
from fgrad.runtime.cuda.memory import MemoryPool
from fgrad.runtime.cuda.replay import MOST_GRAPHS
from tests.runtime.cuda.fake_programs import F32, ORDERS, N, expected, fetched, kernel, program


@pytest.mark.parametrize("hasty", ORDERS)
def test_first_call_captured_call_and_replays_agree(fake, driver, hasty):
    fake.hasty = hasty
    pool = MemoryPool(driver, None)
    run = CudaExecutable(program(), driver, pool)
    x, y = pool.allocate(4 * N), pool.allocate(4 * N)
    for call in range(5):
        data = np.arange(N, dtype=F32) + call
        driver.upload(x.address, data)
        driver.clear(y.address, 4 * N)
        data_then = data.copy()
        data[:] = -1  # the caller may change it at once
        run([x.address], [y.address])
        np.testing.assert_array_equal(fetched(driver, y), expected(data_then))
    assert fake.calls["cuLaunchKernel"] == 2 * 6  # the first call's and the captured ones
    assert run.replays == fake.calls["cuGraphLaunch"] == 4 and len(fake.executables) == 1 and not fake.graphs


def test_nothing_is_waited_for_while_work_is_queued(fake, driver):
    pool = MemoryPool(driver, None)
    run = CudaExecutable(program(), driver, pool)
    x, y = pool.allocate(4 * N), pool.allocate(4 * N)
    for _ in range(4):
        driver.upload(x.address, np.ones(N, F32))
        run([x.address], [y.address])
    assert not fake.waits and fake.streams[0].queue
    driver.wait()
    assert not fake.streams[0].queue


@pytest.mark.parametrize("hasty", ORDERS)
def test_what_changes_its_address_gets_a_home(fake, driver, hasty):
    """A kept result is elsewhere each time, a batch in one of two places: after a few calls there is one graph for all."""
    fake.hasty = hasty
    pool = MemoryPool(driver, None)
    run = CudaExecutable(program(), driver, pool)
    batches = [pool.allocate(4 * N) for _ in range(2)]
    kept = []
    for call in range(MOST_GRAPHS + 5):
        x, y = batches[call % 2], pool.allocate(4 * N)
        driver.upload(x.address, np.full(N, call, F32))
        run([x.address], [y.address])
        kept.append(y)
    for call, y in enumerate(kept):
        np.testing.assert_array_equal(fetched(driver, y), expected(np.full(N, call, F32)))
    assert run.replays == 5 and run.replay.captures == 1 and len(run.replay.homes) == 2
    gc.collect()
    assert len(fake.executables) == 1 and not fake.graphs
    del run
    gc.collect()
    assert not fake.executables


@pytest.mark.parametrize("hasty", ORDERS)
def test_an_output_on_a_donated_input_shares_its_home(fake, driver, hasty):
    fake.hasty = hasty
    x, y = Buf("x", (N,), F32, "input"), Buf("y", (N,), F32, "output")
    steps = [LaunchStep(kernel("scale"), (y, x)), LaunchStep(kernel("shift"), (y, y))]
    placed = Program("f", (x,), (y,), Block(steps), placed={0: 0})
    pool = MemoryPool(driver, None)
    run = CudaExecutable(placed, driver, pool)
    held = [pool.allocate(4 * N) for _ in range(MOST_GRAPHS + 2)]
    for memory in held:
        driver.upload(memory.address, np.ones(N, F32))
    for memory in (*held, held[0]):
        run([memory.address], [memory.address])
    for memory, times in zip(held, (2, *[1] * (MOST_GRAPHS + 1))):
        np.testing.assert_array_equal(fetched(driver, memory), expected(np.ones(N, F32), times))
    homes = run.replay.homes
    assert run.replays == 3 and homes[0] is homes[1]


def test_a_few_graphs_serve_blocks_that_take_turns(fake, driver):
    """As batches and dropped losses do: no copies then."""
    pool = MemoryPool(driver, None)
    run = CudaExecutable(program(), driver, pool)
    batches, losses = ([pool.allocate(4 * N) for _ in range(2)] for _ in range(2))
    for call in range(10):
        x, y = batches[call % 2], losses[call % 2]
        driver.upload(x.address, np.full(N, call, F32))
        before = fake.calls["cuMemcpyDtoDAsync"]
        run([x.address], [y.address])
        np.testing.assert_array_equal(fetched(driver, y), expected(np.full(N, call, F32)))
        assert call < 4 or fake.calls["cuMemcpyDtoDAsync"] == before
    assert run.replays == 8 and run.replay.captures == 2 and not run.replay.homes


def test_large_arguments_that_keep_moving_are_not_copied(fake, driver, monkeypatch):
    monkeypatch.setattr("fgrad.runtime.cuda.replay.MOST_HOMES", 4 * N)
    pool = MemoryPool(driver, None)
    run = CudaExecutable(program(), driver, pool)
    kept = []  # or the pool would hand out the same blocks again
    for _ in range(MOST_GRAPHS + 3):
        x, y = pool.allocate(4 * N), pool.allocate(4 * N)
        kept += [x, y]
        driver.upload(x.address, np.ones(N, F32))
        run([x.address], [y.address])
        np.testing.assert_array_equal(fetched(driver, y), expected(np.ones(N, F32)))
    assert run.replays == 0 and not run.replay.possible


def test_graphs_can_be_turned_off(fake, driver, monkeypatch):
    monkeypatch.setenv("FGRAD_CUDA_GRAPHS", "0")
    pool = MemoryPool(driver, None)
    run = CudaExecutable(program(), driver, pool)
    x, y = pool.allocate(4 * N), pool.allocate(4 * N)
    for _ in range(3):
        run([x.address], [y.address])
    assert run.replays == 0 and not fake.calls["cuGraphLaunch"]
