"""Every family of primitives, lowered and run, against its NumPy definition."""

import itertools

import numpy as np
import pytest

from fgrad.codegen.program import ContractStep, ForStep, SwitchStep, WhileStep
from fgrad.codegen.python_source import python_source
from fgrad.errors import FgradIndexError
from fgrad.ir import Graph, Literal
from fgrad.passes import compile_graph
from fgrad.runtime.interpret import interpret

from . import helpers as h

I64, F32 = np.dtype("int64"), np.dtype("float32")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "uint8", "bool"])
def test_reductions_over_every_set_of_axes(dtype):
    b = h.Build()
    dtype = np.dtype(dtype)
    x = b.input((3, 4, 5), dtype)
    numeric = ["reduce_max", "reduce_min", "reduce_sum", "reduce_prod"]
    names = ["reduce_and", "reduce_or"] if dtype.kind == "b" else numeric
    sets = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    h.run(b.graph(*(b(n, x, axes=a) for n in names for a in sets)))


@pytest.mark.parametrize("axis,reverse", list(itertools.product((0, 1, 2), (False, True))))
def test_cumulative(axis, reverse):
    b = h.Build()
    x = b.input((2, 3, 4))
    y = b("mul", x, x)
    h.run(b.graph(b("cumsum", y, axis=axis, reverse=reverse), b("cummax", x, axis=axis, reverse=reverse)))


POOLS = [
    ((2, 2), (2, 2), ((0, 0), (0, 0)), (4, 6)),
    ((2, 2), (2, 2), ((0, 0), (0, 0)), (5, 7)),
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (5, 6)),
    ((2, 3), (1, 3), ((0, 1), (1, 0)), (4, 6)),
    ((1, 2), (2, 3), ((0, 0), (1, 1)), (5, 8)),
]


@pytest.mark.parametrize("window,strides,padding,spatial", POOLS)
def test_pools_and_their_transposes(window, strides, padding, spatial):
    p = {"window": window, "strides": strides, "padding": padding}
    b = h.Build()
    x = b.input((2, 3, *spatial))
    y, offset = b(h.max_pool, b("tanh", x), **p)
    g = b("add", y, b.like(1.0, y))
    outs = [y, offset, b(h.pool_put, g, offset, spatial=spatial, **p), b(h.pool_take, x, offset, **p)]
    outs += [b(h.sum_pool, x, **p), b(h.sum_pool_grad, g, spatial=spatial, **p)]
    assert not h.host_steps(h.run(b.graph(*outs)))


def test_max_pool_counts_nan_as_the_largest():
    b = h.Build()
    x = b.input((1, 1, 4, 4))
    value = np.random.default_rng(0).normal(size=(1, 1, 4, 4)).astype(np.float32)
    value[0, 0, 0, 1] = np.nan
    value[0, 0, 2:, 2:] = -np.inf
    outs = b(h.max_pool, x, window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)))
    h.run(b.graph(*outs), [value])


def test_pool_put_and_relu_gradient_are_one_kernel_without_divisions():
    b = h.Build()
    p = {"window": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0))}
    z, g, offset = b.input((2, 3, 12, 12)), b.input((2, 3, 6, 6)), b.input((2, 3, 6, 6), "int32")
    dz = b(
        "select", b("gt", z, b.like(0.0, z)), b(h.pool_put, g, offset, spatial=(12, 12), **p), b.like(0.0, z)
    )
    (kernel,) = h.kernels(h.run(b.graph(dz)))

    assert "floordiv" not in python_source(kernel) and "remainder" not in python_source(kernel)


def test_gather_shapes_and_negative_indices():
    b = h.Build()
    x, i, j = b.input((4, 5, 6)), b.input((2, 3), "int64"), b.input((2, 3), "int64")
    value = np.random.default_rng(1).normal(size=(4, 5, 6)).astype(np.float32)
    a = np.array([[0, -1, 3], [-4, 2, 1]])
    c = np.array([[5, -6, 0], [3, -1, 2]])
    outs = [
        b(h.gather, x, i, axes=(0,)),
        b(h.gather, x, i, axes=(2,)),
        b(h.gather, b("exp", x), i, j, axes=(0, 2)),
    ]
    outs.append(b(h.gather, x, j, i, axes=(2, 0)))
    outs.append(b(h.gather, x, Literal(-1, I64), axes=(1,)))
    h.run(b.graph(*outs[:1], *outs[2:]), [value, a, c])


