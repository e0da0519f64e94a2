"""Kernels as machine code, kept on disk: Numba and NVIDIA's compiler run only for what no process has compiled before.

An entry's key is the kernel's text (sizes of the launch are in it), the compute capability, and what decides the code
beside them: the adapter's sources and the versions of the tools.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import os
from dataclasses import dataclass

from fgrad.codegen.cuda.launch import CudaKernel
from fgrad.runtime import cache
from fgrad.runtime.cuda.adapter import compile_ptx
from fgrad.runtime.cuda.linker import link

_TOOLS = (
    "numba-cuda",
    "numba",
    "llvmlite",
    "nvidia-nvvm",
    "nvidia-nvvm-cu12",
    "nvidia-cuda-nvcc-cu12",  # which has the compiler library in CUDA 12
    "nvidia-nvjitlink",
    "nvidia-nvjitlink-cu12",
)


@dataclass(frozen=True)
class Cubin:
    """Machine code, and the name of the kernel in it."""

    code: bytes
    entry: str


@functools.lru_cache(maxsize=1)
def _environment() -> str:
    digest = hashlib.sha256()
    folder = os.path.dirname(os.path.abspath(__file__))
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(name.encode() + b"\0" + file.read())
    missing = True
    for tool in _TOOLS:
        try:
            version = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        digest.update(f"{tool} {version}\n".encode())
        missing = missing and not (version and "nvjitlink" in tool)
    if missing:
        # Not from PyPI (conda, or NVIDIA's installer): the library says itself how old it is.
        digest.update(repr(importlib.import_module("cuda.bindings.nvjitlink").version()).encode())
    return digest.hexdigest()


def key_of(kernel: CudaKernel, capability: tuple[int, int]) -> str:
    """The name of the kernel's entry in the disk cache."""
    text = f"cuda {capability}\0{_environment()}\0{kernel.text}"
    return hashlib.sha256(text.encode()).hexdigest()


_kept: dict[str, Cubin] = {}  # what other processes compiled for this one, until it is loaded


def known(kernel: CudaKernel, capability: tuple[int, int]) -> Cubin | None:
    """The kernel's machine code, if some process has compiled it before."""
    if kernel.functions:  # what a user's function does is not in the text
        return None
    key = key_of(kernel, capability)
    if key in _kept:
        return _kept[key]
    found = cache.load(key)
    return None if found is None else Cubin(found.object_code, found.meta["entry"])


def remember(kernel: CudaKernel, capability: tuple[int, int], cubin: Cubin) -> None:
    """Keep machine code for this process, and on disk for others."""
    if kernel.functions:
        return
    key = key_of(kernel, capability)
    meta = {"entry": cubin.entry, "kernel": kernel.name, "capability": list(capability)}
    if not cache.store(key, meta, cubin.code):
        _kept[key] = cubin


def compiled(kernel: CudaKernel, capability: tuple[int, int]) -> Cubin:
    """The kernel's machine code, compiled now."""
    ptx, entry = compile_ptx(kernel, capability)
    return Cubin(link(ptx, capability).cubin, entry)


def cubin_of(kernel: CudaKernel, capability: tuple[int, int]) -> Cubin:
    """The kernel's machine code, from the disk cache or compiled now."""
    found = known(kernel, capability)
    if found is None:
        found = compiled(kernel, capability)
        remember(kernel, capability, found)
    return found
