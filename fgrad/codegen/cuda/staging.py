"""How a block of threads brings its part of an operand from global to shared memory: `rows` by `bk` elements a step of k.

    @cuda.jit(device=True)
    def lhs_values(lhs, k, kk, at0):  # a thread's elements of the step that begins at k
        v0 = load4(lhs, at0 + k + kk)
        return v0
    ...
    lhs_row, lhs_k = quotient(t, 2), 4*modulo(t, 2)   # of this thread
    lhs_at0 = 1024*(m0 + lhs_row)                     # what does not change with k is found once
    lhs_next = lhs_values(lhs, 0, lhs_k, lhs_at0)     # into registers; during the next multiplication
    lhs_tile[lhs_to] = lhs_next[0] ...                # from there to shared memory, one row of it for each k

Neighbouring threads take neighbours in memory: along k, or along the rows (m or n), whichever has the longer run of them. Four
neighbours are one load where they always lie together at a multiple of four. Rows beyond the last read the last one (their sums are
stored nowhere), so that only k and the borders of images need conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fgrad import dtypes
from fgrad.codegen.contraction import Dim
from fgrad.codegen.cuda.addresses import Address, Level, levels, linear_text, size_of, sum_text
from fgrad.codegen.cuda.launch import stored_as
from fgrad.codegen.cuda.text import from_stored, op_text, type_name

DEVICE = "@cuda.jit(device=True)"


@dataclass(frozen=True)
class Slots:
    """A thread's places along one direction of a tile: `base` (text, of the thread `t`) plus each of `steps`."""

    base: str
    steps: tuple[int, ...]


def run_length(address: Address, dims: Sequence[Dim]) -> int:
    """How many neighbours along `dims` lie side by side in memory."""
    found = levels(dims, [address])
    return found[-1].extent if found and address.stride(found[-1].name) == 1 else 1


def _in_fours(address: Address, dims: Sequence[Dim], tile: int) -> bool:
    """Whether four neighbours along `dims` from a multiple of four on are one aligned load."""
    found = levels(dims, [address])
    if tile % 4 or not found or found[-1].extent % 4 or address.stride(found[-1].name) != 1:
        return False
    return not address.checked(found[-1].name) and address.in_fours(found[-1].members)


