"""Computing on the device operation by operation, and transforms of functions there: see test_eager.py."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad import random
from fgrad.array import ConcreteArray
from fgrad.device import DeviceArray
from fgrad.runtime.cuda import device
from tests.runtime.cuda import eager_table as table

CPU, GPU = table.arrays("cpu"), table.arrays("cuda")


def on_device(tree) -> list:
    """The leaves, every array of them on the device, as NumPy's arrays."""
    found = []
    for leaf in fgrad.tree.leaves(tree):
        assert not isinstance(leaf, ConcreteArray), f"{leaf!r} is on the CPU"
        found.append(np.asarray(fgrad.device_get(leaf)) if isinstance(leaf, DeviceArray) else leaf)
    return found


def agree(got, want, rtol=3e-5, atol=3e-6):
    """`got`, on the device, has the values and dtypes of `want`, on the CPU."""
    for g, w in zip(on_device(got), fgrad.tree.leaves(want), strict=True):
        if isinstance(w, fgrad.Array):
            assert g.dtype == w.dtype and g.shape == w.shape, f"{g.dtype}{g.shape} for {w.type}"
            kind = "complex128" if g.dtype.kind == "c" else "float64"
            a, b = g.astype(kind), np.asarray(w).astype(kind)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
        else:
            assert g == w


def same(f, *names):
    """`f` of the arrays of these names gives on the device what it gives on the CPU."""
    agree(f(*[getattr(GPU, n) for n in names]), f(*[getattr(CPU, n) for n in names]))


def each(cases, check):
    """`check(f)` for each of a table; all failures are told."""
    failed = []
    for name, f in cases.items():
        try:
            check(f)
        except BaseException as e:
            failed.append(f"{name}: {type(e).__name__}: {e}")
    assert not failed, "\n\n".join(failed)


# ------------------------------------------------------------------------------------------------ every public function


def case_every_numpy_function():
    each(table.NUMPY, lambda f: agree(f(GPU), f(CPU)))


def case_every_other_function():
    each(table.MORE, lambda f: agree(f(GPU), f(CPU)))


def case_operations_without_a_kernel():
    def check(f):
        with pytest.raises(
            NotImplementedError, match=r"no CUDA kernel for(?s:.)*eager_table.py(?s:.)*fix: .*host_ops"
        ):
            f(GPU)
        with fgrad.host_ops(True):
            agree(f(GPU), f(CPU), 1e-4, 1e-5)

    each(table.HOST_ONLY, check)


def case_values_that_decide_a_shape():
    def check(f):
        f(CPU)
        with pytest.raises(
            (NotImplementedError, fgrad.FgradDeviceError), match=r"eager_table.py(?s:.)*fix: .*device_get"
        ):
            f(GPU)

    each(table.NEEDS_VALUES, check)


def case_made_of_numbers():
    def check(f):
        want = f()
        assert all(x.device == "cpu" for x in fgrad.tree.leaves(want))
        with fgrad.default_device("cuda"):
            agree(f(), want)
        with fgrad.default_device("cuda"), fgrad.default_device("cpu"):
            assert all(x.device == "cpu" for x in fgrad.tree.leaves(f()))

    each(table.OF_NUMBERS, check)


def case_the_table_has_every_public_function():
    def functions(module):
        names = getattr(module, "__all__", None) or [n for n in dir(module) if not n.startswith("_")]
        made = [n for n in names if callable(getattr(module, n)) and not isinstance(getattr(module, n), type)]
        return [n for n in made if getattr(getattr(module, n), "__module__", "").startswith("fgrad")]

    tables = (table.NUMPY, table.MORE, table.HOST_ONLY, table.NEEDS_VALUES, table.OF_NUMBERS)
    have = {name.split(" ")[0] for t in tables for name in t} | table.NOT_OF_ARRAYS
    assert not [n for n in functions(fnp) if n not in have]
    for module in (fgrad.lax, fgrad.random):
        prefix = module.__name__.split(".")[-1]
        assert not [n for n in functions(module) if f"{prefix}.{n}" not in have]


# ------------------------------------------------------------------------------------------------ derivatives


def case_grad():
    same(fgrad.grad(lambda x: fnp.sum(fnp.sin(x) * x)), "x")
    same(fgrad.grad(lambda x: x.sum()), "x")  # linear: the backward pass knows no value of the device
    same(fgrad.grad(lambda x: fnp.tanh(x[1]) * 2 + x[2]), "x")
    same(fgrad.grad(lambda m, n: fnp.sum(fnp.tanh(m @ n.T)), argnums=(0, 1)), "m", "n")
    same(fgrad.value_and_grad(lambda p: (fnp.log(p).mean(), {"n": p * 2}), has_aux=True), "p")
    same(fgrad.grad(lambda t: sum((v**2).sum() for v in fgrad.tree.leaves(t))), "m")
    same(
        lambda x, m: fgrad.grad(lambda t: (t["a"] ** 2).sum() + t["b"][0].sum())({"a": x, "b": [m]}), "x", "m"
    )


