"""Checks of derivatives, batching and compiled code against definitions: for user functions and for the primitives.

check_grads(f, x, y)             f's derivatives against differences of its values
check_primitive("mul", (a, b))   everything a primitive promises, on one sample
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fgrad
from fgrad import dtypes, tree
from fgrad.array import Array, from_numpy
from fgrad.convert import as_array
from fgrad.ir import REGISTRY, Graph, Primitive, check, infer
from fgrad.trace import bind, evaluate, trace
from fgrad.transforms.jvp import jvp_graph
from fgrad.transforms.transpose import vjp_graph
from fgrad.transforms.vmap import batch_graph

_BATCH = 3  # the length of the axis that vmap checks add


@dataclass
class Sample:
    """Arguments (NumPy arrays) and parameters that a primitive is checked on.

    grad        whether its derivative can be checked here (no kinks, no NaN, defined at all).
    order       2: also the derivative of its gradient.
    vary        `(array, k) -> array`: other values of the same kind, for the k-th example of a batch.
    atol, rtol  how closely compiled code must agree with the NumPy definition; by dtype if None.
    compiled    whether compiled code is compared at all (False where the result is not unique, as signs of eigenvectors).
    """

    args: Sequence[Any]
    params: dict[str, Any] = field(default_factory=dict)
    grad: bool = True
    order: int = 2
    vary: Callable[[np.ndarray, int], np.ndarray] | None = None
    atol: float | None = None
    rtol: float | None = None
    compiled: bool = True

    def __post_init__(self) -> None:
        self.args = tuple(np.asarray(a) for a in self.args)


# ------------------------------------------------------------------------------------------------ comparison


_RTOL = {
    dtypes.float16: 4e-3,
    dtypes.bfloat16: 3e-2,
    dtypes.float32: 2e-5,
    dtypes.complex64: 2e-5,
    dtypes.float64: 1e-11,
    dtypes.complex128: 1e-11,
}


def assert_close(
    got: Any, want: Any, rtol: float | None = None, atol: float | None = None, what: str = ""
) -> None:
    """Equal shapes and dtypes, and values equal up to the tolerance of their dtype; NaN equals NaN.

    `atol` is relative to the largest finite value by default, so that sums that nearly cancel do not fail.
    """
    a, b = np.asarray(got), np.asarray(want)
    assert a.shape == b.shape and a.dtype == b.dtype, (
        f"{what}: {a.dtype}{list(a.shape)} != {b.dtype}{list(b.shape)}"
    )
    if not dtypes.is_inexact(b.dtype):
        np.testing.assert_array_equal(a, b, err_msg=what)
        return
    rtol = _RTOL[b.dtype] if rtol is None else rtol
    if b.dtype == dtypes.bfloat16:
        a, b = a.astype(np.float32), b.astype(np.float32)
    if atol is None:
        finite = np.abs(b[np.isfinite(b)])
        atol = rtol * float(min(finite.max(), 1.0)) if finite.size else 0.0
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=what)


# ------------------------------------------------------------------------------------------------ derivatives


def _in_double(x: np.ndarray) -> np.ndarray:
    if dtypes.is_complex(x.dtype):
        return x.astype(np.complex128)
    return x.astype(np.float64) if dtypes.is_float(x.dtype) else x


def _random_like(rng: np.random.Generator, x: Any) -> np.ndarray:
    if dtypes.is_complex(x.dtype):
        return (rng.normal(size=x.shape) + 1j * rng.normal(size=x.shape)).astype(x.dtype)
    return rng.normal(size=x.shape).astype(x.dtype)


def _values(graph: Graph, args: Iterable[Any], captured: Iterable[Array] = ()) -> list[np.ndarray]:
    outs = evaluate(graph, [*[a if isinstance(a, Array) else from_numpy(a) for a in args], *captured])
    return [np.asarray(o) for o in outs]


def _directional(
    graph: Graph, args: Sequence[np.ndarray], captured: Sequence[Array], tangents: Sequence[np.ndarray | None]
) -> list[np.ndarray]:
    """The derivative of the outputs along `tangents`, by differences of the fourth order."""
    kinds = {a.dtype for a in args} | {t.dtype for t in graph.out_types}
    narrow = kinds & {dtypes.float32, dtypes.complex64, dtypes.float16, dtypes.bfloat16}
    step = 5e-2 if narrow else 3e-4
    total: list[Any] = [0.0] * len(graph.outputs)
    for k, weight in ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12)):
        moved = [
            a if t is None else a + (k * step * t).astype(a.dtype)
            for a, t in zip(args, tangents, strict=True)
        ]
        for i, value in enumerate(_values(graph, moved, captured)):
            if dtypes.is_inexact(value.dtype):
                wide = np.complex128 if dtypes.is_complex(value.dtype) else np.float64
                total[i] = total[i] + weight / step * value.astype(wide)
    return total


def _compare_derivative(got: np.ndarray, want: Any, what: str) -> None:
    if not dtypes.is_inexact(got.dtype):
        return
    narrow = got.dtype not in (dtypes.float64, dtypes.complex128)
    scale = float(np.max(np.abs(want), initial=0.0))
    tolerance = 3e-2 if narrow else 2e-7
    wide = got.astype(np.complex128 if dtypes.is_complex(got.dtype) else np.float64)
    np.testing.assert_allclose(wide, want, rtol=tolerance, atol=tolerance * max(scale, 1e-3), err_msg=what)


def _check_jvp(
    graph: Graph, args: Sequence[np.ndarray], captured: Sequence[Array], active: Sequence[bool], what: str
) -> list[Any]:
    """JVP against differences. Returns the tangents and the outputs' tangents."""
    rng = np.random.default_rng(7)
    tangents = [_random_like(rng, a) if on else None for a, on in zip(args, active, strict=True)]
    all_active = [*active, *[False] * len(captured)]
    derived, mask = jvp_graph(graph, all_active)
    check(derived.graph)
    found = _values(
        derived.graph, [*args, *captured, *[t for t in tangents if t is not None]], derived.captured
    )
    out_tangents = iter(found[len(graph.outputs) :])
    result = []
    for i, (expected, has, out) in enumerate(
        zip(_directional(graph, args, captured, tangents), mask, graph.outputs, strict=True)
    ):
        tangent = next(out_tangents) if has else np.zeros(out.type.shape, out.type.dtype)
        result.append(tangent)
        _compare_derivative(
            tangent, np.broadcast_to(expected, tangent.shape), f"{what}: tangent of output {i}"
        )
    return [tangents, result]


