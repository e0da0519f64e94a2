"""A thin layer over llvmlite's builder: loops with carried values, index arithmetic that folds, element conversions.

Indices may be Python integers or ``i64`` values everywhere; arithmetic on Python integers stays in Python, so a loop
of one step leaves no trace in the code. Pointers are opaque, offsets are in elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from llvmlite import ir

from fgrad.codegen.target import TargetInfo

I64 = ir.IntType(64)
I32 = ir.IntType(32)
PTR = ir.PointerType()
Index: TypeAlias = int | ir.Value


def is_bfloat16(dtype: np.dtype) -> bool:
    return dtype.name == "bfloat16"


def is_floating(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or is_bfloat16(dtype)


def memory_type(dtype: np.dtype) -> ir.Type:
    """How an element is held in memory; float16 and bfloat16 are plain 16-bit patterns there."""
    if dtype == np.float32:
        return ir.FloatType()
    if dtype == np.float64:
        return ir.DoubleType()
    if dtype.itemsize in (1, 2, 4, 8) and (dtype.kind in "iub" or is_bfloat16(dtype) or dtype == np.float16):
        return ir.IntType(8 * dtype.itemsize)
    raise NotImplementedError(f"contraction of {dtype} elements is not supported by the code generator")


def opaque(builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
    """A typed pointer as an opaque one (llvmlite's own ``bitcast`` takes the two for equal and keeps the typed one)."""
    cast = ir.instructions.CastInstr(builder.block, "bitcast", pointer, PTR, "")
    builder._insert(cast)
    return cast


class Emitter:
    """Writes into one function; ``builder`` is llvmlite's, positioned where the code goes."""

    def __init__(self, builder: ir.IRBuilder, target: TargetInfo) -> None:
        self.builder = builder
        self.target = target
        self.module = builder.function.module
        self._loop_hint = self._make_loop_hint()

    def _make_loop_hint(self):
        # The loops are already written in vectors; unrolling or vectorising them again only costs compile time.
        module = self.module
        if not hasattr(module, "fgrad_loop_hint"):
            flags = [module.add_metadata([f"llvm.loop.{what}"]) for what in ("unroll.disable",)]
            flags.append(module.add_metadata(["llvm.loop.vectorize.enable", ir.Constant(ir.IntType(1), 0)]))
            hint = module.add_metadata(flags)
            hint.operands = (hint, *hint.operands)
            module.fgrad_loop_hint = hint
        return module.fgrad_loop_hint

    # Index arithmetic -------------------------------------------------------------------------------------------

    def const(self, value: Index) -> ir.Value:
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if isinstance(a, int):
            a, b = b, a
        if isinstance(b, int) and b == 0:
            return a
        return self.builder.add(a, self.const(b), flags=("nsw",))

    def sub(self, a: Index, b: Index) -> Index:
        if isinstance(b, int):
            return self.add(a, -b)
        return self.builder.sub(self.const(a), b, flags=("nsw",))

    def mul(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if isinstance(a, int):
            a, b = b, a
        if isinstance(b, int) and b in (0, 1):
            return a if b else 0
        return self.builder.mul(a, self.const(b), flags=("nsw",))

    def divmod(self, a: Index, b: int) -> tuple[Index, Index]:
        """Quotient and remainder of a non-negative index by a constant."""
        if b == 1:
            return a, 0
        if isinstance(a, int):
            return divmod(a, b)
        return self.builder.udiv(a, self.const(b)), self.builder.urem(a, self.const(b))

    def opaque_index(self, value: Index) -> Index:
        """The same index, closed to LLVM's loop passes: they would spend long on the divisions behind it."""
        if isinstance(value, int):
            return value
        return self.builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], False)

    def opaque_pointer(self, pointer: ir.Value) -> ir.Value:
        """The same pointer, so that LLVM takes what is loaded from it for something new."""
        return self.builder.asm(ir.FunctionType(PTR, [PTR]), "", "=r,0", [pointer], False)

    def minimum(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        a, b = self.const(a), self.const(b)
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def compare(self, how: str, a: Index, b: Index) -> bool | ir.Value:
        """A comparison; a Python bool when both sides are known."""
        if isinstance(a, int) and isinstance(b, int):
            return {"<": a < b, "<=": a <= b, "==": a == b, ">=": a >= b}[how]
        return self.builder.icmp_signed(how, self.const(a), self.const(b))

    def both(self, a: bool | ir.Value, b: bool | ir.Value) -> bool | ir.Value:
        if isinstance(a, bool):
            return b if a else False
        if isinstance(b, bool):
            return a if b else False
        return self.builder.and_(a, b)

    # Control ----------------------------------------------------------------------------------------------------

    def loop(
        self,
        stop: Index,
        body: Callable,
        carried: Sequence[ir.Value] = (),
        step: int = 1,
        *,
        hint: bool = True,
    ) -> list:
        """``for index in range(0, stop, step)``, threading ``carried`` through ``body(index, *carried)``.

        ``body`` returns the new carried values (nothing if there are none). A runtime ``stop`` must be positive.
        """
        carried = list(carried)
        if isinstance(stop, int) and stop <= step:
            return list(body(0, *carried) or ()) if stop > 0 else carried
        builder = self.builder
        before = builder.block
        header = builder.append_basic_block("loop")
        builder.branch(header)
        builder.position_at_end(header)
        index = builder.phi(I64)
        index.add_incoming(ir.Constant(I64, 0), before)
        phis = []
        for value in carried:
            phi = builder.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        results = list(body(index, *phis) or ())
        following = builder.add(index, ir.Constant(I64, step), flags=("nsw", "nuw"))
        index.add_incoming(following, builder.block)
        for phi, result in zip(phis, results):
            phi.add_incoming(result, builder.block)
        after = builder.append_basic_block("next")
        branch = builder.cbranch(builder.icmp_signed("<", following, self.const(stop)), header, after)
        if hint:
            branch.set_metadata("llvm.loop", self._loop_hint)
        builder.position_at_end(after)
        return results

    def loop_while(self, start: Index, stop: Index, body: Callable) -> None:
        """``i = start; do: i = body(i) while i < stop`` for a body that chooses its own step."""
        builder = self.builder
        before = builder.block
        header = builder.append_basic_block("while")
        builder.branch(header)
        builder.position_at_end(header)
        index = builder.phi(I64)
        index.add_incoming(self.const(start), before)
        following = body(index)
        index.add_incoming(following, builder.block)
        after = builder.append_basic_block("next")
        branch = builder.cbranch(builder.icmp_signed("<", following, self.const(stop)), header, after)
        branch.set_metadata("llvm.loop", self._loop_hint)
        builder.position_at_end(after)

    def branch(self, condition: bool | ir.Value, then: Callable, otherwise: Callable | None = None) -> None:
        """``if condition: then() else: otherwise()``, decided here when the condition is known."""
        if isinstance(condition, bool):
            if condition:
                then()
            elif otherwise is not None:
                otherwise()
        elif otherwise is None:
            with self.builder.if_then(condition):
                then()
        else:
            with self.builder.if_else(condition) as (yes, no):
                with yes:
                    then()
                with no:
                    otherwise()

    def intrinsic(
        self, name: str, result: ir.Type, arguments: Sequence[ir.Value], fast: bool = False
    ) -> ir.Value:
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.builder.call(function, arguments, fastmath=("reassoc", "nsz") if fast else ())

    # Memory -----------------------------------------------------------------------------------------------------

    def at(self, pointer: ir.Value, offset: Index, dtype: np.dtype) -> ir.Value:
        """Pointer to the element ``offset``."""
        if isinstance(offset, int) and offset == 0:
            return pointer
        return self.builder.gep(pointer, [self.const(offset)], source_etype=memory_type(dtype))

    def load(self, pointer: ir.Value, dtype: np.dtype, acc: np.dtype, lanes: int = 0) -> ir.Value:
        """One element, or a vector of ``lanes``, converted to ``acc``."""
        raw = memory_type(dtype)
        vector = ir.VectorType(raw, lanes) if lanes else raw
        return self.convert(self.builder.load(pointer, typ=vector, align=dtype.itemsize), dtype, acc)

    def store(self, value: ir.Value, pointer: ir.Value, dtype: np.dtype, acc: np.dtype) -> None:
        self.builder.store(self.convert(value, acc, dtype), pointer, align=dtype.itemsize)

    def _masked(self, what: str, pointer: ir.Value, vector: ir.VectorType, dtype: np.dtype) -> ir.Function:
        """LLVM's masked load or store of a vector of ``dtype``."""
        kind = f"v{vector.count}{'f' if is_floating(dtype) else 'i'}{8 * dtype.itemsize}"
        name = f"llvm.masked.{what}.{kind}.p0"
        function = self.module.globals.get(name)
        if function is None:
            boolean = ir.VectorType(ir.IntType(1), vector.count)
            if what == "load":
                kinds, result = [pointer.type, I32, boolean, vector], vector
            else:
                kinds, result = [vector, pointer.type, I32, boolean], ir.VoidType()
            function = ir.Function(self.module, ir.FunctionType(result, kinds), name)
        return function

    def can_mask(self, dtype: np.dtype, lanes: int, *, store: bool = False) -> bool:
        """True if a masked load (and store, if asked for) of such a vector is one fast instruction."""
        able = self.target.masked_loads and (self.target.masked_stores or not store)
        return able and dtype.name in ("float32", "float64") and lanes * dtype.itemsize >= 16

    def first_lanes(self, width: Index, lanes: int) -> ir.Value:
        """The mask of the first ``width`` lanes (all of them if there are fewer)."""
        if isinstance(width, int):
            return ir.Constant(ir.VectorType(ir.IntType(1), lanes), [int(i < width) for i in range(lanes)])
        numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        return self.builder.icmp_signed("<", numbers, self.splat(self.builder.trunc(width, I32), lanes))

    def load_some(self, pointer: ir.Value, mask: ir.Value, dtype: np.dtype) -> ir.Value:
        """Load the lanes in ``mask``, zeros elsewhere; needs ``can_mask``."""
        vector = ir.VectorType(memory_type(dtype), mask.type.count)
        function = self._masked("load", pointer, vector, dtype)
        return self.builder.call(
            function, [pointer, I32(dtype.itemsize), mask, self.zero(dtype, vector.count)]
        )

    def load_spread(self, pointer: ir.Value, mask: ir.Value, dtype: np.dtype) -> ir.Value:
        """Neighbours in memory, one for each lane in ``mask``, in order; zeros in the other lanes."""
        vector = ir.VectorType(memory_type(dtype), mask.type.count)
        name = f"llvm.masked.expandload.v{vector.count}f{8 * dtype.itemsize}"
        return self.intrinsic(name, vector, [pointer, mask, self.zero(dtype, vector.count)])

    def store_some(self, value: ir.Value, pointer: ir.Value, mask: ir.Value, dtype: np.dtype) -> None:
        """Store the lanes in ``mask``; needs ``can_mask``."""
        function = self._masked("store", pointer, value.type, dtype)
        self.builder.call(function, [value, pointer, I32(dtype.itemsize), mask])

    def load_first(self, pointer: ir.Value, width: int, lanes: int, dtype: np.dtype) -> ir.Value:
        """The first ``width`` elements at ``pointer`` and zeros after them, reading nothing beyond."""
        if width == lanes:
            return self.load(pointer, dtype, dtype, lanes)
        if self.can_mask(dtype, lanes):
            return self.load_some(pointer, self.first_lanes(width, lanes), dtype)
        part = self.load(pointer, dtype, dtype, width)
        order = [i if i < width else width for i in range(lanes)]
        return self.builder.shuffle_vector(
            part, self.zero(dtype, width), ir.Constant(ir.VectorType(I32, lanes), order)
        )

    def first_of(self, value: ir.Value, width: int) -> ir.Value:
        """The first ``width`` lanes as a shorter vector."""
        if width == value.type.count:
            return value
        order = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        return self.builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), order)

    def splat(self, value: ir.Value, lanes: int) -> ir.Value:
        vector = ir.VectorType(value.type, lanes)
        first = self.builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self.builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

    def zero(self, dtype: np.dtype, lanes: int = 0) -> ir.Value:
        raw = memory_type(dtype)
        zero = 0 if isinstance(raw, ir.IntType) else 0.0
        return ir.Constant(ir.VectorType(raw, lanes), [zero] * lanes) if lanes else ir.Constant(raw, zero)

    # Arithmetic -------------------------------------------------------------------------------------------------

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c``: fused where the target has the instruction, two roundings otherwise."""
        builder = self.builder
        scalar = a.type.element if isinstance(a.type, ir.VectorType) else a.type
        if isinstance(scalar, ir.IntType):
            return builder.add(builder.mul(a, b), c)
        if not self.target.fma:
            return builder.fadd(builder.fmul(a, b), c)
        letter = "f32" if isinstance(scalar, ir.FloatType) else "f64"
        suffix = f"v{a.type.count}{letter}" if isinstance(a.type, ir.VectorType) else letter
        return self.intrinsic(f"llvm.fma.{suffix}", a.type, [a, b, c])

    def convert(self, value: ir.Value, source: np.dtype, goal: np.dtype) -> ir.Value:
        """Convert a scalar or vector between element types (memory patterns for float16 and bfloat16)."""
        if source == goal:
            return value
        lanes = value.type.count if isinstance(value.type, ir.VectorType) else 0
        return _Conversion(self, lanes).run(value, source, goal)


class _Conversion:
    """Element conversions, written so that no target needs a library call for them."""

    def __init__(self, emitter: Emitter, lanes: int) -> None:
        self.emitter, self.builder, self.lanes = emitter, emitter.builder, lanes

    def type(self, scalar: ir.Type) -> ir.Type:
        return ir.VectorType(scalar, self.lanes) if self.lanes else scalar

    def const(self, scalar: ir.Type, value) -> ir.Constant:
        return ir.Constant(self.type(scalar), [value] * self.lanes if self.lanes else value)

    def run(self, value: ir.Value, source: np.dtype, goal: np.dtype) -> ir.Value:
        builder = self.builder
        single, double = np.dtype(np.float32), np.dtype(np.float64)
        if not is_floating(source) or not is_floating(goal):
            if is_floating(source) or is_floating(goal):
                raise NotImplementedError(f"contraction: no conversion from {source} to {goal}")
            if source.itemsize == goal.itemsize:
                return value
            wider = builder.sext if source.kind == "i" else builder.zext
            convert = wider if goal.itemsize > source.itemsize else builder.trunc
            return convert(value, self.type(memory_type(goal)))
        if source.itemsize == 2:
            value = self.from_bfloat16(value) if is_bfloat16(source) else self.from_half(value)
            source = single
        if goal.itemsize == 2:
            if source == double:
                value = builder.fptrunc(value, self.type(ir.FloatType()))
            return self.to_bfloat16(value) if is_bfloat16(goal) else self.to_half(value)
        if source == goal:
            return value
        convert = builder.fpext if goal == double else builder.fptrunc
        return convert(value, self.type(memory_type(goal)))

    def from_bfloat16(self, value: ir.Value) -> ir.Value:
        wide = self.builder.shl(self.builder.zext(value, self.type(I32)), self.const(I32, 16))
        return self.builder.bitcast(wide, self.type(ir.FloatType()))

    def to_bfloat16(self, value: ir.Value) -> ir.Value:
        """Round to nearest even; a NaN keeps its sign and becomes quiet."""
        builder = self.builder
        bits = builder.bitcast(value, self.type(I32))
        odd = builder.and_(builder.lshr(bits, self.const(I32, 16)), self.const(I32, 1))
        rounded = builder.lshr(
            builder.add(bits, builder.add(odd, self.const(I32, 0x7FFF))), self.const(I32, 16)
        )
        quiet = builder.or_(builder.lshr(bits, self.const(I32, 16)), self.const(I32, 0x40))
        pattern = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
        return builder.trunc(pattern, self.type(ir.IntType(16)))

    def from_half(self, value: ir.Value) -> ir.Value:
        builder = self.builder
        if self.emitter.target.half:
            return builder.fpext(builder.bitcast(value, self.type(ir.HalfType())), self.type(ir.FloatType()))
        bits = builder.zext(value, self.type(I32))
        magnitude = builder.and_(bits, self.const(I32, 0x7FFF))
        sign = builder.shl(builder.and_(bits, self.const(I32, 0x8000)), self.const(I32, 16))
        # The exponent moves to its new place; a multiplication by 2**112 corrects its bias, subnormals included.
        moved = builder.bitcast(builder.shl(magnitude, self.const(I32, 13)), self.type(ir.FloatType()))
        scaled = builder.fmul(moved, self.const(ir.FloatType(), 2.0**112))
        special = builder.icmp_unsigned(">=", magnitude, self.const(I32, 0x7C00))
        scaled = builder.bitcast(scaled, self.type(I32))
        scaled = builder.or_(scaled, builder.select(special, self.const(I32, 0x7F800000), self.const(I32, 0)))
        return builder.bitcast(builder.or_(scaled, sign), self.type(ir.FloatType()))

    def to_half(self, value: ir.Value) -> ir.Value:
        builder = self.builder
        half = self.type(ir.IntType(16))
        if self.emitter.target.half:
            return builder.bitcast(builder.fptrunc(value, self.type(ir.HalfType())), half)
        bits = builder.bitcast(value, self.type(I32))
        magnitude = builder.and_(bits, self.const(I32, 0x7FFFFFFF))
        sign = builder.lshr(builder.and_(bits, self.const(I32, 0x80000000)), self.const(I32, 16))
        odd = builder.and_(builder.lshr(magnitude, self.const(I32, 13)), self.const(I32, 1))
        normal = builder.add(builder.add(magnitude, self.const(I32, 0xFFF - ((127 - 15) << 23))), odd)
        normal = builder.lshr(normal, self.const(I32, 13))
        # Adding 0.5 lines a subnormal's bits up at the end of the word and rounds them.
        small = builder.fadd(
            builder.bitcast(magnitude, self.type(ir.FloatType())), self.const(ir.FloatType(), 0.5)
        )
        small = builder.sub(builder.bitcast(small, self.type(I32)), self.const(I32, 0x3F000000))
        result = builder.select(
            builder.icmp_unsigned("<", magnitude, self.const(I32, 0x38800000)), small, normal
        )
        huge = builder.icmp_unsigned(">=", magnitude, self.const(I32, 0x477FF000))
        result = builder.select(huge, self.const(I32, 0x7C00), result)
        nan = builder.icmp_unsigned(">", magnitude, self.const(I32, 0x7F800000))
        result = builder.select(nan, self.const(I32, 0x7E00), result)
        return builder.trunc(builder.or_(result, sign), half)


def transpose(e: Emitter, vectors: list[ir.Value]) -> list[ir.Value]:
    """Transpose a square block held in as many vectors as they have lanes, in log2(lanes) stages of shuffles."""
    lanes, size = len(vectors), len(vectors)
    half = size // 2
    while half:
        result = list(vectors)
        for i in range(size):
            if i & half:
                continue
            a, b = vectors[i], vectors[i + half]
            low = [(c if not c & half else lanes + c - half) for c in range(lanes)]
            high = [(c + half if not c & half else lanes + c) for c in range(lanes)]
            mask = ir.VectorType(I32, lanes)
            result[i] = e.builder.shuffle_vector(a, b, ir.Constant(mask, low))
            result[i + half] = e.builder.shuffle_vector(a, b, ir.Constant(mask, high))
        vectors, half = result, half // 2
    return vectors
