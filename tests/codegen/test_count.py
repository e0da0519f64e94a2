"""Operations and bytes of loop nests, against counts made by hand."""

from fgrad import dtypes
from fgrad.codegen.count import Work, kernel_work
from fgrad.codegen.loops import (
    Acc,
    Affine,
    Buffer,
    Const,
    Init,
    Kernel,
    Load,
    Loop,
    LoopVar,
    Op,
    Store,
    Update,
)

F4, F8, I4 = dtypes.float32, dtypes.float64, dtypes.int32


def at(*terms, const=0):
    return Affine(const, list(terms))


def test_map_counts_operations_by_kind():
    x, y, i = Buffer("x", F4, 100), Buffer("y", F4, 100, "out"), LoopVar("i", 100)
    value = Op("mul", (Op("exp", (Load(x, i),), F4), Const(2.0, F4)), F4)
    value = Op("select", (Op("gt", (value, Load(x, i)), dtypes.bool_), value, Const(0.0, F4)), F4)
    work = kernel_work(Kernel("k", (y, x), [Loop(i, [Store(y, i, value)], "vector")]))
    assert work == Work(arithmetic=100, transcendental=100, read=400, written=400)
    assert work.flops == 200 and work.bytes == 800


def test_softmax_of_rows():
    x, y = Buffer("x", F4, 640), Buffer("y", F4, 640, "out")
    i, j, k, l = LoopVar("i", 64), LoopVar("j", 10), LoopVar("k", 10), LoopVar("l", 10)
    m, s = Acc("m", F4), Acc("s", F4)

    def e(v):
        return Op("exp", (Op("sub", (Load(x, at((i, 10), (v, 1))), m), F4),), F4)

    body = [
        Init(m, Const(-1e30, F4)),
        Loop(j, [Update(m, "maximum", Load(x, at((i, 10), (j, 1))))], "vector"),
        Init(s, Const(0.0, F4)),
        Loop(k, [Update(s, "add", e(k))], "vector"),
        Loop(l, [Store(y, at((i, 10), (l, 1)), Op("div", (e(l), s), F4))], "vector"),
    ]
    work = kernel_work(Kernel("softmax", (y, x), [Loop(i, body, "parallel")]))
    # maximum, sub, add; sub, div: five a element; exp twice.
    assert work == Work(arithmetic=5 * 640, transcendental=2 * 640, read=2560, written=2560)


def test_what_a_loop_does_not_change_counts_once_outside_it():
    x, y, s = Buffer("x", F4, 50), Buffer("y", F4, 50, "out"), Buffer("s", F4, 1)
    i = LoopVar("i", 50)
    scale = Op("exp", (Load(s, at()),), F4)
    value = Op("mul", (Load(x, i), scale), F4)
    work = kernel_work(Kernel("k", (y, x, s), [Loop(i, [Store(y, i, value)], "vector")]))
    assert (work.arithmetic, work.transcendental, work.read) == (50, 1, 204)


def test_an_expression_of_two_statements_counts_once():
    x, y, z = Buffer("x", F4, 50), Buffer("y", F4, 50, "out"), Buffer("z", F4, 50, "out")
    i = LoopVar("i", 50)
    both = Op("tanh", (Load(x, i),), F4)
    work = kernel_work(Kernel("k", (y, z, x), [Loop(i, [Store(y, i, both), Store(z, i, both)])]))
    assert (work.transcendental, work.written) == (50, 400)


def test_bytes_are_distinct_and_at_most_those_touched():
    table, ids = Buffer("table", F8, 10_000), Buffer("ids", I4, 8)
    y = Buffer("y", F8, 32, "out")
    i, j = LoopVar("i", 8), LoopVar("j", 4)
    row = Op("cast", (Load(ids, i),), dtypes.int64)
    gather = Load(table, at((row, 4), (j, 1)))
    body = [Loop(i, [Loop(j, [Store(y, at((i, 4), (j, 1)), gather)])])]
    work = kernel_work(Kernel("gather", (y, table, ids), body))
    assert (work.read, work.written, work.flops) == (8 * 32 + 4 * 8, 8 * 32, 0)


def test_accumulating_stores_read_and_add():
    x, y, i, j = Buffer("x", F4, 60), Buffer("y", F4, 10, "inout"), LoopVar("i", 6), LoopVar("j", 10)
    body = [Loop(i, [Loop(j, [Store(y, j, Load(x, at((i, 10), (j, 1))), "add")])])]
    work = kernel_work(Kernel("sum", (y, x), body))
    assert work == Work(arithmetic=60, read=240 + 40, written=40)


def test_integers_are_no_floating_point_operations():
    x, y, i = Buffer("x", I4, 10), Buffer("y", I4, 10, "out"), LoopVar("i", 10)
    value = Op("bitwise_xor", (Op("add", (Load(x, i), Const(1, I4)), I4), Const(7, I4)), I4)
    work = kernel_work(Kernel("bits", (y, x), [Loop(i, [Store(y, i, value)])]))
    assert (work.flops, work.integer) == (0, 20)
