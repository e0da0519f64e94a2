"""What is fused into one kernel, and that fused kernels compute what the equations say."""

import numpy as np
import pytest

from fgrad.codegen.program import ContractStep, CopyStep, KernelStep, walk
from fgrad.ir import Literal

from . import helpers as h

F32 = np.dtype("float32")


def softmax(b: h.Build, x):
    n, c = x.type.shape
    m = b("reduce_max", x, axes=(1,))
    e = b("exp", b("sub", x, b.spread(m, (n, c), 0)))
    return b("div", e, b.spread(b("reduce_sum", e, axes=(1,)), (n, c), 0))


def one_kernel(program):
    assert [type(s) for s in program.body.steps] == [KernelStep], [
        getattr(s, "kernel", s) for s in program.body.steps
    ]
    return program.body.steps[0]


def test_elementwise_chain_is_one_loop():
    b = h.Build()
    x, y = b.input((6, 5)), b.input((6, 5))
    t = b("tanh", b("mul", x, y))
    z = b("add", b("mul", t, t), b("exp", b("neg", t)))
    step = one_kernel(h.run(b.graph(z)))
    (loop,) = step.kernel.body
    assert loop.var.extent == 30 and loop.kind == "vector"
    assert len(step.args) == 3  # tanh is used twice and not stored


def test_broadcast_reshape_transpose_slice_flip_pad_in_one_kernel():
    b = h.Build()
    x, bias = b.input((4, 6)), b.input((6,))
    y = b("add", x, b.spread(bias, (4, 6), 1))
    y = b("transpose", y, perm=(1, 0))
    y = b("slice", y, start=(1, 0), stop=(6, 4), step=(2, 1))
    y = b("flip", y, axes=(0,))
    y = b("pad", y, 7.0, low=(1, 0), high=(0, 2), interior=(1, 0))
    y = b("reshape", y, shape=(y.type.size,))
    one_kernel(h.run(b.graph(y)))


def test_softmax_is_one_row_loop():
    b = h.Build()
    step = one_kernel(h.run(b.graph(softmax(b, b.input((6, 5))))))
    (loop,) = step.kernel.body
    assert loop.kind == "parallel" and loop.var.extent == 6


def test_softmax_over_middle_axes():
    b = h.Build()
    x = b.input((2, 3, 4, 5))
    m = b("reduce_max", x, axes=(3,))
    e = b("exp", b("sub", x, b.spread(m, x.type.shape, 0, 1, 2)))
    y = b("div", e, b.spread(b("reduce_sum", e, axes=(3,)), x.type.shape, 0, 1, 2))
    one_kernel(h.run(b.graph(y)))


def mean_rows(b, x):
    n, d = x.type.shape
    s = b("reduce_sum", x, axes=(1,))
    return b.spread(b("div", s, b.like(float(d), s)), (n, d), 0)


def test_layer_norm_is_one_kernel():
    b = h.Build()
    x, gamma, beta = b.input((6, 8)), b.input((8,)), b.input((8,))
    centred = b("sub", x, mean_rows(b, x))
    var = b("reduce_sum", b("square", centred), axes=(1,))
    var = b("div", var, b.like(8.0, var))
    scale = b("rsqrt", b("add", var, b.like(1e-5, var)))
    y = b("mul", centred, b.spread(scale, (6, 8), 0))
    y = b("add", b("mul", y, b.spread(gamma, (6, 8), 1)), b.spread(beta, (6, 8), 1))
    one_kernel(h.run(b.graph(y)))


def test_batch_norm_over_channels_is_one_kernel():
    b = h.Build()
    x = b.input((3, 4, 5, 5))
    mean = b("reduce_sum", x, axes=(0, 2, 3))
    mean = b("div", mean, b.like(75.0, mean))
    centred = b("sub", x, b.spread(mean, x.type.shape, 1))
    var = b("reduce_sum", b("square", centred), axes=(0, 2, 3))
    scale = b("rsqrt", b("add", b("div", var, b.like(75.0, var)), b.like(1e-5, var)))
    y = b("mul", centred, b.spread(scale, x.type.shape, 1))
    total = b("reduce_sum", b("exp", y), axes=(0, 2, 3))
    z = b("div", b("exp", y), b.spread(total, x.type.shape, 1))
    one_kernel(h.run(b.graph(y, mean, z)))


