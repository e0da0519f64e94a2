"""Which taps of a convolution exist at which position: the geometry behind ``direct.py``.

A spatial axis of an image is addressed by a *place* (a loop over the output) and a *tap* (a loop over k). At the border
of a padded image, or between the strides of a gradient, some pairs of the two have no element. Here the pairs that do are
enumerated once, in Python, so that the code never multiplies by a zero that padding put there:

    axis p = place + tap - 1, 0 <= p < 4 (a 3-tap convolution with padding over 4 elements), all 4 places in one tile

        tap 0:  places    1 2 3  at elements 0 1 2
        tap 1:  places  0 1 2 3  at elements 0 1 2 3
        tap 2:  places  0 1 2    at elements 1 2 3

The same description serves a convolution (places are output positions), the gradient for its input (places are input
positions; with stride 2 a tap meets every other one) and the gradient for its kernel (places are the kernel's taps, and what
is a tap here runs over the image).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from fgrad.codegen.contraction import Axis, Contraction, Dim
from fgrad.codegen.packing import View


@dataclass(frozen=True)
class Spatial:
    """One spatial axis with its place and its tap."""

    place: Dim
    tap: Dim
    axis: Axis

    def element(self, place: int, tap: int) -> int | None:
        """Memory offset of an element, None if it does not exist."""
        coefs = dict(self.axis.coefs)
        p = self.axis.offset + coefs[self.place.name] * place + coefs[self.tap.name] * tap
        if p % self.axis.divisor:
            return None
        p //= self.axis.divisor
        if self.axis.size is not None and not 0 <= p < self.axis.size:
            return None
        return p * self.axis.stride

    @property
    def tap_step(self) -> int:
        """Distance of the taps that exist at one place."""
        return self.axis.divisor // math.gcd(self.axis.divisor, abs(dict(self.axis.coefs)[self.tap.name]))

    @property
    def element_step(self) -> int:
        """Memory distance of the elements that these taps meet."""
        return dict(self.axis.coefs)[self.tap.name] * self.tap_step // self.axis.divisor * self.axis.stride

    def table(self) -> list[tuple[int, int, int]]:
        """For every place: how many taps exist, the first of them, and the memory offset of its element."""
        rows = []
        for place in range(self.place.extent):
            found = [(t, self.element(place, t)) for t in range(self.tap.extent)]
            there = [(t, where) for t, where in found if where is not None]
            rows.append((len(there), *there[0]) if there else (0, 0, 0))
        return rows

    @property
    def pairs(self) -> int:
        """Pairs of place and tap that exist."""
        return sum(count for count, *_ in self.table())


@dataclass(frozen=True)
class Run:
    """Taps ``first .. first+count`` that meet the same rows of a tile; from one to the next, elements move by ``step``."""

    first: int
    count: int
    rows: tuple[tuple[int, int], ...]  # (row, memory offset at the first tap)
    step: int


def reads_of(run: Run) -> str | None:
    """How the elements of a run's first tap become the lanes of a vector: "line" (neighbours), "every other" element for
    neighbouring rows, "spread" (neighbours to equally spaced rows); None for anything else."""
    if len(run.rows) < 2:
        return "line"
    rows = {b[0] - a[0] for a, b in pairwise(run.rows)}
    elements = {b[1] - a[1] for a, b in pairwise(run.rows)}
    if elements == {1}:
        return "line" if rows == {1} else "spread"
    return "every other" if (rows, elements) == ({1}, {2}) else None


@dataclass(frozen=True)
class Strip:
    """``count`` tiles of ``size`` places from ``first`` on, alike but for where they are: their elements move by ``step``."""

    first: int
    size: int
    count: int
    base: int
    step: int
    runs: tuple[Run, ...]

    @property
    def pairs(self) -> int:
        return sum(run.count * len(run.rows) for run in self.runs)


@dataclass(frozen=True)
class Stencil:
    """A contraction whose rhs is an image: its spatial axes (``inner`` is contiguous in the output), the loops that move
    the image as a whole (samples), and the k loops that are no taps (channels)."""

    outer: tuple[Spatial, ...]
    inner: Spatial
    loops: tuple[Dim, ...]
    channels: tuple[Dim, ...]
    view: View

    @property
    def pairs(self) -> int:
        return self.inner.pairs * math.prod(axis.pairs for axis in self.outer)


def find_stencil(spec: Contraction) -> Stencil | None:
    """The stencil of a contraction whose lhs is plain and whose rhs is an image, None for others."""
    extents = spec.extents
    free, depth = ({d.name: d for d in dims} for dims in (spec.n, spec.k))
    if not spec.lhs.is_plain(extents) or not spec.out.is_plain(extents) or not spec.k:
        return None
    spatial: list[Spatial] = []
    base = spec.rhs.offset
    strides: dict[str, int] = {}
    for axis in spec.rhs.axes:
        names = [name for name, _ in axis.coefs]
        places, taps = [n for n in names if n in free], [n for n in names if n in depth]
        if len(names) == 2 and len(places) == len(taps) == 1:
            spatial.append(Spatial(free[places[0]], depth[taps[0]], axis))
        elif axis.is_plain(extents):
            base += axis.offset * axis.stride
            for name, coef in axis.coefs:
                strides[name] = strides.get(name, 0) + coef * axis.stride
        else:
            return None
    special = [name for axis in spatial for name in (axis.place.name, axis.tap.name)]
    if len(set(special)) < len(special) or set(special) & set(strides):
        return None
    out = spec.out.strides()[1]
    inner = [axis for axis in spatial if out.get(axis.place.name) == 1 and axis.tap == spec.k[-1]]
    if len(inner) != 1 or min(extents.values()) == 0:
        return None
    return Stencil(
        tuple(axis for axis in spatial if axis is not inner[0]),
        inner[0],
        tuple(d for d in spec.n if d.name not in special),
        tuple(d for d in spec.k if d.name not in special),
        View(spec.rhs.dtype, base, strides),
    )


@lru_cache(maxsize=1024)
def strips(axis: Spatial, parts: int) -> tuple[Strip, ...]:
    """Cut the places into ``parts`` tiles of nearly one size; neighbours that are alike share a strip."""
    extent, coef = axis.place.extent, dict(axis.axis.coefs)[axis.place.name]
    result: list[Strip] = []
    start = 0
    for part in range(parts):
        size = extent // parts + (part < extent % parts)
        base = (axis.axis.offset + coef * start) // axis.axis.divisor * axis.axis.stride
        runs: list[Run] = []
        for tap in range(axis.tap.extent):
            met = [(row, axis.element(start + row, tap)) for row in range(size)]
            rows = tuple((row, where - base) for row, where in met if where is not None)
            last = runs[-1] if runs else None
            if rows and last and last.first + last.count == tap and len(rows) == len(last.rows):
                step = last.step if last.count > 1 else rows[0][1] - last.rows[0][1]
                if rows == tuple((row, where + step * last.count) for row, where in last.rows):
                    runs[-1] = Run(last.first, last.count + 1, last.rows, step)
                    continue
            if rows:
                runs.append(Run(tap, 1, rows, 0))
        before = result[-1] if result else None
        if before and (before.size, before.runs) == (size, tuple(runs)):
            step = base - before.base if before.count == 1 else before.step
            if base == before.base + step * before.count:
                result[-1] = Strip(before.first, size, before.count + 1, before.base, step, before.runs)
                start += size
                continue
        result.append(Strip(start, size, 1, base, 0, tuple(runs)))
        start += size
    return tuple(result)
