"""Embeddings: rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fgrad.numpy as fnp
from fgrad import Array, lax, random
from fgrad.errors import FgradIndexError, describe
from fgrad_nn import init
from fgrad_nn.layers.check import param, positive, required
from fgrad_nn.module import Bound, Module, layer_error
from fgrad_nn.values import known


@dataclass(frozen=True, repr=False)
class Embedding(Module):
    """Rows of a table at integer indices: any shape I to I + (embedding_dim,).

    Params: `weight` (num_embeddings, embedding_dim), standard normal by default. The row at `padding_idx` begins as zeros and has
    no gradient. An index outside of 0 ... num_embeddings - 1 is an error: unlike in NumPy, -1 is not the last row.
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None = None
    weight_init: init.Initializer | None = None
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        positive(self, num_embeddings=self.num_embeddings, embedding_dim=self.embedding_dim)
        if self.padding_idx is not None:
            n = self.num_embeddings
            required(-n <= self.padding_idx < n, self, f"padding_idx={self.padding_idx} is outside {n} rows")

    def init(self, key: Array) -> dict[str, Array]:
        shape = (self.num_embeddings, self.embedding_dim)
        weight = (
            self.weight_init(key, shape, self.dtype)
            if self.weight_init
            else random.normal(key, shape, self.dtype)
        )
        if self.padding_idx is not None:
            padding = lax.iota(shape, like=key) == self.padding_idx % self.num_embeddings
            weight = fnp.where(padding, 0, weight)
        return {"weight": weight}

    def forward(self, p: Bound, x: Any) -> Array:
        x = fnp.asarray(x)
        if x.dtype.kind not in "iu":
            raise layer_error(
                self, p, f"indices must be integers, got {describe(x)}", "convert them: x.astype('int64')"
            )
        values = known(x)
        if values is None:
            # -1 would read the last row: it is sent to where the check of the compiled gather finds it.
            x = x.astype("int64")
            x = fnp.where(x < 0, self.num_embeddings, x)
        else:
            outside = values[(values < 0) | (values >= self.num_embeddings)]
            if outside.size:
                problem = f"index {outside.flat[0]} is outside of the {self.num_embeddings} rows"
                fix = f"indices run from 0 to {self.num_embeddings - 1}; make the layer with more rows, or clip them"
                raise layer_error(self, p, problem, fix, FgradIndexError)
        rows = lax.gather(param(self, p, "weight", (self.num_embeddings, self.embedding_dim)), x, 0)
        if self.padding_idx is None:
            return rows
        padding = (x == self.padding_idx % self.num_embeddings)[..., None]
        return fnp.where(padding, lax.stop_gradient(rows), rows)