@dataclass(frozen=True)
class Staging:
    """name: "lhs" or "rhs". `letter` names the index of its rows, "m" or "n". `held` is the element type in shared memory, as a dtype
    of values; `whole`: whether its buffer starts at a multiple of 16 bytes."""

    name: str
    letter: str
    dtype: np.dtype
    held: np.dtype
    address: Address
    batch: tuple[Dim, ...]
    rows: tuple[Dim, ...]
    ks: tuple[Dim, ...]
    tile: int  # rows
    bk: int
    threads: int
    whole: bool = True
    core: str = ""  # "tf32" or "bf16" where tensor cores read it; bfloat16 in pairs of neighbours along k

    @cached_property
    def vector(self) -> int:
        if not self.whole:
            return 1
        along = _in_fours(self.address, self.rows if self.along_rows else self.ks, self._fast)
        return 4 if along else 1

    @cached_property
    def along_rows(self) -> bool:
        across, down = run_length(self.address, self.rows), run_length(self.address, self.ks)
        return size_of(self.rows) > 1 and across >= down

    @property
    def _fast(self) -> int:
        return self.tile if self.along_rows else self.bk

    @property
    def pairs(self) -> int:
        """Elements that share a word of shared memory: neighbours along k."""
        return 2 if self.core == "bf16" else 1

    @property
    def pitch(self) -> int:
        """From one line (a k, or a pair of them) to the next in shared memory, such that a warp meets no bank twice."""
        if self.core:  # it reads eight neighbours of four lines
            return next(p for p in range(self.tile, self.tile + 32, 4) if p % 32 in (8, 24))
        return self.tile if self.along_rows else self.tile + 4  # it writes several lines at once

    @property
    def side(self) -> int:
        """Words of shared memory for one step."""
        return self.pitch * self.bk // self.pairs

    @cached_property
    def slots(self) -> tuple[Slots, Slots]:
        """Along the rows and along k."""
        # Units along k are pairs where shared memory holds pairs, so that a thread has both of each.
        slow, unit = (
            (self.bk // self.pairs, self.vector)
            if self.along_rows
            else (self.tile, max(self.vector, self.pairs))
        )
        across = self._fast // unit
        within = tuple(range(0, unit, self.vector))
        if across >= self.threads:
            starts = range(0, self._fast, self.threads * unit)
            fast = Slots(_times(unit, "t"), tuple(s + v for s in starts for v in within))
            down = Slots("0", tuple(range(slow)))
        else:
            fast = Slots(_times(unit, f"modulo(t, {across})") if across > 1 else "0", within)
            together = self.threads // across
            line = f"quotient(t, {across})" if across > 1 else "t"
            if together > slow:  # more threads than places: some do what others do too
                line = f"modulo({line}, {slow})"
            down = Slots(line if slow > 1 else "0", tuple(range(0, slow, together)))
        if not self.along_rows:
            return down, fast
        doubled = tuple(self.pairs * s + v for s in down.steps for v in range(self.pairs))
        return fast, Slots(_times(self.pairs, down.base) if down.base != "0" else "0", doubled)

    @property
    def elements(self) -> int:
        """Of one thread, a step of k."""
        rows, ks = self.slots
        return len(rows.steps) * len(ks.steps) * self.vector

    @cached_property
    def k_levels(self) -> list[Level]:
        return levels(self.ks, [self.address])

    @property
    def together(self) -> bool:
        """Whether all k of a step of `bk` differ in the innermost digit alone, and that is in no check."""
        inner = self.k_levels[-1] if self.k_levels else None
        return inner is None or (
            (len(self.k_levels) == 1 or inner.extent % self.bk == 0) and not self.address.checked(inner.name)
        )

    # ------------------------------------------------------------------------------------------------ before the loop

    def setup(self) -> list[str]:
        """What a thread knows before the loop over k."""
        rows, ks = self.slots
        name, total = self.name, size_of(self.rows)
        lines = [f"{name}_row, {name}_k = {rows.base}, {ks.base}"]
        batch = [(level, level.digit("b")) for level in levels(self.batch, [self.address])]
        across = levels(self.rows, [self.address])
        for i, step in enumerate(rows.steps):
            row = sum_text([(1, f"{self.letter}0"), (1, f"{name}_row")], step)
            if total % self.tile:
                last = total - (self.vector if self.along_rows else 1)
                row = f"min({row}, {last})"
            lines.append(f"{self.letter} = {row}")
            digits = [*batch, *((level, level.digit(self.letter)) for level in across)]
            lines.append(f"{name}_at{i} = {linear_text(self.address.strides, digits, self.address.base)}")
            for c, check in enumerate(self.address.checks):
                lines.append(f"{name}_p{i}{c} = {linear_text(check.coefs, digits, check.offset)}")
        line = f"quotient({name}_k, 2)" if self.pairs == 2 else f"{name}_k"
        lines.append(f"{name}_to = {sum_text([(self.pitch, line), (1, f'{name}_row')])}")
        return lines

    @property
    def state(self) -> list[str]:
        """The arguments of `values` that tell a thread's rows."""
        checks = range(len(self.address.checks))
        return [
            f"{kind}"
            for i in range(len(self.slots[0].steps))
            for kind in (f"at{i}", *(f"p{i}{c}" for c in checks))
        ]

    def call(self, k: str) -> str:
        own = ", ".join(f"{self.name}_{s}" for s in self.state)
        return f"{self.name}_values({self.name}, {k}, {self.name}_k, {own})"

    # ------------------------------------------------------------------------------------------------ in the loop

    def function(self) -> list[str]:
        """The device function that loads a thread's elements of one step."""
        rows, ks = self.slots
        body: list[str] = []
        loads: dict[tuple[int, int], str] = {}
        inner = self.k_levels[-1] if self.k_levels else None
        for j, step in enumerate(ks.steps):
            # What belongs to one k, or to all of the step.
            own = "" if self.together else f"_{j}"
            if j == 0 or not self.together:
                offset = self._offset(body, own, 0 if self.together else step)
            moved = self.address.stride(inner.name) * step if self.together and inner else 0
            tail = self._tail(step)
            for i in range(len(rows.steps)):
                if self.address.checks and (j == 0 or not self.together):
                    body += self._inside(i, own)
                conditions = [*([f"in{i}{own}"] if self.address.checks else []), *([tail] if tail else [])]
                index = self._index(i, own, offset, moved)
                text = f"load4({self.name}, {index})" if self.vector == 4 else f"{self.name}[{index}]"
                loads[i, j] = f"{text} if {' and '.join(conditions)} else zero" if conditions else text
        if any(text.endswith(" else zero") for text in loads.values()):
            none = f"{type_name(stored_as(self.dtype))}(0)"
            body.insert(0, f"zero = {none if self.vector == 1 else f'({none}, {none}, {none}, {none})'}")
        names = []
        for (i, j), text in sorted(loads.items()):
            names.append(f"v{i}_{j}" if len(rows.steps) > 1 else f"v{j}")
            body.append(f"{names[-1]} = {text}")
        body.append(f"return ({', '.join(names)},)" if self.vector == 1 else f"return {' + '.join(names)}")
        head = f"def {self.name}_values({self.name}, k, kk, {', '.join(self.state)}):"
        return [
            DEVICE,
            f"{head}  # a thread's elements of the step that begins at k",
            *(f"    {line}" for line in body),
        ]

    def _offset(self, body: list[str], own: str, step: int) -> str:
        """Lines for what k adds to addresses and positions: `k_at`, `k_p0`, ...; the text of the first."""
        inner = self.k_levels[-1] if self.k_levels else None
        digits: list[tuple[Level, str]] = []
        if self.together:
            for level in self.k_levels:
                if level is not inner:
                    digits.append((level, level.digit("k")))
                elif len(self.k_levels) == 1:
                    digits.append((level, "(k + kk)" if self.address.stride(level.name) != 1 else "k + kk"))
                elif level.extent == self.bk:
                    digits.append((level, "kk"))
                else:
                    digits.append((level, f"({level.digit('k')} + kk)"))
        else:
            body.append(f"k{own} = {sum_text([(1, 'k'), (1, 'kk')], step)}")
            digits = [(level, level.digit(f"k{own}")) for level in self.k_levels]
        for c, check in enumerate(self.address.checks):
            body.append(f"k_p{c}{own} = {linear_text(check.coefs, digits)}")
        text = linear_text(self.address.strides, digits)
        if self.together and len(digits) <= 1:
            return text
        body.append(f"k_at{own} = {text}")
        return f"k_at{own}"

    def _inside(self, i: int, own: str) -> list[str]:
        """Lines for the positions along the checked axes, and whether there is an element."""
        checks = list(enumerate(self.address.checks))
        lines = [f"q{i}{c}{own} = p{i}{c} + k_p{c}{own}" for c, _ in checks]
        conditions = " and ".join(check.condition(f"q{i}{c}{own}") for c, check in checks)
        return [*lines, f"in{i}{own} = {conditions}"]

    def _index(self, i: int, own: str, offset: str, moved: int) -> str:
        terms = [(1, f"at{i}"), (1, offset)]
        for c, check in enumerate(self.address.checks):
            if check.divisor > 1:
                terms.append((check.stride, f"quotient(q{i}{c}{own}, {check.divisor})"))
        return sum_text(terms, moved)

    def _tail(self, step: int) -> str:
        """The condition that keeps k below its extent, if it can be beyond."""
        total = size_of(self.ks)
        return f"{sum_text([(1, 'k'), (1, 'kk')], step)} < {total}" if total % self.bk else ""

    def stage(self, to: str) -> list[str]:
        """From registers to shared memory, a line of it for each k or pair of them."""
        rows, ks = self.slots
        across = self.vector if self.along_rows else 1  # neighbouring rows of one load
        lines: list[str] = []
        for i, row in enumerate(rows.steps):
            values: dict[int, list[str]] = {}  # by k, of `across` rows
            for j, k in enumerate(ks.steps):
                first = (i * len(ks.steps) + j) * self.vector
                items = [f"{self.name}_next[{first + v}]" for v in range(self.vector)]
                values.update({k: items} if across > 1 else {k + v: [item] for v, item in enumerate(items)})
            for k in sorted(values)[:: self.pairs]:
                place = sum_text([(1, to)], self.pitch * (k // self.pairs) + row)
                found = [self._held(x, y) for x, y in zip(values[k], values[k + self.pairs - 1])]
                if across > 1:
                    lines.append(f"store4({self.name}_tile, {place}, {', '.join(found)})")
                else:
                    lines.append(f"{self.name}_tile[{place}] = {found[0]}")
        return lines

    def _held(self, text: str, following: str) -> str:
        """What shared memory holds for an element (and the one that follows it along k, in pairs)."""
        if self.core == "bf16":
            if self.dtype == dtypes.bfloat16:
                return f"(uint32({text}) | (uint32({following}) << uint32(16)))"
            return f"pack_bfloat({self._value(text)}, {self._value(following)})"
        return (
            f"to_tf32({self._value(text)})"
            if self.core and self.dtype == dtypes.float32
            else self._value(text)
        )

    def _value(self, text: str) -> str:
        return op_text("cast", [from_stored(text, self.dtype)], self.dtype, self.held)


def _times(factor: int, text: str) -> str:
    return text if factor == 1 else f"{factor}*{text}"


def held_as(*operands: np.dtype) -> np.dtype:
    """What sums are accumulated in."""
    return dtypes.float64 if dtypes.float64 in operands else dtypes.float32
