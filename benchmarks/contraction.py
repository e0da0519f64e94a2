"""GFLOP/s of the contraction engine on one thread, beside NumPy's BLAS and PyTorch.

    python benchmarks/contraction.py [--only resnet,mnist] [--no-peers] [--verbose] [--json out.json] [--candidates 8]

Times are CPU time of the calling thread, the best of several runs, the candidates in turn. The convolution gradients are
PyTorch's own backward kernels, called directly. "of peak" is the engine's share of the machine's peak, measured in the same
run by a loop of fused multiply-adds on registers; "ratio" is its speed over that of the faster peer. FLOPs are those of the
definition less the taps that fall on padding or between strides, so no row is credited with multiplying zeros.
"""

from __future__ import annotations

# ruff: noqa: E402  (the number of BLAS threads is set before NumPy is imported)
import argparse
import ctypes
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from timing import save

from fgrad.codegen.contraction import (
    Contraction,
    conv_input_grad_spec,
    conv_output_spatial,
    conv_spec,
    conv_weight_grad_spec,
    dot_general_spec,
)
from fgrad.codegen.irtools import I64, Emitter
from fgrad.codegen.planning import candidates, finish
from fgrad.codegen.standalone import compile_contraction
from fgrad.codegen.target import host

MATMULS = {  # batch, m, k, n, transposed lhs, transposed rhs
    **{f"{s}^3": (1, s, s, s, False, False) for s in (64, 128, 256, 512, 1024, 2048)},
    "tall 4096x64 @ 64x64": (1, 4096, 64, 64, False, False),
    "skinny 64x4096 @ 4096x64": (1, 64, 4096, 64, False, False),
    "mlp forward 64x784 @ 784x128": (1, 64, 784, 128, False, False),
    "mlp forward, (out, in) weights": (1, 64, 784, 128, False, True),
    "mlp input gradient": (1, 64, 128, 784, False, True),
    "mlp input gradient, (out, in)": (1, 64, 128, 784, False, False),
    "mlp weight gradient": (1, 784, 64, 128, True, False),
    "mlp weight gradient, (out, in)": (1, 128, 64, 784, True, False),
    "lenet fc1 batch 4 forward": (1, 4, 400, 120, False, True),
    "lenet fc1 batch 4 input gradient": (1, 4, 120, 400, False, False),
    "lenet fc1 batch 4 weight gradient": (1, 120, 4, 400, True, False),
    "lenet fc3 batch 4 forward": (1, 4, 84, 10, False, True),
    "tiny 1x6 @ 6x8": (1, 1, 6, 8, False, False),
    "lstm input 32x64 @ 64x512": (1, 32, 64, 512, False, False),
    "lstm hidden 32x128 @ 128x512": (1, 32, 128, 512, False, False),
    "lstm hidden gradient": (1, 32, 512, 128, False, True),
    "lstm weight gradient": (1, 128, 32, 512, True, False),
    "gpt up 1024x128 @ 128x512": (1, 1024, 128, 512, False, False),
    "gpt up input gradient": (1, 1024, 512, 128, False, True),
    "gpt up weight gradient": (1, 128, 1024, 512, True, False),
    "gpt down 1024x512 @ 512x128": (1, 1024, 512, 128, False, False),
    "gpt down input gradient": (1, 1024, 128, 512, False, True),
    "gpt down weight gradient": (1, 512, 1024, 128, True, False),
    "gpt qkv 1024x128 @ 128x384": (1, 1024, 128, 384, False, False),
    "gpt qkv input gradient": (1, 1024, 384, 128, False, True),
    "gpt qkv weight gradient": (1, 128, 1024, 384, True, False),
    "gpt head 1024x128 @ 128x65": (1, 1024, 128, 65, False, False),
    "gpt head input gradient": (1, 1024, 65, 128, False, True),
    "gpt head weight gradient": (1, 128, 1024, 65, True, False),
    "attention scores 32x(128x32 @ 32x128)": (32, 128, 32, 128, False, True),
    "attention values 32x(128x128 @ 128x32)": (32, 128, 128, 32, False, False),
    "attention values 32x(128x128 @ 128x32) transposed": (32, 128, 128, 32, True, False),
}


@dataclass(frozen=True)
class Conv:
    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: int = 1
    pad: int = 0
    groups: int = 1
    dilation: int = 1


