"""All that fgrad asks of `numba.cuda`, in one file: what generated kernels may call, and kernels to PTX.

`namespace()` holds the names in a kernel's text: `cuda`, the element types, the scalar operations of `codegen.scalar`, and

    quotient(i, d), modulo(i, d)     of an index below 2**31 by a positive constant
    load4(x, i), store4(x, i, ...)   four neighbours at an index that is a multiple of four, in one instruction
    shuffle_xor(v, m)                the value of the lane whose number differs in the bits of m
    bitcast(x, type), from_half, to_half, round_half, from_bfloat, to_bfloat, round_bfloat

`compile_ptx(kernel, capability)` is PTX for a kernel. In the simulator (NUMBA_ENABLE_CUDASIM=1) the same names are Python
functions: see `simulator.py`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fgrad import dtypes
from fgrad.codegen.cuda.launch import CudaKernel
from fgrad.errors import missing_extra
from fgrad.runtime.cuda import tensor_cores
from fgrad.runtime.cuda.functions import DEVICE_FUNCTIONS, NAMES


def simulated() -> bool:
    """Whether Numba simulates the GPU in this process."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def installed() -> bool:
    """Whether `numba-cuda` is here, told without importing it."""
    return importlib.util.find_spec("numba_cuda") is not None


@functools.cache
def cuda_module() -> Any:
    """`numba.cuda` of the package numba-cuda. Raises ImportError, with the line that installs it."""
    if not installed():
        raise missing_extra("numba-cuda", "cuda", "computing on an NVIDIA GPU")
    from numba import cuda

    return cuda


@functools.cache
def namespace() -> dict[str, Any]:
    """The names that the text of a kernel may use."""
    cuda = cuda_module()
    if simulated():
        raise RuntimeError("adapter.namespace: in the simulator the names come from simulator.py")
    names = {
        "cuda": cuda,
        "inf": float("inf"),
        "nan": float("nan"),
        "abs": abs,
        "range": range,
        "min": min,
        "max": max,
    }
    names |= {d.name: getattr(cuda, d.name) for d in (*dtypes.INTS, dtypes.float32, dtypes.float64)}
    names["boolean"] = cuda.boolean
    return names | _intrinsics() | _device_functions(cuda, names | _intrinsics())


def undecorated(source: str) -> str:
    """A kernel's text as compiled: the decorator shows a reader what the function is, and is not what compiles it."""
    return source.replace("@cuda.jit\n", "", 1)


def compile_ptx(kernel: CudaKernel, capability: tuple[int, int]) -> tuple[str, str]:
    """PTX for `kernel`, and the name of its entry. Needs the package numba-cuda, but neither a driver nor a GPU."""
    cuda = cuda_module()
    pointers = [cuda.types.CPointer(getattr(cuda, p.stored.name)) for p in kernel.params]
    scope = {**namespace(), **dict(kernel.functions)}
    exec(compile(undecorated(kernel.source), f"<cuda kernel {kernel.name}>", "exec"), scope)
    with _compiling_for(capability):
        ptx, _ = cuda.compile_ptx(scope[kernel.name], cuda.types.void(*pointers), cc=capability)
    entry = next(line for line in ptx.splitlines() if line.startswith(".visible .entry"))
    return ptx, entry.split()[2].rstrip("(")


class _Device:
    """As much of a device as compiling device functions asks for."""

    def __init__(self, capability: tuple[int, int]):
        self.compute_capability = capability


@contextmanager
def _compiling_for(capability: tuple[int, int]) -> Iterator[None]:
    """Device functions are compiled for the current device; within, that is one of `capability`, whether there is a driver or not."""
    dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")
    with _lock:
        current = dispatcher.get_current_device
        dispatcher.get_current_device = lambda: _Device(capability)
        try:
            yield
        finally:
            dispatcher.get_current_device = current


_lock = threading.RLock()


# ------------------------------------------------------------------------------------------------ intrinsics


