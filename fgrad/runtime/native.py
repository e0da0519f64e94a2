"""Module text -> machine code, compiled by Numba; object code -> machine code, without Numba.

A program's LLVM module goes to Numba's CPU code generator, the part of Numba behind its typing pipeline: a `library` of it
optimises, links and loads the module with Numba's target machine and passes. Nothing in a program needs Numba's types, so their
registries (half a second to fill) are left alone:

    library = JITCPUCodegen("fgrad").create_library(symbol)
    library._final_module.link_in(module)
    library.finalize()

The object code of that library is self-contained, so a later process loads it with llvmlite alone (2 ms where
importing Numba takes 300). Either way the program is called through its symbol's address with ctypes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from fgrad.memory import held_at_fork

_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_lock = held_at_fork(threading.Lock())  # llvmlite's engines are not to be made by two threads at once


class NativeCode:
    """Loaded machine code. `call(table address, segment)` runs it; `object_code` is what the disk cache keeps.

    `keep` holds what owns the code: Numba's library or llvmlite's execution engine.
    """

    def __init__(self, symbol: str, address: int, object_code: bytes, keep: Any):
        if not address:
            raise RuntimeError(f"compiled object code does not define the symbol {symbol}")
        self.symbol, self.address, self.object_code, self.keep = symbol, address, object_code, keep
        self.call: Callable[[int, int], None] = _PROTOTYPE(address)

    def assembly(self) -> str:
        """The optimised machine code as text; only for code that this process compiled."""
        return self.keep.get_asm_str()


_codegen: Any = None


def compile_module(text: str, symbol: str) -> NativeCode:
    """Compile LLVM IR that exports `void symbol(ptr, i64)` with Numba's code generator."""
    import llvmlite.binding as llvm
    from numba.core.codegen import JITCPUCodegen
    from numba.core.compiler_lock import global_compiler_lock

    global _codegen
    with global_compiler_lock:
        if _codegen is None:
            _codegen = JITCPUCodegen("fgrad")
        library = _codegen.create_library(symbol)
        library.enable_object_caching()
        module = llvm.parse_assembly(text)
        module.verify()
        module.data_layout = _codegen._data_layout
        # Not `add_llvm_module`, which would optimise each function first: the whole is optimised in the end anyway.
        library._final_module.link_in(module)
        library.finalize()
        address = library.get_pointer_to_function(symbol)
        return NativeCode(symbol, address, bytes(library._get_compiled_object()), library)


_llvm_ready = False


def _engine(module: Any) -> Any:
    """An engine of llvmlite's for this machine. Under `_lock`."""
    import llvmlite.binding as llvm

    global _llvm_ready
    if not _llvm_ready:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        _llvm_ready = True
    # The engine takes ownership of its target machine: a new one for each.
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(module, machine)


def load_object(object_code: bytes, symbol: str) -> NativeCode:
    """Link object code from the disk cache into this process. Numba is not imported."""
    import llvmlite.binding as llvm

    with _lock:
        engine = _engine(llvm.parse_assembly(""))
        engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(object_code))
        engine.finalize_object()
        address = engine.get_function_address(symbol)
    return NativeCode(symbol, address, object_code, engine)


def compile_function(text: str, symbol: str) -> tuple[int, Any]:
    """The address of a small function, compiled without optimisation and without Numba, and what owns its code."""
    import llvmlite.binding as llvm

    with _lock:
        engine = _engine(llvm.parse_assembly(text))
        engine.finalize_object()
        return engine.get_function_address(symbol), engine
