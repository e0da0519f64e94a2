"""Convolution and its two gradients: three products, each bilinear, each the transpose of the others.

    conv:              x (N, C, *S),  w (O, C/groups, *K)  ->  out (N, O, *S')
    conv_input_grad:   g (N, O, *S'), w                    ->  (N, C, *S)
    conv_weight_grad:  x,             g                    ->  (O, C/groups, *K)

    S' = (S + lo + hi - dilation * (K - 1) - 1) // stride + 1

Transposed convolution is `conv_input_grad` called directly. Convolution here is cross-correlation (the kernel is not flipped),
in one to three (or more) spatial dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from fgrad import dtypes
from fgrad.array import Array
from fgrad.errors import FgradTypeError, FgradValueError, message
from fgrad.ir import Primitive, Type
from fgrad.ops.builders import is_number, multilinear
from fgrad.ops.structure import move_axis, reshape, transpose
from fgrad.trace import bind

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]

_CHUNK = 1 << 24  # elements of unfolded input held at a time


# ------------------------------------------------------------------------------------------------ shapes


def conv_spatial(
    call: str, spatial: Ints, kernel: Ints, strides: Ints, padding: Pads, dilation: Ints
) -> Ints:
    """The spatial shape of a convolution's (or pooling's) output, or an error that says which numbers do not fit."""
    n = len(spatial)
    if not (len(kernel) == len(strides) == len(padding) == len(dilation) == n):
        raise FgradTypeError(
            message(
                call,
                f"kernel {kernel}, strides {strides}, padding {padding} and dilation {dilation} need {n} entries for spatial shape {spatial}",
            )
        )
    if any(v < 1 for v in (*strides, *dilation, *kernel)) or any(v < 0 for pair in padding for v in pair):
        raise FgradValueError(
            message(
                call,
                f"kernel {kernel}, strides {strides} and dilation {dilation} must be positive, padding {padding} not negative",
            )
        )
    out = []
    for s, k, st, (lo, hi), d in zip(spatial, kernel, strides, padding, dilation, strict=True):
        room = s + lo + hi - d * (k - 1) - 1
        if room < 0:
            raise FgradValueError(
                message(
                    call,
                    f"the kernel spans {d * (k - 1) + 1} elements, the padded input has {s + lo + hi}",
                    "pad more, or use a smaller kernel or dilation",
                )
            )
        out.append(room // st + 1)
    return tuple(out)


def _check(call: str, a: Type, b: Type) -> None:
    if a.dtype != b.dtype or not is_number(a.dtype):
        raise FgradTypeError(message(call, f"operands must have one numeric dtype, got {a} and {b}"))
    if a.ndim < 3 or a.ndim != b.ndim:
        raise FgradTypeError(
            message(call, f"operands must have two axes and one or more spatial ones, got {a} and {b}")
        )


def _check_groups(call: str, channels: int, out_channels: int, per_group: int, groups: int) -> None:
    if groups < 1 or channels != per_group * groups or out_channels % groups:
        raise FgradTypeError(
            message(
                call,
                f"{channels} input channels, {out_channels} output channels, weights with {per_group} input channels a group, groups={groups}",
                "input channels must be groups times the weight's second axis, and output channels divisible by groups",
            )
        )


def _conv_type(x: Type, w: Type, *, strides: Ints, padding: Pads, dilation: Ints, groups: int) -> Type:
    _check("conv", x, w)
    _check_groups("conv", x.shape[1], w.shape[0], w.shape[1], groups)
    out = conv_spatial("conv", x.shape[2:], w.shape[2:], strides, padding, dilation)
    return Type((x.shape[0], w.shape[0], *out), x.dtype)


def _input_grad_type(
    g: Type, w: Type, *, spatial: Ints, strides: Ints, padding: Pads, dilation: Ints, groups: int
) -> Type:
    _check("conv_input_grad", g, w)
    _check_groups("conv_input_grad", w.shape[1] * groups, g.shape[1], w.shape[1], groups)
    out = conv_spatial("conv_input_grad", spatial, w.shape[2:], strides, padding, dilation)
    if g.shape[1:] != (w.shape[0], *out):
        raise FgradTypeError(
            message(
                "conv_input_grad",
                f"{g} is not the output of a convolution of {w} over {spatial}, which has (N, {w.shape[0]}) + {out}",
            )
        )
    return Type((g.shape[0], w.shape[1] * groups, *spatial), g.dtype)


def _weight_grad_type(
    x: Type, g: Type, *, kernel: Ints, strides: Ints, padding: Pads, dilation: Ints, groups: int
) -> Type:
    _check("conv_weight_grad", x, g)
    out = conv_spatial("conv_weight_grad", x.shape[2:], kernel, strides, padding, dilation)
    if (
        groups < 1
        or x.shape[1] % groups
        or g.shape[1] % groups
        or (g.shape[0], *g.shape[2:]) != (x.shape[0], *out)
    ):
        raise FgradTypeError(
            message(
                "conv_weight_grad",
                f"{g} is not the output of a convolution of {x} with kernel {kernel}, groups={groups}",
            )
        )
    return Type((g.shape[1], x.shape[1] // groups, *kernel), x.dtype)


# ------------------------------------------------------------------------------------------------ NumPy definitions


def _wide(*arrays: np.ndarray) -> list[np.ndarray]:
    """Half precision computes in float32, as the compiled contractions do."""
    return [a.astype(np.float32) if a.dtype in (dtypes.float16, dtypes.bfloat16) else a for a in arrays]


def _chunks(n: int, elements: int) -> Iterator[slice]:
    """Slices of the batch axis, so that the unfolded input stays small."""
    step = max(1, _CHUNK // max(1, elements))
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def _taps(kernel: Ints, out: Ints, strides: Ints, dilation: Ints) -> Iterator[tuple[Ints, tuple[slice, ...]]]:
    """For each kernel element, the padded input's elements that it meets, as slices of the spatial axes."""
    for tap in itertools.product(*map(range, kernel)):
        yield (
            tap,
            tuple(
                np.s_[t * d : t * d + s * (o - 1) + 1 : s]
                for t, d, s, o in zip(tap, dilation, strides, out, strict=True)
            ),
        )


