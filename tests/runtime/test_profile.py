"""Every top-level step gets a time, and timing a program changes nothing for its inputs."""

import numpy as np

from fgrad import dtypes
from fgrad.codegen.loops import Buffer, Const, Kernel, Load, Loop, LoopVar, Op, Store
from fgrad.codegen.program import Block, Buf, CopyStep, ForStep, HostStep, KernelStep, Program
from fgrad.ir import Primitive
from fgrad.runtime.executable import compile_program
from fgrad.runtime.profile import profile

F4 = dtypes.float32


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
    loop = ForStep(3, Block([HostStep(negate, {}, (u,), (v,)), scale(w, v, 2.0), CopyStep(u, w)]), ())
    steps = [scale(t, x, 3.0), HostStep(negate, {}, (t,), (u,)), loop, scale(y, u, 1.0)]
    call = compile_program(Program("p", (x,), (y,), Block(steps), donated={0: 0}))
    a = rng.normal(size=50).astype(np.float32)
    before = a.copy()
    result = profile(call, [a], repeat=3)
    np.testing.assert_array_equal(a, before)
    assert [s.step for s in result.steps][:4] == steps
    assert [s.what.split()[0] for s in result.steps[:4]] == ["kernel", "host", "for", "kernel"]
    assert result.steps[0].notes == ("mul x factor",)
    assert all(s.seconds > 0 for s in result.steps)
    assert "host_negate" in str(result)
    np.testing.assert_allclose(call([a])[0], before * 3 * -1 * (-2) ** 3, rtol=1e-6)
