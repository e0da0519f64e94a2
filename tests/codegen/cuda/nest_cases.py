"""Loop nests in the simulator against the NumPy definitions: see test_nests.py. Each case runs on its own."""

from __future__ import annotations

import dataclasses

import numpy as np
from passes import helpers as h
from passes.test_fuse import cross_entropy, mean_rows, softmax
from simulate import check, run

from fgrad import dtypes
from fgrad.codegen.cuda.nests import lower_kernel
from fgrad.codegen.cuda.target import SIMULATED
from fgrad.ir import Literal
from fgrad.passes import compile_graph
from fgrad.runtime.cuda.simulator import run_simulated

F32, I64 = np.dtype("float32"), np.dtype("int64")


def texts(machine) -> str:
    return "\n".join(s.kernel.source for s in machine.launched)


def grids(machine) -> list[tuple[int, int]]:
    return [(s.kernel.grid[0], s.kernel.block[0]) for s in machine.launched]


# ------------------------------------------------------------------------------------------------ maps


def case_map_vectors_and_the_rest():
    for n in (1, 3, 16, 64, 65, 67, 130):
        b = h.Build()
        x, y = b.input((n,)), b.input((n,))
        t = b("tanh", b("mul", x, y))
        machine = check(b.graph(b("add", b("mul", t, t), b("exp", b("neg", t)))))
        assert ("load4" in texts(machine)) == (n >= 16)
        assert machine.shared == 1


def case_map_every_dtype():
    for dtype in _DTYPES:
        for n in (5, 37):
            b = h.Build()
            x, y = b.input((n,), dtype), b.input((n,), dtype)
            kind = "bitwise_xor" if np.dtype(dtype) == dtypes.bool_ else "add"
            z = b(kind, x, y)
            check(b.graph(z, b("eq", x, y), b("select", b("eq", x, y), x, z), b("convert", z, dtype=F32)))


_DTYPES = [dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16, dtypes.bool_]
_DTYPES += [dtypes.int8, dtypes.int16, dtypes.int32, dtypes.int64]
_DTYPES += [dtypes.uint8, dtypes.uint16, dtypes.uint32, dtypes.uint64]


def case_map_broadcasts():
    for shape in ((4, 8), (6, 5), (3, 4, 8), (2, 3, 7)):
        for axes in [(0,), (len(shape) - 1,), (0, 1), (len(shape) - 2, len(shape) - 1)]:
            b = h.Build()
            x, small = b.input(shape), b.input(tuple(shape[a] for a in axes))
            y = b("add", x, b.spread(small, shape, *axes))
            machine = check(b.graph(y))
            assert "load4" in texts(machine)


def case_map_uneven_broadcast_divides_for_each_element():
    b = h.Build()
    x, bias = b.input((6, 5)), b.input((5,))
    text = texts(check(b.graph(b("add", x, b.spread(bias, (6, 5), 1)))))
    assert "load4(a" in text and "load4(b" not in text and text.count("modulo(") == 4 + 1


def case_map_transposes():
    for shape, perm in (((8, 12), (1, 0)), ((5, 7), (1, 0)), ((3, 4, 8), (2, 0, 1)), ((3, 4, 8), (1, 0, 2))):
        b = h.Build()
        check(b.graph(b("exp", b("transpose", b.input(shape), perm=perm))))


def case_map_slices_flips_and_pads():
    b = h.Build()
    x = b.input((8, 12))
    y = b("slice", x, start=(1, 4), stop=(7, 12), step=(2, 1))
    z = b("flip", x, axes=(1,))
    w = b("pad", x, 7.0, low=(1, 0), high=(0, 4), interior=(1, 0))
    v = b("concatenate", x, z, x, axis=1)
    check(b.graph(b("exp", y), b("neg", z), b("abs", w), b("square", v)))


def case_map_uses_four_elements_of_an_aligned_slice_only():
    for begin, four in ((4, True), (3, False)):
        b = h.Build()
        x = b.input((40,))
        machine = check(b.graph(b("exp", b("slice", x, start=(begin,), stop=(begin + 32,), step=(1,)))))
        assert ("load4" in texts(machine)) == four


