"""Where the sums of a contraction go: the device function `put`, with the epilogue (`codegen.epilogue`) if there is one.

    @cuda.jit(device=True)
    def finish(s, x0):                                 # the epilogue of one sum
        return maximum((s + x0), float32(0.0))

    @cuda.jit(device=True)
    def put(y0, x0, b, m, n, s):                       # of four neighbours along n
        if m < 60:
            x0_0, x0_1, x0_2, x0_3 = load4(x0, n)
            y0_at = 128*m + n
            y_0 = finish(s[0], x0_0)
            ...
            store4(y0, y0_at, y_0, y_1, y_2, y_3)

A product kernel calls it with the indices b, m and n of its sums; the kernel that adds the parts of a cut k calls it with the one
flat index i of the output. Both are `indices` here: names, each with its dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgrad.codegen.contraction import Dim
from fgrad.codegen.cuda.addresses import Address, Level, address_of, aligned, levels, linear_text, sum_text
from fgrad.codegen.cuda.launch import Param
from fgrad.codegen.cuda.product_order import Cut, cut
from fgrad.codegen.cuda.staging import DEVICE
from fgrad.codegen.cuda.text import CudaText, from_stored, op_text, to_stored
from fgrad.codegen.epilogue import Epilogue
from fgrad.codegen.loops import Buffer, Kernel
from fgrad.codegen.program import Buf

Indices = Sequence[tuple[str, tuple[Dim, ...]]]  # the last one's last dimension is the one of neighbours


@dataclass(frozen=True)
class Place:
    """An array that `put` reads or writes at the element of a sum. `base` names a variable that its address begins at."""

    param: Param
    buf: Buf
    address: Address
    whole: bool  # starts at a multiple of 16 bytes
    base: str = ""


class FinishText(CudaText):
    """Prints the expressions of an epilogue: the sum is `s`, another array's element its parameter."""

    def __init__(self, kernel: Kernel, names: dict[Buffer, str]):
        super().__init__(kernel)
        self.names_of = names
        self.taken |= set(names.values())

    def load(self, buffer: Buffer, index: str) -> str:
        return self.names_of[buffer]


def finish_function(epilogue: Epilogue, names: dict[Buffer, str]) -> list[str]:
    """`finish(s, ...)`: the values to store for a sum `s` and the elements of the arrays read (`names`)."""
    kernel = epilogue.kernel
    product = kernel.buffers[epilogue.product]
    printer = FinishText(kernel, {product: "s", **names})
    scope: dict = {}
    results = [printer.expr(store.value, scope, "    ")[0] for store in epilogue.stores]
    value = results[0] if len(results) == 1 else f"({', '.join(results)})"
    return [
        DEVICE,
        f"def finish(s{''.join(', ' + n for n in names.values())}):  # the epilogue of one sum",
        *printer.lines,
        f"    return {value}",
    ]


