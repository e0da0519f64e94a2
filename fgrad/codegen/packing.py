"""Bringing operands into the layout that the micro-kernels read.

Two steps, each fused with the conversion to the accumulator's type:

*Spreading* (``spread_layout``, ``emit_spread``) copies an operand whose elements do not all exist, such as a padded
or stride-dilated image, into a buffer where they do, zeros included. After it every address is an affine function of
the loop indices, and nothing downstream tests a border again.

*Packing* (``emit_pack``) gathers a block of rows into panels ``[panel][k][width]``, the order in which a micro-kernel
walks it. For a convolution this is im2col, and for a transposed matrix the transposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from fgrad.codegen.contraction import Dim, Operand
from fgrad.codegen.irtools import Emitter, Index, transpose

# A level of a loop nest: its number of steps (the outermost may be a run-time value) and its stride in elements.
Level = tuple[Index, int]


def merge_levels(levels: Sequence[tuple]) -> list[tuple]:
    """Join neighbouring loops ``(extent, stride, stride, ...)`` that walk memory as one; drop loops of one step.

    >>> merge_levels([(4, 20), (5, 4), (1, 4), (4, 1)])
    [(80, 1)]
    """
    merged: list[tuple] = []
    for extent, *strides in levels:
        if isinstance(extent, int) and extent == 1:
            continue
        if merged and isinstance(extent, int):
            outer, *outer_strides = merged[-1]
            if all(a == b * extent for a, b in zip(outer_strides, strides)) and isinstance(outer, int):
                merged[-1] = (outer * extent, *strides)
                continue
        merged.append((extent, *strides))
    return merged


def levels_of(dims: Sequence[Dim], *strides: dict[str, int]) -> list[tuple]:
    """The loops over ``dims`` with the stride of each operand, merged."""
    return merge_levels([(dim.extent, *(s.get(dim.name, 0) for s in strides)) for dim in dims])


@dataclass(frozen=True)
class View:
    """A plain operand: element type, offset of its first element, and stride of every dimension."""

    dtype: np.dtype
    base: int
    strides: dict[str, int]


@dataclass(frozen=True)
class Spread:
    """How to spread an operand out: loops ``(steps, source stride, buffer stride)`` over what exists, and offsets.

    ``per_batch`` says that the buffer holds what one step of the batch needs, and is written anew for each.
    """

    elements: int
    dtype: np.dtype
    source_dtype: np.dtype
    loops: tuple[tuple[int, int, int], ...]
    source_offset: int
    buffer_offset: int
    view: View
    per_batch: bool


def spread_layout(operand: Operand, extents: dict[str, int], batch: Sequence[Dim], dtype: np.dtype) -> Spread:
    """Lay the whole span of every axis out in a row-major buffer of ``dtype``.

    If the batch only moves the operand about, the buffer is for one step of the batch; the strides of the batch
    dimensions are then those of the source.
    """
    batched = {dim.name for dim in batch if dim.extent > 1}
    using = [axis for axis in operand.axes if batched & {name for name, _ in axis.coefs}]
    per_batch = bool(using) and all(axis.is_plain(extents) for axis in using)
    if per_batch:
        extents = {**extents, **dict.fromkeys(batched, 1)}
    spans = [axis.span(extents) for axis in operand.axes]
    sizes = [high - low + 1 for low, high in spans]
    steps = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    strides: dict[str, int] = {}
    loops, base, source_offset, buffer_offset = [], 0, operand.offset, 0
    for axis, (low, high), step in zip(operand.axes, spans, steps):
        first, last = -(-low // axis.divisor), high // axis.divisor
        if axis.size is not None:
            first, last = max(first, 0), min(last, axis.size - 1)
        loops.append((max(0, last - first + 1), axis.stride, axis.divisor * step))
        source_offset += first * axis.stride
        buffer_offset += (first * axis.divisor - low) * step
        base += (axis.offset - low) * step
        for name, coef in axis.coefs:
            moved = axis.stride if per_batch and name in batched else step
            strides[name] = strides.get(name, 0) + coef * moved
    empty = any(steps == 0 for steps, *_ in loops)
    merged = ((0, 0, 0),) if empty else tuple(merge_levels(loops))
    view = View(dtype, base, strides)
    elements = math.prod(sizes)
    return Spread(elements, dtype, operand.dtype, merged, source_offset, buffer_offset, view, per_batch)


def emit_copy(
    e: Emitter, count: int, source, goal, source_step: int, goal_step: int, types, scale: int = 1
) -> None:
    """Copy ``count`` elements, in vectors where both sides are contiguous. ``types`` is (source, goal)."""
    from_type, to_type = types
    lanes = e.target.lanes(max(from_type.itemsize, to_type.itemsize))
    whole = count // lanes * lanes if (source_step, goal_step) == (1, 1) else 0

    def move(width: int) -> Callable:
        def body(i):
            start = e.add(i, whole if not width else 0)
            value = e.load(e.at(source, e.mul(start, source_step), from_type), from_type, to_type, width)
            e.store(value, e.at(goal, e.mul(start, goal_step), to_type), to_type, to_type)

        return body

    e.loop(whole, move(lanes), step=lanes)
    e.loop(count - whole, move(0))


def emit_fill_zero(e: Emitter, count: int, goal, dtype: np.dtype) -> None:
    lanes = e.target.lanes(dtype.itemsize)
    whole = count // lanes * lanes
    e.loop(whole, lambda i: e.store(e.zero(dtype, lanes), e.at(goal, i, dtype), dtype, dtype), step=lanes)
    e.loop(count - whole, lambda i: e.store(e.zero(dtype), e.at(goal, e.add(i, whole), dtype), dtype, dtype))


def emit_spread(e: Emitter, spread: Spread, source, buffer) -> None:
    """Write the buffer of ``spread_layout``: zeros everywhere, then the elements that exist."""
    covered = math.prod(steps for steps, *_ in spread.loops)
    if covered < spread.elements:
        emit_fill_zero(e, spread.elements, buffer, spread.dtype)
    if covered == 0:
        return
    types = (spread.source_dtype, spread.dtype)

    def nest(loops, source, buffer) -> None:
        if not loops:
            emit_copy(e, 1, source, buffer, 1, 1, types)
            return
        steps, source_step, buffer_step = loops[0]
        if len(loops) == 1:
            emit_copy(e, steps, source, buffer, source_step, buffer_step, types)
            return

        def body(i):
            inner_source = e.at(source, e.mul(i, source_step), types[0])
            nest(loops[1:], inner_source, e.at(buffer, e.mul(i, buffer_step), types[1]))

        e.loop(steps, body)

    start = e.at(source, spread.source_offset, types[0])
    nest(spread.loops, start, e.at(buffer, spread.buffer_offset, types[1]))


def flat_offset(e: Emitter, flat: Index, levels: Sequence[tuple], which: int = 1) -> Index:
    """Memory offset of a flat index over a loop nest (quotients by constants, which compile to multiplications)."""
    offset: Index = 0
    for position, level in enumerate(reversed(levels)):
        if position == len(levels) - 1:
            index: Index = flat
        else:
            flat, index = e.divmod(flat, level[0])
        offset = e.add(offset, e.mul(index, level[which]))
    return e.opaque_index(offset) if len(levels) > 1 else offset


def inner_room(e: Emitter, flat: Index, levels: Sequence[tuple]) -> Index | None:
    """Steps left in the innermost loop at a flat index; None if there is only one loop (no limit)."""
    if len(levels) < 2:
        return None
    extent = levels[-1][0]
    return e.opaque_index(e.sub(extent, e.divmod(flat, extent)[1]))


def emit_pack(
    e: Emitter,
    source: ir.Value,
    panel: ir.Value,
    rows: Sequence[Level],
    depth: Sequence[Level],
    first: Index,
    count: Index,
    width: int,
    pitch: int,
    types: tuple[np.dtype, np.dtype],
) -> None:
    """Pack rows ``first .. first+count`` into panels of ``width`` rows: element (k, row) at ``k*pitch + row``.

    ``rows`` and ``depth`` are the loop nests over rows and over k (merged). The block is walked in pieces: rows that
    follow each other in the innermost row loop and fall into one panel. ``count`` must be positive.
    """
    depth_total: Index = 1
    for extent, _ in depth:
        depth_total = e.mul(depth_total, extent)
    row_step = rows[-1][1] if rows else 1
    depth_step = depth[-1][1] if depth else 1
    limit = min(width, rows[-1][0] if rows else 1)
    panel_elements = e.mul(depth_total, pitch)

    def piece(j: Index, length: Index | None = None) -> Index:
        number, column = e.divmod(j, width)
        flat = e.add(first, j)
        if length is None:
            length = e.minimum(e.sub(count, j), e.sub(width, column))
            room = inner_room(e, flat, rows)
            if room is not None:
                length = e.minimum(length, room)
        start = e.at(source, flat_offset(e, flat, rows), types[0])
        goal = e.at(panel, e.opaque_index(e.add(e.mul(number, panel_elements), column)), types[1])
        if row_step == 1 and limit > 1:
            _pack_contiguous(e, start, goal, depth, length, limit, pitch, types)
        elif depth and depth_step == 1 and limit > 1:
            _pack_transposed(e, start, goal, depth, length, limit, row_step, pitch, types)
        else:
            _pack_elements(e, start, goal, depth, length, row_step, pitch, types)
        return e.add(j, length)

    if len(rows) < 2 and isinstance(count, int) and count % width == 0:
        e.loop(count, lambda j: (piece(j, width), None)[1], step=width)
    elif len(rows) < 2 and isinstance(count, int) and count < width:
        piece(0, count)
    else:
        e.loop_while(0, count, lambda j: e.const(piece(j)))


def walk_depth(
    e: Emitter, source, goal, depth: Sequence[Level], pitch: int, types, body: Callable
) -> ir.Value:
    """Run ``body(source, goal)`` for every k in order; ``goal`` advances by ``pitch`` each time."""
    if not depth:
        body(source, goal)
        return e.at(goal, pitch, types[1])
    extent, stride = depth[0]

    def step(i, goal):
        inner = e.at(source, e.mul(i, stride), types[0])
        return [walk_depth(e, inner, goal, depth[1:], pitch, types, body)]

    return e.loop(extent, step, [goal])[0]


def _pack_contiguous(e: Emitter, source, goal, depth, length: Index, limit: int, pitch: int, types) -> None:
    """Rows are neighbours in memory, at most ``limit`` of them: vectors, the last one masked, or overlapping the one
    before it, or (fewer rows than lanes) one by one."""
    lanes = e.target.lanes(types[1].itemsize)
    vectors = -(-limit // lanes)

    def copy(moves: Callable) -> None:
        walk_depth(e, source, goal, depth, pitch, types, moves)

    def move(source, goal, offset: Index, width: int) -> None:
        value = e.load(e.at(source, offset, types[0]), types[0], types[1], width)
        e.store(value, e.at(goal, offset, types[1]), types[1], types[1])

    def whole(source, goal) -> None:
        for v in range(limit // lanes):
            move(source, goal, v * lanes, lanes)

    if isinstance(length, int) and length == limit and limit % lanes == 0:
        copy(whole)
        return
    if types[0] == types[1] and e.can_mask(types[1], lanes, store=True):
        masks = [e.first_lanes(e.sub(length, v * lanes), lanes) for v in range(vectors)]

        def masked(source, goal) -> None:
            for v, mask in enumerate(masks):
                value = e.load_some(e.at(source, v * lanes, types[0]), mask, types[0])
                e.store_some(value, e.at(goal, v * lanes, types[1]), mask, types[1])

        copy(masked)
        return

    def overlapping(lanes: int) -> Callable:
        last = e.sub(length, lanes)
        offsets = [e.minimum(v * lanes, last) for v in range(-(-limit // lanes))]

        def body(source, goal) -> None:
            for offset in offsets:
                move(source, goal, offset, lanes)

        return lambda: copy(body)

    def one_by_one() -> None:
        copy(lambda source, goal: e.loop(length, lambda i: move(source, goal, i, 0)))

    if limit < lanes:
        lanes //= 2
    if lanes < 4 or limit < lanes:
        one_by_one()
    else:
        e.branch(e.compare(">=", length, lanes), overlapping(lanes), one_by_one)


def _pack_transposed(
    e: Emitter, source, goal, depth, length: Index, limit: int, row_step: int, pitch: int, types
) -> None:
    """k runs along memory: square blocks are transposed in registers. The last block of an edge overlaps its
    neighbour; an edge shorter than a block goes element by element."""
    *outer, (run, _) = depth
    size = 8
    while size > min(limit, e.target.lanes(types[1].itemsize), run if isinstance(run, int) else size):
        size //= 2

    def blocks() -> None:
        last_row, last_k = e.sub(length, size), e.sub(run, size)

        def strip(source, goal) -> None:
            def block(row: Index, k: Index) -> None:
                row, k = e.opaque_index(e.minimum(row, last_row)), e.opaque_index(e.minimum(k, last_k))
                corner = e.at(source, e.add(e.mul(row, row_step), k), types[0])
                lines = [
                    e.load(e.at(corner, i * row_step, types[0]), types[0], types[1], size)
                    for i in range(size)
                ]
                corner = e.at(goal, e.add(e.mul(k, pitch), row), types[1])
                for i, line in enumerate(transpose(e, lines)):
                    e.store(line, e.at(corner, i * pitch, types[1]), types[1], types[1])

            def rows(row: Index) -> None:
                e.loop(run, lambda k: block(row, k), step=size)

            e.loop(length, rows, step=size)

        walk_depth(e, source, goal, outer, e.mul(run, pitch), types, strip)

    def elements() -> None:
        _pack_elements(e, source, goal, depth, length, row_step, pitch, types)

    if size < 4:
        elements()
    else:
        fits = e.both(e.compare(">=", length, size), e.compare(">=", run, size))
        e.branch(fits, blocks, elements)


def _pack_elements(e: Emitter, source, goal, depth, length: Index, row_step: int, pitch: int, types) -> None:
    def body(source, goal):
        def move(i):
            value = e.load(e.at(source, e.mul(i, row_step), types[0]), types[0], types[1])
            e.store(value, e.at(goal, i, types[1]), types[1], types[1])

        e.loop(length, move)

    walk_depth(e, source, goal, depth, pitch, types, body)
