"""Direct convolution: which taps exist where, and every plan of it against PyTorch."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fgrad
import fgrad.numpy as fnp
from fgrad import lax
from fgrad.codegen.contraction import Axis, Dim, conv_output_spatial
from fgrad.codegen.planning import candidates, finish
from fgrad.codegen.program import ContractStep, walk
from fgrad.codegen.standalone import compile_contraction
from fgrad.codegen.stencil import Spatial, find_stencil, strips
from fgrad.codegen.target import host
from tests.codegen.test_contraction import (
    BF16,
    TOLERANCE,
    conv_specs,
    evaluate,
    fenced,
    guarded,
    random,
    target_of,
)

CASES = [
    # x, w, strides, padding, dilation, groups
    ((3, 32, 13, 13), (32, 32, 3, 3), (1, 1), [(0, 0), (0, 0)], (1, 1), 1),
    ((4, 16, 8, 8), (32, 16, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1),
    ((4, 32, 4, 4), (16, 32, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1),
    ((2, 16, 16, 16), (32, 16, 3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), 1),
    ((2, 16, 17, 9), (16, 16, 1, 1), (2, 2), [(0, 0), (0, 0)], (1, 1), 1),
    ((2, 6, 14, 14), (16, 6, 5, 5), (1, 1), [(0, 0), (0, 0)], (1, 1), 1),
    ((2, 16, 11, 20), (24, 8, 3, 4), (2, 3), [(0, 2), (3, 1)], (2, 1), 2),
    ((3, 20, 21), (5, 20, 4), (3,), [(2, 1)], (2,), 1),
    ((2, 8, 5, 6, 7), (16, 8, 2, 3, 2), (1, 2, 1), [(1, 0), (0, 1), (1, 1)], (1, 1, 2), 1),
    ((2, 3, 32, 32), (16, 3, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1),
]  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    places=st.integers(1, 12), taps=st.integers(1, 20), size=st.integers(1, 15), parts=st.integers(1, 5),
    coefs=st.tuples(st.integers(1, 3), st.sampled_from([-2, -1, 1, 2, 3])), offset=st.integers(-4, 6),
    divisor=st.integers(1, 3), stride=st.sampled_from([1, 7]),
)  # fmt: skip
def test_strips_hold_each_pair_that_exists_once(places, taps, size, parts, coefs, offset, divisor, stride):
    axis = Axis((("p", coefs[0]), ("t", coefs[1])), stride, offset, divisor, size)
    spatial = Spatial(Dim("p", places), Dim("t", taps), axis)
    expected = {}
    for place, tap in itertools.product(range(places), range(taps)):
        p = offset + coefs[0] * place + coefs[1] * tap
        if p % divisor == 0 and 0 <= p // divisor < size:
            expected[place, tap] = p // divisor * stride
    found, covered = [], 0
    for strip in strips(spatial, min(parts, places)):
        assert strip.first == covered
        covered += strip.count * strip.size
        for tile in range(strip.count):
            for run in strip.runs:
                for step in range(run.count):
                    for row, where in run.rows:
                        key = strip.first + tile * strip.size + row, run.first + step
                        found.append((key, strip.base + tile * strip.step + where + step * run.step))
    assert covered == places
    assert dict(found) == expected and len(found) == len(expected) == spatial.pairs
    for place, (count, first, where) in enumerate(spatial.table()):
        line = [(first + i * spatial.tap_step, where + i * spatial.element_step) for i in range(count)]
        assert line == sorted((t, w) for (q, t), w in expected.items() if q == place)


def gradients(case):
    """Outputs and operands of the three contractions of a case, by PyTorch in float64."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    x_shape, w_shape, strides, padding, dilation, groups = case
    y_shape, *specs = conv_specs(case, np.float32)
    x, w, g = random(x_shape, np.float32, 8), random(w_shape, np.float32, 9), random(y_shape, np.float32, 10)
    xt = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    wt = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    flat = [side for pair in reversed(padding) for side in pair]
    conv = (torch.conv1d, torch.conv2d, torch.conv3d)[len(strides) - 1]
    y = conv(torch.nn.functional.pad(xt, flat), wt, None, strides, 0, dilation, groups)
    y.backward(torch.tensor(g, dtype=torch.float64))
    results = (y.detach().numpy(), xt.grad.numpy(), wt.grad.numpy())
    return list(zip(specs, ((w, x), (w, g), (g, x)), results))


