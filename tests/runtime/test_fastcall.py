"""The functions written for one structure of arguments do what the general way does, and leave the rest to it."""

import collections
import threading

import ml_dtypes
import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.runtime import compiled
from tests.peer import assert_same

X = np.float32([1, 2, 3])
Point = collections.namedtuple("Point", "y x")


class Pair:
    def __init__(self, a, b, name):
        self.a, self.b, self.name = a, b, name


fgrad.tree.register(Pair, lambda p: ((p.a, p.b), p.name), lambda name, c: Pair(*c, name))


def warm(f, *args, **kwargs):
    """Call until the function for these arguments is written, and return it with the last result."""
    for _ in range(4):
        out = f(*args, **kwargs)
    assert any(f._recent) or f._recent_of, "no function was written"
    return out


def never(monkeypatch):
    """From here on a call in the general way fails."""

    def refuse(self, leaves):
        raise AssertionError("the general way was taken")

    monkeypatch.setattr(compiled.Compiled, "__call__", refuse)


TREES = {
    "nested": lambda v: ({"b": {"w": v(1), "a": v(2)}, "a": [v(3), (v(4), v(5))], 3: None},),
    "named": lambda v: (Point({"z": v(1), "q": v(2)}, [v(3), Point(v(4), v(5))]), None),
    "registered": lambda v: (Pair([v(1), v(2)], (v(3), Pair(v(4), v(5), "in")), "out"),),
    "empty": lambda v: ((), {}, [], v(1), [None, {}], v(2), v(3), (v(4),), {"k": v(5)}),
    "odd keys": lambda v: ({("t", 1): v(1), "it's \\": v(2)}, {2: v(3), 1: v(4), True + 6: v(5)}),
}


@pytest.mark.parametrize("name", TREES)
def test_structures(name, monkeypatch):
    f = fgrad.jit(lambda *t: fgrad.tree.map(lambda v: v * 2.0 + 1.0, t))
    trees = [TREES[name](lambda i, k=k: fnp.asarray(X * i + k)) for k in range(3)]
    warm(f, *trees[0])
    never(monkeypatch)
    for t in trees:
        out = f(*t)
        assert fgrad.tree.structure(out) == fgrad.tree.structure(t)
        assert_same(fgrad.tree.leaves(out), [np.asarray(v) * 2 + 1 for v in fgrad.tree.leaves(t)])


@pytest.mark.parametrize("ordered", [collections.OrderedDict, lambda x: collections.deque(x.values())])
def test_classes_without_a_written_function_go_the_general_way(ordered):
    f = fgrad.jit(lambda t: [v * 2 for v in fgrad.tree.leaves(t)])
    for _ in range(5):
        out = f(ordered({"b": X, "a": X + 1}))
    assert_same(out, [X * 2, X * 2 + 2])
    assert not any(f._recent)


def test_kinds_of_leaves(monkeypatch):
    def f(a, n, s, k, b, *, key):
        return a + n, n * s, n + k, fnp.where(b, a, n), key["half"] * s, key["c"] * 2

    jitted = fgrad.jit(f)
    half = np.float16([1, 2])

    def args(i):
        return fnp.asarray(X + i), X * i, 0.5 + i, 3 * i - 1, i % 2 == 0

    def key(i):
        return {"half": half + i, "c": np.float64(i)}

    warm(jitted, *args(1), key=key(1))
    never(monkeypatch)
    for i in range(5):
        found, expected = jitted(*args(i), key=key(i)), f(*args(i), key=key(i))
        assert [x.dtype for x in found] == [x.dtype for x in expected]
        assert_same(found, expected)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float64", "complex64", ml_dtypes.bfloat16])
def test_numpy_dtypes(dtype, monkeypatch):
    x = np.arange(6).reshape(2, 3).astype(dtype)
    f = fgrad.jit(lambda x: (x, x.T, x[0]))
    warm(f, x)
    never(monkeypatch)
    assert_same(f(x), (x, x.T, x[0]))


