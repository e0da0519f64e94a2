"""Kernels and programs as text in which names do not matter: equal texts mean equal code.

The disk cache takes its keys from these texts, and kernels with the same text are emitted once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fgrad.codegen.loops import (
    Acc,
    Affine,
    Buffer,
    Check,
    Const,
    Expr,
    Init,
    Kernel,
    Load,
    Loop,
    LoopVar,
    Op,
    Stmt,
    Store,
    Update,
    children,
)
from fgrad.codegen.program import (
    Block,
    Buf,
    ChainStep,
    ContractStep,
    CopyStep,
    ForStep,
    HostStep,
    KernelStep,
    Program,
    Step,
    SwitchStep,
    WhileStep,
)


def kernel_text(kernel: Kernel) -> str:
    """The kernel with everything numbered in order of first use. Kept on the kernel: kernels do not change once made."""
    text = kernel.meta.get("canonical")
    if text is None:
        text = kernel.meta["canonical"] = _KernelText(kernel).text()
    return text


class _KernelText:
    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.buffers = {b: n for n, b in enumerate(kernel.buffers)}
        self.numbers: dict[int, int] = {}
        self.lines: list[str] = []

    def text(self) -> str:
        for b in self.kernel.buffers:
            self.lines.append(f"{b.role} {b.dtype} {b.size}")
        self.block(self.kernel.body)
        return "\n".join(self.lines)

    def block(self, body: Sequence[Stmt]) -> None:
        for s in body:
            if isinstance(s, Loop):
                self.lines.append(f"loop {s.kind} {s.var.extent} {self.number(s.var)} {{")
                self.block(s.body)
                self.lines.append("}")
            elif isinstance(s, Store):
                mask = "" if s.mask is None else self.number(s.mask)
                where = f"b{self.buffer(s.buffer)}[{self.number(s.index)}]"
                self.lines.append(f"{where} {s.op} {self.number(s.value)} {mask}")
            elif isinstance(s, Init):
                self.lines.append(f"init {self.number(s.acc)} {self.number(s.value)}")
            elif isinstance(s, Update):
                self.lines.append(f"{s.op} {self.number(s.acc)} {self.number(s.value)}")
            elif isinstance(s, Check):
                self.lines.append(f"check {self.number(s.ok)} b{self.buffer(s.status)} {s.code}")
            else:
                raise NotImplementedError(f"no canonical text for {type(s).__name__}")

    def buffer(self, b: Buffer) -> int:
        return self.buffers[b]

    def number(self, root: Expr) -> int:
        numbers = self.numbers
        pending = [root]
        while pending:
            e = pending[-1]
            if id(e) in numbers:
                pending.pop()
                continue
            missing = [c for c in children(e) if id(c) not in numbers]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            line = self.describe(e)
            numbers[id(e)] = len(numbers)
            self.lines.append(line)
        return numbers[id(root)]

    def describe(self, e: Expr) -> str:
        n = self.numbers
        if isinstance(e, Const):
            return f"c {e.dtype} {np.asarray(e.value, e.dtype).tobytes().hex()}"
        if isinstance(e, LoopVar):
            return f"v {e.extent}"
        if isinstance(e, Affine):
            return f"a {e.const} " + " ".join(f"{n[id(t)]}*{c}" for t, c in e.terms)
        if isinstance(e, Op):
            return f"o {e.name} {e.dtype} " + " ".join(str(n[id(a)]) for a in e.args)
        if isinstance(e, Load):
            rest = " ".join("" if x is None else str(n[id(x)]) for x in (e.mask, e.other))
            return f"l b{self.buffer(e.buffer)} {n[id(e.index)]} {rest}"
        if isinstance(e, Acc):
            return f"r {e.dtype}"
        raise NotImplementedError(f"no canonical text for {type(e).__name__}")


def program_text(program: Program) -> str:
    """The planned program: steps, buffers by number with their places, and the text of each kernel."""
    return _ProgramText(program).text()


class _ProgramText:
    def __init__(self, program: Program):
        self.program = program
        self.names: dict[Buf, str] = {}
        self.kernels: dict[str, int] = {}
        self.lines: list[str] = []

    def text(self) -> str:
        p = self.program
        for kind, bufs in (("input", p.inputs), ("output", p.outputs)):
            self.lines.append(kind + " " + " ".join(self.name(b) for b in bufs))
        self.lines.append(
            f"arena {p.arena_bytes} placed {sorted(p.placed.items())} donated {sorted(p.donated.items())}"
        )
        self.block(p.body)
        for text, n in self.kernels.items():
            self.lines.append(f"kernel {n}\n{text}")
        return "\n".join(self.lines)

    def name(self, buf: Buf) -> str:
        known = self.names.get(buf)
        if known is None:
            base = "" if buf.base is None else f"{self.name(buf.base)}+{buf.byte_offset}+{buf.byte_stride}i"
            place = self.program.offsets.get(buf, "") if buf.base is None else ""
            place = f"{place} {self.program.local.get(buf, '')}"
            known = self.names[buf] = f"%{len(self.names)}"
            self.lines.append(f"{known} {buf.kind} {buf.dtype} {buf.shape} {base} {place}")
        return known

    def block(self, block: Block) -> None:
        for step in block.steps:
            self.step(step)

    def step(self, s: Step) -> None:
        def names(bufs: Sequence[Buf]) -> str:
            return " ".join([self.name(b) for b in bufs])

        if isinstance(s, KernelStep):
            k = self.kernels.setdefault(kernel_text(s.kernel), len(self.kernels))
            self.lines.append(f"run {k} {names(s.args)} {s.kernel.meta.get('pieces', '')}")
        elif isinstance(s, ContractStep):
            work = "" if s.workspace is None else self.name(s.workspace)
            pieces = s.meta.get("pieces")
            plan = pieces.plan if pieces else s.meta.get("plan")
            how = plan.recipe if plan else ""  # options and measurements have a part in it
            cut = f" {pieces.count} {pieces.moves} {pieces.workspace} {pieces.spec!r}" if pieces else ""
            self.lines.append(f"contract {how} {names((s.out, s.lhs, s.rhs))} {work} {s.spec!r}{cut}")
            if s.epilogue is not None:
                key = s.epilogue.key(kernel_text(s.epilogue.kernel))
                self.lines.append(f"then {names(s.epilogue.args)} {key}")
        elif isinstance(s, CopyStep):
            self.lines.append(f"copy {names((s.dst, s.src))}")
        elif isinstance(s, HostStep):
            self.lines.append(f"host {s.prim.name} {names(s.inputs)} -> {names(s.outputs)}")
        elif isinstance(s, SwitchStep):
            self.lines.append(f"switch {self.name(s.index)} {{")
            for branch in s.branches:
                self.block(branch)
                self.lines.append("}{")
        elif isinstance(s, WhileStep):
            self.lines.append("while {")
            self.block(s.cond)
            self.lines.append(f"}} {self.name(s.pred)} {{")
            self.block(s.body)
            self.lines.append("}")
        elif isinstance(s, ChainStep):
            self.lines.append(f"chain {s.count} {{")
            self.block(s.body)
            self.lines.append("}")
        elif isinstance(s, ForStep):
            self.lines.append(f"for {s.length} {s.parallel} {names(s.moving)} {{")
            self.block(s.body)
            self.lines.append("}")
        else:
            raise NotImplementedError(f"no canonical text for {type(s).__name__}")
