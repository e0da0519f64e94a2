"""Tracing: what is recorded, what is captured, where equations come from, leaked tracers, threads."""

import gc
import threading
import weakref

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.ir import check

X = np.float32([1, 2, 3])


def line_of(f, offset):
    return f"{__file__.rsplit('/', 1)[-1]}:{f.__code__.co_firstlineno + offset}"


def test_equations_carry_the_users_line():
    def f(x):
        y = fnp.sin(x)
        return y * 2.0

    text = str(fgrad.make_graph(f)(X))
    assert f"sin a   # {line_of(f, 1)}" in text
    assert line_of(f, 2) in text
    assert text.startswith("graph f(a: float32[3]):")


def test_derived_equations_keep_the_line():
    def f(x):
        y = fnp.sin(x)
        return fnp.sum(y * 2.0)

    graph = fgrad.make_graph(fgrad.grad(f))(X)
    check(graph)
    cos = next(e for e in graph.eqns if e.prim.name == "cos")
    assert cos.source.line == f.__code__.co_firstlineno + 1
    batched = fgrad.make_graph(fgrad.vmap(f))(np.ones((2, 3), "float32"))
    assert next(e for e in batched.eqns if e.prim.name == "sin").source.line == f.__code__.co_firstlineno + 1


def test_named_scopes_are_recorded():
    def f(x):
        with fgrad.named_scope("outer"), fgrad.named_scope("inner"):
            return fnp.sin(x)

    (eqn,) = fgrad.make_graph(f)(X).eqns
    assert eqn.source.scope == "outer.inner"
    assert "outer.inner" in str(fgrad.make_graph(f)(X))


def test_captured_arrays_become_inputs_once():
    table = fnp.asarray(np.ones((100, 3), "float32"))
    graph = fgrad.make_graph(lambda x: (table * x).sum() + table.sum())(X)
    assert [str(v.type) for v in graph.inputs] == ["float32[3]", "float32[100,3]"]


def test_creation_is_recorded_not_baked_in():
    graph = fgrad.make_graph(lambda x: fnp.zeros((1000, 3)) + fnp.arange(3) + x)(X)
    assert len(graph.inputs) == 1
    assert {"broadcast", "iota"} <= {e.prim.name for e in graph.eqns}


def test_outputs_may_be_inputs_constants_or_repeated():
    f = lambda x: (x, x, 3.0, fnp.ones(2), {"k": x * 1.0})
    for run in (f, fgrad.jit(f)):
        out = run(fnp.asarray(X))
        np.testing.assert_array_equal(out[0], X)
        np.testing.assert_array_equal(out[1], X)
        assert float(out[2]) == 3.0
        np.testing.assert_array_equal(out[3], [1, 1])


def test_make_graph_of_specifications_and_kwargs():
    graph = fgrad.make_graph(lambda x, *, y: x @ y)(
        fgrad.ShapeDtype((2, 3), "float32"), y=fgrad.ShapeDtype((3,), "float32")
    )
    assert str(graph.out_types[0]) == "float32[2]"


class Holder:
    pass


def test_leaked_tracers():
    holder = Holder()
    box = []

    def through_attribute(x):
        holder.x = x
        return x * 2

    def through_list(x):
        box.append(x * 3)
        return x * 2

    for transform in (
        fgrad.jit,
        fgrad.vmap,
        lambda f: fgrad.grad(lambda x: f(x).sum()),
        lambda f: fgrad.jit(fgrad.grad(lambda x: f(x).sum())),
        lambda f: lambda x: fgrad.scan(lambda c, _: (f(c), None), x, None, length=2),
    ):
        transform(through_attribute)(X)
        transform(through_list)(X)
        for leaked in (holder.x, box.pop()):
            for use in (
                lambda: leaked + 1,
                lambda: float(leaked.sum()),
                lambda: np.asarray(leaked),
                lambda: fgrad.jit(lambda y: y + leaked)(X),
                lambda: fgrad.grad(lambda y: (y + leaked).sum())(X),
                lambda: fgrad.jit(lambda y: y)(leaked),
                lambda: fgrad.vmap(lambda y: y * leaked)(X),
            ):
                with pytest.raises(fgrad.TracerError, match="has finished tracing") as e:
                    use()
                assert "return it from the traced function" in str(e.value)
                assert "test_trace.py" in str(e.value)


