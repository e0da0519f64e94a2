"""How a vector loop runs over the lanes of vectors: questions asked of the loop before code is written.

A vector loop is cut into pieces (lanes, times). With vectors of 16, and masks, 77 iterations of a light sum are

    (32, 2)   two vectors at a time, so that their latencies overlap, in a loop of two iterations
    (16, 1)   13 lanes of it, under a mask

and without masks (32, 2), (8, 1), (4, 1), (1, 1). What a load or a store touches in all lanes follows from its *stride*, the
coefficient of the loop variable in its index: 1 is a plain vector, -1 (of a load) one in reverse, 2 to 4 every other or so element of a longer one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fgrad import dtypes
from fgrad.codegen.loops import (
    Acc,
    Check,
    Expr,
    Load,
    Loop,
    LoopVar,
    Op,
    Store,
    Update,
    affine_terms,
    children,
    expressions,
)
from fgrad.codegen.nestinfo import nodes, weight
from fgrad.codegen.target import TargetInfo

FEWEST = 4  # iterations worth a vector
WIDEST_STRIDE = 4  # beyond, elements are loaded one by one
MOST_GATHERS = 6  # loads that go lane by lane
_REDUCIBLE = frozenset({"add", "mul", "maximum", "minimum", "fmax", "fmin", "bitwise_and", "bitwise_or"})

Depends = Callable[[Expr], bool]


@dataclass(eq=False)
class Family:
    """Accesses of one buffer that differ in the constant of their index only, all within one stride of `start`."""

    stride: int
    start: int  # the smallest constant
    members: list[Load | Store] = field(default_factory=list)

    def offset(self, member: Load | Store) -> int:
        return affine_terms(member.index)[0] - self.start

    @property
    def last(self) -> int:
        return max(map(self.offset, self.members))


@dataclass(eq=False)
class Plan:
    """`width`: lanes of one vector; `together`: how many are worked on at once; `families`: of strided accesses, by id of
    the access; `strided`: whether there are accesses that are not contiguous."""

    width: int
    together: int
    families: dict[int, Family]
    strided: bool


def depends_on(var: LoopVar, roots: Sequence[Expr]) -> Depends:
    """A test for expressions below `roots`: whether they change with `var`."""
    order: list[Expr] = []
    seen: set[int] = set()
    pending = [(e, False) for e in roots]
    from_below: dict[int, bool] = {}
    while pending:
        e, done = pending.pop()
        if done:
            order.append(e)
            continue
        if id(e) in seen:
            continue
        seen.add(id(e))
        pending.append((e, True))
        pending.extend((c, False) for c in children(e))
    for e in order:
        from_below[id(e)] = e is var or any(from_below[id(c)] for c in children(e))
    return lambda e: from_below[id(e)]


def stride_of(index: Expr, var: LoopVar, depends: Depends) -> int | None:
    """By how much `index` grows from one iteration to the next; None if that is not constant."""
    step = 0
    for term, coef in affine_terms(index)[1]:
        if term is var:
            step += coef
        elif depends(term):
            return None
    return step


def plan(loop: Loop, target: TargetInfo) -> Plan | None:
    """How to write `loop` in vectors, or None: a scalar loop it is then, and LLVM may still see something in it."""
    var, body = loop.var, loop.body
    if loop.kind != "vector" or var.extent < FEWEST or target.vector_bytes < 16:
        return None
    roots = [e for s in body for e in expressions(s)]
    depends = depends_on(var, roots)
    below = nodes(roots)
    updated = {s.acc for s in body if isinstance(s, Update)}
    if any(isinstance(e, Acc) and e in updated for e in below):
        return None  # a running value, such as a cumulative sum
    for s in body:
        if isinstance(s, Store):
            # Two lanes must not write to one place.
            if stride_of(s.index, var, depends) in (None, 0):
                return None
        elif isinstance(s, Update):
            if s.op not in _REDUCIBLE:
                return None
        elif not isinstance(s, Check):
            return None
    loads = [e for e in below if isinstance(e, Load) and depends(e)]
    stores = [s for s in body if isinstance(s, Store)]
    families = _families(loads, stores, var, depends)
    accesses: list[Load | Store] = [*loads, *stores]
    plain = {id(x) for x in accesses if stride_of(x.index, var, depends) == 1}
    plain |= {id(x) for x in loads if stride_of(x.index, var, depends) == -1}
    alone = [x for x in accesses if id(x) not in plain and id(x) not in families]
    if len(alone) > MOST_GATHERS:
        return None
    width = target.lanes(_element_size(body, below, depends))
    while width > FEWEST and width >= 2 * var.extent:
        width //= 2
    strided = bool(alone or families)
    return Plan(width, 1 if strided else _together(loop, width), families, strided)


def _element_size(body: Sequence, below: Sequence[Expr], depends: Depends) -> int:
    """Bytes of the elements that vectors are filled with: of the widest float; of integers where there are no floats."""
    kinds = {s.acc.dtype for s in body if isinstance(s, Update)}
    kinds |= {s.buffer.dtype for s in body if isinstance(s, Store)}
    kinds |= {e.dtype for e in below if isinstance(e, (Load, Op)) and depends(e)}
    floats = {k for k in kinds if dtypes.is_float(k)}
    sizes = [max(k.itemsize, 4) if dtypes.is_float(k) else k.itemsize for k in floats or kinds]
    return max(sizes, default=8)


def _together(loop: Loop, width: int) -> int:
    """Several vectors at once hide the latency of additions and the cost of the loop, while the registers last."""
    size, reduces = weight(loop.body), any(isinstance(s, Update) for s in loop.body)
    together = 4 if reduces and size <= 16 else 2 if size <= (40 if reduces else 20) else 1
    while together > 1 and loop.var.extent < 2 * together * width:
        together //= 2
    return together


def _families(
    loads: Sequence[Load], stores: Sequence[Store], var: LoopVar, depends: Depends
) -> dict[int, Family]:
    """Strided accesses, of those that may be done together: plain loads of inputs; plain stores that fill a range."""
    read = {x.buffer for x in loads}
    plain: list[Load | Store] = [x for x in loads if x.mask is None and x.buffer.role == "in"]
    plain += [s for s in stores if s.mask is None and s.op is None and s.buffer not in read]
    found: dict[tuple[bool, int, object], list[Load | Store]] = {}
    for x in plain:
        stride = stride_of(x.index, var, depends)
        if stride is not None and 2 <= stride <= WIDEST_STRIDE:
            terms = frozenset((id(t), c) for t, c in affine_terms(x.index)[1])
            found.setdefault((isinstance(x, Load), stride, (x.buffer, terms)), []).append(x)
    families: dict[int, Family] = {}
    for (loaded, stride, _), members in found.items():
        members.sort(key=lambda x: affine_terms(x.index)[0])
        while members:
            first = affine_terms(members[0].index)[0]
            family = Family(stride, first)
            family.members = [x for x in members if affine_terms(x.index)[0] < first + stride]
            members = members[len(family.members) :]
            offsets = {family.offset(x) for x in family.members}
            if loaded or (len(offsets) == len(family.members) == stride):
                families.update((id(x), family) for x in family.members)
    return families


def pieces(extent: int, width: int, together: int, masks: bool) -> list[tuple[int, int, int]]:
    """(lanes, times, how many of the lanes are live): the longest first, lanes a power of two."""
    out: list[tuple[int, int, int]] = []
    lanes = width * together
    if extent >= lanes:
        out.append((lanes, extent // lanes, lanes))
        extent %= lanes
    while extent >= width:
        out.append((width, 1, width))
        extent -= width
    while extent:
        lanes = 1 << (extent - 1).bit_length() if masks and extent > 2 else 1 << extent.bit_length() - 1
        live = min(lanes, extent)
        out.append((lanes, 1, live))
        extent -= live
    return out


def fits_32_bits(bounds: tuple[int, int] | None) -> bool:
    return bounds is not None and bounds[0] > -(1 << 31) and bounds[1] < (1 << 31) - 1


def identity(op: str, dtype: np.dtype) -> float | int | bool:
    """What leaves any value as it is under `op`."""
    if op in ("add", "bitwise_or"):
        return False if dtype == dtypes.bool_ and op == "bitwise_or" else 0
    if op == "mul":
        return 1
    if op == "bitwise_and":
        return True if dtype == dtypes.bool_ else -1 if dtype.kind == "i" else np.iinfo(dtype).max
    lowest = op in ("maximum", "fmax")
    if dtypes.is_float(dtype):
        # fmax and fmin prefer any number to NaN.
        return float("nan") if op in ("fmax", "fmin") else -np.inf if lowest else np.inf
    if dtype == dtypes.bool_:
        return not lowest
    return np.iinfo(dtype).min if lowest else np.iinfo(dtype).max
