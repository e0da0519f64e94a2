"""Every step gets a time beside its work and origin, and timing a program changes nothing for its inputs."""

import builtins
import json

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad import dtypes
from fgrad.codegen.loops import Buffer, Const, Kernel, Load, Loop, LoopVar, Op, Store
from fgrad.codegen.program import Block, Buf, CopyStep, ForStep, HostStep, KernelStep, Program
from fgrad.ir import Primitive
from fgrad.runtime import threads
from fgrad.runtime.executable import compile_program
from fgrad.runtime.peaks import Peaks
from fgrad.runtime.profile import profile

F4 = dtypes.float32
BANDWIDTH = (200e9, 100e9, 50e9, 20e9)
PEAKS = Peaks("test", 2, 100e9, 50e9, 200e9, 100e9, BANDWIDTH, BANDWIDTH, (32 << 10, 1 << 20, 32 << 20))


@pytest.fixture(autouse=True)
def known_peaks(monkeypatch):
    monkeypatch.setattr("fgrad.runtime.profile.peaks", lambda: PEAKS)


def scale(out, x, factor):
    a, b, i = Buffer("out", F4, out.size, "out"), Buffer("x", F4, x.size), LoopVar("i", x.size)
    value = Op("mul", (Load(b, i), Const(factor, F4)), F4)
    kernel = Kernel("scale", (a, b), [Loop(i, [Store(a, i, value)], "vector")], notes=("mul x factor",))
    return KernelStep(kernel, (out, x), in_place=((out, x),))


def test_profile_of_kernels_host_steps_and_host_loops(monkeypatch, rng):
    monkeypatch.setenv("FGRAD_CACHE", "0")
    x, y = Buf("x", (50,), F4, "input"), Buf("y", (50,), F4, "output")
    t, u, v, w = (Buf(name, (50,), F4) for name in "tuvw")
    negate = Primitive("host_negate", lambda t: t, np.negative)
    inner = [HostStep(negate, {}, (u,), (v,)), scale(w, v, 2.0), CopyStep(u, w)]
    loop = ForStep(3, Block(inner), ())
    steps = [scale(t, x, 3.0), HostStep(negate, {}, (t,), (u,)), loop, scale(y, u, 1.0)]
    call = compile_program(Program("p", (x,), (y,), Block(steps), donated={0: 0}))
    a = rng.normal(size=50).astype(np.float32)
    before = a.copy()
    result = profile(call, [a], repeat=3)
    np.testing.assert_array_equal(a, before)
    top = [r for r in result.rows if r.parent is None]
    assert [r.step for r in top][:4] == steps
    assert [r.kind for r in top[:4]] == ["kernel", "host", "for", "kernel"]
    assert top[0].notes == ("mul x factor",)
    below = [r for r in result.rows if r.parent == result.rows.index(top[2])]
    assert [r.step for r in below] == inner
    assert [r.runs for r in below] == [3, 3, 3] and top[2].runs == 3 and top[0].runs == 1
    assert all(r.seconds > 0 and r.best <= r.seconds for r in result.rows)
    assert top[2].seconds >= sum(r.seconds for r in below) * 0.9
    assert below[1].work.flops == 150 and top[2].work.flops == 150
    assert sum(r.share for r in top) == pytest.approx(1)
    assert "host_negate" in str(result)
    np.testing.assert_allclose(call([a])[0], before * 3 * -1 * (-2) ** 3, rtol=1e-6)


NET = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 10))


def step(params, x, y):
    value, grads = fgrad.value_and_grad(lambda p: nn.cross_entropy(NET(p, x), y))(params)
    return fgrad.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    params = NET.init(fgrad.random.key(0))
    return params, rng.normal(size=(16, 1, 14, 14)).astype(np.float32), rng.integers(0, 10, 16)


def test_a_training_step_names_layers_lines_and_work(batch):
    params, x, y = batch
    donating = fgrad.jit(step, donate=0)
    before = [np.array(p) for p in fgrad.tree.leaves(params)]
    found = fgrad.profile(donating, repeat=3)(params, x, y)
    for old, new in zip(before, fgrad.tree.leaves(params)):
        np.testing.assert_array_equal(old, new)  # not donated away
    cost = donating.lower(params, x, y).cost()
    assert sum(r.work.flops for r in found.rows) == cost.flops
    assert sum(r.work.bytes for r in found.rows) == cost.bytes
    conv = next(r for r in found.rows if r.operations[0] == "conv")
    assert conv.scopes == ("0",) and conv.kind == "contraction"
    assert all("test_profile.py" in s for s in conv.sources)
    assert {"0", "4"} <= {s for r in found.rows for s in r.scopes}
    assert conv.gflops == pytest.approx(conv.work.flops / conv.seconds / 1e9)
    assert conv.fma == pytest.approx(conv.work.flops / conv.seconds / 200e9) or found.threads == 1
    assert 0 < found.seconds <= found.total * 1.05


