"""Runs a `Program` step by step in Python: what a compiled program must do, readable and slow.

Kernels run through their Python source, contractions by summing over their dimensions, host steps by NumPy. It exists to
check the passes without a code generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad.codegen.contraction import Contraction, Operand
from fgrad.codegen.loops import Kernel
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
from fgrad.codegen.python_source import compile_python
from fgrad.errors import FgradIndexError


class Interpreter:
    """The memory of one run: an array of bytes for each buffer that owns some."""

    def __init__(self, program: Program):
        self.program = program
        self.memory: dict[Buf, np.ndarray] = {}
        self.moved: dict[Buf, int] = {}  # bytes that a moving view has moved
        self.compiled: dict[Kernel, Callable[..., None]] = {}

    def array(self, buf: Buf) -> np.ndarray:
        """The buffer's elements, in its shape."""
        raw, offset = self._bytes(buf)
        return raw[offset : offset + buf.nbytes].view(buf.dtype).reshape(buf.shape)

    def _bytes(self, buf: Buf) -> tuple[np.ndarray, int]:
        if buf.base is not None:
            raw, offset = self._bytes(buf.base)
            return raw, offset + buf.byte_offset + self.moved.get(buf, 0)
        if buf not in self.memory:
            raw = np.full(buf.nbytes, 0xCD, np.uint8)  # not zero: reading what nobody wrote should show
            if buf.kind == "status":
                raw[:] = 0
            if buf.value is not None:
                raw[:] = np.frombuffer(np.ascontiguousarray(buf.value).tobytes(), np.uint8)
            self.memory[buf] = raw
        return self.memory[buf], 0

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs for `inputs`. Raises IndexError where a check of the program fails."""
        program = self.program
        for buf, value in zip(program.inputs, inputs, strict=True):
            value = np.ascontiguousarray(value, buf.dtype)
            self.memory[buf] = np.frombuffer(value.tobytes(), np.uint8).copy()
        self._block(program.body)
        if program.status is not None:
            code = int(self.array(program.status)[0])
            if code:
                text, source = program.checks[code - 1]
                raise FgradIndexError(f"{text} (at {source})")
        return [self.array(b).copy() for b in program.outputs]

    def _block(self, block: Block) -> None:
        for step in block.steps:
            self._step(step)

    def _kernel(self, kernel: Kernel, args: Sequence[Buf]) -> None:
        if kernel not in self.compiled:
            self.compiled[kernel] = compile_python(kernel)
        self.compiled[kernel](*(self.array(a).reshape(-1) for a in args))

    def _step(self, step: Step) -> None:
        if isinstance(step, KernelStep):
            self._kernel(step.kernel, step.args)
        elif isinstance(step, ContractStep):
            arrays = [self.array(b).reshape(-1) for b in (step.out, step.lhs, step.rhs)]
            pieces = step.meta.get("pieces")
            if pieces is None:
                contract(step.spec, *arrays)
            else:
                for n in range(pieces.count):
                    moved = [a[n * m // a.itemsize :] for a, m in zip(arrays, pieces.moves)]
                    contract(pieces.spec, *moved)
            if step.epilogue is not None:
                self._kernel(step.epilogue.kernel, step.epilogue.args)
        elif isinstance(step, CopyStep):
            self.array(step.dst).reshape(-1)[:] = self.array(step.src).reshape(-1)
        elif isinstance(step, HostStep):
            result = step.prim.impl(*(self.array(b).copy() for b in step.inputs), **step.params)
            results = result if step.prim.multiple else (result,)
            for buf, value in zip(step.outputs, results, strict=True):
                self.array(buf)[...] = value
        elif isinstance(step, SwitchStep):
            index = int(self.array(step.index))
            self._block(step.branches[min(max(index, 0), len(step.branches) - 1)])
        elif isinstance(step, WhileStep):
            self._block(step.cond)
            while bool(self.array(step.pred)):
                self._block(step.body)
                self._block(step.cond)
        elif isinstance(step, ChainStep):
            self._block(step.body)  # as a whole: pieces differ in nothing but the order
        elif isinstance(step, ForStep):
            for i in range(step.length):
                for view in step.moving:
                    self.moved[view] = i * view.byte_stride
                self._block(step.body)
        else:
            raise NotImplementedError(f"interpret: no rule for {type(step).__name__}")


def _elements(operand: Operand, index: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Flat positions, and which of them exist, for arrays of dimension indices that broadcast."""
    flat: Any = operand.offset
    exists: Any = True
    for axis in operand.axes:
        p = axis.offset + sum(index[name] * coef for name, coef in axis.coefs)
        if axis.divisor > 1:
            exists = exists & (p % axis.divisor == 0)
            p = p // axis.divisor
        if axis.size is not None:
            exists = exists & (p >= 0) & (p < axis.size)
        flat = flat + p * axis.stride
    return flat, exists


def contract(spec: Contraction, out: np.ndarray, lhs: np.ndarray, rhs: np.ndarray) -> None:
    """`out = lhs . rhs` on flat arrays, one contracted index at a time, in float64 for floats."""
    free = (*spec.batch, *spec.m, *spec.n)
    grid = np.meshgrid(*(np.arange(d.extent) for d in free), indexing="ij", sparse=True) if free else []
    base = {d.name: g for d, g in zip(free, grid, strict=True)}
    wide = (
        np.float64
        if np.issubdtype(np.asarray(out).dtype, np.inexact) or out.dtype.itemsize == 2
        else out.dtype
    )
    total = np.zeros(tuple(d.extent for d in free), wide)
    for k in itertools.product(*(range(d.extent) for d in spec.k)):
        index = {**base, **{d.name: np.asarray(i) for d, i in zip(spec.k, k, strict=True)}}
        terms = []
        for operand, array in ((spec.lhs, lhs), (spec.rhs, rhs)):
            flat, exists = _elements(operand, index)
            picked = array[np.where(exists, flat, 0)].astype(wide)
            terms.append(np.where(exists, picked, 0))
        total += terms[0] * terms[1]
    flat, _ = _elements(spec.out, base)
    out[np.broadcast_to(flat, total.shape)] = total.astype(out.dtype)


def interpret(program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return Interpreter(program).run(*inputs)
