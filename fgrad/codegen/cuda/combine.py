"""The parts that threads have computed of a sum (or another fold), put together so that all of them know it.

    s = s + shuffle_xor(s, 1)                       the lanes of a warp exchange values: every one ends with the sum of all
    s = s + shuffle_xor(s, 2)
    if tid % 32 == 0:                               then the warps of a block, through shared memory
        float32_0_of_8[tid // 32] = s
    cuda.syncthreads()
    s = float32_0_of_8[0]
    for k in range(1, 8):
        s = s + float32_0_of_8[k]
    cuda.syncthreads()                              before the array is used again

The order is that of the text, whatever runs first, so the result is the same every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgrad import dtypes
from fgrad.codegen.cuda.analysis import ArgFold, Fold
from fgrad.codegen.cuda.layout import Team
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.cuda.text import CudaText, fold_text, type_name
from fgrad.codegen.loops import Kernel

FOLDS_AT_ONCE = 8  # through shared memory, of which there is little


@dataclass(frozen=True)
class _Exchange:
    """Threads where `who` holds put their part at `mine` of a shared array of `size`; each reads those at
    `first`, `first + step`, ...: `parts` of them."""

    size: int
    mine: str
    parts: int
    first: str = "0"
    step: int = 1
    who: str = ""

    @property
    def place(self) -> str:
        """Where part k is."""
        return "k" if self.step == 1 and self.first == "0" else f"{self.step} * k + {self.first}"


class Combining(CudaText):
    def __init__(self, kernel: Kernel, target: CudaTarget):
        super().__init__(kernel)
        self.target = target
        self.shared: dict[str, tuple[int, str]] = {}  # shared arrays: elements and their type
        self.features: set[str] = set()

    def line(self, pad: str, text: str) -> None:
        self.lines.append(pad + text)

    def passed_barrier(self) -> None:
        """All that was stored before is there for all threads of the block."""

    def combine(self, found: Sequence[Fold | ArgFold], pad: str, team: Team) -> None:
        """The parts of all lanes of a row, known to each of them afterwards."""
        if not found or team.lanes == 1:
            return
        if team.stride > 1:
            rows = team.rows
            self._exchange(found, pad, _Exchange(team.threads, "tid", team.lanes, f"tid % {rows}", rows))
            return
        width = min(team.lanes, self.target.warp)
        self.features.add("shuffle")
        mask = 1
        while mask < width:
            for f in found:
                names = [self.var(acc) for acc in f.accs]
                self._merge(f, names, [f"shuffle_xor({n}, {mask})" for n in names], pad)
            mask *= 2
        if team.lanes > width:
            warps = team.lanes // width
            self._exchange(found, pad, _Exchange(warps, f"tid // {width}", warps, who=f"tid % {width} == 0"))

    def _exchange(self, found: Sequence[Fold | ArgFold], pad: str, how: _Exchange) -> None:
        self.features.add("shared")
        for begin in range(0, len(found), FOLDS_AT_ONCE):
            self._exchange_some(found[begin : begin + FOLDS_AT_ONCE], pad, how)

    def _exchange_some(self, found: Sequence[Fold | ArgFold], pad: str, how: _Exchange) -> None:
        accs = [acc for f in found for acc in f.accs]
        slot = {acc: self.slot(acc.dtype, n, how.size) for n, acc in enumerate(accs)}
        inner = pad
        if how.who:
            self.line(pad, f"if {how.who}:")
            inner += "    "
        for acc in accs:
            self.line(inner, f"{slot[acc]}[{how.mine}] = {kept(self.var(acc), acc.dtype)}")
        self.line(pad, "cuda.syncthreads()")
        for acc in accs:
            self.line(pad, f"{self.var(acc)} = {known(f'{slot[acc]}[{how.first}]', acc.dtype)}")
        self.line(pad, f"for k in range(1, {how.parts}):")
        for f in found:
            others = [known(f"{slot[acc]}[{how.place}]", acc.dtype) for acc in f.accs]
            self._merge(f, [self.var(acc) for acc in f.accs], others, pad + "    ")
        self.line(pad, "cuda.syncthreads()")
        self.passed_barrier()

    def _merge(self, f: Fold | ArgFold, names: Sequence[str], others: Sequence[str], pad: str) -> None:
        """`names`, with `others` taken in."""
        if isinstance(f, Fold):
            self.line(pad, f"{names[0]} = {fold_text(f.op, names[0], others[0], f.acc.dtype)}")
            return
        best, where = names
        self.line(pad, f"other, place = {others[0]}, {others[1]}")

        def wins(a: str, b: str) -> str:
            text = f"{a} {'>' if f.largest else '<'} {b}"
            return (
                f"({text} or ({a} != {a} and {b} == {b}))" if dtypes.is_float(f.best.dtype) else f"({text})"
            )

        self.line(pad, f"if {wins('other', best)} or (place < {where} and not {wins(best, 'other')}):")
        self.line(pad, f"    {best}, {where} = other, place")

    def slot(self, dtype: np.dtype, n: int, size: int) -> str:
        """A shared array of `size` elements."""
        kind = "uint8" if dtype == dtypes.bool_ else type_name(dtype)
        name = f"{kind}_{n}_of_{size}"
        self.shared[name] = (size, kind)
        self.taken.add(name)
        return name


def kept(text: str, dtype: np.dtype) -> str:
    """A value as it is in shared memory."""
    return f"uint8({text})" if dtype == dtypes.bool_ else text


def known(text: str, dtype: np.dtype) -> str:
    """What is in shared memory as a value."""
    return f"({text} != 0)" if dtype == dtypes.bool_ else text
