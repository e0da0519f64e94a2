"""What a contraction is: matrix products and convolutions as one description.

Every product that the code generator knows is an instance of

    out[b, m, n] = sum over k of  lhs[b, m, k] * rhs[b, n, k]

where ``b``, ``m``, ``n`` and ``k`` each stand for a tuple of named dimensions, and each operand says how an index
becomes a memory element. A convolution differs from a matrix product only in that an operand's axis may be addressed
by *two* dimensions at once (output position and kernel tap), may run over the border (the padding reads as zero), and,
in the gradient of a strided convolution, may exist only at multiples of the stride.

    >>> spec = conv_spec((4, 3, 32, 32), (6, 3, 5, 5), (1, 1), [(0, 0), (0, 0)], (1, 1), 1, np.float32)
    >>> [dim.extent for dim in spec.m], [dim.extent for dim in spec.n], [dim.extent for dim in spec.k]
    ([6], [4, 28, 28], [3, 5, 5])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Dim:
    """One loop of a contraction: a name, unique in its contraction, and its number of steps."""

    name: str
    extent: int


@dataclass(frozen=True)
class Axis:
    """One axis of an operand in memory, addressed by a sum of loop indices.

    The position is ``p = offset + sum(coef * index[dim])``. With ``divisor > 1`` the element exists only where ``p``
    is a multiple of it, and ``p`` is then divided by it. With a ``size`` the element exists only for ``0 <= p < size``.
    An element that does not exist reads as zero. The address contribution is ``p * stride`` elements.
    """

    coefs: tuple[tuple[str, int], ...]
    stride: int
    offset: int = 0
    divisor: int = 1
    size: int | None = None

    def span(self, extents: dict[str, int]) -> tuple[int, int]:
        """Smallest and largest position ``p`` before division, for non-empty loops."""
        low = high = self.offset
        for name, coef in self.coefs:
            reach = coef * (extents[name] - 1)
            low, high = low + min(0, reach), high + max(0, reach)
        return low, high

    def is_plain(self, extents: dict[str, int]) -> bool:
        """True if every element exists, so that the address is an affine function of the indices."""
        if self.divisor != 1:
            return False
        low, high = self.span(extents)
        return self.size is None or (low >= 0 and high < self.size)


@dataclass(frozen=True)
class Operand:
    """An array in memory: element type, axes, and the element offset of position zero."""

    dtype: np.dtype
    axes: tuple[Axis, ...]
    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))

    def is_plain(self, extents: dict[str, int]) -> bool:
        return all(axis.is_plain(extents) for axis in self.axes)

    def strides(self) -> tuple[int, dict[str, int]]:
        """Base offset and stride of every dimension of a plain operand, in elements."""
        base = self.offset
        result: dict[str, int] = {}
        for axis in self.axes:
            base += axis.offset * axis.stride
            for name, coef in axis.coefs:
                result[name] = result.get(name, 0) + coef * axis.stride
        return base, result


@dataclass(frozen=True)
class Contraction:
    """``out[b, m, n] = sum_k lhs[b, m, k] * rhs[b, n, k]``; see the module's text.

    Floating operands are accumulated in float32 (float64 if either operand is float64), integers in the output dtype.
    """

    batch: tuple[Dim, ...]
    m: tuple[Dim, ...]
    n: tuple[Dim, ...]
    k: tuple[Dim, ...]
    lhs: Operand
    rhs: Operand
    out: Operand

    def __post_init__(self) -> None:
        names = [dim.name for dim in self.dims]
        if len(set(names)) != len(names):
            raise ValueError(f"Contraction: dimension names must be unique, got {names}")
        for label, operand, groups in (
            ("lhs", self.lhs, (self.batch, self.m, self.k)),
            ("rhs", self.rhs, (self.batch, self.n, self.k)),
            ("out", self.out, (self.batch, self.m, self.n)),
        ):
            known = {dim.name for group in groups for dim in group}
            used = {name for axis in operand.axes for name, _ in axis.coefs}
            if not used <= known:
                raise ValueError(
                    f"Contraction: {label} is indexed by {sorted(used - known)}, which it may not depend on"
                )
        extents = self.extents
        if all(extents.values()) and not self.out.is_plain(extents):
            raise ValueError("Contraction: every element of out must exist (plain strides)")

    @property
    def dims(self) -> tuple[Dim, ...]:
        return self.batch + self.m + self.n + self.k

    @property
    def extents(self) -> dict[str, int]:
        return {dim.name: dim.extent for dim in self.dims}

    @property
    def flops(self) -> int:
        return 2 * math.prod(dim.extent for dim in self.dims)

    def swapped(self) -> Contraction:
        """The same contraction with the roles of ``m`` and ``n`` exchanged."""
        return replace(self, m=self.n, n=self.m, lhs=self.rhs, rhs=self.lhs)


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def dot_general_spec(
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    dimension_numbers,
    lhs_dtype,
    rhs_dtype,
    out_dtype,
    lhs_strides: Sequence[int] | None = None,
    rhs_strides: Sequence[int] | None = None,
) -> Contraction:
    """A general matrix product with JAX's ``dimension_numbers``.

    ``dimension_numbers`` is ``((lhs_contract, rhs_contract), (lhs_batch, rhs_batch))``. The output, row-major, has the
    batch dimensions, then the free dimensions of lhs, then those of rhs. Strides are in elements, row-major if absent.
    """
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    for label, ours, theirs in (("contracted", lhs_contract, rhs_contract), ("batch", lhs_batch, rhs_batch)):
        left = tuple(lhs_shape[i] for i in ours)
        right = tuple(rhs_shape[i] for i in theirs)
        if left != right:
            raise ValueError(f"dot_general: {label} dimensions differ: {left} of lhs and {right} of rhs")

    def free(shape, contract, batch):
        return [i for i in range(len(shape)) if i not in set(contract) | set(batch)]

    lhs_free, rhs_free = free(lhs_shape, lhs_contract, lhs_batch), free(rhs_shape, rhs_contract, rhs_batch)
    batch = tuple(Dim(f"b{i}", lhs_shape[d]) for i, d in enumerate(lhs_batch))
    m = tuple(Dim(f"m{i}", lhs_shape[d]) for i, d in enumerate(lhs_free))
    n = tuple(Dim(f"n{i}", rhs_shape[d]) for i, d in enumerate(rhs_free))
    k = tuple(Dim(f"k{i}", lhs_shape[d]) for i, d in enumerate(lhs_contract))

    def operand(shape, strides, dtype, groups):
        strides = _row_major(shape) if strides is None else strides
        axes = [Axis(((dim.name, 1),), strides[d]) for dims, where in groups for dim, d in zip(dims, where)]
        return Operand(dtype, tuple(axes))

    out_dims = batch + m + n
    return Contraction(
        batch,
        m,
        n,
        k,
        operand(lhs_shape, lhs_strides, lhs_dtype, ((batch, lhs_batch), (m, lhs_free), (k, lhs_contract))),
        operand(rhs_shape, rhs_strides, rhs_dtype, ((batch, rhs_batch), (n, rhs_free), (k, rhs_contract))),
        operand([dim.extent for dim in out_dims], None, out_dtype, ((out_dims, range(len(out_dims))),)),
    )


def conv_output_spatial(x_spatial, kernel, strides, padding, dilation) -> tuple[int, ...]:
    """Spatial output shape of a convolution."""
    return tuple(
        max(0, (size + low + high - dil * (taps - 1) - 1) // stride + 1)
        for size, taps, stride, (low, high), dil in zip(x_spatial, kernel, strides, padding, dilation)
    )


def _check_groups(call: str, channels: int, outputs: int, groups: int, per_group: int | None = None) -> None:
    if groups < 1 or channels % groups or outputs % groups:
        raise ValueError(
            f"{call}: groups={groups} must divide {channels} input and {outputs} output channels"
        )
    if per_group is not None and per_group * groups != channels:
        raise ValueError(
            f"{call}: the kernel takes {per_group} channels a group, times groups={groups}; the input has {channels}"
        )


def _channels(outer: str, per_group: int, inner: str, stride: int) -> Axis:
    return Axis(((outer, per_group), (inner, 1)), stride)


def _dims(prefix: str, extents: Sequence[int]) -> tuple[Dim, ...]:
    return tuple(Dim(f"{prefix}{i}", extent) for i, extent in enumerate(extents))


def _single(dims: Sequence[Dim], strides: Sequence[int]) -> tuple[Axis, ...]:
    return tuple(Axis(((dim.name, 1),), stride) for dim, stride in zip(dims, strides))


def _taps(outs, taps, strides, padding, dilation, mem, sizes) -> tuple[Axis, ...]:
    """Axes of the input of a convolution: output position times stride plus tap times dilation, less the padding."""
    return tuple(
        Axis(((y.name, s), (t.name, d)), stride, offset=-low, size=size)
        for y, t, s, (low, _), d, stride, size in zip(outs, taps, strides, padding, dilation, mem, sizes)
    )


def conv_spec(x_shape, w_shape, strides, padding, dilation, groups: int, dtype) -> Contraction:
    """Convolution: **lhs is w** ``(O, C/groups, *kernel)``, **rhs is x** ``(N, C, *spatial)``; out ``(N, O, *spatial')``.

    All are row-major. ``padding`` is a pair ``(low, high)`` for each spatial axis.
    """
    batch, channels, *x_spatial = x_shape
    outputs, per_group, *kernel = w_shape
    _check_groups("conv", channels, outputs, groups, per_group)
    spatial = conv_output_spatial(x_spatial, kernel, strides, padding, dilation)
    sample, group, out_channel, channel = (
        Dim("n", batch),
        Dim("g", groups),
        Dim("o", outputs // groups),
        Dim("i", per_group),
    )
    outs, taps = _dims("y", spatial), _dims("t", kernel)
    xs, ws, ys = _row_major(x_shape), _row_major(w_shape), _row_major((batch, outputs, *spatial))
    x_axes = (*_single([sample], xs), _channels("g", per_group, "i", xs[1]))
    x_axes += _taps(outs, taps, strides, padding, dilation, xs[2:], x_spatial)
    w_axes = (_channels("g", outputs // groups, "o", ws[0]), *_single([channel, *taps], ws[1:]))
    y_axes = (*_single([sample], ys), _channels("g", outputs // groups, "o", ys[1]), *_single(outs, ys[2:]))
    return Contraction(
        (group,),
        (out_channel,),
        (sample, *outs),
        (channel, *taps),
        Operand(dtype, w_axes),
        Operand(dtype, x_axes),
        Operand(dtype, y_axes),
    )


def conv_input_grad_spec(
    g_shape, w_shape, x_spatial, strides, padding, dilation, groups: int, dtype
) -> Contraction:
    """Gradient of a convolution for its input: **lhs is w, rhs is g** ``(N, O, *spatial')``; out is shaped as ``x``."""
    batch, outputs, *spatial = g_shape
    w_outputs, per_group, *kernel = w_shape
    if w_outputs != outputs:
        raise ValueError(
            f"conv_input_grad: the cotangent has {outputs} channels, the kernel makes {w_outputs}"
        )
    channels = per_group * groups
    _check_groups("conv_input_grad", channels, outputs, groups)
    per_out = outputs // groups
    sample, group, out_channel, channel = (
        Dim("n", batch),
        Dim("g", groups),
        Dim("o", per_out),
        Dim("i", per_group),
    )
    places, taps = _dims("x", x_spatial), _dims("t", kernel)
    gs, ws, xs = _row_major(g_shape), _row_major(w_shape), _row_major((batch, channels, *x_spatial))
    g_axes = (*_single([sample], gs), _channels("g", per_out, "o", gs[1]))
    # x[p] received w[t] * g[y] wherever p = y*stride + t*dilation - low, so y = (p + low - t*dilation) / stride.
    g_axes += tuple(
        Axis(((p.name, 1), (t.name, -d)), stride, offset=low, divisor=s, size=size)
        for p, t, s, (low, _), d, stride, size in zip(
            places, taps, strides, padding, dilation, gs[2:], spatial
        )
    )
    w_axes = (_channels("g", per_out, "o", ws[0]), *_single([channel, *taps], ws[1:]))
    x_axes = (*_single([sample], xs), _channels("g", per_group, "i", xs[1]), *_single(places, xs[2:]))
    return Contraction(
        (group,),
        (channel,),
        (sample, *places),
        (out_channel, *taps),
        Operand(dtype, w_axes),
        Operand(dtype, g_axes),
        Operand(dtype, x_axes),
    )


def conv_weight_grad_spec(
    x_shape, g_shape, kernel, strides, padding, dilation, groups: int, dtype
) -> Contraction:
    """Gradient of a convolution for its kernel: **lhs is g, rhs is x**; out is shaped as ``w (O, C/groups, *kernel)``."""
    batch, channels, *x_spatial = x_shape
    g_batch, outputs, *spatial = g_shape
    if g_batch != batch:
        raise ValueError(f"conv_weight_grad: the input has {batch} samples and the cotangent {g_batch}")
    _check_groups("conv_weight_grad", channels, outputs, groups)
    per_group, per_out = channels // groups, outputs // groups
    sample, group, out_channel, channel = (
        Dim("n", batch),
        Dim("g", groups),
        Dim("o", per_out),
        Dim("i", per_group),
    )
    outs, taps = _dims("y", spatial), _dims("t", kernel)
    xs, gs, ws = _row_major(x_shape), _row_major(g_shape), _row_major((outputs, per_group, *kernel))
    x_axes = (*_single([sample], xs), _channels("g", per_group, "i", xs[1]))
    x_axes += _taps(outs, taps, strides, padding, dilation, xs[2:], x_spatial)
    g_axes = (*_single([sample], gs), _channels("g", per_out, "o", gs[1]), *_single(outs, gs[2:]))
    w_axes = (_channels("g", per_out, "o", ws[0]), *_single([channel, *taps], ws[1:]))
    return Contraction(
        (group,),
        (out_channel,),
        (channel, *taps),
        (sample, *outs),
        Operand(dtype, g_axes),
        Operand(dtype, x_axes),
        Operand(dtype, w_axes),
    )