@pytest.mark.parametrize("mode", ["set", "add", "mul", "minimum", "maximum"])
def test_scatter_with_duplicates(mode):
    b = h.Build()
    x, u, i = b.input((5, 3)), b.input((4, 3)), b.input((4,), "int64")
    rng = np.random.default_rng(2)
    inputs = [rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)]
    h.run(b.graph(b(h.scatter, x, b("exp", u), i, axes=(0,), mode=mode)), [*inputs, np.array([1, -1, 1, 0])])
    rows = b("iota", shape=(3,), dtype=I64, axis=0)
    v, k = b.input((3,)), b.input((3,), "int64")
    y = b(h.scatter, x, v, k, rows, axes=(0, 1), mode=mode)
    values = [*inputs, np.array([1, -1, 1, 0]), rng.normal(size=3).astype(np.float32), np.array([4, -5, 2])]
    h.run(b.graph(y), values)


@pytest.mark.parametrize("wrong", [4, -5])
def test_indices_out_of_bounds_are_reported(wrong):
    b = h.Build()
    x, i = b.input((4, 2)), b.input((3,), "int64")
    program = compile_graph(b.graph(b(h.gather, x, i, axes=(0,))))
    assert program.checks[0][0] == "gather: index out of bounds for axis 0 with size 4"
    with pytest.raises(FgradIndexError, match="gather: index out of bounds for axis 0 with size 4"):
        interpret(program, [np.zeros((4, 2), np.float32), np.array([0, wrong, 1])])


def test_dynamic_slices_clamp_their_starts():
    for start in (-3, 0, 2, 9):
        b = h.Build()
        x, u, s = b.input((6, 4)), b.input((2, 3)), b.input((), "int64")
        zero = Literal(1, I64)
        y = b("dynamic_slice", b("exp", x), s, zero, sizes=(3, 2))
        z = b("dynamic_update_slice", x, u, s, zero)
        rng = np.random.default_rng(3)
        values = [rng.normal(size=v.type.shape).astype(np.float32) for v in (x, u)]
        h.run(b.graph(y, z), [*values, np.array(start)])


def test_concatenate_lazily_and_by_stores():
    b = h.Build()
    xs = [b.input((2, n)) for n in (1, 3, 2, 4, 2)]
    few = b("concatenate", xs[0], b("exp", xs[1]), axis=1)
    many = b("concatenate", *[b("neg", x) for x in xs], axis=1)
    h.run(b.graph(b("mul", few, few), b("add", many, many), b("concatenate", xs[2], xs[4], axis=0)))


def test_random_bits():
    b = h.Build()
    c = b("iota", shape=(8,), dtype=np.dtype("uint32"), axis=0)
    k = b.spread(Literal(7, np.dtype("uint32")), (8,))
    x0, x1 = b("threefry2x32", k, k, c, c)
    h.run(b.graph(x0, b("bitwise_xor", x0, x1)))


CONV = {"strides": (2, 1), "padding": ((1, 0), (1, 2)), "dilation": (1, 2), "groups": 2}


def test_dot_general_with_batch_and_transposed_operands():
    b = h.Build()
    x, y = b.input((2, 3, 4)), b.input((5, 2, 4))
    y2 = b("transpose", y, perm=(1, 2, 0))
    z = b("dot_general", x, y2, dims=(((2,), (1,)), ((0,), (0,))))
    program = h.run(b.graph(b("add", z, z)))
    assert isinstance(program.body.steps[0], ContractStep)


def test_convolution_and_its_gradients():
    b = h.Build()
    x, w = b.input((2, 4, 6, 7)), b.input((6, 2, 3, 2))
    y = b("conv", x, w, **CONV)
    gx = b("conv_input_grad", y, w, spatial=(6, 7), **CONV)
    gw = b("conv_weight_grad", x, y, kernel=(3, 2), **CONV)
    program = h.run(b.graph(y, gx, gw))
    assert sum(isinstance(s, ContractStep) for s in program.body.steps) == 3


def test_what_has_no_lowering_runs_through_numpy():
    b = h.Build()
    x = b.input((4, 3))
    y = b("sort", b("neg", x), axis=0, num_keys=1)[0]
    program = h.run(b.graph(b("add", y, x)))
    assert [s.prim.name for s in h.host_steps(program)] == ["sort"]


