"""Blocks that outputs share: sizes, who keeps what alive, and when memory is used again or given back."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import dtypes
from fgrad.codegen.program import Buf
from fgrad.memory import Block, data_pointer
from fgrad.runtime.outputs import group_outputs


def sizes_of(n):
    return [Buf(f"b{i}", (k,), dtypes.float32, "output") for i, k in enumerate(n)]


@pytest.mark.parametrize(
    "elements", [[1], [0, 1, 2], [1] * 40, [3, 100_000, 5, 70_000, 1], [1, 400, 5000, 16, 17, 9000, 20_000]]
)
def test_groups_hold_each_output_once_without_overlap(elements):
    bufs = sizes_of(elements)
    groups = group_outputs(bufs, ())
    assert sorted(j for g in groups for j in g.members) == list(range(len(bufs)))
    for g in groups:
        ends = [o + bufs[j].nbytes for j, o in zip(g.members, g.offsets)]
        assert all(e <= o for e, o in zip(ends, g.offsets[1:])) and ends[-1] <= g.nbytes
        assert all(o % 64 == 0 for o in g.offsets)


def test_an_output_keeps_at_most_sixteen_times_its_own_bytes_alive():
    rng = np.random.default_rng(0)
    bufs = sizes_of(rng.integers(0, 40_000, 200))
    for g in group_outputs(bufs, (3, 7)):
        assert not {3, 7} & set(g.members)
        assert len(g.members) == 1 or g.nbytes <= 1 << 16
        for j in g.members:
            assert g.nbytes <= max(16 * max(bufs[j].nbytes, 64), bufs[j].nbytes + 63)


def make(n=3, size=8):
    return fgrad.jit(lambda x: [x * float(i + 1) for i in range(n)]), np.arange(size, dtype="float32")


def test_outputs_are_aligned_and_disjoint():
    f, x = make(9, 5)
    for _ in range(5):
        outs = f(x)
        at = [a._ptr for a in outs]
        assert all(p % 64 == 0 for p in at) and len(set(at)) == 9
        assert at == [data_pointer(a.data) for a in outs]
        for i, a in enumerate(outs):
            np.testing.assert_array_equal(a, x * (i + 1))


def test_one_kept_output_does_not_stop_the_others_and_is_not_overwritten():
    f, x = make()
    kept = [f(x + i)[i % 3] for i in range(30)]
    for i, a in enumerate(kept):
        np.testing.assert_array_equal(a, (x + i) * (i % 3 + 1))


def test_numpy_views_outlive_arrays_and_functions():
    f, x = make(2, 50_000)
    small, big = fgrad.jit(lambda x: (x.sum(), x + 1))(x)
    views = [np.asarray(small), np.asarray(big)[5:10], np.asarray(big).reshape(2, -1)[1]]
    read = [v.copy() for v in views]
    del small, big
    for _ in range(10):
        f(x), fgrad.jit(lambda x: (x.sum(), x + 1))(x)
    gc.collect()
    for v, r in zip(views, read, strict=True):
        np.testing.assert_array_equal(v, r)


def test_arrays_make_their_numpy_array_once_and_late():
    f, x = make(1)
    for _ in range(5):
        (a,) = f(x)
    assert type(a._memory) is Block
    assert a.data is a.data and type(a._memory) is np.ndarray
    assert np.shares_memory(np.asarray(a), np.asarray(a))


def test_arrays_are_freed_when_dropped():
    f, x = make()
    for _ in range(5):
        outs = f(x)
    seen = [weakref.ref(a) for a in outs]
    del outs
    assert [r() for r in seen] == [None] * 3


def test_memory_stays_bounded_whatever_is_dropped():
    """Three blocks of each output are kept at most; the rest goes back to the system."""
    code = """
import resource, numpy as np, fgrad
f = fgrad.jit(lambda x: (x * 2, x.sum()))
x = np.zeros(1 << 20, "float32")
def use(n):
    kept = []
    for i in range(n):
        y, s = f(x)
        kept.append(s)
        if i % 3 == 0: np.asarray(y)[5:]
    crowd = [f(x)[0] for _ in range(12)]
use(20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
use(400)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 4096  # KiB; all 400 would be 1.6 GB


def test_large_outputs_are_written_to_warm_memory():
    f = fgrad.jit(lambda x: x + 1)
    x = fnp.zeros(1 << 20)
    y = x
    addresses = set()
    for _ in range(20):
        y = f(y)
        addresses.add(y._ptr)
    assert len(addresses) <= 2
    np.testing.assert_array_equal(np.asarray(y)[:3], [20, 20, 20])


@pytest.mark.parametrize("donate", [(), 0])
def test_a_program_and_its_memory_go_with_the_function(donate):
    """At once, without the garbage collector: arenas and output blocks may be large."""
    f = fgrad.jit(lambda p: {k: v * 2 for k, v in p.items()}, donate=donate)
    p = {"a": fnp.ones(3), "b": fnp.ones(400_000)}
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            p = f(p)
        assert f._recent
        program = weakref.ref(next(iter(f._programs.values())).executable)
        block = weakref.ref(p["b"]._memory)
        del f
        assert program() is None
        del p
        assert block() is None
    finally:
        gc.enable()
