"""One contraction compiled by itself with llvmlite: for tests, benchmarks, and for looking at the code.

>>> compiled = compile_contraction(spec)
>>> print(compiled.plan)
>>> compiled.run(out, lhs, rhs)          # NumPy arrays, laid out as spec says
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from fgrad.codegen import gemm
from fgrad.codegen.blocking import Plan
from fgrad.codegen.contraction import Contraction
from fgrad.codegen.planning import plan
from fgrad.codegen.target import TargetInfo, host
from fgrad.codegen.winograd import WinogradPlan

_GUARD = 256


def _aligned(size: int) -> np.ndarray:
    # All bits set is NaN: a kernel that reads what it has not written shows it.
    raw = np.full(size + 64, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


@dataclass
class Compiled:
    """A contraction ready to run; ``text`` is its LLVM IR, ``assembly`` the machine code if it was asked for."""

    plan: Plan | WinogradPlan
    plan_seconds: float
    emit_seconds: float
    compile_seconds: float
    text: str
    assembly: str
    engine: Any

    def __post_init__(self) -> None:
        address = self.engine.get_function_address("kernel")
        self.function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(address)
        self.workspace = _aligned(self.plan.workspace_bytes + _GUARD)

    def run(self, out: np.ndarray, lhs: np.ndarray, rhs: np.ndarray) -> None:
        """Compute into ``out``; raise ``RuntimeError`` if the code wrote past its workspace."""
        guard = self.workspace[self.plan.workspace_bytes :]
        guard[:] = 0xAB
        self.function(out.ctypes.data, lhs.ctypes.data, rhs.ctypes.data, self.workspace.ctypes.data)
        if not (guard == 0xAB).all():
            raise RuntimeError(f"a contraction wrote past its workspace: {self.plan}")


def compile_contraction(
    spec: Contraction,
    target: TargetInfo | None = None,
    chosen: Plan | WinogradPlan | None = None,
    *,
    assembly: bool = False,
) -> Compiled:
    """Plan (unless ``chosen`` is given), write and compile ``spec`` for this machine.

    A ``target`` with narrower vectors than the machine's own makes the code that another machine would get.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    start = time.thread_time()
    chosen = chosen or plan(spec, target or host())
    planned = time.thread_time()
    module = ir.Module("contraction")
    gemm.emit(module, spec, chosen, "kernel")
    text = str(module)
    emitted = time.thread_time()
    native = host()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=native.cpu, features=native.features, opt=3
    )
    parsed = llvm.parse_assembly(text)
    parsed.triple, parsed.data_layout = machine.triple, str(machine.target_data)
    parsed.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(parsed, builder)
    printed = machine.emit_assembly(parsed) if assembly else ""
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return Compiled(
        chosen,
        planned - start,
        emitted - planned,
        time.thread_time() - emitted,
        text,
        printed,
        engine,
    )