def _check_derivatives(
    graph: Graph, args: Sequence[np.ndarray], captured: Sequence[Array], order: int, what: str
) -> None:
    """With all floating inputs active together, and with each alone (tangents of the others are absent then)."""
    floating = [dtypes.is_inexact(a.dtype) for a in args]
    if not any(floating):
        return
    _check_active(graph, args, captured, floating, order, what)
    if sum(floating) > 1:
        for i, on in enumerate(floating):
            if on:
                _check_active(
                    graph, args, captured, [j == i for j in range(len(args))], 1, f"{what} in input {i}"
                )


def _check_active(
    graph: Graph,
    args: Sequence[np.ndarray],
    captured: Sequence[Array],
    active: Sequence[bool],
    order: int,
    what: str,
) -> None:
    tangents, out_tangents = _check_jvp(graph, args, captured, active, f"jvp of {what}")
    derived, out_mask, in_mask = vjp_graph(graph, [*active, *[False] * len(captured)])
    check(derived.graph)
    rng = np.random.default_rng(8)
    cts = [_random_like(rng, o.type) for o, on in zip(graph.outputs, out_mask, strict=True) if on]
    found = _values(derived.graph, [*args, *captured, *cts], derived.captured)
    given = [t for t in tangents if t is not None]
    left = _pairing(cts, [t for t, on in zip(out_tangents, out_mask, strict=True) if on])
    right = _pairing(found, [t for t, has in zip(given, in_mask, strict=True) if has])
    narrow = any(x.dtype not in (dtypes.float64, dtypes.complex128) for x in (*cts, *found))
    tolerance = 1e-2 if narrow else 1e-9
    np.testing.assert_allclose(
        left, right, rtol=tolerance, atol=tolerance, err_msg=f"vjp of {what} against its jvp"
    )
    if order > 1 and found and not narrow:
        inner_args = [*args, *[np.asarray(c) for c in captured], *cts]
        inner_active = [*active, *[False] * len(captured), *[True] * len(cts)]
        _check_jvp(derived.graph, inner_args, derived.captured, inner_active, f"jvp of vjp of {what}")


