"""Scalar operations as text: every one on every dtype compiles to PTX, and computes what NumPy's definition does."""

import pytest

from fgrad import dtypes as d
from fgrad.codegen import scalar
from fgrad.codegen.cuda.launch import CudaKernel, Param
from fgrad.codegen.cuda.text import load_text, op_text, to_stored

from . import simulate

pytest.importorskip("numba_cuda", reason="CUDA kernels are compiled by numba-cuda, which is not installed")

from fgrad.runtime.cuda import adapter

cases = simulate.module("op_cases")
RESULTS = (*cases.DTYPES, d.int16, d.uint16)


@pytest.mark.parametrize("case", simulate.case_names("op_cases"))
def test_computes_what_the_definition_does(case):
    assert not simulate.results("op_cases")[case]


def _lines(dtype):
    """Stores of all operations on `dtype`, each to an element of its own of the output of its dtype."""
    used = dict.fromkeys(RESULTS, 0)
    found = [(op, n, out, [f"{x}{dtype.name}" for x in "abc"[:n]]) for op, n, out in cases.operations(dtype)]
    found += [
        ("cast", 1, out, [f"a{dtype.name}"]) for out in RESULTS if scalar.supports("cast", [dtype], out)
    ]
    same_width = [out for out in RESULTS if out.itemsize == dtype.itemsize]
    found += [
        ("bitcast", 1, out, [f"a{dtype.name}"])
        for out in same_width
        if scalar.supports("bitcast", [dtype], out)
    ]
    for op, _, out, args in found:
        text = to_stored(op_text(op, args, dtype, out), out)
        yield f"{op} to {out.name}", f"    y{out.name}[{used[out]}] = {text}"
        used[out] += 1
    chosen = op_text("select", ["aflag", f"a{dtype.name}", f"b{dtype.name}"], dtype, dtype)
    yield "select", f"    y{dtype.name}[{used[dtype]}] = {to_stored(chosen, dtype)}"


def _kernel(dtype, lines):
    """A kernel of these lines. In it `afloat32` is a value that has been loaded from the array `xafloat32`."""
    letters = [f"{x}{dtype.name}" for x in "abc"]
    loads = [f"    {v} = {load_text(f'x{v}', '0', dtype)}" for v in letters]
    loads.append(f"    aflag = {load_text('xaflag', '0', d.bool_)}")
    outputs = [Param(f"y{out.name}", out, 1000, "out") for out in RESULTS]
    params = (*outputs, *[Param(f"x{v}", dtype, 1) for v in letters], Param("xaflag", d.bool_, 1))
    head = f"@cuda.jit\ndef all_{dtype.name}({', '.join(p.name for p in params)}):"
    return CudaKernel(
        f"all_{dtype.name}", "\n".join([head, *loads, *lines]) + "\n", params, (1, 1, 1), (1, 1, 1)
    )


@pytest.mark.parametrize("dtype", RESULTS, ids=lambda dtype: dtype.name)
def test_every_operation_compiles(dtype):
    lines = dict(_lines(dtype))
    assert len(lines) > 20
    try:
        adapter.compile_ptx(_kernel(dtype, lines.values()), (7, 5))
    except Exception:
        for what, line in lines.items():  # one by one, to say which
            try:
                adapter.compile_ptx(_kernel(dtype, [line]), (7, 5))
            except Exception as error:
                pytest.fail(f"{what}: {line.strip()}: {error}")
        raise
