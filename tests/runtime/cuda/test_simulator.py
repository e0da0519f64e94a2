"""The simulator finds what hardware would show as wrong results now and then: `simulator_cases.py`."""

import pytest

from tests.runtime.cuda import simulated

pytestmark = simulated.needed
CASES = simulated.beside(__file__, "simulator_cases.py")


@pytest.mark.parametrize("case", simulated.names(CASES))
def test_found(case):
    simulated.check(CASES, case)
