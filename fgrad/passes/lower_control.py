"""Branches and loops: their graphs become blocks of steps over the same buffers.

    scan:  carry = init;  for i in range(length):  new = body(consts, carry, xs[i]) -> ys[i];  carry = new

`xs[i]` and `ys[i]` are views that move by one row an iteration; the carry lives in the scan's own output buffers.
A body that needs NumPy cannot be part of a native loop: then the whole equation is one call of its NumPy definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgrad.codegen.program import Block, Buf, CopyStep, ForStep, HostStep, Step, SwitchStep, WhileStep, walk
from fgrad.ir import Eqn, Graph
from fgrad.passes.carry import write_carry
from fgrad.passes.lazy import Lazy
from fgrad.passes.lowering import Lowering, Rule
from fgrad.passes.rows import Cut, choose_parts, cut_rows


def _native(low: Lowering, eqn: Eqn, lower: Callable[[], list[Step]]) -> bool:
    """Emit what `lower` makes unless it needs NumPy inside; then undo it and say no."""
    shared = low.shared
    saved = (len(low.items), dict(low.env), len(shared.checks), dict(shared.check_codes))
    steps = lower()
    if not any(isinstance(s, HostStep) for step in steps for s in _all(step)):
        low.items.extend(steps)
        return True
    del low.items[saved[0] :]
    low.env = saved[1]
    del shared.checks[saved[2] :]
    shared.check_codes = saved[3]
    return False


def _all(step: Step) -> list[Step]:
    return list(walk(Block([step])))


def _inputs(low: Lowering, eqn: Eqn) -> list[Lazy]:
    """Operands in buffers: a branch must not compute what all branches share, nor a loop what does not change."""
    return [
        low.value(a) if low.value(a).literal is not None else low.of_buf(low.atom_buf(a)) for a in eqn.inputs
    ]


def _define(low: Lowering, eqn: Eqn, bufs: Sequence[Buf]) -> None:
    for var, buf in zip(eqn.outputs, bufs, strict=True):
        low.env[var] = low.of_buf(buf)


def switch(low: Lowering, eqn: Eqn) -> None:
    outs = [low.buf_for(v) for v in eqn.outputs]

    def lower() -> list[Step]:
        index = low.atom_buf(eqn.inputs[0])
        args = _inputs(low, eqn)[1:]
        branches: tuple[Graph, ...] = eqn.params["branches"]
        return [SwitchStep(index, tuple(low.block(g, args, outs) for g in branches), (eqn,))]

    if not _native(low, eqn, lower):
        return low.host(eqn)
    _define(low, eqn, outs)
    return None


def _start(low: Lowering, values: Sequence[Lazy], bufs: Sequence[Buf]) -> None:
    """Put the initial carry where the loop keeps it."""
    for value, buf in zip(values, bufs, strict=True):
        if value.buf is not None:
            low.copied(value, buf)
        else:
            low.store(value, buf)


def _body(
    low: Lowering, graph: Graph, inputs: Sequence[Lazy], carry: Sequence[Buf], ys: Sequence[Buf]
) -> Block:
    """One iteration."""
    new = [low.new_buf(c.shape, c.dtype) for c in carry]
    block = low.block(graph, inputs, [*new, *ys])
    write_carry(block, carry, new)
    return block


def while_loop(low: Lowering, eqn: Eqn) -> None:
    n_cond, n_body = eqn.params["cond_consts"], eqn.params["body_consts"]
    carry = [low.buf_for(v) for v in eqn.outputs]

    def lower() -> list[Step]:
        args = _inputs(low, eqn)
        cond_consts, body_consts, init = (
            args[:n_cond],
            args[n_cond : n_cond + n_body],
            args[n_cond + n_body :],
        )
        _start(low, init, carry)
        state = [low.of_buf(c) for c in carry]
        cond: Graph = eqn.params["cond"]
        pred = low.new_buf((), cond.outputs[0].type.dtype)
        test = low.block(cond, [*cond_consts, *state], [pred])
        return [
            WhileStep(test, pred, _body(low, eqn.params["body"], [*body_consts, *state], carry, ()), (eqn,))
        ]

    if not _native(low, eqn, lower):
        return low.host(eqn)
    _define(low, eqn, carry)
    return None


def _moving(low: Lowering, buf: Buf, length: int, reverse: bool) -> Buf:
    """A view of row 0 (the last row if reversed) that moves by one row an iteration."""
    row = buf.nbytes // max(length, 1)
    first = row * (length - 1) if reverse else 0
    return Buf(low.shared.name(), buf.shape[1:], buf.dtype, "view", buf, first, -row if reverse else row)


def scan_in_parts(
    low: Lowering, eqn: Eqn, outs: Sequence[Buf], cut: Cut, rows: int, count: int
) -> list[Step]:
    """The loop for each of `count` parts of the batch.

    for part in parallel range(count):
        for i in range(length):  new = body(consts, carry[part], xs[i][part]) -> ys[i][part]
    """
    p = eqn.params
    n_consts, n_carry, length = p["consts"], p["carry"], p["length"]
    args, part = _inputs(low, eqn), rows // count
    outer: list[Buf] = []
    inner: list[Buf] = []

    def piece(buf: Buf, shape: tuple[int, ...]) -> Buf:
        """The part's rows of `buf`, whose rows have `shape`."""
        row = Buf("", shape[1:], buf.dtype).nbytes
        outer.append(Buf(low.shared.name(), (part, *shape[1:]), buf.dtype, "view", buf, 0, part * row))
        return outer[-1]

    def moving(buf: Buf, base: Buf) -> Buf:
        row = buf.nbytes // length
        first, step = (row * (length - 1), -row) if p["reverse"] else (0, row)
        inner.append(Buf(low.shared.name(), base.shape, buf.dtype, "view", base, first, step))
        return inner[-1]

    before: list[Step] = []
    after: list[Step] = []
    carry: list[Buf] = []
    for n, on in enumerate(cut.carried):
        out, init = outs[n], args[n_consts + n]
        if on:
            _start(low, [init], [out])
            carry.append(piece(out, out.shape))
            continue
        # The same for every part: each has its own, and the last one's is the result.
        start = low.new_buf(out.shape, out.dtype)
        _start(low, [init], [start])
        each = low.new_buf((count, *out.shape), out.dtype)
        own = Buf(low.shared.name(), out.shape, out.dtype, "view", each, 0, out.nbytes)
        outer.append(own)
        carry.append(own)
        before.append(CopyStep(own, start))
        last = Buf(low.shared.name(), out.shape, out.dtype, "view", each, out.nbytes * (count - 1))
        after.append(CopyStep(out, last))
    inputs: list[Lazy] = []
    for n, on in cut.inputs:
        if n_consts <= n < n_consts + n_carry:
            inputs.append(low.of_buf(carry[n - n_consts]))
        elif n < n_consts:
            inputs.append(low.of_buf(piece(low.atom_buf(eqn.inputs[n]), args[n].shape)) if on else args[n])
        else:
            buf = low.atom_buf(eqn.inputs[n])
            base = piece(buf, buf.shape[1:]) if on else low.view(buf, buf.shape[1:])
            inputs.append(low.of_buf(moving(buf, base)))
    ys = [moving(buf, piece(buf, buf.shape[1:])) for buf in outs[n_carry:]]
    block = _body(low, cut.graph, inputs, carry, ys)
    loop = ForStep(length, block, tuple(inner), (eqn,))
    return [ForStep(count, Block([*before, loop]), tuple(outer), (eqn,), parallel=True), *after]