def cross_entropy(b, x, labels):
    n, c = x.type.shape
    m = b("reduce_max", x, axes=(1,))
    z = b("sub", x, b.spread(m, (n, c), 0))
    lse = b("log", b("reduce_sum", b("exp", z), axes=(1,)))
    logp = b("sub", z, b.spread(lse, (n, c), 0))
    rows = b("iota", shape=(n,), dtype=np.dtype("int64"), axis=0)
    picked = b(h.gather, logp, rows, labels, axes=(0, 1))
    total = b("reduce_sum", picked, axes=(0,))
    return b("mul", total, -1.0 / n), rows, logp


def test_cross_entropy_is_one_kernel_after_the_index_check():
    b = h.Build()
    x, labels = b.input((6, 5)), b.input((6,), "int64")
    loss, _, _ = cross_entropy(b, x, labels)
    program = h.run(b.graph(loss))
    assert sorted(k.name.split("_")[0] for k in h.kernels(program)) == ["check", "fused"]
    assert len(program.body.steps) == 2


def test_cross_entropy_with_gradient_is_one_kernel_after_the_index_check():
    b = h.Build()
    x, labels = b.input((6, 5)), b.input((6,), "int64")
    loss, rows, logp = cross_entropy(b, x, labels)
    zeros = b.spread(Literal(0.0, F32), (6, 5))
    ct = b.spread(Literal(-1.0 / 6, F32), (6,))
    g = b(h.scatter, zeros, ct, rows, labels, axes=(0, 1), mode="add")
    g_sum = b("reduce_sum", g, axes=(1,))
    grad = b("sub", g, b("mul", b("exp", logp), b.spread(g_sum, (6, 5), 0)))
    program = h.run(b.graph(loss, grad))
    assert len(program.body.steps) == 2, [k.notes for k in h.kernels(program)]


def test_adam_update_of_one_parameter_is_one_loop():
    b = h.Build()
    p, g, m, v = (b.input((7, 3)) for _ in range(4))
    lr = b.input(())
    m2 = b("add", b("mul", m, b.like(0.9, m)), b("mul", g, b.like(0.1, g)))
    v2 = b("add", b("mul", v, b.like(0.999, v)), b("mul", b("square", g), b.like(0.001, g)))
    step = b("div", m2, b("add", b("sqrt", v2), b.like(1e-8, v2)))
    p2 = b("sub", p, b("mul", step, b.spread(lr, (7, 3))))
    program = h.run(b.graph(p2, m2, v2))
    kernel_step = one_kernel(program)
    (loop,) = [s for s in kernel_step.kernel.body]
    assert loop.var.extent == 21
    new, (old_p, _, old_m, old_v, _) = program.outputs, program.inputs
    assert set(zip(new, (old_p, old_m, old_v), strict=True)) <= set(kernel_step.in_place)


def test_value_and_gradient_of_an_elementwise_loss_is_one_pass():
    b = h.Build()
    x = b.input((50,))
    t = b("tanh", x)
    loss = b("reduce_sum", b("mul", t, t), axes=(0,))
    one = b.like(1.0, x)
    grad = b("mul", b("mul", t, b.like(2.0, x)), b("sub", one, b("mul", t, t)))
    step = one_kernel(h.run(b.graph(loss, grad)))
    assert len([s for s in step.kernel.body if hasattr(s, "body")]) == 1


def test_long_sums_run_in_blocks():
    b = h.Build()
    x = b.input((10_000,))
    program = h.run(b.graph(b("reduce_sum", x, axes=(0,))))
    (kernel,) = h.kernels(program)
    extents = {s.var.extent for s in _loops(kernel.body)}
    assert extents == {2, 4096, 10_000 - 2 * 4096}


