"""Vector loops, written as vectors: the part of the kernel printer that works on all lanes of an iteration at once.

    for j in vector 77:  s = add(s, exp(x[100*i + j]))

becomes, for vectors of 16 floats (shortened; `codegen.lanes` chooses the pieces)

    j.body:                                                        ; four times, 16 lanes
      %j = phi i64 [ 0, %i.body ], [ %j.next, %j.body ]
      %x.v = load <16 x float>, ptr %x.at, align 4
      ...                                                          ; exp: straight-line arithmetic on <16 x float>
      %s.1 = fadd reassoc nsz contract <16 x float> %s.0, %exp
    j.done:                                                        ; and 13 lanes, under a mask
      %x.w = call <16 x float> @llvm.masked.load.v16f32.p0(ptr %x.end, ...)
      %s.2 = select <16 x i1> <i1 1, ..., i1 0>, <16 x float> %sum, <16 x float> %s.1
      ...                                                          ; halves are added until one number is left

LLVM's own vectoriser is not asked: what it makes of a loop, and whether, depends on much that a printer cannot see, and asked in
vain it writes to the standard error stream.

An expression that does not change with the loop variable stays a scalar until a vector needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from fgrad import dtypes
from fgrad.codegen import scalar
from fgrad.codegen.lanes import Plan, fits_32_bits, identity, pieces, stride_of
from fgrad.codegen.loops import (
    Acc,
    Affine,
    Check,
    Expr,
    Load,
    Loop,
    LoopVar,
    Op,
    Store,
    Update,
    affine_terms,
    children,
    index_range,
)
from fgrad.codegen.vector_memory import VectorMemory, first_lanes

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_COMPARE = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})


@dataclass(eq=False)
class Lanes:
    """Where the printer is in a vector loop: lane k computes iteration `base + k`, of which the first `live` count.

    `mask` says the same as <count x i1>; None: all lanes count. `live` is None where it is known at run time only.
    """

    var: LoopVar
    count: int
    base: ir.Value
    live: int | None
    mask: ir.Value | None = None

    @property
    def whole(self) -> bool:
        return self.mask is None


def _numbers(count: int, element: ir.IntType, step: int = 1) -> ir.Constant:
    return ir.Constant(ir.VectorType(element, count), [step * k for k in range(count)])


class VectorLoops(VectorMemory):
    """Mixed into the kernel printer, whose scopes, addresses and scalar expressions it uses."""

    builder: ir.IRBuilder
    lanes: Lanes | None = None
    plan: Plan | None = None
    totals: dict[Acc, ir.Value]

    # -------------------------------------------------------------------------------------------- the loop

    def vector_loop(self: Any, stmt: Loop, plan: Plan, bounds: tuple[ir.Value, ir.Value] | None) -> None:
        """Write the loop in pieces; `bounds` are those of a part of it, known at run time (such a loop has no sums)."""
        self.plan = plan
        if bounds is not None:
            self._ranged(stmt, plan, *bounds)
        else:
            self.totals = {}
            begin = 0
            for lanes, times, live in pieces(stmt.var.extent, plan.width, plan.together, self.masks):
                self._narrow_totals(lanes)
                if lanes == 1:
                    self.scalar_iterations(stmt, I64(begin), I64(begin + 1), 1)
                elif times == 1:
                    mask = None if live == lanes else first_lanes(lanes, live)
                    self._vector_body(stmt, Lanes(stmt.var, lanes, I64(begin), live, mask))
                else:
                    self._main_loop(stmt, lanes, begin, times)
                begin += live * times
            self._narrow_totals(1)
        self.plan = None

    def _main_loop(self: Any, stmt: Loop, lanes: int, begin: int, times: int) -> None:
        slots: dict[Acc, ir.Value] = {}
        for s in stmt.body:
            if isinstance(s, Update) and s.acc not in slots:
                kind = ir.VectorType(scalar.llvm_type(s.acc.dtype), lanes)
                slots[s.acc] = self.allocas.alloca(kind, name=f"{s.acc.name}.lanes")
                self.builder.store(self.splat(self._identity(s), lanes), slots[s.acc])

        def body(index: ir.Value) -> None:
            self.totals = {a: self.builder.load(p, typ=p.allocated_type) for a, p in slots.items()}
            self._vector_body(stmt, Lanes(stmt.var, lanes, index, lanes))
            for acc, slot in slots.items():
                self.builder.store(self.totals[acc], slot)

        self._counted(stmt, I64(begin), I64(begin + lanes * times), lanes, body)
        self.totals = {a: self.builder.load(p, typ=p.allocated_type) for a, p in slots.items()}

    def _ranged(self: Any, stmt: Loop, plan: Plan, start: ir.Value, stop: ir.Value) -> None:
        b = self.builder
        lanes = plan.width * plan.together
        self.totals = {}
        if stmt.var.extent >= lanes:
            whole = b.and_(b.sub(stop, start), I64(-lanes))
            last = b.add(start, whole)
            with b.if_then(b.icmp_unsigned("!=", whole, I64(0)), likely=True):
                self._counted(
                    stmt,
                    start,
                    last,
                    lanes,
                    lambda i: self._vector_body(stmt, Lanes(stmt.var, lanes, i, lanes)),
                )
            start = last
        width = plan.width

        def rest(index: ir.Value) -> None:
            left = b.trunc(b.sub(stop, index), I32)
            mask = b.icmp_unsigned("<", _numbers(width, I32), self.splat(left, width))
            self._vector_body(stmt, Lanes(stmt.var, width, index, None, mask))

        with b.if_then(b.icmp_unsigned("<", start, stop)):
            if self.masks and not plan.strided:
                self._counted(stmt, start, stop, width, rest)
            else:
                self.scalar_iterations(stmt, start, stop, 0)

    def _counted(
        self: Any, stmt: Loop, start: ir.Value, stop: ir.Value, step: int, body: Callable[[ir.Value], None]
    ) -> None:
        """`for i = start; i < stop; i += step`, at least once."""
        b, name = self.builder, stmt.var.name
        before, head = b.block, b.append_basic_block(f"{name}.body")
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64, name=name)
        index.add_incoming(start, before)
        body(index)
        following = b.add(index, I64(step), name=f"{name}.next", flags=("nuw", "nsw"))
        index.add_incoming(following, b.block)
        done = b.append_basic_block(f"{name}.done")
        branch = b.cbranch(b.icmp_unsigned("<", following, stop), head, done)
        self.loop_hints(branch, [["llvm.loop.unroll.disable"], ["llvm.loop.vectorize.enable", I1(0)]])
        b.position_at_end(done)

    def _vector_body(self: Any, stmt: Loop, lanes: Lanes) -> None:
        self.lanes = lanes
        self.scopes.append({})
        self.pending_stores: dict[int, dict[int, ir.Value]] = {}
        for n, s in enumerate(stmt.body):
            if isinstance(s, Store):
                self.store_lanes(s, stmt.body[n + 1 :])
            elif isinstance(s, Update):
                self._update_lanes(s)
            else:
                self._check_lanes(s)
        self.scopes.pop()
        self.lanes = None

    # -------------------------------------------------------------------------------------------- reductions

    def _identity(self: Any, s: Update) -> ir.Value:
        return scalar.constant(identity(s.op, s.acc.dtype), s.acc.dtype)

    def _update_lanes(self: Any, s: Update) -> None:
        lanes = self.lanes
        value = self.wide(self.value(s.value))
        old = self.totals.get(s.acc)
        if old is None:
            self.totals[s.acc] = (
                value
                if lanes.whole
                else self.builder.select(lanes.mask, value, self.splat(self._identity(s), lanes.count))
            )
        else:
            new = self.combine(s.op, old, value, s.acc.dtype)
            self.totals[s.acc] = new if lanes.whole else self.builder.select(lanes.mask, new, old)
        self.folds[s.acc] = s.op

    def _narrow_totals(self: Any, lanes: int) -> None:
        """Fold each total to `lanes` lanes, halves onto halves; to one: into its accumulator."""
        for acc, total in list(self.totals.items()):
            op = self.folds[acc]
            while total.type.count > lanes:
                half = total.type.count // 2
                low, high = (self.take(total, total, range(k, k + half)) for k in (0, half))
                if half == 1:
                    low, high = (self.builder.extract_element(total, I32(k)) for k in (0, 1))
                total = self.combine(op, low, high, acc.dtype)
                if half == 1:
                    break
            if lanes == 1:
                old = self.builder.load(self.accumulators[acc], typ=total.type)
                self.assign(acc, self.combine(op, old, total, acc.dtype))
                del self.totals[acc]
            else:
                self.totals[acc] = total

    def _check_lanes(self: Any, s: Check) -> None:
        ok = self.wide(self.value(s.ok))
        if not self.lanes.whole:
            ok = self.builder.or_(ok, self.builder.not_(self.lanes.mask))
        bits = self.builder.bitcast(ok, ir.IntType(self.lanes.count))
        self.note_check(s, self.builder.icmp_unsigned("==", bits, ir.Constant(bits.type, -1)))

    # -------------------------------------------------------------------------------------------- values

    def splat(self: Any, value: ir.Value, lanes: int) -> ir.Value:
        kind = ir.VectorType(value.type, lanes)
        if isinstance(value, ir.Constant) and value.constant is not ir.Undefined:
            return ir.Constant(kind, [value.constant] * lanes)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, value, I32(0))
        return self.builder.shuffle_vector(first, undefined, _numbers(lanes, I32, 0))

    def wide(self: Any, value: ir.Value) -> ir.Value:
        return value if isinstance(value.type, ir.VectorType) else self.splat(value, self.lanes.count)

    def take(self: Any, a: ir.Value, c: ir.Value, which: Sequence[int]) -> ir.Value:
        order = ir.Constant(ir.VectorType(I32, len(which)), list(which))
        return self.builder.shuffle_vector(a, c, order)

    def by_lane(self: Any, e: Expr) -> bool:
        """Whether `e` differs between the lanes of the vector loop that is being written."""
        return self.lanes is not None and self.lanes.var in self.needs(e)

    def lane_stride(self: Any, index: Expr) -> int | None:
        return stride_of(index, self.lanes.var, self.by_lane)

    def operands(self: Any, e: Expr) -> tuple[Expr, ...]:
        """What must have a value before `compute(e)`. In a vector loop an index that grows steadily is a scalar."""
        if not self.by_lane(e):
            return children(e)
        if isinstance(e, Load):
            index = self.steady_terms(e.index) if self.lane_stride(e.index) is not None else (e.index,)
            return (*index, *(x for x in (e.mask, e.other) if x is not None))
        if isinstance(e, Affine):
            return tuple(t for t, _ in e.terms if t is not self.lanes.var)
        if isinstance(e, Op) and self._narrows(e):
            return tuple(t for a in e.args for t in (self.steady_terms(a) if self.by_lane(a) else (a,)))
        return children(e)

    def steady_terms(self: Any, index: Expr) -> tuple[Expr, ...]:
        return tuple(t for t, _ in affine_terms(index)[1] if t is not self.lanes.var)

    def _narrows(self: Any, e: Op) -> bool:
        """Whether an operation on int64 loop indices can be done on half as many bits."""
        if e.name == "cast":
            small = e.dtype in (dtypes.int32, dtypes.float32, dtypes.float64)
            return small and self._steady(e.args[0])
        if e.name not in _COMPARE or e.args[0].dtype != dtypes.int64:
            return False
        return any(map(self._steady, e.args)) and all(self._steady(a) or not self.by_lane(a) for a in e.args)

    def _steady(self: Any, e: Expr) -> bool:
        if not isinstance(e, (LoopVar, Affine)) or not self.by_lane(e) or not self.lane_stride(e):
            return False
        return fits_32_bits(index_range(e))

    def compute_lanes(self: Any, e: Expr) -> ir.Value:
        """The vector of an expression that differs between lanes."""
        lanes: Lanes = self.lanes
        if isinstance(e, LoopVar):
            return self.builder.add(self.splat(lanes.base, lanes.count), _numbers(lanes.count, I64))
        if isinstance(e, Affine):
            return self._affine_lanes(e)
        if isinstance(e, Load):
            return self.load_lanes(e)
        assert isinstance(e, Op)
        kinds = [a.dtype for a in e.args]
        if self._narrows(e):
            args = self._narrowed(e)
            kinds = [dtypes.int32] * len(args)
            if e.name == "cast" and e.dtype == dtypes.int32:
                return args[0]
        else:
            args = [self.wide(self.find(a)) for a in e.args]
        return scalar.emit(self.builder, e.name, args, kinds, e.dtype)

    def _affine_lanes(self: Any, e: Affine) -> ir.Value:
        b, lanes = self.builder, self.lanes
        step = sum(c for t, c in e.terms if t is lanes.var)
        total = self.wide(self.base_index(e))
        if step:
            total = b.add(total, _numbers(lanes.count, I64, step))
        for term, coef in e.terms:
            if term is not lanes.var and self.by_lane(term):
                total = b.add(total, b.mul(self.find(term), self.splat(I64(coef), lanes.count)))
        return total

    def base_index(self: Any, index: Expr) -> ir.Value:
        """The index in lane 0, without the terms that are vectors."""
        base = None
        const, terms = affine_terms(index)
        steady = [(t, c) for t, c in terms if t is not self.lanes.var and not self.by_lane(t)]
        step = sum(c for t, c in terms if t is self.lanes.var)
        if const or steady:
            base = self.affine(Affine(const, steady))
        if step:
            b = self.builder
            part = self.lanes.base if step == 1 else b.mul(self.lanes.base, I64(step), flags=("nsw",))
            base = part if base is None else b.add(base, part, flags=("nsw",))
        return I64(0) if base is None else base

    def _narrowed(self: Any, e: Op) -> list[ir.Value]:
        """The arguments as <i32>. What is the same in all lanes is brought near the range of the other side, which leaves
        every comparison as it is."""
        b, count = self.builder, self.lanes.count
        steady = next(a for a in e.args if self._steady(a))
        low, high = index_range(steady)  # type: ignore[misc]
        out = []
        for a in e.args:
            if self._steady(a):
                step = self.lane_stride(a)
                first = self.splat(b.trunc(self.base_index(a), I32), count)
                out.append(b.add(first, _numbers(count, I32, step)))
                continue
            value = self.find(a)
            if not fits_32_bits(index_range(a)):
                value = b.select(b.icmp_signed(">", value, I64(low - 1)), value, I64(low - 1))
                value = b.select(b.icmp_signed("<", value, I64(high + 1)), value, I64(high + 1))
            out.append(self.splat(b.trunc(value, I32), count))
        return out
