"""Hash-consed scalar expressions: equal expressions are one object, so sharing and forwarding compare by identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.codegen import loops
from fgrad.codegen.loops import Acc, Affine, Buffer, Const, Expr, Load, LoopVar, Op

_COMPARE = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "signbit", "logical_not"}
)


Leaf = Callable[[Expr], Expr]
OnLoad = Callable[[Buffer, Expr, "Expr | None", "Expr | None"], Expr]


class Builder:
    """Makes expressions; the same request gives the same object."""

    def __init__(self) -> None:
        self.table: dict[Any, Expr] = {}

    def _get(self, key: Any, make: Callable[[], Expr]) -> Expr:
        found = self.table.get(key)
        if found is None:
            found = self.table[key] = make()
        return found

    def const(self, value: Any, dtype: np.dtype) -> Expr:
        value = np.asarray(value).astype(dtype)[()]
        return self._get(("const", dtype, np.asarray(value).tobytes()), lambda: Const(value, dtype))

    def index(self, e: Expr) -> Expr:
        """An int64 expression in its one form: a constant or sum is an `Affine`, a lone term is itself."""
        if isinstance(e, Const):
            e = loops.const_index(int(e.value))
        if not isinstance(e, Affine):
            return self._get(("op", e.name, e.dtype, *map(id, e.args)), lambda: e) if isinstance(e, Op) else e
        terms = [(self.index(t), c) for t, c in e.terms]
        if e.const == 0 and len(terms) == 1 and terms[0][1] == 1:
            return terms[0][0]
        const = e.const
        return self._get(
            ("affine", const, frozenset((id(t), c) for t, c in terms)), lambda: Affine(const, terms)
        )

    def add(self, *parts: Expr | int) -> Expr:
        exprs = [loops.const_index(p) if isinstance(p, int) else p for p in parts]
        return self.index(loops.index_add(*exprs))

    def scale(self, e: Expr, factor: int) -> Expr:
        return self.index(loops.index_scale(e, factor))

    def ravel(self, indices: Sequence[Expr], shape: Sequence[int]) -> Expr:
        return self.index(loops.ravel(indices, shape))

    def unravel(self, flat: Expr, shape: Sequence[int]) -> tuple[Expr, ...]:
        return tuple(self.index(e) for e in loops.unravel(flat, shape))

    def div(self, e: Expr, d: int) -> Expr:
        return self.index(loops.index_div(e, d))

    def mod(self, e: Expr, d: int) -> Expr:
        return self.index(loops.index_mod(e, d))

    def op(self, name: str, *args: Any, dtype: np.dtype | None = None) -> Expr:
        """`name(*args)`. Python numbers take the dtype of the first expression among the arguments."""
        if name == "const":
            return self.const(args[0], np.dtype(dtype))
        kind = next((a.dtype for a in args if isinstance(a, Expr)), dtypes.float32)
        exprs = tuple(a if isinstance(a, Expr) else self.const(a, kind) for a in args)
        if dtype is None:
            dtype = (
                dtypes.bool_ if name in _COMPARE else exprs[1].dtype if name == "select" else exprs[0].dtype
            )
        dtype = np.dtype(dtype)
        folded = self._fold(name, exprs, dtype)
        if folded is not None:
            return folded
        return self._get(("op", name, dtype, *map(id, exprs)), lambda: Op(name, exprs, dtype))

    def _fold(self, name: str, args: tuple[Expr, ...], dtype: np.dtype) -> Expr | None:
        if name == "cast" and args[0].dtype == dtype:
            return args[0]
        if name == "select" and isinstance(args[0], Const):
            return args[1] if args[0].value else args[2]
        if name == "select" and args[1] is args[2]:
            return args[1]
        if name == "bitwise_and" and dtype == dtypes.bool_:
            for a, b in (args, args[::-1]):
                if isinstance(a, Const):
                    return b if a.value else a
        if dtype == dtypes.int64 and name in ("add", "sub", "mul") and all(map(_is_index, args)):
            if name == "add":
                return self.add(*args)
            if name == "sub":
                return self.add(args[0], self.scale(args[1], -1))
            for a, b in (args, args[::-1]):
                const, terms = loops.affine_terms(a)
                if not terms:
                    return self.scale(b, const)
        return None

    def load(self, buffer: Buffer, index: Expr, mask: Expr | None = None, other: Expr | None = None) -> Expr:
        """A load; the mask is dropped where the index is known to lie inside the buffer."""
        index = self.index(index)
        if mask is not None:
            bounds = loops.index_range(index)
            if bounds is not None and bounds[0] >= 0 and bounds[1] < buffer.size:
                mask = other = None
            else:
                other = other if other is not None else self.const(0, buffer.dtype)
        key = ("load", id(buffer), id(index), id(mask), id(other))
        return self._get(key, lambda: Load(buffer, index, mask, other))

    def both(self, a: Expr | None, b: Expr) -> Expr:
        return b if a is None else self.op("bitwise_and", a, b)

    def within(self, i: Expr, low: int, high: int) -> Expr:
        """low <= i < high as a bool; constant where the range of `i` decides."""
        bounds = loops.index_range(i)
        if bounds is not None and (bounds[1] < low or bounds[0] >= high):
            return self.const(False, dtypes.bool_)
        ok = self.const(True, dtypes.bool_)
        if bounds is None or bounds[0] < low:
            ok = self.op("ge", i, self.const(low, dtypes.int64))
        if bounds is None or bounds[1] >= high:
            ok = self.op("bitwise_and", ok, self.op("lt", i, self.const(high, dtypes.int64)))
        return ok

    def rewrite(self, e: Expr, leaf: Leaf, on_load: OnLoad, memo: dict[int, tuple[Expr, Expr]]) -> Expr:
        """`e` with every LoopVar and Acc replaced by `leaf(it)` and every load by `on_load(its rewritten parts)`."""
        # Iterative: fused expressions can be deeper than Python's stack.
        pending = [e]
        while pending:
            node = pending[-1]
            if id(node) in memo:
                pending.pop()
                continue
            missing = [c for c in loops.children(node) if id(c) not in memo]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            memo[id(node)] = (
                node,
                self._rebuilt(node, leaf, on_load, memo),
            )  # holds node: its id stays its own
        return memo[id(e)][1]

    def _rebuilt(self, e: Expr, leaf: Leaf, on_load: OnLoad, memo: dict[int, tuple[Expr, Expr]]) -> Expr:
        """`e` over the already rewritten children."""
        if isinstance(e, Op):
            return self.op(e.name, *[memo[id(a)][1] for a in e.args], dtype=e.dtype)
        if isinstance(e, Affine):
            return self.add(e.const, *[self.scale(memo[id(t)][1], c) for t, c in e.terms])
        if isinstance(e, Load):
            mask = None if e.mask is None else memo[id(e.mask)][1]
            other = None if e.other is None else memo[id(e.other)][1]
            return on_load(e.buffer, memo[id(e.index)][1], mask, other)
        return leaf(e) if isinstance(e, (LoopVar, Acc)) else e


def _is_index(e: Expr) -> bool:
    """Whether sums with `e` are index arithmetic, which does not wrap around: what has a known range does not."""
    return isinstance(e, (LoopVar, Affine)) or (e.dtype == dtypes.int64 and loops.index_range(e) is not None)


def loads(exprs: Sequence[Expr]) -> list[Load]:
    """All loads below `exprs`, each once."""
    seen: set[int] = set()
    found: list[Load] = []
    stack = list(exprs)
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if isinstance(e, Load):
            found.append(e)
        stack.extend(loops.children(e))
    return found
