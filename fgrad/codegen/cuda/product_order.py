"""In which order a product kernel goes through the dimensions of a contraction: rewritings of the description, with equal results.

`normal` drops what has one step and puts the output's neighbours along n. `channels_inside` and `by_residue` are for convolutions: all terms of a step
of k then have the same tap, and all places of a tile the same position between the steps of a stride.
"""

from __future__ import annotations

from dataclasses import replace

from fgrad.codegen.contraction import Axis, Contraction, Dim, Operand
from fgrad.codegen.cuda.addresses import address_of
from fgrad.codegen.cuda.staging import run_length


def normal(spec: Contraction) -> tuple[Contraction, bool]:
    """Without dimensions of one step, and with the output's neighbours along n; and whether m and n were exchanged for it."""
    extents = spec.extents
    spec = replace(
        spec,
        batch=_longer(spec.batch),
        m=_longer(spec.m),
        n=_longer(spec.n),
        k=_longer(spec.k),
        lhs=_only(spec.lhs, extents),
        rhs=_only(spec.rhs, extents),
        out=_only(spec.out, extents),
    )
    out = address_of(spec.out, spec.extents)
    exchange = run_length(out, spec.m) > run_length(out, spec.n)
    return (spec.swapped() if exchange else spec), exchange


def _longer(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(d for d in dims if d.extent != 1)


def _only(operand: Operand, extents: dict[str, int]) -> Operand:
    """Without the dimensions of one step among `extents`."""
    axes = (replace(a, coefs=tuple(c for c in a.coefs if extents.get(c[0]) != 1)) for a in operand.axes)
    return replace(operand, axes=tuple(axes))


def channels_inside(spec: Contraction, bk: int) -> Contraction:
    """`spec` with the terms of a convolution in another order: blocks of `bk` channels, the taps, the channels of a block.

    All terms of a step then have the same tap: one look at the border for each row, where there were `bk`; and the taps of a
    block of channels read the same lines of memory one soon after the other.
    """
    taps: set[str] = set()  # dimensions of k that move along an axis together with one of the rows
    for operand, rows in ((spec.lhs, spec.m), (spec.rhs, spec.n)):
        shared = [dict(axis.coefs) for axis in operand.axes]
        found = {
            d.name
            for d in spec.k
            for coefs in shared
            if d.name in coefs and any(r.name in coefs for r in rows)
        }
        address = address_of(operand, spec.extents)
        if found and run_length(address, rows) < run_length(address, spec.k):
            return spec  # neighbours in memory are along k: they must stay so
        taps |= found
    free = [d for d in spec.k if d.name not in taps]
    split = [d for d in free if d.extent % bk == 0]
    if not taps or not split:
        return spec
    channel = split[-1]
    outer, inner = Dim(f"{channel.name}_block", channel.extent // bk), Dim(f"{channel.name}_in", bk)
    lhs, rhs = (
        _only(cut(o, channel.name, outer, inner), {outer.name: outer.extent}) for o in (spec.lhs, spec.rhs)
    )
    rest = [d for d in free if d is not channel]
    return replace(
        spec, k=_longer((*rest, outer, *(d for d in spec.k if d.name in taps), inner)), lhs=lhs, rhs=rhs
    )


def cut(operand: Operand, name: str, outer: Dim, inner: Dim) -> Operand:
    """`operand` with the dimension `name` as two: `name = inner.extent * outer + inner`."""

    def coefs(axis: Axis) -> tuple[tuple[str, int], ...]:
        found: list[tuple[str, int]] = []
        for dim, c in axis.coefs:
            found += [(outer.name, c * inner.extent), (inner.name, c)] if dim == name else [(dim, c)]
        return tuple(found)

    return replace(operand, axes=tuple(replace(axis, coefs=coefs(axis)) for axis in operand.axes))


Cut = tuple[str, Dim, Dim]  # of which dimension, into what


def by_residue(spec: Contraction) -> tuple[Contraction, tuple[Cut, ...]]:
    """The gradient of a strided convolution for its input, place by place between the steps of the stride.

    A place `x` has a term with tap `t` only where `(x + low - t) % stride == 0`. With `x = stride * x_step + x_rest`, and
    `x_rest` outermost, neighbouring places have the same taps: a tile passes over the others (`Product.skipping`), which are all
    but one of `stride` along each axis. Returns what has been cut too, for the epilogue's addresses.
    """
    cuts: list[Cut] = []
    n, out, rhs = list(spec.n), spec.out, spec.rhs
    for axis in spec.rhs.axes:
        places = [d for d in spec.n if d.name in dict(axis.coefs) and dict(axis.coefs)[d.name] % axis.divisor]
        if axis.divisor == 1 or not places:
            continue
        (place,) = places if len(places) == 1 else (None,)
        if place is None or place.extent % axis.divisor or place.name in (c[0] for c in cuts):
            return spec, ()
        step = Dim(f"{place.name}_step", place.extent // axis.divisor)
        rest = Dim(f"{place.name}_rest", axis.divisor)
        out, rhs = (cut(o, place.name, step, rest) for o in (out, rhs))
        n[n.index(place)] = step
        cuts.append((place.name, step, rest))
    if not cuts:
        return spec, ()
    extents = {step.name: step.extent for _, step, _ in cuts}
    changed = replace(
        spec, n=_longer((*(c[2] for c in cuts), *n)), out=_only(out, extents), rhs=_only(rhs, extents)
    )
    return changed, tuple(cuts)


def one_tap(spec: Contraction, bk: int) -> bool:
    """Whether all terms of a step of `bk` have the same tap."""
    addresses = [address_of(o, spec.extents) for o in (spec.lhs, spec.rhs)]
    last = spec.k[-1] if spec.k else None
    return last is None or (last.extent % bk == 0 and not any(a.checked(last.name) for a in addresses))


def dense(spec: Contraction) -> bool:
    """Whether the output's elements are all those of a flat array, in some order of its dimensions."""
    address = address_of(spec.out, spec.extents)
    step = 1
    for dim in sorted((*spec.batch, *spec.m, *spec.n), key=lambda d: address.stride(d.name)):
        if address.stride(dim.name) != step:
            return False
        step *= dim.extent
    return address.base == 0
