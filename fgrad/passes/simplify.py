"""Equations that do nothing, or the same as a shorter one, removed. No rule changes a NaN or an infinity.

    convert(x, x.dtype) = x      reshape(reshape(x)) = reshape(x)      transpose(transpose(x)) = transpose(x)
    x + 0 = x   x * 1 = x   x * -1 = -x   -(-x) = x                     broadcast(broadcast(x)) = broadcast(x)

(x + 0 differs from x for -0.0 only, which compiled programs do not promise to keep.) Element-wise operations on constants
are computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.ir import Atom, Eqn, Graph, Literal, Primitive, Var, infer
from fgrad.passes.inline import map_subgraphs

_FOLDABLE = frozenset(
    [
        "neg",
        "abs",
        "sign",
        "floor",
        "ceil",
        "round",
        "trunc",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "square",
        "exp",
        "log",
        "add",
        "sub",
        "mul",
        "div",
        "maximum",
        "minimum",
        "pow",
        "convert",
        "integer_pow",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "select",
        "bitwise_and",
        "bitwise_or",
        "logical_not",
        "stop_gradient",
        "identity",
    ]
)


@dataclass
class _State:
    producer: dict[Var, Eqn] = field(default_factory=dict)
    constant: dict[Var, Literal] = field(default_factory=dict)  # variables that hold one value everywhere
    prims: dict[str, Primitive] = field(default_factory=dict)

    def literal(self, a: Atom) -> Literal | None:
        return a if isinstance(a, Literal) else self.constant.get(a)

    def is_value(self, a: Atom, value: float) -> bool:
        literal = self.literal(a)
        return literal is not None and bool(np.equal(literal.value, value))

    def made_by(self, a: Atom, name: str) -> Eqn | None:
        eqn = self.producer.get(a) if isinstance(a, Var) else None
        return eqn if eqn is not None and eqn.prim.name == name else None


# A rule gives the atom that the equation's output equals, a replacement (primitive, inputs, params), or None.
Result = Any
_RULES: dict[str, Callable[[_State, Eqn], Result]] = {}


def _rule(*names: str) -> Callable[[Callable[[_State, Eqn], Result]], Callable[[_State, Eqn], Result]]:
    def add(f: Callable[[_State, Eqn], Result]) -> Callable[[_State, Eqn], Result]:
        for name in names:
            _RULES[name] = f
        return f

    return add


@_rule("identity", "stop_gradient")
def _same(s: _State, e: Eqn) -> Result:
    return e.inputs[0]


@_rule("convert")
def _convert(s: _State, e: Eqn) -> Result:
    return e.inputs[0] if e.inputs[0].type.dtype == e.outputs[0].type.dtype else None


@_rule("add")
def _add(s: _State, e: Eqn) -> Result:
    a, b = e.inputs
    return a if s.is_value(b, 0) else b if s.is_value(a, 0) else None


@_rule("sub")
def _sub(s: _State, e: Eqn) -> Result:
    return e.inputs[0] if s.is_value(e.inputs[1], 0) else None


@_rule("mul")
def _mul(s: _State, e: Eqn) -> Result:
    for a, b in (e.inputs, e.inputs[::-1]):
        if s.is_value(b, 1):
            return a
        if s.is_value(b, -1) and "neg" in s.prims and a.type.dtype not in dtypes.COMPLEX:
            return s.prims["neg"], (a,), {}
    return None


@_rule("div")
def _div(s: _State, e: Eqn) -> Result:
    return e.inputs[0] if s.is_value(e.inputs[1], 1) else None


@_rule("integer_pow")
def _integer_pow(s: _State, e: Eqn) -> Result:
    return e.inputs[0] if e.params["n"] == 1 else None


@_rule("neg")
def _neg(s: _State, e: Eqn) -> Result:
    inner = s.made_by(e.inputs[0], "neg")
    return inner.inputs[0] if inner is not None else None


@_rule("select")
def _select(s: _State, e: Eqn) -> Result:
    cond = s.literal(e.inputs[0])
    if cond is not None:
        return e.inputs[1] if cond.value else e.inputs[2]
    return e.inputs[1] if e.inputs[1] is e.inputs[2] else None


@_rule("reshape")
def _reshape(s: _State, e: Eqn) -> Result:
    (x,) = e.inputs
    shape = e.outputs[0].type.shape
    if x.type.shape == shape:
        return x
    inner = s.made_by(x, "reshape")
    if inner is not None:
        origin = inner.inputs[0]
        return origin if origin.type.shape == shape else (e.prim, inner.inputs, e.params)
    filled = s.made_by(x, "broadcast")
    if filled is not None and not filled.inputs[0].type.shape:
        return filled.prim, filled.inputs, {"shape": shape, "axes": ()}
    return None


@_rule("transpose")
def _transpose(s: _State, e: Eqn) -> Result:
    (x,), perm = e.inputs, tuple(e.params["perm"])
    if perm == tuple(range(len(perm))):
        return x
    inner = s.made_by(x, "transpose")
    if inner is not None:
        both = tuple(inner.params["perm"][p] for p in perm)
        return inner.inputs[0] if both == tuple(range(len(both))) else (e.prim, inner.inputs, {"perm": both})
    product = s.made_by(x, "dot_general")
    if product is not None:
        return _swapped_product(product, perm)
    wide = s.made_by(x, "broadcast")
    if wide is not None:
        axes = tuple(perm.index(a) for a in wide.params["axes"])
        return wide.prim, wide.inputs, {"shape": e.outputs[0].type.shape, "axes": axes}
    return None


def _swapped_product(e: Eqn, perm: tuple[int, ...]) -> Result:
    """(a . b) with its free dimensions exchanged is b . a: the product is written in the order in which it is read."""
    (a, b), ((ca, cb), (ba, bb)) = e.inputs, e.params["dims"]
    batch, free_a = len(ba), len(a.type.shape) - len(ca) - len(ba)
    rank = len(perm)
    if perm != (*range(batch), *range(batch + free_a, rank), *range(batch, batch + free_a)):
        return None
    return e.prim, (b, a), {"dims": ((cb, ca), (bb, ba))}


@_rule("dot_general")
def _dot_general(s: _State, e: Eqn) -> Result:
    """An operand that is transposed for the product is read as it lies, if its free axes keep their order."""
    operands = list(e.inputs)
    contract, batch = list(e.params["dims"][0]), list(e.params["dims"][1])
    changed = False
    for n, a in enumerate(operands):
        turned = s.made_by(a, "transpose")
        if turned is None:
            continue
        perm = turned.params["perm"]
        free = [perm[i] for i in range(len(perm)) if i not in contract[n] and i not in batch[n]]
        if free == sorted(free):
            operands[n], changed = turned.inputs[0], True
            contract[n], batch[n] = (tuple(perm[i] for i in axes[n]) for axes in (contract, batch))
    return (e.prim, tuple(operands), {"dims": (tuple(contract), tuple(batch))}) if changed else None


@_rule("broadcast")
def _broadcast(s: _State, e: Eqn) -> Result:
    (x,), shape, axes = e.inputs, tuple(e.params["shape"]), tuple(e.params["axes"])
    if x.type.shape == shape and axes == tuple(range(len(shape))):
        return x
    inner = s.made_by(x, "broadcast")
    if inner is not None:
        return e.prim, inner.inputs, {"shape": shape, "axes": tuple(axes[a] for a in inner.params["axes"])}
    return None


@_rule("slice")
def _slice(s: _State, e: Eqn) -> Result:
    return e.inputs[0] if e.outputs[0].type == e.inputs[0].type else None


@_rule("pad")
def _pad(s: _State, e: Eqn) -> Result:
    return e.inputs[0] if e.outputs[0].type == e.inputs[0].type else None


@_rule("concatenate")
def _concatenate(s: _State, e: Eqn) -> Result:
    return e.inputs[0] if len(e.inputs) == 1 else None


@_rule("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or")
def _reduce(s: _State, e: Eqn) -> Result:
    return e.inputs[0] if not e.params["axes"] else None


@_rule("flip")
def _flip(s: _State, e: Eqn) -> Result:
    return e.inputs[0] if not e.params["axes"] else None


def _folded(s: _State, e: Eqn) -> Literal | None:
    """The value of an equation all of whose elements are the same known constant."""
    if len(e.outputs) != 1 or not e.inputs:
        return None
    literals = [s.literal(a) for a in e.inputs]
    if any(x is None for x in literals):
        return None
    (out,) = e.outputs
    if e.prim.name in ("broadcast", "reshape", "transpose", "slice", "flip"):
        return literals[0]
    if e.prim.name not in _FOLDABLE or dtypes.is_complex(out.type.dtype):
        return None
    with np.errstate(all="ignore"):
        value = e.prim.impl(
            *[np.asarray(x.value, x.type.dtype) for x in literals if x is not None], **e.params
        )
    return Literal(np.asarray(value), out.type.dtype)


def simplify(graph: Graph) -> Graph:
    """One pass over the graph in order; what an equation's inputs became is known when it is looked at."""
    s = _State()
    for eqn in graph.eqns:
        s.prims.setdefault(eqn.prim.name, eqn.prim)
    env: dict[Var, Atom] = {}
    eqns: list[Eqn] = []

    def read(a: Atom) -> Atom:
        return env.get(a, a) if isinstance(a, Var) else a

    for eqn in graph.eqns:
        params = map_subgraphs(eqn, simplify) if eqn.prim.family == "control" else eqn.params
        eqn = Eqn(eqn.prim, [read(a) for a in eqn.inputs], params, eqn.outputs, eqn.source)
        rule = _RULES.get(eqn.prim.name)
        result = rule(s, eqn) if rule is not None else None
        if isinstance(result, tuple):
            prim, inputs, params = result
            if infer(prim, [a.type for a in inputs], params) == tuple(v.type for v in eqn.outputs):
                eqn = Eqn(prim, inputs, params, eqn.outputs, eqn.source)
        elif result is not None and result.type == eqn.outputs[0].type:
            env[eqn.outputs[0]] = result
            continue
        literal = _folded(s, eqn)
        if literal is not None:
            (out,) = eqn.outputs
            if not out.type.shape:
                env[out] = literal
                continue
            s.constant[out] = literal
            broadcast = eqn.prim if eqn.prim.name == "broadcast" else s.prims.get("broadcast")
            if broadcast is not None:
                eqn = Eqn(
                    broadcast, (literal,), {"shape": out.type.shape, "axes": ()}, eqn.outputs, eqn.source
                )
        for v in eqn.outputs:
            s.producer[v] = eqn
        eqns.append(eqn)
    return Graph(graph.inputs, eqns, tuple(read(a) for a in graph.outputs), graph.name)
