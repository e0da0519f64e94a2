"""Choosing how to compute a contraction: which kernel, which tile, what to pack, how to block for the caches.

``plan`` enumerates the tile shapes that fit the registers, with the roles of m and n both ways, and takes the one
that a small cost model (cycles of multiply-adds, of packing, of storing) thinks cheapest. Everything that depends on
the shapes is decided here, in Python, so that ``gemm.emit`` writes one straight piece of code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from fgrad.codegen.blocking import Candidate, Plan, choose_chunk, pack_cost, tile_offsets, with_workspace
from fgrad.codegen.contraction import Contraction, Operand
from fgrad.codegen.direct_planning import direct_candidates, plane_candidates
from fgrad.codegen.irtools import is_floating
from fgrad.codegen.packing import Spread, View, levels_of, spread_layout
from fgrad.codegen.stencil import find_stencil
from fgrad.codegen.target import TargetInfo
from fgrad.codegen.winograd import WinogradPlan, plan_winograd

WORTH_ROUNDING = 0.85  # Winograd's algorithm rounds more, so it must be faster by more than the model errs


def accumulator(spec: Contraction) -> np.dtype:
    """The type that products are summed in."""
    types = (spec.lhs.dtype, spec.rhs.dtype, spec.out.dtype)
    if all(is_floating(t) for t in types):
        return np.dtype(np.float64 if any(t == np.float64 for t in types[:2]) else np.float32)
    if any(is_floating(t) for t in types) or any(t.kind not in "iub" for t in types) or types[2].kind == "b":
        raise NotImplementedError(
            f"contraction of {types[0]} with {types[1]} into {types[2]} is not supported by the code generator; "
            "convert the operands to one floating or integer type first"
        )
    return spec.out.dtype


@lru_cache(maxsize=1024)
def plan(spec: Contraction, target: TargetInfo) -> Plan | WinogradPlan:
    """Choose how to compute ``spec`` on ``target``."""
    fast = plan_winograd(spec, target) if target.winograd else None
    if fast is not None and fast.cycles < WORTH_ROUNDING * _useful(spec) / target.lanes(4):
        return fast  # no direct sum can be as fast, so there is no need to look at them
    bound = Bound()
    found = bound.best(candidates(spec, target, bound=bound))
    assert found is not None  # of every contraction there is a plan
    cost, chosen, fields = found
    if fast is not None and fast.cycles < WORTH_ROUNDING * cost:
        return fast
    return finish(cost, chosen, fields)


def _useful(spec: Contraction) -> int:
    """Products of elements that exist."""
    products = spec.flops // 2
    stencil = find_stencil(spec) or find_stencil(spec.swapped())
    if stencil is None:
        return products
    axes = (stencil.inner, *stencil.outer)
    return products // math.prod(axis.place.extent * axis.tap.extent for axis in axes) * stencil.pairs


def finish(cost: float, chosen: Plan, fields: dict[str, Any]) -> Plan:
    """A candidate as a plan."""
    return with_workspace(replace(chosen, **fields, cycles=cost))


class Bound:
    """The cheapest candidate so far; what surely costs more need not be made."""

    def __init__(self) -> None:
        self.cost = math.inf

    def best(self, every: Iterable[Candidate]) -> Candidate | None:
        """The cheapest of ``every``, a generator that was given this bound."""
        found = None
        for candidate in every:
            if candidate[0] < self.cost:
                self.cost, found = candidate[0], candidate
        return found


def candidates(
    spec: Contraction, target: TargetInfo, whole: bool = False, bound: Bound | None = None
) -> Iterator[Candidate]:
    """Every plan that computes ``spec``; ``plan`` takes the cheapest. ``whole``: only those that have each sum complete in a
    register once, as an epilogue needs it. ``bound``: without some that cost more than what it has found."""
    acc = accumulator(spec)
    extents = spec.extents
    empty = View(acc, 0, {})
    if any(dim.extent == 0 for dim in spec.batch + spec.m + spec.n):
        yield 0.0, Plan(spec, target, "nothing", acc, empty, empty, empty), {}
        return
    out = View(spec.out.dtype, *spec.out.strides())
    if any(dim.extent == 0 for dim in spec.k):
        yield 0.0, Plan(spec, target, "zero", acc, empty, empty, out), {}
        return
    if is_floating(acc):
        for variant, swapped in ((spec, False), (spec.swapped(), True)):
            yield from direct_candidates(variant, swapped, target, acc, out, whole)
            yield from plane_candidates(variant, swapped, target, acc, out, whole)
    specs = [spec]
    if not (spec.lhs.is_plain(extents) and spec.rhs.is_plain(extents)) and is_floating(acc):
        specs += _by_sample(spec)
    for variant in specs:
        lhs, lhs_spread = _regular(variant.lhs, variant, acc)
        rhs, rhs_spread = _regular(variant.rhs, variant, acc)
        base = Plan(variant, target, "loops", acc, lhs, rhs, out, False, lhs_spread, rhs_spread, whole=whole)
        if not is_floating(acc):
            yield spec.flops * 1.0, base, {}
            return
        flipped = replace(
            base,
            spec=variant.swapped(),
            lhs=rhs,
            rhs=lhs,
            lhs_spread=rhs_spread,
            rhs_spread=lhs_spread,
            swapped=True,
        )
        spreading = _spread_cost(lhs_spread, variant, target) + _spread_cost(rhs_spread, variant, target)
        for start in (base, flipped):
            for make in (_outer, _inner):
                for cost, chosen, fields in make(start, bound, spreading):
                    yield cost + spreading, chosen, fields


def _by_sample(spec: Contraction) -> list[Contraction]:
    """The same work with the outermost loop of m or n made part of the batch, so that an operand is spread out one
    sample at a time: the buffer is smaller and stays in the cache."""
    variants = []
    if spec.n and spec.n[0].extent > 1:
        variants.append(replace(spec, batch=(*spec.batch, spec.n[0]), n=spec.n[1:]))
    if spec.m and spec.m[0].extent > 1:
        variants.append(replace(spec, batch=(*spec.batch, spec.m[0]), m=spec.m[1:]))
    return variants


def _regular(operand: Operand, spec: Contraction, acc: np.dtype) -> tuple[View, Spread | None]:
    extents = spec.extents
    if operand.is_plain(extents):
        return View(operand.dtype, *operand.strides()), None
    spread = spread_layout(operand, extents, spec.batch, acc)
    return spread.view, spread


def _spread_cost(spread: Spread | None, spec: Contraction, target: TargetInfo) -> float:
    if spread is None:
        return 0.0
    times = math.prod(dim.extent for dim in spec.batch) if spread.per_batch else 1
    in_cache = spread.elements * spread.dtype.itemsize <= target.l2 // 2
    return times * spread.elements * (0.3 if in_cache else 1.0)


def _sizes(p: Plan) -> tuple[int, int, int, int]:
    spec = p.spec
    b, m, n, k = (math.prod(d.extent for d in dims) for dims in (spec.batch, spec.m, spec.n, spec.k))
    return b, m, n, k


def _footprint(operand: Operand, spec: Contraction) -> int:
    """Elements of an operand that one step of the batch may touch."""
    extents = {**spec.extents, **{dim.name: 1 for dim in spec.batch}}
    spans = [axis.span(extents) for axis in operand.axes]
    return math.prod(high - low + 1 for low, high in spans)


@dataclass(frozen=True)
class _Columns:
    """The columns of an outer-product tile. ``rows`` says that they cover whole runs of n, read where they lie."""

    widths: tuple[int, ...]
    starts: tuple[int, ...]
    rows: bool

    @property
    def nr(self) -> int:
        return self.starts[-1] + self.widths[-1]


def _column_shapes(p: Plan, n: int, lanes: int) -> Iterator[_Columns]:
    """Flat tiles of whole vectors, and tiles that follow the shape of an image: a run, part of one, or several.

    With 28 numbers in a row of the output, vectors of 16 and 12 cover a row, and one tile may take several rows: no
    lane crosses a border, so the input can be read in place (a direct convolution).
    """
    for columns in range(1, min(8, -(-n // lanes)) + 1):
        widths = [lanes] * columns
        if columns * lanes > n:
            widths[-1] = n - (columns - 1) * lanes
        yield _Columns(tuple(widths), tuple(range(0, columns * lanes, lanes)), False)
    joint = levels_of(p.spec.n, p.rhs.strides, p.out.strides)
    if not joint or joint[-1][1:] != (1, 1) or p.rhs.dtype != p.acc:
        return
    rhs_levels, out_levels = levels_of(p.spec.n, p.rhs.strides), levels_of(p.spec.n, p.out.strides)
    length = joint[-1][0]
    for parts in range(1, 65):
        run = length // parts
        vectors = -(-run // lanes)
        if run * 4 < lanes and parts > 1:
            break
        if length % parts or vectors > 8:
            continue
        for count in range(1, 8 // vectors + 1 if parts == 1 else 2):
            nr = count * run
            if n % nr or tile_offsets(rhs_levels, nr) is None or tile_offsets(out_levels, nr) is None:
                continue
            starts = [r * run + v for r in range(count) for v in range(0, run, lanes)]
            widths = [min(lanes, run - start % run) for start in starts]
            yield _Columns(tuple(widths), tuple(starts), True)


def _outer(p: Plan, bound: Bound | None, before: float) -> Iterator[Candidate]:
    """Plans for the outer-product kernel; ``before`` is what is spent besides."""
    spec, target, size = p.spec, p.target, p.acc.itemsize
    b, m, n, k = _sizes(p)
    lanes = target.lanes(size)
    lhs_rows, rhs_rows = levels_of(spec.m, p.lhs.strides), levels_of(spec.n, p.rhs.strides)
    out_rows, out_columns = levels_of(spec.m, p.out.strides), levels_of(spec.n, p.out.strides)
    depth = p.depth_levels
    unit = not out_columns or out_columns[-1][1] == 1
    flat_rhs = len(rhs_rows) < 2 and (not rhs_rows or rhs_rows[0][1] == 1) and p.rhs.dtype == p.acc
    footprint = _footprint(spec.rhs, spec) * size
    aligned = all(stride % lanes == 0 for *_, stride in [*depth, *rhs_rows[:-1]])
    lhs_stride = lhs_rows[-1][1] * size if lhs_rows else 0
    row_plans = []
    for mr in range(1, min(m, 30) + 1):
        goal = max(256, target.l1 // 2 // (size * mr)) if p.out.dtype == p.acc and not p.whole else k
        split, chunk = choose_chunk(depth, goal)
        kc = chunk * math.prod(level[0] for level in depth[split + 1 :])
        alike = p.lhs.dtype == p.acc and tile_offsets(lhs_rows, mr) is not None
        row_plans.append((mr, split, chunk, kc, alike, tile_offsets(out_rows, mr) is not None))
    for shape in _column_shapes(p, n, lanes):
        columns, nr = len(shape.widths), shape.nr
        crossing = 0.0
        if not unit:
            crossing = 1.0
        elif not shape.rows and len(out_columns) > 1 and out_columns[-1][0] % nr:
            crossing = min(1.0, nr / out_columns[-1][0])
        ragged_n = n % nr != 0
        breadth = sum(1.0 if 2 * width > lanes else 0.6 for width in shape.widths)  # half a vector costs less
        for mr, split, chunk, kc, alike, out_alike in row_plans:
            if mr * columns + columns + 1 > target.registers:
                break
            if bound is not None:
                tiles = b * -(-m // mr) * -(-n // nr)
                if before + tiles * k * max(mr * breadth, columns + mr, 8) >= bound.cost:
                    continue
            single, ragged_m = kc == k, m % mr != 0
            once = single and not p.whole  # an epilogue may update in place, so nothing is computed twice
            m_overlap = ragged_m and once and len(lhs_rows) < 2 and len(out_rows) < 2
            lhs_direct = alike and (not ragged_m or m_overlap)
            n_overlap = flat_rhs and ragged_n and once and len(out_columns) < 2
            tiles_m, tiles_n = -(-m // mr), -(-n // nr)
            slow = crossing if out_alike else 1.0
            store = mr * columns * (1.5 + slow * (5 if unit else lanes * 1.2))
            for rhs_packed in (False, True):
                if rhs_packed and shape.rows:
                    continue
                if not rhs_packed and not shape.rows and (not flat_rhs or (ragged_n and not n_overlap)):
                    continue
                # Many processors load as many vectors in a cycle as they multiply, and finish a product after eight.
                loads = columns * (1.0 if rhs_packed or aligned else 1.5) + mr
                per_k = (
                    max(mr * breadth, loads, 8) + (0.5 if mr * columns < 12 else 0) + 0.05 * (mr + columns)
                )
                if kc * nr * size > target.l1 // 2:
                    per_k += 0.15 * columns  # the panel comes from the second-level cache
                cost = b * tiles_m * tiles_n * (k * per_k + -(-k // kc) * (store + 20))
                block = target.l2 // 2 // (size * kc)
                if not rhs_packed and (tiles_m == 1 or footprint <= target.l2 // 2):
                    block = n
                elif not rhs_packed:
                    block = max(1, n * (target.l2 // 2) // footprint)
                nc = min(max(1, block // nr), tiles_n) * nr
                if rhs_packed:
                    cost += b * k * n * pack_cost(rhs_rows, depth[-1][2] == 1, nr, lanes)
                    cost += b * tiles_n * -(-k // kc) * 10 + 0.05 * cost
                elif depth[-1][2] * size % 2048 == 0 and kc > 64 and tiles_m > 2:
                    cost *= 1.15  # rows a power of two apart fall into the same cache sets
                for lhs_packed in (False, True):
                    if not lhs_packed and not lhs_direct:
                        continue
                    total = cost
                    if lhs_packed:
                        pack = pack_cost(lhs_rows, depth[-1][1] == 1, mr, lanes)
                        total += b * k * tiles_m * mr * pack * -(-n // nc)
                    elif mr > 6 and lhs_stride and lhs_stride % 2048 == 0 and kc > 16:
                        total *= 1.25
                    if bound is not None and before + total >= bound.cost:
                        continue
                    yield (
                        total,
                        p,
                        {
                            "path": "outer",
                            "mr": mr,
                            "widths": shape.widths,
                            "starts": shape.starts,
                            "lanes": lanes,
                            "k_split": split,
                            "k_chunk": chunk,
                            "nc": nc,
                            "lhs_packed": lhs_packed,
                            "rhs_packed": rhs_packed,
                            "m_overlap": m_overlap and not lhs_packed,
                            "n_overlap": n_overlap and not rhs_packed and not shape.rows,
                        },
                    )


def _inner(p: Plan, bound: Bound | None, before: float) -> Iterator[Candidate]:
    """Plans for the inner-product kernel; ``before`` is what is spent besides."""
    spec, target, size = p.spec, p.target, p.acc.itemsize
    b, m, n, k = _sizes(p)
    depth = p.depth_levels
    run = depth[-1][0]
    if depth[-1][1:] != (1, 1) or run < 4 or p.lhs.dtype != p.acc or p.rhs.dtype != p.acc:
        return
    m_levels = levels_of(spec.m, p.lhs.strides, p.out.strides)
    n_levels = levels_of(spec.n, p.rhs.strides, p.out.strides)
    working_set = (_footprint(spec.lhs, spec) + _footprint(spec.rhs, spec)) * size
    goal = k
    if p.out.dtype == p.acc and working_set > target.l2 and not p.whole:
        goal = max(256, k * (target.l2 // 2) // working_set)
    split, chunk = choose_chunk(depth, goal)
    if len(depth) == 1:
        chunk = run
    elif split == len(depth) - 1:
        split, chunk = len(depth) - 2, 1
    kc = chunk * math.prod(level[0] for level in depth[split + 1 :])
    single = kc == k
    full = target.lanes(size)
    # Loads of both operands are rarely aligned, so each counts as one and a half; from beyond the first-level cache as more.
    share = kc / k * size
    column_load = 1.5 if _footprint(spec.rhs, spec) * share <= target.l1 // 2 else 2.2
    heights = [mr for mr in range(1, min(m, 16) + 1) if tile_offsets(m_levels, mr) is not None]
    breadths = [nr for nr in range(1, min(n, 16) + 1) if tile_offsets(n_levels, nr) is not None]
    for lanes in {full, max(2, full // 2)}:
        steps = -(-run // lanes)
        speed = 1.0 if lanes == full else 0.7
        for mr in heights:
            m_overlap = m % mr != 0
            if m_overlap and (not single or p.whole or len(m_levels) > 1):
                continue
            for nr in breadths:
                if mr * nr + mr + 1 > target.registers:
                    break
                n_overlap = n % nr != 0
                if n_overlap and (not single or p.whole or len(n_levels) > 1):
                    continue
                row_load = 1.5 if mr * kc * size <= target.l1 // 2 else 2.2
                per_step = max(mr * nr, row_load * mr + column_load * nr, 8) * speed + 0.5
                tile = (k // run) * (steps * per_step + 2) + -(-k // kc) * (mr * nr * 2.5 + 15)
                total = b * -(-m // mr) * -(-n // nr) * tile
                if bound is not None and before + total >= bound.cost:
                    continue
                yield (
                    total,
                    p,
                    {
                        "path": "inner",
                        "mr": mr,
                        "widths": (1,) * nr,
                        "starts": tuple(range(nr)),
                        "lanes": lanes,
                        "k_split": split,
                        "k_chunk": chunk,
                        "nc": n,
                        "m_overlap": m_overlap,
                        "n_overlap": n_overlap,
                    },
                )
