"""Builders of primitive records: a family is said once, and type rule, JVP, transpose and batching follow from it.

- `elementwise(name, impl, partials=...)`: one partial derivative an input; `None` where it is not differentiable (zero).
- `linear(name, type_rule, impl, transpose, batch)`: linear in its first input; JVP is the operation itself.
- `multilinear(...)`: linear in each of several inputs separately (products); one transpose rule an input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array, concrete
from fgrad.device import beside, constant, placement
from fgrad.errors import FgradTypeError, message
from fgrad.ir import Linear, Primitive, Type, register
from fgrad.trace import bind, current_stack

ONE = "one"  # partial derivatives that need no multiplication
MINUS_ONE = "minus one"

Rule = Callable[..., Any]


def same_types(name: str, types: Sequence[Type], accepts: Callable[[np.dtype], bool] | None = None) -> Type:
    """The common type of elementwise operands, or an error that names them."""
    first = types[0]
    if any(t != first for t in types[1:]):
        raise FgradTypeError(
            message(
                name,
                f"operands must have one shape and dtype, got {', '.join(map(str, types))}",
                "primitives do not broadcast or promote; call the fgrad.numpy function instead",
            )
        )
    if accepts is not None and not accepts(first.dtype):
        raise FgradTypeError(
            message(name, f"dtype {first.dtype} is not supported", "convert with x.astype(...)")
        )
    return first


def is_number(dtype: np.dtype) -> bool:
    return dtype != dtypes.bool_


def real_number(dtype: np.dtype) -> bool:
    return dtype != dtypes.bool_ and dtype not in dtypes.COMPLEX


Unary = Callable[[Array], Array]
Binary = Callable[[Array, Array], Array]


def unary_function(prim: Primitive) -> Unary:
    """The function that binds a primitive of one operand and no parameters."""

    def f(x: Array) -> Array:
        return bind(prim, x)

    f.__name__ = prim.name
    return f


def binary_function(prim: Primitive) -> Binary:
    """The function that binds a primitive of two operands and no parameters."""

    def f(x: Array, y: Array) -> Array:
        return bind(prim, x, y)

    f.__name__ = prim.name
    return f


def argsort(axes: Sequence[int]) -> tuple[int, ...]:
    """The positions of `axes` in increasing order (the inverse, if `axes` is a permutation)."""
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def full_like(x: Any, value: Any) -> Array:
    """An array of the shape and dtype of `x`, every element `value`, and where `x` is."""
    if placement() is None:
        return full(x.shape, value, x.dtype)
    with beside(x):
        return full(x.shape, value, x.dtype)


def full(shape: Sequence[int], value: Any, dtype: np.dtype) -> Array:
    scalar: Array = concrete(np.asarray(value, dtype=dtype))
    if placement() is not None and not current_stack():
        # (In a trace it stays a number, which becomes a literal of the graph.)
        scalar = constant(np.asarray(value, dtype=dtype))
    return bind(broadcast_p, scalar, shape=tuple(shape), axes=()) if shape else scalar


def batch_operand(x: Array, size: int) -> Array:
    """An unbatched operand, repeated along a new axis 0."""
    return bind(broadcast_p, x, shape=(size, *x.shape), axes=tuple(range(1, x.ndim + 1)))


def batch_all(size: int, args: Sequence[Array], batched: Sequence[bool]) -> list[Array]:
    return [a if b else batch_operand(a, size) for a, b in zip(args, batched, strict=True)]


# ------------------------------------------------------------------------------------------------ elementwise


def elementwise(
    name: str,
    impl: Rule,
    *,
    partials: Sequence[Any] | None = None,
    linear: bool = False,
    out_dtype: Callable[..., np.dtype] | None = None,
    type_rule: Rule | None = None,
    transpose: Rule | None = None,
    accepts: Callable[[np.dtype], bool] | None = None,
    scalar: Rule | None = None,
    family: str = "elementwise",
    doc: str = "",
) -> Primitive:
    """An operation on corresponding elements.

    `partials[i]`: `(out, *inputs, **params) -> Array`, `ONE`, `MINUS_ONE`, or None (zero derivative).
    """

    def default_type(*types: Type, **params: Any) -> Type:
        t = same_types(name, types, accepts)
        return Type(t.shape, out_dtype(t.dtype) if out_dtype else t.dtype)

    def jvp(
        primals: Sequence[Array], tangents: Sequence[Array | None], outs: Sequence[Array], **params: Any
    ) -> Array | None:
        total = None
        for partial, tangent in zip(partials or (), tangents, strict=True):
            if tangent is None or partial is None:
                continue
            if partial is ONE:
                term = tangent
            elif partial is MINUS_ONE:
                term = bind(neg_p, tangent)
            else:
                term = bind(mul_p, tangent, partial(outs[0], *primals, **params))
            total = term if total is None else bind(add_p, total, term)
        return total

    def jvp_linear(
        primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, **params: Any
    ) -> Array:
        (tangent,) = tangents
        assert tangent is not None  # jvp rules are called with at least one tangent
        return bind(prim, tangent, **params)

    def batch(size: int, args: Sequence[Array], batched: Sequence[bool], **params: Any) -> tuple[Any, bool]:
        return bind(prim, *batch_all(size, args, batched), **params), True

    prim = Primitive(
        name,
        type_rule or default_type,
        impl,
        family,
        scalar=scalar,
        jvp=jvp_linear if linear else jvp if partials is not None else zero_jvp,
        transpose=transpose,
        batch=batch,
        doc=doc,
    )
    return register(prim)


def zero_jvp(*_: Any, **__: Any) -> None:
    """The derivative is zero (integers, comparisons, rounding)."""
    return None


# ------------------------------------------------------------------------------------------------ linear and multilinear


def linear(
    name: str, type_rule: Rule, impl: Rule, transpose: Rule, batch: Rule, family: str, doc: str = ""
) -> Primitive:
    """Linear in input 0; other inputs (if any) are not differentiable and pass through.

    `transpose(ct, x, *rest, **params)` gives the cotangent of input 0, `x` being its `Linear` placeholder.
    """

    def jvp(
        primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, **params: Any
    ) -> Array | None:
        return None if tangents[0] is None else bind(prim, tangents[0], *primals[1:], **params)

    def transposed(cts: Sequence[Array | None], *inputs: Any, **params: Any) -> tuple[Any, ...]:
        return (transpose(cts[0], *inputs, **params), *[None] * (len(inputs) - 1))

    prim = Primitive(name, type_rule, impl, family, jvp=jvp, transpose=transposed, batch=batch, doc=doc)
    return register(prim)


def multilinear(
    name: str,
    type_rule: Rule,
    impl: Rule,
    transposes: Sequence[Rule],
    batch: Rule,
    family: str,
    scalar: Rule | None = None,
    doc: str = "",
) -> Primitive:
    """Linear in each input separately. `transposes[i](ct, *inputs, **params)` gives the cotangent of input i (a `Linear`)."""

    def jvp(
        primals: Sequence[Array], tangents: Sequence[Array | None], outs: Any, **params: Any
    ) -> Array | None:
        total = None
        for i, tangent in enumerate(tangents):
            if tangent is None:
                continue
            term = bind(prim, *primals[:i], tangent, *primals[i + 1 :], **params)
            total = term if total is None else bind(add_p, total, term)
        return total

    def transposed(cts: Sequence[Array | None], *inputs: Any, **params: Any) -> tuple[Any, ...]:
        return tuple(
            t(cts[0], *inputs, **params) if isinstance(x, Linear) else None
            for t, x in zip(transposes, inputs, strict=True)
        )

    prim = Primitive(
        name, type_rule, impl, family, scalar=scalar, jvp=jvp, transpose=transposed, batch=batch, doc=doc
    )
    return register(prim)


def opaque(
    name: str,
    type_rule: Rule,
    impl: Rule,
    *,
    jvp: Rule | None = None,
    batch: Rule | None = None,
    multiple: bool = False,
    doc: str = "",
) -> Primitive:
    """An operation that compiled programs leave to its NumPy definition, at a cut."""
    return register(
        Primitive(name, type_rule, impl, "opaque", multiple=multiple, jvp=jvp, batch=batch, doc=doc)
    )


# ------------------------------------------------------------------------------------------------ what the rules are written in
# add, neg, mul and broadcast are defined here because the derived rules above need them.


def _add_transpose(cts: Sequence[Array], x: Any, y: Any) -> tuple[Any, Any]:
    return (cts[0] if isinstance(x, Linear) else None, cts[0] if isinstance(y, Linear) else None)


add_p = elementwise("add", np.add, partials=(ONE, ONE), transpose=_add_transpose, accepts=is_number)
neg_p: Primitive = elementwise(
    "neg", np.negative, linear=True, transpose=lambda cts, x: (bind(neg_p, cts[0]),), accepts=is_number
)


def _mul_type(x: Type, y: Type) -> Type:
    return same_types("mul", (x, y), is_number)


def _mul_batch(size: int, args: Sequence[Array], batched: Sequence[bool]) -> tuple[Array, bool]:
    return bind(mul_p, *batch_all(size, args, batched)), True


mul_p: Primitive = multilinear(
    "mul",
    _mul_type,
    np.multiply,
    (lambda ct, x, y: bind(mul_p, ct, y), lambda ct, x, y: bind(mul_p, ct, x)),
    _mul_batch,
    "elementwise",
)


def _broadcast_type(x: Type, *, shape: tuple[int, ...], axes: tuple[int, ...]) -> Type:
    if len(axes) != x.ndim or any(shape[a] != s for a, s in zip(axes, x.shape, strict=True)):
        raise FgradTypeError(message("broadcast", f"{x} does not fit {shape} along axes {axes}"))
    return Type(tuple(shape), x.dtype)


def _broadcast_impl(x: np.ndarray, *, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    view = x.transpose(argsort(axes))
    view = view.reshape([shape[i] if i in axes else 1 for i in range(len(shape))])
    return np.broadcast_to(view, shape)


def _broadcast_transpose(ct: Array, x: Linear, *, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    summed = tuple(i for i in range(len(shape)) if i not in axes)
    ct = bind(reduce_sum_p, ct, axes=summed) if summed else ct
    order = argsort(argsort(axes))
    return bind(transpose_p, ct, perm=order) if order != tuple(range(len(order))) else ct


def _broadcast_batch(
    size: int,
    args: Sequence[Array],
    batched: Sequence[bool],
    *,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
) -> tuple[Array, bool]:
    return bind(broadcast_p, args[0], shape=(size, *shape), axes=(0, *[a + 1 for a in axes])), True


broadcast_p = linear(
    "broadcast", _broadcast_type, _broadcast_impl, _broadcast_transpose, _broadcast_batch, "structure"
)


def _reduce_type(x: Type, *, axes: tuple[int, ...]) -> Type:
    return Type(tuple(s for i, s in enumerate(x.shape) if i not in axes), x.dtype)


def _sum_type(x: Type, *, axes: tuple[int, ...]) -> Type:
    same_types("reduce_sum", (x,), is_number)
    return _reduce_type(x, axes=axes)


def _sum_impl(x: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray:
    # Half precision accumulates in float32, as the compiled kernels do.
    wide = np.float32 if x.dtype in (dtypes.float16, dtypes.bfloat16) else x.dtype
    return np.sum(x, axis=axes, dtype=wide).astype(x.dtype)


def _sum_transpose(ct: Array, x: Linear, *, axes: tuple[int, ...]) -> Array:
    return bind(broadcast_p, ct, shape=x.shape, axes=tuple(i for i in range(len(x.shape)) if i not in axes))


def _sum_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, axes: tuple[int, ...]
) -> tuple[Array, bool]:
    return bind(reduce_sum_p, args[0], axes=tuple(a + 1 for a in axes)), True


reduce_sum_p = linear("reduce_sum", _sum_type, _sum_impl, _sum_transpose, _sum_batch, "reduce")


def _transpose_type(x: Type, *, perm: tuple[int, ...]) -> Type:
    if sorted(perm) != list(range(x.ndim)):
        raise FgradTypeError(message("transpose", f"{perm} is not a permutation of the {x.ndim} axes of {x}"))
    return Type(tuple(x.shape[p] for p in perm), x.dtype)


def _transpose_transpose(ct: Array, x: Linear, *, perm: tuple[int, ...]) -> Array:
    return bind(transpose_p, ct, perm=argsort(perm))


def _transpose_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, perm: tuple[int, ...]
) -> tuple[Array, bool]:
    return bind(transpose_p, args[0], perm=(0, *[p + 1 for p in perm])), True


transpose_p = linear(
    "transpose",
    _transpose_type,
    lambda x, *, perm: np.transpose(x, perm),
    _transpose_transpose,
    _transpose_batch,
    "structure",
)
