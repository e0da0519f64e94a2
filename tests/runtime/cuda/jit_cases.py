"""Compiled functions on the device: where they compute, what they are given, donation. See test_jit_device.py."""

from __future__ import annotations

import gc
from functools import partial

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.device import DeviceArray
from fgrad.errors import FgradDeviceError, FgradValueError

HOST = np.arange(6, dtype="float32")


def put(x=HOST) -> DeviceArray:
    return fgrad.device_put(np.array(x), "cuda")


def value(x) -> np.ndarray:
    assert x.device == "cuda:0"
    return np.asarray(fgrad.device_get(x))


def equal(x, want):
    np.testing.assert_array_equal(value(x), want)


# ------------------------------------------------------------------------------------------------ arguments


def case_pytrees_keywords_and_static_arguments():
    @partial(fgrad.jit, static_argnums=1, static_argnames="reverse")
    def f(tree, n, *, scale, reverse=False):
        x = tree["a"][0] * scale + tree["b"]
        return {"x": x[::-1] if reverse else x, "n": (x[:n], n)}

    out = f({"a": [put()], "b": 1.0}, 2, scale=put(2.0))
    equal(out["x"], HOST * 2 + 1)
    equal(out["n"][0], (HOST * 2 + 1)[:2])
    equal(f({"a": [put()], "b": 1.0}, 3, scale=2, reverse=True)["x"], (HOST * 2 + 1)[::-1])


def case_numbers_go_along_and_are_sent_again_when_they_change():
    f = fgrad.jit(lambda x, s: x * s)
    for s in (2.0, 2.0, 3.0, np.float32(4), fnp.asarray(5.0), fnp.ones(()) * 6, put(7.0), 2.0):
        equal(f(put(), s), HOST * np.float32(float(s)))
    equal(fgrad.jit(lambda x, s: x + s)(put(), fnp.ones(6)), HOST + 1)  # one value, whatever its shape


def case_a_number_that_is_handed_back_is_an_array_of_its_own():
    f = fgrad.jit(lambda x, s: (x * s, s))
    first = f(put(), 2.0)
    second = f(put(), 3.0)
    assert float(first[1]) == 2.0 and float(second[1]) == 3.0 and second[1].device == "cuda:0"
    same = put()
    assert fgrad.jit(lambda x, y: (y, x + 1))(put(), same)[0] is same


def case_where_a_function_computes():
    double = fgrad.jit(lambda x: x * 2)
    assert double(HOST).device == "cpu" and double(put()).device == "cuda:0" and double(HOST).device == "cpu"
    there = fgrad.jit(lambda x, y: x + y, device="cuda")
    equal(there(HOST, HOST), HOST * 2)
    equal(there(put(), HOST), HOST * 2)
    equal(there(put(), 1.0), HOST + 1)
    equal(fgrad.jit(lambda: fnp.arange(3), device="cuda")(), np.arange(3))
    here = fgrad.jit(lambda x: x * 2, device="cpu")
    assert here(HOST).device == "cpu"
    with pytest.raises(
        FgradDeviceError,
        match=r"jit of <lambda>: argument float32\[6\] is on cuda:0(?s:.)*jit_cases.py(?s:.)*device_get",
    ):
        here(put())


def case_arguments_on_two_devices():
    f = fgrad.jit(lambda x, y: x + y)
    text = r"jit of <lambda>: arguments are on two devices: leaf 1, float32\[6\], on cpu, others on cuda:0(?s:.)*jit_cases.py(?s:.)*device_put"
    with pytest.raises(FgradDeviceError, match=text):
        f(put(), HOST)
    with pytest.raises(FgradDeviceError, match="leaf 0"):
        f(HOST, put())
    equal(f(put(), put()), HOST * 2)


def case_closing_over_arrays():
    there, here = put(), fnp.asarray(HOST)
    equal(fgrad.jit(lambda x: x + there)(put()), HOST * 2)
    equal(fgrad.jit(lambda x: x + here)(put()), HOST * 2)  # what a function closes over is sent once
    f = fgrad.jit(lambda x: (x * here).sum())
    equal(fgrad.grad(f)(put()), HOST)
    np.testing.assert_array_equal(np.asarray(fgrad.grad(f)(fnp.asarray(HOST))), HOST)
    equal(fgrad.jit(lambda x: x + there, device="cuda")(HOST), HOST * 2)
    with pytest.raises(
        FgradDeviceError, match=r"closes over(?s:.)*cuda:0, its arguments are on the cpu(?s:.)*jit_cases.py"
    ):
        fgrad.jit(lambda x: x + there)(HOST)
    with pytest.raises(FgradDeviceError, match="two devices"):
        fgrad.scan(lambda c, v: (c + v * here, c), put(), put(HOST.reshape(1, 6)))


