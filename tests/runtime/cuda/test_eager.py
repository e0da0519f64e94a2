"""Operations and transforms, operation by operation, on a simulated GPU: `eager_cases.py`."""

import pytest

from tests.runtime.cuda import simulated

pytestmark = simulated.needed
CASES = simulated.beside(__file__, "eager_cases.py")


@pytest.mark.parametrize("case", simulated.names(CASES))
def test_on_the_device(case):
    simulated.check(CASES, case)