def _pairing(cotangents: Sequence[np.ndarray], tangents: Sequence[np.ndarray]) -> float:
    return float(sum(np.sum(c * t).real for c, t in zip(cotangents, tangents, strict=True)))


def _check_derivatives_run(graph: Graph, args: Sequence[np.ndarray]) -> None:
    """Where differences say nothing (half precision, kinks, NaN): the derived graphs are still well typed and run."""
    active = [dtypes.is_inexact(a.dtype) for a in args]
    if not any(active):
        return
    try:
        derived, out_mask, _ = vjp_graph(graph, active)
    except NotImplementedError:
        return
    check(derived.graph)
    cts = [np.ones(o.type.shape, o.type.dtype) for o, on in zip(graph.outputs, out_mask, strict=True) if on]
    _values(derived.graph, [*args, *cts], derived.captured)


def check_grads(f: Callable[..., Any], *args: Any, order: int = 2) -> None:
    """Raise AssertionError unless the derivatives of `f` at `args` agree with differences of its values.

    Args:
        f: any pytrees of arrays in and out; evaluated in float64.
        args: away from kinks (within about 1e-3).
        order: 1: JVP against differences, VJP against JVP; 2: also the JVP of the VJP.
    """
    leaves, structure = tree.flatten(args)
    arrays = [_in_double(np.asarray(as_array(x, "check_grads"))) for x in leaves]

    def flat(*xs: Array) -> list[Array]:
        return [as_array(y, "check_grads") for y in tree.leaves(f(*tree.unflatten(structure, xs)))]

    traced = trace(flat, [from_numpy(a).type for a in arrays], what="check_grads")
    check(traced.graph)
    _check_derivatives(traced.graph, arrays, traced.captured, order, getattr(f, "__name__", "f"))


# ------------------------------------------------------------------------------------------------ primitives


def _as_function(prim: Primitive, params: dict[str, Any]) -> Callable[..., list[Array]]:
    def f(*xs: Array) -> list[Array]:
        result = bind(prim, *xs, **params)
        return list(result) if prim.multiple else [result]

    return f


def _traced(prim: Primitive, sample: Sample, args: Sequence[np.ndarray]) -> Graph:
    graph = trace(_as_function(prim, sample.params), [from_numpy(a).type for a in args]).graph
    check(graph)
    return graph


def _vary(x: np.ndarray, k: int) -> np.ndarray:
    """The same elements in another order; another number if there is only one."""
    if x.ndim == 0:
        return x if x.dtype == np.bool_ else np.asarray(x + np.asarray(k).astype(x.dtype), x.dtype)
    return np.roll(x.ravel(), k).reshape(x.shape)


def _masks(n: int) -> list[tuple[bool, ...]]:
    """Which arguments to batch: every choice of up to three; of more, each alone, all, and all but one."""
    if n <= 3:
        return [m for m in itertools.product((False, True), repeat=n) if any(m)]
    alone = [tuple(i == j for j in range(n)) for i in range(n)]
    return [*alone, *[tuple(not on for on in m) for m in alone], (True,) * n]


