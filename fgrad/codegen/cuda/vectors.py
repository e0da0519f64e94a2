"""Four neighbouring iterations of a loop by one thread, whose loads and stores are those of four elements at once.

    for j in range(4 * lane, 1000, 128):
        x_0, x_1, x_2, x_3 = load4(x, 1000*row + j)
        s = s + x_0
        s = s + x_1
        s = s + x_2
        s = s + x_3

A buffer is loaded or stored by fours where its index grows by one with the flat index of the loops, from a multiple of
four on; what does not change is loaded once for all four, all else one by one. `text` is the printer, a `rows.RowsText`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fgrad import dtypes
from fgrad.codegen import loops
from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.layout import count
from fgrad.codegen.cuda.text import Scope, from_stored, to_stored
from fgrad.codegen.loops import Acc, Affine, Buffer, Expr, Load, LoopVar, Stmt, Store, Update
from fgrad.codegen.nestinfo import nodes
from fgrad.codegen.substitute import Substitution

WIDTH = 4
LARGEST = 160  # expressions of a body that is written four times


class Fours:
    """The nest of loops over `variables` by four; `ragged`: four may lie in two rounds of the innermost loop."""

    def __init__(self, variables: Sequence[LoopVar], body: Sequence[Stmt], unaligned: set[Buffer]):
        self.variables = [v for v in variables if v.extent > 1]
        self.body, self.unaligned = body, unaligned
        self.total = count(variables)
        self.ragged = len(self.variables) > 1 and self.variables[-1].extent % WIDTH != 0
        self.strides: dict[LoopVar, int] = {}
        step = 1
        for v in reversed(self.variables):
            self.strides[v] = step
            step *= v.extent

    def contiguous(self, buffer: Buffer, index: Expr) -> bool:
        """Whether four neighbours of the flat index, from a multiple of four on, are an aligned four of `buffer`."""
        if buffer in self.unaligned:
            return False
        const, terms = loops.affine_terms(index)
        coefs = {t: c for t, c in terms if isinstance(t, LoopVar) and t in self.strides}
        if const % WIDTH:
            return False
        if self.ragged:
            return len(coefs) == len(terms) and coefs == self.strides
        # Else only the innermost variable changes within four: all other terms (a gathered row, say) are the same for them.
        last = self.variables[-1]
        others = [(t, c) for t, c in terms if t is not last]
        return coefs.get(last) == 1 and all(c % WIDTH == 0 and last not in nodes([t]) for t, c in others)

    def fits(self) -> bool:
        """Whether writing the body four times is allowed and of use."""
        stores = [s for s in self.body if isinstance(s, Store)]
        if not self.variables or any(s.op is not None for s in stores):
            return False
        if not all(isinstance(s, (Store, Update)) for s in self.body):
            return False
        found = analysis.expressions(self.body)
        if len(found) > LARGEST or analysis.stored(self.body) & analysis.loaded(self.body):
            return False
        accesses: list[Store | Load] = [*stores, *(e for e in found if isinstance(e, Load))]
        return any(a.mask is None and self.contiguous(a.buffer, a.index) for a in accesses)

    def suit(self, lanes: int) -> bool:
        """Whether `lanes` threads that share the iterations may take four at a time, with none left over and few idle."""
        return self.total % WIDTH == 0 and self.total >= 3 * lanes and not self.ragged and self.fits()


def copies_of(text: Any, m: Fours, i: str, pad: str) -> list[dict[Expr, Expr]]:
    """What the loop variables are for each of the four elements."""
    if len(m.variables) == 1:
        (v,) = m.variables
        return [{v: Affine(k, [(v, 1)])} for k in range(WIDTH)]
    if not m.ragged:
        text.unravel(i, m.variables, pad)
        last = m.variables[-1]
        return [{last: Affine(k, [(last, 1)])} for k in range(WIDTH)]
    envs: list[dict[Expr, Expr]] = []
    for k in range(WIDTH):
        fresh = [LoopVar(f"{v.name}_{k}", v.extent) for v in m.variables]
        text.unravel(f"{i} + {k}" if k else i, fresh, pad)
        envs.append(dict(zip(m.variables, fresh, strict=True)))
    return envs


def print_copies(text: Any, m: Fours, copies: Sequence[dict[Expr, Expr]], pad: str, scope: Scope) -> None:
    """Print the body for the four elements that `copies` stand for."""
    placeholders: dict[Load, list[Acc]] = {}  # what is loaded by fours: names of its elements
    for e in analysis.expressions(m.body):
        if isinstance(e, Load) and e.mask is None and m.contiguous(e.buffer, e.index):
            placeholders[e] = [Acc(f"{e.buffer.name}_{k}", e.dtype) for k in range(WIDTH)]
    subs = [_Elements(env, {e: p[k] for e, p in placeholders.items()}) for k, env in enumerate(copies)]
    start = Substitution(copies[0])  # where four begin
    groups = [[sub.stmt(s) for sub in subs] for s in m.body]
    _count_references(text, [e for group in groups for s in group for e in loops.expressions(s)])
    for e, names in placeholders.items():
        raw = [text.var(a) for a in names]
        if e.dtype == dtypes.bool_ or e.dtype in (dtypes.float16, dtypes.bfloat16):
            raw = [text.fresh(f"{e.buffer.name}_bits_{k}") for k in range(WIDTH)]
        text.line(
            pad, f"{', '.join(raw)} = load4({e.buffer.name}, {text.index(start.expr(e.index), scope, pad)})"
        )
        for name, bits in zip(map(text.var, names), raw):
            if name != bits:
                text.line(pad, f"{name} = {from_stored(bits, e.dtype)}")
    # What is folded element by element first, then the stores: neither reads what the other changes.
    for k in range(WIDTH):
        text.body([group[k] for group in groups if isinstance(group[k], Update)], pad, scope, 0)
    for s, group in zip(m.body, groups, strict=True):
        if not isinstance(s, Store):
            continue
        if s.mask is not None or not m.contiguous(s.buffer, s.index):
            text.stores(group, pad, scope)
            continue
        parts = [to_stored(text.expr(e.value, scope, pad)[0], s.buffer.dtype) for e in group]  # type: ignore[attr-defined]
        where = text.index(start.expr(s.index), scope, pad)
        guard = f"if {text.guard}: " if text.guard else ""
        text.line(pad, f"{guard}store4({s.buffer.name}, {where}, {', '.join(parts)})")


class _Elements(Substitution):
    """One of the four: other loop variables, and names for what was loaded with its neighbours."""

    def __init__(self, env: dict[Expr, Expr], loaded: dict[Load, Acc]):
        super().__init__(env)
        self.loaded = loaded

    def _rebuilt(self, e: Expr) -> Expr:
        known = self.loaded.get(e) if isinstance(e, Load) else None
        return known if known is not None else super()._rebuilt(e)


def _count_references(text: Any, roots: Sequence[Expr]) -> None:
    """Uses of each expression of the copies, so that what is used twice gets a name."""
    seen: set[int] = set()
    pending = list(roots)
    for e in pending:
        text.references[id(e)] = text.references.get(id(e), 0) + 1
    while pending:
        e = pending.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        text.keep.append(e)
        for c in loops.children(e):
            text.references[id(c)] = text.references.get(id(c), 0) + 1
            pending.append(c)