def case_default_device_does_not_move_jitted_functions():
    f = fgrad.jit(lambda x: x + fnp.arange(6.0))
    with fgrad.default_device("cuda"):
        assert f(HOST).device == "cpu"
        equal(f(put()), HOST * 2)
        f.clear_cache()
        assert f(HOST).device == "cpu"
        made = fgrad.jit(lambda x: x[fnp.tril_indices(2)])
        assert made(np.eye(2)).device == "cpu"


def case_empty_arrays():
    empty = fgrad.device_put(np.zeros((0, 3), "float32"), "cuda")
    assert value(fgrad.jit(lambda x: x * 2)(empty)).shape == (0, 3)
    assert value(empty.sum(0)).tolist() == [0, 0, 0] and value(empty + 1).shape == (0, 3)
    assert value(fnp.concatenate([empty, put(HOST.reshape(2, 3))])).shape == (2, 3)
    assert empty.tolist() == [] and value(fgrad.grad(lambda x: x.sum())(empty)).shape == (0, 3)


def case_asking_for_another_device():
    with pytest.raises(
        FgradValueError, match=r"jit: 'gpu' is no device(?s:.)*jit_cases.py(?s:.)*use 'cpu' or 'cuda'"
    ):
        fgrad.jit(lambda x: x, device="gpu")
    with pytest.raises(NotImplementedError, match=r"several GPUs(?s:.)*CUDA_VISIBLE_DEVICES"):
        fgrad.jit(lambda x: x, device="cuda:1")


# ------------------------------------------------------------------------------------------------ transforms around


def case_a_transform_around_a_function_for_the_device():
    f = fgrad.jit(lambda x: (x**2).sum(), device="cuda")
    equal(fgrad.grad(f)(put()), 2 * HOST)
    with pytest.raises(
        FgradDeviceError, match=r"asked for cuda(?s:.)*jit_cases.py(?s:.)*jit\(grad\(f\), device='cuda'\)"
    ):
        fgrad.grad(f)(HOST)
    equal(fgrad.jit(fgrad.grad(lambda x: (x**2).sum()), device="cuda")(HOST), 2 * HOST)


def case_putting_and_getting_inside():
    for f in (lambda x: fgrad.device_put(x, "cuda"), fgrad.device_get):
        with pytest.raises(TypeError, match=r"device_(put|get): float32\[6\] is traced(?s:.)*jit_cases.py"):
            fgrad.jit(f)(put())
        with pytest.raises(TypeError, match="traced"):
            fgrad.grad(lambda x, f=f: f(x).sum())(put())


def case_precision_and_host_ops_are_programs_of_their_own():
    f = fgrad.jit(lambda x: fnp.sort(-x))
    with pytest.raises(NotImplementedError, match="no CUDA kernel for sort"):
        f(put())
    with fgrad.host_ops(True):
        equal(f(put()), np.sort(-HOST))
    with pytest.raises(NotImplementedError, match="no CUDA kernel for sort"):
        f(put())


def case_looking_at_a_function():
    f = fgrad.jit(lambda x: fnp.sin(x) * 2)
    text = f.lower(put()).show("cuda")
    assert "@cuda.jit" in text and "sin(" in text
    with pytest.raises(NotImplementedError, match=r"profile(?s:.)*device_get"):
        f.lower(put()).profile()


# ------------------------------------------------------------------------------------------------ donation