def test_what_does_not_fit_is_left_to_the_general_way():
    f = fgrad.jit(lambda t, s: {k: v * s for k, v in t.items()})
    warm(f, {"a": X, "b": fnp.asarray(X)}, 2.0)
    strided = np.arange(6, dtype="float32")[::2]
    raw = np.zeros(13, "uint8")[1:].view("float32")
    raw[:] = X
    others = [
        ({"a": X.astype("float64"), "b": fnp.asarray(X)}, 2.0),
        ({"a": X[:2], "b": fnp.asarray(X)}, 2.0),
        ({"a": fnp.asarray(X), "b": X}, 2.0),
        ({"a": X.astype(">f4"), "b": fnp.asarray(X)}, 2.0),
        ({"a": strided, "b": fnp.asarray(strided)}, 2.0),
        ({"a": raw, "b": fnp.asarray(raw)}, 2.0),
        ({"a": X, "b": fnp.asarray(X), "c": X}, 2.0),
        ({"a": X, "c": fnp.asarray(X)}, 2.0),
        ({"a": X}, 2.0),
        ({"a": X, "b": fnp.asarray(X)}, 2),
        ({"a": X, "b": fnp.asarray(X)}, 1e300),
        ({"a": X, "b": fnp.asarray(X)}, X),
        ({"a": 1.5, "b": fnp.asarray(X)}, 2.0),
    ]
    for _ in range(4):
        for t, s in others:
            with np.errstate(over="ignore"):
                expected = {
                    k: np.asarray(v).astype(np.asarray(v).dtype.newbyteorder("=")) for k, v in t.items()
                }
                scale = np.float32(s) if isinstance(s, float) else s
                expected = {k: np.asarray(v * scale) for k, v in expected.items()}
                found = f(t, s)
            assert list(found) == list(t)
            for k in t:
                np.testing.assert_allclose(np.asarray(found[k], "float64"), expected[k].astype("float64"))


def test_wrong_arguments_still_raise():
    f = fgrad.jit(lambda x, y: x + y)
    warm(f, fnp.asarray(X), X)
    with pytest.raises(TypeError):
        f(X)
    with pytest.raises(fgrad.FgradTypeError, match="is not an array"):
        f(X, "a")
    with pytest.raises(fgrad.FgradValueError, match=r"broadcast|shape"):
        f(X, X[:2])
    leaked = []
    fgrad.jit(lambda x: leaked.append(x) or x)(X)
    with pytest.raises(fgrad.TracerError):
        f(leaked[0], X)
    g = fgrad.jit(lambda x, i: x[i])
    for i in range(5):
        assert float(g(X, i % 3)) == X[i % 3]
    for _ in range(2):
        with pytest.raises(fgrad.FgradIndexError, match=r"test_fastcall.py:\d+"):
            g(X, 7)
    assert float(g(X, 1)) == 2


def test_alternating_shapes_stay_fast(monkeypatch):
    f = fgrad.jit(lambda x: x * 2)
    inputs = [fnp.asarray(np.arange(n, dtype="float32")) for n in (3, 4, 5)]
    for x in inputs:
        warm(f, x)
    never(monkeypatch)
    for x in inputs * 2:
        assert_same(f(x), np.asarray(x) * 2)


def test_many_shapes():
    traces = []
    f = fgrad.jit(lambda x: traces.append(1) or x + 1)
    for _ in range(5):
        for n in range(12):
            np.testing.assert_array_equal(f(np.zeros(n, "float32")), np.ones(n))
    assert len(traces) == 12


def test_static_arguments(monkeypatch):
    f = fgrad.jit(lambda x, n, y: x**n + y, static_argnums=1)
    a, b = fnp.asarray(X), fnp.asarray(X * 2)
    for n in (2, 3):
        warm(f, a, n, b)
    never(monkeypatch)
    for n in (2, 3, 2):
        assert_same(f(a, n, b), X**n + X * 2)


def test_captured_arrays_and_clear_cache(monkeypatch):
    table = fnp.asarray(X * 10)
    f = fgrad.jit(lambda x: x + table)
    warm(f, X)
    assert_same(f(X), X * 11)
    f.clear_cache()
    assert not any(f._recent)
    warm(f, X)
    never(monkeypatch)
    assert_same(f(X), X * 11)


def test_host_steps(monkeypatch):
    f = fgrad.jit(lambda x: fnp.linalg.eigh(x @ x.T)[0] + x.sum())
    x = np.random.default_rng(0).normal(size=(3, 3)).astype("float32")
    first = f(x)
    warm(f, x)
    never(monkeypatch)
    assert_same(f(x), first)


# ------------------------------------------------------------------------------------------------ donation


def sgd():
    return fgrad.jit(lambda p, g: {k: v - 0.5 * g[k] for k, v in p.items()}, donate=0)


def test_donated_arrays_in_a_loop(monkeypatch):
    step, g = sgd(), {"a": fnp.asarray(X), "b": fnp.asarray(X * 2)}
    p = step({"a": X * 0, "b": X * 0}, g)
    for _ in range(4):
        p = step(p, g)
    never(monkeypatch)
    for _ in range(6):
        old, addresses = p, [v._ptr for v in p.values()]
        p = step(p, g)
        assert [v._ptr for v in p.values()] == addresses
        assert all(v.is_deleted for v in old.values())
    assert_same(p, {"a": -5.5 * X, "b": -11.0 * X})
    with pytest.raises(fgrad.FgradValueError, match="donated"):
        np.asarray(old["a"])


