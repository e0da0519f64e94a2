"""Learning rates as functions of the step, which counts updates from 0 and may be traced.

opt = adam(warmup(cosine_decay(1e-3, 10_000), 500))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import fgrad.numpy as fnp
from fgrad import Array
from fgrad.errors import FgradValueError, message
from fgrad_nn.optim.base import Schedule


def _at_least_one(call: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise FgradValueError(message(call, f"{name} must be at least 1, got {value}"))


def _step(step: Any) -> Array:
    return fnp.asarray(step).astype("float32")


def constant(value: float) -> Schedule:
    """Always `value`."""
    return lambda step: fnp.full((), value, "float32")


def linear(start: float, end: float, steps: int) -> Schedule:
    """From `start` to `end` in `steps` steps, then `end`."""
    _at_least_one("linear", steps=steps)
    return lambda step: start + (end - start) * fnp.minimum(_step(step) / steps, 1.0)


def cosine_decay(start: float, steps: int, end: float = 0.0) -> Schedule:
    """From `start` to `end` along half a cosine in `steps` steps, then `end` (Loshchilov and Hutter, 2017)."""
    _at_least_one("cosine_decay", steps=steps)

    def schedule(step: Any) -> Array:
        angle = math.pi * fnp.minimum(_step(step) / steps, 1.0)
        return end + (start - end) * 0.5 * (1 + fnp.cos(angle))

    return schedule


def exponential_decay(start: float, rate: float, every: int = 1, staircase: bool = False) -> Schedule:
    """`start` times `rate` to the power step / every, whole numbers only if `staircase`."""
    _at_least_one("exponential_decay", every=every)

    def schedule(step: Any) -> Array:
        n = _step(step) / every
        return start * fnp.power(rate, fnp.floor(n) if staircase else n)

    return schedule


def step_decay(start: float, every: int, rate: float = 0.1) -> Schedule:
    """`start`, multiplied by `rate` after each `every` steps."""
    return exponential_decay(start, rate, every, staircase=True)


def piecewise(values: Sequence[float], boundaries: Sequence[int]) -> Schedule:
    """`values[i]` before step `boundaries[i]`, the last value after the last boundary."""
    if len(values) != len(boundaries) + 1 or list(boundaries) != sorted(boundaries):
        raise FgradValueError(
            message(
                "piecewise",
                f"{len(values)} values, boundaries {list(boundaries)}",
                "give one value more than increasing boundaries",
            )
        )

    def schedule(step: Any) -> Array:
        rate = fnp.full((), values[-1], "float32")
        for value, boundary in reversed(list(zip(values, boundaries))):
            rate = fnp.where(fnp.asarray(step) < boundary, fnp.full((), value, "float32"), rate)
        return rate

    return schedule


def warmup(after: float | Schedule, steps: int, start: float = 0.0) -> Schedule:
    """From `start` in `steps` equal steps up to what `after` begins with, then `after`, counted from there."""
    _at_least_one("warmup", steps=steps)
    follow = after if callable(after) else constant(after)

    def schedule(step: Any) -> Array:
        n = fnp.asarray(step)
        rising = start + (follow(0) - start) * (n.astype("float32") / steps)
        return fnp.where(n < steps, rising, follow(fnp.maximum(n - steps, 0)))

    return schedule
