"""Matrix products of a warp on tensor cores, as names for kernels: one PTX instruction each.

    mma_tf32(c, a, b)      c + a . b of 16 x 8 by 8 x 8 numbers     float32 whose last 13 bits are zero
    mma_bfloat(c, a, b)    c + a . b of 16 x 16 by 16 x 8 numbers   pairs of bfloat16 in a uint32
    to_tf32(x)             x rounded for the first
    pack_bfloat(x, y)      x (low) and y as such a pair

All 32 lanes of a warp take part. With g = lane // 4 and q = lane % 4 a lane has (PTX ISA, "Matrix Fragments for mma")

    a   (row g, unit q), (row g + 8, unit q), (row g, unit q + 4), (row g + 8, unit q + 4)
    b   (unit q, column g), (unit q + 4, column g)
    c   (row g, columns 2q and 2q + 1), (row g + 8, columns 2q and 2q + 1)

where a unit is one k of TF32 and two neighbouring ones of bfloat16. `intrinsics()` are the names for compiled kernels (capability 8.0 or
higher), `simulated()` for those in Numba's simulator.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fgrad import dtypes

_TF32 = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
_BFLOAT = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"


def intrinsics() -> dict[str, Callable[..., Any]]:
    """As LLVM IR around inline PTX."""
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    types: Any = importlib.import_module("numba.cuda").types
    i32, f32 = ir.IntType(32), ir.FloatType()

    def multiply(instruction: str, element: Any) -> Callable[..., Any]:
        sums = types.UniTuple(types.float32, 4)

        def typed(context: Any, c: Any, a: Any, b: Any) -> Any:
            if (c, a, b) != (sums, types.UniTuple(element, 4), types.UniTuple(element, 2)):
                return None

            def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                def items(value: Any, count: int) -> list[Any]:
                    return [builder.extract_value(value, n) for n in range(count)]

                old, *operands = items(values[0], 4), *items(values[1], 4), *items(values[2], 2)
                words = [v if v.type == i32 else builder.bitcast(v, i32) for v in operands]
                # Numbered: results 0 to 3, a 4 to 7, b 8 and 9; the sums are in the registers of the results.
                text = instruction + " {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$0, $1, $2, $3};"
                result = ir.LiteralStructType([f32] * 4)
                kind = ir.FunctionType(result, [i32] * 6 + [f32] * 4)
                # With side effects, so that nobody moves it to where only some lanes come by.
                assembly = ir.InlineAsm(kind, text, "=f,=f,=f,=f,r,r,r,r,r,r,0,1,2,3", side_effect=True)
                found = builder.call(assembly, [*words, *old])
                return context.make_tuple(builder, sums, items(found, 4))

            return sums(c, a, b), emit

        return intrinsic(typed)

    def one(text: str, constraints: str, result: Any, *kinds: Any) -> Callable[[Any, Any, Any], Any]:
        """An instruction of float32 numbers with one result."""

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            function = ir.FunctionType(context.get_value_type(result), [f32] * len(kinds))
            return builder.call(ir.InlineAsm(function, text, constraints, side_effect=False), values)

        return emit  # type: ignore[return-value]

    def to_tf32(context: Any, x: Any) -> Any:
        bits = one("cvt.rna.tf32.f32 $0, $1;", "=r,f", types.uint32, x)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.bitcast(bits(context, builder, signature, values), f32)  # type: ignore[call-arg]

        return (types.float32(x), emit) if x == types.float32 else None

    def pack_bfloat(context: Any, x: Any, y: Any) -> Any:
        emit = one("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", types.uint32, x, y)
        return (types.uint32(x, y), emit) if x == y == types.float32 else None

    return {
        "mma_tf32": multiply(_TF32, types.float32),
        "mma_bfloat": multiply(_BFLOAT, types.uint32),
        "to_tf32": intrinsic(to_tf32),
        "pack_bfloat": intrinsic(pack_bfloat),
    }


# ------------------------------------------------------------------------------------------------ in the simulator


def simulated() -> dict[str, Callable[..., Any]]:
    """As Python functions. Lanes show each other their parts through a table of the block, which must be whole warps."""

    def together(own: Any) -> list[Any]:
        """What the 32 lanes of the warp give, in order."""
        thread: Any = threading.current_thread()
        table = thread._manager.__dict__.setdefault("fragments", {})
        table[thread.thread_id] = own
        thread._manager.exchange.wait()
        first = thread.thread_id // 32 * 32
        found = [table[first + lane] for lane in range(32)]
        thread._manager.exchange.wait()
        return found

    def multiply(c: Any, a: Any, b: Any, numbers: Callable[[Any], np.ndarray]) -> Any:
        lanes = together((a, b))
        thread: Any = threading.current_thread()
        g, q = thread.thread_id % 32 // 4, thread.thread_id % 4

        def dot(row: int, column: int) -> float:
            total = 0.0
            for unit in range(8):
                x = lanes[4 * (row % 8) + unit % 4][0][row // 8 + 2 * (unit // 4)]
                y = lanes[4 * column + unit % 4][1][unit // 4]
                total += float(numbers(x) @ numbers(y))
            return total

        places = [(g, 2 * q), (g, 2 * q + 1), (g + 8, 2 * q), (g + 8, 2 * q + 1)]
        return tuple(np.float32(old + dot(*place)) for old, place in zip(c, places, strict=True))

    def pair(x: Any) -> np.ndarray:
        return np.asarray([x], np.uint32).view(dtypes.bfloat16).astype(np.float64)

    def to_tf32(x: Any) -> Any:
        """To the nearest, halves away from zero."""
        bits = np.asarray([x], np.float32).view(np.uint32)
        rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        return (rounded if np.isfinite(x) else bits).view(np.float32)[0]

    return {
        "mma_tf32": lambda c, a, b: multiply(c, a, b, lambda x: np.asarray([x], np.float64)),
        "mma_bfloat": lambda c, a, b: multiply(c, a, b, pair),
        "to_tf32": to_tf32,
        "pack_bfloat": lambda x, y: np.asarray([x, y], np.float32).astype(dtypes.bfloat16).view(np.uint32)[0],
    }