def _loops(body):
    for s in body:
        if hasattr(s, "body"):
            yield s
            yield from _loops(s.body)


def test_bias_gradient_runs_along_the_contiguous_dimension():
    b = h.Build()
    (kernel,) = h.kernels(h.run(b.graph(b("reduce_sum", b.input((6, 8)), axes=(0,)))))
    innermost = [s for s in _loops(kernel.body) if not any(hasattr(t, "body") for t in s.body)]
    assert all(s.var.extent == 8 and s.kind == "vector" for s in innermost)


def test_reshape_of_a_pool_leaves_no_divisions():
    b = h.Build()
    x = b.input((2, 3, 4, 4))
    y = b("sigmoid", b("reshape", b("exp", x), shape=(2, 48)))
    y = b("add", y, b.spread(b.input((48,)), (2, 48), 1))
    assert "//" not in str(h.kernels(h.run(b.graph(y)))[0].body)
    one_kernel(h.run(b.graph(y)))


def test_transposed_operands_are_read_through_strides():
    b = h.Build()
    x, w = b.input((4, 5)), b.input((6, 5))
    wt = b("transpose", w, perm=(1, 0))
    y = b("dot_general", x, wt, dims=(((1,), (0,)), ((), ())))
    program = h.run(b.graph(y))
    assert [type(s) for s in program.body.steps] == [ContractStep]


def test_outputs_that_are_inputs_literals_or_repeated():
    b = h.Build()
    x = b.input((3,))
    unused = b.input((2,))
    y = b("neg", x)
    program = h.run(b.graph(y, x, y, Literal(2.5, F32), b("reshape", y, shape=(3, 1)), unused))
    assert sum(isinstance(s, CopyStep) for s in walk(program.body)) >= 2


def test_zero_sized_arrays():
    b = h.Build()
    x = b.input((0, 3))
    y = b("exp", x)
    h.run(
        b.graph(
            y, b("reduce_sum", y, axes=(0,)), b("reduce_sum", y, axes=(0, 1)), b("concatenate", y, y, axis=0)
        )
    )


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_arg_reductions_keep_the_first_and_count_nan(name):
    b = h.Build()
    x = b.input((5, 7))
    value = np.random.default_rng(0).integers(0, 3, (5, 7)).astype(np.float32)
    value[1, 3] = value[1, 5] = np.nan
    value[2] = -np.inf
    value[3] = np.inf
    graph = b.graph(b(name, x, axis=1), b(name, x, axis=0))
    h.run(graph, [value])


def test_max_propagates_nan():
    b = h.Build()
    x = b.input((3, 4))
    value = np.array([[1, np.nan, 2, 3], [-np.inf] * 4, [1, 2, 3, 4]], np.float32)
    h.run(b.graph(b("reduce_max", x, axes=(1,)), b("reduce_min", x, axes=(0,))), [value])


def test_kernel_notes_name_equations():
    b = h.Build()
    x = b.input((3,))
    (kernel,) = h.kernels(h.run(b.graph(b("exp", b("add", x, b.like(1.0, x))))))
    assert any("exp" in n for n in kernel.notes) and kernel.flops >= 6 and kernel.bytes == 24


def test_a_checkpoint_is_computed_again_where_it_is_needed():
    def inner(b):
        x = b.input((6, 5))
        return [b("exp", b("sin", x))]

    b = h.Build()
    body = h.Build()
    graph = body.graph(*inner(body))
    x, w = b.input((6, 5)), b.input((5, 5))
    (first,) = b("checkpoint", x, graph=graph)
    y = first
    for _ in range(10):
        y = b("dot_general", y, w, dims=(((1,), (0,)), ((), ())))
    (again,) = b("checkpoint", x, graph=graph)
    program = h.run(
        b.graph(b("mul", y, again)), [np.full((6, 5), 0.5, np.float32), np.full((5, 5), 0.1, np.float32)]
    )
    last = program.body.steps[-1]
    assert isinstance(last, KernelStep) and any("exp" in n for n in last.kernel.notes)
