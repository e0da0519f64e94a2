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
from dataclasses import replace

from fgrad.codegen.loops import (
    Acc,
    Affine,
    Buffer,
    Expr,
    Init,
    Loop,
    LoopVar,
    Stmt,
    Store,
    Update,
    index_add,
    index_scale,
)
from fgrad.codegen.nestinfo import weight
from fgrad.codegen.substitute import Place, Substitution

LONGEST = 256  # iterations of a pass; beyond, its latency matters less than that memory is read in one stream
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
        rows.append(Substitution(env, _own_rows() if k else None).block(loop.body))
    merged: list[Stmt] = []
    for first, second in zip(*rows):
        if isinstance(first, Loop):
            merged.append(Loop(first.var, [*first.body, *second.body], first.kind))
        else:
            merged += [first, second]
    return Loop(half, merged, loop.kind)


def _own_rows() -> Place:
    """A second row of every buffer that holds a single one."""
    rows: dict[Buffer, Buffer] = {}

    def place(buffer: Buffer, index: Expr) -> tuple[Buffer, Expr]:
        if buffer.role != "local":
            return buffer, index
        return rows.setdefault(buffer, replace(buffer, name=f"{buffer.name}_next")), index

    return place