def case_a_donated_array_is_gone_and_its_memory_taken_over():
    step = fgrad.jit(lambda x: x + 1, donate=0)
    x = put()
    at = x.unsafe_buffer_pointer()
    y = step(x)
    assert y.unsafe_buffer_pointer() == at and x.is_deleted and not y.is_deleted
    equal(y, HOST + 1)
    assert repr(x) == "Array(float32[6], donated)" and x.shape == (6,)
    uses = [
        lambda: x + 1,
        lambda: fgrad.jit(lambda v: v)(x),
        lambda: step(x),
        lambda: x[0],
        lambda: x.tolist(),
        lambda: fgrad.device_get(x),
    ]
    uses += [
        lambda: str(x),
        lambda: x.device,
        lambda: fgrad.grad(fnp.sum)(x),
        lambda: list(x),
        lambda: x.copy(),
        lambda: HOST + x,
    ]
    uses += [
        lambda: fgrad.device_put(x, "cuda"),
        lambda: np.asarray(x),
        lambda: np.sin(x),
        lambda: x.block_until_ready(),
    ]
    for use in uses:
        with pytest.raises(
            FgradValueError, match=r"was donated(?s:.)*jit_cases.py(?s:.)*fix: use the array that"
        ):
            use()


def case_what_others_look_at_is_copied():
    step = fgrad.jit(lambda x: x * 3, donate=0)
    x = put()
    view = x.reshape(2, 3)  # the same memory
    equal(step(x), HOST * 3)
    equal(view, HOST.reshape(2, 3))
    x = put()
    copied, again = x.copy(), fnp.array(x)
    equal(step(x), HOST * 3)
    equal(copied, HOST)
    equal(again, HOST)
    view = put().reshape(3, 2)  # whose array is gone: nobody else looks
    gc.collect()
    at = view.unsafe_buffer_pointer()
    out = fgrad.jit(lambda v: v + 1, donate=0)(view)
    assert out.unsafe_buffer_pointer() == at


def case_an_array_donated_twice_or_given_twice():
    both = fgrad.jit(lambda a, b: (a + 1, b * 2), donate=(0, 1))
    x = put()
    a, b = both(x, x)
    equal(a, HOST + 1)
    equal(b, HOST * 2)
    one = fgrad.jit(lambda a, b: a + 2 * b, donate=0)
    x = put()
    equal(one(x, x), HOST * 3)
    assert x.is_deleted


def case_a_donated_argument_without_a_place_is_gone_too_only_if_taken():
    unused = fgrad.jit(lambda x: x.sum(), donate=0)
    x = put()
    assert float(unused(x)) == 15.0


def case_donating_trees_over_many_steps():
    step = fgrad.jit(lambda p, g: ({k: v - 0.5 * g[k] for k, v in p.items()}, p["a"].sum()), donate=0)
    params = {"a": put(), "b": put(HOST.reshape(2, 3))}
    places = {k: v.unsafe_buffer_pointer() for k, v in params.items()}
    grads = {"a": put(np.ones(6, "float32")), "b": put(np.ones((2, 3), "float32"))}
    for n in range(5):
        before = value(params["a"]).sum()
        params, total = step(params, grads)
        assert float(total) == before, n
    assert {k: v.unsafe_buffer_pointer() for k, v in params.items()} == places
    equal(params["a"], HOST - 2.5)


def case_donating_numbers_and_arrays_of_the_cpu():
    step = fgrad.jit(lambda x, n: (x + n, n + 1), donate=(0, 1), device="cuda")
    x, n = fnp.asarray(HOST), fnp.asarray(0)
    for _ in range(3):
        x, n = step(x, n)
    equal(x, HOST + 3)
    assert int(n) == 3
    first = fnp.asarray(HOST)
    step(first, 1)
    np.testing.assert_array_equal(np.asarray(first), HOST)  # its copy was donated


def case_failing_calls_leave_donated_arrays_alone():
    f = fgrad.jit(lambda x, y: x + y, donate=0)
    x = put()
    with pytest.raises(FgradDeviceError):
        f(x, HOST)
    equal(x, HOST)


# ------------------------------------------------------------------------------------------------ errors found late


def case_an_index_outside_is_told_when_a_value_is_asked_for():
    x, inside, outside = (
        put(),
        fgrad.device_put(np.array([1, 2]), "cuda"),
        fgrad.device_put(np.array([1, 20]), "cuda"),
    )
    f = fgrad.jit(lambda x, i: x[i] * 2)
    for make in (
        lambda i: x[i],
        lambda i: x.at[i].add(1.0),
        lambda i: f(x, i),
        lambda i: fgrad.grad(lambda x: x[i].sum())(x),
    ):
        for ask in (
            lambda y: y.tolist(),
            fgrad.block_until_ready,
            lambda y: y.block_until_ready(),
            lambda y: x.tolist(),
            lambda y: float(x[0]),
        ):
            make(inside).tolist()
            y = make(outside)  # not looked at
            with pytest.raises(
                fgrad.FgradIndexError,
                match=r"(gather|scatter): index out of bounds for axis 0 with size 6(?s:.)*jit_cases.py",
            ) as e:
                ask(y)
            assert str(e.value).count("gather: ") + str(e.value).count("scatter: ") == 1
            x.tolist()  # said once
            make(inside).tolist()


