"""How a contraction is cut into the blocks and threads of a GPU: tile sizes, and parts of k.

A multiprocessor does 128 float32 multiply-adds a cycle and moves 128 bytes a cycle to or from shared memory, some 24 from the L2 cache.
A block of BM x BN sums does BM*BN multiply-adds for BM + BN elements, and a thread of TM x TN sums TM*TN for TM + TN elements that it reads from
shared memory. 128 x 128 with 8 x 8 a thread is 16 multiply-adds a byte from the cache (it takes 5) and 1 a byte from shared memory in vectors that a warp
shares (it takes 1/4 of the traffic), and leaves two blocks of 256 threads the registers they need. Smaller problems take smaller tiles, so
that all multiprocessors have some; where k is long and there are still too few tiles (gradients for weights, small batches), k is cut into
parts, whose sums are added afterwards in their order: the same result every time.

`plan_product` takes the cheapest of a list of tiles by a model of these limits (`_cycles`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from fgrad import dtypes
from fgrad.codegen.contraction import Contraction
from fgrad.codegen.cuda.addresses import address_of, size_of
from fgrad.codegen.cuda.product_order import Cut, by_residue, channels_inside, dense, normal, one_tap
from fgrad.codegen.cuda.staging import held_as, run_length
from fgrad.codegen.cuda.target import CudaTarget


@dataclass(frozen=True)
class Tile:
    """A block makes `bm` x `bn` sums from `bk` steps of k at a time; a thread `tm` x `tn` of them, or a warp on tensor cores, whose
    element type is `core`: "tf32" or "bf16"."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    core: str = ""

    @property
    def threads(self) -> int:
        return (self.bm // self.tm) * (self.bn // self.tn) * (32 if self.core else 1)

    def __str__(self) -> str:
        return f"{self.bm}x{self.bn}x{self.bk}" + (f"_{self.core}" if self.core else "")


@dataclass(frozen=True)
class ProductPlan:
    """`spec` is the contraction as the kernel does it: without dimensions of one step, n along the output's neighbours, k in its
    order. `parts` of `part_steps` steps of k each. `cuts` are places by their residues, for which blocks skip steps of k."""

    spec: Contraction
    tile: Tile
    parts: int = 1
    part_steps: int = 0
    swapped: bool = False
    cuts: tuple[Cut, ...] = ()

    @property
    def useful(self) -> float:
        """Which part of the steps of k a block does."""
        return 1 / math.prod(rest.extent for _, _, rest in self.cuts)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Of batch, m, n and k."""
        s = self.spec
        return size_of(s.batch), size_of(s.m), size_of(s.n), size_of(s.k)

    @property
    def tiles(self) -> tuple[int, int]:
        _, m, n, _ = self.sizes
        return -(-m // self.tile.bm), -(-n // self.tile.bn)

    @property
    def steps(self) -> int:
        return -(-self.sizes[3] // self.tile.bk)

    @property
    def blocks(self) -> int:
        return self.sizes[0] * self.tiles[0] * self.tiles[1] * self.parts


_BIG = [Tile(128, 128, 8, 8, 8), Tile(128, 64, 8, 8, 8), Tile(64, 128, 8, 8, 8), Tile(128, 64, 8, 8, 4)]
_MIDDLE = [
    Tile(64, 64, 16, 8, 4),
    Tile(64, 64, 16, 4, 4),
    Tile(128, 32, 16, 8, 4),
    Tile(32, 128, 16, 4, 8),
    Tile(64, 32, 16, 4, 4),
    Tile(32, 64, 16, 4, 4),
    Tile(32, 32, 16, 4, 4),
    Tile(32, 32, 32, 4, 2),
]
_NARROW = [
    Tile(256, 16, 16, 4, 4),
    Tile(16, 256, 16, 4, 4),
    Tile(128, 16, 16, 4, 4),
    Tile(16, 128, 16, 4, 4),
    Tile(64, 16, 32, 4, 2),
    Tile(16, 64, 32, 2, 4),
    Tile(16, 16, 32, 2, 1),
    Tile(128, 8, 16, 4, 2),
    Tile(8, 128, 16, 2, 4),
    Tile(8, 256, 8, 4, 4),
    Tile(64, 4, 32, 2, 1),
    Tile(4, 64, 32, 1, 2),
    Tile(64, 1, 32, 1, 1),
    Tile(1, 64, 32, 1, 1),
    Tile(1, 256, 8, 1, 2),
]
# Four threads each. The larger one is for products that are all work: in the simulator a barrier takes as long as many multiplications.
_SIMULATED, _SIMULATED_WORK = Tile(4, 4, 4, 2, 2), Tile(16, 16, 16, 8, 8)
_WIDE = 16  # a side of a tile, below which it is for products no wider than twice that
_SIMULATED_SMALL = 1 << 14  # multiply-adds
# Of a warp: 64 x 32 sums, 64 registers of each lane, for which it reads 96 lines of shared memory.
_TF32 = [
    Tile(128, 128, 16, 64, 32, "tf32"),
    Tile(128, 64, 16, 64, 32, "tf32"),
    Tile(64, 128, 16, 32, 64, "tf32"),
    Tile(64, 64, 32, 32, 32, "tf32"),
    Tile(32, 64, 32, 16, 32, "tf32"),
    Tile(64, 32, 32, 32, 16, "tf32"),
]
_SIMULATED_CORES = {
    "tf32": [Tile(16, 8, 8, 16, 8, "tf32")],
    "bf16": [Tile(16, 8, 16, 16, 8, "bf16")],
}  # one warp
_CORES = {"tf32": _TF32, "bf16": [replace(t, bk=s * t.bk, core="bf16") for t in _TF32 for s in (1, 2)]}
_RATE = {
    "": 128,
    "tf32": 600,
    "bf16": 1200,
}  # multiply-adds a cycle of a multiprocessor; on cores, of what warps reach
_SUMS_IN_DOUBLE = 32  # of a thread: each takes two registers


def _tiles(spec: Contraction, target: CudaTarget, precision: str) -> Iterator[Tile]:
    core = core_for(spec, target, precision)
    if core:
        yield from _SIMULATED_CORES[core] if target.simulated else _CORES[core]
        if target.simulated:
            return
    double = held_as(spec.lhs.dtype, spec.rhs.dtype) == dtypes.float64
    small = math.prod(spec.extents.values()) <= _SIMULATED_SMALL
    simulated = [_SIMULATED if small or double else _SIMULATED_WORK]
    real = [*_BIG, *_MIDDLE, *(t for t in _NARROW if _coalesced(t, spec))]
    for tile in simulated if target.simulated else real:
        if not double or (tile.tm * tile.tn <= _SUMS_IN_DOUBLE and _shared(tile, 8) <= target.shared_bytes):
            yield tile


def _coalesced(tile: Tile, spec: Contraction) -> bool:
    """Whether threads load and store neighbours: a tile with a very short side is for products that have one too."""
    sides = ((tile.bm, size_of(spec.m)), (tile.bn, size_of(spec.n)))
    return all(side >= _WIDE or whole <= 2 * side for side, whole in sides)


def _shared(tile: Tile, itemsize: int) -> int:
    """Bytes of shared memory of a block, at the most (see `Staging.pitch`)."""
    return 2 * tile.bk * (tile.bm + tile.bn + 8) * itemsize


def core_for(spec: Contraction, target: CudaTarget, precision: str) -> str:
    """What tensor cores may multiply with: "tf32", "bf16", or "" for not at all. float16 has more digits than bfloat16 and no more
    than TF32, so it takes TF32 if either is allowed."""
    operands = {spec.lhs.dtype, spec.rhs.dtype}
    if precision not in ("float32", "tf32", "bf16"):
        raise ValueError(f"precision must be 'float32', 'tf32' or 'bf16', not {precision!r}")
    if (
        precision == "float32"
        or dtypes.float64 in operands
        or not (target.simulated or target.capability >= (8, 0))
    ):
        return ""
    return "bf16" if precision == "bf16" and dtypes.float16 not in operands else "tf32"


# ------------------------------------------------------------------------------------------------ what it takes

_LATENCY = 700  # cycles of a step of k if a block is alone: memory, a barrier
_START = 2_000  # cycles before a block's first multiplication and after its last
_LAUNCH = 5_000  # cycles of another kernel
_CACHE_BYTES = 24  # a cycle and multiprocessor
_MOST_PARTS = 128
_OUT = (
    4  # cycles for a sum on its way out: of tiles that cost the same, the smaller fill more multiprocessors
)


def _issue(tile: Tile, spec: Contraction, double: bool) -> float:
    """Cycles of a multiprocessor for one step of k of one block."""
    warps = max(1, tile.threads // 32)
    if tile.core:
        multiply = tile.bm * tile.bn * tile.bk / _RATE[tile.core]
        shared = warps * (tile.tm + tile.tn) * tile.bk / (32 if tile.core == "tf32" else 64)
    else:
        reads = sum(-(-t // 4) if t >= 4 else t for t in (tile.tm, tile.tn)) * (2 if double else 1)
        multiply = warps * tile.bk * (tile.tm * tile.tn * (2 if double else 1) + reads) / 4
        shared = warps * tile.bk * reads
    stage = 0.0
    for operand, rows, t in ((spec.lhs, spec.m, tile.bm), (spec.rhs, spec.n, tile.bn)):
        address = address_of(operand, spec.extents)
        contiguous = max(run_length(address, rows), run_length(address, spec.k))
        each = 12.0 if address.checks else 1.5 if contiguous % 4 == 0 else 5.0  # instructions an element
        if not one_tap(spec, tile.bk) and run_length(address, rows) != size_of(rows):
            each += 8.0  # each k with its own place
        stage += t * tile.bk * each / 128
    moved = (tile.bm + tile.bn) * tile.bk * (8 if double else 4) / _CACHE_BYTES
    return max(multiply + stage, shared, moved) + 0.1 * (shared + moved)


def _resident(plan: ProductPlan, target: CudaTarget, double: bool) -> int:
    """Blocks that a multiprocessor holds."""
    spec, tile = plan.spec, plan.tile
    checked = sum(1 for o in (spec.lhs, spec.rhs) if address_of(o, spec.extents).checks)
    sums = tile.tm * tile.tn // (32 if tile.core else 1)
    staged = (tile.bm + tile.bn) * tile.bk // tile.threads
    registers = min(255, 48 + 24 * checked + (staged + sums) * (2 if double else 1))
    shared = 2 * tile.bk * (tile.bm + tile.bn + 8) * (8 if double else 4)
    return max(
        1,
        min(
            65_536 // (tile.threads * registers), 4 * target.shared_bytes // shared, 1536 // tile.threads, 16
        ),
    )


def _cycles(plan: ProductPlan, target: CudaTarget) -> float:
    spec, tile = plan.spec, plan.tile
    double = held_as(spec.lhs.dtype, spec.rhs.dtype) == dtypes.float64
    each = -(-plan.blocks // target.multiprocessors)
    rounds = -(-each // _resident(plan, target, double))
    steps = plan.part_steps * plan.useful
    cycles = steps * max(each * _issue(tile, spec, double), rounds * _LATENCY) + rounds * _START
    cycles += rounds * _OUT * tile.tm * tile.tn / (32 if tile.core else 1)
    if plan.parts > 1:
        batch, m, n, _ = plan.sizes
        traffic = batch * m * n * (plan.parts + 1) * (8 if double else 4)
        cycles += _LAUNCH + traffic / (_CACHE_BYTES * target.multiprocessors) + plan.parts * 20
    return cycles


def _parts(plan: ProductPlan, target: CudaTarget) -> Iterator[ProductPlan]:
    """Cuts of k, each part of at least two steps; none unless the output is dense, in which the parts lie one after another."""
    yield replace(plan, part_steps=plan.steps)
    if not dense(plan.spec):
        return
    parts = 2
    while (
        parts <= _MOST_PARTS
        and plan.steps >= 2 * parts
        and plan.blocks * parts <= 16 * target.multiprocessors
    ):
        steps = -(-plan.steps // parts)
        yield replace(plan, parts=-(-plan.steps // steps), part_steps=steps)
        parts = parts * 3 // 2 if parts & (parts - 1) == 0 else parts * 4 // 3


@lru_cache(maxsize=1024)
def plan_product(spec: Contraction, target: CudaTarget, precision: str = "float32") -> ProductPlan:
    """The plan of least modelled time. What `precision` allows is used only where it saves time."""
    best: tuple[float, ProductPlan] | None = None
    plain, _ = normal(spec)
    for tile in _tiles(plain, target, precision):
        for plan in _parts(_whole(spec, tile), target):
            cost = _cycles(plan, target)
            if best is None or cost < best[0]:
                best = cost, plan
    assert best is not None
    return best[1]


def _whole(spec: Contraction, tile: Tile) -> ProductPlan:
    """The plan with a given tile and an uncut k."""
    plain, swapped = normal(spec)
    changed, cuts = by_residue(plain)
    ordered = channels_inside(changed, tile.bk)
    # Of use if a tile has places of two residues at most.
    if (
        cuts
        and one_tap(ordered, tile.bk)
        and size_of(changed.n) >= tile.bn * math.prod(c[2].extent for c in cuts)
    ):
        return ProductPlan(ordered, tile, swapped=swapped, cuts=cuts)
    return ProductPlan(channels_inside(plain, tile.bk), tile, swapped=swapped)


def plan_with_tile(spec: Contraction, tile: Tile, parts: int = 1) -> ProductPlan:
    """A plan of a given tile (for tests and measurements)."""
    plan = _whole(spec, tile)
    steps = max(1, -(-plan.steps // parts))
    return replace(plan, parts=max(1, -(-plan.steps // steps)), part_steps=steps)
