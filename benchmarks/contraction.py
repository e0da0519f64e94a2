"""GFLOP/s of the contraction engine on one thread, beside NumPy's BLAS and PyTorch.

    python benchmarks/contraction.py [--only lenet] [--no-peers] [--verbose]

Every time is the best of several runs. The convolution gradients are PyTorch's own backward kernels, called directly.
The last column is the engine's share of the machine's peak, measured by a loop of fused multiply-adds on registers.
"""

from __future__ import annotations

# ruff: noqa: E402  (the number of BLAS threads is set before NumPy is imported)
import argparse
import ctypes
import os
import time

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from fgrad.codegen.contraction import (
    conv_input_grad_spec,
    conv_output_spatial,
    conv_spec,
    conv_weight_grad_spec,
    dot_general_spec,
)
from fgrad.codegen.irtools import I64, Emitter
from fgrad.codegen.standalone import compile_contraction
from fgrad.codegen.target import host

MATMULS = {  # m, k, n, transposed lhs, transposed rhs
    "512^3": (512, 512, 512, False, False),
    "1024^3": (1024, 1024, 1024, False, False),
    "mlp forward 64x784 @ 784x128": (64, 784, 128, False, False),
    "mlp forward, (out, in) weights": (64, 784, 128, False, True),
    "mlp input gradient": (64, 128, 784, False, True),
    "mlp input gradient, (out, in)": (64, 128, 784, False, False),
    "mlp weight gradient": (784, 64, 128, True, False),
    "mlp weight gradient, (out, in)": (128, 64, 784, True, False),
    "lenet fc1 batch 4 forward": (4, 400, 120, False, True),
    "lenet fc1 batch 4 input gradient": (4, 120, 400, False, False),
    "lenet fc1 batch 4 weight gradient": (120, 4, 400, True, False),
    "lenet fc3 batch 4 forward": (4, 84, 10, False, True),
    "tiny 1x6 @ 6x8": (1, 6, 8, False, False),
}
CONVS = {  # x shape, w shape
    "lenet conv1 batch 4": ((4, 3, 32, 32), (6, 3, 5, 5)),
    "lenet conv2 batch 4": ((4, 6, 14, 14), (16, 6, 5, 5)),
    "lenet conv1 batch 64": ((64, 3, 32, 32), (6, 3, 5, 5)),
    "lenet conv2 batch 64": ((64, 6, 14, 14), (16, 6, 5, 5)),
    "mnist conv1 batch 64": ((64, 1, 28, 28), (32, 1, 3, 3)),
    "mnist conv2 batch 64": ((64, 32, 13, 13), (64, 32, 3, 3)),
}


def best_time(function, seconds: float = 0.2) -> float:
    function()
    start = time.perf_counter()
    function()
    once = time.perf_counter() - start
    inner = max(1, int(2e-4 / max(once, 1e-9)))
    best, spent = np.inf, 0.0
    while spent < seconds:
        start = time.perf_counter()
        for _ in range(inner):
            function()
        took = time.perf_counter() - start
        best, spent = min(best, took / inner), spent + took
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
    return rounds * chains * lanes * 2 / best_time(lambda: run(data.ctypes.data), 1.0) / 1e9


def runner(compiled, out, lhs, rhs):
    function = compiled.function
    pointers = [a.ctypes.data for a in (out, lhs, rhs, compiled.workspace)]
    # ctypes itself takes most of a microsecond, so small kernels are called through a loop of their own.
    return lambda: function(*pointers)


