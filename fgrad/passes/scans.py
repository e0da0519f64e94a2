"""A `scan` equation taken apart, and what can be seen in it: results and carries that nothing needs, carries that never change
or are equal to others, arrays that are the same in every row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fgrad.errors import Source
from fgrad.ir import Atom, Eqn, Graph, Literal, Primitive, Var, dce
from fgrad.passes.cse import share_equal
from fgrad.passes.simplify import simplify

Env = dict[Var, Atom]


@dataclass(frozen=True, eq=False)
class Carry:
    """`var` is the value in the body, `init` where it starts, `out` what the body makes of it, `result` the last one."""

    var: Var
    init: Atom
    out: Atom
    result: Var


@dataclass(frozen=True, eq=False)
class Scan:
    """A `scan` equation taken apart: (body variable, outer atom) for constants and scanned arrays, (body atom, result) for `ys`."""

    prim: Primitive
    consts: tuple[tuple[Var, Atom], ...]
    carry: tuple[Carry, ...]
    xs: tuple[tuple[Var, Atom], ...]
    eqns: tuple[Eqn, ...]
    ys: tuple[tuple[Atom, Var], ...]
    length: int
    reverse: bool
    name: str
    source: Source | None

    @staticmethod
    def of(eqn: Eqn) -> Scan:
        p = eqn.params
        body: Graph = p["body"]
        nc, nk = p["consts"], p["carry"]
        pairs = list(zip(body.inputs, eqn.inputs, strict=True))
        carry = [
            Carry(v, init, out, result)
            for (v, init), out, result in zip(pairs[nc : nc + nk], body.outputs, eqn.outputs)
        ]
        ys = tuple(zip(body.outputs[nk:], eqn.outputs[nk:], strict=True))
        return Scan(
            eqn.prim,
            tuple(pairs[:nc]),
            tuple(carry),
            tuple(pairs[nc + nk :]),
            tuple(body.eqns),
            ys,
            p["length"],
            p["reverse"],
            body.name,
            eqn.source,
        )

    @property
    def body(self) -> Graph:
        inputs = (*(v for v, _ in self.consts), *(c.var for c in self.carry), *(v for v, _ in self.xs))
        outputs = (*(c.out for c in self.carry), *(a for a, _ in self.ys))
        return Graph(inputs, list(self.eqns), outputs, self.name)

    @property
    def inputs(self) -> tuple[Atom, ...]:
        return (*(a for _, a in self.consts), *(c.init for c in self.carry), *(a for _, a in self.xs))

    @property
    def results(self) -> tuple[Var, ...]:
        return (*(c.result for c in self.carry), *(r for _, r in self.ys))

    def eqn(self) -> Eqn:
        params = {
            "body": self.body,
            "consts": len(self.consts),
            "carry": len(self.carry),
            "length": self.length,
            "reverse": self.reverse,
        }
        return Eqn(self.prim, self.inputs, params, self.results, self.source)

    def with_body(self, graph: Graph) -> Scan:
        """The same scan with the equations and outputs of `graph`, whose inputs are the body's."""
        outs = graph.outputs
        carry = tuple(replace(c, out=o) for c, o in zip(self.carry, outs))
        ys = tuple((a, r) for a, (_, r) in zip(outs[len(carry) :], self.ys, strict=True))
        return replace(self, eqns=tuple(graph.eqns), carry=carry, ys=ys)

    def substituted(self, env: Env) -> Scan:
        """With body variables replaced by other atoms of the body."""
        return self.with_body(substituted(self.body, env))


def substituted(graph: Graph, env: Env) -> Graph:
    if not env:
        return graph

    def read(a: Atom) -> Atom:
        while isinstance(a, Var) and a in env:
            a = env[a]
        return a

    eqns = [Eqn(e.prim, [read(a) for a in e.inputs], e.params, e.outputs, e.source) for e in graph.eqns]
    return Graph(graph.inputs, eqns, tuple(read(a) for a in graph.outputs), graph.name)


def reached(eqns: Iterable[Eqn], start: Iterable[Var]) -> set[Var]:
    """What depends on `start`, itself included."""
    found = set(start)
    for e in eqns:
        if any(isinstance(a, Var) and a in found for a in e.inputs):
            found.update(e.outputs)
    return found


def needed_for(eqns: Sequence[Eqn], roots: Iterable[Atom]) -> set[Var]:
    """What `roots` depend on, themselves included."""
    found = {a for a in roots if isinstance(a, Var)}
    for e in reversed(eqns):
        if e.prim.effects or not found.isdisjoint(e.outputs):
            found.update(a for a in e.inputs if isinstance(a, Var))
    return found


# ------------------------------------------------------------------------------------------------ what is not needed


def prune(graph: Graph) -> Graph:
    """`dce` that also drops the results and carries of scans that nothing needs, and loops' bodies' dead equations."""
    needed = {a for a in graph.outputs if isinstance(a, Var)}
    kept: list[Eqn] = []
    for eqn in reversed(graph.eqns):
        if not eqn.prim.effects and needed.isdisjoint(eqn.outputs):
            continue
        if eqn.prim.name == "scan":
            eqn = _pruned(Scan.of(eqn), needed).eqn()
        kept.append(eqn)
        needed.update(a for a in eqn.inputs if isinstance(a, Var))
    kept.reverse()
    return Graph(graph.inputs, kept, graph.outputs, graph.name)


