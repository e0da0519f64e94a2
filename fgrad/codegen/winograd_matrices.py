"""The small transforms of Winograd's convolution, as matrices and as straight-line vector code.

A convolution of a tile of ``m`` outputs with three taps is (Lavin & Gray 2015, "Fast Algorithms for Convolutional Neural
Networks"; Winograd 1980)

    y = At ((G w) * (Bt d)),      d: m + 2 inputs, w: 3 taps, ``*`` element by element

and in two dimensions each matrix is applied along both axes. It multiplies two polynomials by their values at ``m + 1``
points and infinity. The points decide the rounding error, which grows with ``m``: ``POINTS`` holds those with the least
error among small exact fractions. The larger tile uses 0, ±5/8, ±3/2, whose error is less than half that of the usual 0, ±1, ±2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from llvmlite import ir

from fgrad.codegen.irtools import Emitter

TAPS = 3
POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
}
Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Transforms:
    """The matrices for tiles of ``m`` outputs; each has ``m + 2`` rows or columns.

    ``bt`` transforms inputs, ``g`` kernels, ``at`` brings products back to outputs. The gradient for the kernel is the same
    algorithm transposed: ``a`` transforms the cotangent's tiles, ``gt`` brings products back to taps.
    """

    m: int
    bt: Matrix
    g: Matrix
    at: Matrix

    @property
    def a(self) -> Matrix:
        return _transposed(self.at)

    @property
    def gt(self) -> Matrix:
        return _transposed(self.g)

    @property
    def size(self) -> int:
        return self.m + TAPS - 1

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Places of the points p and -p, whose values share their even and odd parts."""
        return tuple((i, i + 1) for i in range(1, self.size - 1, 2))


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _product(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the product of ``x - root``, lowest power first."""
    result = [Fraction(1)]
    for root in roots:
        result = [b - root * a for a, b in zip([*result, Fraction(0)], [Fraction(0), *result], strict=True)]
    return result


@lru_cache
def transforms(m: int) -> Transforms:
    """The exact matrices for tiles of ``m`` outputs (2 or 4)."""
    points, size = POINTS[m], m + TAPS - 1
    bt, g = [], []
    for i, point in enumerate(points):
        others = [q for j, q in enumerate(points) if j != i]
        scale = Fraction(1)
        for q in others:
            scale *= point - q
        bt.append((*_product(others), Fraction(0)))
        g.append(tuple(point**k / scale for k in range(TAPS)))
    bt.append(tuple(_product(points)))
    g.append((Fraction(0),) * (TAPS - 1) + (Fraction(1),))
    at = tuple((*(point**k for point in points), Fraction(int(k == m - 1))) for k in range(m))
    assert len(bt) == len(g) == size
    return Transforms(m, tuple(bt), tuple(g), at)


def emit_linear(
    e: Emitter,
    matrix: Matrix,
    values: Sequence[ir.Value],
    row_pairs: Sequence[tuple[int, int]] = (),
    column_pairs: Sequence[tuple[int, int]] = (),
) -> list[ir.Value]:
    """``matrix @ values`` for vectors, in few operations.

    Rows ``(i, j)`` of ``row_pairs`` differ in the sign of some entries: what they have in common is computed once, and so is
    the rest. Columns of ``column_pairs`` likewise: the sum and the difference of their two values are taken first.
    """
    if column_pairs:
        values, matrix = list(values), tuple(list(row) for row in matrix)  # type: ignore[misc]
        for i, j in column_pairs:
            total, difference = e.builder.fadd(values[i], values[j]), e.builder.fsub(values[i], values[j])
            values[i], values[j] = total, difference
            for row in matrix:
                row[i], row[j] = (row[i] + row[j]) / 2, (row[i] - row[j]) / 2  # type: ignore[index]
    result: list[ir.Value | None] = [None] * len(matrix)
    for i, j in row_pairs:
        even = [(a + b) / 2 for a, b in zip(matrix[i], matrix[j], strict=True)]
        odd = [(a - b) / 2 for a, b in zip(matrix[i], matrix[j], strict=True)]
        if not any(odd):
            result[i] = result[j] = _combine(e, even, values)
            continue
        scale = next((c for c in reversed(odd) if c), Fraction(1))
        common, rest = _combine(e, even, values), _combine(e, [c / scale for c in odd], values)
        result[i], result[j] = _add(e, common, rest, scale), _add(e, common, rest, -scale)
    return [value or _combine(e, row, values) for value, row in zip(result, matrix, strict=True)]


def _combine(e: Emitter, row: Sequence[Fraction], values: Sequence[ir.Value]) -> ir.Value:
    """The sum of ``row[i] * values[i]``, beginning with a coefficient of one where there is one."""
    terms = sorted(((c, v) for c, v in zip(row, values, strict=True) if c), key=lambda term: term[0] != 1)
    first, value = terms[0]
    if first != 1:
        value = e.builder.fmul(value, _splat(value, first))
    for coefficient, other in terms[1:]:
        value = _add(e, value, other, coefficient)
    return value


def _add(e: Emitter, a: ir.Value, b: ir.Value, scale: Fraction) -> ir.Value:
    """``a + scale * b``."""
    if scale == 1:
        return e.builder.fadd(a, b)
    if scale == -1:
        return e.builder.fsub(a, b)
    return e.multiply_add(b, _splat(a, scale), a)


def _splat(like: ir.Value, value: Fraction) -> ir.Constant:
    return ir.Constant(like.type, [float(np.float32(float(value)))] * like.type.count)


def emit_tile(
    e: Emitter,
    matrix: Matrix,
    tile: Sequence[Sequence[ir.Value]],
    row_pairs: Sequence[tuple[int, int]] = (),
    column_pairs: Sequence[tuple[int, int]] = (),
) -> list[list[ir.Value]]:
    """``matrix @ tile @ matrix.T`` for a tile of vectors ``[row][column]``."""
    down = [emit_linear(e, matrix, column, row_pairs, column_pairs) for column in zip(*tile, strict=True)]
    return [emit_linear(e, matrix, row, row_pairs, column_pairs) for row in zip(*down, strict=True)]