@pytest.mark.parametrize("index", range(len(CASES)))
def test_plans_of_the_direct_path_against_torch(index):
    rng = np.random.default_rng(index)
    tried = 0
    for number, (spec, (lhs, rhs), expected) in enumerate(gradients(CASES[index])):
        target = target_of((64, 32, 16)[(index + number) % 3] if host().vector_bytes == 64 else 32)
        every = [c for c in candidates(spec, target) if c[2].get("direct")]
        if not every:
            continue
        chosen = [min(every, key=lambda c: c[0]), *(every[i] for i in rng.integers(len(every), size=2))]
        for candidate in chosen:
            other = finish(*candidate)
            whole, out = guarded(expected.size, np.float32)
            compiled = compile_contraction(spec, target, other)
            compiled.run(out, fenced(lhs, at_end=True), fenced(rhs, at_end=True))
            compiled.run(out, fenced(lhs, at_end=False), fenced(rhs, at_end=False))
            scale = float(np.abs(expected).max())
            np.testing.assert_allclose(
                out, expected.reshape(-1), rtol=0, atol=3e-5 * scale, err_msg=str(other)
            )
            assert (whole[:64] == 77).all() and (whole[64 + expected.size :] == 77).all(), str(other)
            tried += 1
    assert tried >= 6


PLANES = [
    ((2, 12, 16, 16), (12, 1, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 12),
    ((2, 5, 33, 32), (5, 1, 3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), 5),
    ((2, 6, 14, 27), (12, 2, 5, 4), (1, 2), [(0, 3), (2, 1)], (2, 1), 3),
    ((3, 4, 40), (4, 1, 9), (2,), [(4, 4)], (1,), 4),
    ((2, 4, 20, 20), (3, 4, 1, 1), (2, 2), [(0, 0), (0, 0)], (1, 1), 1),
    ((1, 2, 6, 9, 18), (2, 1, 2, 3, 3), (1, 1, 1), [(1, 0), (1, 1), (1, 1)], (1, 1, 1), 2),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(PLANES)))
def test_lanes_along_a_line_against_torch(index):
    tried = 0
    for number, (spec, (lhs, rhs), expected) in enumerate(gradients(PLANES[index])):
        target = target_of((64, 32)[(index + number) % 2] if host().vector_bytes == 64 else 32)
        if not target.masked_loads:
            pytest.skip("this path is for machines with masked loads")
        for candidate in (c for c in candidates(spec, target) if c[1].path == "plane"):
            other = finish(*candidate)
            whole, out = guarded(expected.size, np.float32)
            compiled = compile_contraction(spec, target, other)
            compiled.run(out, fenced(lhs, at_end=True), fenced(rhs, at_end=True))
            compiled.run(out, fenced(lhs, at_end=False), fenced(rhs, at_end=False))
            scale = float(np.abs(expected).max())
            np.testing.assert_allclose(
                out, expected.reshape(-1), rtol=0, atol=3e-5 * scale, err_msg=str(other)
            )
            assert (whole[:64] == 77).all() and (whole[64 + expected.size :] == 77).all(), str(other)
            tried += 1
    assert tried >= 2


@pytest.mark.parametrize(
    "types", [("float64",) * 3, ("bfloat16", "float32", "float32"), ("float16", "float32", "bfloat16")]
)
@pytest.mark.parametrize("case", [CASES[1], CASES[3], PLANES[1]], ids=["padded", "strided", "depthwise"])
def test_element_types_against_the_definition(case, types):
    """A kernel and an output of another type than the image's are converted as they are packed and stored."""
    lhs_type, rhs_type, out_type = (BF16 if t == "bfloat16" else np.dtype(t) for t in types)
    y_shape, *specs = conv_specs(case, np.float32)
    shapes = ((case[1], case[0], y_shape), (case[1], y_shape, case[0]), (y_shape, case[0], case[1]))
    for number, (spec, (lhs_shape, rhs_shape, out_shape)) in enumerate(zip(specs, shapes)):
        spec = replace(
            spec,
            lhs=replace(spec.lhs, dtype=lhs_type),
            rhs=replace(spec.rhs, dtype=rhs_type),
            out=replace(spec.out, dtype=out_type),
        )
        lhs, rhs = random(lhs_shape, lhs_type, 1 + number), random(rhs_shape, rhs_type, 5 + number)
        expected = np.zeros(int(np.prod(out_shape)), out_type)
        evaluate(spec, lhs.reshape(-1), rhs.reshape(-1), expected)
        every = [c for c in candidates(spec, host()) if c[2].get("direct")]
        for path in sorted({c[1].path for c in every}):
            best = min((c for c in every if c[1].path == path), key=lambda c: c[0])
            _, out = guarded(expected.size, out_type)
            compile_contraction(spec, host(), finish(*best)).run(out, lhs, rhs)
            got, wanted = out.astype(np.float64), expected.astype(np.float64)
            bound = TOLERANCE[out_type.name] * max(1.0, float(np.abs(wanted).max()))
            np.testing.assert_allclose(got, wanted, rtol=0, atol=bound, err_msg=f"{path} {types}")


