"""fgrad: pure functions of arrays, traced to graphs, transformed, and compiled for the CPU.

import fgrad
import fgrad.numpy as fnp

def loss(w, x, y):
    return fnp.mean((fnp.tanh(x @ w) - y) ** 2)

step = fgrad.jit(fgrad.value_and_grad(loss))
"""

from fgrad import errors, lax, numpy, random, special, tree
from fgrad.api import (
    Array,
    FgradError,
    FgradIndexError,
    FgradTypeError,
    FgradValueError,
    Graph,
    GraphError,
    ShapeDtype,
    TracerError,
    block_until_ready,
    check,
    checkpoint,
    cond,
    custom_jvp,
    custom_vjp,
    fori_loop,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jit,
    jvp,
    linear_transpose,
    linearize,
    make_graph,
    map,
    named_scope,
    numba_op,
    profile,
    scan,
    stop_gradient,
    switch,
    value_and_grad,
    vjp,
    vmap,
    while_loop,
)
from fgrad.dtypes import bfloat16
from fgrad.runtime.options import winograd
from fgrad.runtime.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Array",
    "FgradError",
    "FgradIndexError",
    "FgradTypeError",
    "FgradValueError",
    "Graph",
    "GraphError",
    "ShapeDtype",
    "TracerError",
    "block_until_ready",
    "check",
    "checkpoint",
    "cond",
    "custom_jvp",
    "custom_vjp",
    "fori_loop",
    "get_num_threads",
    "grad",
    "hessian",
    "jacfwd",
    "jacrev",
    "jit",
    "jvp",
    "linear_transpose",
    "linearize",
    "make_graph",
    "map",
    "named_scope",
    "numba_op",
    "profile",
    "scan",
    "set_num_threads",
    "stop_gradient",
    "switch",
    "value_and_grad",
    "vjp",
    "vmap",
    "while_loop",
    "winograd",
    "__version__",
    "bfloat16",
    "errors",
    "lax",
    "numpy",
    "random",
    "special",
    "tree",
]
