"""Products on tensor cores: as `product_text`, but a warp multiplies, 16 x 8 sums by one instruction (`runtime.cuda.tensor_cores`).

    @cuda.jit(device=True)
    def multiply_row(c, a, b):                  # of a warp: 16 rows by 32 columns
        return (mma_tf32(c[0], a, b[0]), mma_tf32(c[1], a, b[1]), mma_tf32(c[2], a, b[2]), mma_tf32(c[3], a, b[3]))
    ...
            a = 2176*side + 136*q + wm + g      # g and q: the lane's row and column in the instruction's operands
            o = 2176*side + 136*q + wn + g
            c = multiply(c, lhs_line(lhs_tile, a), rhs_line(rhs_tile, o))
            c = multiply(c, lhs_line(lhs_tile, a + 1088), rhs_line(rhs_tile, o + 1088))
    ...
        put(out, b, m, n, neighbours(c[0][0], odd))

Numbers are rounded on their way into shared memory: to TF32, or to bfloat16, of which a word holds two that follow each other along k. Sums are
float32. A lane has two neighbouring sums of two rows; it gives its neighbour two of them for the other two of one row
(`neighbours`), so that four neighbours are stored at once.
"""

from __future__ import annotations

from fgrad.codegen.cuda.addresses import sum_text
from fgrad.codegen.cuda.product_text import Product, items
from fgrad.codegen.cuda.staging import DEVICE

_ROWS, _COLUMNS, _UNITS = 16, 8, 8  # of one instruction; a unit is a k or a pair of them


class TensorProduct(Product):
    @property
    def word(self) -> str:
        return "uint32" if self.plan.tile.core == "bf16" else "float32"

    def functions(self) -> list[str]:
        tile = self.plan.tile
        down, across = range(tile.tm // _ROWS), range(tile.tn // _COLUMNS)
        mma = "mma_bfloat" if tile.core == "bf16" else "mma_tf32"
        # Of sixteen rows (columns: eight): units q and q + 4 of rows g and g + 8.
        left = [(_ROWS * i, _ROWS * i + 8) for i in down]
        below, beyond = 4 * self.lhs.pitch, 4 * self.rhs.pitch

        def at(step: int) -> str:
            return f"s[{sum_text([(1, 'i')], step)}]"

        lhs = (f"({at(r)}, {at(s)}, {at(r + below)}, {at(s + below)})" for r, s in left)
        rhs = (f"({at(_COLUMNS * j)}, {at(_COLUMNS * j + beyond)})" for j in across)
        return [
            *(DEVICE, "def multiply_row(c, a, b):"),
            f"    return ({items(f'{mma}(c[{j}], a, b[{j}])' for j in across)})",
            "",
            *(DEVICE, "def multiply(c, a, b):  # of a warp: sixteen rows and eight columns at a time"),
            f"    return ({items(f'multiply_row(c[{i}], a[{i}], b)' for i in down)})",
            "",
            *(DEVICE, "def lhs_line(s, i):", f"    return ({items(lhs)})"),
            "",
            *(DEVICE, "def rhs_line(s, i):", f"    return ({items(rhs)})"),
            "",
            *(DEVICE, "def neighbours(c, odd):  # four sums of a row, two of them from the lane beside"),
            "    x = shuffle_xor(c[0] if odd else c[2], 1)",
            "    y = shuffle_xor(c[1] if odd else c[3], 1)",
            "    return (x, y, c[2], c[3]) if odd else (c[0], c[1], x, y)",
        ]

    def thread_place(self) -> list[str]:
        """The warp's place in the tile and the lane's in the instruction."""
        tile = self.plan.tile
        across = tile.bn // tile.tn
        warp = "quotient(t, 32)"
        if tile.threads == 32:
            wm, wn = "0", "0"
        else:
            wm = sum_text([(tile.tm, f"quotient({warp}, {across})")])
            wn = sum_text([(tile.tn, f"modulo({warp}, {across})")])
        return [f"wm, wn = {wm}, {wn}", "g, q = quotient(modulo(t, 32), 4), modulo(t, 4)"]

    def zero_sums(self) -> list[str]:
        tile = self.plan.tile
        return [
            "zero = float32(0)",
            "zeros = (zero, zero, zero, zero)",
            f"line = ({items(['zeros'] * (tile.tn // _COLUMNS))})",
            f"c = ({items(['line'] * (tile.tm // _ROWS))})",
        ]

    def multiplications(self) -> list[str]:
        tile = self.plan.tile
        lines = [
            f"a = {sum_text([(self.lhs.side, 'side'), (self.lhs.pitch, 'q'), (1, 'wm'), (1, 'g')])}",
            f"o = {sum_text([(self.rhs.side, 'side'), (self.rhs.pitch, 'q'), (1, 'wn'), (1, 'g')])}",
        ]
        for step in range(tile.bk // (_UNITS * self.lhs.pairs)):
            one = f"lhs_line(lhs_tile, {sum_text([(1, 'a')], step * _UNITS * self.lhs.pitch)})"
            other = f"rhs_line(rhs_tile, {sum_text([(1, 'o')], step * _UNITS * self.rhs.pitch)})"
            lines.append(f"c = multiply(c, {one}, {other})")
        return lines

    def stores(self) -> list[str]:
        tile = self.plan.tile
        lines = [
            "odd = modulo(t, 2) == 1  # which has the lower of two rows",
            "m = m0 + wm + g + (8 if odd else 0)",
            "n = n0 + wn + 4*quotient(q, 2)",
            *self.first_part(),
        ]
        for i in range(tile.tm // _ROWS):
            row = sum_text([(1, "m")], _ROWS * i)
            for j in range(tile.tn // _COLUMNS):
                whole = f"neighbours(c[{i}][{j}], odd)"
                if self.sink.group == 4:
                    lines.append(self.sink.call("b", row, sum_text([(1, "n")], _COLUMNS * j), whole))
                    continue
                lines.append(f"s = {whole}")
                for v in range(4):
                    lines.append(
                        self.sink.call("b", row, sum_text([(1, "n")], _COLUMNS * j + v), f"s[{v}:{v + 1}]")
                    )
        return lines
