"""Scatter turned round: the threads of a block stand for who receives, and look for what is sent to them.

    for i in 4096:                                 @cuda.jit
        for k in 128:                              def scatter(out, ids, u):                       # 5000 rows: a block each
            out[128*ids[i] + k] += u[128*i + k]        ...
                                                       receiver = cuda.blockIdx.x
                                                       for first in range(0, 4096, 256):
                                                           i = first + tid                         # 256 senders looked at
                                                           hit = 0
                                                           if i < 4096 and ids[i] == receiver:
                                                               hit = 1
                                                           hits[tid] = hit
                                                           if cuda.syncthreads_or(hit) != 0:
                                                               for k in range(256):                # in order
                                                                   if hits[k] != 0:
                                                                       i = first + k
                                                                       if tid < 128: out[128*receiver + tid] += u[128*i + tid]
                                                           cuda.syncthreads()

Each element has one thread, which adds in the order of the loop: results are those of the loop, bit by bit. Where that
looks at too much, the loops that scatter are executed in order, by threads that share the other ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fgrad.codegen import loops
from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.layout import count, power_of_two
from fgrad.codegen.cuda.rows import RowsText
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.loops import Affine, Expr, Loop, LoopVar, Store
from fgrad.codegen.nestinfo import nodes

BLOCKS_AT_ONCE = 8  # that a multiprocessor runs
MOST_RECEIVERS = 2**31 - 1


@dataclass(frozen=True, eq=False)
class GatherForm:
    """`store`, executed for all `senders` in order, goes to `receiver`, where that is `place`, of each of `outer`, and there to
    `lanes`."""

    store: Store
    senders: tuple[LoopVar, ...]
    outer: tuple[LoopVar, ...]
    lanes: tuple[LoopVar, ...]
    place: Expr
    receiver: LoopVar

    @property
    def receivers(self) -> int:
        return self.receiver.extent

    @property
    def blocks(self) -> int:
        return count(self.outer) * self.receivers

    def threads(self, target: CudaTarget) -> int:
        return min(
            target.threads, max(target.warp, power_of_two(max(count(self.senders), count(self.lanes))))
        )

    def worth_it(self, target: CudaTarget) -> bool:
        """Whether looking at all senders for each receiver takes less time than one sender after another."""
        sent = count(self.senders)
        looks = self.blocks * -(-sent // self.threads(target))
        return self.blocks <= MOST_RECEIVERS and looks < 2 * sent * BLOCKS_AT_ONCE * target.multiprocessors


def gather_form(loop: Loop, independent: Sequence[LoopVar]) -> GatherForm | None:
    """The nest at `loop` turned round, if it is one store whose index is data; `independent` are the loops free to share."""
    chained, body = analysis.chain(loop)
    senders = tuple(c.var for c in chained if c.var not in independent)
    if len(body) != 1 or not isinstance(body[0], Store) or body[0].mask is not None or not senders:
        return None
    store = body[0]
    const, terms = loops.affine_terms(store.index)
    data = [(t, c) for t, c in terms if t not in independent]
    if not any(not isinstance(t, LoopVar) for t, _ in data):
        return None
    step = math.gcd(*(c for _, c in data))
    bounds = loops.index_range(Affine(0, [(t, c // step) for t, c in data]))
    if bounds is None:
        return None
    low = bounds[0]
    place = Affine(-low, [(t, c // step) for t, c in data])
    receiver = LoopVar("receiver", bounds[1] - low + 1)
    index = Affine(const + step * low, [(receiver, step), *((t, c) for t, c in terms if t in independent)])
    store = Store(store.buffer, index, store.value, store.op)
    inside = {id(e) for e in nodes([place])}
    outer = tuple(v for v in independent if id(v) in inside)
    lanes = tuple(v for v in independent if id(v) not in inside)
    return GatherForm(store, senders, outer, lanes, place, receiver)


def print_gather_form(text: RowsText, form: GatherForm, target: CudaTarget) -> tuple[int, int]:
    """Print the kernel: blocks, and threads of each."""
    threads, sent, wide = form.threads(target), count(form.senders), count(form.lanes)
    pad, inner, deep = "    ", " " * 8, " " * 16
    text.shared["hits"] = (threads, "uint8")
    receiver = text.var(form.receiver)
    first, sender, hit = (text.fresh(n) for n in ("first", "sender", "hit"))
    text.line(pad, f"{receiver} = cuda.blockIdx.x")
    if form.outer:
        text.unravel(f"quotient({receiver}, {form.receivers})", form.outer, pad)
        text.line(pad, f"{receiver} = modulo({receiver}, {form.receivers})")
    text.line(pad, f"for {first} in range(0, {sent}, {threads}):  # {threads} senders are looked at together")
    text.line(inner, f"{sender} = {first} + tid")
    text.line(inner, f"{hit} = 0")
    text.line(inner, f"if {sender} < {sent}:")
    text.unravel(sender, form.senders, inner + pad)
    place = text.index(form.place, {}, inner + pad)
    text.line(inner + pad, f"if {place} == {receiver}:")
    text.line(inner + pad, f"    {hit} = 1")
    text.line(inner, f"hits[tid] = {hit}")
    text.line(inner, f"if cuda.syncthreads_or({hit}) != 0:")
    text.line(inner, f"    for k in range(min({threads}, {sent} - {first})):  # in order")
    text.line(deep, "if hits[k] != 0:")
    deep += pad
    text.unravel(f"{first} + k", form.senders, deep)
    if wide == 1:
        text.line(deep, "if tid == 0:")
        for v in form.lanes:
            text.line(deep + pad, f"{text.var(v)} = 0")
    else:
        lane = text.flat_name(form.lanes, "lane")
        text.line(deep, f"for {lane} in range(tid, {wide}, {threads}):")
        text.unravel(lane, form.lanes, deep + pad)
    text.body([form.store], deep + pad, {}, 0)
    text.line(inner, "cuda.syncthreads()")
    return form.blocks, threads
