"""Copies of statements with other variables, accumulators and buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from fgrad.codegen.loops import (
    Acc,
    Affine,
    Buffer,
    Check,
    Expr,
    Init,
    Load,
    Loop,
    Op,
    Stmt,
    Store,
    Update,
    affine_terms,
    children,
    index_add,
    index_scale,
)

Place: TypeAlias = Callable[[Buffer, Expr], tuple[Buffer, Expr]]


class Substitution:
    """Statements with variables and accumulators replaced, and, by `place`, where loads and stores go. What does not change
    stays the same object."""

    def __init__(self, env: dict[Expr, Expr], place: Place | None = None):
        self.env, self.place = env, place or (lambda buffer, index: (buffer, index))
        self.memo: dict[int, Expr] = {}
        self.keep: list[Expr] = []

    def block(self, body: Sequence[Stmt]) -> list[Stmt]:
        return [self.stmt(s) for s in body]

    def stmt(self, s: Stmt) -> Stmt:
        if isinstance(s, Loop):
            return Loop(s.var, self.block(s.body), s.kind)
        if isinstance(s, Store):
            mask = None if s.mask is None else self.expr(s.mask)
            buffer, index = self.place(s.buffer, self.expr(s.index))
            return Store(buffer, index, self.expr(s.value), s.op, mask)
        if isinstance(s, Check):
            return Check(self.expr(s.ok), s.status, s.code)
        assert isinstance(s, (Init, Update))
        acc = self.env.get(s.acc, s.acc)
        assert isinstance(acc, Acc)
        value = self.expr(s.value)
        return Init(acc, value) if isinstance(s, Init) else Update(acc, s.op, value)

    def expr(self, e: Expr) -> Expr:
        """A stack in place of recursion: expressions can be deep."""
        pending = [e]
        while pending:
            node = pending[-1]
            if id(node) in self.memo:
                pending.pop()
                continue
            missing = [c for c in children(node) if id(c) not in self.memo]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            self.memo[id(node)] = self._rebuilt(node)
            self.keep.append(node)
        return self.memo[id(e)]

    def _rebuilt(self, e: Expr) -> Expr:
        new = [self.memo[id(c)] for c in children(e)]
        if isinstance(e, Load):
            index, *rest = new
            buffer, index = self.place(e.buffer, index)
            if buffer is e.buffer and all(a is b for a, b in zip((index, *rest), children(e))):
                return e
            mask = rest.pop(0) if e.mask is not None else None
            return Load(buffer, index, mask, rest[0] if rest else None)
        if all(a is b for a, b in zip(new, children(e))):
            return self.env.get(e, e)
        if isinstance(e, Op):
            return Op(e.name, new, e.dtype)
        if isinstance(e, Affine):
            return index_add(
                Affine(e.const, ()), *(index_scale(t, c) for t, (_, c) in zip(new, affine_terms(e)[1]))
            )
        raise AssertionError(e)
