"""Networks, losses and optimizers on a simulated GPU: `on_device_cases.py`."""

import pytest

from tests.runtime.cuda import simulated

pytestmark = simulated.needed
CASES = simulated.beside(__file__, "on_device_cases.py")


@pytest.mark.parametrize("case", simulated.names(CASES))
def test_on_the_device(case):
    simulated.check(CASES, case)