def adam(*shape):
    b = h.Build()
    p, g, m, v = (b.input(shape) for _ in range(4))
    lr = b.input(())
    m2 = b("add", b("mul", m, b.like(0.9, m)), b("mul", g, b.like(0.1, g)))
    v2 = b("add", b("mul", v, b.like(0.999, v)), b("mul", b("square", g), b.like(0.001, g)))
    step = b("div", m2, b("add", b("sqrt", v2), b.like(1e-8, v2)))
    return b.graph(b("sub", p, b("mul", step, b.spread(lr, shape))), m2, v2)


def case_map_in_place():
    graph = adam(7, 5)
    machine = check(graph, [np.abs(x) for x in h.inputs_for(graph)])
    assert machine.shared == 3


def case_scalars_run_on_one_thread():
    b = h.Build()
    x, y = b.input(()), b.input(())
    machine = check(b.graph(b("mul", x, y), b("exp", x)))
    assert grids(machine) == [(1, 1)]


def case_buffers_are_not_called_as_functions_are():
    b = h.Build()
    x = b.input((5,))
    kernel_step = compile_graph(b.graph(b("exp", b("abs", x)))).body.steps[0]
    out, inp = kernel_step.kernel.buffers
    out.name, inp.name = "abs", "exp"
    (launch,) = lower_kernel(kernel_step, SIMULATED)
    y = np.zeros(5, F32)
    run_simulated(launch.kernel, [y, np.arange(5, dtype=F32)])
    np.testing.assert_allclose(y, np.exp(np.arange(5)), rtol=1e-6)


# ------------------------------------------------------------------------------------------------ reductions


def case_reductions_over_every_axis():
    sets = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    for name in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"):
        for axes in sets:
            b = h.Build()
            check(b.graph(b(name, b.input((3, 4, 5)), axes=axes)))


def case_reductions_together():
    b = h.Build()
    x = b.input((3, 4, 5))
    sets = [(0,), (1,), (2,), (0, 2), (0, 1, 2)]
    outs = [b(n, x, axes=a) for n in ("reduce_sum", "reduce_max", "reduce_min") for a in sets]
    check(
        b.graph(*outs, b("argmax", x, axis=2), b("argmin", x, axis=0), b("cumsum", x, axis=1, reverse=True))
    )


def case_reductions_of_every_dtype():
    for dtype in _DTYPES:
        for shape in ((3, 7), (2, 90)):
            for axis in (0, 1):
                b = h.Build()
                x = b.input(shape, dtype)
                names = (
                    ["reduce_max", "reduce_min"]
                    if np.dtype(dtype) != dtypes.bool_
                    else ["reduce_and", "reduce_or"]
                )
                names += ["reduce_sum"] if np.dtype(dtype) != dtypes.bool_ else []
                check(b.graph(*[b(n, x, axes=(axis,)) for n in names]))


def case_long_rows_take_a_block():
    b = h.Build()
    machine = check(b.graph(b("reduce_sum", b.input((10, 200)), axes=(1,))))
    assert grids(machine) == [(10, 4)] and "cuda.syncthreads()" in texts(machine)


def case_rows_load_four_elements_where_they_are_aligned():
    for columns, four in ((200, True), (202, False)):
        b = h.Build()
        machine = check(b.graph(softmax(b, b.input((10, columns)))))
        assert ("load4" in texts(machine)) == four and ("store4" in texts(machine)) == four


def case_short_rows_take_part_of_a_block():
    b = h.Build()
    machine = check(b.graph(b("reduce_sum", b.input((7, 8)), axes=(1,))))
    assert grids(machine) == [(4, 4)]  # rows of two threads; the eighth row does not exist
    assert "shuffle_xor" in texts(machine) and "active" in texts(machine)
    assert "syncthreads" not in texts(machine)


def case_columns():
    """Sums over the batch: neighbouring threads on neighbouring columns."""
    for n, k in ((100, 6), (37, 5), (500, 3), (9, 64)):
        b = h.Build()
        machine = check(b.graph(b("reduce_sum", b.input((n, k)), axes=(0,))))
        assert "neighbours on neighbouring rows" in texts(machine) or "one thread each" in texts(machine)


