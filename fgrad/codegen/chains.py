"""Chains: steps that follow each other piece by piece instead of step by step.

    conv, pool, conv, pool, ...    each cut into 16 pieces of four samples:

    step by step     conv 0 1 2 ... 15 | pool 0 1 2 ... 15 | conv 0 1 ...       (| all threads wait)
    as a chain       conv pool conv pool ... 0,  conv pool conv pool ... 1,  ...

A step may be a member if each of its pieces is *at home* (`codegen.cutting`) in whatever other members write: then piece p reads
only what piece p has written. What nobody in the chain writes, such as weights, may be read anywhere. Sums over all
samples, such as weight gradients, leave partial results where that is cheap, and are added up after the chain.

Steps are taken in program order; what cannot be a member stays behind the chain with all that depends on it, or goes before it if
it needs nothing of the chain. What is left behind forms the next chain. All is decided by cost, from the program alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from fgrad.codegen.contraction import Dim
from fgrad.codegen.cutting import (
    Reach,
    apply_contract_cut,
    at_home,
    body_reach,
    cut_contraction,
    outer_loop,
    piece_reaches,
    possible_dims,
    unit,
)
from fgrad.codegen.partial import split_sum
from fgrad.codegen.pieces import Pieces, kernel_cycles, total_cycles
from fgrad.codegen.program import Block, Buf, ChainStep, ContractStep, KernelStep, Program, Step, touched
from fgrad.codegen.target import TargetInfo

_WAIT = 6_000.0  # cycles that threads lose where all wait for all
_PIECE = 1_500.0  # and that handing out a piece costs
_MEMBER = 800.0  # and each member, once a piece
_MUCH = 4e6  # cycles that are worth more than two threads
_WINDOW = 48  # steps left behind before a chain is closed
_BEFORE_BYTES = 1 << 18  # what is computed early is kept long
_COUNTS = (2, 4, 8, 16)
_HEAD = 16  # steps that decide between them


def balance(count: int, cycles: float) -> float:
    """How much longer threads take than if pieces could be any size: two of them, and more if there is much to do; and one may
    be kept from its work for a while."""
    many = min(1.0, cycles / _MUCH)
    shares = (2, 1 - 0.25 * many), (4, 0.17 * many), (8, 0.08 * many)
    return sum(share * threads * -(-count // threads) / count for threads, share in shares) + 0.15 / count


@dataclass(eq=False)
class Option:
    """A way for a step to be a member. `reads` and `writes` say of each unit whether the pieces are at home in it.

    `find_cost` gives the cycles of all pieces; it is asked only where the option would fit, as planning takes time.
    """

    reads: dict[Buf, bool]
    writes: dict[Buf, bool]
    find_cost: Callable[[], float]
    apply: Callable[[], tuple[Step, list[KernelStep]]]  # the member, and what adds up its partial results

    @cached_property
    def cost(self) -> float:
        return self.find_cost()


def _note(into: dict[Buf, bool], buf: Buf, reach: Reach | None, count: int) -> None:
    key = unit(buf)[0]
    into[key] = into.get(key, True) and at_home(buf, reach, count)


class Cutter:
    """Finds the options of steps, and remembers them."""

    def __init__(self, target: TargetInfo):
        self.target = target
        self.known: dict[tuple[int, int], tuple[Step, list[Option]]] = {}

    def options(self, step: Step, count: int) -> list[Option]:
        """Ways to cut `step` into `count` equal pieces."""
        key = id(step), count
        if key not in self.known:
            found: list[Option] = []
            if isinstance(step, KernelStep):
                found = self.kernel(step, count)
            elif isinstance(step, ContractStep):
                found = self.contraction(step, count)
            self.known[key] = step, found
        return self.known[key][1]

    def kernel(self, step: KernelStep, count: int) -> list[Option]:
        if outer_loop(step.kernel) is not None:
            option = self.ranges(step, count, step)
            return [option] if option else []
        return self.sums(step, count)

    def ranges(self, step: KernelStep, count: int, original: KernelStep) -> Option | None:
        loop = outer_loop(step.kernel)
        if loop is None or loop.var.extent % count or loop.var.extent == 0:
            return None
        if "reach" not in step.kernel.meta:
            step.kernel.meta["reach"] = body_reach(loop.body, loop.var)
        reads: dict[Buf, bool] = {}
        writes: dict[Buf, bool] = {}
        chunk = loop.var.extent // count
        args = dict(zip(step.kernel.buffers, step.args, strict=True))
        for into, found in zip((reads, writes), step.kernel.meta["reach"]):
            for buffer, reach in found.items():
                if args[buffer].root.kind != "status":
                    _note(into, args[buffer], reach.times(chunk) if reach else None, count)
        cycles = kernel_cycles(step.kernel)
        pieces = Pieces(count, chunk, loop.var.extent, cycles)

        def apply() -> tuple[Step, list[KernelStep]]:
            step.kernel.meta["pieces"] = pieces
            return step, []

        return Option(reads, writes, lambda: cycles, apply)

    def sums(self, step: KernelStep, count: int) -> list[Option]:
        split = split_sum(step, count)
        if split is None:
            return []
        option = self.ranges(split.first, count, step)
        if option is None:
            return []
        whole, rest = kernel_cycles(step.kernel), sum(kernel_cycles(s.kernel) for s in split.rest)
        if rest > whole + 4000:
            return []
        inner = option.apply

        def apply() -> tuple[Step, list[KernelStep]]:
            return inner()[0], split.rest

        return [Option(option.reads, option.writes, lambda: whole + 2 * rest, apply)]

    def contraction(self, step: ContractStep, count: int) -> list[Option]:
        whole = step.meta["plan"]
        if whole.path in ("nothing", "zero") or "pieces" in step.meta:
            return []
        found = []
        for dim, is_k in possible_dims(step.spec, count):
            if is_k and step.spec.out.dtype != whole.acc:
                continue  # partial results are kept in the type that sums are
            found.append(self.contract_option(step, dim, count, is_k))
        return found

    def contract_option(self, step: ContractStep, dim: Dim, count: int, is_k: bool) -> Option:
        spec, after = step.spec, None if is_k else step.epilogue
        reads: dict[Buf, bool] = {}
        writes: dict[Buf, bool] = {}
        touches = [(reads, step.lhs, spec.lhs), (reads, step.rhs, spec.rhs)]
        if not is_k and step.keeps_product:
            touches.append((writes, step.out, spec.out))
        if after is not None:
            for i in after.extra:
                into = reads if after.kernel.buffers[i].role == "in" else writes
                touches.append((into, after.args[i], after.operands[i]))
        reaches = piece_reaches(spec, dim, count, [operand for *_, operand in touches])
        for (into, buf, _), reach in zip(touches, reaches):
            _note(into, buf, reach, count)

        def cost() -> float:
            cut = cut_contraction(step, dim, count, is_k, self.target)
            # Who reads the result cannot follow in the chain if it is not cut as its rows are.
            scattered = sum(0.05 * u.nbytes for u, home in writes.items() if not home)
            return cut.cycles + scattered if cut else math.inf

        def apply() -> tuple[Step, list[KernelStep]]:
            cut = cut_contraction(step, dim, count, is_k, self.target)
            assert cut is not None
            return step, apply_contract_cut(step, cut)

        return Option(reads, writes, cost, apply)


@dataclass
class Attempt:
    """A chain that could be made of the first of some steps: what would come before it, its members, what after."""

    count: int
    before: list[Step] = field(default_factory=list)
    members: list[tuple[Step, Option]] = field(default_factory=list)
    after: list[Step | int] = field(
        default_factory=list
    )  # a number: what adds up that member's partial results
    gain: float = 0.0


class _Flow:
    """What some steps touch, as roots of buffers; a donated input counts as written with its output."""

    def __init__(self, aliases: dict[Buf, Buf]):
        self.aliases = aliases
        self.reads: set[Buf] = set()
        self.writes: set[Buf] = set()

    def add(self, reads: set[Buf], writes: set[Buf]) -> None:
        self.reads |= reads
        self.writes |= writes | {self.aliases[b] for b in writes if b in self.aliases}

    def holds_back(self, reads: set[Buf], writes: set[Buf]) -> bool:
        """Whether a step that touches these must stay behind what is in here."""
        mine = writes | {self.aliases[b] for b in writes if b in self.aliases}
        return not (
            self.writes.isdisjoint(reads) and self.writes.isdisjoint(mine) and self.reads.isdisjoint(mine)
        )


class Former:
    """Makes chains of the steps of one program."""

    def __init__(self, program: Program, target: TargetInfo):
        self.cutter = Cutter(target)
        self.aliases = {program.outputs[j]: program.inputs[i] for i, j in program.donated.items()}
        self.flows: dict[Step, tuple[set[Buf], set[Buf]]] = {}

    def flow(self, step: Step) -> tuple[set[Buf], set[Buf]]:
        if step not in self.flows:
            reads, writes = touched(step)
            if isinstance(step, ContractStep):
                writes -= {step.workspace}  # which is nobody else's
            self.flows[step] = (
                {b for b in reads if b.kind not in ("const", "status")},
                {b for b in writes if b.kind != "status"},
            )
        return self.flows[step]

    def attempt(self, steps: Sequence[Step], count: int) -> Attempt:
        """The chain of pieces `count` that starts with the first steps."""
        made = Attempt(count)
        chain, behind = _Flow(self.aliases), _Flow(self.aliases)
        home_reads: dict[Buf, bool] = {}
        home_writes: dict[Buf, bool] = {}
        for n, step in enumerate(steps):
            if len(made.after) >= _WINDOW or (not made.members and n > 8):
                made.after.extend(steps[n:])
                break
            reads, writes = self.flow(step)
            held = behind.holds_back(reads, writes)
            if not held:
                option = self.fitting(step, count, chain, home_reads, home_writes)
                if option is not None:
                    made.members.append((step, option))
                    for units, home in ((option.reads, home_reads), (option.writes, home_writes)):
                        for key, value in units.items():
                            home[key] = home.get(key, True) and value
                    kept = {u.root for u in option.writes}
                    chain.add(reads, kept)
                    if writes - kept:  # partial results: the sum is there after the chain
                        made.after.append(len(made.members) - 1)
                        behind.add(reads, writes - kept)
                    continue
                light = total_cycles([step]) < _WAIT and sum(b.nbytes for b in writes) <= _BEFORE_BYTES
                if light and not chain.holds_back(reads, writes):
                    made.before.append(step)
                    continue
            made.after.append(step)
            behind.add(reads, writes)
        whole = total_cycles([s for s, _ in made.members])
        cost = sum(o.cost for _, o in made.members)
        cost += _MEMBER * count * len(made.members)
        made.gain = whole - cost * balance(count, whole) / 2 - _PIECE * count / 2 - _WAIT
        return made

    def fitting(
        self, step: Step, count: int, chain: _Flow, home_reads: dict[Buf, bool], home_writes: dict[Buf, bool]
    ) -> Option | None:
        """The cheapest option of `step` whose pieces keep apart from the chain's, if it is cheap enough."""
        inside = sum(b.nbytes for b in self.flow(step)[0] if b in chain.writes)
        whole = total_cycles([step])
        fits = [o for o in self.cutter.options(step, count) if self.apart(o, chain, home_reads, home_writes)]
        if not fits:
            return None
        best = min(fits, key=lambda o: o.cost)
        # Left out, it would make two chains of one, and threads wait twice more; what follows it is not in the cache then.
        limit = min(1.08 * whole + 5 * _WAIT + 0.05 * inside, 3 * whole + _WAIT)
        return best if best.cost <= limit else None

    def apart(
        self, option: Option, chain: _Flow, home_reads: dict[Buf, bool], home_writes: dict[Buf, bool]
    ) -> bool:
        """Whether no piece of the option meets another piece of the chain."""
        for key, home in option.reads.items():
            if key.root in chain.writes and not (home and home_writes.get(key, False)):
                return False
        return all(
            self.may_write(key, home, chain, home_reads, home_writes) for key, home in option.writes.items()
        )

    def may_write(
        self, key: Buf, home: bool, chain: _Flow, home_reads: dict[Buf, bool], home_writes: dict[Buf, bool]
    ) -> bool:
        old = self.aliases.get(key)
        if old is not None and old in chain.reads and not (home and home_reads.get(old, False)):
            return False
        if key.root in chain.writes and not (home and home_writes.get(key, False)):
            return False
        return key.root not in chain.reads or (home and home_reads.get(key, False))

    # -------------------------------------------------------------------------------------------- choosing

    def form(self, steps: Sequence[Step], single: Callable[[Step], list[Step]]) -> list[Step]:
        """`steps` in chains; `single` cuts a step that is in none."""
        result: list[Step] = []
        rest = list(steps)
        while rest:
            best = self.best(rest)
            if best is None:
                result.extend(single(rest[0]))
                rest = rest[1:]
                continue
            for step in best.before:
                result.extend(single(step))
            if len(best.members) == 1:
                (step, _), tail = best.members[0], [s for s in best.after if not isinstance(s, int)]
                made = single(step)
                result.append(made[0])
                rest = [*made[1:], *tail]
                continue
            adding: list[list[KernelStep]] = []
            members: list[tuple[Step, Option]] = []
            for _, option in best.members:
                member, sums = option.apply()
                members.append((member, option))
                adding.append(sums)
            result.append(_chain(best.count, members))
            rest = [s for item in best.after for s in (adding[item] if isinstance(item, int) else [item])]
        return result

    def best(self, steps: Sequence[Step]) -> Attempt | None:
        """The attempt that gains most over running its steps on one thread, or None if the first step is best left alone."""
        found: Attempt | None = None
        for count in self.counts(steps):
            made = self.attempt(steps, count)
            if made.members and made.gain > (found.gain if found else 0.0):
                found = made
        return found

    def counts(self, steps: Sequence[Step]) -> list[int]:
        """Numbers of pieces to try: divisors of the extents that the heaviest of the first steps could be cut along."""
        head = steps[:_HEAD]
        heaviest = max(head, key=lambda s: total_cycles([s]))
        extents: list[int] = []
        if isinstance(heaviest, ContractStep):
            spec = heaviest.spec
            extents = [d.extent for dims in (spec.batch, spec.n, spec.m) for d in dims[:1] if d.extent > 1]
        elif isinstance(heaviest, KernelStep) and (loop := outer_loop(heaviest.kernel)) is not None:
            extents = [loop.var.extent]
        found = {max(d for d in range(1, w + 1) if e % d == 0) for e in extents if e for w in _COUNTS}
        return sorted(found - {1})