def matmul(m, k, n, flip_lhs, flip_rhs):
    rng = np.random.default_rng(0)
    lhs = rng.standard_normal((k, m) if flip_lhs else (m, k)).astype(np.float32)
    rhs = rng.standard_normal((n, k) if flip_rhs else (k, n)).astype(np.float32)
    numbers = (((0,) if flip_lhs else (1,), (1,) if flip_rhs else (0,)), ((), ()))
    spec = dot_general_spec(lhs.shape, rhs.shape, numbers, np.float32, np.float32, np.float32)
    left, right = (lhs.T if flip_lhs else lhs), (rhs.T if flip_rhs else rhs)
    out = np.empty((m, n), np.float32)

    def peers():
        import torch

        result = torch.empty(m, n)
        tensors = torch.from_numpy(left), torch.from_numpy(right)
        yield lambda: np.matmul(left, right, out=out)
        yield lambda: torch.mm(*tensors, out=result)

    return spec, out, lhs, rhs, left @ right, peers


def conv(kind, x_shape, w_shape):
    rng = np.random.default_rng(0)
    rest = ((1, 1), [(0, 0), (0, 0)], (1, 1), 1, np.float32)
    y_shape = (x_shape[0], w_shape[0], *conv_output_spatial(x_shape[2:], w_shape[2:], *rest[:3]))
    x, w, g = (rng.standard_normal(s).astype(np.float32) for s in (x_shape, w_shape, y_shape))
    if kind == "forward":
        spec, lhs, rhs, shape = conv_spec(x_shape, w_shape, *rest), w, x, y_shape
    elif kind == "input gradient":
        spec, lhs, rhs, shape = conv_input_grad_spec(y_shape, w_shape, x_shape[2:], *rest), w, g, x_shape
    else:
        spec, lhs, rhs, shape = conv_weight_grad_spec(x_shape, y_shape, w_shape[2:], *rest), g, x, w_shape

    def call():
        import torch

        xt, wt, gt = (torch.from_numpy(a) for a in (x, w, g))
        if kind == "forward":
            return lambda: torch.conv2d(xt, wt)
        mask = [kind == "input gradient", kind == "weight gradient", False]
        arguments = (gt, xt, wt, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, mask)
        return lambda: torch.ops.aten.convolution_backward(*arguments)[0 if mask[0] else 1]

    def peers():
        yield None
        yield call()

    return spec, np.empty(shape, np.float32), lhs, rhs, call()().numpy() if call else None, peers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--no-peers", action="store_true", help="measure the engine alone")
    parser.add_argument("--vector-bytes", type=int, default=host().vector_bytes, help="16, 32 or 64")
    parser.add_argument("--verbose", action="store_true", help="print each plan")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    target = host().with_vector_bytes(options.vector_bytes)
    peak = peak_gflops(target)
    print(f"peak of one core {peak:.0f} GFLOP/s")
    print(
        f"{'contraction':48}{'compile ms':>11}{'us':>10}{'GFLOP/s':>9}{'numpy':>8}{'torch':>8}{'of peak':>9}"
    )
    cases = {name: lambda shape=shape: matmul(*shape) for name, shape in MATMULS.items()}
    for name, shapes in CONVS.items():
        for kind in ("forward", "input gradient", "weight gradient"):
            cases[f"{name} {kind}"] = lambda kind=kind, shapes=shapes: conv(kind, *shapes)
    for name, make in cases.items():
        if options.only not in name:
            continue
        spec, out, lhs, rhs, expected, peers = make()
        compiled = compile_contraction(spec, target)
        compiled.run(out, lhs, rhs)
        np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))
        took = best_time(runner(compiled, out, lhs, rhs))
        rates = []
        for peer in [] if options.no_peers else peers():
            rates.append(f"{spec.flops / best_time(peer) / 1e9:8.1f}" if peer else " " * 8)
        build = 1e3 * (compiled.emit_seconds + compiled.compile_seconds)
        rate = spec.flops / took / 1e9
        shown = "".join(rates) or " " * 16
        print(f"{name:48}{build:11.1f}{took * 1e6:10.2f}{rate:9.1f}{shown}{rate / peak:9.0%}")
        if options.verbose:
            print("    ", compiled.plan)


if __name__ == "__main__":
    main()
