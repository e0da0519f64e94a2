"""A plan: how one contraction is computed. ``planning.plan`` makes it, ``gemm.emit`` writes it as code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fgrad.codegen.contraction import Contraction
from fgrad.codegen.irtools import Index
from fgrad.codegen.packing import Spread, View, levels_of
from fgrad.codegen.stencil import Stencil
from fgrad.codegen.target import TargetInfo

_ALIGN = 64


class Place(NamedTuple):
    """Where a value goes: its offset in the output, its row, and its (first) column."""

    offset: Index
    m: Index
    n: Index


@dataclass(frozen=True)
class Direct:
    """A direct convolution: every line of places is cut into ``parts`` tiles, each for ``together`` samples."""

    stencil: Stencil
    parts: int
    together: int


@dataclass(frozen=True)
class Plan:
    """How one contraction is computed; ``print`` it to see."""

    spec: Contraction
    target: TargetInfo
    path: str  # "nothing", "zero", "loops", "outer", "inner", "direct" or "plane"
    acc: np.dtype
    lhs: View
    rhs: View
    out: View
    swapped: bool = False
    lhs_spread: Spread | None = None
    rhs_spread: Spread | None = None
    whole: bool = False  # every sum is complete, once, when it is stored: what an epilogue needs
    mr: int = 1
    widths: tuple[int, ...] = (1,)  # of the tile's columns, each one vector
    starts: tuple[int, ...] = (0,)  # where they start, counted along n
    lanes: int = 1
    lhs_packed: bool = False
    rhs_packed: bool = False
    m_overlap: bool = False
    n_overlap: bool = False
    k_split: int = 0
    k_chunk: int = 1
    nc: int = 1
    direct: Direct | None = None
    workspace: dict[str, int] = field(default_factory=dict, hash=False)
    workspace_bytes: int = 0
    cycles: float = 0.0

    @property
    def flops(self) -> int:
        return self.spec.flops

    @property
    def nr(self) -> int:
        return self.starts[-1] + self.widths[-1]

    @property
    def depth_levels(self) -> list[tuple]:
        """The loops over k: (extent, lhs stride, rhs stride)."""
        return levels_of(self.spec.k, self.lhs.strides, self.rhs.strides) or [(1, 1, 1)]

    @property
    def k_inner(self) -> int:
        """Steps of the k loops inside the one that is chunked."""
        return math.prod(level[0] for level in self.depth_levels[self.k_split + 1 :])

    @property
    def recipe(self) -> str:
        """What tells this plan from the other plans for its contraction, in one word."""
        marks = zip(
            "wspqmn",
            (self.whole, self.swapped, self.lhs_packed, self.rhs_packed, self.m_overlap, self.n_overlap),
        )
        batch = ".".join(
            dim.name for dim in self.spec.batch
        )  # a loop of m or n may have become one of the batch
        columns = "+".join(f"{start}.{width}" for start, width in zip(self.starts, self.widths))
        together = f"/{self.direct.parts}.{self.direct.together}" if self.direct else ""
        return (
            f"{self.path}/{''.join(mark for mark, on in marks if on)}/{batch}/{self.mr}x{columns}x{self.lanes}"
            f"/{self.k_split}.{self.k_chunk}.{self.nc}{together}"
        )

    def __str__(self) -> str:
        sizes = {
            name: math.prod(d.extent for d in getattr(self.spec, name)) for name in ("batch", "m", "n", "k")
        }
        text = f"{self.path} " + " ".join(f"{name}={size}" for name, size in sizes.items())
        text += " swapped" if self.swapped else ""
        if self.path in ("outer", "inner"):
            text += f", tile {self.mr}x{self.nr}" + (
                f" ({len(self.widths)} columns of {self.widths[0]})" * (self.path == "outer")
            )
            text += f", kc={self.k_chunk * self.k_inner} nc={self.nc}"
            for name, packed, spread in (
                ("lhs", self.lhs_packed, self.lhs_spread),
                ("rhs", self.rhs_packed, self.rhs_spread),
            ):
                text += f", {name} {'spread, ' if spread else ''}{'packed' if packed else 'direct'}"
        if self.direct:
            text += (
                f", tile {self.mr}x{self.nr} ({self.direct.together} together, {self.direct.parts} a line)"
            )
            text += f", chunk={self.k_chunk} nc={self.nc}"
        return f"{text}, workspace {self.workspace_bytes} bytes, about {self.cycles:.0f} cycles"


# A candidate: its cost in cycles and the fields of the plan that it sets.
Candidate = tuple[float, Plan, dict[str, Any]]


def tile_offsets(levels: Sequence[tuple], size: int, which: int = 1) -> tuple[int, ...] | None:
    """Offsets of ``size`` consecutive flat indices from the first, if every tile that starts at a multiple of
    ``size`` has the same; None otherwise."""
    return _tile_offsets(tuple(levels), size, which)


@lru_cache(maxsize=4096)
def _tile_offsets(levels: tuple[tuple, ...], size: int, which: int) -> tuple[int, ...] | None:
    left, inner = size, []  # the loops that a tile runs through, innermost first: (steps, what a step adds)
    for position, level in enumerate(reversed(levels)):
        if position == len(levels) - 1 or level[0] % left == 0:
            inner.append((left, level[which]))
            break
        if left % level[0]:
            return None
        left //= level[0]
        inner.append((level[0], level[which]))
    offsets = [0] if levels else [0] * size
    for steps, step in reversed(inner):
        offsets = [offset + i * step for offset in offsets for i in range(steps)]
    return tuple(offsets)


def require_tile_offsets(levels: Sequence[tuple], size: int, which: int = 1) -> tuple[int, ...]:
    """``tile_offsets`` where the plan has made sure that there are some."""
    offsets = tile_offsets(levels, size, which)
    if offsets is None:
        raise AssertionError(f"a plan chose tiles of {size} over {list(levels)}, which are not all alike")
    return offsets


def with_workspace(chosen: Plan) -> Plan:
    """The same plan with a place in the workspace for everything that it copies."""
    offsets, end, size = {}, 0, chosen.acc.itemsize
    kc = chosen.k_chunk * chosen.k_inner if chosen.path == "outer" else 0
    if chosen.path == "direct":
        kc = chosen.k_chunk * math.prod(d.extent for d in chosen.spec.k[1:])
    needs = {
        "lhs_spread": chosen.lhs_spread.elements if chosen.lhs_spread else 0,
        "rhs_spread": chosen.rhs_spread.elements if chosen.rhs_spread else 0,
        "lhs_panel": kc * (chosen.nc if chosen.direct else chosen.mr) + 64 if chosen.lhs_packed else 0,
        # Vectors of the last row may be read past its end.
        "rhs_panel": kc * -(-chosen.nc // chosen.nr) * chosen.nr + 64 if chosen.rhs_packed else 0,
    }
    for name, elements in needs.items():
        if elements:
            offsets[name] = end
            end += -(-elements * size // _ALIGN) * _ALIGN
    return replace(chosen, workspace=offsets, workspace_bytes=end)


def choose_chunk(levels: Sequence[tuple], goal: int) -> tuple[int, int]:
    """Which k loop to cut, and into pieces of how many steps, so that about ``goal`` steps of k are in one piece."""
    if math.prod(level[0] for level in levels) <= goal * 3 // 2:
        return 0, levels[0][0]
    split, inner = len(levels) - 1, 1
    while split > 0 and inner * levels[split][0] <= goal:
        inner *= levels[split][0]
        split -= 1
    extent = levels[split][0]
    steps = max(1, min(extent, goal // inner))
    even = -(-extent // -(-extent // steps))
    exact = max(d for d in range(1, steps + 1) if extent % d == 0)
    return split, exact if 2 * exact >= steps else even


def pack_cost(rows: Sequence[tuple], depth_contiguous: bool, width: int, lanes: int) -> float:
    """Cycles to pack one element."""
    extent, stride = rows[-1] if rows else (1, 1)
    if stride == 1 and extent > 1:
        run = min(extent, width)
        return (3.0 * -(-run // lanes) + 0.5) / run if run >= lanes // 2 else 1.5
    return 0.5 if depth_contiguous else 1.6
