"""Module text -> machine code, compiled by Numba; object code -> machine code, without Numba.

A program becomes one Numba function whose body is one intrinsic: it hands the program's LLVM module to the library that Numba
is compiling and calls the program's symbol. Numba's pipeline, target machine and linker do the rest:

    @njit("void(uintp, int64)")
    def entry(table, segment):
        run_program(table, segment)         # the intrinsic: call void @SYMBOL(ptr table, i64 segment)

The object code of that library is self-contained, so a later process loads it with llvmlite alone (2 ms where
importing Numba takes 300). Either way the program is called through SYMBOL's address with ctypes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_lock = threading.Lock()  # llvmlite's engines are not to be made by two threads at once


class NativeCode:
    """Loaded machine code. `call(table address, segment)` runs it; `object_code` is what the disk cache keeps.

    `keep` holds what owns the code: Numba's compile result or llvmlite's execution engine.
    """

    def __init__(self, symbol: str, address: int, object_code: bytes, keep: Any):
        if not address:
            raise RuntimeError(f"compiled object code does not define the symbol {symbol}")
        self.symbol, self.address, self.object_code, self.keep = symbol, address, object_code, keep
        self.call: Callable[[int, int], None] = _PROTOTYPE(address)

    def assembly(self) -> str:
        """The optimised machine code as text; only for code that this process compiled."""
        return self.keep.library.get_asm_str()


def compile_module(text: str, symbol: str) -> NativeCode:
    """Compile LLVM IR that exports `void symbol(ptr, i64)` through Numba."""
    import llvmlite.binding as llvm
    from llvmlite import ir
    from numba import types
    from numba.core import compiler, registry
    from numba.extending import intrinsic

    compiled: list[Any] = []

    @intrinsic
    def run_program(typing_context, table, segment):
        def emit(context, builder, signature, args):
            library = context.active_code_library
            library.enable_object_caching()
            module = llvm.parse_assembly(text)
            module.verify()
            module.data_layout = library.codegen._data_layout
            # Not `add_llvm_module`, which would optimise each function first: the whole is optimised in the end anyway.
            library._final_module.link_in(module)
            compiled.append(library)
            pointer = ir.PointerType()
            callee = ir.Function(
                builder.module, ir.FunctionType(ir.VoidType(), [pointer, args[1].type]), symbol
            )
            builder.call(callee, [builder.inttoptr(args[0], pointer), args[1]])
            return context.get_dummy_value()

        return types.void(types.uintp, types.int64), emit

    def entry(table, segment):
        run_program(table, segment)  # type: ignore[call-arg]

    flags: Any = compiler.Flags()
    flags.nrt = False
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    target = registry.cpu_target
    result = compiler.compile_extra(
        target.typing_context, target.target_context, entry, (types.uintp, types.int64), types.void, flags, {}
    )
    (library,) = compiled
    address = library.get_pointer_to_function(symbol)
    return NativeCode(symbol, address, bytes(library._get_compiled_object()), result)


_llvm_ready = False


def load_object(object_code: bytes, symbol: str) -> NativeCode:
    """Link object code from the disk cache into this process. Numba is not imported."""
    import llvmlite.binding as llvm

    global _llvm_ready
    with _lock:
        if not _llvm_ready:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            _llvm_ready = True
        # The engine takes ownership of its target machine: a new one for each.
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(object_code))
        engine.finalize_object()
        address = engine.get_function_address(symbol)
    return NativeCode(symbol, address, object_code, engine)
