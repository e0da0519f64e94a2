"""The contraction engine against its definition, NumPy, and PyTorch."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys

import ml_dtypes
import numpy as np
import pytest

from fgrad.codegen.contraction import (
    Axis,
    Contraction,
    Dim,
    Operand,
    conv_input_grad_spec,
    conv_output_spatial,
    conv_spec,
    conv_weight_grad_spec,
    dot_general_spec,
)
from fgrad.codegen.planning import candidates, finish, plan
from fgrad.codegen.standalone import compile_contraction
from fgrad.codegen.target import describe, host

BF16 = np.dtype(ml_dtypes.bfloat16)
WIDTHS = [16, 32, 64]
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def evaluate(spec: Contraction, lhs: np.ndarray, rhs: np.ndarray, out: np.ndarray) -> None:
    """The definition: gather both operands over all of (batch, m, n, k), multiply, sum. ``out`` is flat, in place."""
    extents = spec.extents
    acc = np.float64 if spec.out.dtype.kind not in "iub" else spec.out.dtype

    def grid(names):
        shape = [extents[name] for name in names]
        return dict(zip(names, np.indices(shape))) if names else {}

    def read(operand: Operand, groups, memory):
        names = [d.name for group in groups for d in group]
        index = grid(names)
        shape = tuple(extents[name] for name in names)
        address = np.full(shape, operand.offset)
        exists = np.ones(shape, bool)
        for axis in operand.axes:
            p = np.full(shape, axis.offset)
            for name, coef in axis.coefs:
                p = p + coef * index[name]
            exists &= p % axis.divisor == 0
            p = p // axis.divisor
            if axis.size is not None:
                exists &= (p >= 0) & (p < axis.size)
            address = address + p * axis.stride
        values = np.zeros(shape, acc)
        values[exists] = memory[address[exists]].astype(acc)
        return names, values

    letters = dict(zip(extents, itertools.chain("abcdefghijklmnopqrstuvwxyz")))
    lhs_names, left = read(spec.lhs, (spec.batch, spec.m, spec.k), lhs)
    rhs_names, right = read(spec.rhs, (spec.batch, spec.n, spec.k), rhs)
    names = [d.name for d in spec.batch + spec.m + spec.n]
    text = "{},{}->{}".format(
        *("".join(letters[n] for n in group) for group in (lhs_names, rhs_names, names))
    )
    result = np.einsum(text, left, right, optimize=acc == np.float64)
    index = grid(names)
    base, strides = spec.out.strides()
    address = np.full(result.shape, base)
    for name in names:
        address = address + index[name] * strides[name]
    out[address.reshape(-1)] = result.reshape(-1).astype(spec.out.dtype)


def random(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0 if dtype.kind == "u" else -9, 9, shape).astype(dtype)
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


def guarded(size, dtype):
    """An array between two regions that must not change."""
    whole = np.full(size + 128, 77, dtype)
    return whole, whole[64 : 64 + size]


def fenced(array, *, at_end):
    """A copy of an array that touches a page which may not be read: a stray access kills the process at once."""
    if sys.platform != "linux":
        return array
    page = mmap.PAGESIZE
    size = -(-max(array.nbytes, 1) // page) * page
    region = mmap.mmap(-1, size + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for edge in (address, address + page + size):
        assert protect(ctypes.c_void_p(edge), ctypes.c_size_t(page), 0) == 0
    start = page + (size - array.nbytes if at_end else 0)
    view = np.frombuffer(region, array.dtype, array.size, start).reshape(array.shape)
    view[...] = array
    return view


def target_of(width):
    return (
        host().with_vector_bytes(width)
        if width <= host().vector_bytes
        else pytest.skip("wider than this machine")
    )


def check(spec, lhs, rhs, expected, width):
    whole, out = guarded(expected.size, spec.out.dtype)
    compiled = compile_contraction(spec, target_of(width))
    if lhs.flags.c_contiguous and rhs.flags.c_contiguous:
        compiled.run(out, fenced(lhs, at_end=False), fenced(rhs, at_end=False))
        lhs, rhs = fenced(lhs, at_end=True), fenced(rhs, at_end=True)
    compiled.run(out, lhs, rhs)
    assert (whole[:64] == 77).all() and (whole[64 + expected.size :] == 77).all(), (
        "wrote outside of the output"
    )
    got, expected = out.astype(np.float64), np.asarray(expected).reshape(-1).astype(np.float64)
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    tolerance = TOLERANCE.get(spec.out.dtype.name, 0)
    if spec.lhs.dtype != np.float64 or spec.rhs.dtype != np.float64:
        tolerance = max(tolerance, 2e-5) if spec.out.dtype.kind not in "iu" else 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale, err_msg=str(compiled.plan))


MATMULS = [
    (1, 1, 1), (1, 6, 8), (1, 784, 128), (7, 1, 9), (3, 5, 2), (6, 64, 75), (14, 33, 32), (17, 100, 130),
    (64, 31, 10), (4, 400, 120), (100, 3, 100), (5, 1000, 3), (61, 67, 71), (33, 700, 47), (2, 2000, 5), (1, 50, 1),
    (40, 1, 1), (1, 1, 40), (130, 600, 140),
]  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("m,k,n", MATMULS)
def test_matmul_every_orientation(m, k, n, width):
    for flip_lhs in (False, True):
        for flip_rhs in (False, True) if width == WIDTHS[m % 3] else (not flip_lhs,):
            lhs = random((k, m) if flip_lhs else (m, k), np.float32, 1)
            rhs = random((n, k) if flip_rhs else (k, n), np.float32, 2)
            numbers = (((0,) if flip_lhs else (1,), (1,) if flip_rhs else (0,)), ((), ()))
            spec = dot_general_spec(lhs.shape, rhs.shape, numbers, np.float32, np.float32, np.float32)
            left, right = (lhs.T if flip_lhs else lhs), (rhs.T if flip_rhs else rhs)
            check(spec, lhs, rhs, left.astype(np.float64) @ right.astype(np.float64), width)


DTYPES = [
    ("float64", "float64", "float64"), ("float32", "float32", "float64"), ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "bfloat16", "float32"), ("float16", "float16", "float16"), ("bfloat16", "float32", "float32"),
    ("float16", "float32", "float32"), ("int32", "int32", "int32"), ("int8", "int8", "int32"),
    ("uint8", "uint8", "uint16"), ("int64", "int64", "int64"), ("int16", "uint8", "int32"),
]  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("types", DTYPES, ids=lambda t: "-".join(t))
def test_matmul_dtypes(types, width):
    lhs_type, rhs_type, out_type = (BF16 if t == "bfloat16" else np.dtype(t) for t in types)
    for m, k, n in [(9, 20, 33), (1, 70, 5), (30, 600, 70), (3, 33, 2)]:
        lhs, rhs = random((m, k), lhs_type, 3), random((k, n), rhs_type, 4)
        spec = dot_general_spec((m, k), (k, n), (((1,), (0,)), ((), ())), lhs_type, rhs_type, out_type)
        wide = np.int64 if out_type.kind in "iu" else np.float64
        check(spec, lhs, rhs, (lhs.astype(wide) @ rhs.astype(wide)).astype(out_type), width)


DOT_GENERAL = [
    ((3, 4, 5), (3, 5, 6), (((2,), (1,)), ((0,), (0,))), "abc,acd->abd"),
    ((4, 3, 5), (5, 6, 3), (((2,), (0,)), ((1,), (2,))), "bac,cda->abd"),
    ((2, 3, 4, 5), (4, 7, 3), (((1, 2), (2, 0)), ((), ())), "abcd,ceb->ade"),
    ((2, 3, 4, 5), (5, 3, 2, 6), (((3,), (0,)), ((0, 1), (2, 1))), "abcd,dbae->abce"),
    ((4,), (4,), (((0,), (0,)), ((), ())), "a,a->"),
    ((4,), (5,), (((), ()), ((), ())), "a,b->ab"),
    ((4, 3), (4, 3), (((), ()), ((0, 1), (0, 1))), "ab,ab->ab"),
    ((17, 40), (17, 40), (((0,), (0,)), ((), ())), "ab,ac->bc"),
    ((), (), (((), ()), ((), ())), ",->"),
    ((2, 0), (0, 3), (((1,), (0,)), ((), ())), "ab,bc->ac"),
    ((0, 2), (2, 3), (((1,), (0,)), ((), ())), "ab,bc->ac"),
]  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", DOT_GENERAL, ids=lambda c: c[3])
def test_dot_general(case, width):
    lhs_shape, rhs_shape, numbers, text = case
    lhs, rhs = random(lhs_shape, np.float32, 5), random(rhs_shape, np.float32, 6)
    spec = dot_general_spec(lhs_shape, rhs_shape, numbers, np.float32, np.float32, np.float32)
    check(spec, lhs, rhs, np.einsum(text, lhs.astype(np.float64), rhs.astype(np.float64)), width)


def test_dot_general_reads_strided_operands():
    base = random((40, 60), np.float32, 7)
    lhs, rhs = base[::2, 1::3], base[3:23, ::2]
    step = base.itemsize
    spec = dot_general_spec(
        lhs.shape, rhs.shape, (((1,), (0,)), ((), ())), np.float32, np.float32, np.float32,
        [s // step for s in lhs.strides], [s // step for s in rhs.strides],
    )  # fmt: skip
    check(spec, lhs, rhs, lhs.astype(np.float64) @ rhs.astype(np.float64), 32)


CONVS = [
    # x, w, strides, padding, dilation, groups
    ((4, 3, 12, 13), (6, 3, 5, 5), (1, 1), [(0, 0), (0, 0)], (1, 1), 1),
    ((2, 3, 20, 20), (8, 3, 3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), 1),
    ((2, 4, 9, 11), (6, 2, 3, 2), (2, 3), [(0, 2), (1, 0)], (1, 2), 2),
    ((1, 6, 10, 10), (6, 1, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 6),
    ((3, 5, 17), (4, 5, 4), (3,), [(2, 1)], (2,), 1),
    ((2, 2, 5, 6, 7), (3, 2, 2, 3, 2), (1, 2, 1), [(1, 0), (0, 1), (1, 1)], (1, 1, 2), 1),
    ((2, 16, 8, 8), (40, 16, 1, 1), (1, 1), [(0, 0), (0, 0)], (1, 1), 1),
    ((2, 16, 9, 9), (8, 16, 1, 1), (2, 2), [(0, 0), (0, 0)], (1, 1), 1),
    ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), [(0, 0), (0, 0)], (1, 1), 1),
    ((2, 1, 4, 4), (3, 1, 7, 7), (1, 1), [(3, 3), (3, 3)], (1, 1), 1),
    ((3, 32, 13, 13), (64, 32, 3, 3), (1, 1), [(0, 0), (0, 0)], (1, 1), 1),
    ((2, 3, 5, 5), (4, 3, 3, 3), (4, 4), [(0, 0), (0, 0)], (1, 1), 1),
    ((2, 3, 40, 50), (5, 3, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1),
]


def conv_specs(case, dtype):
    x_shape, w_shape, strides, padding, dilation, groups = case
    spatial = conv_output_spatial(x_shape[2:], w_shape[2:], strides, padding, dilation)
    y_shape = (x_shape[0], w_shape[0], *spatial)
    rest = (strides, padding, dilation, groups, dtype)
    return (
        y_shape,
        conv_spec(x_shape, w_shape, *rest),
        conv_input_grad_spec(y_shape, w_shape, x_shape[2:], *rest),
        conv_weight_grad_spec(x_shape, y_shape, w_shape[2:], *rest),
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", CONVS, ids=lambda c: "-".join("x".join(map(str, s)) for s in c[:2]))
def test_convolution_and_its_gradients_against_torch(case, width):
    torch = pytest.importorskip("torch")
    x_shape, w_shape, strides, padding, dilation, groups = case
    y_shape, forward, input_grad, weight_grad = conv_specs(case, np.float32)
    x, w, g = random(x_shape, np.float32, 8), random(w_shape, np.float32, 9), random(y_shape, np.float32, 10)
    xt = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    wt = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    flat = [side for pair in reversed(padding) for side in pair]
    conv = (torch.conv1d, torch.conv2d, torch.conv3d)[len(strides) - 1]
    y = conv(torch.nn.functional.pad(xt, flat), wt, None, strides, 0, dilation, groups)
    y.backward(torch.tensor(g, dtype=torch.float64))
    assert tuple(y.shape) == y_shape
    check(forward, w, x, y.detach().numpy(), width)
    check(input_grad, w, g, xt.grad.numpy(), width)
    check(weight_grad, g, x, wt.grad.numpy(), width)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int32"])
@pytest.mark.parametrize("index", [1, 2, 4])
def test_convolution_dtypes_against_the_definition(dtype, index):
    dtype = BF16 if dtype == "bfloat16" else np.dtype(dtype)
    case = CONVS[index]
    y_shape, *specs = conv_specs(case, dtype)
    x, w, g = random(case[0], dtype, 8), random(case[1], dtype, 9), random(y_shape, dtype, 10)
    for spec, lhs, rhs, shape in zip(specs, (w, w, g), (x, g, x), (y_shape, case[0], case[1])):
        expected = np.zeros(int(np.prod(shape)), dtype)
        evaluate(spec, lhs.reshape(-1), rhs.reshape(-1), expected)
        check(spec, lhs, rhs, expected, host().vector_bytes)


def some_specs():
    def matmul(m, k, n, numbers=(((1,), (0,)), ((), ()))):
        lhs, rhs = (
            ((k, m) if numbers[0][0] == (0,) else (m, k)),
            ((n, k) if numbers[0][1] == (1,) else (k, n)),
        )
        return dot_general_spec(lhs, rhs, numbers, np.float32, np.float32, np.float32), lhs, rhs, (m, n)

    yield matmul(37, 45, 83)
    yield matmul(23, 1100, 40)
    yield matmul(19, 41, 33, (((0,), (1,)), ((), ())))
    yield matmul(50, 20, 9, (((1,), (1,)), ((), ())))
    for index in (0, 1, 2, 5):
        case = CONVS[index]
        y_shape, *specs = conv_specs(case, np.float32)
        x_shape, w_shape = case[:2]
        yield from zip(
            specs, (w_shape, w_shape, y_shape), (x_shape, y_shape, x_shape), (y_shape, x_shape, w_shape)
        )


@pytest.mark.parametrize("index", range(16))
def test_plans_that_were_not_chosen_compute_the_same(index):
    """The cost model takes one of some hundred plans; all of them must be right."""
    spec, lhs_shape, rhs_shape, out_shape = list(some_specs())[index]
    lhs, rhs = random(lhs_shape, np.float32, 11), random(rhs_shape, np.float32, 12)
    expected = np.zeros(int(np.prod(out_shape)), np.float32)
    evaluate(spec, lhs.reshape(-1), rhs.reshape(-1), expected)
    scale = float(np.abs(expected).max())
    rng = np.random.default_rng(index)
    target = target_of(min(WIDTHS[index % 3], host().vector_bytes))
    every = list(candidates(spec, target))
    kinds = {}
    for candidate in every:
        _, chosen, fields = candidate
        flags = [fields.get(f) for f in ("path", "lhs_packed", "rhs_packed", "m_overlap", "n_overlap")]
        kinds.setdefault((chosen.swapped, len(chosen.spec.batch), *flags), []).append(candidate)
    for group in kinds.values():
        other = finish(*group[rng.integers(len(group))])
        whole, out = guarded(expected.size, np.float32)
        compile_contraction(spec, target, other).run(out, fenced(lhs, at_end=True), fenced(rhs, at_end=True))
        np.testing.assert_allclose(out, expected, rtol=0, atol=3e-5 * scale, err_msg=str(other))
        assert (whole[:64] == 77).all() and (whole[64 + expected.size :] == 77).all(), str(other)


def test_empty_batches():
    case = ((0, 3, 8, 8), (4, 3, 3, 3), (1, 1), [(0, 0), (0, 0)], (1, 1), 1)
    y_shape, forward, _, weight_grad = conv_specs(case, np.float32)
    x, w, g = (np.zeros(s, np.float32) for s in (case[0], case[1], y_shape))
    check(forward, w, x, np.zeros(y_shape), 32)
    check(weight_grad, g, x, np.zeros(case[1]), 32)


def random_case(seed):
    """A contraction drawn at random: operand axes shared by dims, borders, divisors, negative steps, gaps in out."""
    rng = np.random.default_rng(seed)
    groups = [
        [Dim(f"{p}{i}", int(rng.choice([1, 2, 3, 5, 18]))) for i in range(rng.integers(0, 3))] for p in "bmnk"
    ]
    batch, m, n, k = (tuple(g) for g in groups)
    extents = {d.name: d.extent for g in groups for d in g}

    def operand(dims):
        dims = list(dims)
        rng.shuffle(dims)
        axes, stride = [], 1
        while dims:
            taken = [dims.pop() for _ in range(min(len(dims), int(rng.integers(1, 3))))]
            coefs = tuple((d.name, int(rng.choice([1, 1, 2, -1]))) for d in taken)
            offset = int(rng.integers(-2, 4)) - sum(min(0, c * (extents[d] - 1)) for d, c in coefs)
            divisor = int(rng.choice([1, 1, 2, 3]))
            size = int(rng.integers(1, 8))
            axes.append(Axis(coefs, stride, offset, divisor, size))
            stride *= size
        return Operand(np.float32, tuple(axes), int(rng.integers(0, 3))), stride + 3

    lhs, lhs_size = operand(batch + m + k)
    rhs, rhs_size = operand(batch + n + k)
    outs = list(batch + m + n)
    rng.shuffle(outs)
    axes, stride = [], int(rng.choice([1, 1, 2]))
    for d in outs:
        axes.append(Axis(((d.name, 1),), stride))
        stride *= d.extent
    return Contraction(batch, m, n, k, lhs, rhs, Operand(np.float32, tuple(axes))), lhs_size, rhs_size, stride


@pytest.mark.parametrize("seed", range(60))
def test_random_descriptions(seed):
    spec, lhs_size, rhs_size, out_size = random_case(seed)
    lhs, rhs = random(lhs_size, np.float32, seed), random(rhs_size, np.float32, seed + 1)
    expected = np.full(out_size, 77, np.float32)
    evaluate(spec, lhs, rhs, expected)
    _, out = guarded(out_size, np.float32)
    compile_contraction(spec, target_of(WIDTHS[seed % 3])).run(out, lhs, rhs)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_nan_and_infinity_stay_in_their_rows_and_columns():
    lhs, rhs = random((20, 30), np.float32, 1), random((30, 37), np.float32, 2)
    lhs[3, 4], rhs[5, 36] = np.nan, np.inf
    spec = dot_general_spec(
        lhs.shape, rhs.shape, (((1,), (0,)), ((), ())), np.float32, np.float32, np.float32
    )
    _, out = guarded(20 * 37, np.float32)
    compile_contraction(spec).run(out, lhs, rhs)
    bad = ~np.isfinite(out.reshape(20, 37))
    assert bad[3].all() and bad[:, 36].all() and bad.sum() == 20 + 37 - 1


def test_targets():
    x86 = {"avx2": True, "fma": True, "f16c": True}
    assert describe("haswell", x86, "x86_64", l1=32768, l2=262144).lanes(4) == 8
    assert describe("x86-64", {}, "AMD64", l1=32768, l2=262144).lanes(8) == 2
    neon = describe("apple-m1", {"neon": True}, "arm64", l1=65536, l2=4 << 20)
    assert (neon.lanes(4), neon.registers, neon.fma, neon.masked_loads) == (4, 32, True, False)
    wide = describe(
        "znver4", {f"avx512{x}": True for x in ("f", "vl", "bw", "dq")}, "x86_64", l1=32768, l2=1 << 20
    )
    assert wide.with_vector_bytes(32).registers == 16
    with pytest.raises(ValueError, match="16, 32 or 64"):
        wide.with_vector_bytes(24)


def test_plans_print_what_they_do():
    spec = conv_specs(CONVS[0], np.float32)[1]
    text = str(plan(spec, host()))
    assert "outer" in text and "m=6" in text and "workspace" in text
    assert plan(spec, host()) == plan(spec, host()) and hash(spec) == hash(
        conv_specs(CONVS[0], np.float32)[1]
    )


def test_errors_name_the_call():
    with pytest.raises(
        ValueError, match="dot_general: contracted dimensions differ: \\(3,\\) of lhs and \\(4,\\) of rhs"
    ):
        dot_general_spec((2, 3), (4, 5), (((1,), (0,)), ((), ())), np.float32, np.float32, np.float32)
    with pytest.raises(
        ValueError, match="conv: the kernel takes 2 channels a group, times groups=1; the input has 3"
    ):
        conv_spec((1, 3, 8, 8), (4, 2, 3, 3), (1, 1), [(0, 0)] * 2, (1, 1), 1, np.float32)
    with pytest.raises(NotImplementedError, match="int32"):
        spec = dot_general_spec((2, 3), (3, 5), (((1,), (0,)), ((), ())), np.int32, np.float32, np.float32)
        compile_contraction(spec)
