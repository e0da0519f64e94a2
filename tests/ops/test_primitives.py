"""Every primitive against its NumPy definition, differences, a Python loop, and (where there is one) the compiler."""

from __future__ import annotations

import numpy as np
import pytest

from fgrad.ir import REGISTRY
from fgrad.testing import check_compiled, check_primitive

from .samples import SAMPLES

CASES = [pytest.param(name, i, id=f"{name}-{i}") for name, rows in SAMPLES.items() for i in range(len(rows))]


def test_every_primitive_has_a_row():
    # Control flow (graphs in the parameters) has tests of its own, as have operations that users define.
    wanted = {name for name, p in REGISTRY.items() if p.family != "control" and name != "numba_op"}
    assert wanted - set(SAMPLES) == set()
    assert set(SAMPLES) - wanted == set()


@pytest.mark.parametrize(("name", "i"), CASES)
def test_primitive(name, i):
    with np.errstate(all="ignore"):
        check_primitive(name, SAMPLES[name][i])


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_compiled(name):
    with np.errstate(all="ignore"):
        check_compiled(name, SAMPLES[name])