def test_json_and_plain_table(batch, tmp_path, monkeypatch):
    found = fgrad.profile(step, repeat=3)(*batch)
    found.to_json(tmp_path / "profile.json")
    read = json.loads((tmp_path / "profile.json").read_text())
    assert read == json.loads(found.json())
    assert len(read["rows"]) == len(found.rows)
    row = next(r for r in read["rows"] if r["equations"][0]["primitive"] == "conv")
    assert row["flops"] == 2 * 16 * 8 * 12 * 12 * 9
    assert row["bytes"] == 4 * (16 * 14 * 14 + 8 * 9 + 16 * 8 * 12 * 12)
    assert row["equations"][0]["scope"] == "0" and "test_profile.py:" in row["equations"][0]["source"]
    assert read["peaks"]["float32"] == 100e9

    drawn = str(found)
    real = builtins.__import__

    def without_rich(name, *args, **kwargs):
        if name.split(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    plain = str(found)
    assert plain == found.text(rich=False)
    lines = plain.splitlines()
    assert lines[0].startswith("step: ") and "GFLOP/s" in lines[2]
    shown = [r for r in found.rows if r.share >= 0.005]
    assert f"{max(shown, key=lambda r: r.seconds).what}" in lines[3]  # the longest first
    monkeypatch.undo()
    pytest.importorskip("rich", reason="draws with rich, which is not installed")
    assert drawn != plain and "conv" in drawn


def test_loops_count_their_iterations():
    def f(w, xs, n):
        h, ys = fgrad.scan(lambda h, x: (fnp.tanh(h @ w + x), fnp.sum(h)), fnp.zeros((8, 16)), xs)
        return fgrad.while_loop(lambda s: s[1] < n, lambda s: (fnp.sin(s[0]), s[1] + 1), (h, 0)), ys

    w, xs = np.ones((16, 16), np.float32), np.ones((20, 8, 16), np.float32)
    found = fgrad.profile(f, repeat=3)(w, xs, n=7)
    loops = [n for n, r in enumerate(found.rows) if r.kind in ("for", "while")]
    assert [found.rows[n].kind for n in loops] == ["for", "while"]
    assert [found.rows[n].runs for n in loops] == [20, 8]  # the condition holds seven times
    products = [r for r in found.rows if r.kind == "contraction"]
    assert [(r.runs, r.work.contraction, r.parent) for r in products] == [
        (20, 20 * 2 * 8 * 16 * 16, loops[0])
    ]
    sines = sum(r.work.transcendental for r in found.rows if r.parent == loops[1])
    assert sines == 7 * 8 * 16 == found.rows[loops[1]].work.transcendental
    assert "x 20" in found.text(lowest=0) and "loop of 20" in found.text(lowest=0)


def test_threads_and_serial_times(monkeypatch):
    a = np.ones((600, 600), np.float32)
    saved = threads.get_num_threads()
    try:
        threads.set_num_threads(2)
        found = fgrad.profile(lambda a: fnp.tanh(a @ a), repeat=3)(a)
        assert found.threads == 2
        assert any(r.threads == 2 and r.to_dict()["plan"] for r in found.rows)
        assert all(r.serial is not None and r.serial > 0 for r in found.rows)
        assert "1 thread" in found.text(rich=False)
        assert threads.get_num_threads() == 2
        alone = fgrad.profile(lambda a: fnp.tanh(a @ a), repeat=3, serial=False)(a)
        assert all(r.serial is None for r in alone.rows)
    finally:
        threads.set_num_threads(saved)


def test_static_arguments_captured_arrays_and_scalars():
    weights = fnp.ones((4, 4))
    f = fgrad.jit(lambda x, k, n: (x @ weights) * k + n, static_argnums=2)
    found = fgrad.profile(f, repeat=3)(np.ones((3, 4), np.float32), 2.5, 7)
    assert sum(r.work.contraction for r in found.rows) == 2 * 3 * 4 * 4


def test_index_errors_come_through():
    f = fgrad.profile(lambda x, i: x[i], repeat=3)
    with pytest.raises(IndexError):
        f(np.ones(3, np.float32), np.array([5]))


def test_types_alone_cannot_be_profiled():
    lowered = fgrad.jit(lambda x: x + 1).lower(fgrad.ShapeDtype((3,), np.float32))
    with pytest.raises(fgrad.FgradTypeError, match="no value"):
        lowered.profile()