def body(build):
    b = h.Build()
    outs = build(b)
    return Graph(tuple(b.inputs), b.eqns, tuple(outs))


def test_switch():
    def branch(k):
        def build(b):
            x, y = b.input((3,)), b.input((3,))
            return [[b("add", x, y), x], [y, b("exp", x)], [b.like(2.0, x), y]][k]

        return body(build)

    branches = tuple(branch(k) for k in range(3))
    for index in (-1, 0, 1, 2, 7):
        b = h.Build()
        i, x, y = b.input((), "int64"), b.input((3,)), b.input((3,))
        outs = b("switch", i, b("neg", x), y, branches=branches)
        values = [np.array(index), np.arange(3, dtype=np.float32), np.ones(3, np.float32)]
        program = h.run(b.graph(outs[0], b("neg", outs[1])), values)
        assert isinstance(program.body.steps[-2], SwitchStep)


def test_while_loop():
    def cond(b):
        limit, x = b.input(()), b.input((2,))
        b.input((), "int64")
        return [b("lt", b("reduce_sum", x, axes=(0,)), limit)]

    def step(b):
        x, n = b.input((2,)), b.input((), "int64")
        return [b("add", x, b("mul", x, x)), b("add", n, Literal(1, I64))]

    for start in (0.5, 50.0):
        b = h.Build()
        limit, x = b.input(()), b.input((2,))
        outs = b(
            "while_loop",
            limit,
            b("exp", x),
            Literal(0, I64),
            cond=body(cond),
            body=body(step),
            cond_consts=1,
            body_consts=0,
        )
        program = h.run(b.graph(*outs), [np.array(40.0, np.float32), np.full(2, np.log(start), np.float32)])
        assert any(isinstance(s, WhileStep) for s in program.body.steps)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse):
    def step(b):
        w, c, x = b.input((3,)), b.input((3,)), b.input((3,))
        new = b("tanh", b("add", b("mul", w, c), x))
        return [new, b("mul", new, x), c]

    b = h.Build()
    w, xs = b.input((3,)), b.input((4, 3))
    outs = b(
        "scan", w, b.like(0.5, w), b("exp", xs), body=body(step), consts=1, carry=1, length=4, reverse=reverse
    )
    program = h.run(b.graph(outs[0], b("neg", outs[1]), outs[2]))
    assert any(isinstance(s, ForStep) for s in program.body.steps)


def test_scan_whose_body_needs_numpy_runs_as_a_whole_through_numpy():
    def step(b):
        c, x = b.input((3,)), b.input((3,))
        new = b("sort", b("add", c, x), axis=0, num_keys=1)[0]
        return [new, new]

    b = h.Build()
    c, xs = b.input((3,)), b.input((4, 3))
    outs = b("scan", c, xs, body=body(step), consts=0, carry=1, length=4, reverse=False)
    program = h.run(b.graph(*outs))
    assert [s.prim.name for s in h.host_steps(program)] == ["scan"]


def test_scan_inside_scan():
    def inner(b):
        c, x = b.input(()), b.input(())
        new = b("add", b("mul", c, x), x)
        return [new, new]

    def outer(b):
        c, row = b.input(()), b.input((3,))
        new, ys = b("scan", c, row, body=body(inner), consts=0, carry=1, length=3, reverse=True)
        return [b("tanh", new), ys]

    b = h.Build()
    c, xs = b.input(()), b.input((4, 3))
    outs = b("scan", c, xs, body=body(outer), consts=0, carry=1, length=4, reverse=False)
    assert not h.host_steps(h.run(b.graph(*outs)))


def test_complex_numbers_run_through_numpy():
    b = h.Build()
    z, x = b.input((3, 4), "complex64"), b.input((4,))
    w = b("add", b("reshape", z, shape=(4, 3)), b.like(1 + 2j, b("reshape", z, shape=(4, 3))))
    total = b("reduce_sum", b("transpose", w, perm=(1, 0)), axes=(0,))
    outs = [total, b("add", b("real", total), x), b.like(3j, total), Literal(1j, np.dtype("complex64"))]
    rng = np.random.default_rng(0)
    values = [
        (rng.normal(size=(3, 4)) + 1j * rng.normal(size=(3, 4))).astype("complex64"),
        np.ones(4, np.float32),
    ]
    h.run(b.graph(*outs), values)
