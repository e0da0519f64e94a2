"""Small programs for the driver that Python plays: y = 2x + 1, some times over."""

from __future__ import annotations

import ctypes

import numpy as np

from fgrad.codegen.cuda.launch import CudaKernel, LaunchStep, Param
from fgrad.codegen.program import Block, Buf, CopyStep, ForStep, Program

F32 = np.dtype("float32")
N = 24
ORDERS = [set(), {1}, {2}, {1, 2}]  # which streams are hasty


def view(address: int, n: int = N) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * n).from_address(address))


def scale(y, x):
    view(y)[:] = view(x) * 2


def shift(y, x):
    view(y)[:] = view(x) + 1


def kernel(name: str, params: int = 2) -> CudaKernel:
    names = ["y", "x"][:params]
    source = f"@cuda.jit\ndef {name}({', '.join(names)}):\n    {name}()\n"
    made = tuple(Param(p, F32, N, "out" if p == "y" else "in") for p in names)
    return CudaKernel(name, source, made, (2, 1, 1), (32, 1, 1))


def program(loops: int = 3) -> Program:
    """y = 2x + 1, `loops` times, with a temporary, a copy and a loop: 2·loops + 1 pieces of work."""
    x, y = Buf("x", (N,), F32, "input"), Buf("y", (N,), F32, "output")
    a, b = Buf("a", (N,), F32), Buf("b", (N,), F32)
    once = [LaunchStep(kernel("scale"), (b, a)), LaunchStep(kernel("shift"), (a, b))]
    body = [CopyStep(a, x), ForStep(loops, Block(once), ()), CopyStep(y, a)]
    return Program("f", (x,), (y,), Block(body), arena_bytes=2 * 128, offsets={a: 0, b: 128})


def expected(x: np.ndarray, loops: int = 3) -> np.ndarray:
    for _ in range(loops):
        x = x * 2 + 1
    return x


def fetched(driver, memory, n: int = N) -> np.ndarray:
    result = np.empty(n, F32)
    driver.download(result, memory.address)
    return result
