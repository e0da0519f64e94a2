"""Winograd's convolution: which contractions it can compute, and how each is blocked.

A 3x3 convolution of stride one (forward or its input's gradient, which is a convolution too) becomes, with tiles of ``m x m``
outputs, ``(m + 2)**2`` matrix products of ``channels x outputs`` numbers each, over all tiles. With m = 4 these are a quarter
of the multiplications; with m = 2 four ninths. The kernel's gradient is the same algorithm transposed.

    transform the kernel                                   U[place][panel of outputs][channel][lane]
    for blocks of tiles (samples, or bands of one sample):
      transform the input                                  V[place][tile][channel]
      for blocks of outputs:
        multiply at every place                            M[place][tile][output]
        transform back, store

(for the gradient of the kernel, V and the transformed cotangent are multiplied, and the sums over tiles transformed back).
Channels lie along vectors in all transforms. Images have their channels far apart, so blocks of 16 channels are transposed
into a small padded buffer first, and results on their way out: this is also where padding and ragged edges are dealt with.

Rounding: measured against the norm of the result, m = 2 errs as little as the direct sum, m = 4 about twice as
much (short sums: up to 5e-7). An input that is
infinite or NaN makes its whole tile NaN, where a direct convolution confines it to the nine outputs it belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from fgrad.codegen.contraction import Axis, Contraction, Dim, Operand
from fgrad.codegen.target import TargetInfo
from fgrad.codegen.winograd_matrices import TAPS

_FLOAT = np.dtype(np.float32)
_LINE = 64


@dataclass(frozen=True)
class Image:
    """An operand with rows and columns: strides in elements (columns are contiguous), the position at which the first tile
    begins, and the positions ``low <= p < high`` that exist; others read as zero."""

    offset: int
    sample: int
    channel: int
    row: int
    start: tuple[int, int]
    low: tuple[int, int]
    high: tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """A contraction that is a 3x3 convolution. ``x`` is what is convolved; ``y`` the output or, in the gradient of the
    kernel (``weight_grad``), the cotangent. ``outputs`` runs along y's channels, ``channels`` along x's."""

    weight_grad: bool
    samples: int
    channels: int
    outputs: int
    size: tuple[int, int]  # of y
    x: Image
    y: Image
    # The kernel: offset and strides of outputs and channels in elements; its nine taps are contiguous.
    kernel: tuple[int, int, int]
    flips: tuple[bool, bool]


def _spatial(operand: Operand, tap_dims: tuple[Dim, ...], place_dims: tuple[Dim, ...]) -> list[tuple] | None:
    """The two axes ``place + tap``: (axis, name of place, name of tap, sign of tap)."""
    taps, places = {d.name: d for d in tap_dims}, {d.name: d for d in place_dims}
    found = []
    for axis in operand.axes:
        coefs = dict(axis.coefs)
        tap = [n for n in coefs if n in taps]
        place = [n for n in coefs if n in places]
        if not (len(coefs) == 2 and len(tap) == len(place) == 1):
            if axis.size is not None or axis.divisor != 1:
                return None
            continue
        (t,), (p,) = tap, place
        if taps[t].extent != TAPS or abs(coefs[t]) != 1 or coefs[p] != 1 or axis.divisor != 1:
            return None
        found.append((axis, p, t, coefs[t]))
    found.sort(key=lambda entry: -entry[0].stride)
    return found if len(found) == 2 and found[1][0].stride == 1 else None


def shape_of(spec: Contraction) -> Shape | None:
    """The convolution that ``spec`` is, if Winograd's algorithm applies to it."""
    if any(o.dtype != _FLOAT for o in (spec.lhs, spec.rhs, spec.out)) or not spec.flops:
        return None
    if any(d.extent != 1 for d in spec.batch) or len(spec.m) != 1:
        return None
    for weight_grad, taps, places in ((False, spec.k, spec.n), (True, spec.n, spec.k)):
        spatial = _spatial(spec.rhs, taps, places)
        if spatial is None or not spec.lhs.is_plain(spec.extents):
            continue
        used = {name for _, *names, _ in spatial for name in names}
        sample = [d for d in places if d.name not in used]
        channel = [d for d in taps if d.name not in used]
        if len(sample) != 1 or len(channel) != 1:
            continue
        return _shape(spec, weight_grad, spatial, sample[0], channel[0])
    return None