def _pruned(s: Scan, needed: set[Var]) -> Scan:
    ys = tuple((a, r) for a, r in s.ys if r in needed)
    live = {c for c in s.carry if c.result in needed}
    while True:
        inside = needed_for(s.eqns, (*(c.out for c in live), *(a for a, _ in ys)))
        more = {c for c in s.carry if c in live or c.var in inside}
        if len(more) == len(live):
            break
        live = more
    s = replace(s, carry=tuple(c for c in s.carry if c in live), ys=ys)
    body = dce(s.body)
    used = {a for e in body.eqns for a in e.inputs} | set(body.outputs)
    return replace(
        s,
        eqns=tuple(body.eqns),
        consts=tuple(p for p in s.consts if p[0] in used),
        xs=tuple(p for p in s.xs if p[0] in used),
    )


# ------------------------------------------------------------------------------------------------ what is the same


def tidy(s: Scan, producer: dict[Var, Eqn]) -> tuple[Scan, Env]:
    """Carries that stay become constants, repeated arrays are made where they are read, equal things are one. `Env`: results
    that turned out to be other outer atoms."""
    outer: Env = {}
    inner: Env = {}
    eqns: list[Eqn] = []
    consts, xs, carry = list(s.consts), [], []
    for c in s.carry:
        if c.out is c.var:
            consts.append((c.var, c.init))
            outer[c.result] = c.init
        else:
            carry.append(c)
    for v, a in s.xs:
        made = producer.get(a) if isinstance(a, Var) else None
        if made is not None and made.prim.name == "broadcast" and 0 not in made.params["axes"]:
            axes = tuple(i - 1 for i in made.params["axes"])
            source = made.inputs[0]
            if isinstance(source, Var):
                const = Var(source.type)
                consts.append((const, source))
                source = const
            params = {"shape": v.type.shape, "axes": axes}
            eqns.append(Eqn(made.prim, (source,), params, (v,), made.source))
        else:
            xs.append((v, a))
    first: dict[object, Var] = {}
    for pairs in (consts, xs):
        kept = []
        for v, a in pairs:
            if isinstance(a, Literal) and not v.type.shape:
                inner[v] = a
                continue
            known = first.setdefault((pairs is xs, key(a)), v)
            if known is v:
                kept.append((v, a))
            else:
                inner[v] = known
        pairs[:] = kept
    s = replace(s, consts=tuple(consts), xs=tuple(xs), carry=tuple(carry), eqns=(*eqns, *s.eqns)).substituted(
        inner
    )
    s = s.with_body(share_equal(simplify(s.body)))
    merged = equal_carries(s)
    if merged:
        by_var = {c.var: c for c in s.carry}
        outer.update((by_var[v].result, by_var[w].result) for v, w in merged.items())
        s = replace(s.substituted(dict(merged)), carry=tuple(c for c in s.carry if c.var not in merged))
        # (substituted() pairs the carries by position, so they are dropped after it)
        s = s.with_body(share_equal(s.body))
    by_value: dict[Atom, Var] = {}
    ys = []
    for a, r in s.ys:
        if isinstance(a, Var) and by_value.setdefault(a, r) is not r:
            outer[r] = by_value[a]
        else:
            ys.append((a, r))
    return replace(s, ys=tuple(ys)), outer


def key(a: Atom) -> object:
    return a if isinstance(a, Var) else (a.type, a.value.tobytes())


def equal_carries(s: Scan) -> dict[Var, Var]:
    """Carries that hold the same value in every iteration, each with the first of its kind: those that start equal and that
    the body maps to equal values if they are equal."""
    groups: dict[Var, int] = {}
    numbers: dict[object, int] = {}
    for c in s.carry:
        groups[c.var] = numbers.setdefault((c.var.type, key(c.init)), len(numbers))
    while len(set(groups.values())) < len(groups):
        first: dict[int, Var] = {}
        merged = {v: first.setdefault(n, v) for v, n in groups.items()}
        same: Env = {v: w for v, w in merged.items() if v is not w}
        outs = share_equal(substituted(s.body, same)).outputs
        numbers = {}
        finer = {
            c.var: numbers.setdefault((groups[c.var], key(out)), len(numbers))
            for c, out in zip(s.carry, outs)
        }
        if len(set(finer.values())) == len(set(groups.values())):
            return {v: w for v, w in merged.items() if v is not w}
        groups = finer
    return {}


def renamed(s: Scan) -> Scan:
    """The same with new body variables; those of nested graphs stay."""
    env: dict[Var, Var] = {v: Var(v.type) for v in s.body.inputs}

    def read(a: Atom) -> Atom:
        return env.get(a, a) if isinstance(a, Var) else a

    eqns = []
    for e in s.eqns:
        inputs = [read(a) for a in e.inputs]
        env.update((v, Var(v.type)) for v in e.outputs)
        eqns.append(Eqn(e.prim, inputs, e.params, [env[v] for v in e.outputs], e.source))
    return replace(
        s,
        eqns=tuple(eqns),
        consts=tuple((env[v], a) for v, a in s.consts),
        xs=tuple((env[v], a) for v, a in s.xs),
        carry=tuple(replace(c, var=env[c.var], out=read(c.out)) for c in s.carry),
        ys=tuple((read(a), r) for a, r in s.ys),
    )
