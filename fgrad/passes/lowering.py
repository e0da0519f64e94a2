"""The state of lowering one graph to stages and steps: which values are buffers, which are still functions of an index.

The rules for single primitives are in `lower_*.py`; each takes `(low, eqn)` and sets `low.env` for the outputs. Here is what
they share: reading and realizing values, new buffers, checks, and the rule for when a value deserves a buffer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.codegen.loops import Buffer, Expr, Kernel, LoopVar
from fgrad.codegen.program import Block, Buf, CopyStep, HostStep, KernelStep, Step
from fgrad.ir import Atom, Eqn, Graph, Literal, Type, Var
from fgrad.passes.exprs import Builder
from fgrad.passes.lazy import Lazy, Stage, whole
from fgrad.show import Namer

Rule = Callable[["Lowering", Eqn], None]

# Rough instructions per element; what is not listed costs 1.
_COST = dict.fromkeys(
    ["div", "sqrt", "rsqrt", "reciprocal", "floordiv", "remainder", "fmod", "gather"], 5
) | dict.fromkeys(
    [
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "sigmoid",
        "erf",
        "erfc",
        "erfinv",
        "lgamma",
        "digamma",
        "cbrt",
        "pow",
        "atan2",
        "hypot",
        "logaddexp",
        "max_pool",
        "sum_pool",
        "sum_pool_grad",
        "pool_put",
    ],
    20,
)
_COST |= dict.fromkeys(
    ["broadcast", "reshape", "transpose", "slice", "convert", "iota", "identity", "stop_gradient"], 0
)
_COST["threefry2x32"] = 70

_NO_TYPE = Type((), dtypes.bool_)

CONTRACTIONS = frozenset({"dot_general", "conv", "conv_input_grad", "conv_weight_grad"})

CHEAP = 4  # a value that costs this much or less is computed again by each reader rather than stored
MOST_EQUATIONS = 48  # in one expression: keeps kernels readable and recursion shallow


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for s in reversed(shape):
        strides.append(step)
        step *= s
    return tuple(reversed(strides))


@dataclass
class Shared:
    """What the blocks of one program have in common."""

    rules: dict[str, Rule]
    schedule: Callable[[list[Any], Shared, set[Buf]], list[Step]]
    builder: Builder = field(default_factory=Builder)
    status: Buf | None = None
    checks: list[tuple[str, Any]] = field(default_factory=list)
    check_codes: dict[Any, int] = field(default_factory=dict)
    namer: Namer = field(default_factory=Namer)  # the names in printed graphs, buffers and kernels agree
    buffers: dict[Buf, Buffer] = field(default_factory=dict)
    bufs: dict[Buffer, Buf] = field(default_factory=dict)
    kernel_names: dict[str, int] = field(default_factory=dict)
    target: str = "cpu"  # or "cuda", whose threads want other loops than a processor's caches

    def name(self) -> str:
        """A name that no variable has."""
        return self.namer(Var(_NO_TYPE))

    def kernel_name(self, base: str) -> str:
        n = self.kernel_names.get(base, 0)
        self.kernel_names[base] = n + 1
        return f"{base}_{n}"

    def buffer(self, buf: Buf) -> Buffer:
        """The stand-in for `buf` in expressions; kernels get their own buffers when they are finished."""
        buf = plain(buf)
        found = self.buffers.get(buf)
        if found is None:
            found = self.buffers[buf] = Buffer(buf.name, buf.dtype, buf.size)
            self.bufs[found] = buf
        return found


def plain(buf: Buf) -> Buf:
    """`buf`, or what it is another shape of: both have the same elements at the same flat indices."""
    while buf.base is not None and not buf.byte_offset and not buf.byte_stride and buf.base.size == buf.size:
        if buf.base.dtype != buf.dtype:
            break
        buf = buf.base
    return buf


class Lowering:
    """Lowers one graph into `items` (stages and steps in program order)."""

    def __init__(self, graph: Graph, shared: Shared, inputs: Sequence[Lazy], outputs: Sequence[Buf]):
        self.graph, self.shared, self.b = graph, shared, shared.builder
        self.env: dict[Var, Lazy] = dict(zip(graph.inputs, inputs, strict=True))
        self.items: list[Stage | Step] = []
        self.storage: dict[Var, Buf] = {}
        self.uses: dict[Var, int] = {}
        self.producer: dict[Var, Eqn] = {v: e for e in graph.eqns for v in e.outputs}
        for eqn in graph.eqns:
            for a in set(eqn.inputs):
                if isinstance(a, Var):
                    self.uses[a] = self.uses.get(a, 0) + 1
        # Contractions read memory: what one reads is computed there at once, so that others read it too, not its inputs.
        self.for_contractions = {a for e in graph.eqns if e.prim.name in CONTRACTIONS for a in e.inputs}
        self.checked: set[tuple[Atom, int]] = set()  # indices checked against an axis of that size
        self.out_bufs = list(outputs)
        self._place_outputs()

    def _place_outputs(self) -> None:
        """Let what an output is a reshape of be computed in the output's own buffer."""
        for atom, buf in zip(self.graph.outputs, self.out_bufs, strict=True):
            while isinstance(atom, Var) and atom not in self.storage and atom in self.producer:
                self.storage[atom] = buf
                eqn = self.producer[atom]
                if eqn.prim.name != "reshape":
                    break
                atom = eqn.inputs[0]
                if isinstance(atom, Var):
                    buf = self.view(buf, atom.type.shape)

    # ------------------------------------------------------------------------------------ buffers and values

    def new_buf(self, shape: Sequence[int], dtype: np.dtype, name: str = "") -> Buf:
        return Buf(name or self.shared.name(), tuple(shape), dtype)

    def buf_for(self, var: Var) -> Buf:
        """Where `var` is to be stored: its output buffer or a new temporary."""
        buf = self.storage.get(var)
        return (
            buf if buf is not None else self.new_buf(var.type.shape, var.type.dtype, self.shared.namer(var))
        )

    def view(self, buf: Buf, shape: Sequence[int]) -> Buf:
        if tuple(shape) == buf.shape:
            return buf
        return Buf(self.shared.name(), tuple(shape), buf.dtype, "view", base=buf)

    def of_buf(self, buf: Buf) -> Lazy:
        buffer, shape, b = self.shared.buffer(buf), buf.shape, self.b

        def at(idx: tuple[Expr, ...], mask: Expr | None) -> Expr:
            return b.load(buffer, b.ravel(idx, shape), mask)

        return Lazy(shape, buf.dtype, at, buf=buf, view=(buf, 0, row_major(shape)))

    def of_literal(self, literal: Literal) -> Lazy:
        const = self.b.const(literal.value, literal.type.dtype)
        return Lazy((), literal.type.dtype, lambda idx, mask: const, literal=literal.value)

    def value(self, atom: Atom) -> Lazy:
        return self.of_literal(atom) if isinstance(atom, Literal) else self.env[atom]

    def values(self, atoms: Sequence[Atom]) -> list[Lazy]:
        return [self.value(a) for a in atoms]

    def cost(self, value: Lazy) -> int:
        costs = ((e, _COST.get(e.prim.name, 1)) for e in value.eqns)
        return sum(min(cost, 1) if cost and self.steady(e) else cost for e, cost in costs)

    def steady(self, eqn: Eqn) -> bool:
        """Whether the inputs are the same along the last axis: what follows from them is computed outside the innermost loop."""
        for a in eqn.inputs:
            made = self.producer.get(a) if isinstance(a, Var) else None
            if isinstance(a, Var) and (made is None or made.prim.name != "broadcast"):
                return False
            if made is not None and len(a.type.shape) - 1 in made.params["axes"]:
                return False
        return bool(eqn.inputs)

    def loop_vars(self, value: Lazy) -> tuple[list[list[LoopVar]], tuple[Expr, ...]]:
        """Fresh loop variables over the elements of `value`, grouped by dimension, and the index of each dimension."""
        return self._box(
            [(whole(n, factors), 0) for n, factors in zip(value.shape, value.splits, strict=True)]
        )

    def _box(
        self, sides: Sequence[tuple[tuple[int, ...], int]]
    ) -> tuple[list[list[LoopVar]], tuple[Expr, ...]]:
        """Loop variables for (factors, where it begins) of each dimension."""
        groups: list[list[LoopVar]] = []
        idx: list[Expr] = []
        for axis, (factors, begin) in enumerate(sides):
            shape = [f for f in factors if f != 1]
            loop_vars = [LoopVar(f"i{axis}" + (f"_{n}" if n else ""), f) for n, f in enumerate(shape)]
            groups.append(loop_vars)
            idx.append(self.b.add(self.b.ravel(loop_vars, shape), begin))
        return groups, tuple(idx)

    def store(self, value: Lazy, buf: Buf, eqns: tuple[Eqn, ...] | None = None) -> None:
        """Compute all of `value` into `buf`."""
        if buf.size == 0:
            return
        if dtypes.is_complex(
            value.dtype
        ):  # every other complex value is in a buffer already, see `lower_block`
            filled = np.full(value.shape, value.literal, value.dtype)
            const = Buf(self.shared.name(), value.shape, value.dtype, "const", value=filled)
            self.items.append(CopyStep(buf, const, value.eqns))
            return
        sides: list[list[tuple[tuple[int, ...], int]]] = []
        for n, factors in zip(value.shape, value.splits, strict=True):
            head = math.prod(factors)
            sides.append([(factors, 0)] if head == n else [(factors, 0), ((n - head,), head)])
        for box in itertools.product(*sides):
            groups, idx = self._box(box)
            dims = tuple(v for g in groups for v in g)
            stage = Stage(dims, len(dims), [(plain(buf), self.b.ravel(idx, value.shape), value.at(idx))])
            stage.eqns = value.eqns if eqns is None else eqns
            self.items.append(stage)

    def store_at(self, value: Lazy, buf: Buf, axis: int, begin: int, eqns: tuple[Eqn, ...]) -> None:
        """Compute `value` into the part of `buf` that starts at `begin` along `axis`."""
        if value.size == 0:
            return
        groups, idx = self.loop_vars(value)
        dims = tuple(v for g in groups for v in g)
        moved = [self.b.add(i, begin) if d == axis else i for d, i in enumerate(idx)]
        stage = Stage(dims, len(dims), [(plain(buf), self.b.ravel(moved, buf.shape), value.at(idx))])
        stage.eqns = value.eqns + eqns
        self.items.append(stage)

    def realize(self, value: Lazy, buf: Buf | None = None) -> Lazy:
        """`value` in a buffer (in `buf` if given)."""
        if value.buf is not None and buf is None:
            return value
        buf = buf if buf is not None else self.new_buf(value.shape, value.dtype)
        self.store(value, buf)
        return self.of_buf(buf)

    def atom_buf(self, atom: Atom) -> Buf:
        """A buffer that holds `atom`, for steps that are not loop nests."""
        if isinstance(atom, Literal):
            value = np.asarray(atom.value, dtype=atom.type.dtype)
            return Buf(self.shared.name(), (), atom.type.dtype, "const", value=value)
        value_ = self.env[atom]
        if value_.buf is None:
            value_ = self.env[atom] = self.realize(value_)
        assert value_.buf is not None
        return value_.buf

    def set(self, var: Var, value: Lazy) -> None:
        """Define `var`; give it a buffer now if it is an output or too dear to compute again for each reader."""
        storage = self.storage.get(var)
        if storage is not None and (value.buf is None or plain(value.buf) is not plain(storage)):
            value = self.realize(value, storage) if value.buf is None else self.copied(value, storage)
        elif value.buf is None and value.literal is None and self.worth_storing(var, value):
            value = self.realize(value, self.buf_for(var))
        self.env[var] = value

    def copied(self, value: Lazy, buf: Buf) -> Lazy:
        assert value.buf is not None
        if buf.size:
            self.items.append(CopyStep(buf, value.buf, value.eqns))
        return self.of_buf(buf)

    def worth_storing(self, var: Var, value: Lazy) -> bool:
        if len(value.eqns) > MOST_EQUATIONS or (var in self.for_contractions and value.view is None):
            return True
        return self.uses.get(var, 0) > 1 and self.cost(value) > CHEAP

    def lazy(
        self,
        eqn: Eqn,
        n: int,
        inputs: Sequence[Lazy],
        at: Callable[..., Expr],
        splits: Any = None,
        view: Any = None,
        literal: Any = None,
    ) -> None:
        """Define output `n` of `eqn` as a function of the index that reads `inputs`."""
        var = eqn.outputs[n]
        eqns = tuple(dict.fromkeys(e for x in inputs for e in x.eqns)) + (eqn,)
        self.set(var, Lazy(var.type.shape, var.type.dtype, at, splits, eqns, view=view, literal=literal))

    # ------------------------------------------------------------------------------------ steps

    def emit(self, step: Step) -> None:
        self.items.append(step)

    def host(self, eqn: Eqn) -> None:
        """Call the primitive's NumPy definition."""
        inputs = tuple(self.atom_buf(a) for a in eqn.inputs)
        outputs = tuple(self.buf_for(v) for v in eqn.outputs)
        self.emit(HostStep(eqn.prim, eqn.params, inputs, outputs, (eqn,)))
        for var, buf in zip(eqn.outputs, outputs, strict=True):
            self.env[var] = self.of_buf(buf)

    def check_code(self, text: str, eqn: Eqn) -> tuple[Buf, int]:
        """The status word and the code for a failure described by `text`."""
        shared = self.shared
        if shared.status is None:
            shared.status = Buf("status", (1,), dtypes.int64, "status")
        key = (text, eqn.source)
        if key not in shared.check_codes:
            shared.checks.append((text, eqn.source))
            shared.check_codes[key] = len(shared.checks)
        return shared.status, shared.check_codes[key]

    def nest(self, kernel: Kernel, args: Sequence[Buf], eqns: tuple[Eqn, ...]) -> None:
        self.emit(KernelStep(kernel, tuple(args), eqns))

    def block(self, graph: Graph, inputs: Sequence[Lazy], outputs: Sequence[Buf]) -> Block:
        """Lower a graph inside this one (a branch, a loop body); its results go to `outputs`."""
        return lower_block(graph, self.shared, inputs, outputs)


