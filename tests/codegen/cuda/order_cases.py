"""Loop nests whose iterations depend on each other, or meet at an index: see test_nests.py."""

from __future__ import annotations

import dataclasses

import numpy as np
from nest_cases import F32, I64, texts
from passes import helpers as h
from simulate import check, run

from fgrad import dtypes
from fgrad.codegen.cuda.target import SIMULATED
from fgrad.errors import FgradIndexError
from fgrad.ir import Literal

# ------------------------------------------------------------------------------------------------ in order


def case_cumulative():
    for shape in ((7,), (300,), (3, 5), (2, 90), (90, 2)):
        for name in ("cumsum", "cumprod", "cummax", "cummin"):
            for axis in range(len(shape)):
                b = h.Build()
                x = b.input(shape)
                if name == "cumprod":
                    x = b("exp", b("mul", x, b.like(0.01, x)))
                check(b.graph(*[b(name, x, axis=axis, reverse=r) for r in (False, True)]), rtol=1e-4)


def case_long_cumulative_sums_in_pieces():
    target = dataclasses.replace(SIMULATED, multiprocessors=8)
    for shape, axis in (((300,), 0), ((257,), 0), ((2, 90), 1), ((90, 2), 0), ((2, 70, 2), 1)):
        for name in ("cumsum", "cummax"):
            for reverse in (False, True):
                b = h.Build()
                machine = check(
                    b.graph(b(name, b.input(shape), axis=axis, reverse=reverse)), target=target, rtol=1e-4
                )
                assert len(machine.launched) in (3, 4)


def case_cumulative_integers_and_half():
    for dtype in ("int32", "uint8", dtypes.float16):
        b = h.Build()
        x = b.input((2, 70), dtype)
        check(b.graph(b("cumsum", x, axis=1, reverse=False), b("cummax", x, axis=0, reverse=True)))


def case_gather():
    b = h.Build()
    x, i, j = b.input((4, 3, 8)), b.input((2, 5), "int64"), b.input((2, 5), "int64")
    one = b(h.gather, x, i, axes=(0,))
    check(b.graph(one, b(h.gather, x, i, j, axes=(0, 1)), b(h.gather, b("exp", x), j, axes=(2,))))


def case_gather_of_rows_loads_four_elements():
    b = h.Build()
    x, i = b.input((5, 8)), b.input((6,), "int64")
    text = texts(check(b.graph(b("tanh", b(h.gather, x, i, axes=(0,))))))
    assert "load4(a" in text


def case_gather_with_a_wrong_index_sets_the_status():
    b = h.Build()
    x, i = b.input((4, 3)), b.input((70,), "int64")
    graph = b.graph(b(h.gather, x, i, axes=(0,)))
    index = np.zeros(70, I64)
    index[66] = 4
    try:
        run(graph, [np.ones((4, 3), F32), index])
    except FgradIndexError as error:
        assert "axis 0 with size 4" in str(error)
    else:
        raise AssertionError("no error")


def case_first_failing_check_is_kept():
    b = h.Build()
    x, i, j = b.input((4, 3)), b.input((5,), "int64"), b.input((5,), "int64")
    graph = b.graph(b(h.gather, x, i, axes=(0,)), b(h.gather, x, j, axes=(1,)))
    bad = np.full(5, 9, I64)
    try:
        run(graph, [np.ones((4, 3), F32), bad, bad])
    except FgradIndexError as error:
        assert "axis 0" in str(error)
    else:
        raise AssertionError("no error")


MODES = ("set", "add", "mul", "minimum", "maximum")


def _bits_equal(graph, inputs):
    """As `check`, to the last bit: updates are applied in the order of the definition."""
    got, machine = run(graph, inputs)
    for g, w in zip(got, h.evaluate(graph, inputs), strict=True):
        assert g.tobytes() == np.ascontiguousarray(w).tobytes()
    return machine


def case_scatter_of_rows():
    for mode in MODES:
        for sent, receivers in ((3, 4), (33, 4), (9, 300)):  # indices are 0, 1 and 2: they repeat
            b = h.Build()
            args = b.input((receivers, 2)), b.input((sent, 2)), b.input((sent,), "int64")
            graph = b.graph(b(h.scatter, *args, axes=(0,), mode=mode))
            machine = _bits_equal(graph, h.inputs_for(graph))
            assert ("senders" in texts(machine)) == (receivers == 4)


def case_scatter_along_two_axes():
    for mode in MODES:
        b = h.Build()
        i, j = b.input((7,), "int64"), b.input((7,), "int64")
        a = b(h.scatter, b.input((4, 3, 2)), b.input((7, 2)), i, j, axes=(0, 1), mode=mode)
        c = b(h.scatter, b.input((4, 3, 3)), b.input((7, 4)), i, j, axes=(1, 2), mode=mode)
        graph = b.graph(a, c)
        _bits_equal(graph, h.inputs_for(graph))


def case_scatter_of_single_elements_and_negative_indices():
    for mode in MODES:
        b = h.Build()
        graph = b.graph(
            b(h.scatter, b.input((6,)), b.input((20,)), b.input((20,), "int64"), axes=(0,), mode=mode)
        )
        x, u, _ = h.inputs_for(graph)
        _bits_equal(graph, [x, u, np.random.default_rng(0).integers(-6, 6, 20)])


def case_scatter_for_each_of_a_batch():
    """The batch index is an index operand of its own: its loop is shared by threads."""
    b = h.Build()
    rows = b("broadcast", b("iota", shape=(3,), dtype=I64, axis=0), shape=(3, 9), axes=(0,))
    ids = b.input((3, 9), "int64")
    graph = b.graph(b(h.scatter, b.input((3, 4, 2)), b.input((3, 9, 2)), rows, ids, axes=(0, 1), mode="add"))
    _bits_equal(graph, h.inputs_for(graph))


POOLS = (
    dict(window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0))),
    dict(window=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1))),
    dict(window=(3, 2), strides=(1, 2), padding=((0, 1), (1, 0))),
)


def case_pooling():
    for p in POOLS:
        b = h.Build()
        x = b.input((2, 3, 7, 8))
        y, offset = b(h.max_pool, x, **p)
        check(b.graph(y, offset, b(h.sum_pool, x, **p), b(h.pool_take, b("exp", x), offset, **p)))


def pooling_and_gradients(p, *shape):
    b = h.Build()
    y, offset = b(h.max_pool, b.input(shape), **p)
    g = b("tanh", y)
    put = b(h.pool_put, g, offset, spatial=shape[2:], **p)
    return b.graph(y, put, b(h.sum_pool_grad, g, spatial=shape[2:], **p))


def case_pooling_gradients():
    for p in POOLS:
        check(pooling_and_gradients(p, 2, 3, 7, 8))


# ------------------------------------------------------------------------------------------------ random bits


def case_random_bits_are_those_of_the_cpu():
    for n in (8, 130):
        b = h.Build()
        c = b("iota", shape=(n,), dtype=np.dtype("uint32"), axis=0)
        k = b.spread(Literal(7, np.dtype("uint32")), (n,))
        graph = b.graph(*b("threefry2x32", k, k, c, c))
        _bits_equal(graph, [])
