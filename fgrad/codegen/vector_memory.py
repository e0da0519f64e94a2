"""Loads and stores of vector loops: plain, under masks, every so many elements, or lane by lane.

A load that runs backwards, x[31 - j], is a plain one whose lanes are then reversed. A family of strided accesses is one longer vector in memory. The taps of 2 by 2 pooling, x[2*j] and x[2*j + 1]:

    %wide = load <32 x float>, ptr %x.at
    %even = shufflevector <32 x float> %wide, poison, <0, 2, 4, ...>
    %odd  = shufflevector <32 x float> %wide, poison, <1, 3, 5, ...>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from fgrad.codegen import scalar
from fgrad.codegen.lanes import Family
from fgrad.codegen.loops import Affine, Expr, Load, Stmt, Store, affine_terms, index_range

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


def first_lanes(count: int, live: int) -> ir.Constant:
    """The mask of the first `live` of `count` lanes."""
    return ir.Constant(ir.VectorType(I1, count), [int(k < live) for k in range(count)])


def _zeros(kind: ir.VectorType) -> ir.Constant:
    return ir.Constant(kind, [0 if isinstance(kind.element, ir.IntType) else 0.0] * kind.count)


class VectorMemory:
    """Mixed into the kernel printer below `VectorLoops`."""

    def _masked(
        self: Any, what: str, kind: ir.VectorType, address: ir.Value, mask: ir.Value, align: int, value: Any
    ) -> Any:
        """LLVM's masked load (of zeros elsewhere) or store."""
        element = kind.element
        letter = f"i{element.width}" if isinstance(element, ir.IntType) else element.intrinsic_name
        name = f"llvm.masked.{what}.v{kind.count}{letter}.p0"
        boolean = ir.VectorType(I1, kind.count)
        fn = self.module.globals.get(name)
        if fn is None:
            if what == "load":
                types, result = [ir.PointerType(), I32, boolean, kind], kind
            else:
                types, result = [kind, ir.PointerType(), I32, boolean], ir.VoidType()
            fn = ir.Function(self.module, ir.FunctionType(result, types), name)
        if what == "load":
            return self.builder.call(fn, [address, I32(align), mask, _zeros(kind)])
        return self.builder.call(fn, [value, address, I32(align), mask])

    def load_lanes(self: Any, e: Load) -> ir.Value:
        b, lanes = self.builder, self.lanes
        stride = self.lane_stride(e.index)
        if e.mask is None:
            return scalar.from_memory(b, self._raw_lanes(e, stride, lanes.mask), e.dtype)
        other = scalar.constant(0, e.dtype) if e.other is None else self.find(e.other)
        other = self.wide(other)
        if e.buffer.size == 0:
            return other
        mask = self.find(e.mask)
        if isinstance(mask.type, ir.VectorType):
            live = mask if lanes.whole else b.and_(mask, lanes.mask)
            loaded = scalar.from_memory(b, self._raw_lanes(e, stride, live), e.dtype)
            return b.select(mask, loaded, other)
        before = b.block
        with b.if_then(mask):
            loaded = scalar.from_memory(b, self._raw_lanes(e, stride, lanes.mask), e.dtype)
            inside = b.block
        result = b.phi(loaded.type)
        result.add_incoming(other, before)
        result.add_incoming(loaded, inside)
        return result

    def _raw_lanes(self: Any, e: Load, stride: int | None, mask: ir.Value | None) -> ir.Value:
        """What is in memory, in the lanes that `mask` names."""
        lanes = self.lanes
        kind = ir.VectorType(scalar.memory_type(e.dtype), lanes.count)
        if stride in (1, -1) and (mask is None or self.masks):
            return self._load_row(e, stride, self._row_start(e, stride, kind), mask, kind)
        if stride in (1, -1) and mask is not lanes.mask and e.buffer.size >= kind.count:
            return self._load_row_or_lanes(e, stride, mask, kind)
        family = self.plan.families.get(id(e))
        if family is not None and mask is lanes.mask and lanes.live is not None:
            found = self._load_family(e, family, kind)
            if found is not None:
                return found
        return self._gather(e, stride, mask, kind)

    def _row_start(self: Any, e: Load, stride: int, kind: ir.VectorType) -> ir.Value:
        """The index of the first element of a row in memory; of a mirrored one, it is that of the last lane."""
        first = self.base_index(e.index)
        return first if stride == 1 else self.builder.sub(first, I64(kind.count - 1), flags=("nsw",))

    def _load_row(
        self: Any, e: Load, stride: int, start: ir.Value, mask: ir.Value | None, kind: ir.VectorType
    ) -> ir.Value:
        b, size, backwards = self.builder, e.dtype.itemsize, range(kind.count - 1, -1, -1)
        address = self.address(e.buffer, start)
        if mask is None:
            found = b.load(address, typ=kind, align=size)
        else:
            mask = mask if stride == 1 else self.take(mask, mask, backwards)
            found = self._masked("load", kind, address, mask, size, None)
        return found if stride == 1 else self.take(found, found, backwards)

    def _load_row_or_lanes(self: Any, e: Load, stride: int, mask: ir.Value, kind: ir.VectorType) -> ir.Value:
        """Without masked loads: the lanes that `mask` does not name are read as well, where they are in the buffer."""
        b = self.builder
        start = self._row_start(e, stride, kind)
        inside = b.icmp_unsigned(
            "<=", start, I64(e.buffer.size - kind.count)
        )  # a negative start is a large number
        with b.if_else(inside, likely=True) as (then, otherwise):
            with then:
                row, row_block = self._load_row(e, stride, start, None, kind), b.block
            with otherwise:
                lanes, lanes_block = self._gather(e, stride, mask, kind), b.block
        result = b.phi(kind)
        result.add_incoming(row, row_block)
        result.add_incoming(lanes, lanes_block)
        return result

    def _load_family(self: Any, e: Load, family: Family, kind: ir.VectorType) -> ir.Value | None:
        """Every so many elements: one longer load for the whole family, then a shuffle for each member."""
        b, lanes = self.builder, self.lanes
        key = id(family)
        wide = self.scopes[-1].get(key)
        count = family.stride * lanes.count
        if wide is None:
            touched = family.stride * (lanes.live - 1) + family.last + 1
            start = Affine(family.start, affine_terms(e.index)[1])
            bounds = index_range(start)
            inside = bounds is not None and bounds[1] + family.stride <= e.buffer.size and lanes.whole
            if touched < count and not inside and not self.masks:
                return None
            address = self.address(e.buffer, self.base_index(start))
            longer = ir.VectorType(kind.element, count)
            if touched == count or inside:
                wide = b.load(address, typ=longer, align=e.dtype.itemsize)
            else:
                mask = first_lanes(count, touched)
                wide = self._masked("load", longer, address, mask, e.dtype.itemsize, None)
            self.scopes[-1][key] = wide
        offset = family.offset(e)
        return self.take(wide, wide, range(offset, offset + family.stride * lanes.count, family.stride))

    def _places(self: Any, index: Expr, stride: int | None, mask: ir.Value | None) -> Callable[[int], Any]:
        """The index of each lane; 0, which every buffer has, where `mask` is off."""
        b, lanes = self.builder, self.lanes
        if stride is not None:
            base = self.base_index(index)

            def steady(k: int) -> ir.Value:
                return b.add(base, I64(stride * k), flags=("nsw",)) if k else base

            if mask is None or mask is lanes.mask:
                return steady

            def safe(k: int) -> ir.Value:
                return b.select(b.extract_element(mask, I32(k)), steady(k), I64(0))

            return safe
        where = self.find(index)
        if mask is not None and mask is not lanes.mask:
            where = b.select(mask, where, self.splat(I64(0), lanes.count))
        return lambda k: b.extract_element(where, I32(k))

    def _gather(
        self: Any, e: Load | Store, stride: int | None, mask: ir.Value | None, kind: ir.VectorType
    ) -> ir.Value:
        """Lane by lane: on most processors no slower than their gather instructions."""
        b, lanes = self.builder, self.lanes
        assert lanes.live is not None
        place = self._places(e.index, stride, mask)
        result: ir.Value = _zeros(kind)
        for k in range(lanes.live):
            one = b.load(self.address(e.buffer, place(k)), typ=kind.element, align=e.buffer.dtype.itemsize)
            result = b.insert_element(result, one, I32(k))
        return result

    def store_lanes(self: Any, s: Store, rest: Sequence[Stmt]) -> None:
        b, lanes = self.builder, self.lanes
        stride = self.lane_stride(s.index)
        value = self.wide(self.value(s.value))
        for term in self.steady_terms(s.index):
            self.value(term)
        mask = None if s.mask is None else self.value(s.mask)
        if self.shared_reads:
            self.load_before(s, rest)
        dtype = s.buffer.dtype
        kind = ir.VectorType(scalar.memory_type(dtype), lanes.count)
        live = lanes.mask
        if mask is not None and isinstance(mask.type, ir.VectorType):
            live = mask if lanes.whole else b.and_(mask, lanes.mask)

        def write() -> None:
            new = value
            plain = stride == 1 and (live is None or self.masks)
            if plain:
                address = self.address(s.buffer, self.base_index(s.index))
            if s.op is not None:
                if not plain:
                    old = self._gather(s, stride, live, kind)
                elif live is None:
                    old = b.load(address, typ=kind, align=dtype.itemsize)
                else:
                    old = self._masked("load", kind, address, live, dtype.itemsize, None)
                new = self.combine(s.op, scalar.from_memory(b, old, dtype), value, dtype)
            raw = scalar.to_memory(b, new, dtype)
            if not plain:
                self._scatter(s, stride, raw, live)
            elif live is None:
                b.store(raw, address, align=dtype.itemsize)
            else:
                self._masked("store", kind, address, live, dtype.itemsize, raw)

        family = self.plan.families.get(id(s))
        if family is not None and (lanes.whole or self.masks):
            self._store_family(s, family, scalar.to_memory(b, value, dtype), kind)
        elif mask is not None and not isinstance(mask.type, ir.VectorType):
            with b.if_then(mask):
                write()
        else:
            write()
        self.forget({s.buffer})

    def _store_family(self: Any, s: Store, family: Family, raw: ir.Value, kind: ir.VectorType) -> None:
        """Keep the value until the family is complete; then interleave all of them and store one longer vector."""
        b, lanes = self.builder, self.lanes
        waiting = self.pending_stores.setdefault(id(family), {})
        waiting[family.offset(s)] = raw
        stride, n = family.stride, lanes.count
        if len(waiting) < stride:
            return
        pair = [*range(2 * n)]
        values = [waiting[k] for k in range(stride)]
        if stride == 2:
            joined = self.take(*values, [k % 2 * n + k // 2 for k in pair])
        else:
            values += values[-1:] * (4 - stride)
            halves = self.take(*values[:2], pair), self.take(*values[2:], pair)
            joined = self.take(*halves, [k % stride * n + k // stride for k in range(stride * n)])
        address = self.address(s.buffer, self.base_index(Affine(family.start, affine_terms(s.index)[1])))
        size = s.buffer.dtype.itemsize
        if lanes.whole:
            b.store(joined, address, align=size)
        else:
            mask = first_lanes(stride * n, stride * lanes.live)
            self._masked("store", joined.type, address, mask, size, joined)

    def _scatter(self: Any, s: Store, stride: int, raw: ir.Value, mask: ir.Value | None) -> None:
        b, lanes = self.builder, self.lanes
        assert lanes.live is not None
        place = self._places(s.index, stride, None)
        size = s.buffer.dtype.itemsize
        for k in range(lanes.live):
            one = b.extract_element(raw, I32(k))
            if mask is None or mask is lanes.mask:
                b.store(one, self.address(s.buffer, place(k)), align=size)
            else:
                with b.if_then(b.extract_element(mask, I32(k))):
                    b.store(one, self.address(s.buffer, place(k)), align=size)
