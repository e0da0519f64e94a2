"""The text of a matrix product or convolution as a tiled kernel. This one is 128 x 128 x 8 with 256 threads of 8 x 8 sums:

    @cuda.jit
    def dot_general_128x128x8(out, lhs, rhs):
        # out[b, m, n] = sum over k of lhs[b, m, k] * rhs[b, n, k]: 1 x 1024 x 1024, k 1024
        lhs_tile = cuda.shared.array(2112, float32)          # two, so that one is filled while the other is read
        rhs_tile = cuda.shared.array(2048, float32)
        t, block = cuda.threadIdx.x, cuda.blockIdx.x
        m0, n0 = 128*modulo(block, 8), 128*quotient(block, 8)
        ...                                                   # what this thread brings (`staging`)
        c = (zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros)
        k, end = 0, 1024
        lhs_next = lhs_values(lhs, k, lhs_k, lhs_at0)
        rhs_next = rhs_values(rhs, k, rhs_k, rhs_at0)
        while k < end:
            side = modulo(quotient(k, 8), 2)
            to = lhs_to + 1056*side
            lhs_tile[to] = lhs_next[0]                        # from registers
            ...
            cuda.syncthreads()
            k += 8
            if k < end:                                       # on their way while this step is multiplied
                lhs_next = lhs_values(lhs, k, lhs_k, lhs_at0)
                rhs_next = rhs_values(rhs, k, rhs_k, rhs_at0)
            c = multiply(c, lhs_line(lhs_tile, a), rhs_line(rhs_tile, b))
            c = multiply(c, lhs_line(lhs_tile, a + 132), rhs_line(rhs_tile, b + 128))
            ...
        put(out, b, m, n, c[0][0:4])                          # and the epilogue (`sink`)
        ...

One barrier a step is enough: who fills a tile has passed the barrier after the last reading of it. The sums are tuples of tuples,
which become registers, since the device functions are inlined and every index into them is a constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fgrad.codegen.cuda.addresses import levels, linear_text, sum_text
from fgrad.codegen.cuda.launch import CudaKernel, Param
from fgrad.codegen.cuda.product_plan import ProductPlan
from fgrad.codegen.cuda.sink import Sink
from fgrad.codegen.cuda.staging import DEVICE, Staging
from fgrad.codegen.cuda.text import type_name


@dataclass(frozen=True)
class Product:
    """One product kernel before its text: the plan, both ways into shared memory, and where the sums go."""

    name: str
    plan: ProductPlan
    lhs: Staging
    rhs: Staging
    sink: Sink
    notes: tuple[str, ...]

    # ------------------------------------------------------------------------------------------------ what threads do

    def functions(self) -> list[str]:
        """`multiply` and what reads its arguments from shared memory."""
        tile = self.plan.tile
        lines = [
            *(DEVICE, "def multiply_row(c, a, b):  # c[j] + a*b[j]"),
            f"    return ({items(f'c[{j}] + a*b[{j}]' for j in range(tile.tn))})",
            "",
            *(DEVICE, "def multiply(c, a, b):  # c[i][j] + a[i]*b[j]"),
            f"    return ({items(f'multiply_row(c[{i}], a[{i}], b)' for i in range(tile.tm))})",
        ]
        for side, count, whole in ((self.lhs, tile.tm, tile.bm), (self.rhs, tile.tn, tile.bn)):
            apart = 4 * (whole // count)  # from one four of a thread to its next
            fours = [f"load4(s, {sum_text([(1, 'i')], g * apart)})" for g in range(count // 4)]
            singles = [f"s[{sum_text([(1, 'i')], v)}]" for v in range(count)]
            text = " + ".join(fours) if count >= 4 else f"({items(singles)})"
            lines += [
                "",
                DEVICE,
                f"def {side.name}_line(s, i):  # a thread's {side.letter} of one k",
                f"    return {text}",
            ]
        return lines

    @property
    def word(self) -> str:
        """The element type of shared memory."""
        return type_name(self.lhs.held)

    def zero_sums(self) -> list[str]:
        tile = self.plan.tile
        return [
            f"zero = {type_name(self.lhs.held)}(0)",
            f"zeros = ({items(['zero'] * tile.tn)})",
            f"c = ({items(['zeros'] * tile.tm)})",
        ]

    def multiplications(self) -> list[str]:
        """One step of k: everything in shared memory's present side."""
        tile = self.plan.tile
        lines = [
            f"a = {sum_text([(self.lhs.side, 'side'), (min(4, tile.tm), 'ty')])}",
            f"o = {sum_text([(self.rhs.side, 'side'), (min(4, tile.tn), 'tx')])}",
        ]
        for step in range(tile.bk):
            one = f"lhs_line(lhs_tile, {sum_text([(1, 'a')], step * self.lhs.pitch)})"
            other = f"rhs_line(rhs_tile, {sum_text([(1, 'o')], step * self.rhs.pitch)})"
            lines.append(f"c = multiply(c, {one}, {other})")
        return lines

    def thread_place(self) -> list[str]:
        """`ty, tx`: a thread's place in the tile. A warp is 4 x 8 threads, so that it reads few different numbers at a time."""
        tile = self.plan.tile
        down, across = tile.bm // tile.tm, tile.bn // tile.tn
        if down % 4 == 0 and across % 8 == 0:
            warps = across // 8
            warp = "quotient(t, 32)"
            y = [(4, f"quotient({warp}, {warps})" if warps > 1 else warp), (1, "quotient(modulo(t, 32), 8)")]
            x = [(8, f"modulo({warp}, {warps})" if warps > 1 else "0"), (1, "modulo(t, 8)")]
            return [f"ty, tx = {sum_text(y)}, {sum_text(x)}"]
        ty = f"quotient(t, {across})" if across > 1 else "quotient(t, 1)"
        return [f"ty, tx = {ty}, {f'modulo(t, {across})' if across > 1 else '0'}"]

    def block_place(self) -> list[str]:
        """Which tile, part of k and batch a block does. Neighbouring blocks differ along the side of fewer tiles: they share the
        other operand in the cache."""
        plan, tile = self.plan, self.plan.tile
        batch, *_ = plan.sizes
        counts = [("m", plan.tiles[0]), ("n", plan.tiles[1])]
        counts.sort(key=lambda c: c[1])
        counts += [("part", plan.parts), ("b", batch)]
        found: dict[str, str] = {}
        before = 1
        for name, count in counts:
            high = f"quotient(block, {before})" if before > 1 else "block"
            last = before * count == plan.blocks
            found[name] = "0" if count == 1 else high if last and before > 1 else f"modulo({high}, {count})"
            before *= count
        lines = [f"m0, n0 = {sum_text([(tile.bm, found['m'])])}, {sum_text([(tile.bn, found['n'])])}"]
        lines.append(f"b = {found['b']}")
        span = plan.part_steps * tile.bk
        end = plan.steps * tile.bk
        if plan.parts == 1:
            lines.append(f"k, end = 0, {end}")
        else:
            lines.append(f"part = {found['part']}")
            lines.append(f"k, end = {span}*part, min({span}*part + {span}, {end})")
        return lines

    # ------------------------------------------------------------------------------------------------ the kernel

    def body(self) -> list[str]:
        tile = self.plan.tile
        sides = (self.lhs, self.rhs)
        batch, m, n, k = self.plan.sizes
        lines = [f"# {note}" for note in self.notes]
        lines.append(
            f"# out[b, m, n] = sum over k of lhs[b, m, k] * rhs[b, n, k]: {batch} x {m} x {n}, k {k}"
        )
        for s in sides:
            lines.append(f"{s.name}_tile = cuda.shared.array({2 * s.side}, {self.word}, alignment=16)")
        lines += ["t, block = cuda.threadIdx.x, cuda.blockIdx.x", *self.block_place(), *self.thread_place()]
        for s in sides:
            lines += [f"# {s.name}: which elements this thread brings, and where to", *s.setup()]
        lines += ["# all sums, in registers", *self.zero_sums()]
        skips = bool(self.plan.cuts)
        fetch = [f"{s.name}_next = {s.call('k')}" for s in sides]
        if skips:
            # There may be no step to do, but what is loaded first must exist.
            lines += ["k, turn = next_step(k, end, n0), 0", f"first_k = min(k, end - {tile.bk})"]
            lines += [f"{s.name}_next = {s.call('first_k')}" for s in sides]
        else:
            lines += fetch
        lines.append("while k < end:")
        loop = ["side = modulo(turn, 2)" if skips else f"side = modulo(quotient(k, {tile.bk}), 2)"]
        for s in sides:
            loop.append(f"to = {s.name}_to + {s.side}*side")
            loop += s.stage("to")
        loop.append("cuda.syncthreads()")
        loop += [f"k, turn = next_step(k + {tile.bk}, end, n0), turn + 1"] if skips else [f"k += {tile.bk}"]
        loop.append("if k < end:  # on their way while this step is multiplied")
        loop += [f"    {line}" for line in fetch]
        loop += self.multiplications()
        lines += [f"    {line}" for line in loop]
        return lines + self.stores()

    def skipping(self) -> list[str]:
        """`next_step`: the next k at which a place of this tile has a term at all; see `product_order.by_residue`."""
        if not self.plan.cuts:
            return []
        address = self.rhs.address
        conditions = []
        for check in address.checks:
            if check.divisor == 1:
                continue
            rest = {name: c % check.divisor for name, c in check.coefs.items()}
            digits = [(level, level.digit("n")) for level in levels(self.rhs.rows, [address])]
            digits += [(level, level.digit("k")) for level in self.rhs.k_levels]
            position = linear_text(rest, digits, check.offset % check.divisor)
            conditions.append(f"modulo({position}, {check.divisor}) == 0")
        _, _, n, _ = self.plan.sizes
        tile = self.plan.tile
        return [
            *(
                DEVICE,
                "def useful(k, n):  # whether place n has terms with this tap",
                f"    return {' and '.join(conditions)}",
            ),
            "",
            *(DEVICE, "def next_step(k, end, n):  # the next at which a place of the tile has terms"),
            f"    last = min(n + {tile.bn - 1}, {n - 1})",
            "    while k < end and not (useful(k, n) or useful(k, last)):",
            f"        k += {tile.bk}",
            "    return k",
        ]

    def stores(self) -> list[str]:
        """A call of `put` for each group of neighbouring sums."""
        tile = self.plan.tile
        group = min(self.sink.group, tile.tn)
        lines = [
            f"m = {sum_text([(1, 'm0'), (min(4, tile.tm), 'ty')])}",
            f"n = {sum_text([(1, 'n0'), (min(4, tile.tn), 'tx')])}",
        ]
        lines += self.first_part()
        for i in range(tile.tm):
            row = sum_text([(1, "m")], i % 4 + i // 4 * 4 * (tile.bm // tile.tm))
            for j in range(0, tile.tn, group):
                column = sum_text([(1, "n")], j % 4 + j // 4 * 4 * (tile.bn // tile.tn))
                values = f"c[{i}]" if group == tile.tn else f"c[{i}][{j}:{j + group}]"
                lines.append(self.sink.call("b", row, column, values))
        return lines

    def first_part(self) -> list[str]:
        """Where the sums of this part of k begin in the array of all parts."""
        if self.plan.parts == 1:
            return []
        return [f"first = {self.sink.places[0].param.size // self.plan.parts}*part"]

    def kernel(self, params: Sequence[Param]) -> CudaKernel:
        lines: list[str] = []
        parts = (
            self.lhs.function(),
            self.rhs.function(),
            self.skipping(),
            self.functions(),
            self.sink.function(),
        )
        for part in filter(None, parts):
            lines += [*part, ""]
        lines += ["@cuda.jit", f"def {self.name}({', '.join(p.name for p in params)}):"]
        # The decorated kernel comes last; what it calls stands before it.
        lines += [f"    {line}" for line in self.body()]
        vector = any(s.vector == 4 for s in (self.lhs, self.rhs))
        features = frozenset(
            {"shared", *(["vector"] if vector else []), *(["mma"] if self.plan.tile.core else [])}
        )
        source = "\n".join(lines) + "\n"
        grid = (self.plan.blocks, 1, 1)
        return CudaKernel(
            self.name, source, tuple(params), grid, (self.plan.tile.threads, 1, 1), self.notes, features
        )


def items(texts: Iterable[str]) -> str:
    """The inside of a tuple."""
    found = list(texts)
    return ", ".join(found) + ("," if len(found) == 1 else "")
