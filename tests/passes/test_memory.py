"""The arena: nothing that is live at the same time shares bytes, except where the plan says it may."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrad import dtypes
from fgrad.codegen.loops import Buffer, Kernel
from fgrad.codegen.program import Block, Buf, CopyStep, ForStep, KernelStep, Program, SwitchStep, WhileStep
from fgrad.passes.memory import ALIGNMENT, liveness, peak_memory, plan_memory

F4 = dtypes.float32


def buf(name, size, kind="temp", dtype=F4):
    return Buf(name, (size,), dtype, kind)


def step(writes, reads, in_place=()):
    """A kernel step that reads and writes; what it computes does not matter here."""
    buffers = [Buffer(b.name, b.dtype, b.size, "out") for b in writes]
    buffers += [Buffer(b.name, b.dtype, b.size, "in") for b in reads]
    return KernelStep(Kernel("k", tuple(buffers), []), (*writes, *reads), in_place=tuple(in_place))


def program(steps, inputs=(), outputs=(), donated=None):
    return Program("p", tuple(inputs), tuple(outputs), Block(list(steps)), donated=donated or {})


def bytes_of(p, b):
    return p.offsets[b], p.offsets[b] + b.nbytes


def overlap(p, a, b):
    (a0, a1), (b0, b1) = bytes_of(p, a), bytes_of(p, b)
    return a0 < b1 and b0 < a1


def check_plan(p, may_share=frozenset()):
    """No two temporaries that are live together overlap; all are aligned and inside the arena."""
    live = liveness(p).lifetimes
    temps = [b for b in live if b.kind == "temp"]
    assert set(temps) == set(p.offsets)
    for b in temps:
        assert p.offsets[b] % ALIGNMENT == 0
        assert p.offsets[b] + b.nbytes <= p.arena_bytes
    for a, b in itertools.combinations(temps, 2):
        if live[a].overlaps(live[b]) and a.nbytes and b.nbytes and frozenset((a, b)) not in may_share:
            assert not overlap(p, a, b), (a.name, live[a], b.name, live[b])


def test_a_chain_needs_two_buffers():
    x, y = buf("x", 100, "input"), buf("y", 100, "output")
    t = [buf(f"t{i}", 100) for i in range(6)]
    steps = [step([t[0]], [x])] + [step([t[i + 1]], [t[i]]) for i in range(5)] + [step([y], [t[5]])]
    p = program(steps, [x], [y])
    plan_memory(p)
    check_plan(p)
    assert p.arena_bytes == 2 * 448  # 400 bytes, rounded up
    assert peak_memory(p) == p.arena_bytes + 400


def test_in_place_chain_needs_one():
    x, y = buf("x", 100, "input"), buf("y", 100, "output")
    t = [buf(f"t{i}", 100) for i in range(6)]
    steps = [step([t[0]], [x])]
    steps += [step([t[i + 1]], [t[i]], [(t[i + 1], t[i])]) for i in range(5)]
    p = program([*steps, step([y], [t[5]])], [x], [y])
    plan_memory(p)
    assert p.arena_bytes == 448
    assert len({p.offsets[b] for b in t}) == 1


def test_no_sharing_in_place_with_a_buffer_that_is_read_later():
    x, y = buf("x", 10, "input"), buf("y", 10, "output")
    a, b = buf("a", 10), buf("b", 10)
    p = program([step([a], [x]), step([b], [a], [(b, a)]), step([y], [a, b])], [x], [y])
    plan_memory(p)
    check_plan(p)
    assert not overlap(p, a, b)


def test_no_sharing_in_place_between_different_element_widths():
    x, y = buf("x", 10, "input"), buf("y", 10, "output")
    a, b = buf("a", 10), buf("b", 20, dtype=dtypes.float16)
    p = program([step([a], [x]), step([b], [a], [(b, a)]), step([y], [b])], [x], [y])
    plan_memory(p)
    check_plan(p)


def test_two_results_do_not_share_one_operand():
    x, y = buf("x", 10, "input"), buf("y", 10, "output")
    a, b, c = buf("a", 10), buf("b", 10), buf("c", 10)
    p = program([step([a], [x]), step([b, c], [a], [(b, a), (c, a)]), step([y], [b, c])], [x], [y])
    plan_memory(p)
    assert not overlap(p, b, c)
    assert overlap(p, a, b) or overlap(p, a, c)


def test_a_loop_keeps_what_it_reads_from_outside_and_what_it_carries():
    x, y = buf("x", 10, "input"), buf("y", 10, "output")
    outside, carried, scratch, late = (
        buf("outside", 10),
        buf("carried", 10),
        buf("scratch", 10),
        buf("late", 10),
    )
    body = Block([step([scratch], [outside, carried]), step([late], [scratch]), CopyStep(carried, late)])
    p = program(
        [step([outside], [x]), step([carried], [x]), ForStep(3, body, ()), step([y], [carried])], [x], [y]
    )
    plan_memory(p)
    check_plan(p)
    lives = liveness(p).lifetimes
    assert (lives[outside].start, lives[outside].end) == (0, 4)
    assert (lives[scratch].start, lives[scratch].end) == (2, 3)
    for a, b in itertools.combinations([outside, carried, scratch], 2):
        assert not overlap(p, a, b)


def test_a_loop_keeps_a_value_that_one_iteration_leaves_for_the_next():
    # `memo` is read at the body's start and written at its end, and not touched outside.
    memo, first, second, y = buf("memo", 10), buf("first", 10), buf("second", 10), buf("y", 10, "output")
    body = Block([step([first], [memo]), step([second], [first]), step([memo], [second])])
    p = program([ForStep(4, body, ()), step([y], [])], [], [y])
    plan_memory(p)
    assert not overlap(p, memo, first)
    assert not overlap(p, memo, second)


def test_rows_written_by_a_moving_view_stay_for_the_whole_loop():
    rows, y = buf("rows", 40), buf("y", 40, "output")
    row = Buf("row", (10,), F4, "view", base=rows, byte_stride=40)
    t, u = buf("t", 40), buf("u", 40)
    body = Block([step([t], []), step([u], [t]), step([row], [u])])
    p = program([ForStep(4, body, (row,)), CopyStep(y, rows)], [], [y])
    plan_memory(p)
    assert not overlap(p, rows, t)
    assert not overlap(p, rows, u)


def test_while_keeps_its_predicate_until_it_is_read():
    pred, carried, t = buf("pred", 1, dtype=dtypes.bool_), buf("carried", 16), buf("t", 16)
    y = buf("y", 16, "output")
    loop = WhileStep(
        Block([step([pred], [carried])]), pred, Block([step([t], [carried]), CopyStep(carried, t)])
    )
    p = program([step([carried], []), loop, CopyStep(y, carried)], [], [y])
    plan_memory(p)
    check_plan(p)
    assert not overlap(p, pred, carried)


def test_branches_may_share():
    index, y = buf("index", 1, dtype=dtypes.int64), buf("y", 100, "output")
    a, b = buf("a", 100), buf("b", 100)
    branches = (Block([step([a], []), CopyStep(y, a)]), Block([step([b], []), CopyStep(y, b)]))
    p = program([step([index], []), SwitchStep(index, branches)], [], [y])
    plan_memory(p)
    check_plan(p)
    assert p.offsets[a] == p.offsets[b]


@pytest.mark.parametrize("listed", [True, False])
def test_donation_in_place_or_by_a_copy_at_the_end(listed):
    w, g, new = buf("w", 10, "input"), buf("g", 10, "input"), buf("new", 10, "output")
    update = step([new], [w, g], [(new, w)] if listed else [])
    p = program([update], [w, g], [new], {0: 0})
    plan_memory(p)
    assert p.placed == {0: 0}
    if listed:
        assert p.outputs == (new,)
        assert len(p.body.steps) == 1
        assert peak_memory(p) == 0
    else:
        assert new.kind == "temp"
        assert isinstance(p.body.steps[-1], CopyStep)
        assert p.body.steps[-1].dst is p.outputs[0]
        assert p.outputs[0].kind == "output"


def test_donation_waits_for_the_last_read():
    w, out, loss = buf("w", 10, "input"), buf("out", 10, "output"), buf("loss", 10, "output")
    p = program([step([out], [w], [(out, w)]), step([loss], [w])], [w], [out, loss], {0: 0})
    plan_memory(p)
    assert p.placed == {0: 0}
    assert isinstance(p.body.steps[-1], CopyStep)


def test_donation_of_another_size_is_left_alone():
    w, out = buf("w", 10, "input"), buf("out", 11, "output")
    p = program([step([out], [w])], [w], [out], {0: 0})
    plan_memory(p)
    assert p.placed == {}


def test_planning_again_changes_nothing():
    w, out, t = buf("w", 10, "input"), buf("out", 10, "output"), buf("t", 10)
    p = program([step([t], [w]), step([out], [w, t])], [w], [out], {0: 0})
    plan_memory(p)
    first = (p.arena_bytes, dict(p.offsets), dict(p.placed), len(p.body.steps))
    plan_memory(p)
    assert first == (p.arena_bytes, p.offsets, p.placed, len(p.body.steps))


@st.composite
def random_programs(draw):
    """Steps over temporaries of random sizes, some in loops and branches, with random in-place pairs."""
    temps = [buf(f"t{i}", draw(st.integers(1, 60))) for i in range(draw(st.integers(2, 14)))]

    def a_step(pool):
        written = draw(st.sampled_from(pool))
        reads = [
            b for b in draw(st.lists(st.sampled_from(pool), max_size=3, unique=True)) if b is not written
        ]
        pairs = [(written, r) for r in reads if r.nbytes == written.nbytes][: draw(st.integers(0, 1))]
        return step([written], reads, pairs)

    def block(depth):
        steps = []
        for _ in range(draw(st.integers(1, 5))):
            kind = draw(st.integers(0, 5)) if depth else 0
            if kind == 5:
                steps.append(ForStep(3, block(depth - 1), ()))
            elif kind == 4:
                index = buf("index", 1, dtype=dtypes.int64)
                steps += [step([index], []), SwitchStep(index, (block(depth - 1), block(depth - 1)))]
            else:
                steps.append(a_step(temps))
        return Block(steps)

    body = block(2)
    return Program("p", (), (), body)


@given(random_programs())
def test_no_two_live_temporaries_overlap(p):
    plan_memory(p)
    pairs = set()
    for s in liveness(p).steps:
        if isinstance(s, KernelStep):
            pairs |= {frozenset(pair) for pair in s.in_place}
    lives = liveness(p).lifetimes
    for a, b in itertools.combinations(p.offsets, 2):
        if lives[a].overlaps(lives[b]) and overlap(p, a, b):
            # Only as a pair that the step between them lists: one ends where the other begins.
            assert frozenset((a, b)) in pairs
            first, second = sorted((lives[a], lives[b]), key=lambda life: life.start)
            assert first.end == second.start
    assert p.arena_bytes == max([p.offsets[b] + -(-b.nbytes // 64) * 64 for b in p.offsets], default=0)


@given(random_programs())
def test_the_arena_is_never_larger_than_all_buffers_together(p):
    plan_memory(p)
    assert p.arena_bytes <= sum(-(-b.nbytes // 64) * 64 for b in p.offsets)
    assert np.all([o % 64 == 0 for o in p.offsets.values()])