def _check_vmap(prim: Primitive, sample: Sample) -> None:
    graph = _traced(prim, sample, sample.args)
    vary = sample.vary or _vary
    stacks = [np.stack([vary(a, k) for k in range(_BATCH)]) for a in sample.args]
    for mask in _masks(len(sample.args)):
        derived, out_mask = batch_graph(graph, _BATCH, mask)
        check(derived.graph)
        inputs = [s if on else a for a, s, on in zip(sample.args, stacks, mask, strict=True)]
        got = _values(derived.graph, inputs, derived.captured)
        each = [
            _values(graph, [x[k] if on else x for x, on in zip(inputs, mask, strict=True)])
            for k in range(_BATCH)
        ]
        for i, (g, on) in enumerate(zip(got, out_mask, strict=True)):
            want = np.stack([e[i] for e in each])
            g = g if on else np.broadcast_to(g, want.shape)
            assert_close(
                g, want, sample.rtol, sample.atol, f"vmap of {prim.name}, batched {mask}, output {i}"
            )


def check_primitive(
    prim: Primitive | str, args: Sequence[Any] | Sample, params: dict[str, Any] | None = None
) -> None:
    """Check everything that a primitive's record promises, on one sample.

    The type rule against the NumPy definition; the JVP against differences (in float64); the VJP against the JVP; the JVP of
    the VJP against differences; batching against a Python loop; and the well-formedness of every graph on the way.
    """
    prim = REGISTRY[prim] if isinstance(prim, str) else prim
    sample = args if isinstance(args, Sample) else Sample(args, params or {})
    types = infer(prim, [from_numpy(a).type for a in sample.args], sample.params)
    outs = _values(_traced(prim, sample, sample.args), sample.args)  # bind compares with the type rule
    assert tuple((o.shape, o.dtype) for o in outs) == tuple((t.shape, t.dtype) for t in types)
    if sample.args:
        _check_vmap(prim, sample)
    _check_derivatives_run(_traced(prim, sample, sample.args), sample.args)
    if sample.grad:
        wide = [_in_double(a) for a in sample.args]
        _check_derivatives(_traced(prim, sample, wide), wide, (), sample.order, prim.name)


def check_compiled(prim: Primitive | str, samples: Sequence[Sample]) -> None:
    """Compare `prim` and its VJP in a compiled program with their NumPy definitions, all samples in one program."""
    prim = REGISTRY[prim] if isinstance(prim, str) else prim
    samples = [s for s in samples if s.compiled]
    functions = [_as_function(prim, s.params) for s in samples]

    def pulled(sample: Sample, f: Callable[..., list[Array]], xs: Sequence[Array]) -> list[Array]:
        """Cotangents of the floating inputs, for random ones of the outputs."""
        at = [i for i, x in enumerate(xs) if dtypes.is_float(x.dtype)] if sample.grad else []
        if not at:
            return []

        def of_floats(*ys: Array) -> list[Array]:
            inputs = list(xs)
            for i, y in zip(at, ys, strict=True):
                inputs[i] = y
            return [o for o in f(*inputs) if dtypes.is_float(o.dtype)]

        outs, pull = fgrad.vjp(of_floats, *[xs[i] for i in at])
        rng = np.random.default_rng(9)
        return list(pull([from_numpy(_random_like(rng, o)) for o in outs])) if outs else []

    def program(*groups: tuple[Array, ...]) -> list[list[Array]]:
        triples = zip(samples, functions, groups, strict=True)
        return [[*f(*xs), *pulled(s, f, xs)] for s, f, xs in triples]

    groups = [tuple(from_numpy(a) for a in s.args) for s in samples]
    got = fgrad.jit(program)(*groups)
    for n, (outs, want, sample) in enumerate(zip(got, program(*groups), samples, strict=True)):
        for i, (g, w) in enumerate(zip(outs, want, strict=True)):
            what = (
                f"compiled {prim.name}, sample {n} ({', '.join(str(x.type) for x in groups[n])}), result {i}"
            )
            assert_close(np.asarray(g), np.asarray(w), sample.rtol, sample.atol, what)
