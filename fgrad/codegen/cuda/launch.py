"""A kernel as text with the sizes of its launch, and the step of a program that launches it.

    @cuda.jit
    def fused_tanh(y, x):
        i = cuda.grid(1)
        while i < 1000:
            y[i] = tanh(x[i])
            i += cuda.gridsize(1)

Parameters are addresses of flat arrays, one for each; sizes, strides and offsets are constants in the text. The
names that a kernel uses beside `cuda` are those that `runtime.cuda.adapter` defines: the element types, `load4` and `store4`,
`shuffle_xor`, and the scalar operations of `codegen.scalar` by their names.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.codegen.program import Buf, Step
from fgrad.ir import Eqn

Sizes = tuple[int, int, int]

_COMMENT = re.compile(r"[ \t]*#.*")
# A name that is neither an attribute nor called: a variable, a type, or a word of Python's.
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?![\w(])")
_FIXED = frozenset(keyword.kwlist) | {"cuda", "inf", "nan", "boolean"} | {d.name for d in dtypes.ALL}


@dataclass(frozen=True)
class Param:
    """A flat array parameter: `size` elements of `dtype`. role: in, out or inout."""

    name: str
    dtype: np.dtype
    size: int
    role: str = "in"

    @property
    def stored(self) -> np.dtype:
        """The element type of the memory as kernels see it: bools are bytes, half-precision numbers their bits."""
        return stored_as(self.dtype)


def stored_as(dtype: np.dtype) -> np.dtype:
    if dtype == dtypes.bool_:
        return dtypes.uint8
    return dtypes.uint16 if dtype in (dtypes.float16, dtypes.bfloat16) else dtype


@dataclass(eq=False)
class CudaKernel:
    """`source` defines a function `name` of `params`, to be launched on `grid` blocks of `block` threads.

    `notes` name the graph equations it came from; they are comments in the source. `features` say what the text was
    made with (`vector`, `shuffle`, `mma`, ...), for tests and summaries.
    """

    name: str
    source: str
    params: tuple[Param, ...]
    grid: Sizes
    block: Sizes
    notes: tuple[str, ...] = ()
    features: frozenset[str] = field(default_factory=frozenset)
    functions: tuple[
        tuple[str, Any], ...
    ] = ()  # device functions of the user's that the source calls, by name

    @cached_property
    def text(self) -> str:
        """What tells this kernel from others, sizes of the launch included: equal texts mean equal code. Comments, and
        what the kernel and its variables are called, do not count."""
        numbers: dict[str, str] = {}

        def number(found: re.Match[str]) -> str:
            name = found[0]
            return name if name in _FIXED else numbers.setdefault(name, f"v{len(numbers)}")

        code = _COMMENT.sub("", self.source.replace(f"def {self.name}(", "def kernel("))
        params = " ".join(f"{p.dtype}*{p.size}{p.role}" for p in self.params)
        own = " ".join(f"{name}={id(function)}" for name, function in self.functions)
        return f"{self.grid} {self.block} {params} {own}\n{_NAME.sub(number, code)}"


@dataclass(eq=False)
class LaunchStep(Step):
    """Launch `kernel`; `args[i]` is bound to `kernel.params[i]`. `in_place` as in `KernelStep`."""

    kernel: CudaKernel
    args: tuple[Buf, ...]
    eqns: tuple[Eqn, ...] = ()
    in_place: tuple[tuple[Buf, Buf], ...] = ()

    @property
    def reads(self) -> tuple[Buf, ...]:  # type: ignore[override]
        return tuple(a for a, p in zip(self.args, self.kernel.params, strict=True) if p.role != "out")

    @property
    def writes(self) -> tuple[Buf, ...]:  # type: ignore[override]
        return tuple(a for a, p in zip(self.args, self.kernel.params, strict=True) if p.role != "in")
