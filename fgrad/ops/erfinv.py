"""The NumPy definition of the inverse error function.

M. J. Wichura, "Algorithm AS 241: The percentage points of the normal distribution", Applied Statistics 37 (1988): rational
approximations of the normal quantile in three ranges, to about 16 digits. erfinv(y) is that of (1 + y) / 2, over sqrt(2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Coefficients of numerator and denominator, constant term first.
_MIDDLE = (
    (
        *(3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4),
        *(4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    ),
    (
        *(1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3),
        *(2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
    ),
)
_OUTER = (
    (
        *(
            1.42343711074968357734e0,
            4.63033784615654529590e0,
            5.76949722146069140550e0,
            3.64784832476320460504e0,
        ),
        *(
            1.27045825245236838258e0,
            2.41780725177450611770e-1,
            2.27238449892691845833e-2,
            7.74545014278341407640e-4,
        ),
    ),
    (
        *(1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1),
        *(
            1.48103976427480074590e-1,
            1.51986665636164571966e-2,
            5.47593808499534494600e-4,
            1.05075007164441684324e-9,
        ),
    ),
)
_TAIL = (
    (
        *(
            6.65790464350110377720e0,
            5.46378491116411436990e0,
            1.78482653991729133580e0,
            2.96560571828504891230e-1,
        ),
        *(
            2.65321895265761230930e-2,
            1.24266094738807843860e-3,
            2.71155556874348757815e-5,
            2.01033439929228813265e-7,
        ),
    ),
    (
        *(1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2),
        *(
            7.86869131145613259100e-4,
            1.84631831751005468180e-5,
            1.42151175831644588870e-7,
            2.04426310338993978564e-15,
        ),
    ),
)


def _ratio(coefficients: Sequence[Sequence[float]], r: np.ndarray) -> np.ndarray:
    """The quotient of the two polynomials, by Horner's rule."""
    values = []
    for c in coefficients:
        value = np.full_like(r, c[-1])
        for term in c[-2::-1]:
            value *= r
            value += term
        values.append(value)
    return values[0] / values[1]


def erfinv(x: np.ndarray) -> np.ndarray:
    """y with erf(y) = x for x in [-1, 1]; infinite at the ends, NaN outside; computed in float64 and rounded once."""
    x64 = np.asarray(x, np.float64)
    q = x64.ravel() / 2
    quantile = q * _ratio(_MIDDLE, 0.180625 - q * q)
    beyond = np.abs(q) > 0.425
    if beyond.any():
        far = q[beyond]
        with np.errstate(all="ignore"):
            r = np.sqrt(-np.log(0.5 - np.abs(far)))
            outer = np.where(r <= 5, _ratio(_OUTER, r - 1.6), _ratio(_TAIL, r - 5))
        quantile[beyond] = np.copysign(np.where(r == np.inf, np.inf, outer), far)
    return (quantile / np.sqrt(2)).reshape(x64.shape).astype(x.dtype)
