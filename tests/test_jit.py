"""`jit`: the cache, static arguments, donation, every kind of input, threads, and composition with the transforms."""

import collections
import functools
import threading

import ml_dtypes
import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from tests.peer import agree, assert_same, vec

X = np.float32([1, 2, 3])


def counted(f, **options):
    """`jit(f)` and the list that grows by one with each trace."""
    traces = []

    def g(*args, **kwargs):
        traces.append(1)
        return f(*args, **kwargs)

    g.__name__ = getattr(f, "__name__", "g")
    return fgrad.jit(g, **options), traces


# ------------------------------------------------------------------------------------------------ the cache


def test_one_trace_for_each_kind_of_arguments():
    f, traces = counted(lambda x: x * 2)
    for _ in range(3):
        f(X)
    assert len(traces) == 1
    f(fnp.asarray(X))  # same type, another class
    assert len(traces) == 1
    f(np.ones(4, "float32"))
    assert len(traces) == 2
    f(X.astype("float64"))
    assert len(traces) == 3
    f([X, X][0])
    f(np.ones(4, "float32"))
    assert len(traces) == 3


def test_python_scalars_share_a_program_by_type():
    f, traces = counted(lambda x, s: x * s)
    for s in (1, 2, 3):
        np.testing.assert_allclose(f(X, s), X * s)
    assert len(traces) == 1
    f(X, 2.0)
    assert len(traces) == 2
    f(X, True)
    assert len(traces) == 3
    f(X, np.float32(2))  # not weak: an array
    assert len(traces) == 4
    f(X, fnp.float32(2) if callable(fnp.float32) else np.float32(2))
    assert len(traces) == 4


def test_structure_is_part_of_the_key():
    f, traces = counted(lambda t: fgrad.tree.leaves(t)[0] * 2)
    f((X,))
    f([X])
    f({"a": X})
    f({"b": X})
    assert len(traces) == 4
    f({"a": X})
    f((X, None))
    assert len(traces) == 5


def test_order_of_dict_keys_and_keywords_does_not_matter():
    f, traces = counted(lambda d, **k: d["a"] - d["b"] + k["p"] - k["q"])
    one = f({"a": X, "b": X * 2}, p=1.0, q=2.0)
    two = f({"b": X * 2, "a": X}, q=2.0, p=1.0)
    assert_same(one, two)
    assert len(traces) == 1


def test_clear_cache():
    f, traces = counted(lambda x: x * 2)
    f(X)
    f.clear_cache()
    f(X)
    assert len(traces) == 2


def test_traces_under_transforms_are_kept_too():
    f, traces = counted(lambda x: fnp.sin(x).sum())
    for _ in range(3):
        fgrad.grad(f)(X)
    assert len(traces) == 1
    fgrad.jit(lambda x: f(x) + f(x))(X)  # inlined: traced with its surroundings
    assert len(traces) == 3


# ------------------------------------------------------------------------------------------------ static arguments


def power(x, n, scale=1.0, *, negate=False):
    y = scale * x**n
    return -y if negate else y


def test_static_by_position():
    f, traces = counted(power, static_argnums=1)
    np.testing.assert_allclose(f(X, 2), X**2)
    np.testing.assert_allclose(f(X, 3), X**3)
    f(X, 2)
    assert len(traces) == 2


def test_static_by_name_however_it_is_passed():
    f = fgrad.jit(power, static_argnames=("n", "negate"))
    np.testing.assert_allclose(f(X, 2, negate=True), -(X**2))
    np.testing.assert_allclose(f(X, n=2), X**2)
    np.testing.assert_allclose(f(X, 2, 3.0), 3 * X**2)
    np.testing.assert_allclose(f(x=X, n=3, scale=2.0, negate=False), 2 * X**3)


def test_static_argnums_covers_the_keyword_form():
    f = fgrad.jit(power, static_argnums=(1,))
    np.testing.assert_allclose(f(X, n=3), X**3)
    np.testing.assert_allclose(f(n=3, x=X), X**3)


def test_static_default_and_negative_position():
    f = fgrad.jit(lambda x, n=2: x**n if n > 1 else x, static_argnames="n")
    np.testing.assert_allclose(f(X), X**2)
    np.testing.assert_allclose(f(X, n=1), X)
    g = fgrad.jit(lambda x, shape: fnp.ones(shape) * x, static_argnums=-1)
    assert g(2.0, (2, 3)).shape == (2, 3)


def test_static_values_of_equal_hash_and_other_type_are_distinct():
    f, traces = counted(lambda x, n: x * n, static_argnums=1)
    f(X, 1), f(X, 1.0), f(X, True)
    assert len(traces) == 3


