"""Random programs of many operations: compiled ≡ eager ≡ NumPy, values and derivatives.

A program is a list of steps over a growing pool of arrays. The same interpreter runs it with NumPy and with fgrad, so
NumPy is the definition. In float64 the three agree to 1e-9 of the largest value, in float32 to 2e-4 (sums in another order,
own transcendental functions); derivatives are compared between eager and compiled, and reverse mode with forward mode.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fgrad
import fgrad.numpy as fnp
from tests.peer import leaves

SHAPES = [(), (1,), (4,), (3, 4), (4, 3), (1, 4), (2, 3, 4), (5, 1, 4)]
TOLERANCE = {"float32": 2e-4, "float64": 1e-9}

UNARY = {
    "sin": lambda np_, x: np_.sin(x),
    "cos": lambda np_, x: np_.cos(x),
    "tanh": lambda np_, x: np_.tanh(x),
    "exp": lambda np_, x: np_.exp(-np_.abs(x)),
    "log": lambda np_, x: np_.log(1.5 + np_.abs(x)),
    "sqrt": lambda np_, x: np_.sqrt(x * x + 0.25),
    "square": lambda np_, x: np_.tanh(np_.square(x)),
    "negative": lambda np_, x: -x,
    "reciprocal": lambda np_, x: 1 / (1 + x * x),
    "power": lambda np_, x: (np_.abs(x) + 0.5) ** 1.5 * 0.3,
    "clip": lambda np_, x: np_.clip(x, -0.7, 0.9),
    "floor": lambda np_, x: np_.floor(x * 4) * 0.25,
    "cast": lambda np_, x: (x * 8).astype("int32").astype(x.dtype) * 0.1,
    "mask": lambda np_, x: np_.where(x > 0.1, x, 0.2 * x),
}
BINARY = {
    "add": lambda np_, x, y: x + y,
    "sub": lambda np_, x, y: x - y,
    "mul": lambda np_, x, y: x * y,
    "div": lambda np_, x, y: x / (1.5 + y * y),
    "maximum": lambda np_, x, y: np_.maximum(x, y),
    "minimum": lambda np_, x, y: np_.minimum(x, y),
    "where": lambda np_, x, y: np_.where(x > y, x * 0.5, y),
    "hypot": lambda np_, x, y: np_.sqrt(x * x + y * y + 0.1),
    "arctan2": lambda np_, x, y: np_.arctan2(x, y * y + 0.5),
}
REDUCE = ["sum", "mean", "max", "min", "prod", "var"]


def softmax(np_, x, axis):
    e = np_.exp(x - np_.max(x, axis=axis, keepdims=True))
    return e / np_.sum(e, axis=axis, keepdims=True)


def apply(np_, name, args, p):
    """One step."""
    x = args[0]
    if name in UNARY:
        return UNARY[name](np_, x)
    if name in BINARY:
        return np_.tanh(BINARY[name](np_, x, args[1]))
    if name in REDUCE:
        return getattr(np_, name)(x * 0.5, axis=p["axis"], keepdims=p["keepdims"])
    if name == "softmax":
        return softmax(np_, x * 2, p["axis"])
    if name == "cumsum":
        return np_.cumsum(x, axis=p["axis"]) * 0.3
    if name == "transpose":
        return np_.transpose(x, p["perm"])
    if name == "flat":
        return np_.reshape(x, (-1,))
    if name == "flip":
        return np_.flip(x, p["axis"])
    if name == "slice":
        index = [slice(None)] * x.ndim
        index[p["axis"]] = p["slice"]
        return x[tuple(index)]
    if name == "expand":
        return np_.expand_dims(x, p["axis"])
    if name == "pad":
        return np_.pad(x, [(1, 2)] * x.ndim)
    if name == "concatenate":
        return np_.concatenate([x, x * 0.5], axis=p["axis"])
    if name == "stack":
        return np_.stack([x, np_.sin(x)], axis=p["axis"])
    if name == "matmul":
        return np_.tanh(np_.matmul(x, np_.swapaxes(args[1], -1, -2)) * 0.3)
    if name == "take":
        return np_.take(x, p["indices"], axis=p["axis"])
    if name == "broadcast":
        return np_.broadcast_to(x, (2, *x.shape)) * 0.5
    raise AssertionError(name)


@st.composite
def programs(draw, steps=10):
    """(input shapes, steps, outputs); a step is (name, positions of its arguments, parameters)."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    pool, todo = list(shapes), []
    for _ in range(draw(st.integers(1, steps))):
        i = draw(st.integers(0, len(pool) - 1))
        shape = pool[i]
        choices = ["unary", "unary", "binary", "binary"]
        if np.prod(shape, dtype=int) <= 200:
            choices += ["broadcast"] if len(shape) < 4 else []
            choices += ["stack"] if len(shape) < 4 else []
            choices += ["pad"] if 0 < len(shape) < 4 else []
        if shape:
            choices += ["reduce", "reduce", "softmax", "cumsum", "transpose", "flat", "flip", "slice", "expand", "concatenate", "take"]  # fmt: skip
        partners = [j for j, s in enumerate(pool) if len(s) >= 2 and len(shape) >= 2 and s[-1] == shape[-1] and _fits(s[:-2], shape[:-2])]  # fmt: skip
        choices += ["matmul"] * 2 if partners else []
        name, args, p = draw(st.sampled_from(choices)), [i], {}
        axis = draw(st.integers(0, len(shape) - 1)) if shape else 0
        if name == "unary":
            name = draw(st.sampled_from(sorted(UNARY)))
        elif name == "binary":
            name = draw(st.sampled_from(sorted(BINARY)))
            args.append(draw(st.sampled_from([j for j, s in enumerate(pool) if _fits(s, shape)])))
        elif name == "reduce":
            name = draw(st.sampled_from(REDUCE))
            p = {"axis": draw(st.sampled_from([axis, None, -1])), "keepdims": draw(st.booleans())}
        elif name == "transpose":
            p = {"perm": tuple(draw(st.permutations(range(len(shape)))))}
        elif name == "slice":
            step = draw(st.sampled_from([1, 2, -1]))
            p = {"axis": axis, "slice": slice(None, None, step) if draw(st.booleans()) else slice(0, max(shape[axis] - 1, 1))}  # fmt: skip
        elif name == "take":
            p = {"axis": axis, "indices": np.array(draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=4)))}  # fmt: skip
        elif name == "matmul":
            args.append(draw(st.sampled_from(partners)))
        elif shape:
            p = {"axis": axis}
        else:
            p = {"axis": 0}
        probe = [np.full(pool[k], 0.5) for k in args]
        result = np.asarray(apply(np, name, probe, p))
        if result.size > 2000:
            continue
        todo.append((name, args, p))
        pool.append(result.shape)
    outputs = draw(st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=3, unique=True))
    return shapes, todo, sorted({*outputs, len(pool) - 1})