def _chain(count: int, members: list[tuple[Step, Option]]) -> ChainStep:
    steps = [s for s, _ in members]
    eqns = tuple(dict.fromkeys(e for s in steps for e in s.eqns))
    away = _away(members)
    units = {u for _, o in members for units in (o.reads, o.writes) for u in units}
    home = frozenset(u for u in units if u.base is None and u not in away)
    chain = ChainStep(count, Block(steps), eqns, home, tuple(_in_place(members, away)))
    share_workspace(chain)
    return chain


def share_workspace(chain: ChainStep) -> None:
    """Let the contractions of a chain share one workspace."""
    steps = [s for s in chain.body.steps if isinstance(s, ContractStep) and s.workspace is not None]
    most = max((-(-s.meta["pieces"].plan.workspace_bytes // 64) * 64 for s in steps), default=0)
    work = Buf("work", (most * chain.count,), np.dtype(np.uint8))
    for s in steps:
        s.workspace = work
        s.meta["pieces"] = replace(s.meta["pieces"], workspace=most)


def _away(members: list[tuple[Step, Option]]) -> set[Buf]:
    """Roots in which some piece is not at home."""
    found = {u for _, o in members for units in (o.reads, o.writes) for u, home in units.items() if not home}
    return {u.root for u in found}


def _in_place(
    members: list[tuple[Step, Option]], away: set[Buf]
) -> Iterator[tuple[KernelStep | ContractStep, Buf, Buf]]:
    """Pairs of the members' that hold for the chain: no other member, and no other piece of one, reads the old value later.

    An element is read and written by one piece of a member; so pieces need not be at home where it alone touches the two.
    """
    users: dict[Buf, list[int]] = {}
    for n, (step, _) in enumerate(members):
        for root in {b.root for b in (*step.reads, *step.writes)}:
            users.setdefault(root, []).append(n)
    for n, (step, _) in enumerate(members):
        if isinstance(step, (KernelStep, ContractStep)):
            for written, read in step.in_place:
                old, new = users.get(read.root, []), users.get(written.root, [])
                alone = old == new == [n]
                if alone or ({written.root, read.root}.isdisjoint(away) and old[-1:] == [n] == new[:1]):
                    yield step, written, read