def test_k_in_pieces_adds_up():
    """The gradient of a kernel over a large batch does not fit the cache, and is summed piece by piece."""
    spec, (lhs, rhs), expected = gradients(
        ((13, 16, 20, 20), (16, 16, 3, 3), (1, 1), [(1, 1)] * 2, (1, 1), 1)
    )[2]
    target = host()
    every = [c for c in candidates(spec, target) if c[2].get("direct")]
    cost, base, fields = min(every, key=lambda c: c[0])
    for chunk in (1, 5, 13):
        _, out = guarded(expected.size, np.float32)
        compile_contraction(spec, target, finish(cost, base, {**fields, "k_chunk": chunk})).run(out, lhs, rhs)
        np.testing.assert_allclose(
            out, expected.reshape(-1), rtol=0, atol=3e-5 * float(np.abs(expected).max())
        )


def test_what_is_no_image_has_no_stencil():
    (y_shape, forward, input_grad, weight_grad) = conv_specs(CASES[0], np.float32)
    assert all(find_stencil(spec) for spec in (forward, input_grad, weight_grad))
    assert find_stencil(forward.swapped()) is None
    assert y_shape[2:] == conv_output_spatial((13, 13), (3, 3), (1, 1), [(0, 0)] * 2, (1, 1))


def steps_of(f, *xs):
    program = fgrad.jit(f).lower(*xs).program
    return [s for s in walk(program.body) if isinstance(s, ContractStep)]


@pytest.mark.parametrize("samples", [4, 16])
def test_epilogues_see_every_sum_once(torch, samples):
    """Bias and residual after a convolution, and a derivative's factor after the gradient of a strided one (which has
    elements that no tap meets)."""
    x, w = random((samples, 32, 16, 16), np.float32, 1), random((64, 32, 3, 3), np.float32, 2)
    b, r = random((64,), np.float32, 3), random((samples, 64, 8, 8), np.float32, 4)
    v, g = random((64, 32, 1, 1), np.float32, 5), random((samples, 64, 8, 8), np.float32, 6)

    def forward(x, w, b, r):
        return fnp.maximum(lax.conv(x, w, padding=1, strides=2) + b[:, None, None] + r, 0)

    def backward(x, v, g):
        return fgrad.vjp(lambda x: lax.conv(fnp.tanh(x), v, strides=2), x)[1](g)[0]

    for f, xs in ((forward, (x, w, b, r)), (backward, (x, v, g))):
        (step,) = steps_of(f, *xs)
        assert step.meta["plan"].path == "direct" and step.epilogue is not None
    xt = torch.tensor(x, requires_grad=True)
    wt, bt, rt, vt, gt = (torch.tensor(a) for a in (w, b, r, v, g))
    expected = (torch.nn.functional.conv2d(xt, wt, bt, padding=1, stride=2) + rt).relu().detach().numpy()
    np.testing.assert_allclose(fgrad.jit(forward)(x, w, b, r), expected, rtol=1e-4, atol=1e-4)
    torch.nn.functional.conv2d(xt.tanh(), vt, stride=2).backward(gt)
    np.testing.assert_allclose(fgrad.jit(backward)(x, v, g), xt.grad.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(host().vector_bytes != 64, reason="reads the assembly of AVX-512")
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["forward", "input gradient", "weight gradient"])
@pytest.mark.parametrize("stride", [1, 2])
def test_sums_stay_in_registers(kind, stride):
    """The hot loops multiply in the widest registers, with the image's elements broadcast by the instruction, and spill nothing."""
    case = ((8, 64, 16, 16), (64, 64, 3, 3), (stride, stride), [(1, 1)] * 2, (1, 1), 1)
    spec = conv_specs(case, np.float32)[1 + kind]
    every = [c for c in candidates(spec, host()) if c[1].path == "direct"]
    chosen = finish(*min(every, key=lambda c: c[0]))
    text = compile_contraction(spec, host(), chosen, assembly=True).assembly
    blocks = [b for b in re.split(r"\n\.?L?\w+:", text) if len(re.findall("vfmadd", b)) > 16]
    assert blocks, str(chosen)
    for block in blocks:
        products = [line for line in block.splitlines() if "vfmadd" in line]
        assert all("zmm" in line for line in products)
        # A few sums may change registers, but none goes to memory and comes back within the loop.
        loops = block.split("vfmadd")
        inside = "vfmadd".join(loops[1:-1])
        assert not re.search(r"vmov\w+\s+%zmm\d+, [^\n]*%r[sb]p", inside), str(chosen)
