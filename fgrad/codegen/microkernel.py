"""The two micro-kernels: one tile of the output held in registers while k runs.

*Outer product*: lanes lie along n. For every k, one vector load for each of the tile's columns, one broadcast for
each of its rows, and ``rows * columns`` fused multiply-adds:

    for k:  b0, b1 = rhs[k, 0:16], rhs[k, 16:32]
            a = lhs[0, k];  c00 += a*b0;  c01 += a*b1
            a = lhs[1, k];  c10 += a*b0;  c11 += a*b1
            ...

*Inner product*: lanes lie along k, which is contiguous in both operands, so nothing needs packing; each element of
the tile is a vector of partial sums, added up at the end. It serves tiles that are too small to fill vectors along n.

The accumulators are SSA values carried by the loops over k, so they live in registers and never touch the stack.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llvmlite import ir

from fgrad.codegen.irtools import I32, I64, PTR, Emitter, Index, transpose

# A loop over k: steps (the outermost may be a run-time value), stride in lhs, stride in rhs.
DepthLevel = tuple[Index, int, int]


def vector_lanes(width: int, most: int) -> int:
    """Lanes of the vector that holds ``width`` elements: the next power of two."""
    lanes = 1
    while lanes < width:
        lanes *= 2
    return min(lanes, most)


def emit_outer_product(
    e: Emitter,
    lhs: ir.Value,
    rhs: ir.Value,
    depth: Sequence[DepthLevel],
    row_offsets: Sequence[int],
    widths: Sequence[int],
    column_offsets: Sequence[int],
    dtype: np.dtype,
) -> list[list[ir.Value]]:
    """Accumulators ``[row][column]`` for operands of type ``dtype``.

    A column of ``width`` elements is held in the next larger vector; its surplus lanes hold nothing of meaning.
    """

    lanes = [vector_lanes(width, e.target.lanes(dtype.itemsize)) for width in widths]

    def multiply(lhs, rhs, sums):
        columns = [
            e.load_first(e.at(rhs, offset, dtype), width, count, dtype)
            for offset, width, count in zip(column_offsets, widths, lanes)
        ]
        result = []
        for row, offset in enumerate(row_offsets):
            scalar = e.load(e.at(lhs, offset, dtype), dtype, dtype)
            spread = {count: e.splat(scalar, count) for count in sorted(set(lanes))}
            for column, count in enumerate(lanes):
                old = sums[row * len(widths) + column]
                result.append(e.multiply_add(spread[count], columns[column], old))
        return result

    def nest(levels, lhs, rhs, sums):
        if not levels:
            return multiply(lhs, rhs, sums)
        extent, lhs_step, rhs_step = levels[0]

        def body(_, lhs_here, rhs_here, *sums_here):
            result = nest(levels[1:], lhs_here, rhs_here, list(sums_here))
            return [e.at(lhs_here, lhs_step, dtype), e.at(rhs_here, rhs_step, dtype), *result]

        return e.loop(extent, body, [lhs, rhs, *sums])[2:]

    start = [e.zero(dtype, count) for _ in row_offsets for count in lanes]
    sums = nest(list(depth), lhs, rhs, start)
    return [sums[row * len(widths) : (row + 1) * len(widths)] for row in range(len(row_offsets))]


def emit_inner_product(
    e: Emitter,
    lhs: ir.Value,
    rhs: ir.Value,
    depth: Sequence[DepthLevel],
    row_offsets: Sequence[int],
    column_offsets: Sequence[int],
    lanes: int,
    dtype: np.dtype,
) -> list[list[ir.Value]]:
    """Scalars ``[row][column]``; the innermost loop of ``depth`` must be contiguous in both operands."""
    *outer, (run, lhs_unit, rhs_unit) = depth
    if (lhs_unit, rhs_unit) != (1, 1) or not isinstance(run, int):
        raise ValueError(
            "emit_inner_product: the innermost k loop must have a known extent and strides of one"
        )

    def multiply(lhs, rhs, sums, width):
        rows = [e.load_first(e.at(lhs, o, dtype), width, lanes, dtype) for o in row_offsets]
        result = list(sums)
        for column, offset in enumerate(column_offsets):
            vector = e.load_first(e.at(rhs, offset, dtype), width, lanes, dtype)
            for row, value in enumerate(rows):
                at = row * len(column_offsets) + column
                result[at] = e.multiply_add(value, vector, sums[at])
        return result

    def innermost(lhs, rhs, sums):
        whole = run // lanes * lanes

        def body(i, *sums_here):
            return multiply(e.at(lhs, i, dtype), e.at(rhs, i, dtype), list(sums_here), lanes)

        sums = e.loop(whole, body, sums, step=lanes)
        if run > whole:
            sums = multiply(e.at(lhs, whole, dtype), e.at(rhs, whole, dtype), sums, run - whole)
        return sums

    def nest(levels, lhs, rhs, sums):
        if not levels:
            return innermost(lhs, rhs, sums)
        extent, lhs_step, rhs_step = levels[0]

        def body(_, lhs_here, rhs_here, *sums_here):
            result = nest(levels[1:], lhs_here, rhs_here, list(sums_here))
            return [e.at(lhs_here, lhs_step, dtype), e.at(rhs_here, rhs_step, dtype), *result]

        return e.loop(extent, body, [lhs, rhs, *sums])[2:]

    start = [e.zero(dtype, lanes) for _ in row_offsets for _ in column_offsets]
    sums = [_horizontal_sum(e, value, lanes, dtype) for value in nest(outer, lhs, rhs, start)]
    columns = len(column_offsets)
    return [sums[row * columns : (row + 1) * columns] for row in range(len(row_offsets))]


def _letters(dtype: np.dtype) -> str:
    return f"f{8 * dtype.itemsize}"


def _horizontal_sum(e: Emitter, value: ir.Value, lanes: int, dtype: np.dtype) -> ir.Value:
    if lanes == 1:
        return e.builder.extract_element(value, I32(0))
    zero = e.zero(dtype)
    name = f"llvm.vector.reduce.fadd.v{lanes}{_letters(dtype)}"
    return e.intrinsic(name, zero.type, [zero, value], fast=True)


def emit_turn(
    e: Emitter, source: ir.Value, pitch: int, goal: ir.Value, goal_pitch: int, lanes: int, dtype: np.dtype
) -> None:
    """Transpose a square of ``lanes`` rows, ``pitch`` elements apart (by a function that all of a module share)."""
    name = f"fgrad.turn.{lanes}x{_letters(dtype)}"
    function = e.module.globals.get(name)
    if function is None:
        function = ir.Function(e.module, ir.FunctionType(ir.VoidType(), [PTR, I64, PTR, I64]), name)
        function.linkage = "internal"
        for attribute in ("nounwind", "noinline"):
            function.attributes.add(attribute)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        inner = Emitter(builder, e.target)
        rows, step, turned, goal_step = function.args
        lines = [
            inner.load(inner.at(rows, inner.mul(step, i), dtype), dtype, dtype, lanes) for i in range(lanes)
        ]
        for i, line in enumerate(transpose(inner, lines) if lanes > 1 else lines):
            inner.store(line, inner.at(turned, inner.mul(goal_step, i), dtype), dtype, dtype)
        builder.ret_void()
    e.builder.call(function, [source, I64(pitch), goal, I64(goal_pitch)])