def case_grad_of_what_does_not_matter():
    same(fgrad.grad(lambda x, y: (x * 2).sum() + 0 * fnp.floor(y).sum(), argnums=(0, 1)), "x", "y")
    same(fgrad.grad(lambda x, y: x.sum(), argnums=(0, 1)), "x", "y")
    same(fgrad.grad(lambda one: one), "one")
    same(fgrad.grad(lambda one: 3 * one), "one")
    same(fgrad.grad(lambda one, x: x.sum(), argnums=0), "one", "x")


def case_grad_by_a_number_and_with_closed_over_arrays():
    for a in (CPU, GPU):
        g = fgrad.grad(lambda w, a=a: ((w * a.x) ** 2).sum())(2.0)
        assert abs(float(g) - 4 * float((a.x**2).sum())) < 1e-3
    same(fgrad.grad(lambda x: (x * GPU.y if isinstance(x.value, DeviceArray) else x * CPU.y).sum()), "x")


def case_constants_inside_are_made_on_the_device():
    same(fgrad.grad(lambda x: (x * fnp.arange(6.0) + fnp.ones(6) @ x).sum()), "x")
    same(fgrad.grad(lambda x: (x[fnp.arange(3)] * fnp.linspace(0, 1, 3)).sum()), "x")
    same(fgrad.vmap(lambda row: row @ fnp.eye(4) + fnp.arange(4.0) + row[[0, 1, 1, 3]]), "m")
    same(fgrad.vmap(lambda row: fnp.zeros(3)), "m")
    same(fgrad.vmap(lambda row: 1.5), "m")


def case_indexing_and_scattering():
    same(fgrad.grad(lambda x: (x[::2] ** 2).sum() + x[[0, 0, 3]].sum() * x[-1]), "x")
    same(fgrad.grad(lambda x, i: (x[i] ** 3).sum()), "x", "i")
    same(fgrad.grad(lambda x: (x.at[1].set(2.0).at[2:4].mul(3.0) ** 2).sum()), "x")
    same(fgrad.grad(lambda x, y, i: (x.at[i].add(y[:4]) ** 2).sum(), argnums=(0, 1)), "x", "y", "i")
    same(fgrad.grad(lambda m, b: fnp.where(m > 0, m, m * 0.1).max(1).sum()), "m", "b")


def case_vjp_and_jvp():
    def back(x, y):
        out, pull = fgrad.vjp(lambda x, y: (x * y, fnp.exp(x)), x, y)
        return out, pull((y, x)), pull((x, x * 0))

    same(back, "x", "y")
    same(lambda x, y: fgrad.jvp(lambda x: fnp.sin(x) * x, (x,), (y,)), "x", "y")
    same(lambda x, y: fgrad.jvp(lambda x: (x, fnp.zeros(2)), (x,), (y,)), "x", "y")
    same(lambda x: fgrad.jvp(fnp.sum, (x,), (fnp.ones_like(x),)), "x")

    def linear(x, y):
        out, push = fgrad.linearize(lambda x: fnp.tanh(x) ** 2, x)
        return out, push(y), push(x)

    same(linear, "x", "y")
    same(lambda x, y: fgrad.linear_transpose(lambda v: (v[1:] * 2).sum() * fnp.ones(2), x)(y[:2]), "x", "y")


def case_jacobians():
    same(fgrad.jacrev(lambda v: fnp.sin(v) * v[::-1]), "v")
    same(fgrad.jacfwd(lambda v: fnp.sin(v) * v[::-1]), "v")
    same(fgrad.jacfwd(lambda v, m: m[:, 0] * v.sum(), argnums=(0, 1)), "v", "m")
    same(lambda v: fgrad.jacrev(lambda t: {"s": t["v"].sum(), "v": t["v"] * 2})({"v": v}), "v")
    same(fgrad.hessian(lambda v: (v**3).sum() + v[0] * v[1]), "v")


def case_vmap():
    same(fgrad.vmap(lambda r: fnp.sin(r).sum()), "m")
    same(lambda m, v: fgrad.vmap(lambda r, w: r * w, in_axes=(1, None), out_axes=1)(m, v), "m", "v")
    same(fgrad.vmap(fgrad.grad(lambda r: (r**3).sum())), "m")
    same(lambda m, n: fgrad.vmap(fgrad.vmap(lambda a, b: a * b))(m, n), "m", "n")
    same(lambda k: fgrad.vmap(lambda k: random.normal(k, (2,)))(random.split(k, 3)), "keys")
    same(lambda m, n: fgrad.vmap(lambda r: fnp.where(r > 0, r, 0) @ n.T)(m), "m", "n")
    same(fgrad.vmap(lambda i: fnp.arange(6.0)[i]), "i")