def test_static_functions_and_strings():
    f = fgrad.jit(lambda x, act, mode: act(x) if mode == "on" else x, static_argnums=(1, 2))
    np.testing.assert_allclose(f(X, fnp.tanh, "on"), np.tanh(X), rtol=1e-6)
    np.testing.assert_allclose(f(X, fnp.tanh, "off"), X)


def test_methods_can_be_jitted():
    class Model:
        def __init__(self):
            self.scale = 3.0

        def __call__(self, x):
            return self.scale * x

    model = Model()
    np.testing.assert_allclose(fgrad.jit(model.__call__)(X), 3 * X)
    np.testing.assert_allclose(fgrad.jit(model)(X), 3 * X)


def test_jit_as_a_method():
    class Scale:
        factor = 3.0

        @functools.partial(fgrad.jit, static_argnums=0)
        def by_self(self, x):
            return self.factor * x

    np.testing.assert_allclose(Scale().by_self(X), 3 * X)

    class Pair:
        def __init__(self, a):
            self.a = a

        @fgrad.jit
        def scaled(self, x):
            return self.a * x

    with pytest.raises(fgrad.FgradTypeError, match="mark it static"):
        Pair(X).scaled(X)
    fgrad.tree.register(Pair, lambda p: ((p.a,), None), lambda _, c: Pair(*c))
    np.testing.assert_allclose(Pair(X).scaled(X), X * X)


def test_decorator_forms_and_metadata():
    @fgrad.jit
    def f(x):
        """Doc."""
        return x * 2

    @fgrad.jit(static_argnames="n")
    def g(x, n):
        return x * n

    assert f.__name__ == "f" and f.__doc__ == "Doc."
    np.testing.assert_allclose(g(f(X), n=2), 4 * X)
    assert fgrad.jit(f).__wrapped__ is f
    np.testing.assert_allclose(fgrad.jit(fgrad.jit(fgrad.grad(fgrad.jit(lambda x: (x**2).sum()))))(X), 2 * X)


# ------------------------------------------------------------------------------------------------ kinds of inputs


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    + ["float16", "float32", "float64", "complex64", "complex128", ml_dtypes.bfloat16],
)
def test_every_dtype_goes_through(dtype):
    x = np.arange(6).reshape(2, 3).astype(dtype)
    f = lambda x: (x, x.T, x[0], fnp.where(x == x, x, x), x.reshape(-1))
    found, expected = fgrad.jit(f)(x), f(fnp.asarray(x))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("dtype", ["int32", "float16", "float32", "float64", ml_dtypes.bfloat16])
def test_arithmetic_keeps_the_dtype(dtype):
    x = np.arange(1, 7).reshape(2, 3).astype(dtype)
    f = lambda x: x * 2 + x
    found = fgrad.jit(f)(x)
    assert found.dtype == f(fnp.asarray(x)).dtype == np.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(found, "float64"), 3 * np.asarray(x, "float64"))


