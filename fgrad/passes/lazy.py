"""Values not yet computed: a function from index expressions to a scalar expression, or a buffer.

`Lazy.at(indices, mask)` is the whole interface. Element-wise operations, broadcasts, slices and the like only compose such
functions; nothing runs until a value is *realized*: a `Stage` then evaluates it over its domain and stores it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgrad.codegen.loops import Acc, Expr, LoopVar, Stmt
from fgrad.codegen.program import Buf
from fgrad.ir import Eqn

At = Callable[[tuple[Expr, ...], "Expr | None"], Expr]
Splits = tuple[tuple[int, ...], ...]
View = tuple[Buf, int, tuple[int, ...]]


class Lazy:
    """`at(indices, mask)`: the element there; where `mask` (bool expression) is false any value may come back, but nothing
    outside a buffer is read. `splits` factors each dimension as the computation prefers to iterate it (row-major);
    factors of 5 and 2 for a size of 11 mean a peeled dimension: 5 times 2, and the rest apart.
    `eqns` are the equations that evaluating it performs; `view` the buffer, offset and strides (in elements) of which the
    value is a mere relabelling, if it is one; `buf` the buffer that holds it in row-major order."""

    __slots__ = ("_at", "_memo", "buf", "dtype", "eqns", "literal", "shape", "splits", "view")

    def __init__(
        self,
        shape: Sequence[int],
        dtype: np.dtype,
        at: At,
        splits: Splits | None = None,
        eqns: tuple[Eqn, ...] = (),
        buf: Buf | None = None,
        literal: Any = None,
        view: View | None = None,
    ):
        self.shape, self.dtype, self._at, self.buf, self.literal = tuple(shape), dtype, at, buf, literal
        self.view = view
        self.splits: Splits = splits if splits is not None else tuple((s,) for s in self.shape)
        self.eqns = eqns
        self._memo: dict[tuple[int, ...], tuple[tuple[Expr, ...], Expr | None, Expr]] = {}

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def at(self, idx: Sequence[Expr], mask: Expr | None = None) -> Expr:
        key = (*map(id, idx), id(mask))
        known = self._memo.get(key)
        if known is None:
            indices = tuple(idx)
            known = self._memo[key] = (indices, mask, self._at(indices, mask))
        return known[2]


def whole(size: int, factors: tuple[int, ...]) -> tuple[int, ...]:
    """`factors` if they make up the whole dimension; of a peeled one (the factors cover its head only) the plain size."""
    return factors if math.prod(factors) == size else (size,)


def cut_points(shape: Sequence[int], splits: Splits) -> set[int]:
    """Where the factors fall in the flat row-major index: the products of all factors to the right of each cut."""
    cuts, product = {1}, 1
    for size, factors in zip(reversed(shape), reversed(splits)):
        for f in reversed(whole(size, factors)):
            product *= f
            cuts.add(product)
    return cuts


def splits_from_cuts(shape: Sequence[int], cuts: set[int]) -> Splits | None:
    """Factors of each dimension that respect `cuts`, or None where the cuts do not nest."""
    product = 1
    out: list[tuple[int, ...]] = []
    if any(s == 0 for s in shape):
        return None
    for s in reversed(shape):
        inside = sorted(c for c in cuts if product < c < product * s)
        factors: list[int] = []
        last = product
        for c in [*inside, product * s]:
            if c % last:
                return None
            factors.append(c // last)
            last = c
        out.append(tuple(reversed(factors)))
        product *= s
    return tuple(reversed(out))


def join_splits(shape: Sequence[int], parts: Sequence[Splits]) -> Splits:
    """The coarsest factors that refine all of `parts`; the plain dimensions where there are none."""
    out: list[tuple[int, ...]] = []
    for d, size in enumerate(shape):
        options = {p[d] for p in parts if len(p[d]) > 1}
        if not options:
            out.append((size,))
        elif len(options) == 1:
            out.append(next(iter(options)))
        else:
            cuts = set().union(*(cut_points((size,), (o,)) for o in options))
            joined = splits_from_cuts((size,), cuts)
            out.append(joined[0] if joined else (size,))
    return tuple(out)


@dataclass(eq=False)
class Stage:
    """One computation over the loop variables `dims`.

    A map stores `stores` (buffer, index, value) for all of `dims`. A fold has `kept` leading dims that index its results:
    `inits` start accumulators, `updates` run for every point, `stores` write the results from the accumulators.
    A column fold has instead `column` = (op, identity): its store's value is folded into the buffer itself, because the
    kept dims are the contiguous ones.
    """

    dims: tuple[LoopVar, ...]
    kept: int
    stores: list[tuple[Buf, Expr, Expr]]
    inits: list[tuple[Acc, Expr]] = field(default_factory=list)
    updates: list[Stmt] = field(default_factory=list)
    column: tuple[str, Expr] | None = None
    eqns: tuple[Eqn, ...] = ()

    @property
    def is_map(self) -> bool:
        return self.kept == len(self.dims) and not self.inits and self.column is None
