"""The names of `fgrad` itself, gathered from where they live."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from fgrad.array import Array
from fgrad.autodiff import (
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linear_transpose,
    linearize,
    value_and_grad,
    vjp,
)
from fgrad.control.call import checkpoint
from fgrad.control.cond import cond, switch
from fgrad.control.custom import custom_jvp, custom_vjp
from fgrad.control.loops import fori_loop, while_loop
from fgrad.control.scan import map_ as map  # the field's name for it
from fgrad.control.scan import scan
from fgrad.convert import as_array
from fgrad.device import DeviceArray
from fgrad.devices import default_device, device_get, device_put, devices, from_cuda
from fgrad.errors import (
    FgradDeviceError,
    FgradError,
    FgradIndexError,
    FgradTypeError,
    FgradValueError,
    GraphError,
    TracerError,
)
from fgrad.ir import Graph, check
from fgrad.jit import Jitted, jit, make_graph
from fgrad.numba_op import ShapeDtype, numba_op
from fgrad.ops import elementwise
from fgrad.trace import named_scope as _named_scope
from fgrad.tree import leaves as _tree_leaves
from fgrad.tree import map as _tree_map
from fgrad.vectorize import vmap

if TYPE_CHECKING:
    from fgrad.runtime.profile import Profile


def stop_gradient(x: Any) -> Any:
    """`x` (a pytree of arrays), constant for differentiation."""
    return _tree_map(lambda leaf: elementwise.stop_gradient(as_array(leaf, "stop_gradient")), x)


def named_scope(name: str) -> AbstractContextManager[None]:
    """Operations inside carry `name` in graphs, errors and profiles; nested names are joined by dots."""
    return _named_scope(name)


def profile(
    f: Callable[..., Any], *, repeat: int = 40, budget: float = 1.0, serial: bool = True
) -> Callable[..., Profile]:
    """A function that runs `f` compiled (as `jit` would) and returns the time of each kernel instead of `f`'s value.

    The program runs as it always does, on its threads; printed, the result is a table of the kernels with their time, GFLOP/s, GB/s
    and shares of this machine's peaks, beside the operations, layers and lines of yours that they came from. `.rows` holds all of
    it, `.json()` and `.to_json(path)` write it. Arguments keep their values, donated ones too.

    >>> print(fgrad.profile(step)(params, state, x, y))

    Args:
        f: a function of pytrees of arrays, or the result of `jit` (with its static and donated arguments).
        repeat: calls, of whose faster half the medians are taken; fewer, but at least 3, if they take longer than `budget` seconds.
        serial: whether to time the kernels on one thread too, if the program may use several.
    """
    jitted = f if isinstance(f, Jitted) else jit(f)

    def profiled(*args: Any, **kwargs: Any) -> Profile:
        return jitted.lower(*args, **kwargs).profile(repeat, budget, serial=serial)

    return profiled


def block_until_ready(x: Any) -> Any:
    """`x`, once all of its arrays have been computed: work on a GPU is queued and done later. Errors found there are raised here."""
    seen = {leaf.backend.name: leaf.backend for leaf in _tree_leaves(x) if isinstance(leaf, DeviceArray)}
    for backend in seen.values():
        backend.wait()
    return x


__all__ = [
    "Array",
    "FgradDeviceError",
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
    "default_device",
    "device_get",
    "device_put",
    "devices",
    "fori_loop",
    "from_cuda",
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
    "stop_gradient",
    "switch",
    "value_and_grad",
    "vjp",
    "vmap",
    "while_loop",
]