@pytest.mark.parametrize("goal", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("source", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_floats_beyond_an_integers_range_become_its_ends(source, goal):
    """NumPy leaves these casts to the C compiler; here they are defined, and the same with and without jit."""
    values = [
        0,
        -0.5,
        2.5,
        -2.5,
        127.9,
        -128.5,
        200,
        -200,
        3e9,
        -3e9,
        2.0**63,
        -(2.0**63),
        1e30,
        np.inf,
        -np.inf,
        np.nan,
    ]
    with np.errstate(over="ignore"):
        x = np.array(values).astype(source)
    least, most = int(np.iinfo(goal).min), int(np.iinfo(goal).max)
    ends = {np.inf: most, -np.inf: least}
    expected = [
        0 if v != v else ends[v] if v in ends else min(max(int(v), least), most) for v in map(float, x)
    ]
    assert fnp.asarray(x).astype(goal).tolist() == expected
    assert fgrad.jit(lambda x: x.astype(goal))(x).tolist() == expected


def test_strided_reversed_broadcast_and_readonly_inputs():
    base = np.arange(24, dtype="float32").reshape(4, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    f = fgrad.jit(lambda x: x * 2 + 1)
    for x in (
        base.T,
        base[::2, ::-1],
        base[:, 1],
        np.broadcast_to(base[0], (3, 6)),
        np.asfortranarray(base),
        frozen,
        base[1:, 1:],
    ):
        np.testing.assert_array_equal(f(x), x * 2 + 1)
        np.testing.assert_array_equal(f(fnp.asarray(x)), x * 2 + 1)
    assert base[0, 1] == 1.0


def test_unaligned_and_big_endian_inputs():
    raw = np.zeros(4 * 3 + 1, "uint8")
    unaligned = raw[1:].view("float32")
    unaligned[:] = X
    f = fgrad.jit(lambda x: x * 2)
    np.testing.assert_array_equal(f(unaligned), X * 2)
    np.testing.assert_array_equal(f(X.astype(">f4")), X * 2)
    np.testing.assert_array_equal(f(np.ma.array(X)), X * 2)


def test_scalars_and_empty_arrays():
    f = fgrad.jit(lambda x: (x * 2, x.sum()))
    for x in (
        np.float32(3),
        np.array(3.0, "float32"),
        np.zeros(0, "float32"),
        np.zeros((2, 0, 3), "float32"),
    ):
        double, total = f(x)
        assert double.shape == np.shape(x)
        np.testing.assert_array_equal(double, np.asarray(x) * 2)
        assert float(total) == float(np.sum(x))
    g = fgrad.jit(fgrad.grad(lambda x: (x**2).sum()))
    assert g(np.zeros((0, 2), "float32")).shape == (0, 2)


def test_large_python_integers():
    f = fgrad.jit(lambda x: x)
    assert int(f(2**62)) == 2**62
    assert int(f(2**63 + 5)) == 2**63 + 5
    assert int(f(-(2**63))) == -(2**63)
    with pytest.raises(fgrad.FgradValueError, match="does not fit"):
        f(2**70)


Point = collections.namedtuple("Point", "x y")


def test_pytrees_in_and_out():
    def f(t):
        return {"p": Point(t["p"].y, t["p"].x * 2), "n": None, "l": [t["l"][0], (t["l"][0] + 1,)]}

    t = {"p": Point(X, 2.0), "n": None, "l": [3]}
    eager, compiled = f(t), fgrad.jit(f)(t)
    assert type(compiled["p"]) is Point and compiled["n"] is None and type(compiled["l"][1]) is tuple
    assert_same(compiled, eager)


def test_weak_scalars_promote_as_outside():
    half = np.ones(2, "float16")
    ints = np.arange(2, dtype="int32")
    functions = [
        lambda s: s * half,
        lambda s: (s * 2.0) * half,
        lambda s: (2 - s) / 3 * half,
        lambda s: -s * half,
        lambda s: abs(s) ** 2 * half,
        lambda s: fnp.sin(s) * half,
        lambda s: fnp.asarray(s) * half,
        lambda s: s * ints,
        lambda s: (s + 1) * ints,
        lambda s: (s > 0) * half,
        lambda s: s,
        lambda s: s + s,
    ]
    half, ints = fnp.asarray(half), fnp.asarray(ints)
    for i, f in enumerate(functions):
        for s in (2, 2.5, True):
            if s is True and i in (2, 3, 11):  # Python counts with booleans
                continue
            eager, compiled = fnp.asarray(f(s)), fgrad.jit(f)(s)
            assert compiled.dtype == eager.dtype, (i, s)
            np.testing.assert_allclose(np.asarray(compiled), np.asarray(eager), rtol=1e-3)


def test_captured_values():
    table = fnp.asarray(vec(5, 3))
    scale = fnp.asarray(2.0)
    f = fgrad.jit(lambda i: table[i] * scale)
    np.testing.assert_allclose(f(3), np.asarray(table)[3] * 2)
    np.testing.assert_allclose(f(0), np.asarray(table)[0] * 2)


# ------------------------------------------------------------------------------------------------ threads


def test_eight_threads_call_one_function():
    f, traces = counted(fgrad.value_and_grad(lambda w, x: fnp.tanh(x @ w).sum()))
    rng = np.random.default_rng(0)
    inputs = [
        (rng.normal(size=(6, 4)).astype("float32"), rng.normal(size=(5, 6)).astype("float32"))
        for _ in range(8)
    ]
    plain = fgrad.value_and_grad(lambda w, x: fnp.tanh(x @ w).sum())
    expected = [plain(*i) for i in inputs]
    wrong, barrier = [], threading.Barrier(8)

    def work(k):
        barrier.wait()
        for _ in range(50):
            value, gradient = f(*inputs[k])
            if not np.allclose(value, expected[k][0], rtol=1e-4) or not np.allclose(
                gradient, expected[k][1], rtol=1e-3, atol=1e-5
            ):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert len(traces) <= 8


# ------------------------------------------------------------------------------------------------ composition


@pytest.mark.parametrize(
    "compose",
    [
        lambda lib, f: lib.grad(lib.jit(f)),
        lambda lib, f: lib.grad(lib.grad(lib.jit(f))),
        lambda lib, f: lib.jit(lib.grad(lib.jit(lib.grad(lib.jit(f))))),
        lambda lib, f: lib.grad(lib.jit(lib.grad(f))),
        lambda lib, f: lambda x: lib.vmap(lib.jit(lib.grad(f)))(lib.np.stack([x, x * 2])),
        lambda lib, f: lambda x: lib.jit(lib.vmap(lib.jit(f)))(lib.np.stack([x, x * 2])),
        lambda lib, f: lambda x: lib.grad(lambda x: lib.vmap(lib.jit(f))(lib.np.stack([x, x * 2])).sum())(x),
        lambda lib, f: lambda x: lib.jvp(lib.jit(lib.grad(f)), (x,), (x,)),
        lambda lib, f: (
            lambda x: lib.jvp(lib.vmap(lib.jit(f)), (lib.np.stack([x, x]),), (lib.np.stack([x, x]),))
        ),
        lambda lib, f: lib.hessian(lib.jit(f)),
        lambda lib, f: (
            lambda x: lib.scan(lambda c, _: (lib.jit(lib.grad(f))(c) * 0.1, None), x, None, length=3)
        ),
    ],
)
def test_jit_inside_and_outside_of_everything(jax, compose):
    def of(lib):
        def f(x):
            return lib.np.sin(x * 1.3) * x

        return f

    agree(lambda lib, x: compose(lib, of(lib))(x), np.float32(0.7), compiled=True)


def test_gradient_of_a_jitted_function_is_compiled():
    f = fgrad.jit(lambda x: fnp.sin(x).sum())
    graph = fgrad.make_graph(lambda x: f(x))(X)
    assert "call" not in {e.prim.name for e in graph.eqns}
    _, pull = fgrad.vjp(f, X)
    np.testing.assert_allclose(pull(1.0)[0], np.cos(X), rtol=1e-6)
    np.testing.assert_allclose(fgrad.vmap(f)(np.stack([X, X])), [np.sin(X).sum()] * 2, rtol=1e-6)


def test_tuples_dicts_and_kwargs_under_grad():
    f = fgrad.jit(lambda p, x, *, s: ((p["w"] * x) ** 2).sum() * s)
    g = fgrad.grad(f)({"w": X}, X, s=2.0)
    np.testing.assert_allclose(g["w"], 4 * X**3)


def test_static_arguments_under_grad():
    f = fgrad.jit(lambda x, n: (x**n).sum(), static_argnums=1)
    np.testing.assert_allclose(fgrad.grad(f)(X, 3), 3 * X**2, rtol=1e-6)
    np.testing.assert_allclose(fgrad.grad(f)(X, 2), 2 * X, rtol=1e-6)


def test_lower_shows_the_stages():
    low = fgrad.jit(lambda x: fnp.sin(x) * 2).lower(fgrad.ShapeDtype((3,), "float32"))
    assert "sin" in low.show("graph") and "sin" in low.show("kernels")
    assert low.peak_memory >= 12
    for stage in ("summary", "optimized", "memory"):
        assert low.show(stage)


def test_index_errors_under_jit():
    f = fgrad.jit(lambda x, i: x[i], donate=())
    with pytest.raises(fgrad.FgradIndexError):
        f(X, np.array([7]))
    np.testing.assert_array_equal(f(X, np.array([-1])), [3])


# ------------------------------------------------------------------------------------------------ results that are arguments


def test_arguments_that_are_returned_unchanged_are_handed_back():
    f = fgrad.jit(lambda p, x: ({"a": p["a"], "b": p["b"] * 2}, x, 3.0 * x))
    p, x = {"a": fnp.ones(3), "b": fnp.ones(2)}, fnp.arange(4.0)
    for _ in range(5):  # the general way, then the written function
        q, same, y = f(p, x)
        assert q["a"] is p["a"] and same is x
        np.testing.assert_array_equal(q["b"], [2, 2])
        np.testing.assert_array_equal(y, [0, 3, 6, 9])
    assert len(f.lower(p, x).program.outputs) == 2  # no copies in the program


def test_of_an_array_that_may_change_the_result_is_a_copy():
    f = fgrad.jit(lambda x: (x, x + 1))
    x = np.arange(4.0)
    for n in range(5):
        x[0] = n
        same, _ = f(x)
        x[0] = -1
        np.testing.assert_array_equal(same, [n, 1, 2, 3])
    assert float(fgrad.jit(lambda x: x)(2)) == 2


def test_a_donated_argument_is_not_handed_back():
    f = fgrad.jit(lambda x, y: (x, y, x + y), donate=0)
    x, y = fnp.ones(3), fnp.ones(3)
    first, second, total = f(x, y)
    assert first is not x and second is y
    np.testing.assert_array_equal(first, [1, 1, 1])
    np.testing.assert_array_equal(total, [2, 2, 2])