def case_checkpoint():
    f = fgrad.checkpoint(lambda x: fnp.sin(fnp.sin(x)) * fnp.arange(6.0))
    same(f, "x")
    same(fgrad.grad(lambda x: f(x).sum()), "x")
    same(fgrad.jit(fgrad.grad(lambda x: f(x).sum())), "x")


def case_custom_derivatives():
    @fgrad.custom_jvp
    def f(x):
        return fnp.exp(x)

    @f.defjvp
    def f_jvp(primals, tangents):
        return f(primals[0]), tangents[0] * primals[0] * fnp.arange(6.0)

    @fgrad.custom_vjp
    def g(x, scale):
        return x * scale

    g.defvjp(
        lambda x, s: (x * s, (x, s)), lambda r, ct: (ct * r[1] * 2, (ct * r[0]).sum() + fnp.arange(3).sum())
    )

    for way in (lambda h: h, fgrad.jit):
        same(way(f), "x")
        same(way(fgrad.grad(lambda x: f(x).sum())), "x")
        same(way(lambda x, y: fgrad.jvp(f, (x,), (y,))), "x", "y")
        same(way(fgrad.grad(lambda x, s: g(x, s).sum(), argnums=(0, 1))), "x", "one")
    same(fgrad.vmap(fgrad.grad(lambda r: g(r, r.sum()).sum())), "m")


# ------------------------------------------------------------------------------------------------ control flow


def case_python_control_flow():
    def f(x):
        n = 0
        while (x * x).sum() > 1:  # Python sees the values
            x = x / 2
            n += 1
        return x.sum() * n if x[0] > 0 else (x**2).sum()

    same(f, "x")
    same(fgrad.grad(f), "x")
    same(fgrad.value_and_grad(lambda x: x.sum() * float(x[1]) + int(x[2] > 0)), "x")


def case_cond_and_switch():
    def f(p, x):
        return fgrad.cond(p, lambda x: fnp.sin(x) * fnp.arange(6.0), lambda x: x * 2, x)

    for way in (lambda h: h, fgrad.jit):
        same(way(lambda x: f(x[0] > 0, x)), "x")
        same(way(lambda x: f(x[0] <= 0, x)), "x")
        same(way(lambda x: f(True, x)), "x")
        same(way(fgrad.grad(lambda x: f(x[0] > 0, x).sum())), "x")
        same(way(lambda x, i: fgrad.switch(i[1], [fnp.sin, fnp.cos, lambda x: x * 2], x)), "x", "i")
        same(way(fgrad.vmap(lambda r: fgrad.cond(r[0] > 0, lambda r: r * 2, lambda r: -r, r))), "m")


def case_scan():
    def f(x):
        return fgrad.scan(lambda c, v: (c * 0.5 + v, c * v + fnp.arange(2.0).sum()), x[0], x)

    def h(x):
        return fgrad.scan(lambda c, v: (fnp.tanh(c + v * fnp.arange(4.0)), c.sum()), fnp.zeros_like(x[0]), x)

    for way in (lambda g: g, fgrad.jit):
        same(way(f), "x")
        same(way(h), "m")
        same(way(fgrad.grad(lambda x: f(x)[1].sum())), "x")
        same(way(fgrad.grad(lambda m: h(m)[1].sum() + h(m)[0].sum())), "m")
        same(way(lambda x, y: fgrad.jvp(lambda x: f(x)[1], (x,), (y,))), "x", "y")
    same(lambda m: fgrad.map(lambda r: r * 2, m), "m")
    same(lambda x: fgrad.scan(lambda c, _: (c + 1.0, c), x[0], None, length=3), "x")


def case_while_and_fori():
    def w(x):
        return fgrad.while_loop(
            lambda s: s[0] < 4, lambda s: (s[0] + 1, s[1] * 1.5 + fnp.arange(6.0)), (0, x)
        )

    def f(x, n=3):
        return fgrad.fori_loop(0, n, lambda i, v: fnp.sin(v) + i, x)

    for way in (lambda g: g, fgrad.jit):
        same(way(w), "x")
        same(way(f), "x")
        same(way(lambda x, i: f(x, i[2])), "x", "i")
        same(way(fgrad.grad(lambda x: f(x).sum())), "x")
        same(way(lambda x, y: fgrad.jvp(lambda x: w(x)[1], (x,), (y,))), "x", "y")