def _shape(
    spec: Contraction, weight_grad: bool, spatial: list[tuple], sample: Dim, channel: Dim
) -> Shape | None:
    extents = spec.extents
    (output,) = spec.m
    axes: list[Axis] = [entry[0] for entry in spatial]
    places, taps = [entry[1] for entry in spatial], [entry[2] for entry in spatial]
    size = extents[places[0]], extents[places[1]]
    plain = [axis for axis in spec.rhs.axes if axis not in axes]
    base, strides = replace(spec.rhs, axes=tuple(plain)).strides()
    starts = [axis.offset + min(0, sign * (TAPS - 1)) for axis, _, _, sign in spatial]
    low = [0 if axis.size is not None else start for axis, start in zip(axes, starts)]
    high = [
        axis.size if axis.size is not None else start + extent + TAPS - 1
        for axis, start, extent in zip(axes, starts, size)
    ]
    x = Image(
        base,
        strides.get(sample.name, 0),
        strides.get(channel.name, 0),
        axes[0].stride,
        (starts[0], starts[1]),
        (low[0], low[1]),
        (high[0], high[1]),
    )
    flat, kernel = (spec.lhs, spec.out) if weight_grad else (spec.out, spec.lhs)
    y_base, y_strides = flat.strides()
    k_base, k_strides = kernel.strides()
    if y_strides[places[1]] != 1 or [k_strides[t] for t in taps] != [TAPS, 1]:
        return None
    y = Image(
        y_base,
        y_strides.get(sample.name, 0),
        y_strides[output.name],
        y_strides[places[0]],
        (0, 0),
        (0, 0),
        size,
    )
    return Shape(
        weight_grad,
        sample.extent,
        channel.extent,
        output.extent,
        size,
        x,
        y,
        (k_base, k_strides[output.name], k_strides[channel.name]),
        (spatial[0][3] < 0, spatial[1][3] < 0),
    )


