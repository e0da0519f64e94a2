"""What the CPU code generator knows of the machine that it writes for."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from functools import lru_cache

from fgrad.errors import FgradValueError, message

_X86 = {"x86_64", "amd64", "i386", "i686"}


@dataclass(frozen=True)
class TargetInfo:
    """A CPU: the vector unit, the caches, and the names that LLVM knows it by.

    ``vector_bytes`` is the width that kernels are written in (16, 32 or 64), ``registers`` the number of vector
    registers at that width. ``masked_loads`` and ``masked_stores`` say that these are single fast instructions
    (AVX2 has both, but its stores are slow on some processors and are not used).
    """

    cpu: str
    features: str
    vector_bytes: int
    registers: int
    fma: bool
    masked_loads: bool
    masked_stores: bool
    half: bool
    l1: int = 32 * 1024
    l2: int = 512 * 1024
    rounds: bool = True  # to integers, in one instruction
    forced: bool = False  # by FGRAD_TARGET: every function is then compiled for `cpu` and `features` alone
    winograd: bool = (
        True  # whether convolutions may be computed by Winograd's algorithm, which rounds differently
    )

    def lanes(self, itemsize: int) -> int:
        """Elements of ``itemsize`` bytes in one vector."""
        return max(1, self.vector_bytes // itemsize)

    def with_vector_bytes(self, vector_bytes: int) -> TargetInfo:
        """The same machine restricted to narrower vectors (how a test runs the code meant for another CPU).

        16 bytes stands for SSE or NEON (no masks), 32 for AVX2 (16 registers), 64 for AVX-512.
        """
        if vector_bytes not in (16, 32, 64):
            raise ValueError(f"TargetInfo: vector_bytes must be 16, 32 or 64, got {vector_bytes}")
        registers = {16: self.registers if self.vector_bytes == 16 else 16, 32: 16, 64: 32}[vector_bytes]
        return replace(
            self,
            vector_bytes=vector_bytes,
            registers=registers,
            masked_loads=vector_bytes > 16,
            masked_stores=vector_bytes > 32,
        )


def _of_cache(index: int, what: str) -> str:
    with open(f"/sys/devices/system/cpu/cpu0/cache/index{index}/{what}", encoding="ascii") as file:
        return file.read().strip()


def _cache_bytes(level: int, default: int) -> int:
    for index in range(8):
        try:
            if int(_of_cache(index, "level")) != level or _of_cache(index, "type") == "Instruction":
                continue
            text = _of_cache(index, "size")
            return int(text.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
        except (OSError, ValueError):
            continue
    return default


def describe(cpu: str, features: dict[str, bool], machine: str, *, l1: int, l2: int) -> TargetInfo:
    """The target for an LLVM CPU name, its feature flags and a machine name such as ``x86_64`` or ``arm64``."""

    def has(*names: str) -> bool:
        return all(features.get(name, False) for name in names)

    flags = ",".join(("+" if on else "-") + name for name, on in sorted(features.items()))
    if machine.lower() in _X86:
        if has("avx512f", "avx512vl", "avx512bw", "avx512dq"):
            return TargetInfo(cpu, flags, 64, 32, True, True, True, True, l1, l2)
        if has("avx2", "fma"):
            return TargetInfo(cpu, flags, 32, 16, True, True, False, has("f16c"), l1, l2)
        return TargetInfo(cpu, flags, 16, 16, has("fma"), False, False, has("f16c"), l1, l2, has("sse4.1"))
    neon = machine.lower() in {"arm64", "aarch64"}
    return TargetInfo(cpu, flags, 16, 32 if neon else 16, neon, False, False, neon, l1, l2)


_LEVEL_2 = ("cx16", "sahf", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2")
_LEVEL_3 = (*_LEVEL_2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_LEVELS = {
    "x86-64": ("sse2",),
    "x86-64-v2": _LEVEL_2,
    "x86-64-v3": _LEVEL_3,
    "x86-64-v4": (*_LEVEL_3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}


def level(name: str, available: dict[str, bool], *, l1: int, l2: int) -> TargetInfo:
    """One of the levels of the x86-64 ABI, which a processor with the features `available` must reach.

    Raises FgradValueError for a name that is none, or more than there is.
    """
    variable = f"the environment variable FGRAD_TARGET is {name!r}"
    if name not in _LEVELS:
        problem = f"{variable}, none of {', '.join(_LEVELS)}"
        raise FgradValueError(message("jit", problem, "unset it to compile for this machine"))
    missing = [f for f in _LEVELS[name] if not available.get(f, False)]
    if missing:
        problem = f"{variable}: it needs {', '.join(missing)}, which this processor lacks"
        raise FgradValueError(message("jit", problem, "choose a lower level, or unset it"))
    return replace(describe(name, dict.fromkeys(_LEVELS[name], True), "x86_64", l1=l1, l2=l2), forced=True)


@lru_cache(maxsize=1)
def host() -> TargetInfo:
    """The machine that this process runs on, or what FGRAD_TARGET makes of it (x86-64, x86-64-v2, -v3 or -v4)."""
    import llvmlite.binding as llvm  # here, because it loads all of LLVM

    features = dict(llvm.get_host_cpu_features())
    l1, l2 = _cache_bytes(1, 32 * 1024), _cache_bytes(2, 512 * 1024)
    name = os.environ.get("FGRAD_TARGET")
    if name:
        return level(name, features, l1=l1, l2=l2)
    return describe(llvm.get_host_cpu_name(), features, platform.machine(), l1=l1, l2=l2)