def _fits(a, b):
    """Whether the two broadcast to the larger of both."""
    return all(x == y or x == 1 or y == 1 for x, y in zip(a[::-1], b[::-1], strict=False))


def interpret(np_, program, inputs):
    _, steps, outputs = program
    pool = list(inputs)
    for name, args, p in steps:
        pool.append(apply(np_, name, [pool[i] for i in args], p))
    return [pool[i] for i in outputs]


def inputs_of(program, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1.5, 1.5, s).astype(dtype) for s in program[0]]


def close(found, expected, dtype, what, factor=1.0):
    for i, (a, b) in enumerate(zip(leaves(found), leaves(expected), strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype, (
            f"{what} {i}: {a.dtype}{a.shape}, expected {b.dtype}{b.shape}"
        )
        tol = TOLERANCE[dtype] * factor
        scale = max(1.0, float(np.max(np.abs(b), initial=0)))
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol * scale, err_msg=f"{what} {i}")


# Steps that jump: a difference in the last bit may move a value across, in another way in each of the three.
JUMPS = {"floor", "cast"}


def has_jumps(program):
    return any(name in JUMPS for name, _, _ in program[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=25)
@given(program=programs())
def test_values(dtype, program):
    if dtype == "float32" and has_jumps(program):
        dtype = "float64"
    inputs = inputs_of(program, dtype)
    expected = [np.asarray(y) for y in interpret(np, program, inputs)]
    eager = interpret(fnp, program, [fnp.asarray(x) for x in inputs])
    compiled = fgrad.jit(lambda *xs: interpret(fnp, program, xs))(*inputs)
    close(eager, expected, dtype, "eager")
    close(compiled, expected, dtype, "compiled")


def loss_of(program, dtype):
    def loss(*xs):
        total = 0.0
        for k, y in enumerate(interpret(fnp, program, xs)):
            weights = np.cos(np.arange(y.size, dtype=dtype) + k).reshape(y.shape).astype(dtype)
            total = total + (y * weights).sum()
        return total

    return loss


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=25)
@given(program=programs())
def test_derivatives(dtype, program):
    if dtype == "float32" and has_jumps(program):
        dtype = "float64"
    inputs = inputs_of(program, dtype, seed=1)
    loss, argnums = loss_of(program, dtype), tuple(range(len(inputs)))
    both = fgrad.value_and_grad(loss, argnums=argnums)
    value, gradient = both(*inputs)
    close(fgrad.jit(both)(*inputs), (value, gradient), dtype, "compiled", 10)
    directions = inputs_of(program, dtype, seed=2)
    tangent = fgrad.jit(lambda xs, ts: fgrad.jvp(loss, xs, ts)[1])(tuple(inputs), tuple(directions))
    along = sum(
        float(np.sum(np.asarray(g, "float64") * d)) for g, d in zip(gradient, directions, strict=True)
    )
    scale = sum(
        float(np.sum(np.abs(np.asarray(g, "float64") * d))) for g, d in zip(gradient, directions, strict=True)
    )
    assert abs(float(tangent) - along) <= 10 * TOLERANCE[dtype] * max(1.0, scale)


@settings(max_examples=12)
@given(program=programs(steps=5))
def test_batches(program):
    """vmap of the compiled program, and the compiled program of vmap, against a loop."""
    batches = [np.stack([x, x * 0.5, -x]) for x in inputs_of(program, "float64", seed=3)]
    f = lambda *xs: interpret(fnp, program, xs)
    rows = [interpret(np, program, [b[i] for b in batches]) for i in range(3)]
    expected = [np.stack([np.asarray(r[k]) for r in rows]) for k in range(len(rows[0]))]
    close(fgrad.vmap(f)(*batches), expected, "float64", "vmap")
    close(fgrad.jit(fgrad.vmap(f))(*batches), expected, "float64", "jit vmap")


@pytest.mark.parametrize(
    "f", [fnp.nanmax, fnp.nanmin, lambda x: fnp.isnan(x).any(1), lambda x: fnp.median(x, axis=0)]
)
def test_compiling_prints_nothing(f, capfd, monkeypatch):
    """LLVM tells the user when it cannot make vectors of a loop that it was asked to make vectors of."""
    monkeypatch.setenv("FGRAD_CACHE", "0")
    fgrad.jit(f)(np.ones((36, 5), np.float32))
    assert capfd.readouterr().err == ""
