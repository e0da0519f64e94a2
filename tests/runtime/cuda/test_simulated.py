"""Programs over the driver for hardware, and memory shared with other libraries, on a simulated GPU: `simulated_cases.py`."""

import pytest

from tests.runtime.cuda import simulated

pytestmark = simulated.needed
CASES = simulated.beside(__file__, "simulated_cases.py")


@pytest.mark.parametrize("case", simulated.names(CASES))
def test_in_the_simulator(case):
    simulated.check(CASES, case)
