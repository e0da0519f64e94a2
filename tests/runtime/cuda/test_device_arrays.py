"""Arrays on a simulated GPU, and the mistakes that can be made with them: `device_array_cases.py`."""

import pytest

from tests.runtime.cuda import simulated

pytestmark = simulated.needed
CASES = simulated.beside(__file__, "device_array_cases.py")


@pytest.mark.parametrize("case", simulated.names(CASES))
def test_on_the_device(case):
    simulated.check(CASES, case)
