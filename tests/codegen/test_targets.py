"""Code for lesser processors than this one (`FGRAD_TARGET`): the same results, in a process of its own for each."""

import numpy as np
import pytest

from fgrad.codegen.target import level
from tests.codegen.test_assembly import reachable, run

TARGETS = ["x86-64-v3", "x86-64-v2", "x86-64"]

TABLE = """
import sys
from fgrad.codegen.target import host
from fgrad.testing import check_compiled
from tests.ops.samples import SAMPLES

assert host().forced and host().cpu == sys.argv[1]
names = sys.argv[2:] or [n for n in SAMPLES]
for name in names:
    check_compiled(name, SAMPLES[name])
"""
SOME = [
    "exp",
    "sin",
    "log",
    "tanh",
    "erf",
    "floordiv",
    "convert",
    "select",
    "reduce_sum",
    "reduce_max",
    "argmax",
]
SOME += ["dot_general", "conv", "conv_weight_grad", "max_pool", "pool_put", "gather", "cumsum", "pad"]

LENET = """
import sys
sys.path.insert(0, "benchmarks")
import numpy as np
import fgrad
from workloads import WORKLOADS, fgrad_ops, functional_step

once, gradient = functional_step(fgrad_ops(), WORKLOADS["W1"])
gradients = gradient()
np.savez(sys.argv[1], loss=np.float64(once()), **{n: np.asarray(v) for n, v in gradients.items()})
"""


@pytest.mark.parametrize("target", TARGETS)
def test_some_primitives(target):
    reachable(target)
    run(TABLE, target, *SOME, target=target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_the_table_of_primitives(target):
    reachable(target)
    run(TABLE, target, target=target)


def test_a_step_of_lenet(tmp_path):
    found = {}
    for target in (None, *TARGETS):
        reachable(target)
        path = tmp_path / f"{target}.npz"
        run(LENET, str(path), target=target)
        found[target] = dict(np.load(path))
    want = found.pop(None)
    for target, got in found.items():
        for name, value in want.items():
            scale = np.abs(value).max()
            np.testing.assert_allclose(
                got[name], value, atol=2e-5 * scale, rtol=1e-4, err_msg=f"{target}: {name}"
            )


def test_levels_are_described():
    features = {f: True for f in ("cx16", "sahf", "popcnt", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2")}
    assert level("x86-64-v2", features, l1=1, l2=2).vector_bytes == 16
    assert not level("x86-64", features, l1=1, l2=2).rounds
    with pytest.raises(ValueError, match="lacks"):
        level("x86-64-v3", features, l1=1, l2=2)
    with pytest.raises(ValueError, match="none of x86-64"):
        level("z80", features, l1=1, l2=2)


def test_an_unknown_target_is_an_error():
    with pytest.raises(AssertionError, match="FGRAD_TARGET"):
        run("import fgrad, numpy as np; fgrad.jit(lambda x: x + 1)(np.ones(3))", target="z80")
