"""Dropout (Srivastava and others, 2014)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import fgrad.numpy as fnp
from fgrad import Array, random
from fgrad.errors import describe
from fgrad_nn.layers.check import array_input, required
from fgrad_nn.module import Bound, Module, layer_error


@dataclass(frozen=True, repr=False)
class Dropout(Module):
    """In training, each element is zero with probability `p` and divided by 1 - p otherwise; else the identity.

    Training needs a key: `net.apply(params, state, x, key=key, train=True)`. Use another key in each step.
    """

    p: float = field(default=0.5, metadata={"always": True})

    def __post_init__(self) -> None:
        number = isinstance(self.p, (int, float))
        required(
            number and 0 <= self.p <= 1, self, f"the probability must lie between 0 and 1, got {self.p!r}"
        )

    def forward(self, p: Bound, x: Any) -> Array:
        x = array_input(self, p, x)
        if not p.train or self.p == 0:
            return x
        return self._dropped(p, x, x.shape)

    def _dropped(self, p: Bound, x: Array, shape: tuple[int, ...]) -> Array:
        keep = random.bernoulli(p.key(), 1 - self.p, shape)
        return fnp.where(keep, x / (1 - self.p) if self.p < 1 else x, 0)


class Dropout2d(Dropout):
    """`Dropout` of whole channels of (N, C, *S)."""

    def forward(self, p: Bound, x: Any) -> Array:
        x = array_input(self, p, x)
        if x.ndim < 3:
            problem = f"expected an input of shape (N, C, ...), got {describe(x)}"
            raise layer_error(self, p, problem, "use Dropout, or add the batch axis: x[None]")
        return super().forward(p, x)

    def _dropped(self, p: Bound, x: Array, shape: tuple[int, ...]) -> Array:
        return super()._dropped(p, x, (*shape[:2], *[1] * (len(shape) - 2)))
