"""Choices a user may make about how programs are compiled. A program is kept for each choice, so changing one never runs old code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fgrad.errors import FgradTypeError, FgradValueError, describe, message

_YES, _NO = ("1", "on", "yes", "true"), ("0", "off", "no", "false")


def _variable(name: str, default: bool, meaning: str) -> bool:
    """What an environment variable says; unset or empty, the default. FgradValueError if it is neither yes nor no."""
    value = os.environ.get(name, "").strip().lower()
    if value not in ("", *_YES, *_NO):
        text = f"the environment variable {name} is {value!r}"
        raise FgradValueError(message("jit", text, f"set it to 1 ({meaning}) or 0"))
    return value in _YES if value else default


_outside: bool = _variable("FGRAD_WINOGRAD", True, "allow Winograd's convolution")
_allowed: ContextVar[bool] = ContextVar("fgrad.winograd", default=_outside)


def autotune_wanted(given: bool | None) -> bool:
    """Whether to measure plans: as `jit(autotune=...)` says, or else the environment variable `FGRAD_AUTOTUNE`.

    Raises:
        FgradValueError: the variable is neither yes nor no.
    """
    return _variable("FGRAD_AUTOTUNE", False, "measure plans") if given is None else given


def graphs_wanted() -> bool:
    """Whether programs on a GPU are replayed as CUDA graphs, as the environment variable `FGRAD_CUDA_GRAPHS` says; yes without it.

    Raises:
        FgradValueError: the variable is neither yes nor no.
    """
    return _variable("FGRAD_CUDA_GRAPHS", True, "replay programs as CUDA graphs")


winograd_allowed = _allowed.get
"""Whether compiled convolutions may use Winograd's algorithm here."""


@contextmanager
def winograd(allowed: bool) -> Iterator[None]:
    """Whether compiled float32 convolutions may use Winograd's algorithm: `with fgrad.winograd(False): y = step(x)`.

    Where a 3x3 convolution of stride one is faster by it (forward and both gradients), the compiler uses F(4x4, 3x3) or
    F(2x2, 3x3) of Lavin & Gray (2015), with a quarter or four ninths of the multiplications. The root-mean-square error relative to that
    of the result is below 5e-6 for up to 2048 channels, about twice that of a direct sum for the first and like it for the
    second (measured: 0.8e-6 and 0.3e-6 at 64 channels, direct 0.4e-6). An infinity or NaN in the input makes the
    whole 4x4 tile of outputs NaN rather than the nine outputs it belongs to.

    It counts where a jitted function is called; each function is compiled once for either choice. Outside any `with` the environment
    variable `FGRAD_WINOGRAD` decides (`0`: not allowed), else it is allowed. float64 and eager execution never use it.

    Raises:
        FgradTypeError: `allowed` is not a bool.
    """
    if not isinstance(allowed, bool):
        raise FgradTypeError(message("winograd", f"allowed is {describe(allowed)}", "use True or False"))
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


PRECISIONS = ("float32", "tf32", "bf16")
_precision: ContextVar[str] = ContextVar("fgrad.matmul_precision", default="float32")
matmul_precision_here = _precision.get
"""How products of float32 arrays are computed on a GPU here."""


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """How products and convolutions of float32 arrays are computed on a GPU: `with fgrad.matmul_precision("tf32"): y = step(x)`.

    "float32" (the default): in float32. "tf32": on tensor cores, operands rounded to TF32 (10 bits of fraction instead of 23).
    "bf16": on tensor cores, operands rounded to bfloat16 (7 bits). Sums are float32 in all three. It counts where a
    function is called; programs are compiled once for each choice. The CPU computes in float32 always.

    Raises:
        FgradValueError: `precision` is none of the three.
    """
    if precision not in PRECISIONS:
        text = f"precision is {describe(precision)}"
        raise FgradValueError(message("matmul_precision", text, f"use one of {', '.join(PRECISIONS)}"))
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


_host_ops: ContextVar[bool] = ContextVar("fgrad.host_ops", default=False)
host_ops_allowed = _host_ops.get
"""Whether programs on a GPU may leave operations without a kernel to NumPy here."""


@contextmanager
def host_ops(allowed: bool) -> Iterator[None]:
    """Whether a program on a GPU may leave what has no kernel there (sorting, linear algebra, FFT, complex numbers) to NumPy.

    Each such operation then waits for the device, copies its operands to the CPU and its results back. Without it (the
    default) it is an error that names the operation and your line: nothing is copied silently.

    Raises:
        FgradTypeError: `allowed` is not a bool.
    """
    if not isinstance(allowed, bool):
        raise FgradTypeError(message("host_ops", f"allowed is {describe(allowed)}", "use True or False"))
    token = _host_ops.set(allowed)
    try:
        yield
    finally:
        _host_ops.reset(token)
