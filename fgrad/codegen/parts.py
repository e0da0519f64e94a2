"""Loops whose iterations do not depend on each other: each iteration is a piece of work for some thread.

    define internal void @parts(ptr %frame, i64 %piece, i64 %worker) {
      %table = load ptr, ptr %frame                      ; and where the loops around this one stand
      ...                                                ; the body, with %piece as its index
    }

A recurrent loop over a batch is such a loop around it: each part of the batch goes through all time steps by itself, so threads
never wait for each other in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from fgrad.codegen import team
from fgrad.codegen.program import Block, Buf, ForStep, Program, Step, SwitchStep, WhileStep, walk

_LINE = 64


def own_temporaries(program: Program) -> None:
    """Give each iteration of a parallel loop its own copy of the temporaries that only its body touches."""
    everywhere = _touches(program.body.steps)
    for step in list(walk(program.body)):
        if not (isinstance(step, ForStep) and step.parallel):
            continue
        own: list[Buf] = []
        for root, times in _touches(step.body.steps).items():
            if root.kind != "temp" or times != everywhere[root]:
                continue
            stride = -(-root.nbytes // _LINE) * _LINE
            all_ = Buf(f"{root.name}_parts", (step.length * stride,), np.dtype(np.uint8))
            root.kind, root.base, root.byte_stride = "view", all_, stride
            own.append(root)
        step.moving = (*step.moving, *own)


def _touches(steps: list[Step]) -> Counter[Buf]:
    """How often each root is mentioned by `steps` and those nested in them."""
    found: Counter[Buf] = Counter()
    for s in walk(Block(steps)):
        found.update(b.root for b in (*s.reads, *s.writes))
        if isinstance(s, SwitchStep):
            found[s.index.root] += 1
        elif isinstance(s, WhileStep):
            found[s.pred.root] += 1
    return found


def emit_parts(emitter: Any, step: ForStep, make: Callable[..., Any]) -> None:
    """Emit the loop as a function of the iteration, and a call that hands the iterations out. `emitter` and what `make`
    returns are `entry.SegmentEmitter`s."""
    shared, builder = emitter.shared, emitter.builder
    i64, pointer = team.I64, team.POINTER
    around: dict[ir.Value, None] = dict.fromkeys(emitter.indices.values())
    frame = emitter.loads.alloca(pointer, 1 + len(around))
    places = {value: n for n, value in enumerate(around, 1)}
    for value, n in ((emitter.table, 0), *places.items()):
        where = builder.gep(frame, [i64(n)], source_etype=pointer)
        builder.store(value, where if value.type == pointer else builder.bitcast(where, pointer))
    fn = ir.Function(shared.module, team.TASK, shared.unique("parts"))
    fn.linkage = "internal"
    fn.attributes.add("nounwind")
    shared.tasks[fn.name] = fn
    inner = make(shared, fn)
    loads = inner.loads
    inner.table = loads.load(fn.args[0], typ=pointer)
    inner.team = pointer(None)  # what is shared inside is done by the thread itself
    known = {
        value: loads.load(loads.gep(fn.args[0], [i64(n)], source_etype=i64), typ=i64)
        for value, n in places.items()
    }
    inner.indices.update((buf, known[value]) for buf, value in emitter.indices.items())
    inner.indices.update(dict.fromkeys(step.moving, fn.args[1]))
    inner.steps(step.body.steps)
    inner.builder.ret_void()
    loads.branch(inner.start)
    builder.call(team.run, [emitter.team, fn, frame, i64(step.length)])
