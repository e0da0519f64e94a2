"""Writing a planned contraction as LLVM IR: the loops around the micro-kernel.

    spread lhs, rhs                          (only operands with elements that do not exist: padding, dilation)
    for batch:
      for columns jc in steps of nc:
        for pieces of k:                     (usually one)
          pack rhs[jc : jc+nc, piece]        (unless it is read where it lies)
          for rows ir in steps of mr:
            pack lhs[ir : ir+mr, piece]      (unless it is read where it lies)
            for columns jr of the block in steps of nr:
              micro-kernel, store the tile

A tile at the edge is computed whole. Either it is moved back so that it ends at the edge (and some elements are
computed twice), or it goes through a small tile on the stack and only the valid part is copied out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

from llvmlite import ir

from fgrad.codegen.blocking import Place, Plan, require_tile_offsets, tile_offsets
from fgrad.codegen.contraction import Contraction
from fgrad.codegen.direct import emit_direct
from fgrad.codegen.epilogue import Epilogue, Sink
from fgrad.codegen.irtools import Emitter, Index, memory_type, opaque
from fgrad.codegen.microkernel import emit_inner_product, emit_outer_product
from fgrad.codegen.packing import emit_pack, emit_spread, flat_offset, inner_room, levels_of, merge_levels
from fgrad.codegen.plane import emit_plane
from fgrad.codegen.winograd import WinogradPlan
from fgrad.codegen.winograd_emit import emit_winograd


def emit(
    module: ir.Module,
    spec: Contraction,
    plan: Plan | WinogradPlan,
    name: str,
    epilogue: Epilogue | None = None,
) -> ir.Function:
    """Write ``void name(i8* out, i8* lhs, i8* rhs, i8* workspace)`` for ``spec`` as planned.

    The three arrays must not overlap ``out`` or the workspace, which has ``plan.workspace_bytes`` bytes and may be null
    if that is zero. The caller may change the linkage of the function that is returned.

    An ``epilogue`` adds a pointer for each of its extra arguments, which may overlap each other element by element (an update in
    place); ``out`` is written only if it keeps the product. The plan must then be one for complete sums (``whole``).
    """
    pointer = ir.IntType(8).as_pointer()
    extra = len(epilogue.extra) if epilogue else 0
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer] * (4 + extra)), name)
    for argument, label in zip(function.args, ("out", "lhs", "rhs", "workspace")):
        argument.name = label
        argument.add_attribute("noalias")
    function.attributes.add("nounwind")
    entry = function.append_basic_block("entry")
    builder = ir.IRBuilder(entry)
    pointers = [opaque(builder, a) for a in function.args]
    e = Emitter(builder, plan.target)
    if isinstance(plan, WinogradPlan):
        emit_winograd(e, plan, *pointers)
        builder.ret_void()
        # Its loops only call functions that take long: they are compiled as they stand, in a third of the time.
        function.attributes.add("noinline")
        function.attributes.add("optnone")
        return function
    sink = Sink(e, epilogue, pointers[4:], plan.spec.m, plan.spec.n, plan.out.strides) if epilogue else None
    _Writer(e, plan, sink).write(*pointers[:4])
    builder.ret_void()
    return function


class _Writer:
    """The state shared by the loops of one contraction."""

    def __init__(self, e: Emitter, plan: Plan, sink: Sink | None = None) -> None:
        self.e, self.p, self.acc, self.sink = e, plan, plan.acc, sink
        spec = plan.spec
        self.m = math.prod(d.extent for d in spec.m)
        self.n = math.prod(d.extent for d in spec.n)
        self.out_rows = levels_of(spec.m, plan.out.strides)
        self.out_columns = levels_of(spec.n, plan.out.strides)

    def write(self, out, lhs, rhs, workspace) -> None:
        e, p = self.e, self.p
        if p.path == "nothing":
            return
        if p.swapped:
            lhs, rhs = rhs, lhs
        out = e.at(out, p.out.base, p.out.dtype)
        if p.path == "zero":
            self.zero(out)
            return
        if p.path in ("outer", "direct"):  # in the entry block, so that the stack is taken once
            turned = p.lanes * (p.nr + p.mr + 2 * p.lanes) if p.path == "direct" else 0
            tile = e.builder.alloca(memory_type(self.acc), p.mr * p.nr + turned)
            tile.align = 64
            self.tile = opaque(e.builder, tile)
        areas = {name: self.area(workspace, offset) for name, offset in p.workspace.items()}
        self.areas = areas
        sides = []
        for name, pointer, view, spread in (
            ("lhs", lhs, p.lhs, p.lhs_spread),
            ("rhs", rhs, p.rhs, p.rhs_spread),
        ):
            if spread and not spread.per_batch:
                emit_spread(e, spread, pointer, areas[f"{name}_spread"])
                pointer = areas[f"{name}_spread"]
            sides.append(pointer if spread and spread.per_batch else e.at(pointer, view.base, view.dtype))
        extra = self.sink.strides() if self.sink else []
        self.batch(levels_of(p.spec.batch, p.out.strides, p.lhs.strides, p.rhs.strides, *extra), out, *sides)

    def area(self, workspace, offset: int):
        return (
            self.e.builder.gep(workspace, [self.e.const(offset)], source_etype=ir.IntType(8))
            if offset
            else workspace
        )

    def zero(self, out) -> None:
        dims = self.p.spec.batch + self.p.spec.m + self.p.spec.n
        dtype = self.p.out.dtype

        def nest(levels, out) -> None:
            if not levels:
                self.e.store(self.e.zero(dtype), out, dtype, dtype)
                return
            extent, stride = levels[0]
            self.e.loop(extent, lambda i: nest(levels[1:], self.e.at(out, self.e.mul(i, stride), dtype)))

        nest(levels_of(dims, self.p.out.strides), out)

    def batch(self, levels, out, lhs, rhs) -> None:
        e, p = self.e, self.p
        spreads = (("lhs", p.lhs, p.lhs_spread), ("rhs", p.rhs, p.rhs_spread))
        if not levels:
            sides = [lhs, rhs]
            for i, (name, view, spread) in enumerate(spreads):
                if spread and spread.per_batch:
                    emit_spread(e, spread, sides[i], self.areas[f"{name}_spread"])
                    sides[i] = e.at(self.areas[f"{name}_spread"], view.base, view.dtype)
            write = {
                "loops": self.loops,
                "outer": self.columns,
                "inner": self.inner_tiles,
                "direct": self.direct,
                "plane": self.plane,
            }
            write[p.path](out, *sides)
            return
        extent, out_step, lhs_step, rhs_step, *extra = levels[0]
        kinds = [
            spread.source_dtype if spread and spread.per_batch else view.dtype for _, view, spread in spreads
        ]

        def body(i) -> None:
            here = (
                e.at(out, e.mul(i, out_step), p.out.dtype),
                e.at(lhs, e.mul(i, lhs_step), kinds[0]),
                e.at(rhs, e.mul(i, rhs_step), kinds[1]),
            )
            with self.sink.moved([e.mul(i, step) for step in extra]) if self.sink else nullcontext():
                self.batch(levels[1:], *here)

        e.loop(extent, body)

    def direct(self, out, lhs, rhs) -> None:
        emit_direct(self, out, lhs, rhs)

    def plane(self, out, lhs, rhs) -> None:
        emit_plane(self, out, lhs, rhs)

    # Plain loops ------------------------------------------------------------------------------------------------

    def loops(self, out, lhs, rhs) -> None:
        """One element at a time; what integers use."""
        e, p, acc = self.e, self.p, self.acc

        def total(levels, lhs, rhs, value):
            if not levels:
                a, b = e.load(lhs, p.lhs.dtype, acc), e.load(rhs, p.rhs.dtype, acc)
                return e.multiply_add(a, b, value)
            extent, lhs_step, rhs_step = levels[0]

            def body(i, value):
                here = e.at(lhs, e.mul(i, lhs_step), p.lhs.dtype), e.at(rhs, e.mul(i, rhs_step), p.rhs.dtype)
                return [total(levels[1:], *here, value)]

            return e.loop(extent, body, [value], hint=False)[0]

        depth = levels_of(p.spec.k, p.lhs.strides, p.rhs.strides)

        def column(levels, out, lhs, rhs) -> None:
            if not levels:
                e.store(total(depth, lhs, rhs, e.zero(acc)), out, p.out.dtype, acc)
                return
            (extent, out_step, lhs_step, rhs_step), *rest = levels

            def body(i) -> None:
                here = e.at(out, e.mul(i, out_step), p.out.dtype), e.at(lhs, e.mul(i, lhs_step), p.lhs.dtype)
                column(rest, *here, e.at(rhs, e.mul(i, rhs_step), p.rhs.dtype))

            e.loop(extent, body, hint=False)

        rows = [(x, o, s, 0) for x, o, s in levels_of(p.spec.m, p.out.strides, p.lhs.strides)]
        columns = [(x, o, 0, s) for x, o, s in levels_of(p.spec.n, p.out.strides, p.rhs.strides)]
        column(rows + columns, out, lhs, rhs)

    # Pieces of k ------------------------------------------------------------------------------------------------

    def pieces(self, lhs, rhs, body) -> None:
        """Run ``body(lhs, rhs, depth, first)`` for every piece of k; ``depth`` are the loops within it."""
        e, p = self.e, self.p
        levels = p.depth_levels
        outer, (extent, lhs_step, rhs_step), inner = (
            levels[: p.k_split],
            levels[p.k_split],
            levels[p.k_split + 1 :],
        )

        def advance(lhs, rhs, i, strides):
            lhs = e.at(lhs, e.mul(i, strides[0]), p.lhs.dtype)
            return lhs, e.at(rhs, e.mul(i, strides[1]), p.rhs.dtype)

        def nest(levels, lhs, rhs, first) -> None:
            if levels:
                (extent_here, *strides), *rest = levels

                def step(i) -> None:
                    lhs_here, rhs_here = advance(lhs, rhs, i, strides)
                    nest(rest, lhs_here, rhs_here, e.both(first, e.compare("==", i, 0)))

                e.loop(extent_here, step)
                return

            def chunk(i) -> None:
                steps = p.k_chunk if extent % p.k_chunk == 0 else e.minimum(p.k_chunk, e.sub(extent, i))
                here = advance(lhs, rhs, i, (lhs_step, rhs_step))
                body(*here, [(steps, lhs_step, rhs_step), *inner], e.both(first, e.compare("==", i, 0)))

            e.loop(extent, chunk, step=p.k_chunk)

        nest(outer, lhs, rhs, True)

    # Outer product ----------------------------------------------------------------------------------------------

    def columns(self, out, lhs, rhs) -> None:
        def block(jc) -> None:
            self.pieces(lhs, rhs, lambda *piece: self.block(out, jc, *piece))

        self.e.loop(self.n, block, step=self.p.nc)

    def block(self, out, jc: Index, lhs, rhs, depth, first) -> None:
        e, p, acc = self.e, self.p, self.acc
        nc = p.nc if self.n % p.nc == 0 else e.minimum(p.nc, e.sub(self.n, jc))
        kc: Index = 1
        for extent, *_ in depth:
            kc = e.mul(kc, extent)
        rhs_rows = levels_of(p.spec.n, p.rhs.strides)
        if p.rhs_packed:
            walk = merge_levels([(x, s) for x, _, s in depth])
            emit_pack(e, rhs, self.areas["rhs_panel"], rhs_rows, walk, jc, nc, p.nr, p.nr, (p.rhs.dtype, acc))
        lhs_rows = levels_of(p.spec.m, p.lhs.strides)
        levels = self.kernel_levels(depth)

        def row_tile(i) -> None:
            m0 = e.minimum(i, self.m - p.mr) if p.m_overlap else i
            if p.lhs_packed:
                count = p.mr if self.m % p.mr == 0 else e.minimum(p.mr, e.sub(self.m, m0))
                walk = merge_levels([(x, s) for x, s, _ in depth])
                panel = self.areas["lhs_panel"]
                emit_pack(e, lhs, panel, lhs_rows, walk, m0, count, p.mr, p.mr, (p.lhs.dtype, acc))
                lhs_tile, row_offsets = panel, tuple(range(p.mr))
            else:
                lhs_tile = e.at(lhs, flat_offset(e, m0, lhs_rows), acc)
                row_offsets = require_tile_offsets(lhs_rows, p.mr)

            def column_tile(j) -> None:
                n0 = e.add(jc, j)
                starts: Sequence[int] = p.starts
                if p.rhs_packed:
                    rhs_tile = e.at(self.areas["rhs_panel"], e.mul(j, kc), acc)
                else:
                    n0 = e.minimum(n0, self.n - p.nr) if p.n_overlap else n0
                    rhs_tile = e.at(rhs, flat_offset(e, n0, rhs_rows), acc)
                    columns = require_tile_offsets(rhs_rows, p.nr)
                    starts = [columns[start] for start in p.starts]
                sums = emit_outer_product(e, lhs_tile, rhs_tile, levels, row_offsets, p.widths, starts, acc)
                self.store_tile(sums, out, m0, n0, first)

            e.loop(nc, column_tile, step=p.nr)

        e.loop(self.m, row_tile, step=p.mr)

    def kernel_levels(self, depth) -> list[tuple]:
        """The loops over k as the kernel walks them; a packed operand is contiguous in k."""
        p = self.p
        if p.lhs_packed and p.rhs_packed:
            kc: Index = 1
            for extent, *_ in depth:
                kc = self.e.mul(kc, extent)
            return [(kc, p.mr, p.nr)]
        inner, levels = 1, []
        for extent, lhs_step, rhs_step in reversed(depth):
            levels.append(
                (
                    extent,
                    p.mr * inner if p.lhs_packed else lhs_step,
                    p.nr * inner if p.rhs_packed else rhs_step,
                )
            )
            inner = inner * extent if isinstance(extent, int) else inner
        return merge_levels(levels[::-1])

    def store_tile(self, sums, out, m0: Index, n0: Index, first) -> None:
        """Store a tile: straight from registers if it is whole and contiguous, through the stack otherwise."""
        e, p = self.e, self.p
        rows = tile_offsets(self.out_rows, p.mr)
        columns, fast = self.column_places(n0)
        fast = fast if rows is not None else False
        if fast is not False and self.m % p.mr and not p.m_overlap:
            fast = e.both(fast, e.compare("<=", e.add(m0, p.mr), self.m))

        def straight() -> None:
            corner = self.corner(m0, n0)
            for i, (row, row_place) in enumerate(zip(sums, rows or ())):
                for value, column_place, start, width in zip(row, columns, p.starts, p.widths):
                    place = Place(e.add(corner, row_place + column_place), e.add(m0, i), e.add(n0, start))
                    self.put(value, out, place, first, width)

        def through_stack() -> None:
            for i, row in enumerate(sums):
                for value, start, width in zip(row, p.starts, p.widths):
                    place = e.at(self.tile, i * p.nr + start, self.acc)
                    e.store(e.first_of(value, width), place, self.acc, self.acc)
            self.copy_out(out, m0, n0, first)

        e.branch(fast, straight, through_stack)

    def column_places(self, n0: Index) -> tuple[Sequence[int], bool | ir.Value]:
        """Where in the output the tile's columns start, and whether each is whole and contiguous there."""
        e, p = self.e, self.p
        levels = self.out_columns
        if levels and levels[-1][1] != 1:
            return p.starts, False
        places = tile_offsets(levels, p.nr)
        if places is not None and self.n % p.nr == 0:
            runs = zip(p.starts, p.widths)
            if all(places[start + width - 1] - places[start] == width - 1 for start, width in runs):
                return [places[start] for start in p.starts], True
        fast: bool | ir.Value = True
        if self.n % p.nr and not p.n_overlap:
            fast = e.compare("<=", e.add(n0, p.nr), self.n)
        room = inner_room(e, n0, levels)
        if room is not None:
            fast = e.both(fast, e.compare(">=", room, p.nr))
        return p.starts, fast

    def corner(self, m0: Index, n0: Index) -> Index:
        e = self.e
        return e.add(flat_offset(e, m0, self.out_rows), flat_offset(e, n0, self.out_columns))

    def put(self, value, out, place: Place, first, width: int = 0) -> None:
        """Store a scalar, or the first ``width`` sums of a vector; added to what is there unless this is the first
        piece of k."""
        e, p = self.e, self.p
        lanes = value.type.count if width else 0
        if width and width < lanes and e.can_mask(p.out.dtype, lanes, store=True) and p.out.dtype == self.acc:
            self.put_some(value, out, place, e.first_lanes(width, lanes), first)
            return
        if width:
            value = e.first_of(value, width)
        self.finish(value, place)
        if not self.keep:
            return
        pointer = e.at(out, place.offset, p.out.dtype)
        if first is not True:
            old = e.load(pointer, p.out.dtype, self.acc, width)
            value = e.builder.select(first, value, e.builder.fadd(value, old))
        e.store(value, pointer, p.out.dtype, self.acc)

    def put_some(self, value, out, place: Place, mask, first) -> None:
        """``put`` for the lanes of a mask, where sums and output are of one type."""
        e = self.e
        self.finish(value, place, mask)
        if not self.keep:
            return
        pointer = e.at(out, place.offset, self.acc)
        if first is not True:
            old = e.load_some(pointer, mask, self.acc)
            value = e.builder.select(first, value, e.builder.fadd(value, old))
        e.store_some(value, pointer, mask, self.acc)

    def finish(self, value, place: Place, mask=None) -> None:
        """Hand complete sums to the epilogue, if there is one."""
        if self.sink is not None:
            self.sink.store(value, place.offset, place.m, place.n, mask)

    @property
    def keep(self) -> bool:
        return self.sink is None or self.sink.epilogue.keep

    def copy_out(self, out, m0: Index, n0: Index, first) -> None:
        """Copy the valid part of the stack tile, in runs of columns that are neighbours in the output."""
        e, p, acc = self.e, self.p, self.acc
        rows = p.mr if self.m % p.mr == 0 or p.m_overlap else e.minimum(p.mr, e.sub(self.m, m0))
        columns = p.nr if self.n % p.nr == 0 or p.n_overlap else e.minimum(p.nr, e.sub(self.n, n0))
        step = self.out_columns[-1][1] if self.out_columns else 1
        lanes = p.target.lanes(acc.itemsize)

        places = tile_offsets(self.out_rows, p.mr)
        if places is not None and all(b - a == places[1] for a, b in pairwise(places)):
            corner, stride = flat_offset(e, m0, self.out_rows), places[-1] and places[1]
            row_place = lambda i: e.add(corner, e.mul(i, stride))
        else:
            row_place = lambda i: flat_offset(e, e.add(m0, i), self.out_rows)

        def run(j: Index) -> Index:
            length = e.sub(columns, j)
            room = inner_room(e, e.add(n0, j), self.out_columns)
            if room is not None:
                length = e.minimum(length, room)
            start = flat_offset(e, e.add(n0, j), self.out_columns)

            def row(i) -> None:
                goal = e.add(start, row_place(i))
                source = e.at(self.tile, e.add(e.mul(i, p.nr), j), acc)

                def place(c) -> Place:
                    return Place(e.add(goal, e.mul(c, step)), e.add(m0, i), e.add(e.add(n0, j), c))

                def one(c) -> None:
                    value = e.load(e.at(source, c, acc), acc, acc)
                    self.put(value, out, place(c), first)

                def vector(c) -> None:
                    value = e.load(e.at(source, c, acc), acc, acc, lanes)
                    self.put(value, out, place(c), first, lanes)

                def masked(c) -> None:
                    mask = e.first_lanes(e.sub(length, c), lanes)
                    value = e.load_some(e.at(source, c, acc), mask, acc)
                    self.put_some(value, out, place(c), mask, first)

                if step == 1 and p.out.dtype == acc and e.can_mask(acc, lanes, store=True):
                    e.loop(length, masked, step=lanes)
                elif step != 1 or p.nr < lanes:
                    e.loop(length, one)
                else:
                    whole = e.mul(e.divmod(length, lanes)[0], lanes)
                    rest = e.sub(length, whole)
                    e.branch(e.compare("<=", 1, whole), lambda: e.loop(whole, vector, step=lanes))
                    e.branch(e.compare("<=", 1, rest), lambda: e.loop(rest, lambda c: one(e.add(c, whole))))

            e.loop(rows, row)
            return e.add(j, length)

        if len(self.out_columns) < 2 and isinstance(columns, int):
            run(0)
        else:
            e.loop_while(0, columns, lambda j: e.const(run(j)))

    # Inner product ----------------------------------------------------------------------------------------------

    def inner_tiles(self, out, lhs, rhs) -> None:
        e, p, acc = self.e, self.p, self.acc
        m_levels = levels_of(p.spec.m, p.lhs.strides, p.out.strides)
        n_levels = levels_of(p.spec.n, p.rhs.strides, p.out.strides)
        mr, nr = p.mr, p.nr
        rows, out_rows = (require_tile_offsets(m_levels, mr, which) for which in (1, 2))
        columns, out_columns = (require_tile_offsets(n_levels, nr, which) for which in (1, 2))

        def piece(lhs, rhs, depth, first) -> None:
            levels = [*merge_levels(depth[:-1]), depth[-1]]

            def tile(i, j) -> None:
                m0 = e.minimum(i, self.m - mr) if p.m_overlap else i
                n0 = e.minimum(j, self.n - nr) if p.n_overlap else j
                lhs_tile = e.at(lhs, flat_offset(e, m0, m_levels), acc)
                rhs_tile = e.at(rhs, flat_offset(e, n0, n_levels), acc)
                sums = emit_inner_product(e, lhs_tile, rhs_tile, levels, rows, columns, p.lanes, acc)
                corner = e.add(flat_offset(e, m0, m_levels, 2), flat_offset(e, n0, n_levels, 2))
                for x, (row, row_offset) in enumerate(zip(sums, out_rows)):
                    for y, (value, column_offset) in enumerate(zip(row, out_columns)):
                        place = Place(e.add(corner, row_offset + column_offset), e.add(m0, x), e.add(n0, y))
                        self.put(value, out, place, first)

            e.loop(self.m, lambda i: e.loop(self.n, lambda j: tile(i, j), step=nr), step=mr)

        self.pieces(lhs, rhs, piece)