def _unfold(
    x: np.ndarray, kernel: Ints, out: Ints, strides: Ints, padding: Pads, dilation: Ints, groups: int
) -> np.ndarray:
    """(groups, C/groups * prod(K), N * prod(S')): every element under every kernel element ("im2col").

    The examples lie side by side, so that a group is one matrix product.
    """
    n, c = x.shape[:2]
    if any(lo or hi for lo, hi in padding):
        x = np.pad(x, ((0, 0), (0, 0), *padding))
    columns = np.empty((c, *kernel, n, *out), x.dtype)
    for tap, at in _taps(kernel, out, strides, dilation):
        place: Any = (slice(None), *tap)
        columns[place] = x[(slice(None), slice(None), *at)].swapaxes(0, 1)
    return columns.reshape(groups, c // groups * prod(kernel), n * prod(out))


def _by_channel(g: np.ndarray, groups: int) -> np.ndarray:
    """(N, O, *S') -> (groups, O/groups, N * prod(S'))."""
    n, o = g.shape[:2]
    return g.swapaxes(0, 1).reshape(groups, o // groups, n * prod(g.shape[2:]))


def _conv_impl(
    x: np.ndarray, w: np.ndarray, *, strides: Ints, padding: Pads, dilation: Ints, groups: int
) -> np.ndarray:
    dtype, kernel = x.dtype, w.shape[2:]
    out = conv_spatial("conv", x.shape[2:], kernel, strides, padding, dilation)
    x, w = _wide(x, w)
    weights = w.reshape(groups, w.shape[0] // groups, prod(w.shape[1:]))
    result = np.empty((x.shape[0], w.shape[0], *out), dtype)
    for part in _chunks(x.shape[0], x.shape[1] * prod(kernel) * prod(out)):
        product = np.matmul(weights, _unfold(x[part], kernel, out, strides, padding, dilation, groups))
        result[part] = product.reshape(w.shape[0], len(x[part]), *out).swapaxes(0, 1)
    return result


def _input_grad_impl(
    g: np.ndarray, w: np.ndarray, *, spatial: Ints, strides: Ints, padding: Pads, dilation: Ints, groups: int
) -> np.ndarray:
    dtype, kernel, out = g.dtype, w.shape[2:], g.shape[2:]
    g, w = _wide(g, w)
    n, channels = g.shape[0], w.shape[1] * groups
    weights = w.reshape(groups, w.shape[0] // groups, prod(w.shape[1:])).swapaxes(1, 2)
    padded = np.zeros(
        (n, channels, *[s + lo + hi for s, (lo, hi) in zip(spatial, padding, strict=True)]), g.dtype
    )
    for part in _chunks(n, channels * prod(kernel) * prod(out)):
        columns = np.matmul(weights, _by_channel(g[part], groups))
        columns = columns.reshape(channels, *kernel, len(g[part]), *out)
        for tap, at in _taps(kernel, out, strides, dilation):
            where: Any = (part, slice(None), *at)
            padded[where] += columns[(slice(None), *tap)].swapaxes(0, 1)
    inside: Any = tuple(slice(lo, lo + s) for s, (lo, _) in zip(spatial, padding, strict=True))
    return np.ascontiguousarray(padded[(slice(None), slice(None), *inside)]).astype(dtype, copy=False)


def _weight_grad_impl(
    x: np.ndarray, g: np.ndarray, *, kernel: Ints, strides: Ints, padding: Pads, dilation: Ints, groups: int
) -> np.ndarray:
    dtype, out = x.dtype, g.shape[2:]
    x, g = _wide(x, g)
    n, c, o = x.shape[0], x.shape[1], g.shape[1]
    total = np.zeros((groups, o // groups, c // groups * prod(kernel)), x.dtype)
    for part in _chunks(n, c * prod(kernel) * prod(out)):
        columns = _unfold(x[part], kernel, out, strides, padding, dilation, groups)
        total += np.matmul(_by_channel(g[part], groups), columns.swapaxes(1, 2))
    return total.reshape(o, c // groups, *kernel).astype(dtype, copy=False)


# ------------------------------------------------------------------------------------------------ batching
# Three ways to hide the new axis B: among the examples, among the channels of a group, or as further groups.


def _into_examples(x: Array) -> Array:
    """(B, N, ...) -> (B N, ...)."""
    return reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def _out_of_examples(x: Array, size: int) -> Array:
    return reshape(x, (size, x.shape[0] // size, *x.shape[1:]))


def _into_axis1(x: Array, groups: int) -> Array:
    """(B, N, groups c, ...) -> (N, groups B c, ...): `groups=1` puts B outermost, as further groups."""
    b, n, c = x.shape[:3]
    x = reshape(x, (b, n, groups, c // groups, *x.shape[3:]))
    x = transpose(x, (1, 2, 0, *range(3, x.ndim)))
    return reshape(x, (n, b * c, *x.shape[4:]))


def _out_of_axis1(x: Array, size: int, groups: int) -> Array:
    """(N, groups B c, ...) -> (B, N, groups c, ...)."""
    n, c = x.shape[0], x.shape[1] // size
    x = reshape(x, (n, groups, size, c // groups, *x.shape[2:]))
    x = transpose(x, (2, 0, 1, *range(3, x.ndim)))
    return reshape(x, (size, n, c, *x.shape[4:]))


def _into_axis0(w: Array, groups: int) -> Array:
    """(B, groups o, ...) -> (groups B o, ...)."""
    b, o = w.shape[:2]
    w = move_axis(reshape(w, (b, groups, o // groups, *w.shape[2:])), 0, 1)
    return reshape(w, (b * o, *w.shape[3:]))


def _out_of_axis0(w: Array, size: int, groups: int) -> Array:
    """(groups B o, ...) -> (B, groups o, ...)."""
    o = w.shape[0] // size
    w = move_axis(reshape(w, (groups, size, o // groups, *w.shape[1:])), 1, 0)
    return reshape(w, (size, o, *w.shape[3:]))


def _conv_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, groups: int, **params: Any
) -> tuple[Array, bool]:
    x, w = args
    if all(batched):
        out = bind(conv_p, _into_axis1(x, 1), _into_examples(w), groups=size * groups, **params)
        return _out_of_axis1(out, size, 1), True
    if batched[0]:
        return _out_of_examples(bind(conv_p, _into_examples(x), w, groups=groups, **params), size), True
    return _out_of_axis1(bind(conv_p, x, _into_axis0(w, groups), groups=groups, **params), size, groups), True


def _input_grad_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, groups: int, **params: Any
) -> tuple[Array, bool]:
    g, w = args
    if all(batched):
        out = bind(conv_input_grad_p, _into_axis1(g, 1), _into_examples(w), groups=size * groups, **params)
        return _out_of_axis1(out, size, 1), True
    if batched[0]:
        return _out_of_examples(
            bind(conv_input_grad_p, _into_examples(g), w, groups=groups, **params), size
        ), True
    return _out_of_axis1(
        bind(conv_input_grad_p, g, _into_axis1(w, 1), groups=groups, **params), size, groups
    ), True


def _weight_grad_batch(
    size: int, args: Sequence[Array], batched: Sequence[bool], *, groups: int, **params: Any
) -> tuple[Array, bool]:
    x, g = args
    if all(batched):
        out = bind(conv_weight_grad_p, _into_axis1(x, 1), _into_axis1(g, 1), groups=size * groups, **params)
        return _out_of_examples(out, size), True
    if batched[0]:
        return _out_of_axis1(
            bind(conv_weight_grad_p, _into_axis1(x, groups), g, groups=groups, **params), size, 1
        ), True
    return _out_of_axis0(
        bind(conv_weight_grad_p, x, _into_axis1(g, groups), groups=groups, **params), size, groups
    ), True


# ------------------------------------------------------------------------------------------------ the primitives


def _without(params: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in params.items() if k != name}


conv_p: Primitive = multilinear(
    "conv",
    _conv_type,
    _conv_impl,
    (
        lambda ct, x, w, **p: bind(conv_input_grad_p, ct, w, spatial=x.shape[2:], **p),
        lambda ct, x, w, **p: bind(conv_weight_grad_p, x, ct, kernel=w.shape[2:], **p),
    ),
    _conv_batch,
    "contract",
)
conv_input_grad_p: Primitive = multilinear(
    "conv_input_grad",
    _input_grad_type,
    _input_grad_impl,
    (
        lambda ct, g, w, **p: bind(conv_p, ct, w, **_without(p, "spatial")),
        lambda ct, g, w, **p: bind(conv_weight_grad_p, ct, g, kernel=w.shape[2:], **_without(p, "spatial")),
    ),
    _input_grad_batch,
    "contract",
)
conv_weight_grad_p: Primitive = multilinear(
    "conv_weight_grad",
    _weight_grad_type,
    _weight_grad_impl,
    (
        lambda ct, x, g, **p: bind(conv_input_grad_p, g, ct, spatial=x.shape[2:], **_without(p, "kernel")),
        lambda ct, x, g, **p: bind(conv_p, x, ct, **_without(p, "kernel")),
    ),
    _weight_grad_batch,
    "contract",
)


def _pads(padding: Sequence[Sequence[int]]) -> Pads:
    return tuple((int(lo), int(hi)) for lo, hi in padding)


def conv(
    x: Array,
    w: Array,
    strides: Sequence[int],
    padding: Sequence[Sequence[int]],
    dilation: Sequence[int],
    groups: int = 1,
) -> Array:
    """Cross-correlation of `x` (N, C, *S) with `w` (O, C/groups, *K), zero padding ((lo, hi), ...); result (N, O, *S')."""
    return bind(
        conv_p, x, w, strides=tuple(strides), padding=_pads(padding), dilation=tuple(dilation), groups=groups
    )


def conv_input_grad(
    g: Array,
    w: Array,
    spatial: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[Sequence[int]],
    dilation: Sequence[int],
    groups: int = 1,
) -> Array:
    """The transpose of `conv` in `x` of spatial shape `spatial`; also called transposed convolution. Result (N, C, *spatial)."""
    return bind(
        conv_input_grad_p,
        g,
        w,
        spatial=tuple(spatial),
        strides=tuple(strides),
        padding=_pads(padding),
        dilation=tuple(dilation),
        groups=groups,
    )


def conv_weight_grad(
    x: Array,
    g: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[Sequence[int]],
    dilation: Sequence[int],
    groups: int = 1,
) -> Array:
    """The transpose of `conv` in `w` of kernel shape `kernel`. Result (O, C/groups, *kernel)."""
    return bind(
        conv_weight_grad_p,
        x,
        g,
        kernel=tuple(kernel),
        strides=tuple(strides),
        padding=_pads(padding),
        dilation=tuple(dilation),
        groups=groups,
    )
