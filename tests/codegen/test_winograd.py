"""Winograd's convolution against PyTorch in double precision: every size, edge and blocking, its rounding, and its switch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import lax
from fgrad.codegen import gemm, winograd
from fgrad.codegen.canonical import program_text
from fgrad.codegen.contraction import (
    conv_input_grad_spec,
    conv_output_spatial,
    conv_spec,
    conv_weight_grad_spec,
    dot_general_spec,
)
from fgrad.codegen.planning import plan
from fgrad.codegen.program import ContractStep, walk
from fgrad.codegen.standalone import compile_contraction
from fgrad.codegen.target import host
from fgrad.codegen.winograd_matrices import transforms
from fgrad.runtime import threads
from tests.codegen.test_contraction import fenced, guarded

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

KINDS = ("forward", "input gradient", "weight gradient")
# What `fgrad.winograd` promises: root-mean-square and largest error, each relative to the root mean square of the result.
BOUNDS = {4: (5e-6, 1e-4), 2: (2e-6, 3e-5)}
# At most so many times the error of a direct sum, and so much more.
AGAINST_DIRECT = {4: (4.0, 5e-7), 2: (1.5, 1.5e-7)}


def problem(kind, samples, channels, outputs, size, padding, seed=0, dtype=np.float32):
    """A contraction, its operands, and the result in double precision by PyTorch."""
    rng = np.random.default_rng(seed)
    padding = [
        (p, p) if isinstance(p, int) else p for p in (padding if isinstance(padding, list) else [padding] * 2)
    ]
    x_shape, w_shape = (samples, channels, *size), (outputs, channels, 3, 3)
    rest = ((1, 1), padding, (1, 1), 1, dtype)
    y_shape = (samples, outputs, *conv_output_spatial(size, (3, 3), *rest[:3]))
    x, w, g = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape, y_shape))
    xt, wt, gt = (torch.from_numpy(a).double() for a in (x, w, g))
    xt.requires_grad_()
    wt.requires_grad_()
    (top, bottom), (left, right) = padding
    y = torch.conv2d(torch.nn.functional.pad(xt, (left, right, top, bottom)), wt)
    if kind == "forward":
        return conv_spec(x_shape, w_shape, *rest), w, x, y.detach().numpy()
    dx, dw = torch.autograd.grad(y, (xt, wt), gt)
    if kind == "input gradient":
        return conv_input_grad_spec(y_shape, w_shape, size, *rest), w, g, dx.numpy()
    return conv_weight_grad_spec(x_shape, y_shape, (3, 3), *rest), g, x, dw.numpy()


def plans(spec, target, m=None):
    """All plans there are, the cheapest first."""
    found = sorted(winograd.candidates(spec, target), key=lambda p: p.cycles)
    return [p for p in found if m in (None, p.m)]


def errors(result, expected):
    scale = np.sqrt(np.mean(expected**2))
    error = result - expected
    return np.sqrt(np.mean(error**2)) / scale, np.abs(error).max() / scale


def run(spec, chosen, lhs, rhs, expected):
    """Run between fences: nothing outside the operands is read, nothing outside the output written."""
    whole, out = guarded(expected.size, spec.out.dtype)
    compiled = compile_contraction(spec, chosen.target, chosen)
    for at_end in (False, True):
        out[:] = np.nan
        compiled.run(out, fenced(lhs, at_end=at_end), fenced(rhs, at_end=at_end))
        assert (whole[:64] == 77).all() and (whole[-64:] == 77).all()
    return out.reshape(expected.shape)


def check(spec, chosen, lhs, rhs, expected):
    rms, largest = errors(run(spec, chosen, lhs, rhs, expected), expected)
    bound = BOUNDS[chosen.m]
    assert rms < bound[0] and largest < bound[1], f"{chosen}: {rms:.1e}, {largest:.1e}"
    return rms


SIZES = [  # samples, channels, outputs, size, padding
    (1, 16, 16, (4, 4), 1),
    (5, 16, 64, (8, 8), 1),
    (2, 17, 19, (5, 7), 1),
    (3, 32, 48, (13, 9), 0),
    (1, 20, 33, (6, 6), 2),
    (3, 16, 18, (18, 21), 1),
    (2, 40, 16, (17, 33), 1),
    (4, 33, 70, (16, 16), 1),
    (2, 16, 16, (3, 3), 0),
    (7, 24, 16, (2, 5), 1),
    (2, 18, 17, (7, 9), [(0, 2), (1, 0)]),
    (1, 16, 17, (1, 1), [(3, 1), (2, 4)]),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_against_torch(kind, case):
    spec, lhs, rhs, expected = problem(kind, *case)
    for m in (4, 2):
        check(spec, plans(spec, host(), m)[0], lhs, rhs, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [16, 32])
def test_narrower_vectors(kind, width):
    """What machines with AVX2, or with 128-bit vectors and fused multiply-adds, would run."""
    if width > host().vector_bytes:
        pytest.skip("wider than this machine")
    target = host().with_vector_bytes(width)
    spec, lhs, rhs, expected = problem(kind, 2, 18, 21, (9, 6), 1)
    for m in (4, 2):
        check(spec, plans(spec, target, m)[0], lhs, rhs, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_blocking(kind):
    """Bands of a sample, several samples at once, blocks of outputs, the kernel transformed at once or in parts."""
    spec, lhs, rhs, expected = problem(kind, 4, 64, 64, (15, 12), 1)
    start = plans(spec, host(), 4)[0]
    for samples, band, outputs, mr, columns in [
        (1, 1, 64, 2, 2),
        (1, 2, 64, 4, 4),
        (1, 4, 64, 8, 1),
        (2, 4, 64, 16, 1),
        (4, 4, 32, 1, 2),
        (4, 4, 64, 4, 4),
    ]:
        base = replace(start, samples=samples, band=band, outputs=outputs, mr=mr, columns=columns)
        once = base.blocks > 1 and not start.shape.weight_grad
        chosen = winograd.with_workspace(replace(base, kernel_once=once))
        check(spec, chosen, lhs, rhs, expected)
        if once and samples == 1:
            other = replace(chosen, outputs=32, columns=2)
            check(spec, winograd.with_workspace(other), lhs, rhs, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [4, 2])
def test_rounding(kind, m):
    """The stated bounds, over channels from few to many, and not much more than a direct sum errs."""
    direct = replace(host(), winograd=False)
    for seed, (samples, channels, outputs, size) in enumerate(
        [
            (4, 16, 16, (12, 12)),
            (8, 64, 64, (16, 16)),
            (2, 256, 32, (8, 8)),
            (2, 32, 256, (8, 8)),
            (2, 2048, 16, (4, 4)),
        ]
    ):
        spec, lhs, rhs, expected = problem(kind, samples, channels, outputs, size, 1, seed)
        rms = check(spec, plans(spec, host(), m)[0], lhs, rhs, expected)
        usual = errors(run(spec, plan(spec, direct), lhs, rhs, expected), expected)[0]
        times, more = AGAINST_DIRECT[m]
        assert rms < times * usual + more, f"{rms:.1e}, direct {usual:.1e}"


@pytest.mark.parametrize("m", [2, 4])
def test_the_transforms_are_exact(m):
    t = transforms(m)
    rng = np.random.default_rng(m)
    d, w, g = (rng.standard_normal((n, n)) for n in (m + 2, 3, m))
    bt, gm, at = (np.array(matrix, float) for matrix in (t.bt, t.g, t.at))
    y = at @ ((gm @ w @ gm.T) * (bt @ d @ bt.T)) @ at.T
    np.testing.assert_allclose(
        y, [[np.sum(d[i : i + 3, j : j + 3] * w) for j in range(m)] for i in range(m)], atol=1e-13
    )
    back = gm.T @ ((at.T @ g @ at) * (bt @ d @ bt.T)) @ gm
    expected = [[np.sum(d[i : i + m, j : j + m] * g) for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(back, expected, atol=1e-13)


def test_where_it_does_not_apply():
    shapes = (2, 32, 16, 16), (32, 32, 3, 3)
    one, pad = (1, 1), [(1, 1), (1, 1)]
    others = [
        conv_spec(*shapes, (2, 2), pad, one, 1, np.float32),
        conv_spec(*shapes, one, pad, (2, 2), 1, np.float32),
        conv_spec(*shapes, one, pad, one, 1, np.float64),
        conv_spec((2, 64, 16, 16), shapes[1], one, pad, one, 2, np.float32),
        conv_spec((2, 32, 16, 16), (32, 32, 5, 5), one, pad, one, 1, np.float32),
        conv_spec((2, 32, 16, 16), (32, 32, 1, 1), one, [(0, 0)] * 2, one, 1, np.float32),
        conv_spec((2, 32, 16), (32, 32, 3), (1,), [(1, 1)], (1,), 1, np.float32),
        conv_spec((2, 32, 8, 8, 8), (32, 32, 3, 3, 3), (1,) * 3, [(1, 1)] * 3, (1,) * 3, 1, np.float32),
        dot_general_spec((64, 64), (64, 64), (((1,), (0,)), ((), ())), np.float32, np.float32, np.float32),
        conv_input_grad_spec((2, 32, 8, 8), shapes[1], (16, 16), (2, 2), pad, one, 1, np.float32),
        conv_weight_grad_spec((2, 32, 16, 16), (2, 32, 8, 8), (3, 3), (2, 2), pad, one, 1, np.float32),
    ]
    for spec in others:
        assert not plans(spec, host())
    few = conv_spec((2, 3, 32, 32), (16, 3, 3, 3), one, pad, one, 1, np.float32)
    assert plan(few, host()).path != "winograd"


def test_chosen_where_it_is_faster():
    spec = conv_spec((32, 64, 32, 32), (64, 64, 3, 3), (1, 1), [(1, 1)] * 2, (1, 1), 1, np.float32)
    chosen = plan(spec, host())
    assert chosen.path == "winograd" and chosen.m == 4 and "F(4x4, 3x3)" in str(chosen)
    assert chosen.flops == spec.flops
    assert plan(spec, replace(host(), winograd=False)).path != "winograd"


def test_functions_are_shared_in_a_module():
    """Convolutions of one module share the transforms and products; each only adds its loops."""
    from llvmlite import ir

    module = ir.Module()
    for i, size in enumerate(((16, 16), (8, 12))):
        spec, *_ = problem("forward", 4, 32, 32, size, 1)
        gemm.emit(module, spec, plans(spec, host(), 4)[0], f"conv{i}")
    shared = [name for name in module.globals if name.startswith("winograd.")]
    assert sum(name.startswith("winograd.bt") for name in shared) == 1
    assert sum(name.startswith("winograd.g.") for name in shared) == 1


def test_an_infinity_stays_in_its_tiles():
    """The documented difference: every output of a tile that touches an infinity is NaN; all others are as usual."""
    spec, w, x, _ = problem("forward", 1, 16, 16, (16, 16), 1)
    x[0, 3, 5, 6] = np.inf  # inside the tile of rows and columns 4 to 7, and of no other's border
    out = np.empty((1, 16, 16, 16), np.float32)
    compile_contraction(spec, host(), plans(spec, host(), 4)[0]).run(out, w, x)
    finite = np.isfinite(out)
    assert not finite[:, :, 4:8, 4:8].any()
    finite[:, :, 4:8, 4:8] = True
    assert finite.all()


# ------------------------------------------------------------------------------------------------ through jit


def net(w, v, x):
    h = fnp.tanh(lax.conv(x, w, padding=((1, 1), (1, 1))))
    h = lax.conv(h, v, padding=((0, 0), (0, 0)))
    return fnp.mean(h * h)


def arguments(seed=0):
    rng = np.random.default_rng(seed)
    shapes = (32, 32, 3, 3), (48, 32, 3, 3), (12, 32, 18, 17)
    return [rng.standard_normal(s).astype(np.float32) * np.float32(f) for s, f in zip(shapes, (0.1, 0.1, 1))]


def paths(jitted, args):
    return [
        s.meta["plan"].path for s in walk(jitted.lower(*args).program.body) if isinstance(s, ContractStep)
    ]


def test_gradients_through_jit():
    args = arguments()
    step = fgrad.jit(fgrad.value_and_grad(net, argnums=(0, 1, 2)))
    assert paths(step, args).count("winograd") >= 5
    loss, grads = step(*args)
    w, v, x = (torch.from_numpy(a).double().requires_grad_() for a in args)
    expected = (torch.conv2d(torch.tanh(torch.conv2d(x, w, padding=1)), v) ** 2).mean()
    expected.backward()
    assert abs(float(loss) - float(expected.detach())) < 1e-5 * float(expected.detach())
    for ours, theirs in zip(grads, (w.grad, v.grad, x.grad), strict=True):
        rms, largest = errors(np.asarray(ours), theirs.numpy())
        assert rms < 5e-6 and largest < 1e-4


def test_the_switch():
    args = arguments()
    step = fgrad.jit(net)
    fast = step(*args)
    assert "winograd" in paths(step, args)
    with fgrad.winograd(False):
        direct = step(*args)
        assert "winograd" not in paths(step, args)
        with fgrad.winograd(True):
            assert "winograd" in paths(step, args)
            assert step(*args) == fast
        lowered = step.lower(*args)  # as where it was lowered, wherever it is looked at
    assert all(
        s.meta["plan"].path != "winograd" for s in walk(lowered.program.body) if isinstance(s, ContractStep)
    )
    assert step(*args) == fast
    assert abs(float(fast) - float(direct)) < 1e-5 * float(direct)


def test_the_switch_under_grad_outside_jit():
    """There a jitted function is an equation that runs a compiled graph."""
    args = arguments()
    inner = fgrad.jit(lambda w, x: lax.conv(x, w, padding=((1, 1), (1, 1))))
    loss = lambda w, x: fnp.sum(inner(w, x) ** 2)
    first = np.asarray(fgrad.grad(loss)(args[0], args[2]))
    with fgrad.winograd(False):
        second = np.asarray(fgrad.grad(loss)(args[0], args[2]))
    assert not np.array_equal(first, second)
    assert errors(first, second)[0] < 5e-6


def test_the_switch_is_part_of_what_names_a_program():
    args = arguments()
    fast = program_text(fgrad.jit(net).lower(*args).program)
    with fgrad.winograd(False):
        assert program_text(fgrad.jit(net).lower(*args).program) != fast


def test_the_environment_variable():
    code = "from fgrad.runtime.options import winograd_allowed; print(winograd_allowed())"
    for value, expected in (("0", "False"), ("1", "True")):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "FGRAD_WINOGRAD": value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == expected


def test_same_bits_for_any_number_of_threads():
    args = arguments()
    step = fgrad.jit(fgrad.value_and_grad(net, argnums=(0, 1, 2)))
    assert any(
        "pieces" in s.meta and s.meta["plan"].path == "winograd"
        for s in walk(step.lower(*args).program.body)
        if isinstance(s, ContractStep)
    )
    before, results = threads.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            threads.set_num_threads(count)
            loss, grads = step(*args)
            results.append([np.asarray(a).tobytes() for a in (loss, *grads)])
    finally:
        threads.set_num_threads(before)
    assert results[0] == results[1] == results[2]
