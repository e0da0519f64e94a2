"""Loops over the whole grid, once the number of threads is known."""

from fgrad.codegen.cuda.rounds import with_grid

LOOP = [
    "    i = cuda.grid(1)",
    "    while i < 1000:  # parallel",
    "        y[i] = x[i]",
    "        i += cuda.gridsize(1)",
]


def test_the_size_of_the_grid_is_a_number():
    assert with_grid(LOOP, 512) == [*LOOP[:3], "        i += 512"]


def test_one_round_is_a_condition():
    assert with_grid(LOOP, 1000) == [LOOP[0], "    if i < 1000:  # parallel", LOOP[2]]
    assert with_grid(LOOP, 999)[1] == LOOP[1]


def test_by_fours():
    fours = [
        "    while i0 < 96:",
        "        store4(y, i0, a, b, c, d)",
        "        i0 += 4 * cuda.gridsize(1)",
        "",
    ]
    assert with_grid(fours, 24) == ["    if i0 < 96:", fours[1], ""]
    assert with_grid(fours, 23)[2] == "        i0 += 92"


def test_other_loops_stay():
    other = ["    while k < 10:", "        k += 1", "    while i < 10:", "        i += 3"]
    assert with_grid(other, 8) == other
