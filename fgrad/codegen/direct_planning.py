"""Plans for convolutions that read the image where it lies: ``direct.py`` (lanes along channels) and ``plane.py`` (lanes
along a line of the image)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fgrad.codegen.blocking import Candidate, Direct, Plan, pack_cost
from fgrad.codegen.contraction import Contraction
from fgrad.codegen.packing import View, levels_of
from fgrad.codegen.stencil import find_stencil, reads_of, strips
from fgrad.codegen.target import TargetInfo

_MOST_CODE = 320  # multiply-adds in the code of one direct convolution


def direct_candidates(
    spec: Contraction, swapped: bool, target: TargetInfo, acc: np.dtype, out: View, whole: bool
) -> Iterator[Candidate]:
    """Plans for the direct convolution, if this is one."""
    stencil = find_stencil(spec)
    lanes, size = target.lanes(acc.itemsize), acc.itemsize
    if stencil is None or spec.rhs.dtype != acc:
        return
    m = math.prod(d.extent for d in spec.m)
    if len(levels_of(spec.m, out.strides)) > 1:
        return
    b, _, _, k = (math.prod(d.extent for d in dims) for dims in (spec.batch, spec.m, spec.n, spec.k))
    lhs = View(spec.lhs.dtype, *spec.lhs.strides())
    base = Plan(spec, target, "direct", acc, lhs, stencil.view, out, swapped, whole=whole)
    depth, rows = levels_of(spec.k, lhs.strides), levels_of(spec.m, lhs.strides)
    pack = b * m * k * pack_cost(rows, bool(depth) and depth[-1][1] == 1 and depth[-1][0] >= 4, lanes, lanes)
    loops = math.prod(d.extent for d in stencil.loops)
    last = stencil.loops[-1].extent if stencil.loops else 1
    channels = math.prod(d.extent for d in stencil.channels)
    lines = math.prod(axis.place.extent for axis in stencil.outer)
    pairs = math.prod(axis.pairs for axis in stencil.outer)
    extent, first = stencil.inner.place.extent, spec.k[0]
    divisions = sorted({-(-extent // tile) for tile in range(min(extent, 7), min(extent, 30) + 1)})
    groups = [t for t in range(1, 29) if last % t == 0]
    # Rows a multiple of this many bytes apart compete for the same few places in the first-level cache.
    apart = stencil.view.strides.get(stencil.loops[-1].name, 0) * size if stencil.loops else 1
    crowded = 8 if apart % (target.l1 // 8) == 0 else 29
    sizes = {c * lanes for c in range(1, 7) if m % (c * lanes) == 0} | ({m} if m <= 6 * lanes else set())
    for nr in sizes:
        starts = tuple(range(0, nr, lanes))
        widths = tuple(min(lanes, nr - start) for start in starts)
        breadth = sum(1.0 if 2 * width > lanes else 0.6 for width in widths)
        chunks = {first.extent}
        fits = target.l2 // 2 // (size * nr * k // first.extent)
        if first in stencil.channels and out.dtype == acc and not whole and fits < first.extent:
            chunks.add(max(1, fits))
        for parts in divisions:
            tile = -(-extent // parts)
            for together in groups:
                mr = tile * together
                if mr * len(widths) + len(widths) + 1 > target.registers:
                    break
                found = strips(stencil.inner, parts)
                work = code = 0.0
                for strip in found:
                    for run in strip.runs:
                        met = len(run.rows) * together
                        times = 1 if run.count > 8 else run.count
                        code += met * len(widths) * times
                        per = max(met * breadth, 0.5 * met + len(widths), 6)
                        work += strip.count * run.count * (per + (1.0 if run.count > 8 else 0.2))
                    work += strip.count * 2.0
                if code > _MOST_CODE:
                    continue
                tiles = lines * parts * (loops // together) * (m // nr)
                store = together * sum(40 + width * 2.5 for width in widths) * -(-tile // lanes)
                for chunk in chunks:
                    block = target.l2 // 2 // (size * nr * (k // first.extent) * chunk)
                    nc = min(max(1, block), m // nr) * nr
                    times = -(-first.extent // chunk)
                    cost = (m // nr) * (loops // together) * pairs * channels * work
                    cost *= 1.0 + 0.08 * code / _MOST_CODE  # of equal plans the one that compiles faster
                    if together > crowded:
                        cost *= 1.3
                    if size * nc * (k // first.extent) * chunk > target.l2 * 3 // 4:
                        cost *= 1.1
                    cost += tiles * times * (store + 30)
                    cost += 0.3 * loops * channels * lines * extent * -(-m // nc)
                    fields = {"mr": mr, "widths": widths, "starts": starts, "lanes": lanes, "nc": nc}
                    fields |= {
                        "k_chunk": chunk,
                        "lhs_packed": True,
                        "direct": Direct(stencil, parts, together),
                    }
                    yield b * cost + pack, base, fields


_READ = {
    "line": 1.2,
    "every other": 3.0,
    "spread": 2.5,
}  # cycles to bring one vector of the image into registers


def plane_candidates(
    spec: Contraction, swapped: bool, target: TargetInfo, acc: np.dtype, out: View, whole: bool
) -> Iterator[Candidate]:
    """Plans with lanes along a line of the image: for few channels a group, down to one (depthwise)."""
    m, lanes = math.prod(d.extent for d in spec.m), target.lanes(acc.itemsize)
    if m > 4 or spec.rhs.dtype != acc or not target.masked_loads or acc.name not in ("float32", "float64"):
        return
    stencil = find_stencil(spec)
    if stencil is None or len(levels_of(spec.m, out.strides)) > 1 or stencil.inner.axis.stride != 1:
        return
    extent = stencil.inner.place.extent
    if 4 * extent <= lanes:
        return
    parts = -(-extent // lanes)
    channels = math.prod(d.extent for d in stencil.channels)
    chain = (
        3.3 + 0.2 * m if channels > 2 else 0.0
    )  # products that wait for each other: one sum for each row of m
    work = code = 0.0
    for strip in strips(stencil.inner, parts):
        for run in strip.runs:
            read = reads_of(run)
            if read is None:
                return
            work += strip.count * run.count * max(_READ[read] + m, chain)
            code += m * (1 if run.count > 8 else run.count)
        work += strip.count * 2.0
    if code > _MOST_CODE:
        return
    steps = math.prod(d.extent for d in spec.batch + stencil.loops)
    lines = math.prod(axis.place.extent for axis in stencil.outer)
    pairs = math.prod(axis.pairs for axis in stencil.outer)
    cost = steps * (pairs * channels * work + lines * parts * (1.5 * m + 4.0))
    lhs = View(spec.lhs.dtype, *spec.lhs.strides())
    base = Plan(spec, target, "plane", acc, lhs, stencil.view, out, swapped, whole=whole)
    yield cost, base, {"mr": m, "lanes": lanes, "direct": Direct(stencil, parts, 1)}
