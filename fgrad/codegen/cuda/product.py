"""Contractions become launches: a tiled kernel (`product_text`, `product_mma`), and one that adds its parts where k is cut (`parts`).

`product_plan` decides on tiles and parts, `staging` prints how operands come in, `sink` how sums go out, with the epilogue that
`epilogues` has joined to the contraction.
"""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from typing import Any

from fgrad.codegen.cuda.addresses import address_of, aligned
from fgrad.codegen.cuda.launch import LaunchStep, Param
from fgrad.codegen.cuda.parts import add_parts
from fgrad.codegen.cuda.product_mma import TensorProduct
from fgrad.codegen.cuda.product_plan import ProductPlan, plan_product
from fgrad.codegen.cuda.product_text import Product
from fgrad.codegen.cuda.sink import Place, Sink, places_of
from fgrad.codegen.cuda.staging import Staging, held_as
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.program import Buf, ContractStep
from fgrad.ir import Eqn
from fgrad.show import Namer, eqn_text


def _notes(eqns: Sequence[Eqn]) -> tuple[str, ...]:
    namer = Namer()
    return tuple(eqn_text(e, namer) for e in dict.fromkeys(eqns))


def _name(step: ContractStep, plan: ProductPlan) -> str:
    prim = step.eqns[0].prim.name if step.eqns else "product"
    prim = "".join(ch if ch.isalnum() else "_" for ch in prim)
    return (
        f"{prim}_{plan.tile}"
        if prim.isidentifier() and not keyword.iskeyword(prim)
        else f"product_{plan.tile}"
    )


def lower_contraction(
    step: ContractStep, target: CudaTarget, precision: str = "float32", plan: ProductPlan | None = None
) -> list[LaunchStep]:
    """The launches that compute `step`: one, or two where k is cut into parts."""
    plan = plan or plan_product(step.spec, target, precision)
    spec, tile = plan.spec, plan.tile
    extents = spec.extents
    held = held_as(spec.lhs.dtype, spec.rhs.dtype)
    sources = (step.rhs, step.lhs) if plan.swapped else (step.lhs, step.rhs)
    common: dict[str, Any] = {
        "held": held,
        "batch": spec.batch,
        "ks": spec.k,
        "bk": tile.bk,
        "threads": tile.threads,
        "core": tile.core,
    }
    sides = [
        Staging(
            name,
            letter,
            o.dtype,
            address=address_of(o, extents),
            rows=rows,
            tile=size,
            whole=aligned(buf),
            **common,
        )
        for name, letter, o, rows, size, buf in (
            ("lhs", "m", spec.lhs, spec.m, tile.bm, sources[0]),
            ("rhs", "n", spec.rhs, spec.n, tile.bn, sources[1]),
        )
    ]
    results, reads = places_of(step.epilogue, extents, plan.cuts)
    out = address_of(spec.out, extents)
    product = Place(Param("out", spec.out.dtype, step.out.size, "out"), step.out, out, aligned(step.out))
    _, m, n, _ = plan.sizes
    limits = tuple((name, size) for name, size, t in (("m", m, tile.bm), ("n", n, tile.bn)) if size % t)
    indices = (("b", spec.batch), ("m", spec.m), ("n", spec.n))
    most = 4 if tile.core else tile.tn
    kept = product if step.keeps_product else None
    notes = _notes(step.eqns)
    name = _name(step, plan)
    if plan.parts == 1:
        sink = Sink(indices, held, kept, results, reads, step.epilogue, limits, most)
    else:
        size = plan.parts * step.out.size
        space = Buf(f"{step.out.name}_parts", (size,), held)
        parts = Place(Param("parts", held, size, "out"), space, out, True, "first")
        sink = Sink(indices, held, parts, limits=limits, most=most)
        name += "_parts"
    params = [
        *(p.param for p in sink.places),
        *(Param(s.name, s.dtype, b.size) for s, b in zip(sides, sources)),
    ]
    args = (*(p.buf for p in sink.places), *sources)
    kind = TensorProduct if tile.core else Product
    kernel = kind(name, plan, sides[0], sides[1], sink, notes).kernel(params)
    if plan.parts == 1:
        return [LaunchStep(kernel, args, step.eqns, _apart(step.in_place, sources))]
    first = LaunchStep(kernel, args, step.eqns)
    dims = sorted((*spec.batch, *spec.m, *spec.n), key=lambda d: -out.stride(d.name))
    last = Sink((("i", tuple(dims)),), held, kept, results, reads, step.epilogue)
    return [first, add_parts(_name(step, plan) + "_sum", plan.parts, parts, last, step, notes, target)]


def _apart(pairs: tuple[tuple[Buf, Buf], ...], sources: Sequence[Buf]) -> tuple[tuple[Buf, Buf], ...]:
    """Without arrays that other blocks still read as operands."""
    operands = {b.root for b in sources}
    return tuple((w, r) for w, r in pairs if r.root not in operands and w.root not in operands)


__all__ = ["lower_contraction"]
