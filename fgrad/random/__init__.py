"""Random numbers from explicit keys.

A key is a uint32 array of shape (2,). Nothing here has hidden state: equal keys give equal numbers, and fresh numbers come from
`split` and `fold_in`.

>>> from fgrad import random
>>> key = random.key(0)
>>> key, sub = random.split(key)
>>> random.uniform(sub, (2,))
Array([0.10536897, 0.2721262 ], dtype=float32)

The bits are JAX's with its default settings (Threefry-2x32, partitionable): `key`, `split`, `fold_in`, `bits`, `uniform`,
`bernoulli`, `randint`, `permutation` agree bit for bit, distributions that need a logarithm or an inverse error function to
rounding. Element i of an array depends on the key and on i alone, and everything is an element-wise expression of an index, so
that compiled programs draw numbers inside of the kernels that use them. Works under `jit` with traced keys, and `vmap` over a
batch of keys gives what a loop over the keys gives.
"""

from fgrad.random.continuous import (
    cauchy,
    exponential,
    gumbel,
    laplace,
    logistic,
    normal,
    truncated_normal,
    uniform,
)
from fgrad.random.discrete import bernoulli, categorical, rademacher, randint
from fgrad.random.keys import PRNGKey, bits, fold_in, key, split
from fgrad.random.samples import choice, permutation

__all__ = [
    "PRNGKey",
    "bits",
    "fold_in",
    "key",
    "split",
    "cauchy",
    "exponential",
    "gumbel",
    "laplace",
    "logistic",
    "normal",
    "truncated_normal",
    "uniform",
    "bernoulli",
    "categorical",
    "rademacher",
    "randint",
    "choice",
    "permutation",
]
