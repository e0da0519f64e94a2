"""What follows a scan: sums over its iterations, and what no carry depends on.

    sums         a carry that is only added to: the sum of what is added. A sum of products over the iterations is one product that
                 also contracts the axis of the iterations; its factors are stacked if they are not yet
    products     that no carry depends on, and what follows from them, for all iterations at once

Stacking what is not stacked takes memory, so all this has a limit for each scan.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fgrad.array import Array
from fgrad.ir import Atom, Eqn, Literal, Var, dce
from fgrad.ops.builders import batch_operand
from fgrad.ops.contract import dot_general
from fgrad.ops.elementwise import add, div, mul, neg
from fgrad.ops.reduce import reduce_sum
from fgrad.ops.structure import reshape, transpose
from fgrad.passes.scans import Carry, Env, Scan, needed_for, reached
from fgrad.trace import Trace, as_tracer, at_source
from fgrad.transforms.residuals import CHEAP

ROOM = 64 << 20  # bytes that may be stacked in addition
_MOST_CHEAP = 32  # equations


def batches(e: Eqn) -> bool:
    return e.prim.batch is not None and e.prim.family != "control" and not e.prim.effects


def is_product(e: Eqn) -> bool:
    return e.prim.family == "contract" and len(e.outputs) == 1


class After:
    """What follows the loop, written into `t`. `results` are results of the scan that it gives."""

    def __init__(self, s: Scan, t: Trace):
        self.s, self.t = s, t
        self.carry, self.ys = list(s.carry), list(s.ys)
        self.producer = {v: e for e in s.eqns for v in e.outputs}
        self.place = {e: n for n, e in enumerate(s.eqns)}
        self.varying = reached(s.eqns, (*(c.var for c in s.carry), *(v for v, _ in s.xs)))
        self.results: Env = {}
        self.values: dict[Var, tuple[Array, bool]] = {v: (as_tracer(t, a), False) for v, a in s.consts}
        self.values.update((v, (as_tracer(t, a), True)) for v, a in s.xs)
        self.uses = Counter(a for e in s.eqns for a in e.inputs)
        self.uses.update(s.body.outputs)
        # Products that no carry needs, but for carries that are only added to, and what follows from them.
        needed = needed_for(s.eqns, [c.out for c in s.carry if self._added(c) is None])
        roots = [e.outputs[0] for e in s.eqns if is_product(e) and needed.isdisjoint(e.outputs)]
        self.late = {v for v in reached(s.eqns, roots) if batches(self.producer[v])}
        for a, r in s.ys:
            if isinstance(a, Var) and a not in self.late:
                self.values.setdefault(a, (as_tracer(t, r), True))

    def scan(self) -> Scan:
        """The loop that is left."""
        s = replace(self.s, carry=tuple(self.carry), ys=tuple(self.ys))
        body = dce(s.body)
        used = {a for e in body.eqns for a in e.inputs} | set(body.outputs)
        consts, xs = (tuple(p for p in pairs if p[0] in used) for pairs in (s.consts, s.xs))
        return replace(s, eqns=tuple(body.eqns), consts=consts, xs=xs)

    def attempt(self, work: Callable[[], None]) -> bool:
        """Do `work` unless it stacks too much; then leave all as it was."""
        saved = len(self.t.eqns), list(self.carry), list(self.ys), dict(self.results), dict(self.values)
        before = self._bytes()
        try:
            work()
            fits = self._bytes() - before <= ROOM and not self.t.captured
        except NotImplementedError:  # no batching rule
            fits = False
        if not fits:
            del self.t.eqns[saved[0] :]
            self.t.captured.clear()
            _, self.carry, self.ys, self.results, self.values = saved
        return fits

    def _bytes(self) -> int:
        """What is stacked, and the products of all iterations together."""
        products = sum(e.outputs[0].type.nbytes for e in self.t.eqns if is_product(e))
        return products + sum(r.type.nbytes for _, r in self.ys)

    # ------------------------------------------------------------------------------------ values over all iterations

    def over(self, a: Atom) -> tuple[Array, bool]:
        """`a` in all iterations (with a leading axis; True) or, if it is the same in all, `a` itself (False)."""
        if isinstance(a, Literal):
            return as_tracer(self.t, a), False
        if a not in self.values:
            later: set[Eqn] = set()
            for v in self._missing(a, later):
                result = Var(_stacked(v, self.s.length))
                self.ys.append((v, result))
                self.values[v] = as_tracer(self.t, result), True
            for e in sorted(later, key=self.place.__getitem__):
                self._batch(e)
        return self.values[a]

    def _missing(self, a: Var, later: set[Eqn]) -> list[Var]:
        """What must be stacked to have `a`; the equations that give `a` from that are added to `later`."""
        found: dict[Var, None] = {}
        todo = [a]
        while todo:
            v = todo.pop()
            if v in self.values or v in found:
                continue
            if v in self.late or self._is_cheap(v):
                e = self.producer[v]
                if e not in later:
                    later.add(e)
                    todo.extend(i for i in e.inputs if isinstance(i, Var))
            else:
                found[v] = None
        return list(found)

    def stacked(self, a: Atom) -> Array:
        value, on = self.over(a)
        return value if on else batch_operand(value, self.s.length)

    def _is_cheap(self, a: Var) -> bool:
        """Whether `a` can be had after the loop at little cost from what is there anyway."""
        seen: set[Eqn] = set()
        todo: list[Atom] = [a]
        while todo:
            v = todo.pop()
            if isinstance(v, Literal) or v in self.values:
                continue
            e = self.producer.get(v)
            if e is None or len(seen) > _MOST_CHEAP or not batches(e):
                return False
            if e.prim.name not in CHEAP and e.prim.name != "transpose" and v in self.varying:
                return False
            if e not in seen:
                seen.add(e)
                todo.extend(e.inputs)
        return True

    def _batch(self, e: Eqn) -> None:
        args = [self.over(a) for a in e.inputs]
        with at_source(e.source):
            if any(on for _, on in args):
                if e.prim.batch is None:
                    raise NotImplementedError(e.prim.name)
                out, on = e.prim.batch(self.s.length, [x for x, _ in args], [b for _, b in args], **e.params)
            else:
                out, on = self.t.record(e.prim, [x for x, _ in args], e.params), False
                out = out if e.prim.multiple else out[0]
        outs, ons = (out, on) if e.prim.multiple else ([out], [on])
        ons = ons if isinstance(ons, (list, tuple)) else [ons] * len(outs)
        self.values.update(zip(e.outputs, zip(outs, ons, strict=True), strict=True))

    # ------------------------------------------------------------------------------------ sums

    def sums(self) -> None:
        """Sums of products first: what they stack, other sums may use."""
        found = [(c, z) for c in self.carry if (z := self._added(c)) is not None]
        for c, z in sorted(found, key=lambda pair: not self._is_sum_of_products(pair[1])):
            self.attempt(lambda c=c, z=z: self._sum(c, z))  # type: ignore[misc]

    def _added(self, c: Carry) -> Atom | None:
        """`z` where the body does nothing with the carry but `c + z`."""
        e = self.producer.get(c.out) if isinstance(c.out, Var) else None
        if e is None or e.prim.name != "add":
            return None
        if c.var not in e.inputs or self.uses[c.var] != 1 or self.uses[c.out] != 1:
            return None
        return e.inputs[1] if e.inputs[0] is c.var else e.inputs[0]

    def _is_sum_of_products(self, a: Atom) -> bool:
        seen: set[Eqn] = set()
        todo = [a]
        while todo:
            last = todo.pop()
            e = self.producer.get(last) if isinstance(last, Var) else None
            if e is None or e in seen:
                continue
            seen.add(e)
            if is_product(e):
                return True
            if e.prim.name in ("transpose", "reshape", "neg", "mul", "add"):
                todo.extend(e.inputs)
        return False

    def _sum(self, c: Carry, z: Atom) -> None:
        total = self.total(z)
        if total.type != c.var.type:
            raise NotImplementedError
        self.carry.remove(c)
        self.results[c.result] = self.t.lift(add(as_tracer(self.t, c.init), total))

    def total(self, a: Atom) -> Array:
        """The sum of `a` over all iterations."""
        e = (
            self.producer.get(a)
            if isinstance(a, Var) and a in self.varying and a not in self.values
            else None
        )
        if e is None:
            return reduce_sum(self.stacked(a), (0,))
        with at_source(e.source):
            name, first = e.prim.name, e.inputs[0]
            if name == "transpose":
                return transpose(self.total(first), e.params["perm"])
            if name == "reshape":
                return reshape(self.total(first), e.params["shape"])
            if name == "neg":
                return neg(self.total(first))
            if name == "add" and all(i in self.varying for i in e.inputs):
                return functools.reduce(add, map(self.total, self._terms(e)))
            if name == "div" and e.inputs[1] not in self.varying:
                return div(self.total(first), self.over(e.inputs[1])[0])
            if name == "mul":
                for one, other in (e.inputs, e.inputs[::-1]):
                    if other not in self.varying:
                        return mul(self.total(one), self.over(other)[0])
            if name == "reduce_sum":
                return reduce_sum(self.stacked(first), (0, *(i + 1 for i in e.params["axes"])))
            if name == "dot_general":
                return self._total_product(e)
            return reduce_sum(self.stacked(a), (0,))

    def _terms(self, e: Eqn) -> list[Atom]:
        """What a sum of sums adds."""
        terms: list[Atom] = []
        todo: list[Atom] = [*reversed(e.inputs)]
        while todo:
            a = todo.pop()
            inner = self.producer.get(a) if isinstance(a, Var) and a not in self.values else None
            if (
                inner is not None
                and inner.prim.name == "add"
                and all(i in self.varying for i in inner.inputs)
            ):
                todo.extend(reversed(inner.inputs))
            else:
                terms.append(a)
        return terms

    def _total_product(self, e: Eqn) -> Array:
        a, b = e.inputs
        (ac, bc), (ab, bb) = e.params["dims"]
        if a not in self.varying:
            return dot_general(self.over(a)[0], self.total(b), e.params["dims"])
        if b not in self.varying:
            return dot_general(self.total(a), self.over(b)[0], e.params["dims"])
        (ac, bc), (ab, bb) = (
            tuple(tuple(i + 1 for i in axes) for axes in pair) for pair in ((ac, bc), (ab, bb))
        )
        return dot_general(self.stacked(a), self.stacked(b), (((0, *ac), (0, *bc)), (ab, bb)))

    # ------------------------------------------------------------------------------------ what no carry depends on

    def products(self) -> None:
        eqns = self.s.eqns
        needed = needed_for(eqns, [c.out for c in self.carry])
        roots = [e.outputs[0] for e in eqns if is_product(e) and needed.isdisjoint(e.outputs)]
        moving = reached(eqns, roots)
        read = {a for e in self.t.eqns for a in e.inputs}  # by the sums: it stays where it is
        kept = {a for a, r in self.ys if isinstance(a, Var) and r in read}
        late = [e for e in eqns if not moving.isdisjoint(e.outputs)]
        wanted = needed_for(late, [a for a, _ in self.ys if a in moving])
        late = [e for e in late if not wanted.isdisjoint(e.outputs)]
        if not late or not all(map(batches, late)) or moving & kept:
            return

        def work() -> None:
            moved = [(a, r) for a, r in self.ys if a in moving]
            self.ys = [(a, r) for a, r in self.ys if a not in moving]
            for a, _ in moved:
                self.values.pop(a, None)  # type: ignore[arg-type]
            for e in late:
                self._batch(e)
            for a, r in moved:
                self.results[r] = self.t.lift(self.stacked(a))

        self.attempt(work)

    def repeated(self) -> None:
        """Results that are the same in every row."""
        for a, r in list(self.ys):
            if a not in self.varying and (isinstance(a, Literal) or self._is_cheap(a)):
                self.ys.remove((a, r))
                self.values.pop(a, None) if isinstance(a, Var) and a in self.producer else None
                self.results[r] = self.t.lift(batch_operand(self.over(a)[0], self.s.length))


def _stacked(v: Var, length: int) -> Any:
    return type(v.type)((length, *v.type.shape), v.type.dtype)
