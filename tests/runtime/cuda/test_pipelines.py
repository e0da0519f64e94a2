"""Every kernel of the pipelines, and of a transformer, compiled to machine code from the programs that a GPU would be given."""

from __future__ import annotations

import collections
import functools
import pathlib
import sys

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.codegen.cuda.launch import LaunchStep
from fgrad.codegen.cuda.target import HOPPER, TURING
from fgrad.codegen.program import walk

pytest.importorskip("numba_cuda", reason="compiling for GPUs needs numba-cuda, which is not installed")

from fgrad.runtime.cuda import compilers, cubins
from fgrad.runtime.cuda.adapter import compile_ptx
from fgrad.runtime.cuda.linker import link

ROOT = pathlib.Path(__file__).resolve().parents[3]
TARGETS = {"sm_90": HOPPER, "sm_75": TURING}
PRODUCTS = ("dot_general", "conv", "product")


def beside(folder: str, name: str):
    """A module of the examples or benchmarks, which are no packages."""
    sys.path.insert(0, str(ROOT / folder))
    try:
        return __import__(name)
    finally:
        sys.path.pop(0)


@functools.cache
def lowered(name: str):
    """The training step of a pipeline, for the batch of its example."""
    if name == "gpt":
        w = beside("benchmarks", "workloads")
        gpt, o, rng = w.WORKLOADS["W8"], w.fgrad_ops(), np.random.default_rng(0)
        start = gpt.params(rng)
        params = {k: o.array(v) for k, v in start.items()}
        state, batch = w.functional_state(gpt, start, o.array), [o.array(b) for b in gpt.batch(rng)]
        return o.jit(w.whole_step(o, gpt)).lower(params, state, *batch)
    pytest.importorskip("tqdm", reason="the examples show their progress by tqdm")
    shape = {"mnist": (64, 1, 28, 28), "fashion_mnist": (64, 1, 28, 28), "cifar10": (4, 3, 32, 32)}[name]
    example = beside("examples", name)
    params = example.net.init(fgrad.random.key(0))
    state = example.optimizer.init(params)
    return example.step.lower(params, state, fnp.zeros(shape), fnp.zeros(shape[0], "int64"))


def kernels(name: str, target, precision: str = "float32"):
    """Each distinct kernel of a pipeline."""
    with fgrad.matmul_precision(precision):
        program = lowered(name).program_for(target)
    steps = [s for s in walk(program.body) if isinstance(s, LaunchStep)]
    return list({s.kernel.text: s.kernel for s in steps}.values())


def compiled(found, capability):
    """(kernel, PTX, what the linker says) of each."""
    for kernel in found:
        ptx, _ = compile_ptx(kernel, capability)
        yield kernel, ptx, link(ptx, capability)


def check(found, capability, least: int, nests: bool = True) -> None:
    """`nests`: some element-wise kernel is long enough for loads by fours, and no product's epilogue."""
    counts: collections.Counter[str] = collections.Counter()
    for kernel, ptx, code in compiled(found, capability):
        assert code.spills == 0 and code.stack == 0, f"{kernel.name} spills registers"
        product = kernel.name.startswith(PRODUCTS)
        counts["all"] += 1
        counts["products by fours"] += product and "ld.global.v4" in ptx
        counts["shuffles"] += "shfl.sync" in ptx
        if not product and "vector" in kernel.features:
            assert "ld.global.v4" in ptx or "st.global.v4" in ptx, kernel.name
            counts["nests by fours"] += 1
    assert counts["all"] >= least and counts["products by fours"] > 0 and counts["shuffles"] > 0, counts
    assert counts["nests by fours"] > 0 or not nests, counts


def test_a_pipeline():
    """(All of them, for both generations: below, among the slow tests.)"""
    check(kernels("cifar10", HOPPER), (9, 0), 25)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize(
    "name, least, nests",
    [("mnist", 20, True), ("fashion_mnist", 15, False), ("cifar10", 25, True), ("gpt", 50, True)],
)
def test_all_pipelines(name, least, nests, chip):
    target = TARGETS[chip]
    check(kernels(name, target), target.capability, least, nests)


@pytest.mark.parametrize("precision, instruction", [("tf32", "tf32.tf32"), ("bf16", "bf16.bf16")])
def test_tensor_cores_where_asked(precision, instruction):
    found = [k for k in kernels("gpt", HOPPER, precision) if "mma" in k.features]
    assert found, "no product of the transformer uses tensor cores"
    ptx, _ = compile_ptx(found[0], (9, 0))
    assert "mma.sync" in ptx and instruction in ptx
    assert not any("mma" in k.features for k in kernels("gpt", HOPPER))


def test_source_to_read():
    text = lowered("cifar10").show("cuda")
    assert text.count("@cuda.jit\ndef ") >= 25
    assert "blocks of" in text and "cifar10.py:" in text, "sizes of launches, lines of the user's"
    compile(text, "shown", "exec")


# ------------------------------------------------------------------------------------------------ many at once


def test_kernels_compiled_by_processes_beside(tmp_path, monkeypatch):
    monkeypatch.setenv("FGRAD_CACHE_DIR", str(tmp_path))
    found = [k for k in kernels("cifar10", HOPPER) if not k.name.startswith(PRODUCTS)][:6]
    assert [compilers.from_json(compilers.to_json(k)).text for k in found] == [k.text for k in found]
    assert compilers.compile_beside(found, (9, 0), processes=2) == len(found)
    monkeypatch.setattr(cubins, "compiled", None)  # they are found now, not compiled
    for kernel in found:
        cubin = cubins.cubin_of(kernel, (9, 0))
        assert cubin.code[:4] == b"\x7fELF" and cubin.entry.encode() in cubin.code
    assert compilers.compile_beside(found, (9, 0), processes=2) == 0


def test_names_and_comments_are_not_part_of_a_kernel():
    a, b = kernels("cifar10", HOPPER)[:2]
    renamed = compilers.from_json(compilers.to_json(a))
    renamed.name = "other"
    renamed.source = "# seen\n" + a.source.replace(f"def {a.name}(", "def other(")
    assert renamed.text.split("\n", 1)[1].strip() == a.text.split("\n", 1)[1].strip() and a.text != b.text