def case_operations_are_compiled_once():
    programs = device.cuda_device("test")._eager

    def loops(x, scale):
        x = fgrad.scan(lambda c, v: (c * scale + v, c), x[0], x)[1]
        x = fgrad.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * scale), (0, x))[1]
        x = fgrad.cond(x[0] > 0, lambda v: v[::-1], lambda v: v * scale, x)
        return fgrad.grad(lambda x: fgrad.jit(fnp.sin)(x).sum())(x)

    loops(GPU.x, 2.0)
    before = len(programs)
    loops(GPU.x, 2.0)
    assert len(programs) == before
    loops(GPU.x, 3.0)  # other bodies
    assert len(programs) == before + 3
    agree(loops(GPU.x, 3.0), loops(CPU.x, 3.0))


def case_programs_of_operations_make_room(most=5):
    programs, before = device.cuda_device("test")._eager, device.MOST_OPERATIONS
    device.MOST_OPERATIONS = most
    try:
        programs.clear()
        for n in range(1, 9):
            agree(GPU.x[:n] * 2, CPU.x[:n] * 2)
        assert len(programs) == most
    finally:
        device.MOST_OPERATIONS = before


def case_several_threads():
    found, threads = [], []
    for n in range(4):

        def work(n=n):
            with fgrad.default_device("cuda" if n % 2 else "cpu"):  # each thread has its own
                made = fnp.arange(6.0)
            found.append((n, made.device, (GPU.x * n + fgrad.device_put(made, "cuda")).sum().item()))

        threads.append(threading.Thread(target=work))
        threads[-1].start()
    for thread in threads:
        thread.join()
    for n, device_name, total in sorted(found):
        assert device_name == ("cuda:0" if n % 2 else "cpu")
        assert abs(total - float((CPU.x * n + fnp.arange(6.0)).sum())) < 1e-4
    assert len(found) == 4


# ------------------------------------------------------------------------------------------------ jit among them


def case_jit_and_transforms():
    f = fgrad.jit(lambda w, x: fnp.tanh(x @ w).sum(1))
    same(lambda s, v: f(s, s), "s", "v")
    same(fgrad.grad(lambda s: f(s, s * 2).sum()), "s")  # a `call` forwards and backwards
    same(fgrad.jit(fgrad.grad(lambda s: f(s, s * 2).sum())), "s")
    same(fgrad.grad(lambda s: fgrad.jit(lambda q: f(q, q))(s).sum()), "s")
    same(lambda s: fgrad.jvp(lambda s: f(s, s), (s,), (s,)), "s")
    same(fgrad.vmap(fgrad.jit(lambda r: fnp.cumsum(r) * fnp.arange(4.0))), "m")
    same(fgrad.grad(fgrad.grad(lambda one: fgrad.jit(fnp.sin)(one) * one)), "one")
    same(fgrad.jacrev(fgrad.jit(lambda v: v**2)), "v")
    same(fgrad.hessian(fgrad.jit(lambda v: (v**3).sum())), "v")
    same(fgrad.jit(fgrad.vmap(fgrad.value_and_grad(lambda r: (r**2).sum()))), "m")


def case_jit_with_indices_and_scalars():
    same(fgrad.jit(lambda x, i: (x[i], x.at[i].add(1.0), x[1:3], x[[0, 2]])), "x", "i")
    same(fgrad.jit(lambda x: (x.sum(), x.max(), x.argmax(), fnp.cumsum(x))), "x")
    same(fgrad.jit(lambda one: one * 2 + 1), "one")


def case_random_numbers_are_the_same_bits():
    for f in (random.normal, random.uniform, random.bits):
        a, b = f(CPU.keys, (5,)), f(GPU.keys, (5,))
        assert b.device == "cuda:0"
        if f is not random.normal:
            assert np.asarray(a).tobytes() == np.asarray(fgrad.device_get(b)).tobytes()


def case_arrays_on_the_cpu_stay_there_under_a_default_device():
    """It says where new arrays go, not where others are computed."""
    x = fnp.array(np.linspace(-1, 1, 4, dtype="float32"))
    with fgrad.default_device("cuda"):
        found = {
            "x[list]": x[[0, 1]],
            "set": x.at[0].set(1.0),
            "softmax": nn.softmax(x),
            "zeros_like": fnp.zeros_like(x),
            "grad": fgrad.grad(lambda w: (w * fnp.ones(4)).sum())(x),
            "vmap": fgrad.vmap(lambda v: v * fnp.arange(2).sum())(x),
            "adam": nn.adam(1e-3).init({"w": x}),
            "loss": nn.cross_entropy(x[None], fnp.array([1])),
        }
        assert fnp.ones(3).device == "cuda:0"
    for name, result in found.items():
        assert {leaf.device for leaf in fgrad.tree.leaves(result)} == {"cpu"}, name
