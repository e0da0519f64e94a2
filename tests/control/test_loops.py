"""`while_loop` against JAX: values, forward derivatives, batching, and the error in reverse mode."""

import itertools

import numpy as np
import pytest

import fgrad
from tests.peer import agree, vec

pytestmark = pytest.mark.usefixtures("jax")


def grow(lib, limit, rate, x):
    """Multiply until the sum passes `limit`; counts the rounds. Condition and body capture outer values."""

    def go_on(c):
        return (c["x"].sum() < limit) & (c["n"] < 50)

    def body(c):
        return {"n": c["n"] + 1, "x": c["x"] * rate + 0.1}

    return lib.while_loop(go_on, body, {"n": 0, "x": x})


ARGS = np.float32(10.0), np.float32(1.7), vec(3)


def test_values():
    agree(grow, *ARGS)


def test_no_iteration():
    agree(grow, np.float32(-1.0), np.float32(1.7), vec(3))


def test_forward_derivatives():
    agree(lambda lib, a, r, x: lib.jvp(lambda r, x: grow(lib, a, r, x)["x"], (r, x), (r, x * 2)), *ARGS)
    agree(lambda lib, a, r, x: lib.jacfwd(lambda r: grow(lib, a, r, x)["x"])(r), *ARGS)
    agree(lambda lib, a, r, x: lib.jacfwd(lib.jacfwd(lambda r: grow(lib, a, r, x)["x"]))(r), *ARGS)


def test_tangent_that_starts_at_zero():
    """The carry takes up a tangent in the loop only."""
    agree(lambda lib, a, r, x: lib.jvp(lambda r: grow(lib, a, r, x)["x"], (r,), (r,)), *ARGS)


@pytest.mark.parametrize(
    "axes", [a for a in itertools.product((0, None), repeat=3) if any(x == 0 for x in a)]
)
def test_vmap_of_every_combination(axes):
    limit = np.float32([4, 20, -1]) if axes[0] == 0 else np.float32(8)
    rate = np.float32([1.3, 1.8, 2.0]) if axes[1] == 0 else np.float32(1.5)
    x = vec(3, 2) if axes[2] == 0 else vec(2)
    agree(lambda lib, *a: lib.vmap(lambda *a: grow(lib, *a), in_axes=axes)(*a), limit, rate, x)


def test_jvp_of_vmap():
    def f(lib, limit, x):
        return lib.vmap(lambda a, x: grow(lib, a, 1.5, x)["x"])(limit, x)

    agree(lambda lib, a, x: lib.jvp(lambda x: f(lib, a, x), (x,), (x,)), np.float32([4, 20, -1]), vec(3, 2))
    agree(
        lambda lib, a, x: lib.vmap(lambda a, x: lib.jvp(lambda x: grow(lib, a, 1.5, x)["x"], (x,), (x,)))(
            a, x
        ),
        np.float32([4, 20, -1]),
        vec(3, 2),
    )


def test_nested_loops():
    def f(lib, x):
        def outer(c):
            i, v = c
            v = lib.while_loop(lambda u: u.sum() < 5 * (i + 1), lambda u: u * 1.5, v)
            return i + 1, v

        return lib.while_loop(lambda c: c[0] < 4, outer, (0, x))

    agree(f, vec(3))
    agree(lambda lib, x: lib.vmap(lambda x: f(lib, x))(x), vec(2, 3))


def test_while_inside_scan():
    def f(lib, x):
        def step(c, t):
            v = lib.while_loop(lambda u: u.sum() < 6, lambda u: u + t, c)
            return v * 0.3, v.sum()

        return lib.scan(step, x, lib.np.asarray(vec(4)))

    agree(f, vec(3))
    agree(lambda lib, x: lib.jvp(lambda x: f(lib, x), (x,), (x,)), vec(3))


def test_gradient_of_what_a_loop_does_not_touch():
    """Reverse mode is fine as long as no derivative goes through the loop."""

    def f(lib, x):
        n = lib.while_loop(lambda n: n < 5, lambda n: n + 1, 0)
        return (x * n).sum()

    agree(lambda lib, x: lib.grad(lambda x: f(lib, x))(x), vec(3))


def test_gradient_through_the_result_of_an_undifferentiated_loop():
    def f(lib, x):
        c = lib.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, lib.stop_gradient(x))
        return (x * c).sum()

    agree(lambda lib, x: lib.grad(lambda x: f(lib, x))(x), vec(3))


def test_reverse_mode_is_an_error_that_names_the_loop():
    def f(x):
        return fgrad.while_loop(lambda c: c < 10, lambda c: c * 2, x)  # the line

    for run in (fgrad.grad(f), fgrad.jit(fgrad.grad(f))):
        with pytest.raises(fgrad.FgradTypeError) as e:
            run(1.0)
        text = str(e.value)
        assert "while_loop: reverse-mode" in text
        assert f"test_loops.py:{f.__code__.co_firstlineno + 1}" in text
        assert "fori_loop with Python integers" in text


def test_dynamic_fori_loop_in_reverse_mode_says_so():
    f = fgrad.jit(fgrad.grad(lambda x, n: fgrad.fori_loop(0, n, lambda i, c: c * 2, x)))
    with pytest.raises(fgrad.FgradTypeError, match="fori_loop with Python integers as bounds"):
        f(1.0, np.int32(3))


def test_collatz_in_integers():
    def f(lib, n):
        def body(c):
            n, steps = c
            return lib.np.where(n % 2 == 0, n // 2, 3 * n + 1), steps + 1

        return lib.while_loop(lambda c: c[0] != 1, body, (n, 0))[1]

    agree(lambda lib, n: lib.vmap(lambda n: f(lib, n))(n), np.arange(1, 30))