@dataclass(frozen=True)
class WinogradPlan:
    """How one contraction is computed by Winograd's algorithm; ``print`` it to see."""

    spec: Contraction
    target: TargetInfo
    shape: Shape
    m: int  # a tile's side
    tiles: tuple[int, int] = (1, 1)  # rows and columns of tiles in a sample
    samples: int = 1  # samples in a block of tiles,
    band: int = 1  # or rows of tiles, if it is a part of one sample
    mr: int = 1  # the micro-kernel's rows (tiles; outputs in the gradient of the kernel)
    columns: int = 1  # and its columns, in vectors (outputs; channels)
    outputs: int = 1  # in a block
    kernel_once: bool = (
        False  # the kernel is transformed before everything else, not with each block of outputs
    )
    cycles: float = 0.0
    acc: np.dtype = _FLOAT
    path: str = "winograd"
    workspace: dict[str, int] = field(default_factory=dict, hash=False)
    workspace_bytes: int = 0

    @property
    def flops(self) -> int:
        """Of the direct convolution, so that rates can be compared."""
        return self.spec.flops

    @property
    def recipe(self) -> str:
        """What tells this plan from the other plans for its contraction, in one word."""
        block = f"{self.samples}.{self.band}.{self.outputs}{'k' if self.kernel_once else ''}"
        return f"{self.path}/{self.m}/{block}/{self.mr}x{self.columns}x{self.lanes}"

    @property
    def lanes(self) -> int:
        return self.target.lanes(4)

    @property
    def nr(self) -> int:
        return self.columns * self.lanes

    @property
    def places(self) -> int:
        return (self.m + TAPS - 1) ** 2

    @property
    def block_tiles(self) -> int:
        return self.samples * self.band * self.tiles[1]

    @property
    def blocks(self) -> int:
        return self.shape.samples // self.samples * (self.tiles[0] // self.band)

    # Pitches of the arrays between the transforms, in elements. No power of two: rows would fall into the same cache sets.

    @property
    def x_pitch(self) -> int:
        return _up(self.shape.channels, self.nr if self.shape.weight_grad else self.lanes) + self.lanes

    @property
    def y_pitch(self) -> int:
        """Of the transformed cotangent, or of the products."""
        return (
            _up(self.outputs, self.nr) + self.lanes
            if not self.shape.weight_grad
            else (_up(_up(self.shape.outputs, self.lanes), self.mr) + self.lanes)
        )

    @property
    def sums_pitch(self) -> int:
        return _up(self.shape.channels, self.nr) + self.lanes

    @property
    def x_place(self) -> int:
        return _odd_lines(self.block_tiles * self.x_pitch)

    @property
    def y_place(self) -> int:
        return _odd_lines(self.block_tiles * self.y_pitch)

    @property
    def kernel_place(self) -> int:
        """Elements from one place to the next of the transformed kernel, or of the sums for its gradient."""
        if self.shape.weight_grad:
            rows = self.shape.outputs if self.blocks > 1 else self.outputs
            return _odd_lines(_up(rows, self.mr) * self.sums_pitch)
        outputs = self.shape.outputs if self.kernel_once else self.outputs
        return _odd_lines(_up(outputs, self.nr) * self.shape.channels)

    def stage(self, halo: int) -> tuple[int, int]:
        """Rows and columns of the buffer in which a block of channels of one band lies while it is transformed."""
        return self.band * self.m + halo, self.tiles[1] * self.m + halo

    def __str__(self) -> str:
        s = self.shape
        kind = "kernel's gradient" if s.weight_grad else "convolution"
        return (
            f"winograd F({self.m}x{self.m}, 3x3) {kind} {s.channels} -> {s.outputs}, {s.samples} x {s.size}, "
            f"blocks of {self.block_tiles} tiles and {self.outputs} outputs, tile {self.mr}x{self.nr}"
            f"{', kernel once' * self.kernel_once}, workspace {self.workspace_bytes} bytes, about {self.cycles:.0f} cycles"
        )


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _odd_lines(elements: int) -> int:
    """Rounded up to an odd number of cache lines, so that the same element of all places falls into different sets."""
    lines = -(-elements * 4 // _LINE)
    return (lines + 1 - lines % 2) * _LINE // 4


def with_workspace(plan: WinogradPlan) -> WinogradPlan:
    """The same plan with a place in the workspace for every array."""
    needs = {
        "x_stage": math.prod(plan.stage(TAPS - 1)) * plan.lanes,
        "y_stage": math.prod(plan.stage(0)) * plan.lanes,
        "x": plan.places * plan.x_place,
        "y": plan.places * plan.y_place,
        "kernel": plan.places * plan.kernel_place,
    }
    offsets, end = {}, 0
    for name, elements in needs.items():
        offsets[name] = end
        end += _up(elements * 4, _LINE)
    return replace(plan, workspace=offsets, workspace_bytes=end + 4 * _LINE)


def candidates(
    spec: Contraction, target: TargetInfo, sides: tuple[int, ...] = (4, 2)
) -> Iterator[WinogradPlan]:
    """Winograd plans for ``spec`` with their costs, by tiles of these sides; none if the algorithm does not apply."""
    shape = shape_of(spec)
    lanes = target.lanes(4)
    if shape is None or not target.fma or lanes < 4 or min(shape.channels, shape.outputs) < lanes:
        return
    for m in sides:
        for base in _blockings(WinogradPlan(spec, target, shape, m)):
            found = _with_kernel(base)
            yield with_workspace(replace(found, cycles=cost(found)))


@lru_cache(maxsize=1024)
def plan_winograd(spec: Contraction, target: TargetInfo) -> WinogradPlan | None:
    """The cheapest Winograd plan for ``spec``, if there is one."""
    best = min(candidates(spec, target, (4,)), key=lambda p: p.cycles, default=None)
    if best is None:
        return None
    tiles, places = math.prod(best.tiles), math.prod(best.shape.size)
    if 16 * tiles < 1.4 * places and best.shape.samples * tiles >= 64:
        return best  # small tiles take almost twice the multiplications, and the kernel's transform does not matter
    return min((best, *candidates(spec, target, (2,))), key=lambda p: p.cycles)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _blockings(start: WinogradPlan) -> Iterator[WinogradPlan]:
    """Blocks of tiles, and of outputs. What is between the transforms of a block should stay in the second-level cache."""
    s, m, lanes = start.shape, start.m, start.lanes
    tiles = -(-s.size[0] // m), -(-s.size[1] // m)
    blocks = [(1, band) for band in _divisors(tiles[0])]
    blocks += [(samples, tiles[0]) for samples in _divisors(s.samples) if samples > 1]
    counts = {block: block[0] * block[1] * tiles[1] for block in blocks}
    some = {min(blocks, key=lambda block: abs(math.log(counts[block] / goal))) for goal in (24, 64, 160)}
    whole = (s.samples, tiles[0])
    if counts[whole] * (m + 2) ** 2 * (s.channels + s.outputs) * 4 <= 8 * start.target.l2:
        some.add(whole)  # the kernel is then transformed as it is needed
    for samples, band in sorted(some):
        base = replace(start, tiles=tiles, samples=samples, band=band)
        for outputs in sorted(
            {o for o in (2 * lanes, 4 * lanes, 8 * lanes) if s.outputs % o == 0} | {s.outputs}
        ):
            if s.weight_grad and base.blocks > 1 and outputs < s.outputs:
                continue  # the sums of all outputs are kept anyway
            yield replace(base, outputs=outputs, kernel_once=base.blocks > 1 and not s.weight_grad)


def _with_kernel(base: WinogradPlan) -> WinogradPlan:
    s, lanes = base.shape, base.lanes
    if s.weight_grad:
        rows, width, depth = base.outputs, s.channels, base.block_tiles
        divide = rows < s.outputs
    else:
        rows, width, depth = base.block_tiles, base.outputs, s.channels
        divide = False
    mr, columns = _register_tile(rows, -(-width // lanes), depth, base.target.registers, divide)
    return replace(base, mr=mr, columns=columns)


@lru_cache(maxsize=1024)
def _register_tile(rows: int, vectors: int, depth: int, registers: int, divide: bool) -> tuple[int, int]:
    """Rows and vectors of the micro-kernel's tile, from a short list, so that convolutions share them. ``divide``: the rows
    must be a multiple of the tile's."""
    choices = []
    for columns in {c for c in (1, 2, 4) if c < 2 * vectors}:
        for mr in (1, 2, 3, 4, 6, 8, 12, 14, 24):
            if mr * columns + columns + 1 > registers or mr > rows or (divide and rows % mr):
                continue
            per_k = max(mr * columns, 8) + 0.5 + 0.05 * (mr + columns)
            cycles = -(-rows // mr) * -(-vectors // columns) * (depth * per_k + 2 * mr * columns + 20)
            choices.append((cycles, mr, columns))
    return min(choices)[1:]


def cost(p: WinogradPlan) -> float:
    """Cycles, fitted to measurements (see ``planning``)."""
    s, lanes, places = p.shape, p.lanes, p.places
    tiles = s.samples * math.prod(p.tiles)
    rows, wide, depth = (
        (s.outputs, s.channels, p.block_tiles) if s.weight_grad else (p.block_tiles, s.outputs, s.channels)
    )
    per_k = max(p.mr * p.columns, 8) + 0.5 + 0.05 * (p.mr + p.columns)
    kernel = depth * per_k + p.mr * p.columns * (4 if s.weight_grad and p.blocks > 1 else 2) + 20
    total = p.blocks * places * -(-rows // p.mr) * -(-wide // p.nr) * kernel
    # Transforms of a tile of a vector of channels: there, back (or of the cotangent), the kernel's.
    each = {4: (270.0, 170.0, 260.0), 2: (90.0, 60.0, 130.0)}[p.m]
    moving = 7.0 * p.m * p.m
    total += tiles * -(-s.channels // lanes) * (each[0] + moving)
    total += tiles * -(-s.outputs // lanes) * (each[1] + moving)
    total += s.outputs * s.channels / lanes * each[2]
    # What does not stay in the second-level cache: tiles between their transforms, and the transformed kernel.
    cache = p.target.l2 // 2
    held = 4 * places * (p.x_place + p.y_place)
    if held > cache:
        total += (0.04 if held < 4 * p.target.l2 else 0.1) * p.blocks * held
    held = 4 * places * p.kernel_place
    if held > cache:
        times = p.blocks if p.kernel_once or s.weight_grad else s.outputs // p.outputs
        total += (0.06 if held < 4 * p.target.l2 else 0.12) * times * held
    return total
