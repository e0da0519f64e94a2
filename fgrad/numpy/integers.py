"""Greatest common divisors and least common multiples."""

from __future__ import annotations

from typing import Any

from fgrad import dtypes
from fgrad.array import Array
from fgrad.control.loops import while_loop
from fgrad.errors import FgradTypeError, message
from fgrad.numpy.axes import operands
from fgrad.numpy.elementwise import absolute, floor_divide, multiply, not_equal, remainder, where
from fgrad.numpy.reductions import any as any_over


def _integers(call: str, x: Any, y: Any) -> list[Array]:
    a, b = operands(call, x, y)
    if not dtypes.is_integer(a.dtype):
        raise FgradTypeError(message(call, f"needs integers, got {a.dtype}"))
    return [absolute(a), absolute(b)]


def gcd(x: Any, y: Any, /) -> Array:
    """The greatest common divisor of |x| and |y|, by Euclid's algorithm."""
    a, b = _integers("gcd", x, y)

    def step(pair: Any) -> Any:
        p, q = pair
        going = not_equal(q, 0)
        return where(going, q, p), where(going, remainder(p, where(going, q, 1)), 0)

    found = while_loop(lambda pair: any_over(not_equal(pair[1], 0)), step, (a, b))[0]
    return absolute(found)  # |x| of the least integer is that integer, negative


def lcm(x: Any, y: Any, /) -> Array:
    """The least common multiple of |x| and |y|; 0 where one is 0."""
    a, b = _integers("lcm", x, y)
    d = gcd(a, b)
    return multiply(floor_divide(a, where(not_equal(d, 0), d, 1)), b)