def case_few_long_columns_are_cut():
    target = dataclasses.replace(SIMULATED, multiprocessors=8)
    for n in (512, 509):
        b = h.Build()
        machine = check(b.graph(b("reduce_sum", b.input((n, 2)), axes=(0,))), target=target)
        assert len(machine.launched) == 2


def case_folds_as_the_cpu_has_them():
    """`out[k] op= value` in a loop over the batch: right, if not fast."""
    for shape in ((9, 6), (3, 4, 5), (200, 8)):
        b = h.Build()
        x = b.input(shape)
        check(
            b.graph(*[b(n, x, axes=(0,)) for n in ("reduce_sum", "reduce_max")], b("exp", x)),
            shaped_for="cpu",
        )


def case_many_reductions_share_little_memory():
    b = h.Build()
    x = b.input((30, 6))
    outs = []
    for n in range(12):
        y = b("mul", x, b.like(float(n), x))
        outs += [b("reduce_sum", y, axes=(0,)), b("reduce_max", y, axes=(0,))]
    machine = check(b.graph(*outs))
    assert "float32_7_of" in texts(machine) and "float32_8_of" not in texts(machine)


def case_full_reduction_in_two_launches():
    for n in (130, 512, 1001):
        b = h.Build()
        x = b.input((n,))
        machine = check(
            b.graph(b("reduce_sum", b("tanh", x), axes=(0,)), b("exp", x), b("reduce_max", x, axes=(0,)))
        )
        assert len(machine.launched) == 2 and machine.launched[0].kernel.grid[0] > 1
        assert machine.launched[1].kernel.grid[0] == 1


def case_small_full_reduction_in_one_launch():
    b = h.Build()
    assert grids(check(b.graph(b("reduce_sum", b.input((100,)), axes=(0,))))) == [(1, 4)]


def case_reductions_do_not_change_from_run_to_run():
    x = np.random.default_rng(1).normal(size=(1001,)).astype(F32)
    b = h.Build()
    graph = b.graph(b("reduce_sum", b.input((1001,)), axes=(0,)))
    first, again = (run(graph, [x])[0][0] for _ in range(2))
    assert first.tobytes() == again.tobytes()


def case_sum_of_many_is_accurate():
    x = np.full(20000, 0.1, F32)
    b = h.Build()
    (got,), _ = run(b.graph(b("reduce_sum", b.input(x.shape), axes=(0,))), [x])
    assert abs(float(got) - 20000 * float(F32.type(0.1))) < 0.1  # one after another: 0.34


def case_argmax_and_argmin():
    for shape in ((5, 3), (3, 100), (1000,)):
        for axis in range(len(shape)):
            x = np.random.default_rng(3).integers(0, 9, shape).astype(F32)  # ties: the first one wins
            for dtype in (F32, np.dtype("int32"), dtypes.bfloat16):
                b = h.Build()
                v = b.input(shape, dtype)
                check(b.graph(b("argmax", v, axis=axis), b("argmin", v, axis=axis)), [x.astype(dtype)])


def case_argmax_of_nan_and_infinity():
    x = np.full((3, 50), -np.inf, F32)
    x[1, [7, 31]] = np.nan
    x[2, 20:] = np.inf
    b = h.Build()
    v = b.input(x.shape)
    check(b.graph(b("argmax", v, axis=1), b("argmin", v, axis=1), b("argmax", b("neg", v), axis=1)), [x])


def case_reduce_max_of_nan():
    x = np.zeros((3, 50), F32)
    x[1, 7] = np.nan
    b = h.Build()
    v = b.input(x.shape)
    check(b.graph(b("reduce_max", v, axes=(1,)), b("reduce_max", v, axes=(0, 1))), [x])


# ------------------------------------------------------------------------------------------------ rows


SHAPES = ((6, 5), (3, 200), (2, 700), (40, 3), (1, 9), (9, 150))


def case_softmax():
    for shape in SHAPES:
        b = h.Build()
        check(b.graph(softmax(b, b.input(shape))))


def case_softmax_over_columns():
    for shape in ((6, 5), (50, 6)):
        b = h.Build()
        x = b.input(shape)
        m = b("reduce_max", x, axes=(0,))
        e = b("exp", b("sub", x, b.spread(m, shape, 1)))
        check(b.graph(b("div", e, b.spread(b("reduce_sum", e, axes=(0,)), shape, 1))))


