"""`numba_op`: the user's own compiled function as one operation of a graph.

    @fgrad.numba_op(out=lambda x: fgrad.ShapeDtype(x.shape, x.dtype))
    @numba.njit
    def smooth(x):
        y = x.copy()
        for i in range(1, len(x) - 1):
            y[i] = (x[i - 1] + x[i] + x[i + 1]) / 3
        return y

It takes and returns NumPy arrays (anything callable on them will do). Under `jit` the program is cut there and the function
called on views of the program's own buffers, without a copy of its inputs.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any

import numpy as np

from fgrad import dtypes, tree
from fgrad.array import Array
from fgrad.control.custom import custom_jvp, custom_vjp
from fgrad.convert import as_array
from fgrad.errors import FgradTypeError, FgradValueError, describe, message
from fgrad.ir import Primitive, Type, register
from fgrad.ops.builders import batch_all
from fgrad.trace import bind

F = Callable[..., Any]


def ShapeDtype(shape: Sequence[int], dtype: Any) -> Type:
    """A shape and dtype without values: says what a function returns, or stands for an argument in `make_graph` and `lower`.

    Raises:
        FgradTypeError: `shape` is no sequence of ints, or `dtype` no dtype.
        FgradValueError: a size is negative.
    """
    fix = "give a tuple of sizes: ShapeDtype((3, 4), 'float32')"
    try:
        sizes = tuple(operator.index(s) for s in shape)
    except TypeError:
        raise FgradTypeError(message("ShapeDtype", f"shape is {describe(shape)}", fix)) from None
    if any(s < 0 for s in sizes):
        raise FgradValueError(message("ShapeDtype", f"shape {sizes} has a negative size", fix))
    return Type(sizes, dtypes.canonical(dtype))


def _type_rule(*types: Type, function: F, out_types: tuple[Type, ...], batched: int) -> tuple[Type, ...]:
    return out_types


def _call(function: F, args: Sequence[np.ndarray], out_types: Sequence[Type]) -> list[np.ndarray]:
    result = function(*args)
    results = list(result) if isinstance(result, tuple) else [result]
    del result
    if len(results) != len(out_types):
        raise FgradTypeError(
            message(
                f"numba_op {_name(function)}",
                f"returned {len(results)} arrays, `out` says {len(out_types)}",
                "correct the function or its `out`",
            )
        )
    for i, t in enumerate(out_types):
        own = (
            isinstance(results[i], np.ndarray) and results[i].base is None and _holders(results, i) == _FRESH
        )
        r = results[i] = np.asarray(results[i])
        if r.shape != t.shape or r.dtype != t.dtype:
            raise FgradTypeError(
                message(
                    f"numba_op {_name(function)}",
                    f"returned {describe(r)}, `out` says {t}",
                    "correct the function or its `out`",
                )
            )
        if not own:  # an input, or a buffer that the function keeps and may write again
            results[i] = r.copy()
    return results


def _holders(results: list[Any], i: int) -> int:
    return sys.getrefcount(results[i]) if sys.implementation.name == "cpython" else -1


_FRESH = _holders([np.empty(1)], 0)  # what it says of an array that nothing else refers to


def _name(function: F) -> str:
    return getattr(function, "__name__", "function")


def _impl(*args: np.ndarray, function: F, out_types: tuple[Type, ...], batched: int) -> list[np.ndarray]:
    if not batched:
        return _call(function, args, out_types)
    size = args[0].shape[0] if args else out_types[0].shape[0]
    each = tuple(Type(t.shape[1:], t.dtype) for t in out_types)
    rows = [
        _impl(*[a[i, ...] for a in args], function=function, out_types=each, batched=batched - 1)
        for i in range(size)
    ]
    return [
        np.stack(c) if rows else np.empty(t.shape, t.dtype)
        for c, t in zip(zip(*rows, strict=True), out_types, strict=True)
    ]


def _batch(
    size: int,
    args: Sequence[Array],
    on: Sequence[bool],
    *,
    function: F,
    out_types: tuple[Type, ...],
    batched: int,
) -> Any:
    """One call an example, in order, unless the operation has a batched function of its own."""
    wider = tuple(Type((size, *t.shape), t.dtype) for t in out_types)
    whole = batch_all(size, args, on)
    own = getattr(function, "_fgrad_batched", None)
    if own is not None and not batched:
        return bind(numba_op_p, *whole, function=own, out_types=wider, batched=0), [True] * len(wider)
    return bind(numba_op_p, *whole, function=function, out_types=wider, batched=batched + 1), [True] * len(
        wider
    )


def _no_jvp(*_: Any, function: F, **__: Any) -> Any:
    raise NotImplementedError(
        message(
            f"numba_op {_name(function)}",
            "it has no derivative",
            "give one with op.defvjp(fwd, bwd) or op.defjvp(rule), or wrap the call in stop_gradient",
        )
    )


numba_op_p = register(
    Primitive("numba_op", _type_rule, _impl, "opaque", multiple=True, jvp=_no_jvp, batch=_batch)
)


def _plain_function(function: F) -> F:
    """A plain function around the user's: Numba's dispatchers take no attributes.

    Inputs are views that must not be written to, and Numba compiles for that; one compiled for fixed signatures beforehand
    takes writable, contiguous arrays only.
    """
    prepared = _read_only if getattr(function, "_can_compile", True) else _writable

    def run(*args: np.ndarray) -> Any:
        return function(*[prepared(a) for a in args])

    run.__name__ = _name(function)
    return run


def _read_only(x: np.ndarray) -> np.ndarray:
    view = x.view()
    view.flags.writeable = False
    return view


def _writable(x: np.ndarray) -> np.ndarray:
    view = x.view()
    try:
        view.flags.writeable = True
    except ValueError:  # the memory itself is read-only
        view = x.copy()
    return np.require(view, requirements=("C", "A"))


def _check_device_function(cuda: Any) -> None:
    """What `numba.cuda.jit` makes has the Python function it came from; in the simulator too."""
    if cuda is not None and not hasattr(cuda, "py_func"):
        fix = "decorate it with @numba.cuda.jit(device=True): f(i, *inputs, *outputs)"
        raise FgradTypeError(message("numba_op", f"cuda={describe(cuda)} is no device function", fix))


class NumbaOp:
    """A compiled function as an operation. Give it derivatives with `defvjp` or `defjvp`, a batched version with `defbatch`."""

    def __init__(self, function: F, out: F, cuda: Any = None):
        _check_device_function(cuda)
        self._raw, self._out = function, out
        self._differentiable: Any = None
        self._function = _plain_function(function)
        self._function._fgrad_cuda = cuda  # type: ignore[attr-defined]
        update_wrapper(self, function, updated=())

    def defvjp(self, fwd: F, bwd: F) -> None:
        """`fwd(*args) -> (out, residuals)`; `bwd(residuals, cotangent) -> tuple of cotangents`."""
        self._differentiable = custom_vjp(self.plain)
        self._differentiable.defvjp(fwd, bwd)

    def defjvp(self, rule: F) -> F:
        """`rule(primals, tangents) -> (out, tangent)`, written with fgrad's operations."""
        self._differentiable = custom_jvp(self.plain)
        return self._differentiable.defjvp(rule)

    def defbatch(self, function: F, cuda: Any = None) -> F:
        """A compiled function that takes every argument with a leading batch axis; `cuda` does so on a GPU."""
        _check_device_function(cuda)
        batched = _plain_function(function)
        batched._fgrad_cuda = cuda  # type: ignore[attr-defined]
        self._function._fgrad_batched = batched  # type: ignore[attr-defined]
        return function

    def plain(self, *args: Any) -> Any:
        """The operation without its derivative rules, for use inside `fwd` and `defjvp` rules."""
        arrays = [as_array(a, f"numba_op {_name(self._raw)}") for a in args]
        declared = self._out(*[a.type for a in arrays])
        leaves, structure = tree.flatten(declared)
        if not leaves or any(not isinstance(t, Type) for t in leaves):
            raise FgradValueError(
                message(
                    f"numba_op {_name(self._raw)}",
                    f"`out` must return ShapeDtype (or a tuple of them), got {describe(declared)}",
                )
            )
        outs = bind(numba_op_p, *arrays, function=self._function, out_types=tuple(leaves), batched=0)
        return tree.unflatten(structure, outs)

    def __call__(self, *args: Any) -> Any:
        return (self._differentiable or self.plain)(*args)


def numba_op(function: F | None = None, *, out: F, cuda: Any = None) -> Any:
    """Make an operation of a function on NumPy arrays, usually an `@njit` one.

    Args:
        function: `(*ndarrays) -> ndarray` or tuple of them; must not change its inputs.
        out: `(*input types) -> ShapeDtype` (or a tuple), from the inputs' `.shape` and `.dtype`.
        cuda: the same on a GPU, a `@numba.cuda.jit(device=True)` function `(i, *inputs, *outputs)` that writes element i of each
            output: it is called once for each element of the first output, in any order. Arrays are flat, in row-major order, and
            have no shape; bools come as bytes, float16 and bfloat16 as their bits (uint16).
    """
    if function is None:
        return lambda f: NumbaOp(f, out, cuda)
    return NumbaOp(function, out, cuda)
