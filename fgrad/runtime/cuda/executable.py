"""A program on the GPU: its arena, its constants, and its launches in order, replayed as one CUDA graph where that can be.

A call is given the addresses of inputs and outputs. With addresses that it has met before, the program is
replayed as one CUDA graph (`replay.py`), unless the host has a part in it: loops that end when a value says so, branches that hold
loops, operations left to NumPy.

Launches on one device follow one another in one order, so one arena serves all calls of a program.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad.codegen.cuda.launch import LaunchStep
from fgrad.codegen.program import (
    Block,
    Buf,
    CopyStep,
    ForStep,
    HostStep,
    Program,
    Step,
    SwitchStep,
    WhileStep,
    walk,
)
from fgrad.errors import FgradIndexError, FgradValueError, Source, message
from fgrad.runtime.cuda.driver import Driver
from fgrad.runtime.cuda.memory import DeviceMemory, MemoryPool
from fgrad.runtime.cuda.replay import Replay
from fgrad.runtime.options import graphs_wanted

LONGEST_UNROLLED = 4096  # launches in a CUDA graph, those of loops counted each time

Place = tuple[int, int]  # a slot of the table of addresses, and an offset from it


class CudaExecutable:
    """Call with addresses of the inputs and outputs; see the module's text."""

    def __init__(self, program: Program, driver: Driver, pool: MemoryPool):
        self.program, self.driver, self.pool = program, driver, pool
        self.lock = threading.RLock()
        self.owned: list[DeviceMemory] = []
        self.table: list[int] = []  # addresses by slot: inputs, outputs, arena, status, constants
        self.slots: dict[Buf, int] = {}
        for buf in (*program.inputs, *program.outputs):
            self.slots.setdefault(buf, len(self.table))
            self.table.append(0)
        self.arena = self._own(program.arena_bytes)
        self.status = self._own(8) if program.status is not None else None
        if program.status is not None:
            assert self.status is not None
            self.slots[program.status] = self.status
            driver.clear(self.table[self.status], 8)
        steps = list(walk(program.body))
        for step in steps:
            for buf in (*step.reads, *step.writes):
                if buf.root.kind == "const" and buf.root not in self.slots:
                    self.slots[buf.root] = self._constant(buf.root)
        self.functions = _load_all(steps, driver)
        self.moved: dict[Buf, int] = {}  # bytes that moving views have moved
        self.act = self._block(program.body)
        by_host = any(isinstance(s, (WhileStep, HostStep, SwitchStep)) for s in steps)
        worth = not by_host and 1 < _queued(program.body) <= LONGEST_UNROLLED and graphs_wanted()
        self.replay = Replay(program, self.table, driver, pool, self.act) if worth else None

    def _own(self, nbytes: int) -> int:
        memory = self.pool.allocate(max(nbytes, 1))
        self.owned.append(memory)
        self.table.append(memory.address)
        return len(self.table) - 1

    def _constant(self, buf: Buf) -> int:
        value = np.ascontiguousarray(buf.value, dtype=buf.dtype)
        slot = self._own(value.nbytes)
        self.driver.upload(self.table[slot], value)
        return slot

    # -------------------------------------------------------------------------------------------- calling

    def __call__(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Queue the program on these addresses."""
        with self.lock:
            if self.replay is not None:
                self.replay.run((*inputs, *outputs))
                return
            self.table[: len(inputs) + len(outputs)] = (*inputs, *outputs)
            self.act()

    @property
    def replays(self) -> int:
        """How often the program was replayed as a CUDA graph."""
        return self.replay.replays if self.replay is not None else 0

    def failure(self, callers: Sequence[Source] = ()) -> Exception | None:
        """What a check of the program found wrong, once all that was queued is done. `callers`: of a program of one operation, the
        lines that called it since the last look."""
        if self.status is None:
            return None
        code = np.zeros(1, np.int64)
        self.driver.download(code, self.table[self.status])
        if not code[0]:
            return None
        self.driver.clear(self.table[self.status], 8)
        what, source = self.program.checks[int(code[0]) - 1]
        call = self.program.name
        if callers:
            source = callers[0]
            what = what.removeprefix(f"{call}: ")
        if len(callers) > 1:
            what += f" (in a call at one of {', '.join(map(str, callers))})"
        fix = "indices run from 0 to the size less 1, or from -1 down: look at the index array, or clip it (fgrad.numpy.clip)"
        return FgradIndexError(message(call, what, fix, source))

    # -------------------------------------------------------------------------------------------- steps to actions

    def _place(self, buf: Buf) -> tuple[int, int, tuple[Buf, ...]]:
        """Slot, offset and the moving views on the way of a buffer's first byte."""
        offset, moving = 0, []
        while buf.base is not None:
            offset += buf.byte_offset
            if buf.byte_stride:
                moving.append(buf)
            buf = buf.base
        if buf.kind == "temp":
            return self.arena, offset + self.program.offsets[buf], tuple(moving)
        return self.slots[buf], offset, tuple(moving)

    def _address(self, buf: Buf) -> Callable[[], int]:
        slot, offset, moving = self._place(buf)
        table, moved = self.table, self.moved
        if moving:
            return lambda: table[slot] + offset + sum(moved.get(view, 0) for view in moving)
        return lambda: table[slot] + offset

    def _block(self, block: Block) -> Callable[[], None]:
        actions = [self._step(step) for step in block.steps]

        def act() -> None:
            for action in actions:
                action()

        return act

    def _step(self, step: Step) -> Callable[[], None]:
        driver = self.driver
        if isinstance(step, LaunchStep):
            kernel, function = step.kernel, self.functions[step.kernel.text]
            addresses = [self._address(b) for b in step.args]
            return lambda: driver.launch(function, kernel, [a() for a in addresses])
        if isinstance(step, CopyStep):
            to, source, nbytes = self._address(step.dst), self._address(step.src), step.dst.nbytes
            return lambda: driver.copy(to(), source(), nbytes)
        if isinstance(step, ForStep):
            return self._for(step)
        if isinstance(step, WhileStep):
            return self._while(step)
        if isinstance(step, SwitchStep):
            return self._switch(step)
        if isinstance(step, HostStep):
            return self._host(step)
        raise NotImplementedError(f"{self.program.name}: {type(step).__name__} on a GPU")

    def _for(self, step: ForStep) -> Callable[[], None]:
        body = self._block(step.body)

        def act() -> None:
            for i in range(step.length):
                for view in step.moving:
                    self.moved[view] = i * view.byte_stride
                body()

        return act

    def _while(self, step: WhileStep) -> Callable[[], None]:
        """Driven from here: whether to go on is read after each evaluation of the condition."""
        cond, body, pred = self._block(step.cond), self._block(step.body), self._address(step.pred)
        value = np.zeros(1, step.pred.dtype)

        def act() -> None:
            while True:
                cond()
                self.driver.download(value, pred())
                if not value[0]:
                    return
                body()

        return act

    def _switch(self, step: SwitchStep) -> Callable[[], None]:
        branches = [self._block(b) for b in step.branches]
        index, value = self._address(step.index), np.zeros(1, step.index.dtype)

        def act() -> None:
            self.driver.download(value, index())
            branches[min(max(int(value[0]), 0), len(branches) - 1)]()

        return act

    def _host(self, step: HostStep) -> Callable[[], None]:
        """Allowed by `fgrad.host_ops(True)`: operands to the CPU, NumPy, results back."""
        sources = [(self._address(b), b) for b in step.inputs]
        targets = [(self._address(b), b) for b in step.outputs]

        def act() -> None:
            values = [np.empty(b.shape, b.dtype) for _, b in sources]
            for value, (address, _) in zip(values, sources, strict=True):
                self.driver.download(value, address())
            with np.errstate(all="ignore"):
                found = step.prim.impl(*values, **step.params)
            for result, (address, b) in zip(found if step.prim.multiple else (found,), targets, strict=True):
                if np.shape(result) != b.shape:
                    text = f"its implementation returned shape {np.shape(result)} where its type rule says {b.shape}"
                    raise FgradValueError(message(step.prim.name, text))
                self.driver.upload(address(), np.ascontiguousarray(result, dtype=b.dtype))

        return act


def _load_all(steps: Sequence[Step], driver: Driver) -> dict[str, Any]:
    """Each distinct kernel of a program, compiled once."""
    kernels = {step.kernel.text: step.kernel for step in steps if isinstance(step, LaunchStep)}
    driver.prepare(list(kernels.values()))
    return {text: driver.load(kernel) for text, kernel in kernels.items()}


def _queued(block: Block) -> int:
    """How many launches and copies a call queues."""
    total = 0
    for step in block.steps:
        total += step.length * _queued(step.body) if isinstance(step, ForStep) else 1
    return total