def _resnet() -> Iterator[tuple[str, Conv]]:
    for c, o, size, stride in (
        (3, 64, 32, 1),
        (64, 64, 32, 1),
        (64, 128, 32, 2),
        (128, 128, 16, 1),
        (128, 256, 16, 2),
        (256, 256, 8, 1),
        (256, 512, 8, 2),
        (512, 512, 4, 1),
    ):
        yield (
            f"resnet 3x3 {c}-{o}@{size}" + f"/{stride}" * (stride > 1),
            Conv((32, c, size, size), (o, c, 3, 3), stride, 1),
        )
        if stride > 1:
            yield f"resnet 1x1 {c}-{o}@{size}/2", Conv((32, c, size, size), (o, c, 1, 1), 2, 0)


CONVS = {
    "lenet conv1 batch 4": Conv((4, 3, 32, 32), (6, 3, 5, 5)),
    "lenet conv2 batch 4": Conv((4, 6, 14, 14), (16, 6, 5, 5)),
    "lenet conv1 batch 64": Conv((64, 3, 32, 32), (6, 3, 5, 5)),
    "lenet conv2 batch 64": Conv((64, 6, 14, 14), (16, 6, 5, 5)),
    "mnist conv1 batch 64": Conv((64, 1, 28, 28), (32, 1, 3, 3)),
    "mnist conv2 batch 64": Conv((64, 32, 13, 13), (64, 32, 3, 3)),
    "mnist conv2 at 26x26": Conv((64, 32, 26, 26), (64, 32, 3, 3)),
    **dict(_resnet()),
    "depthwise 3x3 128@16": Conv((32, 128, 16, 16), (128, 1, 3, 3), 1, 1, 128),
    "depthwise 3x3 64@32/2": Conv((32, 64, 32, 32), (64, 1, 3, 3), 2, 1, 64),
    "grouped 3x3 128@16 32 groups": Conv((32, 128, 16, 16), (128, 4, 3, 3), 1, 1, 32),
    "dilated 3x3 64-64@32": Conv((8, 64, 32, 32), (64, 64, 3, 3), 1, 2, 1, 2),
}
KINDS = ("forward", "input gradient", "weight gradient")


@dataclass
class Case:
    """A contraction with its data; ``peers`` makes the calls of other libraries, ``useful`` counts its FLOPs."""

    spec: Contraction
    out: np.ndarray
    lhs: np.ndarray
    rhs: np.ndarray
    expected: np.ndarray
    peers: dict[str, Callable[[], Any]]
    useful: int


