"""Direct convolution: lanes along channels, rows along a line of the image, and only the taps that exist.

    for blocks of channels (lanes):
      pack the kernel's columns of the block           [channel][tap][lane]
      for samples:
        for panels of the block:
          for lines of the output:                     (tables say which taps exist there)
            for tiles of the line:
              for channels, taps in the line's range:
                for taps along the line:               unrolled, each over the rows of the tile that it meets
                  sums[row][:] += image[row + tap] * panel[channel, tap][:]
              transpose the tile and store it along the line

The image is read where it lies, one broadcast element at a time, so padding, strides and dilation cost nothing, in the
convolution and in both gradients (``stencil.py`` shows how one description covers the three).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from llvmlite import ir

from fgrad.codegen.blocking import Direct, Place, Plan
from fgrad.codegen.contraction import Dim
from fgrad.codegen.irtools import I64, Emitter, Index, opaque
from fgrad.codegen.microkernel import emit_turn, vector_lanes
from fgrad.codegen.packing import emit_pack, flat_offset, levels_of, merge_levels
from fgrad.codegen.stencil import Run, Spatial, Strip, strips

_UNROLL = 8  # a run of more taps than this is a loop


class Writer(Protocol):
    """What this path uses of the writer in ``gemm.py``."""

    e: Emitter
    p: Plan
    m: int
    acc: np.dtype
    tile: Any
    areas: dict[str, Any]
    out_rows: list[tuple]

    def put(self, value, out, place: Place, first, width: int = 0) -> None: ...


def emit_direct(w: Writer, out, lhs, rhs) -> None:
    """Write one step of the batch of a plan whose path is "direct"."""
    p = w.p
    assert p.direct is not None
    DirectWriter(w, p, p.direct).write(out, lhs, rhs)


class DirectWriter:
    """The loops of a direct convolution; ``plane.py`` has other tiles in them."""

    def __init__(self, w: Writer, p: Plan, direct: Direct) -> None:
        self.w, self.e, self.p, self.d, self.acc = w, w.e, p, direct, p.acc
        stencil = self.s = direct.stencil
        self.lanes = [vector_lanes(width, p.lanes) for width in p.widths]
        self.panel_steps, step = {}, p.nr
        for dim in reversed(p.spec.k):
            self.panel_steps[dim.name] = step
            step *= dim.extent if dim is not p.spec.k[0] else 1
        self.panel_dtype = self.acc
        self.flat, step = {}, 1  # steps of the flat index over n
        for dim in reversed(p.spec.n):
            self.flat[dim.name] = step
            step *= dim.extent
        self.tables = [_Table(self, axis) for axis in stencil.outer]

    def write(self, out, lhs, rhs) -> None:
        """For pieces of k and blocks of lanes: pack, then everything that reads the pack."""
        e, p = self.e, self.p
        first_dim, *rest = p.spec.k
        rows = levels_of(p.spec.m, p.lhs.strides)
        inner = [(d.extent, p.lhs.strides.get(d.name, 0)) for d in rest]

        self.out = out

        def block(j: Index, steps: Index, lhs, rhs, first) -> None:
            count = p.nc if self.w.m % p.nc == 0 else e.minimum(p.nc, e.sub(self.w.m, j))
            depth = merge_levels([(steps, p.lhs.strides.get(first_dim.name, 0)), *inner])
            panel, types = self.w.areas["lhs_panel"], (p.lhs.dtype, self.acc)
            emit_pack(e, lhs, panel, rows, depth, j, count, p.nr, p.nr, types)
            self.samples(list(self.s.loops), Place(0, j, 0), rhs, count, steps, first)

        def piece(i) -> None:
            chunk, extent = p.k_chunk, first_dim.extent
            steps = chunk if extent % chunk == 0 else e.minimum(chunk, e.sub(extent, i))
            here = e.at(lhs, e.mul(i, p.lhs.strides.get(first_dim.name, 0)), p.lhs.dtype)
            image = e.at(rhs, e.mul(i, self.s.view.strides.get(first_dim.name, 0)), p.rhs.dtype)
            first = e.compare("==", i, 0) if chunk < extent else True
            e.loop(self.w.m, lambda j: block(j, steps, here, image, first), step=p.nc)

        e.loop(first_dim.extent, piece, step=p.k_chunk)

    def moved(self, place: Place, dim: Dim, i: Index) -> Place:
        """A place of the output, ``i`` steps of a dimension of n further on."""
        e = self.e
        offset = e.add(place.offset, e.mul(i, self.p.out.strides.get(dim.name, 0)))
        return Place(offset, place.m, e.add(place.n, e.mul(i, self.flat[dim.name])))

    def samples(self, loops, goal: Place, rhs, count: Index, steps: Index, first) -> None:
        """The loops that move the image as a whole; the innermost takes as many at once as the tile has rows for."""
        e, p = self.e, self.p
        if not loops:
            self.panels(goal, rhs, count, steps, first)
            return
        dim, *rest = loops

        def body(i) -> None:
            image = e.at(rhs, e.mul(i, self.s.view.strides.get(dim.name, 0)), p.rhs.dtype)
            self.samples(rest, self.moved(goal, dim, i), image, count, steps, first)

        e.loop(dim.extent, body, step=1 if rest else self.d.together)

    def panels(self, goal: Place, rhs, count: Index, steps: Index, first) -> None:
        """The panels of a block, one after the other."""
        e, p = self.e, self.p

        def panel(i) -> None:
            size = e.mul(i, math.prod(d.extent for d in p.spec.k[1:]))
            m0 = e.add(goal.m, i)
            here = Place(e.add(goal.offset, flat_offset(e, m0, self.w.out_rows)), m0, goal.n)
            self.lines(here, rhs, e.at(self.w.areas["lhs_panel"], e.mul(size, steps), self.acc), steps, first)

        e.loop(count, panel, step=p.nr)

    def lines(self, goal: Place, rhs, panel, steps: Index, first) -> None:
        """Every line of one panel's output."""
        e, p = self.e, self.p

        def line(axes: list[_Table], goal: Place, rhs, panel, counts: dict[str, Index]) -> None:
            if axes:
                table, *rest = axes

                def step(i) -> None:
                    count, tap, element = table.at(i)
                    here = e.at(panel, e.mul(tap, self.panel_steps[table.axis.tap.name]), self.panel_dtype)
                    image = e.at(rhs, element, p.rhs.dtype)
                    moved = self.moved(goal, table.axis.place, i)
                    line(rest, moved, image, here, {**counts, table.axis.tap.name: count})

                e.loop(table.axis.place.extent, step)
                return
            some: bool | ir.Value = True
            for table in self.tables:
                if table.least == 0:
                    some = e.both(some, e.compare("<=", 1, counts[table.axis.tap.name]))
            for strip in strips(self.s.inner, self.d.parts):

                def tile(i, strip=strip) -> None:
                    here = self.moved(goal, self.s.inner.place, e.add(strip.first, e.mul(i, strip.size)))
                    image = e.at(rhs, e.add(strip.base, e.mul(i, strip.step)), p.rhs.dtype)

                    def compute() -> None:
                        self.store(strip, self.sums(strip, image, panel, counts, steps), here, first)

                    e.branch(some if strip.runs else False, compute, lambda: self.zeros(strip, here, first))

                e.loop(strip.count, tile)

        line(self.tables, goal, rhs, panel, {})

    # The tile ---------------------------------------------------------------------------------------------------

    def sums(self, strip: Strip, image, panel, counts: dict[str, Index], steps: Index) -> list[ir.Value]:
        """Accumulators of a tile, ``[row][column]``; rows are samples times places."""
        e, p = self.e, self.p
        levels: list[tuple[Index, int, int]] = []
        outer = {table.axis.tap.name: table.axis for table in self.tables}
        for dim in p.spec.k[:-1]:
            panel_step, image_step = self.panel_steps[dim.name], self.s.view.strides.get(dim.name, 0)
            extent: Index = dim.extent if dim is not p.spec.k[0] else steps
            if dim.name in outer:
                axis = outer[dim.name]
                extent, image_step = counts[dim.name], axis.element_step
                panel_step *= axis.tap_step
            if extent != 1:
                levels.append((extent, image_step, panel_step))

        def nest(levels, image, panel, sums):
            if not levels:
                for run in strip.runs:
                    sums = self.run(run, image, panel, sums)
                return sums
            extent, image_step, panel_step = levels[0]

            def body(_, image_here, panel_here, *sums_here):
                result = nest(levels[1:], image_here, panel_here, list(sums_here))
                return [
                    e.at(image_here, image_step, p.rhs.dtype),
                    e.at(panel_here, panel_step, self.panel_dtype),
                    *result,
                ]

            return e.loop(extent, body, [image, panel, *sums])[2:]

        return nest(levels, image, panel, self.start(strip))

    def start(self, strip: Strip) -> list[ir.Value]:
        return [self.e.zero(self.acc, n) for _ in range(self.d.together * strip.size) for n in self.lanes]

    def run(self, run: Run, image, panel, sums: list[ir.Value]) -> list[ir.Value]:
        e, p = self.e, self.p
        tap_step = self.panel_steps[p.spec.k[-1].name]
        panel = e.at(panel, run.first * tap_step, self.panel_dtype)
        if run.count <= _UNROLL:
            for tap in range(run.count):
                here = e.at(panel, tap * tap_step, self.panel_dtype)
                sums = self.multiply(run, run.step * tap, image, here, sums)
            return sums

        def body(_, image_here, panel_here, *sums_here):
            result = self.multiply(run, 0, image_here, panel_here, list(sums_here))
            moved = e.at(image_here, run.step, p.rhs.dtype), e.at(panel_here, tap_step, self.panel_dtype)
            return [*moved, *result]

        return e.loop(run.count, body, [image, panel, *sums])[2:]

    def multiply(self, run: Run, moved: int, image, panel, sums: list[ir.Value]) -> list[ir.Value]:
        """One tap: a vector for each column, and for each row that the tap meets one element, broadcast."""
        e, p, result = self.e, self.p, list(sums)
        # Taps share elements; LLVM would keep all of them in registers, and spill the sums.
        image = e.opaque_pointer(image)
        columns = [
            e.load(e.at(panel, start, self.acc), self.acc, self.acc, count)
            for start, count in zip(p.starts, self.lanes)
        ]
        size = len(sums) // (len(columns) * self.d.together)
        for sample in range(self.d.together):
            for row, offset in run.rows:
                place = offset + moved + sample * self.sample_step
                scalar = e.load(e.at(image, place, p.rhs.dtype), p.rhs.dtype, self.acc)
                spread = {count: e.splat(scalar, count) for count in sorted(set(self.lanes))}
                for c, (column, count) in enumerate(zip(columns, self.lanes)):
                    at = (sample * size + row) * len(columns) + c
                    result[at] = e.multiply_add(spread[count], column, result[at])
        return result

    @property
    def sample_step(self) -> int:
        return self.s.view.strides.get(self.s.loops[-1].name, 0) if self.s.loops else 0

    # Stores -----------------------------------------------------------------------------------------------------

    def place(self, goal: Place, lane: Index, sample: Index, row: int) -> Place:
        """Where a line of the tile goes: ``lane`` of its panel, ``sample`` of those together, from ``row`` on."""
        e = self.e
        step = self.w.out_rows[-1][1] if self.w.out_rows else 0
        there = Place(e.add(goal.offset, e.mul(lane, step)), e.add(goal.m, lane), goal.n)
        there = self.moved(there, self.s.loops[-1], sample) if self.s.loops else there
        return self.moved(there, self.s.inner.place, row)

    def store(self, strip: Strip, sums: Sequence[ir.Value], goal: Place, first) -> None:
        """The tile goes through the stack, and square blocks of it are transposed, so that stores run along the line."""
        e, p, acc = self.e, self.p, self.acc
        for i, value in enumerate(sums):
            row, column = divmod(i, len(p.widths))
            e.store(value, e.at(self.w.tile, row * p.nr + p.starts[column], acc), acc, acc)
        turned = e.at(self.w.tile, (p.mr + p.lanes) * p.nr, acc)

        def columns(start: Index, width: int, lanes: int) -> None:
            source = e.at(self.w.tile, start, acc)
            height = self.d.together * strip.size
            pitch = -(-height // lanes) * lanes
            for row in range(0, height, lanes):
                emit_turn(e, e.at(source, row * p.nr, acc), p.nr, e.at(turned, row, acc), pitch, lanes, acc)

            def one(i, sample) -> None:
                here = e.at(turned, e.add(e.mul(i, pitch), e.mul(sample, strip.size)), acc)
                for row in range(0, strip.size, lanes):
                    value = e.load(e.at(here, row, acc), acc, acc, lanes)
                    there = self.place(goal, e.add(start, i), sample, row)
                    self.w.put(value, self.out, there, first, min(lanes, strip.size - row))

            e.loop(width, lambda i: e.loop(self.d.together, lambda sample: one(i, sample)))

        whole = sum(width == p.lanes for width in p.widths)
        e.loop(whole, lambda c: columns(e.mul(c, p.lanes), p.lanes, p.lanes))
        if whole < len(p.widths):
            columns(whole * p.lanes, p.widths[-1], self.lanes[-1])

    def zeros(self, strip: Strip, goal: Place, first) -> None:
        """A tile that no tap meets."""
        e, p = self.e, self.p
        if first is not True:
            return e.branch(first, lambda: self.zeros(strip, goal, True))

        def one(i) -> None:
            for sample in range(self.d.together):
                for row in range(0, strip.size, p.lanes):
                    width = min(p.lanes, strip.size - row)
                    there = self.place(goal, i, sample, row)
                    self.w.put(e.zero(self.acc, p.lanes), self.out, there, True, width)

        e.loop(p.nr, one)
        return None


class _Table:
    """The taps of an outer axis at every place: constants in the code, or in memory, or a multiple of the place."""

    def __init__(self, writer: DirectWriter, axis: Spatial) -> None:
        self.e, self.axis = writer.e, axis
        rows = axis.table()
        self.least = min(count for count, *_ in rows)
        self.columns: list[Callable[[Index], Index]] = [self._column(list(c)) for c in zip(*rows)]

    def at(self, place: Index) -> tuple[Index, Index, Index]:
        """Number of taps, first tap, and memory offset of its element."""
        count, tap, element = (column(place) for column in self.columns)
        return count, tap, element

    def _column(self, values: list[int]) -> Callable[[Index], Index]:
        e = self.e
        step = values[1] - values[0] if len(values) > 1 else 0
        if all(value == values[0] + i * step for i, value in enumerate(values)):
            return lambda place: e.add(values[0], e.mul(place, step))
        module = e.module
        kind = ir.ArrayType(I64, len(values))
        table = ir.GlobalVariable(module, kind, module.get_unique_name(f"{e.builder.function.name}.taps"))
        table.linkage, table.global_constant = "internal", True
        table.initializer = ir.Constant(kind, values)

        def look(place: Index) -> Index:
            if isinstance(place, int):
                return values[place]
            return e.builder.load(
                e.builder.gep(opaque(e.builder, table), [place], source_etype=I64), typ=I64, align=8
            )

        return look
