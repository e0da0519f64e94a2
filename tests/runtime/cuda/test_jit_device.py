"""Compiled functions on a simulated GPU: `jit_cases.py`."""

import pytest

from tests.runtime.cuda import simulated

pytestmark = simulated.needed
CASES = simulated.beside(__file__, "jit_cases.py")


@pytest.mark.parametrize("case", simulated.names(CASES))
def test_on_the_device(case):
    simulated.check(CASES, case)
