"""A loop around one scalar operation, compiled as the code generator would compile it."""

import ctypes
from typing import NamedTuple

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np
import pytest

from fgrad.codegen import scalar


class Loop(NamedTuple):
    """``call(*arrays) -> array``; `text` is the LLVM IR after optimisation."""

    function: object
    engine: object
    in_dtypes: tuple
    out_dtype: np.dtype
    text: str

    def __call__(self, *arrays):
        arrays = [np.ascontiguousarray(x, dtype=d) for x, d in zip(arrays, self.in_dtypes, strict=True)]
        out = np.empty(arrays[0].shape, self.out_dtype)
        self.function(*(x.ctypes.data for x in arrays), out.ctypes.data, out.size)
        return out


def _elementwise(op, in_dtypes, out_dtype, lanes=0):
    """for i in range(n): out[i] = op(*in[i]); `lanes` makes each step a vector of so many elements."""
    in_dtypes, out_dtype = tuple(np.dtype(d) for d in in_dtypes), np.dtype(out_dtype)
    module, i64 = ir.Module(), ir.IntType(64)
    step = max(lanes, 1)

    def element(dtype):
        memory = scalar.memory_type(dtype)
        return ir.VectorType(memory, lanes) if lanes else memory

    pointers = [element(d).as_pointer() for d in (*in_dtypes, out_dtype)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*pointers, i64]), "loop")
    *ins, out, count = function.args
    for pointer in (*ins, out):
        pointer.add_attribute("noalias")
    entry, body, done = (function.append_basic_block(name) for name in ("entry", "body", "done"))
    builder = ir.IRBuilder(entry)
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(i64)
    index.add_incoming(i64(0), entry)
    values = [scalar.load(builder, builder.gep(p, [index]), d) for p, d in zip(ins, in_dtypes, strict=True)]
    result = scalar.emit(builder, op, values, in_dtypes, out_dtype)
    scalar.store(builder, builder.gep(out, [index]), result, out_dtype)
    following = builder.add(index, i64(1))
    index.add_incoming(following, builder.block)
    limit = builder.udiv(count, i64(step))
    builder.cbranch(builder.icmp_signed("<", following, limit), body, done)
    builder.position_at_end(done)
    builder.ret_void()
    assert lanes or len(list(function.blocks)) == 3, "a scalar operation must not branch"

    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    compiled = llvm.parse_assembly(str(module))
    compiled.verify()
    options = llvm.create_pipeline_tuning_options(3)
    options.loop_vectorization = True
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(compiled, passes)
    text = str(compiled)
    engine = llvm.create_mcjit_compiler(compiled, machine)
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(ins) + 1), ctypes.c_int64)
    return Loop(signature(engine.get_function_address("loop")), engine, in_dtypes, out_dtype, text)


@pytest.fixture(scope="session")
def elementwise():
    """``elementwise(op, in_dtypes, out_dtype, lanes=0)`` -> a callable `Loop`."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return _elementwise
