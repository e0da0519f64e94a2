"""The carry of a loop, written where it is kept.

    body:  g = h @ w                       body:  g = h @ w
           h' = tanh(g + c)         ->            h = tanh(g + c)
           copy h = h'

The new value is computed aside and copied, unless nothing reads the old one once the new one is being written: the step that
writes it reads the old value at most at the index that it writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fgrad.codegen.program import Block, Buf, ContractStep, CopyStep, KernelStep, Step, touched

Flow = tuple[Step, set[Buf], set[Buf]]  # a step, and the roots that it reads and writes


def write_carry(block: Block, carry: Sequence[Buf], new: Sequence[Buf]) -> None:
    """Make the body end with `new` in `carry`. `new[i]` is a temporary of the type of `carry[i]`."""
    steps = block.steps
    flows = [(s, *touched(s)) for s in steps]
    flows = _copies_first(flows, carry)
    steps[:] = [s for s, _, _ in flows]
    pairs = [(c, n) for c, n in zip(carry, new, strict=True) if c.size]
    for old, fresh in pairs:
        if _replaceable(flows, old, fresh):
            # A view of all of it: every step that mentions the temporary now means the carry.
            fresh.kind, fresh.base = "view", old
    steps.extend(CopyStep(old, fresh) for old, fresh in pairs if fresh.base is None)
    steps[:] = [s for s in steps if not (isinstance(s, CopyStep) and _same(s.dst, s.src))]


def _same(a: Buf, b: Buf) -> bool:
    while a.base is not None and not a.byte_offset and not a.byte_stride and a.nbytes == a.base.nbytes:
        a = a.base
    while b.base is not None and not b.byte_offset and not b.byte_stride and b.nbytes == b.base.nbytes:
        b = b.base
    return a is b


def _copies_first(flows: list[Flow], carry: Sequence[Buf]) -> list[Flow]:
    """Copies of the old carry (results that are stacked) go to the front, where they are in nobody's way."""
    roots = {c.root for c in carry}
    users = Counter(root for _, reads, writes in flows for root in reads | writes)

    def early(s: Step) -> bool:
        if not isinstance(s, CopyStep) or s.src.root not in roots or s.dst.root in roots:
            return False
        return users[s.dst.root] == 1

    return [*(f for f in flows if early(f[0])), *(f for f in flows if not early(f[0]))]


def _of_a_product(before: Sequence[Flow], step: Step, old: Buf) -> bool:
    """Whether `step` makes the new carry of a product of the old one, element by element: it may become part of the product
    (`codegen.epilogue`) if it does not overwrite what that reads, which is worth more than the copy."""
    return isinstance(step, KernelStep) and any(
        isinstance(s, ContractStep) and old.root in reads and s.out in step.reads and s.out.size == old.size
        for s, reads, _ in before
    )


def _replaceable(flows: Sequence[Flow], old: Buf, fresh: Buf) -> bool:
    writers = [n for n, (_, _, writes) in enumerate(flows) if fresh in writes]
    if not writers or any(old.root in writes for _, _, writes in flows):
        return False
    first = writers[0]
    if any(old.root in reads for _, reads, _ in flows[first + 1 :]):
        return False
    step, reads, _ = flows[first]
    if _of_a_product(flows[:first], step, old):
        return False
    if old.root not in reads:
        return True
    if len(writers) > 1:
        return False
    if isinstance(step, CopyStep):
        return _same(step.src, old)
    return isinstance(step, KernelStep) and any(
        _same(out, fresh) and _same(source, old) for out, source in step.in_place
    )