def case_the_line_of_an_index_outside_is_that_of_the_call():
    x, i = put(), fgrad.device_put(np.array([0, 5]), "cuda")

    def first(i):
        return x[i]

    def second(i):
        return x[i]

    first(i).tolist()
    second(i + 3)
    with pytest.raises(fgrad.FgradIndexError, match="in second"):
        x.tolist()
    first(i)
    second(i + 3)
    with pytest.raises(fgrad.FgradIndexError, match=r"in a call at one of .* in first, .* in second"):
        x.tolist()


# ------------------------------------------------------------------------------------------------ in the same memory


def case_in_place_over_rows_that_do_not_divide_evenly():
    """What a row's threads still need must not have been overwritten by what they store (races are errors here)."""

    def both(x):
        e = fnp.exp(x)
        return e, e.sum(1)

    f = fgrad.jit(both, donate=0)
    for shape in ((33, 50), (7, 3), (1, 9), (5, 64)):
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        e, total = f(put(x))
        np.testing.assert_allclose(value(e), np.exp(x), rtol=1e-6)
        np.testing.assert_allclose(value(total), np.exp(x).sum(1), rtol=1e-5)


def case_an_update_of_everything_in_place():
    """A bias, a matrix and their moments: each overwritten by what follows from it and from a sum over the batch."""

    def step(p, m, x):
        g = {"b": (x @ p["w"] + p["b"]).sum(0), "w": x.T @ (x @ p["w"] + p["b"])}
        m = {k: 0.9 * m[k] + 0.1 * g[k] for k in p}
        return {k: p[k] - 0.01 * m[k] / (fnp.sqrt(m[k] * m[k]) + 1) for k in p}, m

    rng = np.random.default_rng(0)
    p = {"w": rng.normal(size=(6, 5)).astype("float32"), "b": rng.normal(size=5).astype("float32")}
    m = {k: np.zeros_like(v) for k, v in p.items()}
    x = rng.normal(size=(9, 6)).astype("float32")
    there, moved = fgrad.device_put((p, m), "cuda")
    on_gpu, here = fgrad.jit(step, donate=(0, 1)), fgrad.jit(step)
    copy = fgrad.device_put(x, "cuda")
    for _ in range(4):
        p, m = here(p, m, x)
        there, moved = on_gpu(there, moved, copy)
    for key in p:
        np.testing.assert_allclose(value(there[key]), np.asarray(p[key]), rtol=1e-4, atol=1e-6)


def case_an_interrupted_capture_is_forgotten():
    """The second call writes down a CUDA graph; what stops in the middle must not be replayed."""
    f = fgrad.jit(lambda x: (x @ x.T).sum(0) @ x)
    x = put(np.arange(12, dtype="float32").reshape(4, 3) / 10)
    want = value(f(x))
    (program,) = f._programs.values()
    replay = program.executable.replay
    act, replay.act = replay.act, lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        f(x)
    replay.act = act
    for _ in range(3):
        np.testing.assert_array_equal(value(f(x)), want)
    assert replay.replays == 3


def case_products_without_elements():
    a, b = put(np.zeros((0, 3), "float32")), put(np.zeros((3, 4), "float32"))
    assert (a @ b).shape == (0, 4) and fgrad.jit(fnp.matmul)(a, b).shape == (0, 4)
    equal(fgrad.jit(fnp.matmul)(b.T, a.T), np.zeros((4, 0), "float32"))


def case_lowered_for_where_the_arguments_are():
    lowered = fgrad.jit(lambda x: fnp.tanh(x).sum()).lower(put())
    assert "on cuda:0: 1 launches of 1 kernels" in lowered.show()
    lowered.compile()
    assert "arena" in lowered.show("memory")


def case_a_device_asked_for_inside_a_whole_program():
    inner = fgrad.jit(lambda y: y * 2, device="cuda")
    with pytest.raises(FgradDeviceError, match="within a function that is compiled as a whole"):
        fgrad.jit(lambda x: inner(x))(fnp.ones(3))
