"""Loop nests as LLVM functions.

    kernel row_sum(y: float32[8] out, x: float32[8*100] in):
        for i in parallel 8:
            s = 0
            for j in vector 100:  s = add(s, x[100*i + j])
            y[i] = s

becomes (shortened)

    define internal void @row_sum(ptr noalias nonnull align 64 %y, ptr noalias nonnull align 4 %x) noinline nounwind {
    i.body:                                          ; extents are known and positive: loops need no guard
      %i = phi i64 [ 0, %start ], [ %i.next, %j.done ]
      br label %j.body
    j.body:
      %j = phi i64 [ 0, %i.body ], [ %j.next, %j.body ]
      %s.1 = fadd reassoc nsz contract float %s.0, %x.v       ; reassociation is what lets a sum become a vector
      br i1 %more, label %j.body, label %j.done, !llvm.loop !1    ; !1 asks for vectorisation

Each expression is computed once per innermost scope that needs it, and outside every loop that cannot change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from fgrad import dtypes
from fgrad.codegen import lanes, scalar
from fgrad.codegen.dependence import Dependence
from fgrad.codegen.irtools import opaque
from fgrad.codegen.jam import jam_rows
from fgrad.codegen.loops import (
    Acc,
    Affine,
    Buffer,
    Check,
    Const,
    Expr,
    Init,
    Kernel,
    Load,
    Loop,
    LoopVar,
    Op,
    Stmt,
    Store,
    Update,
    expressions,
)
from fgrad.codegen.mathbase import intrinsic
from fgrad.codegen.nestinfo import changed_by, nodes, weight
from fgrad.codegen.rowlocal import keep_rows
from fgrad.codegen.target import TargetInfo, host
from fgrad.codegen.vectors import VectorLoops

I1, I8, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(64)
POINTER = ir.PointerType()
REDUCE_FLAGS = ("reassoc", "nsz", "contract")
_UNROLL_LIMIT = 256  # instructions, roughly; a longer body is left to LLVM's own judgement


@dataclass(frozen=True)
class Binding:
    """How a call site passes a kernel's buffers. Buffers that share their bytes share one parameter, so that LLVM sees it.

    slots    parameter of each buffer; parameters are numbered in order of first use.
    noalias  for each parameter: no other parameter that is written overlaps it.
    align    for each parameter: known alignment in bytes.
    part     for each parameter: only the bytes that are really touched exist.
    private  the buffers, by number, that nothing but this kernel uses.
    """

    slots: tuple[int, ...]
    noalias: tuple[bool, ...]
    align: tuple[int, ...]
    part: tuple[bool, ...] = ()
    private: tuple[int, ...] = ()

    @staticmethod
    def distinct(buffers: Sequence[Buffer]) -> Binding:
        n = len(buffers)
        return Binding(tuple(range(n)), (True,) * n, tuple(b.dtype.itemsize for b in buffers))


def new_module(name: str) -> ir.Module:
    """An empty module with a context of its own (llvmlite's global one keeps every struct name for ever)."""
    return ir.Module(name, context=ir.Context())


def emit_kernel(
    module: ir.Module,
    kernel: Kernel,
    name: str,
    binding: Binding | None = None,
    target: TargetInfo | None = None,
    ranged: bool = False,
) -> ir.Function:
    """Add `void name(pointers...)`, one pointer for each parameter of `binding` (default: one for each buffer).

    A `ranged` kernel, whose body is one loop, takes two integers more: the iterations `start <= i < stop` (at least one) to run.
    """
    return _KernelEmitter(
        module, kernel, name, binding or Binding.distinct(kernel.buffers), target or host(), ranged
    ).run()


def _even_pieces(kernel: Kernel) -> bool:
    """Whether no piece of the kernel begins or ends between two rows of a pair."""
    pieces = kernel.meta.get("pieces")
    return pieces is not None and pieces.chunk % 2 == 0


class _KernelEmitter(Dependence, VectorLoops):
    def __init__(
        self,
        module: ir.Module,
        kernel: Kernel,
        name: str,
        binding: Binding,
        target: TargetInfo,
        ranged: bool = False,
    ):
        self.module, self.kernel, self.binding, self.target = module, kernel, binding, target
        module.fgrad_target = target  # mathematical functions ask for it
        parameters = [POINTER] * (max(binding.slots, default=-1) + 1) + [I64, I64] * ranged
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), parameters), name)
        # Pieces of a range may have an odd row left over; what is inside of its loop is as it always was.
        body = keep_rows(kernel.body, [kernel.buffers[n] for n in binding.private])
        whole = body[0] if ranged else None
        assert whole is None or isinstance(whole, Loop)
        self.body = jam_rows(body, None if _even_pieces(kernel) else whole)
        self.range: tuple[Stmt, ir.Value, ir.Value] | None = None
        if whole is not None:
            first, bounds = self.body[0], self.function.args[-2:]
            assert isinstance(first, Loop)
            self.halved = first.var.extent < whole.var.extent
            self.range = (first, *bounds)
        self.pointers = {b: self.function.args[s] for b, s in zip(kernel.buffers, binding.slots, strict=True)}
        written = {s for b, s in zip(kernel.buffers, binding.slots) if b.role != "in"}
        self.shared_reads = {
            b for b, s in zip(kernel.buffers, binding.slots) if b.role == "in" and s in written
        }  # in place: loads have to come before the store that overwrites them
        self.scopes: list[dict[int, ir.Value]] = [{}]
        self.known_needs: dict[int, frozenset[Any]] = {}
        self.accumulators: dict[Acc, ir.Value] = {}
        self.failures: list[tuple[Check, ir.Value]] = []
        self.flags: dict[Check, ir.Value] = {}
        self.masks = (
            self.target.vector_bytes == 64 and self.target.masked_stores
        )  # of any element, at full speed
        self.totals: dict[Acc, ir.Value] = {}  # of a vector loop: partial results
        self.folds: dict[Acc, str] = {}
        self.keep: list[Expr] = []  # ids are keys, so nothing may be freed meanwhile

    # -------------------------------------------------------------------------------------------- the function

    def run(self) -> ir.Function:
        fn, binding = self.function, self.binding
        fn.linkage = "internal"
        fn.attributes.add("nounwind")
        fn.attributes.add("noinline")  # keeps what `noalias` says, and the entry function small
        if self.target.vector_bytes == 64:
            # Some CPUs with AVX-512 are compiled for at half its width otherwise. llvmlite's `add` knows no such names.
            set.add(fn.attributes, '"prefer-vector-width"="512"')
        names: dict[int, str] = {}
        sizes: dict[int, int] = {}
        for buffer, slot in zip(self.kernel.buffers, binding.slots):
            names.setdefault(slot, buffer.name)
            sizes[slot] = max(sizes.get(slot, 0), buffer.size * buffer.dtype.itemsize)
        for slot, arg in enumerate(fn.args[: len(sizes)]):
            arg.name = names[slot]
            arg.add_attribute("nonnull")
            if binding.noalias[slot]:
                arg.add_attribute("noalias")
            arg.attributes.align = binding.align[slot]
            if sizes[slot] and not any(binding.part[slot : slot + 1]):
                arg.attributes.dereferenceable = sizes[slot]
        entry = fn.append_basic_block("entry")
        start = fn.append_basic_block("start")
        self.builder = ir.IRBuilder(start)
        self.allocas = ir.IRBuilder(entry)
        if self.range is not None and self.halved:
            loop, first, stop = self.range
            self.range = (loop, self.builder.lshr(first, I64(1)), self.builder.lshr(stop, I64(1)))
        self.block(self.body)
        self.report_failures()
        self.builder.ret_void()
        self.allocas.branch(start)
        return fn

    def report_failures(self) -> None:
        for check, flag in self.failures:
            b = self.builder
            failed = b.icmp_unsigned("!=", b.load(flag, typ=I8), I8(0))
            with b.if_then(failed, likely=False):
                self.report(self.pointers[check.status], check.code)

    def report(self, status: ir.Value, code: int) -> None:
        """Note a failure if none with a smaller code is known: the same one whichever thread comes first."""
        b = self.builder
        look, change = b.append_basic_block("failed.look"), b.append_basic_block("failed.change")
        done = b.append_basic_block("failed.done")
        b.branch(look)
        b.position_at_end(look)
        known = b.load_atomic(status, "monotonic", 8, typ=I64)
        # Less one, "none" is the largest.
        b.cbranch(b.icmp_unsigned(">", b.sub(known, I64(1)), I64(code - 1)), change, done)
        b.position_at_end(change)
        pair = b.cmpxchg(status, known, I64(code), "monotonic", "monotonic")
        b.cbranch(b.extract_value(pair, 1), done, look)
        b.position_at_end(done)

    # -------------------------------------------------------------------------------------------- statements

    def block(self, body: Sequence[Stmt]) -> None:
        for n, stmt in enumerate(body):
            if isinstance(stmt, Loop):
                self.loop(stmt)
            elif isinstance(stmt, Store):
                self.store(stmt, body[n + 1 :])
            elif isinstance(stmt, Init):
                self.assign(stmt.acc, self.value(stmt.value))
            elif isinstance(stmt, Update):
                self.update(stmt)
            elif isinstance(stmt, Check):
                self.check(stmt)
            else:
                raise NotImplementedError(
                    f"kernel {self.kernel.name}: no LLVM printer for {type(stmt).__name__}"
                )

    def loop(self, stmt: Loop) -> None:
        extent = stmt.var.extent
        if extent <= 0:
            return
        if extent == 1 or (stmt.kind == "unroll" and extent * weight(stmt.body) <= _UNROLL_LIMIT):
            for i in range(extent):
                self.scopes.append({id(stmt.var): I64(i)})
                self.block(stmt.body)
                self.scopes.pop()
            return
        assigned = changed_by(stmt)
        self.hoist(stmt, assigned)
        self.forget(assigned)
        ranged = self.range is not None and self.range[0] is stmt
        bounds = (self.range[1], self.range[2]) if self.range and ranged else None
        plan = lanes.plan(stmt, self.target)
        if plan is not None and not (ranged and any(isinstance(s, Update) for s in stmt.body)):
            self.vector_loop(stmt, plan, bounds)
        else:
            self.scalar_iterations(stmt, *(bounds or (I64(0), I64(extent))), extent)

    def scalar_iterations(self, stmt: Loop, start: ir.Value, stop: ir.Value, times: int) -> None:
        """The iterations `start <= i < stop`, one after another, at least one. `times`: how many, 0 if not known here."""
        if times == 1:
            self.scopes.append({id(stmt.var): start})
            self.block(stmt.body)
            self.scopes.pop()
            return
        b, name = self.builder, stmt.var.name
        before, head = b.block, b.append_basic_block(f"{name}.body")
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64, name=name)
        index.add_incoming(start, before)
        here = index
        if not isinstance(stop, ir.Constant) and any(isinstance(s, Loop) for s in stmt.body):
            # No change, but LLVM learns the range. Without, it cannot tell some stores apart and gives up vectors.
            last = I64(stmt.var.extent - 1)
            here = b.select(b.icmp_unsigned("<", index, last), index, last)
        self.scopes.append({id(stmt.var): here})
        self.block(stmt.body)
        self.scopes.pop()
        following = b.add(index, I64(1), name=f"{name}.next", flags=("nuw", "nsw"))
        index.add_incoming(following, b.block)
        done = b.append_basic_block(f"{name}.done")
        branch = b.cbranch(b.icmp_unsigned("==", following, stop), done, head)
        if stmt.kind == "unroll":
            self.loop_hints(branch, [["llvm.loop.mustprogress"], ["llvm.loop.unroll.enable"]])
        b.position_at_end(done)

    def loop_hints(self, branch: Any, hints: list[list[Any]]) -> None:
        operands = [self.module.add_metadata(h) for h in hints]
        # A loop's name is a node that holds itself: made anew each time, or two loops would be one.
        node = ir.values.MDValue(self.module, operands, name=str(len(self.module.metadata)))
        node.operands = (node, *operands)
        branch.set_metadata("llvm.loop", node)

    def store(self, stmt: Store, rest: Sequence[Stmt]) -> None:
        index, value = self.value(stmt.index), self.value(stmt.value)
        mask = None if stmt.mask is None else self.value(stmt.mask)
        if self.shared_reads:
            self.load_before(stmt, rest)
        b, dtype = self.builder, stmt.buffer.dtype

        def write() -> None:
            address = self.address(stmt.buffer, index)
            new = value
            if stmt.op is not None:
                new = self.combine(stmt.op, self.read(address, dtype), value, dtype)
            b.store(scalar.to_memory(b, new, dtype), address, align=dtype.itemsize)

        if mask is None:
            write()
        else:
            with b.if_then(mask):
                write()
        self.forget({stmt.buffer})

    def load_before(self, stmt: Store, rest: Sequence[Stmt]) -> None:
        """Load what the following statements of this scope read from the bytes that `stmt` is about to overwrite."""
        if stmt.buffer.role == "local":
            return
        slot = self.binding.slots[self.kernel.buffers.index(stmt.buffer)]
        at_risk = {
            b for b, s in zip(self.kernel.buffers, self.binding.slots) if s == slot and b in self.shared_reads
        }
        if not at_risk:
            return
        available = set().union(*self.scopes)
        for later in rest:
            for e in nodes(expressions(later)):
                if isinstance(e, Load) and e.buffer in at_risk and self.computable(e, available):
                    self.value(e)

    def computable(self, e: Expr, available: set[int]) -> bool:
        if self.lanes is not None:
            available = available | {id(self.lanes.var)}
        return all(id(n) in available for n in self.needs(e) if isinstance(n, LoopVar)) and not any(
            isinstance(n, (Acc, Buffer)) for n in self.needs(e)
        )

    def update(self, stmt: Update) -> None:
        value = self.value(stmt.value)
        if stmt.op != "set":
            value = self.combine(stmt.op, self.value(stmt.acc), value, stmt.acc.dtype)
        self.assign(stmt.acc, value)

    def assign(self, acc: Acc, value: ir.Value) -> None:
        slot = self.accumulators.get(acc)
        if slot is None:
            slot = self.accumulators[acc] = self.allocas.alloca(value.type, name=acc.name)
        self.builder.store(value, slot)
        self.forget({acc})

    def combine(self, op: str, old: ir.Value, value: ir.Value, dtype: np.dtype) -> ir.Value:
        """A reduction step: where several partial results may be kept, the flags say so."""
        b = self.builder
        if dtypes.is_float(dtype) and dtype.itemsize >= 4:
            if op == "add":
                return b.fadd(old, value, flags=REDUCE_FLAGS)
            if op == "mul":
                return b.fmul(old, value, flags=REDUCE_FLAGS)
            if op in ("maximum", "minimum"):
                return intrinsic(b, op, old.type, [old, value], fastmath=("nsz",))
        return scalar.emit(b, op, [old, value], [dtype, dtype], dtype)

    def check(self, stmt: Check) -> None:
        self.note_check(stmt, self.value(stmt.ok))

    def note_check(self, stmt: Check, ok: ir.Value) -> None:
        b = self.builder
        flag = self.flags.get(stmt)
        if flag is None:
            flag = self.flags[stmt] = self.allocas.alloca(I8, name=f"failed.{stmt.code}")
            self.allocas.store(I8(0), flag)
            self.failures.append((stmt, flag))
        b.store(b.or_(b.load(flag, typ=I8), b.zext(b.not_(ok), I8)), flag)

    # -------------------------------------------------------------------------------------------- expressions

    def value(self, root: Expr) -> ir.Value:
        """The value of `root` here, computed unless a scope around has it. (A stack, for chains longer than Python's.)"""
        self.needs(root)  # `forget` asks what each remembered value depends on
        pending = [root]
        while pending:
            e = pending[-1]
            if self.find(e) is not None:
                pending.pop()
                continue
            missing = [c for c in self.operands(e) if self.find(c) is None]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            scope = self.scopes[0] if isinstance(e, Const) else self.scopes[-1]
            scope[id(e)] = self.compute(e)
            self.keep.append(e)
        found = self.find(root)
        assert found is not None
        return found

    def find(self, e: Expr) -> ir.Value | None:
        for scope in reversed(self.scopes):
            value = scope.get(id(e))
            if value is not None:
                return value
        return None

    def compute(self, e: Expr) -> ir.Value:
        if self.by_lane(e):
            return self.compute_lanes(e)
        b = self.builder
        if isinstance(e, Const):
            return scalar.constant(e.value, e.dtype)
        if isinstance(e, Affine):
            return self.affine(e)
        if isinstance(e, Load):
            return self.load(e)
        if isinstance(e, Acc):
            if e not in self.accumulators:
                raise ValueError(f"kernel {self.kernel.name}: accumulator {e.name} is read before its Init")
            slot = self.accumulators[e]
            return b.load(slot, typ=slot.allocated_type)
        if isinstance(e, Op):
            args = [self.find(a) for a in e.args]
            return scalar.emit(b, e.name, args, [a.dtype for a in e.args], e.dtype)
        if isinstance(e, LoopVar):
            raise ValueError(f"kernel {self.kernel.name}: loop variable {e.name} is used outside its loop")
        raise NotImplementedError(f"kernel {self.kernel.name}: no LLVM printer for {type(e).__name__}")

    def affine(self, e: Affine) -> ir.Value:
        """The sum with what changes in the outer loops first, so that LLVM can move partial sums out of the inner ones."""
        b = self.builder
        total: ir.Value | None = I64(e.const) if e.const or not e.terms else None
        for term, coef in sorted(e.terms, key=lambda t: self.depth(t[0])):
            part = self.find(term)
            assert part is not None
            if coef != 1:
                part = b.mul(part, I64(coef), flags=("nsw",))
            total = part if total is None else b.add(total, part, flags=("nsw",))
        assert total is not None
        return total

    def depth(self, e: Expr) -> int:
        return next((n for n, scope in enumerate(self.scopes) if id(e) in scope), 0)

    def address(self, buffer: Buffer, index: ir.Value) -> ir.Value:
        element = ir.IntType(8 * buffer.dtype.itemsize)
        if buffer not in self.pointers:  # of role "local"
            memory = self.allocas.alloca(ir.ArrayType(element, buffer.size), name=buffer.name)
            memory.align = 64
            self.pointers[buffer] = opaque(self.allocas, memory)
        return self.builder.gep(self.pointers[buffer], [index], inbounds=True, source_etype=element)

    def load(self, e: Load) -> ir.Value:
        b = self.builder
        index = self.find(e.index)
        assert index is not None
        if e.mask is None:
            return self.read(self.address(e.buffer, index), e.dtype)
        mask = self.find(e.mask)
        other = scalar.constant(0, e.dtype) if e.other is None else self.find(e.other)
        if e.buffer.size == 0:
            return other
        # A branch, not a clamped index: LLVM makes masked vector loads of it where it would gather otherwise.
        before = b.block
        with b.if_then(mask):
            loaded = self.read(self.address(e.buffer, index), e.dtype)
            inside = b.block
        result = b.phi(loaded.type)
        result.add_incoming(other, before)
        result.add_incoming(loaded, inside)
        return result

    def read(self, address: ir.Value, dtype: np.dtype) -> ir.Value:
        raw = self.builder.load(address, typ=scalar.memory_type(dtype), align=dtype.itemsize)
        return scalar.from_memory(self.builder, raw, dtype)