def test_repr_of_a_leaked_tracer_does_not_raise():
    box = []
    fgrad.jit(lambda x: box.append(x) or x)(X)
    assert repr(box[0]) == "Tracer(float32[3])"


def test_values_die_with_the_trace():
    """Tracing keeps nothing alive after the fact (a leak would keep every activation of every step)."""
    alive = []

    def f(x):
        y = fnp.sin(x)
        alive.append(weakref.ref(y))
        return y.sum()

    fgrad.grad(f)(X)
    fgrad.jit(f)(X)
    gc.collect()
    assert all(ref() is None for ref in alive)


def test_exceptions_leave_no_trace_active():
    def bad(x):
        raise RuntimeError("inside")

    for transform in (fgrad.jit, fgrad.grad, fgrad.vmap, fgrad.make_graph):
        with pytest.raises(RuntimeError, match="inside"):
            transform(bad)(X)
    with pytest.raises(RuntimeError):
        fgrad.scan(lambda c, x: bad(x), 0.0, X)
    assert type(fnp.asarray(X) * 2).__name__ == "ConcreteArray"


def test_generators_and_threads_have_traces_of_their_own():
    started, go_on = threading.Event(), threading.Event()
    results = {}

    def slow(x):
        started.set()
        assert go_on.wait(10)
        return (x * 2).sum()

    worker = threading.Thread(target=lambda: results.update(g=fgrad.grad(slow)(X)))
    worker.start()
    assert started.wait(10)
    assert type(fnp.asarray(X) + 1).__name__ == "ConcreteArray"  # no trace in this thread
    np.testing.assert_allclose(fgrad.grad(lambda x: (x**2).sum())(X), 2 * X)
    go_on.set()
    worker.join()
    np.testing.assert_allclose(results["g"], [2, 2, 2])


def test_a_tracer_used_in_another_thread_is_an_error():
    errors = []

    def f(x):
        def work():
            try:
                x * 2
            except fgrad.TracerError as e:
                errors.append(str(e))

        t = threading.Thread(target=work)
        t.start()
        t.join()
        return x

    fgrad.jit(f)(X)
    assert len(errors) == 1


def test_side_effects_happen_once_under_jit():
    calls = []
    f = fgrad.jit(lambda x: calls.append(1) or x * 2)
    for _ in range(3):
        f(X)
    assert calls == [1]


def test_mutation_is_an_error_that_names_the_remedy():
    def f(x):
        x[0] = 1.0
        return x

    for run in (lambda: f(fnp.asarray(X)), lambda: fgrad.jit(f)(X)):
        with pytest.raises(fgrad.FgradTypeError, match=r"x\.at\[index\]\.set\(value\)") as e:
            run()
        assert line_of(f, 1) in str(e.value)


def test_augmented_assignment_rebinds():
    def f(x):
        y = x
        y += 1
        y *= 2
        return y

    x = fnp.asarray(X)
    np.testing.assert_allclose(f(x), (X + 1) * 2)
    np.testing.assert_allclose(x, X)
    np.testing.assert_allclose(fgrad.jit(f)(X), (X + 1) * 2)


def test_check_finds_broken_graphs():
    graph = fgrad.make_graph(lambda x: fnp.sin(x) * 2)(X)
    check(graph)
    graph.eqns.reverse()
    with pytest.raises(fgrad.GraphError, match="before its definition"):
        check(graph)


def test_shape_and_dtype_of_tracers_are_plain_values():
    def f(x):
        assert x.shape == (3,) and x.ndim == 1 and x.size == 3 and len(x) == 3
        assert x.dtype == np.float32 and np.shape(x) == (3,) and np.ndim(x) == 1
        assert isinstance(x, fgrad.Array)
        return fnp.zeros(x.shape) + x

    np.testing.assert_allclose(fgrad.jit(f)(X), X)