def best_times(functions: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Smallest CPU seconds of one call of each function, measured in turn."""
    inner, best = {}, {}
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        function()
        inner[name] = max(1, int(2e-4 / max(time.perf_counter() - start, 1e-9)))
        best[name] = math.inf
    stop = time.perf_counter() + seconds * len(functions)
    rounds = 0
    while time.perf_counter() < stop or rounds < 3:
        rounds += 1
        for name, function in functions.items():
            start = time.thread_time_ns()
            for _ in range(inner[name]):
                function()
            best[name] = min(best[name], (time.thread_time_ns() - start) / inner[name] / 1e9)
    return best


def peak_gflops(target) -> float:
    """Independent multiply-adds on registers: the most that one core does."""
    native, chains, rounds = host(), 24, 1_000_000
    lanes = target.lanes(4)
    chains = min(chains, target.registers - 4)
    module = ir.Module("peak")
    pointer = ir.FloatType().as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer]), "kernel")
    builder = ir.IRBuilder(function.append_basic_block())
    e = Emitter(builder, target)
    vector = ir.VectorType(ir.FloatType(), lanes).as_pointer()
    where = builder.bitcast(function.args[0], vector)
    a, b = (builder.load(builder.gep(where, [I64(i)]), align=4) for i in range(2))
    sums = e.loop(rounds, lambda i, *sums: [e.multiply_add(a, b, s) for s in sums], [a] * chains)
    for i, value in enumerate(sums):
        builder.store(value, builder.gep(where, [I64(i)]), align=4)
    builder.ret_void()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(native.cpu, native.features, opt=3)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address("kernel"))
    data = np.zeros(chains * lanes, np.float32)
    took = best_times({"peak": lambda: run(data.ctypes.data)}, 0.5)["peak"]
    return rounds * chains * lanes * 2 / took / 1e9


def runner(compiled, out, lhs, rhs):
    function = compiled.function
    pointers = [a.ctypes.data for a in (out, lhs, rhs, compiled.workspace)]
    # ctypes itself takes most of a microsecond, which the smallest rows show.
    return lambda: function(*pointers)


def matmul(b, m, k, n, flip_lhs, flip_rhs) -> Case:
    import torch

    rng = np.random.default_rng(0)
    lead = () if b == 1 else (b,)
    lhs = rng.standard_normal((*lead, k, m) if flip_lhs else (*lead, m, k)).astype(np.float32)
    rhs = rng.standard_normal((*lead, n, k) if flip_rhs else (*lead, k, n)).astype(np.float32)
    d = len(lead)
    batch = tuple(range(d))
    numbers = (((d,) if flip_lhs else (d + 1,), (d + 1,) if flip_rhs else (d,)), (batch, batch))
    spec = dot_general_spec(lhs.shape, rhs.shape, numbers, np.float32, np.float32, np.float32)
    left = np.swapaxes(lhs, -1, -2) if flip_lhs else lhs
    right = np.swapaxes(rhs, -1, -2) if flip_rhs else rhs
    out = np.empty((*lead, m, n), np.float32)
    theirs, result = np.empty_like(out), torch.empty(out.shape)
    tensors = torch.from_numpy(left), torch.from_numpy(right)
    peers = {
        "numpy": lambda: np.matmul(left, right, out=theirs),
        "torch": lambda: torch.matmul(*tensors, out=result),
    }
    return Case(spec, out, lhs, rhs, left @ right, peers, spec.flops)


def useful_flops(c: Conv) -> int:
    """Multiplications of a convolution that meet an element of the input, times two."""
    total = c.x[0] * c.w[0] * c.w[1]
    for size, taps in zip(c.x[2:], c.w[2:]):
        (places,) = conv_output_spatial([size], [taps], [c.stride], [(c.pad, c.pad)], [c.dilation])
        total *= sum(
            0 <= y * c.stride + t * c.dilation - c.pad < size for y in range(places) for t in range(taps)
        )
    return 2 * total


def conv(kind: str, c: Conv) -> Case:
    import torch

    rng = np.random.default_rng(0)
    two = range(len(c.x) - 2)
    rest = (
        [c.stride for _ in two],
        [(c.pad, c.pad) for _ in two],
        [c.dilation for _ in two],
        c.groups,
        np.float32,
    )
    y_shape = (c.x[0], c.w[0], *conv_output_spatial(c.x[2:], c.w[2:], *rest[:3]))
    x, w, g = (rng.standard_normal(s).astype(np.float32) for s in (c.x, c.w, y_shape))
    if kind == "forward":
        spec, lhs, rhs, shape = conv_spec(c.x, c.w, *rest), w, x, y_shape
    elif kind == "input gradient":
        spec, lhs, rhs, shape = conv_input_grad_spec(y_shape, c.w, c.x[2:], *rest), w, g, c.x
    else:
        spec, lhs, rhs, shape = conv_weight_grad_spec(c.x, y_shape, c.w[2:], *rest), g, x, c.w
    xt, wt, gt = (torch.from_numpy(a) for a in (x, w, g))
    strides, pads, dilations = ([v] * 2 for v in (c.stride, c.pad, c.dilation))
    mask = [kind == "input gradient", kind == "weight gradient", False]
    arguments = (gt, xt, wt, None, strides, pads, dilations, False, [0, 0], c.groups, mask)
    call: Callable[[], Any] = lambda: torch.ops.aten.convolution_backward(*arguments)[0 if mask[0] else 1]
    if kind == "forward":
        call = lambda: torch.conv2d(xt, wt, None, strides, pads, dilations, c.groups)
    return Case(spec, np.empty(shape, np.float32), lhs, rhs, call().numpy(), {"torch": call}, useful_flops(c))


def check(case: Case, compiled) -> None:
    case.out.fill(np.nan)
    compiled.run(case.out, case.lhs, case.rhs)
    scale = float(np.abs(case.expected).max())
    np.testing.assert_allclose(
        case.out, case.expected, rtol=1e-3, atol=1e-3 * scale, err_msg=str(compiled.plan)
    )


def compare_candidates(case: Case, target, count: int, peak: float) -> None:
    """The cost model against the clock: the best plans of each kind, predicted and measured."""
    kinds: dict[tuple, list] = {}
    for candidate in candidates(case.spec, target):
        _, base, fields = candidate
        flags = ("path", "lhs_packed", "rhs_packed", "m_overlap", "n_overlap")
        starts = fields.get("starts", (0,))
        whole = all(s % 16 == 0 for s in starts)
        key = (base.swapped, base.spec.batch, whole, bool(base.lhs_spread), *(fields.get(f) for f in flags))
        kinds.setdefault(key, []).append(candidate)
    best = [sorted(group, key=lambda found: found[0])[:2] for group in kinds.values()]
    every = sorted((c for group in best for c in group), key=lambda found: found[0])[:count]
    for candidate in every:
        chosen = finish(*candidate)
        compiled = compile_contraction(case.spec, target, chosen)
        check(case, compiled)
        took = best_times({"": runner(compiled, case.out, case.lhs, case.rhs)}, 0.1)[""]
        ideal = case.useful / peak / 1e9
        cycles = case.useful / (2 * target.lanes(4))  # of an ideal machine, the model's unit
        print(
            f"      model {chosen.cycles / cycles:6.2f}  measured {took / ideal:6.2f} of the ideal: {chosen}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="rows whose name contains one of these (comma-separated)")
    parser.add_argument("--no-peers", action="store_true", help="measure the engine alone")
    parser.add_argument("--vector-bytes", type=int, default=host().vector_bytes, help="16, 32 or 64")
    parser.add_argument(
        "--no-winograd", action="store_true", help="only sums of products as they are defined"
    )
    parser.add_argument("--verbose", action="store_true", help="print each plan")
    parser.add_argument("--candidates", type=int, default=0, help="measure so many of the other plans, too")
    parser.add_argument("--seconds", type=float, default=0.15, help="for each measurement")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    target = host().with_vector_bytes(options.vector_bytes)
    target = replace(target, winograd=target.winograd and not options.no_winograd)
    peak = peak_gflops(target)
    print(f"peak of one core {peak:.0f} GFLOP/s")
    heads = ("plan ms", "build ms", "us", "GFLOP/s", "of peak", "numpy", "torch", "ratio")
    print(f"{'contraction':50}" + "".join(f"{head:>9}" for head in heads))
    cases: dict[str, Callable[[], Case]] = {
        name: lambda shape=shape: matmul(*shape) for name, shape in MATMULS.items()
    }
    for name, description in CONVS.items():
        for kind in KINDS:
            cases[f"{name} {kind}"] = lambda kind=kind, description=description: conv(kind, description)
    rows = []
    for name, make in cases.items():
        if not any(part in name for part in options.only.split(",")):
            continue
        case = make()
        compiled = compile_contraction(case.spec, target)
        check(case, compiled)
        ours = runner(compiled, case.out, case.lhs, case.rhs)
        peers = {} if options.no_peers else case.peers
        took = best_times({"fgrad": ours, **peers}, options.seconds)
        rates = {peer: case.useful / seconds / 1e9 for peer, seconds in took.items()}
        others = [rate for peer, rate in rates.items() if peer != "fgrad"]
        row = {
            "name": name,
            "plan_ms": 1e3 * compiled.plan_seconds,
            "build_ms": 1e3 * (compiled.emit_seconds + compiled.compile_seconds),
            "us": 1e6 * took["fgrad"],
            "gflops": rates["fgrad"],
            "of_peak": rates["fgrad"] / peak,
            "numpy_gflops": rates.get("numpy"),
            "torch_gflops": rates.get("torch"),
            "ratio": rates["fgrad"] / max(others) if others else None,
            "plan": str(compiled.plan),
        }
        rows.append(row)

        def shown(value, form):
            return " " * 9 if value is None else format(value, form)

        print(
            f"{name:50}{row['plan_ms']:9.1f}{row['build_ms']:9.1f}{row['us']:9.1f}{row['gflops']:9.1f}"
            f"{row['of_peak']:9.0%}{shown(row['numpy_gflops'], '9.1f')}{shown(row['torch_gflops'], '9.1f')}"
            f"{shown(row['ratio'], '9.2f')}",
            flush=True,
        )
        if options.verbose:
            print("    ", compiled.plan)
        if options.candidates:
            compare_candidates(case, target, options.candidates, peak)
    save(options.json, rows)


if __name__ == "__main__":
    main()