@pytest.mark.parametrize("rounds", [1, 6])
def test_donation_in_a_loop_spares_what_others_see(rounds):
    step, g = sgd(), {"a": fnp.asarray(X), "b": fnp.asarray(X)}
    p = step({"a": X, "b": X}, g)
    for _ in range(rounds):
        p = step(p, g)
    for keep in (
        np.asarray,
        lambda v: np.asarray(v)[1:],
        lambda v: memoryview(np.asarray(v)),
        np.from_dlpack,
    ):
        seen = keep(p["a"])
        before = np.array(seen)
        for _ in range(3):
            p = step(p, g)
            np.testing.assert_array_equal(seen, before)


def test_donating_an_array_twice_or_used_ones_in_a_loop():
    f = fgrad.jit(lambda x, y: (x + 1, y * 2), donate=(0, 1))
    h = fgrad.jit(lambda x, y: x * 10 + y, donate=0)
    make = fgrad.jit(lambda: fnp.arange(8) * 1.0)
    for _ in range(6):
        f(make(), make()), h(make(), make())
        a, b = make(), make()
        assert_same(f(a, a), (np.arange(8) + 1.0, np.arange(8) * 2.0))
        assert_same(h(b, b), np.arange(8) * 11.0)
        assert a.is_deleted and b.is_deleted
        with pytest.raises(fgrad.FgradValueError, match="donated"):
            f(make(), a)
        c = make()
        with pytest.raises(fgrad.FgradValueError, match="donated"):
            f(c, a)
        np.testing.assert_array_equal(c, np.arange(8))  # the call was not carried out


def test_a_donated_input_is_gone_even_if_a_written_function_fails():
    f = fgrad.jit(lambda x, i: x.at[i].set(0.0) + 1, donate=0)
    make = fgrad.jit(lambda: fnp.arange(8) * 1.0)
    for _ in range(5):
        f(make(), 3)
    a = make()
    with pytest.raises(fgrad.FgradIndexError):
        f(a, 70)
    assert a.is_deleted


# ------------------------------------------------------------------------------------------------ threads


def in_threads(n, work):
    wrong = []
    barrier = threading.Barrier(n)

    def guarded(k):
        try:
            barrier.wait()
            work(k)
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=guarded, args=(k,)) for k in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_eight_threads_train_with_one_step():
    step = sgd()
    gradients = [{"a": fnp.asarray(X * k), "b": fnp.asarray(X + k)} for k in range(8)]
    kept = [[] for _ in range(8)]

    def work(k):
        p = {"a": X * 0, "b": X * 0}
        for n in range(200):
            p = step(p, gradients[k])
            if n % 7 == 0:
                kept[k].append((n + 1, np.asarray(p["a"])))
        assert_same(p, {"a": -100.0 * k * X, "b": -100.0 * (X + k)})

    in_threads(8, work)
    for k, seen in enumerate(kept):
        for n, a in seen:
            np.testing.assert_allclose(a, -0.5 * n * k * X)


def test_one_array_donated_by_eight_threads_is_taken_once():
    f = fgrad.jit(lambda x: x + 1, donate=0)
    make = fgrad.jit(lambda: fnp.zeros(1000))
    for _ in range(5):
        f(make())
    for _ in range(20):
        x, results, errors = make(), [], []

        def work(k, x=x, results=results, errors=errors):
            try:
                results.append(f(x))
            except fgrad.FgradValueError as e:
                errors.append(e)

        in_threads(8, work)
        assert len(results) == 1 and len(errors) == 7
        np.testing.assert_array_equal(results[0], np.ones(1000))


def test_racing_threads_compile_once():
    traces = []

    def f(x):
        traces.append(1)
        return fnp.tanh(x) * 2

    jitted = fgrad.jit(f)
    in_threads(8, lambda k: jitted(X))
    assert len(traces) == 1
    in_threads(8, lambda k: jitted(np.zeros(k // 2 + 4, "float32")))
    assert len(traces) == 5


def test_a_failing_trace_does_not_block_others():
    fail = [True]

    def f(x):
        if fail[0]:
            raise RuntimeError("not yet")
        return x + 1

    jitted = fgrad.jit(f)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            jitted(X)
    fail[0] = False
    assert_same(jitted(X), X + 1)
