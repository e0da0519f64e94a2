"""Writing a planned Winograd convolution as LLVM IR: the loops; ``winograd`` says what is computed in which order."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from fgrad.codegen.irtools import Emitter, Index
from fgrad.codegen.packing import emit_fill_zero
from fgrad.codegen.winograd import Image, WinogradPlan
from fgrad.codegen.winograd_kernels import Kernels
from fgrad.codegen.winograd_matrices import TAPS, transforms

_HALO = TAPS - 1


def emit_winograd(e: Emitter, plan: WinogradPlan, out, lhs, rhs, workspace) -> None:
    """Write the body of ``gemm.emit``'s function for a Winograd plan."""
    _Writer(e, plan, workspace).write(out, lhs, rhs)


class _Writer:
    def __init__(self, e: Emitter, plan: WinogradPlan, workspace) -> None:
        self.e, self.p, self.s, self.dtype, self.lanes = e, plan, plan.shape, plan.acc, plan.lanes
        self.kernels = Kernels(e, transforms(plan.m))
        self.areas = {
            name: e.builder.gep(workspace, [e.const(offset)], source_etype=ir.IntType(8))
            for name, offset in plan.workspace.items()
        }

    def write(self, out, lhs, rhs) -> None:
        e, p, s = self.e, self.p, self.s
        y, kernel = (lhs, out) if s.weight_grad else (out, lhs)
        self.x_pointer, self.y_pointer = self.at(rhs, s.x.offset), self.at(y, s.y.offset)
        self.kernel_pointer = self.at(kernel, s.kernel[0])
        # The border of a buffer stays zero; its inside is written again for every sample.
        emit_fill_zero(e, self.volume(_HALO), self.areas["x_stage"], self.dtype)
        if s.weight_grad:
            emit_fill_zero(e, self.volume(0), self.areas["y_stage"], self.dtype)
        if p.kernel_once:
            self.transform_kernel(0, s.outputs)
        bands = p.tiles[0] // p.band

        def block(i) -> None:
            group, band = e.divmod(i, bands)
            self.block(e.mul(group, p.samples), band, e.compare("==", i, 0), e.compare("==", i, p.blocks - 1))

        e.loop(p.blocks, block)

    def at(self, pointer, offset: Index):
        return self.e.at(pointer, offset, self.dtype)

    def volume(self, halo: int) -> int:
        rows, columns = self.p.stage(halo)
        return rows * columns * self.lanes

    def last(self, first: Index, extent: int) -> Index | None:
        """The number, counted from ``first``, of the last channel that exists, where a vector may reach beyond it."""
        return None if extent % self.lanes == 0 else self.e.sub(extent - 1, first)

    # Between images and buffers [row][column][channel] ------------------------------------------------------------

    def move(
        self, image: Image, halo: int, last: Index | None, pointer, stage, band: Index, out: bool
    ) -> None:
        """Move a block of channels of one band between the image and its buffer, what exists of it."""
        e, p, lanes = self.e, self.p, self.lanes
        rows, pitch = p.stage(halo)
        left = max(0, image.low[1] - image.start[1])
        run = min(pitch, image.high[1] - image.start[1]) - left
        first = max(0, image.low[0] - image.start[0])
        count = min(rows, image.high[0] - image.start[0]) - first
        if run <= 0:
            return
        pointer = self.at(pointer, image.start[1] + left)

        def chunk(offset: Index, corner: Index, width: int) -> None:
            here, goal = self.at(pointer, offset), self.at(stage, e.mul(corner, lanes))
            self.kernels.move(here, goal, image.channel, last, width, (run, pitch), out)

        def row(position: Index, r: Index) -> None:
            offset, corner = e.mul(position, image.row), e.add(e.mul(r, pitch), left)

            def part(i) -> None:
                i = e.minimum(i, run - lanes) if run % lanes else i  # the last part overlaps the one before
                chunk(e.add(offset, i), e.add(corner, i), lanes)

            if run < lanes:
                chunk(offset, corner, run)
            else:
                e.loop(run, part, step=lanes)

        if p.band < p.tiles[0]:
            begin = e.add(e.mul(band, p.band * p.m), image.start[0])

            def checked(r) -> None:
                position = e.add(begin, r)
                low, high = (
                    e.compare(">=", position, image.low[0]),
                    e.compare("<", position, image.high[0]),
                )
                line = self.at(stage, e.mul(e.add(e.mul(r, pitch), left), lanes))
                clear = None if out else lambda: emit_fill_zero(e, run * lanes, line, self.dtype)
                e.branch(e.both(low, high), lambda: row(position, r), clear)

            e.loop(rows, checked)
        elif run < lanes and lanes % run == 0 and image.row == run and count * run % lanes == 0:
            # Rows are short and follow one another: a vector takes several.
            start, per = (image.start[0] + first) * run, lanes // run

            def several(i) -> None:
                corner = e.add(e.mul(i, per * pitch), first * pitch + left)
                chunk(e.add(e.mul(i, lanes), start), corner, lanes)

            e.loop(count * run // lanes, several)
        else:
            e.loop(count, lambda r: row(e.add(r, image.start[0] + first), e.add(r, first)))

    def tile_rows(self, pitch: int, width: int, body: Callable) -> None:
        """``body(offset of the first tile, offset in the buffer)`` for the rows of tiles of a band."""
        e, p = self.e, self.p
        step = p.m * width * self.lanes
        e.loop(p.band, lambda ty: body(e.mul(ty, p.tiles[1] * pitch), e.mul(ty, step)))

    # Transforms -------------------------------------------------------------------------------------------------

    def transform_image(self, which: str, group: Index, band: Index) -> None:
        """x, or the cotangent, of a block of tiles to its places."""
        e, p, s = self.e, self.p, self.s
        if which == "x":
            image, halo, channels, pitch, place, matrix = s.x, _HALO, s.channels, p.x_pitch, p.x_place, "bt"
        else:
            image, halo, channels, pitch, place, matrix = s.y, 0, s.outputs, p.y_pitch, p.y_place, "a"
        pointer = self.x_pointer if which == "x" else self.y_pointer
        stage, goal = self.areas[f"{which}_stage"], self.areas[which]
        width = p.stage(halo)[1]

        def sample(i) -> None:
            source = self.at(pointer, e.mul(e.add(group, i), image.sample))
            begin = self.at(goal, e.mul(i, p.band * p.tiles[1] * pitch))

            def channel(c) -> None:
                here = self.at(source, e.mul(c, image.channel))
                self.move(image, halo, self.last(c, channels), here, stage, band, False)

                def row(tile: Index, corner: Index) -> None:
                    goal_here = self.at(begin, e.add(tile, c))
                    source_here = self.at(stage, corner)
                    self.kernels.transform(matrix, source_here, width, goal_here, pitch, place, p.tiles[1])

                self.tile_rows(pitch, width, row)

            e.loop(channels, channel, step=self.lanes)

        e.loop(p.samples, sample)

    def transform_kernel(self, first: Index, outputs: int) -> None:
        """The kernels of ``outputs`` outputs from ``first`` on."""
        e, p, s = self.e, self.p, self.s
        _, per_output, per_channel = s.kernel

        def vector(n) -> None:
            o = e.add(first, n)
            number, within = e.divmod(n, p.nr)
            goal = self.at(self.areas["kernel"], e.add(e.mul(number, s.channels * p.nr), within))
            source = self.at(self.kernel_pointer, e.mul(o, per_output))
            strides, steps = (per_output, per_channel), (p.nr, p.kernel_place)
            self.kernels.kernel(source, strides, self.last(o, s.outputs), goal, steps, s.channels, s.flips)

        e.loop(outputs, vector, step=self.lanes)

    # Blocks -----------------------------------------------------------------------------------------------------

    def block(self, group: Index, band: Index, first, last) -> None:
        self.transform_image("x", group, band)
        if self.s.weight_grad:
            self.transform_image("y", group, band)
            self.sums(first, last)
        else:
            self.outputs(group, band)

    def outputs(self, group: Index, band: Index) -> None:
        e, p, s = self.e, self.p, self.s

        def some(o) -> None:
            kernel = self.areas["kernel"]
            if p.kernel_once:
                kernel = self.at(kernel, e.mul(o, s.channels))
            else:
                self.transform_kernel(o, p.outputs)
            e.loop(p.places, lambda place: self.products(place, kernel))
            e.loop(p.samples, lambda i: self.finish(group, i, band, o))

        e.loop(s.outputs, some, step=p.outputs)

    def products(self, place: Index, kernel) -> None:
        """M[place] = V[place] @ U[place]."""
        e, p, s = self.e, self.p, self.s
        kernel = self.at(kernel, e.mul(place, p.kernel_place))
        rows = self.at(self.areas["x"], e.mul(place, p.x_place))
        goal = self.at(self.areas["y"], e.mul(place, p.y_place))

        def panel(n) -> None:
            right = self.at(kernel, e.mul(n, s.channels))

            def tile(t) -> None:
                t = e.minimum(t, p.block_tiles - p.mr) if p.block_tiles % p.mr else t
                left, corner = (
                    self.at(rows, e.mul(t, p.x_pitch)),
                    self.at(goal, e.add(e.mul(t, p.y_pitch), n)),
                )
                pitches = (p.x_pitch, p.y_pitch)
                self.kernels.multiply((p.mr, p.columns), left, right, corner, s.channels, pitches)

            e.loop(p.block_tiles, tile, step=p.mr)

        e.loop(p.outputs, panel, step=p.nr)

    def finish(self, group: Index, i: Index, band: Index, o: Index) -> None:
        """Products of one sample back to outputs."""
        e, p, s = self.e, self.p, self.s
        stage, width = self.areas["y_stage"], p.stage(0)[1]
        source = self.at(self.areas["y"], e.mul(i, p.band * p.tiles[1] * p.y_pitch))
        image = self.at(self.y_pointer, e.mul(e.add(group, i), s.y.sample))

        def vector(n) -> None:
            def row(tile: Index, corner: Index) -> None:
                where = self.at(source, e.add(tile, n))
                goal = self.at(stage, corner)
                self.kernels.outputs(where, p.y_pitch, p.y_place, goal, width, p.tiles[1])

            self.tile_rows(p.y_pitch, width, row)
            o_here = e.add(o, n)
            here = self.at(image, e.mul(o_here, s.y.channel))
            self.move(s.y, 0, self.last(o_here, s.outputs), here, stage, band, True)

        e.loop(p.outputs, vector, step=self.lanes)

    # The gradient of the kernel -----------------------------------------------------------------------------------

    def sums(self, first, last) -> None:
        e, p, s = self.e, self.p, self.s

        def some(o) -> None:
            sums = self.areas["kernel"]
            if p.blocks > 1:  # then the sums of all outputs are kept, and added to
                sums = self.at(sums, e.mul(o, p.sums_pitch))
            e.loop(p.places, lambda place: self.add_products(place, o, sums, first))
            e.branch(last, lambda: self.finish_kernel(o, sums))

        e.loop(s.outputs, some, step=p.outputs)

    def add_products(self, place: Index, o: Index, sums, first) -> None:
        """sums[place] += G[place].T @ V[place]."""
        e, p, s = self.e, self.p, self.s
        right = self.at(self.areas["x"], e.mul(place, p.x_place))
        left = self.at(self.areas["y"], e.add(e.mul(place, p.y_place), o))
        goal = self.at(sums, e.mul(place, p.kernel_place))

        def panel(c) -> None:
            def rows(r) -> None:
                corner = self.at(goal, e.add(e.mul(r, p.sums_pitch), c))
                self.kernels.multiply(
                    (p.mr, p.columns),
                    self.at(left, r),
                    self.at(right, c),
                    corner,
                    p.block_tiles,
                    (p.y_pitch, p.sums_pitch),
                    transposed=(p.x_pitch,),
                    first=first,
                )

            e.loop(p.outputs, rows, step=p.mr)

        e.loop(s.channels, panel, step=p.nr)

    def finish_kernel(self, o: Index, sums) -> None:
        e, p, s = self.e, self.p, self.s
        _, per_output, per_channel = s.kernel

        def output(r) -> None:
            goal = self.at(self.kernel_pointer, e.mul(e.add(o, r), per_output))

            def vector(c) -> None:
                where = self.at(sums, e.add(e.mul(r, p.sums_pitch), c))
                here = self.at(goal, e.mul(c, per_channel))
                self.kernels.taps(where, p.kernel_place, here, per_channel, self.last(c, s.channels))

            e.loop(s.channels, vector, step=self.lanes)

        e.loop(p.outputs, output)
