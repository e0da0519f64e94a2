"""Donated arguments: their memory is taken over, they say so, and nobody else notices."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from tests.peer import assert_same

X = np.float32([1, 2, 3])


def test_donated_arrays_are_gone_and_say_so():
    step = fgrad.jit(lambda p, g: p - 0.1 * g, donate=0)
    p = fnp.asarray(X) * 1.0
    q = step(p, X)
    assert p.is_deleted
    with pytest.raises(fgrad.FgradValueError, match="donated to a jitted function") as e:
        p + 1
    assert "use the array that the function returned" in str(e.value)
    with pytest.raises(fgrad.FgradValueError):
        np.asarray(p)
    with pytest.raises(fgrad.FgradValueError):
        step(p, X)
    np.testing.assert_allclose(q, 0.9 * X, rtol=1e-6)


def test_donation_reuses_memory():
    step = fgrad.jit(lambda p: p + 1, donate=0)
    p = step(np.zeros(1000, "float32"))
    address = p._ptr
    for _ in range(5):
        p = step(p)
    assert p._ptr == address
    np.testing.assert_array_equal(p, np.full(1000, 6.0))


@pytest.mark.parametrize("look", [np.asarray, float, str, lambda a: a.sum(), lambda a: np.asarray(a)[:1]])
def test_memory_that_was_looked_at_is_reused_when_nobody_looks_any_more(look):
    step = fgrad.jit(lambda p: p + 1, donate=0)
    p = step(np.zeros(1, "float32"))
    address = p._ptr
    for _ in range(5):
        look(p)
        p = step(p)
    assert p._ptr == address


def train_step():
    return fgrad.jit(lambda p: {k: v * 2 for k, v in p.items()}, donate=0)


def fresh(n=8):
    """An array that a program made, which alone may be overwritten."""
    return fgrad.jit(lambda: fnp.arange(n) * 1.0)()


def keep_numpy_view(a):
    return np.asarray(a)


def keep_slice(a):
    return a[2:]


def keep_reshape(a):
    return a.reshape(2, 4)


def keep_transpose_of_reshape(a):
    return a.reshape(2, 4).T


def keep_view_of_view(a):
    return np.asarray(a)[1:][1:]


def keep_memoryview(a):
    return memoryview(np.asarray(a))


def keep_dlpack(a):
    return np.from_dlpack(a)


def keep_wrapped_again(a):
    return fnp.asarray(np.asarray(a))


def keep_stop_gradient(a):
    return fgrad.stop_gradient(a)


def keep_captured(a):
    f = fgrad.jit(lambda: a * 1.0)
    f()
    return f


@pytest.mark.parametrize("others", [0, 6])
@pytest.mark.parametrize(
    "keep",
    [
        keep_numpy_view,
        keep_slice,
        keep_reshape,
        keep_transpose_of_reshape,
        keep_view_of_view,
        keep_memoryview,
        keep_dlpack,
        keep_wrapped_again,
        keep_stop_gradient,
        keep_captured,
    ],
)
def test_donation_never_changes_what_someone_else_can_see(keep, others):
    """Whatever still looks at the memory of a donated array keeps its values. With many outputs alive, the program
    that made the array has forgotten its memory by then."""
    make = fgrad.jit(lambda: fnp.arange(8) * 1.0)
    a = make()
    crowd = [make() for _ in range(others)]
    seen = keep(a)
    read = (lambda: np.array(seen())) if callable(seen) else (lambda: np.array(seen))
    before = read()
    out = fgrad.jit(lambda x: x * 100 + 7, donate=0)(a)
    np.testing.assert_array_equal(read(), before)
    np.testing.assert_array_equal(out, np.arange(8) * 100 + 7)
    assert a.is_deleted
    del crowd


def test_donation_of_users_memory():
    x = np.arange(8, dtype="float32")
    step = fgrad.jit(lambda p: p * 2, donate=0)
    step(x)  # a NumPy array: not ours to overwrite
    step(fnp.asarray(x))
    step(fnp.asarray(x)[:])
    np.testing.assert_array_equal(x, np.arange(8))


def test_donating_one_array_twice():
    a = fresh()
    out = fgrad.jit(lambda x, y: (x + 1, y * 2), donate=(0, 1))(a, a)
    np.testing.assert_array_equal(out[0], np.arange(8) + 1)
    np.testing.assert_array_equal(out[1], np.arange(8) * 2)
    b = fresh()
    out = fgrad.jit(lambda x, y: x * 10 + y.sum(), donate=0)(b, b)
    np.testing.assert_array_equal(out, np.arange(8) * 10 + 28)


def test_donation_where_outputs_read_the_input_late():
    """An output may only be written over an input when nothing reads that input any more."""

    def f(p):
        a = p + 1
        return a, fnp.sum(p) + a, p[::-1]

    expected = f(fnp.arange(8) * 1.0)
    assert_same(fgrad.jit(f, donate=0)(fresh()), expected)


def test_donating_pytrees_and_swapping():
    step = fgrad.jit(lambda p: {"a": p["b"] + 1, "b": p["a"] * 2, "n": p["n"] + 1}, donate=0)
    p = {"a": fresh(), "b": fresh() * 3.0, "n": 0}
    a, b = np.arange(8.0), np.arange(8.0) * 3
    for _ in range(4):
        p = step(p)
        a, b = b + 1, a * 2
        np.testing.assert_array_equal(p["a"], a)
        np.testing.assert_array_equal(p["b"], b)
    assert int(p["n"]) == 4


def test_static_and_donated_is_an_error():
    with pytest.raises(fgrad.FgradValueError, match="both static and donated"):
        fgrad.jit(lambda x, n: x * n, static_argnums=1, donate=1)(X, 2)


def test_outputs_stay_when_later_calls_run():
    """Memory of an output is used again only when no array looks at it."""
    f = fgrad.jit(lambda x: x * 2)
    kept = [f(X + i) for i in range(10)]
    views = [np.asarray(f(X + 100 + i))[1:] for i in range(10)]
    for i, (k, v) in enumerate(zip(kept, views, strict=True)):
        np.testing.assert_array_equal(k, (X + i) * 2)
        np.testing.assert_array_equal(v, ((X + 100 + i) * 2)[1:])


def test_identity_does_not_alias_the_input():
    x = np.arange(4, dtype="float32")
    y = fgrad.jit(lambda x: x)(x)
    x[0] = 99
    assert float(y[0]) == 0.0


def test_a_donated_input_is_gone_even_if_the_program_fails():
    f = fgrad.jit(lambda x, i: x.at[i].set(0.0) + 1, donate=0)
    a = fresh()
    with pytest.raises(fgrad.FgradIndexError):
        f(a, np.array([70]))
    assert a.is_deleted


def test_a_copy_outlives_the_donation():
    x = fnp.arange(4.0)
    copies = [fnp.array(x), fnp.copy(x), x.copy()]
    add_one = fgrad.jit(lambda a: a + 1, donate=0)
    add_one(x)
    assert x.is_deleted
    for c in copies:
        np.testing.assert_array_equal(c, [0, 1, 2, 3])


@pytest.mark.parametrize("seed", range(4))
def test_random_calls_views_and_donations_never_disturb_each_other(seed):
    """Arrays, NumPy views of them and expected values, through many calls in random order: nothing ever changes under
    anybody, and what is donated is gone."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([3, 40, 30_000]))
    several = fgrad.jit(lambda x, y: {"sum": x + y, "total": (x * y).sum(), "both": [x - y, y * 0.5]})
    update = fgrad.jit(lambda p, g: ([v - 0.25 * g for v in p], g.sum()), donate=0)
    arrays = [(fnp.asarray(v), v) for v in rng.normal(size=(3, size)).astype("float32")]
    views = []
    makers = [
        np.asarray,
        lambda a: np.asarray(a)[1:],
        lambda a: a.reshape(-1)[:2],
        lambda a: memoryview(np.asarray(a)),
    ]

    def pick():
        return arrays[rng.integers(len(arrays))]

    for _ in range(150):
        action = rng.integers(5)
        if action <= 1:
            (a, va), (b, vb) = pick(), pick()
            out = several(a, b if rng.integers(2) else vb)
            arrays += [
                (out["sum"], va + vb),
                (out["both"][0], va - vb),
                (out["both"][1], vb * np.float32(0.5)),
            ]
            np.testing.assert_allclose(out["total"], np.dot(va, vb), rtol=1e-3, atol=1e-2)
        elif action == 2:
            (a, va), (b, vb), (g, vg) = pick(), pick(), pick()
            (p, q), _ = update([a, b], g)
            arrays = [x for x in arrays if x[0] is not a and x[0] is not b]
            assert a.is_deleted and b.is_deleted
            arrays += [(p, va - np.float32(0.25) * vg), (q, vb - np.float32(0.25) * vg)]
        elif action == 3:
            a, _ = pick()
            view = makers[rng.integers(len(makers))](a)
            views.append((view, np.array(view)))
        else:
            keep = rng.permutation(len(arrays))[: max(3, len(arrays) // 2)]
            arrays = [arrays[i] for i in keep]
            views = views[-6:]
    for view, expected in views:
        np.testing.assert_array_equal(np.asarray(view), expected)
    for a, expected in arrays:
        np.testing.assert_allclose(a, expected, rtol=1e-4, atol=1e-4)
