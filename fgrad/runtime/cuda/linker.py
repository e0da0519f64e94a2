"""PTX to machine code, by NVIDIA's linker library: it needs neither a driver nor a GPU, and says what the code takes.

What the driver would compile PTX to itself depends on the driver's age; machine code made here runs on every driver of the
same major version of CUDA, and is what the disk cache keeps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fgrad.errors import FgradError, message, missing_extra


@dataclass(frozen=True)
class Linked:
    """`cubin` for one compute capability, and per thread: registers, and bytes of registers spilled to memory and of stack."""

    cubin: bytes
    registers: int
    spills: int
    stack: int
    shared: int  # bytes of shared memory a block


def link(ptx: str, capability: tuple[int, int]) -> Linked:
    """Machine code of one kernel.

    Raises:
        ImportError: NVIDIA's linker library is missing.
        FgradError: it does not know the GPU's compute capability, or refuses the kernel, with what it says.
    """
    try:
        from cuda.bindings import nvjitlink
    except ImportError:
        raise missing_extra("cuda-bindings", "cuda", "compiling for an NVIDIA GPU") from None
    try:
        handle = nvjitlink.create(3, [f"-arch=sm_{capability[0]}{capability[1]}", "-verbose", "-Xptxas=-v"])
    except nvjitlink.nvJitLinkError as error:
        text = f"the CUDA linker does not know compute capability {capability[0]}.{capability[1]}: {error}"
        raise FgradError(
            message("cuda", text, "install newer packages: pip install -U 'fgrad[cuda]'")
        ) from None
    except RuntimeError:  # what the bindings load with the first call is not there
        raise missing_extra("nvidia-nvjitlink", "cuda", "compiling for an NVIDIA GPU") from None
    try:
        data = ptx.encode()
        try:
            nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "kernel")
            nvjitlink.complete(handle)
        except nvjitlink.nvJitLinkError as error:
            log = _log(nvjitlink.get_error_log_size(handle), nvjitlink.get_error_log, handle)
            raise FgradError(message("cuda", f"the CUDA linker refused a kernel: {error}\n{log}")) from error
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        text = _log(nvjitlink.get_info_log_size(handle), nvjitlink.get_info_log, handle)
    finally:
        nvjitlink.destroy(handle)

    def number(pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, text))

    return Linked(
        bytes(cubin),
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        number(r"(\d+) bytes stack frame"),
        # (The linker's figure would add what the system keeps of each block for itself.)
        sum(int(n) for n in re.findall(r"\.shared \.align \d+ \.b8 \S+\[(\d+)\];", ptx)),
    )


def _log(size: int, get: Callable[[Any, bytearray], None], handle: Any) -> str:
    """A text of the linker's, which it writes into a buffer and ends by a zero."""
    if not size:
        return ""
    log = bytearray(size)
    get(handle, log)
    return log.rstrip(b"\0").decode(errors="replace").strip()
