"""What a computed value depends on: when the kernel printer may use it again, and what it may compute before a loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llvmlite import ir

from fgrad.codegen.loops import Acc, Expr, Load, Loop, LoopVar, Op, children, expressions, statements


class Dependence:
    """Mixed into the kernel printer. `scopes`: the values known in each loop around, by id of the expression."""

    scopes: list[dict[int, ir.Value]]
    known_needs: dict[int, frozenset[Any]]
    keep: list[Expr]
    accumulators: dict[Acc, ir.Value]

    def needs(self, e: Expr) -> frozenset[Any]:
        """What can change `e`: loop variables, accumulators, and buffers that this kernel writes."""
        found = self.known_needs.get(id(e))
        if found is not None:
            return found
        pending = [e]
        while pending:
            node = pending[-1]
            missing = [c for c in children(node) if id(c) not in self.known_needs]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            mine: set[Any] = set()
            if isinstance(node, (LoopVar, Acc)):
                mine.add(node)
            elif isinstance(node, Load) and node.buffer.role != "in":
                mine.add(node.buffer)
            self.known_needs[id(node)] = frozenset(mine).union(
                *(self.known_needs[id(c)] for c in children(node))
            )
            self.keep.append(node)
        return self.known_needs[id(e)]

    def forget(self, changed: Iterable[Any]) -> None:
        """Drop every remembered value that `changed` may have changed."""
        gone = frozenset(changed)
        for scope in self.scopes:
            stale = [key for key in scope if not gone.isdisjoint(self.known_needs.get(key, ()))]
            for key in stale:
                del scope[key]

    def hoist(self: Any, stmt: Loop, changed: set[Any]) -> None:
        """Compute, before the loop, the largest expressions that do not change in it. (Loops run at least once.)"""
        unknown = changed | {s.var for s in statements([stmt]) if isinstance(s, Loop)}
        seen: set[int] = set()
        pending = [e for s in statements(stmt.body) for e in expressions(s)]
        while pending:
            e = pending.pop()
            if id(e) in seen:
                continue
            seen.add(id(e))
            if not unknown.isdisjoint(self.needs(e)):
                pending.extend(children(e))
            elif isinstance(e, (Op, Load)) and self.initialised(e):
                self.value(e)

    def initialised(self, e: Expr) -> bool:
        return all(n in self.accumulators for n in self.needs(e) if isinstance(n, Acc))