@dataclass(frozen=True)
class Sink:
    """`product`: where the sums themselves are stored, if they are. `results` and `reads` are the epilogue's arrays; `held` is the
    dtype of a sum and `limits` the extents that the indices may be beyond; a caller has `most` neighbours."""

    indices: Indices
    held: np.dtype
    product: Place | None
    results: tuple[Place, ...] = ()
    reads: tuple[Place, ...] = ()
    epilogue: Epilogue | None = None
    limits: tuple[tuple[str, int], ...] = ()
    most: int = 4

    @property
    def places(self) -> tuple[Place, ...]:
        return (*((self.product,) if self.product else ()), *self.results, *self.reads)

    def _inner(self, place: Place) -> Level | None:
        found = levels(self.indices[-1][1], [place.address])
        return found[-1] if found else None

    @property
    def group(self) -> int:
        """Neighbours that are put at once: four if they have one address in every array, and steps from there."""
        if self.most < 4:
            return 1
        for place in self.places:
            inner = self._inner(place)
            if inner is None or inner.extent % 4:
                return 1
        return 4

    def vector(self, place: Place) -> bool:
        """Whether a group is one aligned access."""
        inner = self._inner(place)
        if self.group != 4 or inner is None or not place.whole:
            return False
        return place.address.stride(inner.name) == 1 and place.address.in_fours(inner.members)

    @property
    def own(self) -> list[str]:
        """Parameters before the indices."""
        return [*(p.param.name for p in self.places), *dict.fromkeys(p.base for p in self.places if p.base)]

    def call(self, *arguments: str) -> str:
        return f"put({', '.join((*self.own, *arguments))})"

    def function(self) -> list[str]:
        """The text of `put`, after `finish` if there is an epilogue."""
        lines: list[str] = []
        if self.epilogue:
            kernel = self.epilogue.kernel
            positions = [i for i in self.epilogue.extra if kernel.buffers[i].role == "in"]
            lines = finish_function(
                self.epilogue, {kernel.buffers[i]: p.param.name for i, p in zip(positions, self.reads)}
            )
            lines.append("")
        names = [name for name, _ in self.indices]
        what = "four neighbouring sums" if self.group == 4 else "one sum"
        lines += [DEVICE, f"def put({', '.join((*self.own, *names, 's'))}):  # store {what}"]
        limits = [f"{name} < {extent}" for name, extent in self.limits]
        pad = "    "
        if limits:
            lines.append(f"    if {' and '.join(limits)}:")
            pad += "    "
        lines += [pad + line for line in self._body()]
        return lines

    def _at(self, place: Place) -> str:
        digits = [
            (level, level.digit(name))
            for name, dims in self.indices
            for level in levels(dims, [place.address])
        ]
        text = linear_text(place.address.strides, digits, place.address.base)
        return sum_text([(1, place.base), (1, text)]) if place.base else text

    def _body(self) -> list[str]:
        lines: list[str] = []
        values: dict[str, list[str]] = {}
        for place in self.reads:
            name = place.param.name
            inner = self._inner(place)
            step = place.address.stride(inner.name) if inner else 0
            if self.vector(place):
                values[name] = [f"{name}_{v}" for v in range(4)]
                lines.append(f"{', '.join(values[name])} = load4({name}, {self._at(place)})")
            elif step == 0 or self.group == 1:
                lines.append(f"{name}_0 = {name}[{self._at(place)}]")
                values[name] = [f"{name}_0"] * self.group
            else:
                values[name] = [f"{name}_{v}" for v in range(self.group)]
                lines.append(f"{name}_at = {self._at(place)}")
                lines += [
                    f"{name}_{v} = {name}[{sum_text([(1, f'{name}_at')], step * v)}]"
                    for v in range(self.group)
                ]
        sums = [f"s[{v}]" for v in range(self.group)]
        finished: list[list[str]] = []
        if self.epilogue:
            dtypes_of = {p.param.name: p.param.dtype for p in self.reads}
            for v in range(self.group):
                given = [from_stored(values[n][v], dtypes_of[n]) for n in values]
                targets = [f"y{r}_{v}" for r in range(len(self.results))]
                lines.append(f"{', '.join(targets)} = finish({', '.join([self._rounded(sums[v]), *given])})")
                finished.append(targets)
        if self.product:
            lines += self._store(self.product, sums, self.held)
        for r, place in enumerate(self.results):
            lines += self._store(place, [f[r] for f in finished], place.param.dtype)
        return lines

    def _rounded(self, text: str) -> str:
        """A sum as an element of the product, which the epilogue reads."""
        assert self.epilogue is not None
        dtype = self.epilogue.kernel.buffers[self.epilogue.product].dtype
        return op_text("cast", [text], self.held, dtype)

    def _store(self, place: Place, values: list[str], dtype: np.dtype) -> list[str]:
        name, out = place.param.name, place.param.dtype
        stored = [to_stored(op_text("cast", [v], dtype, out), out) for v in values]
        at = self._at(place)
        if self.vector(place):
            return [f"store4({name}, {at}, {', '.join(stored)})"]
        if len(stored) == 1:
            return [f"{name}[{at}] = {stored[0]}"]
        inner = self._inner(place)
        step = place.address.stride(inner.name) if inner else 0
        lines = [f"{name}_at = {at}"]
        return lines + [
            f"{name}[{sum_text([(1, f'{name}_at')], step * v)}] = {text}" for v, text in enumerate(stored)
        ]


def places_of(
    epilogue: Epilogue | None, extents: dict[str, int], cuts: Sequence[Cut]
) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """The arrays that an epilogue writes and reads, beside the product, with the contraction's dimensions `cuts` cut in two."""
    results: list[Place] = []
    reads: list[Place] = []
    if epilogue is None:
        return (), ()
    number = {b: i for i, b in enumerate(epilogue.kernel.buffers)}
    order = [number[s.buffer] for s in epilogue.stores]
    for i in (*order, *(i for i in epilogue.extra if i not in order)):
        buffer, buf = epilogue.kernel.buffers[i], epilogue.args[i]
        into = results if i in order else reads
        name = f"y{len(results)}" if i in order else f"x{len(reads)}"
        param = Param(name, buffer.dtype, buf.size, "out" if i in order else "in")
        operand = epilogue.operands[i]
        for dims in cuts:
            operand = cut(operand, *dims)
        into.append(Place(param, buf, address_of(operand, extents), aligned(buf)))
    return tuple(results), tuple(reads)


__all__ = ["Indices", "Place", "Sink", "places_of"]
