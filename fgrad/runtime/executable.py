"""A compiled program that can be called: tables of pointers, the arena, output buffers, and the host steps between segments.

A call writes the input pointers into a table, takes memory for the results (`outputs.py`) and jumps into the code.
What a call needs is held by a `Workspace`; each call takes an idle one or makes another, so that threads never share
an arena and no call waits for a lock.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import struct
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fgrad.codegen.canonical import program_text
from fgrad.codegen.choices import plan_contractions
from fgrad.codegen.entry import Entry, emit_program
from fgrad.codegen.layout import HostControl, Item, Layout, Places, Segment, cut
from fgrad.codegen.pieces import worth_threads
from fgrad.codegen.program import Buf, ForStep, HostStep, Program, SwitchStep
from fgrad.codegen.target import TargetInfo, host
from fgrad.errors import FgradIndexError, FgradValueError, message
from fgrad.memory import data_pointer, held_at_fork, new_block, view
from fgrad.passes.memory import peak_memory, plan_memory
from fgrad.runtime import cache, options, threads
from fgrad.runtime.autotune import Tuner
from fgrad.runtime.native import NativeCode, compile_module, load_object
from fgrad.runtime.outputs import Pool, group_outputs

_loaded: weakref.WeakValueDictionary[str, NativeCode] = weakref.WeakValueDictionary()
# One compilation at a time: Numba has a lock of its own around all of its work.
_compile_lock = held_at_fork(threading.RLock())
_numbers = itertools.count()


def plan_program(program: Program, autotune: bool = False) -> TargetInfo:
    """Decide all that is decided before code is written: contractions, what threads share, memory. Once a program.

    With `autotune`, plans of heavy contractions are measured, unless the disk cache knows which is fastest."""
    target = replace(host(), winograd=options.winograd_allowed())
    if not program.planned:
        plan_contractions(program, target, Tuner(target).choose if autotune else None)
        plan_memory(program)
        program.planned = True
    return target


def compile_program(program: Program, key: str = "", autotune: bool = False) -> Executable:
    """Plan the program's memory, then find its code (in this process, on disk) or make it.

    `key` is mixed into the name of the disk entry; the program's own canonical text is always part of it, so the code
    that is loaded fits the program whatever the caller passes.
    """
    target = plan_program(program, autotune)
    digest = hashlib.sha256(program_text(program).encode()).hexdigest()
    name = cache.entry_key(digest, key, target.cpu, target.features, str(target.vector_bytes))
    with _compile_lock:
        native = _loaded.get(name)
        if native is None:
            native = _load_or_compile(program, name, digest)
            _loaded[name] = native
    return Executable(program, native)


def _load_or_compile(program: Program, name: str, digest: str) -> NativeCode:
    found = cache.load(name)
    if found is not None:
        return load_object(found.object_code, found.meta["symbol"])
    # A number, as Numba keeps all code for ever and must not meet one symbol twice.
    symbol = f"fgrad_{digest[:16]}_{next(_numbers)}"
    entry = emit_program(program, symbol, host())
    native = compile_module(entry.text, symbol)
    cache.store(name, {"symbol": symbol, "program": program.name}, native.object_code)
    return native


class Workspace:
    """What one running call needs for itself."""

    def __init__(self, executable: Executable):
        layout, program = executable.layout, executable.program
        # Behind the layout's slots there is one for each input: Python scalars are written there.
        self.table = (ctypes.c_size_t * (layout.size + executable.n_inputs + 1))()
        self.bytes = memoryview(self.table).cast("B")
        self.address = ctypes.addressof(self.table)
        self.status = ctypes.c_int64(0)
        self.arena, arena = new_block(program.arena_bytes)
        self.table[Layout.STATUS] = ctypes.addressof(self.status)
        self.table[Layout.ARENA] = arena
        self.table[Layout.POOL] = threads.pool() if executable.shares_work else 0
        for n, value in enumerate(executable.constants):
            self.table[Layout.FIRST + n] = data_pointer(value)
        self.pools = [Pool(group) for group in executable.groups]
        self.indices: dict[int, int] = {}  # of the loops that the host runs: id(step) -> iteration


class Executable:
    """Call with one NumPy array for each input of the program; returns one for each output.

    An output that is placed on a donated input is returned as the input's own array, overwritten: the caller must not
    use the old one again. A donated array that may not be written, or that is a view of foreign memory, is copied first;
    that no *other* array looks at its memory is for the caller to know. Index errors are raised after the
    program has run to its end, so donated inputs are gone even then.
    """

    def __init__(self, program: Program, native: NativeCode):
        self.program, self.native = program, native
        self.items, segments = cut(program)
        self.shares_work = any(worth_threads(s.steps) for s in segments)
        self.layout = Layout(program, self.items)
        self.places = Places(program, self.layout)
        self.constants = [np.ascontiguousarray(b.value, dtype=b.dtype) for b in self.layout.constants]
        self.n_inputs, self.n_outputs = len(program.inputs), len(program.outputs)
        self.groups = group_outputs(program.outputs, tuple(program.placed))
        self.pack = struct.Struct(f"={self.n_inputs + self.n_outputs}Q").pack_into
        self.pack_at = 8 * self.layout.inputs_at
        self.straight = len(self.items) <= 1 and len(segments) == len(self.items)
        self._in_types = [(b.dtype, b.shape) for b in program.inputs]
        self.idle: list[Workspace] = []
        self._donated = sorted(set(program.placed.values()))

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        arrays = list(inputs)
        if len(arrays) != self.n_inputs:
            raise FgradValueError(
                message(
                    self.program.name, f"the compiled program takes {self.n_inputs} arrays, got {len(arrays)}"
                )
            )
        for n, (array, (dtype, shape)) in enumerate(zip(arrays, self._in_types)):
            if (array.dtype is not dtype and array.dtype != dtype) or array.shape != shape:
                raise FgradValueError(
                    message(
                        self.program.name,
                        f"compiled for input {n} of {dtype}{list(shape)}, got {array.dtype}{list(array.shape)}",
                        "call it with the types that it was compiled for, or compile again",
                    )
                )
            flags = array.flags
            if not flags.carray and not (flags.c_contiguous and flags.aligned):
                arrays[n] = np.ascontiguousarray(array) if flags.aligned else array.copy()
        pointers = [data_pointer(a) for a in arrays]
        if self._donated:
            self._own_donated(arrays, pointers)
        return self._run(pointers, arrays)

    def call_pointers(
        self, pointers: Sequence[int], donated: Sequence[np.ndarray | None] = ()
    ) -> list[np.ndarray]:
        """As calling, for a caller that knows where its (contiguous, aligned) inputs are; nothing is checked.

        `donated` holds the arrays of the inputs in `program.placed` at their positions; others may be None.
        """
        return self._run(pointers, donated)

    def _own_donated(self, arrays: list[np.ndarray], pointers: list[int]) -> None:
        for n in self._donated:
            array = arrays[n]
            base = array.base
            foreign = base is not None and not isinstance(base, np.ndarray)
            if foreign or not array.flags.writeable or pointers.count(pointers[n]) > 1:
                arrays[n] = array.copy()
                pointers[n] = data_pointer(arrays[n])

    def workspace(self) -> Workspace:
        """An idle one, for the caller alone until it is put back into `idle`."""
        try:
            return self.idle.pop()
        except IndexError:
            return Workspace(self)

    def memory_for(self, work: Workspace) -> tuple[list[Any], list[Any]]:
        """A block and an address in it for each output; None for those that are placed on donated inputs."""
        blocks: list[Any] = [None] * self.n_outputs
        addresses: list[Any] = [None] * self.n_outputs
        for pool in work.pools:
            block, _, *found = pool.take()
            for j, address in zip(pool.group.members, found):
                blocks[j], addresses[j] = block, address
        return blocks, addresses

    def launch(self, work: Workspace, pointers: Sequence[int], targets: Sequence[int]) -> None:
        """Run the program on a workspace, which is put back; nothing is checked. Raises what the program found wrong."""
        self.pack(work.table, self.pack_at, *pointers, *targets)
        if self.straight:
            if self.items:
                self.native.call(work.address, 0)
        else:
            self.run_items(work, self.items)
        self.finish(work)

    def finish(self, work: Workspace) -> None:
        failed = work.status.value
        if failed:
            work.status.value = 0
        self.idle.append(work)
        if failed:
            self._raise(failed)

    def _results(
        self, work: Workspace, pointers: Sequence[int], arrays: Sequence[np.ndarray | None]
    ) -> tuple[list[int], list[np.ndarray]]:
        blocks, targets = self.memory_for(work)
        results = []
        for j, buf in enumerate(self.program.outputs):
            i = self.program.placed.get(j)
            if i is None:
                results.append(view(blocks[j], targets[j], buf.shape, buf.dtype))
            else:
                targets[j] = pointers[i]
                results.append(self._as_output(arrays[i], j))
        return targets, results

    def _run(self, pointers: Sequence[int], arrays: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        work = self.workspace()
        targets, results = self._results(work, pointers, arrays)
        self.launch(work, pointers, targets)
        return results

    def _as_output(self, array: np.ndarray | None, j: int) -> np.ndarray:
        buf = self.program.outputs[j]
        assert array is not None
        if array.shape == buf.shape and array.dtype == buf.dtype:
            return array
        return array.reshape(-1).view(buf.dtype).reshape(buf.shape)

    def _raise(self, code: int) -> None:
        what, source = self.program.checks[code - 1]
        raise FgradIndexError(message(self.program.name, what, "", source))

    # -------------------------------------------------------------------------------------------- host steps

    def run_items(self, work: Workspace, items: Sequence[Item]) -> None:
        """Run segments and host steps in order on a prepared workspace."""
        for item in items:
            if isinstance(item, Segment):
                self.native.call(work.address, item.index)
            elif isinstance(item, HostStep):
                self._run_host(work, item)
            else:
                self._run_control(work, item)

    def _view(self, work: Workspace, buf: Buf, writeable: bool) -> np.ndarray:
        place = self.places[buf]
        pointer = work.table[Layout.ARENA] if place.region == "arena" else work.table[place.region]
        pointer += place.offset + sum(stride * work.indices[loop] for loop, stride in place.moves)
        memory: Any = (ctypes.c_char * max(buf.nbytes, 1)).from_address(pointer)
        view = np.ndarray(buf.shape, buf.dtype, memory)
        view.flags.writeable = writeable
        return view

    def _run_host(self, work: Workspace, step: HostStep) -> None:
        source = step.eqns[0].source if step.eqns else None
        try:
            found = step.prim.impl(*[self._view(work, b, False) for b in step.inputs], **step.params)
        except Exception as error:
            if hasattr(error, "add_note"):
                error.add_note(f"in {step.prim.name}, called by {self.program.name} at {source}")
            raise
        results = found if step.prim.multiple else (found,)
        for buf, value in zip(step.outputs, results, strict=True):
            view = self._view(work, buf, True)
            if np.shape(value) != buf.shape:
                raise FgradValueError(
                    message(
                        step.prim.name,
                        f"its implementation returned shape {np.shape(value)} where its type rule says {buf.shape}",
                        "correct the type rule or the implementation",
                        source,
                    )
                )
            np.copyto(view, value, casting="same_kind")

    def _run_control(self, work: Workspace, item: HostControl) -> None:
        step = item.step
        if isinstance(step, SwitchStep):
            index = int(self._view(work, step.index, False).reshape(()))
            self.run_items(work, item.blocks[min(max(index, 0), len(item.blocks) - 1)])
        elif isinstance(step, ForStep):
            slot = self.layout.loops_at + self.layout.loops.index(step)
            for i in range(step.length):
                work.table[slot] = work.indices[id(step)] = i
                self.run_items(work, item.blocks[0])
        else:
            cond, body = item.blocks
            while True:
                self.run_items(work, cond)
                if not bool(self._view(work, step.pred, False).reshape(())):
                    break
                self.run_items(work, body)

    # -------------------------------------------------------------------------------------------- looking at it

    @property
    def peak_memory(self) -> int:
        """Bytes that a call needs beside its inputs."""
        return peak_memory(self.program)

    def _entry(self) -> Entry:
        return emit_program(self.program, f"fgrad_shown_{next(_numbers)}", host())

    @property
    def ir_text(self) -> str:
        """The program's LLVM IR as the code generator prints it (before LLVM's optimisations)."""
        return self._entry().text

    @property
    def assembly(self) -> str:
        """The machine code as assembly. Compiles the program again: object code cannot be printed."""
        entry = self._entry()
        return compile_module(entry.text, entry.symbol).assembly()
