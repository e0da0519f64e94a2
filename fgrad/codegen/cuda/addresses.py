"""Where an element of a contraction's operand is, as text: from flat indices of batch, m, n and k to an offset.

A flat index, say n, counts through the dimensions of its group, the last one fastest. An offset is linear in their indices, the
*digits* of n, so it takes one division for each; dimensions that every address runs through as one are one digit (`levels`):

    n of (sample 4, row 28, column 28), image (4, 1, 28, 28), no border     one digit:   x_at = n
    n of (sample 4, row 26, column 26), image (4, 1, 28, 28), 3x3 taps      three:       784*quotient(n, 676) + 28*... + modulo(n, 26)

An axis with a border or a divisor (see `contraction.Axis`) is a `Check`: a position that must be inside for the element to exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fgrad.codegen.contraction import Dim, Operand
from fgrad.codegen.program import Buf

_NARROW = 2**31  # indices below it are divided in 32 bits


@dataclass(frozen=True)
class Check:
    """The element exists where `p = offset + sum(coef * digit)` is in `range(0, size * divisor, divisor)`. With a divisor it is
    `stride * (p / divisor)` further on; without one, that is in the address's linear part."""

    coefs: dict[str, int]
    offset: int
    divisor: int
    size: int | None
    stride: int

    def condition(self, p: str) -> str:
        parts = [f"{p} >= 0"]
        if self.size is not None:
            parts.append(f"{p} < {self.size * self.divisor}")
        if self.divisor > 1:
            parts.append(f"modulo({p}, {self.divisor}) == 0")
        return " and ".join(parts)


@dataclass(frozen=True)
class Address:
    """`base + sum(strides[dim] * digit)`, in elements, and the checks."""

    base: int
    strides: dict[str, int]
    checks: tuple[Check, ...] = ()

    def stride(self, dim: str) -> int:
        return self.strides.get(dim, 0)

    def checked(self, dim: str) -> bool:
        return any(dim in c.coefs for c in self.checks)

    def in_fours(self, but: Sequence[str] = ()) -> bool:
        """Whether every step but those along the dimensions `but` is one of a multiple of four elements."""
        steps = [self.base, *(s for d, s in self.strides.items() if d not in but)]
        return all(s % 4 == 0 for s in (*steps, *(c.stride for c in self.checks if c.divisor > 1)))


def address_of(operand: Operand, extents: dict[str, int]) -> Address:
    base = operand.offset
    strides: dict[str, int] = {}
    checks: list[Check] = []
    for axis in operand.axes:
        coefs = {name: coef for name, coef in axis.coefs if extents.get(name, 1) > 1}
        if not axis.is_plain(extents):
            checks.append(Check(coefs, axis.offset, axis.divisor, axis.size, axis.stride))
        if axis.divisor == 1:
            base += axis.offset * axis.stride
            for name, coef in coefs.items():
                strides[name] = strides.get(name, 0) + coef * axis.stride
    return Address(base, strides, tuple(checks))


@dataclass(frozen=True)
class Level:
    """One digit of a flat index: `index // place % extent`. It goes by the name of its innermost dimension."""

    name: str
    extent: int
    place: int
    total: int  # of the flat index
    members: tuple[str, ...]  # all its dimensions

    def digit(self, index: str) -> str:
        if self.total >= _NARROW:
            high = f"{index} // {self.place}" if self.place > 1 else index
            return high if self.place * self.extent >= self.total else f"{high} % {self.extent}"
        high = f"quotient({index}, {self.place})" if self.place > 1 else index
        return high if self.place * self.extent >= self.total else f"modulo({high}, {self.extent})"


def levels(dims: Sequence[Dim], addresses: Sequence[Address]) -> list[Level]:
    """The digits of the flat index over `dims`, outermost first."""
    merged: list[tuple[tuple[str, ...], int]] = []
    for dim in dims:
        if dim.extent == 1:
            continue
        if merged:
            names, extent = merged[-1]
            apart = (a.stride(names[-1]) != a.stride(dim.name) * dim.extent for a in addresses)
            checked = (a.checked(names[-1]) or a.checked(dim.name) for a in addresses)
            if not any(apart) and not any(checked):
                merged[-1] = ((*names, dim.name), extent * dim.extent)
                continue
        merged.append(((dim.name,), dim.extent))
    total = math.prod(e for _, e in merged)
    result, place = [], total
    for names, extent in merged:
        place //= extent
        result.append(Level(names[-1], extent, place, total, names))
    return result


def sum_text(terms: Iterable[tuple[int, str]], const: int = 0) -> str:
    """`3*a + b + 5`; constants among the terms are folded."""
    parts = []
    for coef, text in terms:
        if text == "0" or not coef:
            continue
        inner = f"({text})" if " " in text and not text.endswith(")") and coef != 1 else text
        parts.append(inner if coef == 1 else f"-{inner}" if coef == -1 else f"{coef}*{inner}")
    if const or not parts:
        parts.append(str(const))
    return " + ".join(parts).replace("+ -", "- ")


def linear_text(coefs: dict[str, int], digits: Sequence[tuple[Level, str]], const: int = 0) -> str:
    return sum_text([(coefs.get(level.name, 0), text) for level, text in digits], const)


def size_of(dims: Sequence[Dim]) -> int:
    return math.prod(d.extent for d in dims)


def aligned(buf: Buf) -> bool:
    """Whether a buffer starts at a multiple of 16 bytes, as all do but some views."""
    while buf.base is not None:
        if buf.byte_offset % 16 or buf.byte_stride % 16:
            return False
        buf = buf.base
    return True
