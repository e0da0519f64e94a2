"""Questions about loop nests that a printer asks: what a loop assigns, what lies under an expression, what a body costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fgrad.codegen.loops import (
    Expr,
    Init,
    Loop,
    Op,
    Stmt,
    Store,
    Update,
    children,
    expressions,
    statements,
)

_HEAVY = 20  # instructions of a function such as exp
_LIGHT = frozenset(
    {
        *(
            "abs",
            "add",
            "sub",
            "mul",
            "div",
            "neg",
            "sqrt",
            "square",
            "copysign",
            "select",
            "cast",
            "bitcast",
        ),
        *("eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum", "fmax", "fmin", "logical_not"),
        *("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"),
        *("shift_left", "shift_right_arithmetic", "shift_right_logical"),
    }
)


def nodes(roots: Iterable[Expr]) -> list[Expr]:
    """All distinct expressions under `roots`."""
    seen: dict[int, Expr] = {}
    pending = list(roots)
    while pending:
        e = pending.pop()
        if id(e) not in seen:
            seen[id(e)] = e
            pending.extend(children(e))
    return list(seen.values())


def changed_by(loop: Loop) -> set[Any]:
    """Accumulators and buffers that the loop assigns."""
    found: set[Any] = set()
    for stmt in statements(loop.body):
        if isinstance(stmt, Store):
            found.add(stmt.buffer)
        elif isinstance(stmt, (Init, Update)):
            found.add(stmt.acc)
    return found


def weight(body: Sequence[Stmt]) -> int:
    """About how many instructions one execution takes."""
    total = 0
    for stmt in body:
        if isinstance(stmt, Loop):
            total += stmt.var.extent * weight(stmt.body)
        else:
            heavy = (isinstance(e, Op) and e.name not in _LIGHT for e in nodes(expressions(stmt)))
            total += sum(_HEAVY if h else 1 for h in heavy)
    return total
