"""Work moved out of a scan: done once, or for all iterations at once.

    constants    what depends on nothing else is computed before the loop
    before       products of what does not depend on the carry
    sums         a carry that is only added to: the sum of what is added. A sum of products over the iterations is one product that
                 also contracts the axis of the iterations; its factors are stacked if they are not yet
    after        products that no carry depends on, and what follows from them

Stacking what is not stacked takes memory, so all this has a limit for each scan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fgrad.array import Array
from fgrad.ir import Atom, Eqn, Graph, Literal, Var, dce
from fgrad.ops.builders import batch_operand
from fgrad.ops.contract import dot_general
from fgrad.ops.elementwise import add, div, mul, neg
from fgrad.ops.reduce import reduce_sum
from fgrad.ops.structure import reshape, transpose
from fgrad.passes.scans import Carry, Env, Scan, needed_for, reached
from fgrad.trace import Trace, as_tracer, at_source, deriving, evaluate
from fgrad.transforms.residuals import CHEAP
from fgrad.transforms.vmap import batch_graph

ROOM = 64 << 20  # bytes that may be stacked in addition
_REPEATING = frozenset(["broadcast", "iota", "full"])  # cheaper to compute again than to read


def moved_out(s: Scan) -> tuple[list[Eqn], Env]:
    """The equations that replace `s`, and results that are now other atoms."""
    eqns: list[Eqn] = []
    for move in (constants_out, operands_in_order, products_before):
        with deriving("loops") as t:
            s = move(s, t)
        eqns += t.eqns
    with deriving("loops") as t:
        after = _After(s, t)
        after.sums()
        after.products()
        after.repeated()
    s, env = after.scan(), after.results
    if s.carry or s.ys:
        eqns.append(s.eqn())
    return [*eqns, *t.eqns], env


# ------------------------------------------------------------------------------------------------ before


def constants_out(s: Scan, t: Trace) -> Scan:
    """What depends on constants alone."""
    made, rest = _fixed(s.body, s.consts, t, lambda e: True)
    return replace(s, consts=(*s.consts, *made), eqns=tuple(rest)) if made else s


def _fixed(
    body: Graph, consts: Sequence[tuple[Var, Atom]], t: Trace, movable: Callable[[Eqn], bool]
) -> tuple[list[tuple[Var, Atom]], list[Eqn]]:
    """The variables of `body` that depend on `consts` alone, with their values written into `t`, and the equations that are left.

    What only repeats a value stays: it is cheaper to repeat than to read.
    """
    known = {v for v, _ in consts}
    fixed: list[Eqn] = []
    for e in body.eqns:
        inputs_known = all(isinstance(a, Literal) or a in known for a in e.inputs)
        if inputs_known and not e.prim.effects and movable(e):
            fixed.append(e)
            known.update(e.outputs)
    moving = set(fixed)
    needed = {a for e in body.eqns if e not in moving for a in e.inputs} | set(body.outputs)
    for e in reversed(fixed):
        if not needed.isdisjoint(e.outputs) and e.prim.name in _REPEATING:
            moving.discard(e)
            needed.update(e.inputs)
    roots = [v for e in fixed if e in moving for v in e.outputs if v in needed]
    if not roots:
        return [], body.eqns
    graph = Graph(tuple(v for v, _ in consts), fixed, tuple(roots))
    values = evaluate(graph, [as_tracer(t, a) for _, a in consts])
    made = [(v, t.lift(x)) for v, x in zip(roots, values, strict=True)]
    return made, [e for e in body.eqns if e not in moving]


def while_constants_out(eqn: Eqn) -> list[Eqn]:
    """A `while_loop` without what is the same in all iterations, after the equations that compute it.

    There may be no iteration: what could fail (indices out of bounds, NumPy's linear algebra) stays.
    """

    def movable(e: Eqn) -> bool:
        return e.prim.family in ("elementwise", "structure", "contract", "reduce", "cumulative")

    nc, nb = eqn.params["cond_consts"], eqn.params["body_consts"]
    params = dict(eqn.params)
    consts: list[tuple[Atom, ...]] = []
    with deriving("loops") as t:
        for key, inputs in (("cond", eqn.inputs[:nc]), ("body", eqn.inputs[nc : nc + nb])):
            graph: Graph = dce(params[key])
            n = len(inputs)
            made, rest = _fixed(graph, list(zip(graph.inputs, inputs)), t, movable)
            inner = (*graph.inputs[:n], *(v for v, _ in made), *graph.inputs[n:])
            params[key] = Graph(inner, rest, graph.outputs, graph.name)
            params[f"{key}_consts"] = n + len(made)
            consts.append((*inputs, *(a for _, a in made)))
    inputs = (*consts[0], *consts[1], *eqn.inputs[nc + nb :])
    return [*t.eqns, Eqn(eqn.prim, inputs, params, eqn.outputs, eqn.source)]


def operands_in_order(s: Scan, t: Trace) -> Scan:
    """The constant right operand of a product with its contracted axes first, so that the product reads its rows as they lie."""
    consts = dict(s.consts)
    made: dict[tuple[Var, tuple[int, ...]], Var] = {}
    eqns = []
    for e in s.eqns:
        if e.prim.name == "dot_general" and e.inputs[1] in consts:
            b = e.inputs[1]
            assert isinstance(b, Var)
            (ac, bc), (ab, bb) = e.params["dims"]
            free = tuple(i for i in range(b.type.ndim) if i not in bc and i not in bb)
            order = (*bb, *bc, *free)
            if free and bc and order != tuple(range(b.type.ndim)):
                new = made.get((b, order))
                if new is None:
                    with at_source(e.source):
                        turned = t.lift(transpose(as_tracer(t, consts[b]), order))
                    new = made[b, order] = Var(turned.type)
                    consts[new] = turned
                n, k = len(bb), len(bc)
                dims = (ac, tuple(range(n, n + k))), (ab, tuple(range(n)))
                e = Eqn(e.prim, (e.inputs[0], new), {"dims": dims}, e.outputs, e.source)
        eqns.append(e)
    return replace(s, consts=tuple(consts.items()), eqns=tuple(eqns)) if made else s


def products_before(s: Scan, t: Trace) -> Scan:
    """Products that depend on the scanned arrays and constants alone."""
    moving = reached(s.eqns, [v for v, _ in s.xs]) - reached(s.eqns, [c.var for c in s.carry])
    roots = [e.outputs[0] for e in s.eqns if _is_product(e) and e.outputs[0] in moving]
    if not roots or s.length * sum(v.type.nbytes for v in roots) > ROOM:
        return s
    inputs = (*s.consts, *s.xs)
    graph = dce(Graph(tuple(v for v, _ in inputs), list(s.eqns), tuple(roots)))
    if any(e.prim.batch is None or e.prim.effects for e in graph.eqns):
        return s
    every, _ = batch_graph(graph, s.length, [n >= len(s.consts) for n in range(len(inputs))], True)
    if every.captured:
        return s
    values = evaluate(every.graph, [as_tracer(t, a) for _, a in inputs])
    made = tuple((v, t.lift(x)) for v, x in zip(roots, values, strict=True))
    eqns = tuple(e for e in s.eqns if e.outputs[0] not in roots)
    return replace(s, xs=(*s.xs, *made), eqns=eqns)


def _batches(e: Eqn) -> bool:
    return e.prim.batch is not None and e.prim.family != "control" and not e.prim.effects


def _is_product(e: Eqn) -> bool:
    return e.prim.family == "contract" and len(e.outputs) == 1


# ------------------------------------------------------------------------------------------------ after


class _After:
    """What follows the loop, written into `t`. `results` are results of the scan that it gives."""

    def __init__(self, s: Scan, t: Trace):
        self.s, self.t = s, t
        self.carry, self.ys = list(s.carry), list(s.ys)
        self.producer = {v: e for e in s.eqns for v in e.outputs}
        self.varying = reached(s.eqns, (*(c.var for c in s.carry), *(v for v, _ in s.xs)))
        self.results: Env = {}
        self.values: dict[Var, tuple[Array, bool]] = {v: (as_tracer(t, a), False) for v, a in s.consts}
        self.values.update((v, (as_tracer(t, a), True)) for v, a in s.xs)
        self.uses = Counter(a for e in s.eqns for a in e.inputs)
        self.uses.update(s.body.outputs)
        # Products that no carry needs, but for carries that are only added to, and what follows from them.
        needed = needed_for(s.eqns, [c.out for c in s.carry if self._added(c) is None])
        roots = [e.outputs[0] for e in s.eqns if _is_product(e) and needed.isdisjoint(e.outputs)]
        self.late = {v for v in reached(s.eqns, roots) if _batches(self.producer[v])}
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
        products = sum(e.outputs[0].type.nbytes for e in self.t.eqns if _is_product(e))
        return products + sum(r.type.nbytes for _, r in self.ys)

    # ------------------------------------------------------------------------------------ values over all iterations

    def over(self, a: Atom) -> tuple[Array, bool]:
        """`a` in all iterations (with a leading axis; True) or, if it is the same in all, `a` itself (False)."""
        if isinstance(a, Literal):
            return as_tracer(self.t, a), False
        if a not in self.values:
            e = self.producer.get(a)
            if e is not None and (a in self.late or self._follows(a)):
                self._batch(e)
            else:
                result = Var(_stacked(a, self.s.length))
                self.ys.append((a, result))
                self.values[a] = as_tracer(self.t, result), True
        return self.values[a]

    def stacked(self, a: Atom) -> Array:
        value, on = self.over(a)
        return value if on else batch_operand(value, self.s.length)

    def _follows(self, a: Atom) -> bool:
        """Whether `a` can be had after the loop at little cost from what is there anyway."""
        if isinstance(a, Literal) or a in self.values:
            return True
        e = self.producer.get(a)
        if e is None or e.prim.effects or e.prim.family == "control":
            return False
        cheap = e.prim.name in CHEAP or e.prim.name == "transpose" or a not in self.varying
        return cheap and all(self._follows(i) for i in e.inputs)

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
        e = self.producer.get(a) if isinstance(a, Var) else None
        if e is None:
            return False
        through = e.prim.name in ("transpose", "reshape", "neg", "mul", "add")
        return _is_product(e) or (through and any(map(self._is_sum_of_products, e.inputs)))

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
            if name == "add" and all(isinstance(i, Var) and i in self.varying for i in e.inputs):
                return add(*map(self.total, e.inputs))
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
        roots = [e.outputs[0] for e in eqns if _is_product(e) and needed.isdisjoint(e.outputs)]
        moving = reached(eqns, roots)
        read = {a for e in self.t.eqns for a in e.inputs}  # by the sums: it stays where it is
        kept = {a for a, r in self.ys if isinstance(a, Var) and r in read}
        late = [e for e in eqns if not moving.isdisjoint(e.outputs)]
        wanted = needed_for(late, [a for a, _ in self.ys if a in moving])
        late = [e for e in late if not wanted.isdisjoint(e.outputs)]
        if not late or not all(map(_batches, late)) or moving & kept:
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
            if a not in self.varying and (isinstance(a, Literal) or self._follows(a)):
                self.ys.remove((a, r))
                self.values.pop(a, None) if isinstance(a, Var) and a in self.producer else None
                self.results[r] = self.t.lift(batch_operand(self.over(a)[0], self.s.length))


def _stacked(v: Var, length: int) -> Any:
    return type(v.type)((length, *v.type.shape), v.type.dtype)
