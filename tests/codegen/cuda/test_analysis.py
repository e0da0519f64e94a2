"""Which loops threads may share, and how the threads of a block are laid out over rows."""

import numpy as np
import pytest

from fgrad import dtypes
from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.layout import team_for
from fgrad.codegen.cuda.target import HOPPER
from fgrad.codegen.loops import Acc, Affine, Buffer, Const, Init, Load, Loop, LoopVar, Op, Store, Update

F32 = np.dtype("float32")
OUT, X = Buffer("out", F32, 1 << 20), Buffer("x", F32, 1 << 20)
ONE = Const(F32.type(1), F32)


def index(const, *terms):
    return Affine(const, terms)


def stored(variable, *indices):
    return Loop(variable, [Store(OUT, i, ONE) for i in indices])


def test_digits_of_an_index_are_told_apart():
    n, c, p = LoopVar("n", 8), LoopVar("c", 4), LoopVar("p", 25)
    whole = index(0, (n, 100), (c, 25), (p, 1))
    assert all(analysis.independent(stored(v, whole)) for v in (n, c, p))
    assert not analysis.independent(stored(n, index(0, (p, 1))))
    assert not analysis.independent(stored(n, index(0, (n, 20), (p, 1))))  # rows overlap
    assert analysis.independent(stored(n, index(0, (n, -100), (p, 1))))


def test_several_stores_must_stay_within_a_digit():
    i = LoopVar("i", 10)
    assert analysis.independent(stored(i, index(0, (i, 2)), index(1, (i, 2))))
    assert not analysis.independent(stored(i, index(0, (i, 2)), index(2, (i, 2))))
    shifted = Loop(i, [Store(OUT, i, Load(OUT, index(1, (i, 1))))])
    assert not analysis.independent(shifted)


def test_an_index_from_data_keeps_only_the_loops_beside_it():
    i, k = LoopVar("i", 10), LoopVar("k", 8)
    row = Load(Buffer("ids", dtypes.int64, 10), i)
    scatter = index(0, (row, 8), (k, 1))
    assert analysis.independent(stored(k, scatter)) and not analysis.independent(stored(i, scatter))


def test_folds_are_told_from_running_values():
    i, s = LoopVar("i", 10), Acc("s", F32)
    add = Update(s, "add", Load(X, i))
    (fold,) = analysis.folds(Loop(i, [add]))
    assert fold.acc is s and fold.op == "add"
    assert analysis.folds(Loop(i, [add, Store(OUT, i, s)])) is None
    assert analysis.folds(Loop(i, [add, Update(s, "mul", ONE)])) is None
    assert analysis.folds(Loop(i, [Init(s, ONE), add])) == []
    assert analysis.folds(Loop(i, [Update(s, "set", Load(X, i))])) is None


def test_the_place_of_the_largest_is_a_fold():
    i, best, where = LoopVar("i", 10), Acc("best", F32), Acc("where", dtypes.int64)
    value = Load(X, i)
    better = Op("gt", (value, best), dtypes.bool_)
    updates = [
        Update(where, "set", Op("select", (better, i, where), dtypes.int64)),
        Update(best, "set", Op("select", (better, value, best), F32)),
    ]
    (fold,) = analysis.folds(Loop(i, updates))
    assert fold.best is best and fold.where is where and fold.largest
    assert analysis.folds(Loop(i, [*updates, Store(OUT, i, best)])) is None


def _sum(rows, inner, row_step, inner_step):
    i, j, s = LoopVar("i", rows), LoopVar("j", inner), Acc("s", F32)
    loop = Loop(j, [Update(s, "add", Load(X, index(0, (i, row_step), (j, inner_step))))])
    return [i], [Init(s, ONE), loop, Store(OUT, i, s)]


@pytest.mark.parametrize(
    ("rows", "inner", "lanes"),
    [(128, 10, 4), (4096, 64, 16), (4096, 4096, 128), (1 << 20, 64, 16), (1 << 20, 4, 1)],
)
def test_longer_rows_get_more_threads(rows, inner, lanes):
    team = team_for(*_sum(rows, inner, inner, 1), HOPPER)
    assert (team.lanes, team.stride) == (lanes, 1)
    assert team.threads % HOPPER.warp == 0


def test_sums_across_contiguous_rows_have_neighbours_on_neighbouring_rows():
    team = team_for(*_sum(512, 1000, 1, 512), HOPPER)
    assert team.stride == team.rows == 32 and team.lanes == 8
    assert team_for(*_sum(1 << 20, 1000, 1, 1 << 20), HOPPER).lanes == 1
