"""The inverse error function against mpmath."""

import mpmath
import numpy as np
import pytest

from fgrad.ops.erfinv import erfinv


def test_erfinv_to_sixteen_digits():
    near_one = 1 - 10.0 ** -np.arange(1, 16)
    x = np.concatenate([np.linspace(-0.995, 0.995, 100), near_one, -near_one, 10.0 ** -np.arange(1, 300, 13)])
    with mpmath.workdps(40):
        exact = np.array([float(mpmath.erfinv(mpmath.mpf(v))) for v in x.tolist()])
    np.testing.assert_allclose(erfinv(x), exact, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ends_and_outside(dtype):
    x = np.array([[1, -1, 0], [2, -1.5, np.nan]], dtype)
    y = erfinv(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, [[np.inf, -np.inf, 0], [np.nan] * 3])
    assert erfinv(np.zeros((0, 2), dtype)).shape == (0, 2)
    assert np.signbit(erfinv(np.array(-0.0, dtype)))
