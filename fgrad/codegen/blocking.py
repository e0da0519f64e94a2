"""Choosing how to compute a contraction: which kernel, which tile, what to pack, how to block for the caches.

``plan`` enumerates the tile shapes that fit the registers, with the roles of m and n both ways, and takes the one
that a small cost model (cycles of multiply-adds, of packing, of storing) thinks cheapest. Everything that depends on
the shapes is decided here, in Python, so that ``gemm.emit`` writes one straight piece of code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fgrad.codegen.contraction import Contraction, Operand
from fgrad.codegen.irtools import is_floating
from fgrad.codegen.packing import Spread, View, levels_of, spread_layout
from fgrad.codegen.target import TargetInfo

_ALIGN = 64


@dataclass(frozen=True)
class Plan:
    """How one contraction is computed; ``print`` it to see. Made by ``plan``, read by ``gemm.emit``."""

    spec: Contraction
    target: TargetInfo
    path: str  # "nothing", "zero", "loops", "outer" or "inner"
    acc: np.dtype
    lhs: View
    rhs: View
    out: View
    swapped: bool = False
    lhs_spread: Spread | None = None
    rhs_spread: Spread | None = None
    mr: int = 1
    widths: tuple[int, ...] = (1,)
    lanes: int = 1
    lhs_packed: bool = False
    rhs_packed: bool = False
    m_overlap: bool = False
    n_overlap: bool = False
    k_split: int = 0
    k_chunk: int = 1
    nc: int = 1
    workspace: dict[str, int] = field(default_factory=dict)
    workspace_bytes: int = 0
    cycles: float = 0.0

    @property
    def flops(self) -> int:
        return self.spec.flops

    @property
    def nr(self) -> int:
        return sum(self.widths)

    @property
    def depth_levels(self) -> list[tuple]:
        """The loops over k: (extent, lhs stride, rhs stride)."""
        return levels_of(self.spec.k, self.lhs.strides, self.rhs.strides) or [(1, 1, 1)]

    @property
    def k_inner(self) -> int:
        """Steps of the k loops inside the one that is chunked."""
        return math.prod(level[0] for level in self.depth_levels[self.k_split + 1 :])

    @property
    def single_chunk(self) -> bool:
        return self.k_split == 0 and self.k_chunk >= self.depth_levels[0][0]

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
        return f"{text}, workspace {self.workspace_bytes} bytes, about {self.cycles:.0f} cycles"


def accumulator(spec: Contraction) -> np.dtype:
    """The type that products are summed in."""
    types = (spec.lhs.dtype, spec.rhs.dtype, spec.out.dtype)
    if all(is_floating(t) for t in types):
        return np.dtype(np.float64 if any(t == np.float64 for t in types[:2]) else np.float32)
    if any(is_floating(t) for t in types) or any(t.kind not in "iub" for t in types):
        raise NotImplementedError(
            f"contraction of {types[0]} with {types[1]} into {types[2]} is not supported by the code generator; "
            "convert the operands to one floating or integer type first"
        )
    return spec.out.dtype


def tile_offsets(levels: Sequence[tuple], size: int, which: int = 1) -> tuple[int, ...] | None:
    """Offsets of ``size`` consecutive flat indices from the first, if every tile that starts at a multiple of
    ``size`` has the same; None otherwise."""
    left = size
    for position, level in enumerate(reversed(levels)):
        if position == len(levels) - 1 or level[0] % left == 0:
            break
        if left % level[0]:
            return None
        left //= level[0]
    offsets = []
    for flat in range(size):
        offset = 0
        for position, level in enumerate(reversed(levels)):
            last = position == len(levels) - 1
            flat, index = (0, flat) if last else divmod(flat, level[0])
            offset += index * level[which]
        offsets.append(offset)
    return tuple(offsets)


def require_tile_offsets(levels: Sequence[tuple], size: int, which: int = 1) -> tuple[int, ...]:
    """``tile_offsets`` where the plan has made sure that there are some."""
    offsets = tile_offsets(levels, size, which)
    if offsets is None:
        raise AssertionError(f"a plan chose tiles of {size} over {list(levels)}, which are not all alike")
    return offsets


def plan(spec: Contraction, target: TargetInfo) -> Plan:
    """Choose how to compute ``spec`` on ``target``."""
    acc = accumulator(spec)
    extents = spec.extents
    empty = View(acc, 0, {})
    if any(dim.extent == 0 for dim in spec.batch + spec.m + spec.n):
        return Plan(spec, target, "nothing", acc, empty, empty, empty)
    out = View(spec.out.dtype, *spec.out.strides())
    if any(dim.extent == 0 for dim in spec.k):
        return Plan(spec, target, "zero", acc, empty, empty, out)
    lhs, lhs_spread = _regular(spec.lhs, extents, acc)
    rhs, rhs_spread = _regular(spec.rhs, extents, acc)
    base = Plan(spec, target, "loops", acc, lhs, rhs, out, False, lhs_spread, rhs_spread)
    if is_floating(acc):
        flipped = replace(
            base,
            spec=spec.swapped(),
            lhs=rhs,
            rhs=lhs,
            lhs_spread=rhs_spread,
            rhs_spread=lhs_spread,
            swapped=True,
        )
        candidates = [c for start in (base, flipped) for make in (_outer, _inner) for c in make(start)]
        base = min(candidates, key=lambda c: c.cycles)
    return _with_workspace(base)


def _regular(operand: Operand, extents: dict[str, int], acc: np.dtype) -> tuple[View, Spread | None]:
    if operand.is_plain(extents):
        return View(operand.dtype, *operand.strides()), None
    spread = spread_layout(operand, extents, acc)
    return spread.view, spread


def _with_workspace(chosen: Plan) -> Plan:
    offsets, end, size = {}, 0, chosen.acc.itemsize
    kc = chosen.k_chunk * chosen.k_inner if chosen.path == "outer" else 0
    needs = {
        "lhs_spread": chosen.lhs_spread.elements if chosen.lhs_spread else 0,
        "rhs_spread": chosen.rhs_spread.elements if chosen.rhs_spread else 0,
        "lhs_panel": kc * chosen.mr if chosen.lhs_packed else 0,
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


def _sizes(p: Plan) -> tuple[int, int, int, int]:
    spec = p.spec
    b, m, n, k = (math.prod(d.extent for d in dims) for dims in (spec.batch, spec.m, spec.n, spec.k))
    return b, m, n, k


def _pack_cost(rows: Sequence[tuple], depth_contiguous: bool, width: int, lanes: int) -> float:
    """Cycles to pack one element."""
    extent, stride = rows[-1] if rows else (1, 1)
    if stride == 1 and extent > 1:
        run = min(extent, width)
        return (1.5 * -(-run // lanes) + 0.5) / run if run >= lanes // 2 else 1.5
    return 0.8 if depth_contiguous else 1.6


def _outer(p: Plan) -> Iterator[Plan]:
    """Plans for the outer-product kernel."""
    spec, target, size = p.spec, p.target, p.acc.itemsize
    b, m, n, k = _sizes(p)
    lanes = target.lanes(size)
    lhs_rows, rhs_rows = levels_of(spec.m, p.lhs.strides), levels_of(spec.n, p.rhs.strides)
    out_rows, out_columns = levels_of(spec.m, p.out.strides), levels_of(spec.n, p.out.strides)
    depth = p.depth_levels
    unit = not out_columns or out_columns[-1][1] == 1
    rhs_direct = len(rhs_rows) < 2 and (not rhs_rows or rhs_rows[0][1] == 1) and p.rhs.dtype == p.acc
    for columns in range(1, 9):
        if columns > -(-n // lanes):
            break
        widths = [lanes] * columns
        if columns * lanes > n:
            widths[-1] = n - (columns - 1) * lanes
        nr = sum(widths)
        for mr in range(1, min(m, 30) + 1):
            if mr * columns + columns + 1 > target.registers:
                break
            goal = max(256, target.l1 // 2 // (size * mr)) if p.out.dtype == p.acc else k
            split, chunk = choose_chunk(depth, goal)
            trial = replace(
                p, path="outer", mr=mr, widths=tuple(widths), lanes=lanes, k_split=split, k_chunk=chunk
            )
            kc, single = chunk * trial.k_inner, trial.single_chunk
            ragged_m, ragged_n = m % mr != 0, n % nr != 0
            m_overlap = ragged_m and single and len(lhs_rows) < 2 and len(out_rows) < 2
            lhs_direct = (
                p.lhs.dtype == p.acc
                and tile_offsets(lhs_rows, mr) is not None
                and (not ragged_m or m_overlap)
            )
            n_overlap = rhs_direct and ragged_n and single and len(out_columns) < 2
            tiles_m, tiles_n = -(-m // mr), -(-n // nr)
            per_k = max(mr * columns, columns + 0.5 * mr, 4) + (0.5 if mr * columns < 12 else 0)
            slow = 0.0
            if not unit or tile_offsets(out_rows, mr) is None:
                slow = 1.0
            elif len(out_columns) > 1:
                slow = min(1.0, nr / out_columns[-1][0]) if out_columns[-1][0] % nr else 0.0
            store = mr * columns * (1.5 + slow * (lanes * 1.5 if not unit else 5))
            kernel = b * tiles_m * tiles_n * (k * per_k + -(-k // kc) * (store + 20))
            for rhs_packed in (False, True):
                if not rhs_packed and (not rhs_direct or (ragged_n and not n_overlap)):
                    continue
                nc = max(nr, target.l2 // 2 // (size * kc) // nr * nr)
                if not rhs_packed and k * n * size <= target.l2 // 2:
                    nc = n
                nc = min(nc, -(-n // nr) * nr)
                cost = kernel
                if rhs_packed:
                    width_cost = _pack_cost(rhs_rows, depth[-1][2] == 1, nr, lanes)
                    cost += b * k * n * width_cost + b * tiles_n * -(-k // kc) * 10
                elif depth[-1][2] * size % 2048 == 0 and kc > 64 and tiles_m > 2:
                    cost *= 1.15  # rows a power of two apart fall into the same cache sets
                for lhs_packed in (False, True):
                    if not lhs_packed and not lhs_direct:
                        continue
                    total = cost
                    if lhs_packed:
                        pack = _pack_cost(lhs_rows, depth[-1][1] == 1, mr, lanes)
                        total += b * k * tiles_m * mr * pack * -(-n // nc)
                    elif mr > 6 and lhs_rows and lhs_rows[-1][1] * size % 2048 == 0 and kc > 16:
                        total *= 1.25
                    yield replace(
                        trial,
                        nc=nc,
                        lhs_packed=lhs_packed,
                        rhs_packed=rhs_packed,
                        m_overlap=m_overlap and not lhs_packed,
                        n_overlap=n_overlap and not rhs_packed,
                        cycles=total,
                    )


def _inner(p: Plan) -> Iterator[Plan]:
    """Plans for the inner-product kernel."""
    spec, target, size = p.spec, p.target, p.acc.itemsize
    b, m, n, k = _sizes(p)
    depth = p.depth_levels
    run = depth[-1][0]
    if depth[-1][1:] != (1, 1) or run < 4 or p.lhs.dtype != p.acc or p.rhs.dtype != p.acc:
        return
    m_levels = levels_of(spec.m, p.lhs.strides, p.out.strides)
    n_levels = levels_of(spec.n, p.rhs.strides, p.out.strides)
    working_set = (m + n) * k * size
    goal = (
        k
        if p.out.dtype != p.acc or working_set <= target.l2
        else max(256, target.l2 // 2 // (size * (m + n)))
    )
    split, chunk = choose_chunk(depth, goal)
    if split == len(depth) - 1 and len(depth) > 1:
        split, chunk = len(depth) - 2, 1
    if len(depth) == 1:
        chunk = run
    trial = replace(p, path="inner", k_split=split, k_chunk=chunk)
    kc, single = chunk * trial.k_inner, trial.single_chunk
    full = target.lanes(size)
    for lanes in {full, max(2, full // 2)}:
        steps = -(-run // lanes)
        speed = 1.0 if lanes == full else 0.7
        for mr in range(1, min(m, 16) + 1):
            m_overlap = m % mr != 0
            if tile_offsets(m_levels, mr) is None or (m_overlap and (not single or len(m_levels) > 1)):
                continue
            for nr in range(1, min(n, 16) + 1):
                if mr * nr + mr + 1 > target.registers:
                    break
                n_overlap = n % nr != 0
                if tile_offsets(n_levels, nr) is None or (n_overlap and (not single or len(n_levels) > 1)):
                    continue
                per_step = max(mr * nr, mr + nr, 4) * speed + 0.5
                tile = (k // run) * (steps * per_step + 2) + -(-k // kc) * (mr * nr * 6 + 20)
                cycles = b * -(-m // mr) * -(-n // nr) * tile
                yield replace(
                    trial,
                    mr=mr,
                    widths=(1,) * nr,
                    lanes=lanes,
                    nc=n,
                    m_overlap=m_overlap,
                    n_overlap=n_overlap,
                    cycles=cycles,
                )