def scan(low: Lowering, eqn: Eqn) -> None:
    p = eqn.params
    n_consts, n_carry, length = p["consts"], p["carry"], p["length"]
    outs = [low.buf_for(v) for v in eqn.outputs]
    # On a GPU the threads of a launch share the batch, and loops in parts would be as many more launches.
    parts = choose_parts(p["body"], n_consts, n_carry, length) if low.shared.target == "cpu" else None
    if parts is not None:
        rows, count = parts
        cut = cut_rows(p["body"], n_consts, n_carry, rows, rows // count)
        if cut is not None and _native(low, eqn, lambda: scan_in_parts(low, eqn, outs, cut, rows, count)):
            return _define(low, eqn, outs)
    if length == 0:
        _start(low, low.values(eqn.inputs[n_consts : n_consts + n_carry]), outs[:n_carry])
        return _define(low, eqn, outs)

    def lower() -> list[Step]:
        args = _inputs(low, eqn)
        consts, init = args[:n_consts], args[n_consts : n_consts + n_carry]
        xs = [_moving(low, low.atom_buf(a), length, p["reverse"]) for a in eqn.inputs[n_consts + n_carry :]]
        ys = [_moving(low, buf, length, p["reverse"]) for buf in outs[n_carry:]]
        carry = outs[:n_carry]
        _start(low, init, carry)
        inputs = [*consts, *(low.of_buf(c) for c in carry), *(low.of_buf(x) for x in xs)]
        block = _body(low, p["body"], inputs, carry, ys)
        return [ForStep(length, block, (*xs, *ys), (eqn,))]

    if not _native(low, eqn, lower):
        return low.host(eqn)
    _define(low, eqn, outs)
    return None


RULES: dict[str, Rule] = {"switch": switch, "while_loop": while_loop, "scan": scan}
