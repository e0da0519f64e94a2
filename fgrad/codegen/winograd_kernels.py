"""The inner parts of a Winograd convolution as functions of their own, shared by all convolutions of a module.

Strides and counts are run-time arguments, so a network of twenty convolutions compiles each of these once and every
convolution only adds the loops that call them (``winograd_emit``). Each does hundreds of vector operations a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir

from fgrad.codegen.irtools import Emitter, Index
from fgrad.codegen.microkernel import emit_outer_product
from fgrad.codegen.packing import transpose
from fgrad.codegen.winograd_matrices import TAPS, Matrix, Transforms, emit_tile

_FLOAT = np.dtype(np.float32)
_GROUP = 4


class Kernels:
    """Calls of the shared functions, each written at its first use. Offsets and strides are in elements."""

    def __init__(self, e: Emitter, transforms: Transforms) -> None:
        self.e, self.t, self.lanes = e, transforms, e.target.lanes(_FLOAT.itemsize)

    def _call(self, name: str, body: Callable, *arguments: ir.Value | int) -> None:
        """Call the function ``name``, whose code ``body(kernels, *arguments)`` writes."""
        name = f"winograd.{name}"
        values = [self.e.const(a) if isinstance(a, int) else a for a in arguments]
        function = self.e.module.globals.get(name)
        if function is None:
            types = ir.FunctionType(ir.VoidType(), [v.type for v in values])
            function = ir.Function(self.e.module, types, name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            function.attributes.add("nounwind")
            for argument in function.args:
                if isinstance(argument.type, ir.PointerType):
                    argument.add_attribute("noalias")
            builder = ir.IRBuilder(function.append_basic_block("entry"))
            body(Kernels(Emitter(builder, self.e.target), self.t), *function.args)
            builder.ret_void()
        self.e.builder.call(function, values)

    # Small helpers ----------------------------------------------------------------------------------------------

    def at(self, pointer: ir.Value, offset: Index) -> ir.Value:
        return self.e.at(pointer, offset, _FLOAT)

    def load(self, pointer: ir.Value, offset: Index = 0) -> ir.Value:
        return self.e.load(self.at(pointer, offset), _FLOAT, _FLOAT, self.lanes)

    def store(self, value: ir.Value, pointer: ir.Value, offset: Index = 0) -> None:
        self.e.store(value, self.at(pointer, offset), _FLOAT, _FLOAT)

    def lines(self, pointer: ir.Value, stride: Index, last: Index | None) -> list[ir.Value]:
        """Pointers to ``lanes`` channels; those beyond number ``last`` are that one's once more."""
        e = self.e
        numbers = [i if last is None else e.minimum(i, last) for i in range(self.lanes)]
        return [self.at(pointer, e.mul(i, stride)) for i in numbers]

    def columns_of(self, pointers: Sequence[ir.Value], width: int) -> list[ir.Value]:
        """``width`` vectors across the channels, from one pointer for each channel."""
        result: list[ir.Value] = []
        for start in range(0, width, self.lanes):
            part = min(self.lanes, width - start)
            rows = [self.e.load_first(self.at(q, start), part, self.lanes, _FLOAT) for q in pointers]
            result += transpose(self.e, rows)[:part]
        return result

    def put_columns(self, vectors: Sequence[ir.Value], pointers: Sequence[ir.Value]) -> None:
        """The opposite: lane i of every vector goes to pointer i, side by side."""
        e, lanes = self.e, self.lanes
        for start in range(0, len(vectors), lanes):
            some = list(vectors[start : start + lanes])
            width = len(some)
            some += [ir.Constant(some[0].type, ir.Undefined)] * (lanes - width)
            for row, pointer in zip(transpose(e, some), pointers, strict=True):
                goal = self.at(pointer, start)
                if width < lanes and e.can_mask(_FLOAT, lanes, store=True):
                    e.store_some(row, goal, e.first_lanes(width, lanes), _FLOAT)
                else:
                    e.store(e.first_of(row, width), goal, _FLOAT, _FLOAT)

    # Images -----------------------------------------------------------------------------------------------------

    def move(
        self,
        image: ir.Value,
        stage: ir.Value,
        stride: Index,
        last: Index | None,
        width: int,
        row: tuple[int, int],
        out: bool,
    ) -> None:
        """Move ``width`` neighbours of a block of channels, ``stride`` apart, between the image and a buffer in which the
        channels of a place lie together. ``row`` is the length of a row in the image and in the buffer."""
        run, pitch = min(row[0], width), row[1]
        # Groups of four lie together for most lengths of rows, which then share a function that is told where groups start.
        group = _GROUP if run % _GROUP == 0 and width == self.lanes else run
        starts = [self.e.mul(i // run * pitch + i % run, self.lanes) for i in range(group, width, group)]

        def body(k: Kernels, image, stage, stride, *rest) -> None:
            goals = [stage, *(k.at(stage, start) for start in rest[: len(starts)])]
            lines = k.lines(image, stride, None if last is None else rest[-1])
            places = [(goals[i // group], i % group * k.lanes) for i in range(width)]
            if out:
                k.put_columns([k.load(*place) for place in places], lines)
            else:
                for place, value in zip(places, k.columns_of(lines, width), strict=True):
                    k.store(value, *place)

        shape = f"{width}" + ("" if group in (_GROUP, width) else f".{group}")
        name = f"{'scatter' if out else 'gather'}.{shape}" + ("" if last is None else ".some")
        self._call(name, body, image, stage, stride, *starts, *(() if last is None else (last,)))

    def transform(
        self,
        what: str,
        source: ir.Value,
        width: Index,
        goal: ir.Value,
        pitch: Index,
        place: Index,
        count: int,
    ) -> None:
        """``count`` neighbouring tiles of a buffer with rows of ``width`` vectors to their places: ``bt`` for inputs, ``a`` for
        cotangents."""
        matrix: Matrix = getattr(self.t, what)
        side = len(matrix[0])

        def body(k: Kernels, source, width, goal, pitch, place, count) -> None:
            e, lanes = k.e, k.lanes
            rows = [e.mul(width, a * lanes) for a in range(side)]
            places = _multiples(e, place)

            def tile(_, source, goal):
                starts = [k.at(source, row) for row in rows]
                values = [[k.load(start, b * lanes) for b in range(side)] for start in starts]
                result = emit_tile(e, matrix, values, k.t.pairs)
                for i, value in enumerate(v for line in result for v in line):
                    k.store(value, goal, places(i))
                return [k.at(source, k.t.m * lanes), k.at(goal, pitch)]

            e.loop(count, tile, [source, goal])

        self._call(f"{what}.{self.t.m}", body, source, width, goal, pitch, place, count)

    def outputs(
        self, source: ir.Value, pitch: Index, place: Index, goal: ir.Value, width: Index, count: int
    ) -> None:
        """The products of ``count`` neighbouring tiles back to outputs, in a buffer with rows of ``width`` vectors."""

        def body(k: Kernels, source, pitch, place, goal, width, count) -> None:
            e, lanes, m = k.e, k.lanes, k.t.m
            places = _multiples(e, place)
            rows = [e.mul(width, a * lanes) for a in range(m)]

            def tile(_, source, goal):
                result = emit_tile(e, k.t.at, k.load_places(source, places), (), k.t.pairs)
                for row, line in zip(rows, result, strict=True):
                    start = k.at(goal, row)
                    for b, value in enumerate(line):
                        k.store(value, start, b * lanes)
                return [k.at(source, pitch), k.at(goal, m * lanes)]

            e.loop(count, tile, [source, goal])

        self._call(f"at.{self.t.m}", body, source, pitch, place, goal, width, count)

    def load_places(self, pointer: ir.Value, places: Callable[[int], Index]) -> list[list[ir.Value]]:
        n = self.t.size
        return [[self.load(pointer, places(a * n + b)) for b in range(n)] for a in range(n)]

    # The kernel -------------------------------------------------------------------------------------------------

    def kernel(
        self,
        source: ir.Value,
        strides: tuple[Index, Index],
        last: Index | None,
        goal: ir.Value,
        steps: tuple[Index, Index],
        count: int,
        flips: tuple[bool, bool],
    ) -> None:
        """The kernels of a vector of outputs and ``count`` channels to their places; strides of outputs and channels in the
        source, steps of channels and places in the goal."""

        def body(k: Kernels, source, per_output, per_channel, goal, step, place, count, last=None) -> None:
            e = k.e
            places = _multiples(e, place)
            lines = [e.mul(i if last is None else e.minimum(i, last), per_output) for i in range(k.lanes)]

            def channel(_, source, goal):
                taps = k.columns_of([k.at(source, line) for line in lines], TAPS * TAPS)
                tile = [taps[i : i + TAPS] for i in range(0, TAPS * TAPS, TAPS)]
                tile = tile[::-1] if flips[0] else tile
                tile = [line[::-1] for line in tile] if flips[1] else tile
                result = emit_tile(e, k.t.g, tile, k.t.pairs)
                for i, value in enumerate(v for line in result for v in line):
                    k.store(value, goal, places(i))
                return [k.at(source, per_channel), k.at(goal, step)]

            e.loop(count, channel, [source, goal])

        name = (
            f"g.{self.t.m}" + "".join(".flip" if f else "" for f in flips) + ("" if last is None else ".some")
        )
        extra = () if last is None else (last,)
        self._call(name, body, source, *strides, goal, *steps, count, *extra)

    def taps(self, source: ir.Value, place: Index, goal: ir.Value, stride: Index, last: Index | None) -> None:
        """The sums for a vector of channels back to the gradient of their taps."""

        def body(k: Kernels, source, place, goal, stride, last=None) -> None:
            places = _multiples(k.e, place)
            result = emit_tile(k.e, k.t.gt, k.load_places(source, places), (), k.t.pairs)
            k.put_columns([v for line in result for v in line], k.lines(goal, stride, last))

        name = f"gt.{self.t.m}" + ("" if last is None else ".some")
        self._call(name, body, source, place, goal, stride, *(() if last is None else (last,)))

    # Products ---------------------------------------------------------------------------------------------------

    def multiply(
        self,
        tile: tuple[int, int],
        left: ir.Value,
        right: ir.Value,
        goal: ir.Value,
        depth: int,
        pitches: tuple[Index, Index],
        *,
        transposed: tuple[Index] | None = None,
        first: ir.Value | bool = True,
    ) -> None:
        """One register tile of ``goal = left @ right``: ``tile`` rows and vectors.

        ``right`` is packed, and the pitches are those of the rows of ``left`` and ``goal``. If ``transposed``, the rows of
        ``left`` and ``right`` are steps of the sum, the pitches are those of ``left`` and ``goal`` and that of ``right``, and the
        product is added to ``goal`` unless this is the ``first``.
        """
        rows, columns = tile

        def body(
            k: Kernels, left, right, goal, depth, left_pitch, pitch, right_pitch=None, first=None
        ) -> None:
            e = k.e
            starts = [i * k.lanes for i in range(columns)]
            if right_pitch is None:
                offsets, level = [e.mul(left_pitch, i) for i in range(rows)], (depth, 1, columns * k.lanes)
            else:
                offsets, level = list(range(rows)), (depth, left_pitch, right_pitch)
            sums = emit_outer_product(e, left, right, [level], offsets, [k.lanes] * columns, starts, _FLOAT)
            for i, row in enumerate(sums):
                line = k.at(goal, e.mul(pitch, i))
                for value, start in zip(row, starts, strict=True):
                    if first is not None:
                        value = e.builder.select(first, value, e.builder.fadd(value, k.load(line, start)))
                    k.store(value, line, start)

        name = f"multiply.{rows}x{columns}"
        extra: list = []
        if transposed is not None:
            name, extra = name + ".transposed", [*transposed]
            if not isinstance(first, bool):
                name, extra = name + ".add", [*extra, first]
        self._call(name, body, left, right, goal, depth, *pitches, *extra)


def _multiples(e: Emitter, step: Index) -> Callable[[int], Index]:
    """``i * step``, computed where it is used."""
    return lambda i: e.mul(step, i)