def _has_complex(eqn: Eqn) -> bool:
    return any(dtypes.is_complex(a.type.dtype) for a in (*eqn.inputs, *eqn.outputs))


def lower_block(graph: Graph, shared: Shared, inputs: Sequence[Lazy], outputs: Sequence[Buf]) -> Block:
    for eqn in graph.eqns:
        for var in eqn.outputs:
            shared.namer(var)
    low = Lowering(graph, shared, inputs, outputs)
    for eqn in graph.eqns:
        rule = (
            shared.rules.get(eqn.prim.name) or shared.rules.get(f"family {eqn.prim.family}") or Lowering.host
        )
        if eqn.prim.family != "control" and eqn.prim.name != "reshape" and _has_complex(eqn):
            rule = Lowering.host  # generated code has no complex type, not even to move one
        rule(low, eqn)
    written: set[Buf] = set()
    for atom, buf in zip(graph.outputs, outputs, strict=True):
        value = low.value(atom)
        if value.buf is None and dtypes.is_complex(value.dtype):
            value = low.of_buf(low.atom_buf(atom))
        if value.buf is None:
            low.store(value, buf)
        elif plain(value.buf) is not plain(buf):
            low.copied(value, buf)
        written.add(plain(buf).root)
    return Block(shared.schedule(low.items, shared, written))