@functools.cache
def _intrinsics() -> dict[str, Callable[..., Any]]:
    """What Numba has no name for, written as LLVM IR."""
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    types: Any = cuda_module().types
    cgutils: Any = importlib.import_module("numba.cuda.cgutils")
    i1, i16, i32, i64 = (ir.IntType(n) for n in (1, 16, 32, 64))
    floats = (types.float32, types.float64)
    names: dict[str, Callable[..., Any]] = {}

    def add(name: str, typing: Callable[..., Any]) -> None:
        """`typing(*argument types)` gives the type of the result and `emit(context, builder, values)`."""
        n = typing.__code__.co_argcount
        letters = ", ".join(f"a{k}" for k in range(n))
        text = f"def {name}(context, {letters}):\n    return make({letters})\n"

        def make(*args: Any) -> Any:
            found = typing(*args)
            if found is None:
                return None
            result, emit = found
            return result(*args), lambda context, builder, signature, values: emit(context, builder, values)

        scope: dict[str, Any] = {"make": make}
        exec(text, scope)
        names[name] = intrinsic(scope[name])

    def libdevice(name: str, arity: int, own: str | None = None) -> None:
        """A function of CUDA's device library, in the type of its first argument."""

        def of(x: Any) -> Any:
            def emit(context: Any, builder: Any, values: Any) -> Any:
                value_type = context.get_value_type(x)
                symbol = f"__nv_{own or name}" + ("f" if x == types.float32 else "")
                function_type = ir.FunctionType(value_type, [value_type] * arity)
                return builder.call(
                    cgutils.get_or_insert_function(builder.module, function_type, symbol), values
                )

            return (x, emit) if x in floats else None

        if arity == 1:
            add(name, lambda x: of(x))
        else:
            add(name, lambda x, y: of(x) if x == y else None)

    unary = "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh"
    for name in [
        *unary.split(),
        *["sqrt", "erf", "erfc", "erfinv", "lgamma", "cbrt", "floor", "ceil", "trunc"],
    ]:
        libdevice(name, 1)
    libdevice("round", 1, "rint")
    for name in ("atan2", "hypot", "copysign", "nextafter", "fmod"):
        libdevice(name, 2, {"fmod": "fmod"}.get(name))
    libdevice("float_pow", 2, "pow")

    def element(kind: Any) -> Any:
        return kind.dtype if isinstance(kind, (types.CPointer, types.Array)) else None

    def place(context: Any, builder: Any, kind: Any, value: Any, index: Any) -> Any:
        """The address of four neighbours, as that of a vector, and the vector's type."""
        item = context.get_data_type(kind.dtype)
        if isinstance(kind, types.Array):
            value = context.make_array(kind)(context, builder, value).data
        pointer = builder.gep(value, [index])
        vector = ir.VectorType(item, 4)
        return builder.bitcast(pointer, vector.as_pointer(pointer.type.addrspace)), vector

    def load4(x: Any, i: Any) -> Any:
        item = element(x)
        result = types.UniTuple(item, 4)

        def emit(context: Any, builder: Any, values: Any) -> Any:
            where, _ = place(context, builder, x, values[0], values[1])
            loaded = builder.load(where)
            loaded.align = min(16, 4 * _bytes(item))
            parts = [builder.extract_element(loaded, ir.Constant(i32, k)) for k in range(4)]
            return context.make_tuple(builder, result, parts)

        return (result, emit) if item is not None and isinstance(i, types.Integer) else None

    def store4(x: Any, i: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        item = element(x)

        def emit(context: Any, builder: Any, values: Any) -> Any:
            where, vector = place(context, builder, x, values[0], values[1])
            whole: Any = ir.Constant(vector, ir.Undefined)
            for k, (value, kind) in enumerate(zip(values[2:], (a, b, c, d), strict=True)):
                value = context.cast(builder, value, kind, item)
                whole = builder.insert_element(whole, value, ir.Constant(i32, k))
            builder.store(whole, where).align = min(16, 4 * _bytes(item))
            return context.get_dummy_value()

        return (types.void, emit) if item is not None and isinstance(i, types.Integer) else None

    def _bytes(item: Any) -> int:
        return item.bitwidth // 8

    add("load4", load4)
    add("store4", store4)

    def index32(name: str, instruction: str) -> None:
        def of(i: Any, d: Any) -> Any:
            def emit(context: Any, builder: Any, values: Any) -> Any:
                narrow = [builder.trunc(v, i32) if v.type.width > 32 else v for v in values]
                return builder.zext(getattr(builder, instruction)(*narrow), i64)

            return (
                (types.int64, emit) if isinstance(i, types.Integer) and isinstance(d, types.Integer) else None
            )

        add(name, of)

    index32("quotient", "udiv")
    index32("modulo", "urem")

    def bitcast(x: Any, to: Any) -> Any:
        result = to.instance_type if isinstance(to, types.NumberClass) else None

        def emit(context: Any, builder: Any, values: Any) -> Any:
            return builder.bitcast(values[0], context.get_value_type(result))

        return (result, emit) if result is not None and x.bitwidth == result.bitwidth else None

    add("bitcast", bitcast)

    def constant(name: str, number: int) -> None:
        def of(x: Any) -> Any:
            def emit(context: Any, builder: Any, values: Any) -> Any:
                return context.get_constant(x, number)

            return x, emit

        add(name, of)

    constant("zero", 0)
    constant("one", 1)

    def signbit(x: Any) -> Any:
        def emit(context: Any, builder: Any, values: Any) -> Any:
            bits = ir.IntType(x.bitwidth)
            return builder.icmp_signed("<", builder.bitcast(values[0], bits), bits(0))

        return (types.boolean, emit) if x in floats else None

    add("signbit", signbit)

    def shifting(name: str, instruction: str) -> None:
        """Shifts by the width or more give 0 (or the sign)."""

        def of(x: Any, y: Any) -> Any:
            def emit(context: Any, builder: Any, values: Any) -> Any:
                value, count = values
                width = value.type.width
                inside = builder.icmp_unsigned("<", count, count.type(width))
                if instruction == "ashr" and x.signed:
                    return builder.ashr(value, builder.select(inside, count, count.type(width - 1)))
                shift = builder.shl if instruction == "shl" else builder.lshr
                return builder.select(inside, shift(value, count), value.type(0))

            return (x, emit) if x == y and isinstance(x, types.Integer) else None

        add(name, of)

    shifting("shift_left", "shl")
    shifting("shift_right_logical", "lshr")
    shifting("shift_right_arithmetic", "ashr")

    def shuffle_xor(x: Any, m: Any) -> Any:
        """The value of the lane whose number differs in the bits of `m`; all lanes of the warp take part."""

        def emit(context: Any, builder: Any, values: Any) -> Any:
            value, mask = values
            native = value.type
            width = getattr(native, "width", None) or (64 if isinstance(native, ir.DoubleType) else 32)
            bits = builder.bitcast(value, ir.IntType(width)) if not isinstance(native, ir.IntType) else value
            wide = builder.zext(bits, i32) if width < 32 else bits
            lanes = builder.trunc(mask, i32) if mask.type.width > 32 else mask
            function_type = ir.FunctionType(i32, [i32, i32, i32, i32])
            shuffle = cgutils.get_or_insert_function(
                builder.module, function_type, "llvm.nvvm.shfl.sync.bfly.i32"
            )

            def exchanged(word: Any) -> Any:
                return builder.call(shuffle, [i32(-1), word, lanes, i32(31)])

            if width == 64:
                low = builder.zext(exchanged(builder.trunc(wide, i32)), i64)
                high = builder.zext(exchanged(builder.trunc(builder.lshr(wide, i64(32)), i32)), i64)
                found: Any = builder.or_(low, builder.shl(high, i64(32)))
            else:
                found = exchanged(wide)
                found = builder.trunc(found, ir.IntType(width)) if width < 32 else found
            return found if isinstance(native, ir.IntType) else builder.bitcast(found, native)

        return (x, emit) if isinstance(m, types.Integer) else None

    add("shuffle_xor", shuffle_xor)

    def counting(name: str, instruction: str) -> None:
        def of(x: Any) -> Any:
            def emit(context: Any, builder: Any, values: Any) -> Any:
                (value,) = values
                width = value.type.width
                wide = builder.zext(value, i32) if width < 32 else value
                if name == "popcount":
                    found = builder.ctpop(wide)
                else:
                    found = builder.ctlz(wide, ir.Constant(i1, 0))
                    if width < 32:
                        found = builder.sub(found, ir.Constant(i32, 32 - width))
                return builder.trunc(found, value.type) if width < 32 else found

            return (x, emit) if isinstance(x, types.Integer) else None

        add(name, of)

    counting("popcount", "ctpop")
    counting("clz", "ctlz")

    def from_half(x: Any) -> Any:
        def emit(context: Any, builder: Any, values: Any) -> Any:
            bits = builder.trunc(values[0], i16) if values[0].type.width > 16 else values[0]
            return builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())

        return types.float32, emit

    def to_half(x: Any) -> Any:
        def emit(context: Any, builder: Any, values: Any) -> Any:
            return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), i16)

        return (types.uint16, emit) if x == types.float32 else None

    def from_bfloat(x: Any) -> Any:
        def emit(context: Any, builder: Any, values: Any) -> Any:
            wide = (
                builder.zext(values[0], i32) if values[0].type.width < 32 else builder.trunc(values[0], i32)
            )
            return builder.bitcast(builder.shl(wide, ir.Constant(i32, 16)), ir.FloatType())

        return types.float32, emit

    def to_bfloat(x: Any) -> Any:
        """Round to nearest, ties to even; a NaN stays one."""

        def emit(context: Any, builder: Any, values: Any) -> Any:
            bits = builder.bitcast(values[0], i32)
            odd = builder.and_(builder.lshr(bits, ir.Constant(i32, 16)), ir.Constant(i32, 1))
            rounded = builder.add(bits, builder.add(odd, ir.Constant(i32, 0x7FFF)))
            quiet = builder.or_(bits, ir.Constant(i32, 0x400000))
            is_nan = builder.fcmp_unordered("uno", values[0], values[0])
            chosen = builder.select(is_nan, quiet, rounded)
            return builder.trunc(builder.lshr(chosen, ir.Constant(i32, 16)), i16)

        return (types.uint16, emit) if x == types.float32 else None

    for function in (from_half, to_half, from_bfloat, to_bfloat):
        add(function.__name__, function)
    return names | tensor_cores.intrinsics()


def _device_functions(cuda: Any, names: dict[str, Any]) -> dict[str, Any]:
    scope = dict(names)
    exec(compile(DEVICE_FUNCTIONS, "<cuda device functions>", "exec"), scope)
    for name in NAMES:
        scope[name] = cuda.jit(device=True)(scope[name])
    return {name: scope[name] for name in NAMES}