def layer_norm(n, d):
    b = h.Build()
    x, gamma, beta = b.input((n, d)), b.input((d,)), b.input((d,))
    centred = b("sub", x, mean_rows(b, x))
    var = b("reduce_sum", b("square", centred), axes=(1,))
    var = b("div", var, b.like(float(d), var))
    scale = b("rsqrt", b("add", var, b.like(1e-5, var)))
    y = b("mul", centred, b.spread(scale, (n, d), 0))
    return b.graph(b("add", b("mul", y, b.spread(gamma, (n, d), 1)), b.spread(beta, (n, d), 1)))


def case_layer_norm():
    for n, d in SHAPES:
        check(layer_norm(n, d))


def case_cross_entropy():
    for shape in SHAPES:
        b = h.Build()
        x, labels = b.input(shape), b.input((shape[0],), "int64")
        loss, _, logp = cross_entropy(b, x, labels)
        check(b.graph(loss, logp))
        b = h.Build()
        x, labels = b.input(shape), b.input((shape[0],), "int64")
        loss, _, _ = cross_entropy(b, x, labels)
        check(b.graph(loss))


def cross_entropy_and_gradient(n, c):
    b = h.Build()
    x, labels = b.input((n, c)), b.input((n,), "int64")
    loss, rows, logp = cross_entropy(b, x, labels)
    zeros = b.spread(Literal(0.0, F32), (n, c))
    ct = b.spread(Literal(-1.0 / n, F32), (n,))
    g = b(h.scatter, zeros, ct, rows, labels, axes=(0, 1), mode="add")
    g_sum = b("reduce_sum", g, axes=(1,))
    return b.graph(loss, b("sub", g, b("mul", b("exp", logp), b.spread(g_sum, (n, c), 0))))


def case_cross_entropy_with_gradient():
    for n, c in ((6, 5), (30, 40)):
        check(cross_entropy_and_gradient(n, c))


def batch_norm(*shape):
    b = h.Build()
    x, n = b.input(shape), float(shape[0] * shape[2] * shape[3])
    mean = b("reduce_sum", x, axes=(0, 2, 3))
    mean = b("div", mean, b.like(n, mean))
    centred = b("sub", x, b.spread(mean, x.type.shape, 1))
    var = b("reduce_sum", b("square", centred), axes=(0, 2, 3))
    scale = b("rsqrt", b("add", b("div", var, b.like(n, var)), b.like(1e-5, var)))
    return b.graph(b("mul", centred, b.spread(scale, x.type.shape, 1)), mean, var)


def case_batch_norm():
    for shape in ((3, 4, 5, 5), (2, 3, 4, 4)):
        check(batch_norm(*shape))


def case_batch_norm_of_few_channels_is_cut():
    target = dataclasses.replace(SIMULATED, multiprocessors=8)
    for shape in ((4, 2, 12, 12), (3, 2, 13, 11), (5, 1, 11, 9)):
        machine = check(batch_norm(*shape), target=target)
        assert len(machine.launched) >= 5, [s.kernel.name for s in machine.launched]


def case_rows_and_a_sum_over_all():
    b = h.Build()
    x = b.input((40, 9))
    norms = b("sqrt", b("reduce_sum", b("square", x), axes=(1,)))
    total = b("reduce_sum", norms, axes=(0,))
    y = b("div", x, b.spread(norms, (40, 9), 0))
    check(b.graph(y, total, b("reduce_sum", y, axes=(0, 1))))


def case_a_sum_and_what_follows_from_it():
    for n in (30, 300):
        b = h.Build()
        x = b.input((n,))
        scale = b("rsqrt", b("reduce_sum", b("square", x), axes=(0,)))
        check(b.graph(b("mul", x, b.spread(scale, (n,))), scale))


def case_threads_wait_for_what_others_store():
    """A row's sum of squares of what the row has stored before, read in another order."""
    b = h.Build()
    x = b.input((3, 40))
    y = softmax(b, x)
    check(b.graph(b("sub", y, b("flip", y, axes=(1,))), y))
