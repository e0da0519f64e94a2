"""Two rows at a time.

A softmax or a normalisation goes over each row several times, and every pass waits for a sum or a maximum of the one before.
Rows of a few hundred elements are over before that latency is: two of them side by side fill the gaps of each other.

    for i in 64:                                      for h in 32:
        s = 0                                             s = 0;  s' = 0
        for j in vector 100:  s = s + x[100*i + j]   ->   for j in vector 100:  s = s + x[200*h + j];  s' = s' + x[200*h + 100 + j]
        for j in vector 100:  y[...] = x[...] / s         for j in vector 100:  ...
"""

from __future__ import annotations

from collections.abc import Sequence

from fgrad.codegen.loops import (
    Acc,
    Affine,
    Expr,
    Init,
    Load,
    Loop,
    LoopVar,
    Op,
    Stmt,
    Store,
    Update,
    affine_terms,
    children,
    index_add,
    index_scale,
)
from fgrad.codegen.nestinfo import weight

LONGEST = 1024  # iterations of a pass, beyond which its latency does not matter
HEAVIEST = 160  # instructions of one iteration of a pass


def jam_rows(body: Sequence[Stmt], keep: Loop | None = None) -> list[Stmt]:
    """`body` with pairs of rows side by side where that helps; `keep` stays as it is, but for what is inside."""
    out: list[Stmt] = []
    for s in body:
        if not isinstance(s, Loop):
            out.append(s)
        elif s is not keep and _worth_it(s):
            out.append(_jammed(s))
        elif any(isinstance(t, Loop) for t in s.body):
            inner = jam_rows(s.body)
            out.append(s if inner == s.body else Loop(s.var, inner, s.kind))
        else:
            out.append(s)
    return out


def _worth_it(loop: Loop) -> bool:
    passes = [s for s in loop.body if isinstance(s, Loop)]
    if loop.kind not in ("seq", "parallel") or loop.var.extent % 2 or len(passes) < 2:
        return False
    others = [s for s in loop.body if not isinstance(s, Loop)]
    if not all(isinstance(s, (Init, Update, Store)) and getattr(s, "op", None) != "set" for s in others):
        return False
    for p in passes:
        if p.kind != "vector" or p.var.extent > LONGEST or weight(p.body) > HEAVIEST:
            return False
        if not all(isinstance(s, (Store, Update)) and s.op != "set" for s in p.body):
            return False
    return True


def _jammed(loop: Loop) -> Loop:
    half = LoopVar(loop.var.name, loop.var.extent // 2)
    rows = []
    for k in (0, 1):
        env: dict[Expr, Expr] = {loop.var: index_add(index_scale(half, 2), Affine(k, ()))}
        if k:
            mine = [s.acc for s in loop.body if isinstance(s, Init)]
            env.update((acc, Acc(f"{acc.name}_next", acc.dtype)) for acc in mine)
        rows.append(_Substitution(env).block(loop.body))
    merged: list[Stmt] = []
    for first, second in zip(*rows):
        if isinstance(first, Loop):
            merged.append(Loop(first.var, [*first.body, *second.body], first.kind))
        else:
            merged += [first, second]
    return Loop(half, merged, loop.kind)


class _Substitution:
    """Statements with variables and accumulators replaced. What does not depend on them stays the same object."""

    def __init__(self, env: dict[Expr, Expr]):
        self.env = env
        self.memo: dict[int, Expr] = {}
        self.keep: list[Expr] = []

    def block(self, body: Sequence[Stmt]) -> list[Stmt]:
        return [self.stmt(s) for s in body]

    def stmt(self, s: Stmt) -> Stmt:
        if isinstance(s, Loop):
            return Loop(s.var, self.block(s.body), s.kind)
        if isinstance(s, Store):
            mask = None if s.mask is None else self.expr(s.mask)
            return Store(s.buffer, self.expr(s.index), self.expr(s.value), s.op, mask)
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
        if all(a is b for a, b in zip(new, children(e))):
            return self.env.get(e, e)
        if isinstance(e, Op):
            return Op(e.name, new, e.dtype)
        if isinstance(e, Affine):
            return index_add(
                Affine(e.const, ()), *(index_scale(t, c) for t, (_, c) in zip(new, affine_terms(e)[1]))
            )
        assert isinstance(e, Load)
        index, *rest = new
        mask = rest.pop(0) if e.mask is not None else None
        return Load(e.buffer, index, mask, rest[0] if rest else None)
