"""Convolution with few channels a group, down to one (depthwise): lanes along a line of the image.

    for samples, lines of the output:               (tables say which taps exist there)
      for vectors of the line:
        for channels, taps in the line's range:
          for taps along the line:                  unrolled
            v = elements that the tap meets          a load; every other element of two; or neighbours spread out
            sums[row][:] += kernel[row, channel, tap] * v
        store the vectors

Lanes that a tap does not meet are zeros of a masked load, so nothing is copied or padded. Loops and tables are those of
``direct.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from fgrad.codegen.blocking import Direct, Place, Plan
from fgrad.codegen.direct import DirectWriter, Writer
from fgrad.codegen.irtools import I32, Index
from fgrad.codegen.stencil import Run, Strip, reads_of


def emit_plane(w: Writer, out, lhs, rhs) -> None:
    """Write one step of the batch of a plan whose path is "plane"."""
    p = w.p
    assert p.direct is not None
    _Plane(w, p, p.direct).write(out, lhs, rhs)


class _Plane(DirectWriter):
    def __init__(self, w: Writer, p: Plan, direct: Direct) -> None:
        super().__init__(w, p, direct)
        self.panel_steps = {dim.name: p.lhs.strides.get(dim.name, 0) for dim in p.spec.k}
        self.panel_dtype = p.lhs.dtype
        self.row = next((p.lhs.strides.get(d.name, 0) for d in p.spec.m if d.extent > 1), 0)

    def write(self, out, lhs, rhs) -> None:
        self.out, self.kernel = out, lhs
        self.samples(list(self.s.loops), Place(0, 0, 0), rhs, 1, self.p.spec.k[0].extent, True)

    def panels(self, goal: Place, rhs, count: Index, steps: Index, first) -> None:
        self.lines(goal, rhs, self.kernel, steps, first)

    def start(self, strip: Strip) -> list[ir.Value]:
        return [self.e.zero(self.acc, self.p.lanes) for _ in range(self.p.mr)]

    def multiply(self, run: Run, moved: int, image, panel, sums: list[ir.Value]) -> list[ir.Value]:
        e, p = self.e, self.p
        vector = self.read(run, moved, image)
        result = []
        for row, value in enumerate(sums):
            factor = e.load(e.at(panel, row * self.row, p.lhs.dtype), p.lhs.dtype, self.acc)
            result.append(e.multiply_add(e.splat(factor, p.lanes), vector, value))
        return result

    def read(self, run: Run, moved: int, image) -> ir.Value:
        """The elements that a tap meets, each in its row's lane, and zeros."""
        e, lanes = self.e, self.p.lanes
        (first, offset), kind = run.rows[0], reads_of(run)
        rows = {row for row, _ in run.rows}
        if kind == "line":
            return self.some(image, offset + moved - first, rows)
        if kind == "spread":
            return e.load_spread(e.at(image, offset + moved, self.acc), self.mask(rows), self.acc)
        start = offset + moved - 2 * first
        low = self.some(image, start, {2 * row for row in rows if 2 * row < lanes})
        high = self.some(image, start + lanes, {2 * row - lanes for row in rows if 2 * row >= lanes})
        order = ir.Constant(ir.VectorType(I32, lanes), [2 * i for i in range(lanes)])
        return e.builder.shuffle_vector(low, high, order)

    def mask(self, lanes: set[int]) -> ir.Value:
        kind = ir.VectorType(ir.IntType(1), self.p.lanes)
        return ir.Constant(kind, [int(i in lanes) for i in range(self.p.lanes)])

    def some(self, image, offset: int, lanes: set[int]) -> ir.Value:
        e, acc = self.e, self.acc
        if not lanes:
            return e.zero(acc, self.p.lanes)
        pointer = e.at(image, offset, acc)
        if len(lanes) == self.p.lanes:
            return e.load(pointer, acc, acc, self.p.lanes)
        return e.load_some(pointer, self.mask(lanes), acc)

    def store(self, strip: Strip, sums: Sequence[ir.Value], goal: Place, first) -> None:
        for row, value in enumerate(sums):
            self.w.put(value, self.out, self.place(goal, row, 0, 0), first, strip.size)

    def zeros(self, strip: Strip, goal: Place, first) -> None:
        self.store(strip, self.start(strip), goal, first)
