"""`einsum`: sums of products written with index letters, carried out as pairwise contractions."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

from fgrad.array import Array
from fgrad.convert import promote
from fgrad.errors import FgradShapeError, FgradTypeError, FgradValueError, message
from fgrad.numpy.axes import stretch
from fgrad.numpy.elementwise import multiply
from fgrad.numpy.indexing import diagonal_of
from fgrad.numpy.products import contract
from fgrad.numpy.reductions import any as any_over
from fgrad.numpy.reductions import sum as sum_over
from fgrad.ops import structure as st

Labels = str


def einsum(subscripts: str, *operands: Any, optimize: Any = True, precision: Any = None) -> Array:
    """The sum of products that `subscripts` describes, in NumPy's notation.

    >>> einsum("ij,jk->ik", a, b)       # the matrix product
    >>> einsum("...ii->...i", a)        # diagonals
    >>> einsum("bhqd,bhkd->bhqk", q, k) # attention scores

    Letters name axes; a letter that the output lacks is summed over; "..." stands for axes that broadcast. Without "->" the
    output has the letters that occur once, in alphabetical order. Several operands are contracted in pairs, cheapest first.
    """
    if not isinstance(subscripts, str):
        raise FgradTypeError(
            message(
                "einsum",
                f"the first argument is the subscripts string, got {type(subscripts).__name__}",
                'write einsum("ij,jk->ik", a, b)',
            )
        )
    arrays = promote(*operands, call="einsum")
    inputs, output = _parse(subscripts.replace(" ", ""), arrays)
    sizes = _sizes(subscripts, inputs, arrays)
    terms = [_simple(x, labels, sizes) for x, labels in zip(arrays, inputs, strict=True)]
    while len(terms) > 1:
        i, j = _cheapest(terms, output, sizes)
        b, a = terms.pop(j), terms.pop(i)
        needed = set(output).union(*(t[1] for t in terms))
        terms.append(_pair(a, b, needed))
    return _finish(*terms[0], output, sizes)


def _parse(subscripts: str, arrays: Sequence[Array]) -> tuple[list[Labels], Labels]:
    left, arrow, right = subscripts.partition("->")
    parts = left.split(",")
    if len(parts) != len(arrays):
        raise FgradValueError(
            message("einsum", f"{subscripts!r} describes {len(parts)} operands, {len(arrays)} are given")
        )
    allowed = set(string.ascii_letters)
    for p in (*parts, right):
        if set(p.replace("...", "")) - allowed or p.count("...") > 1:
            raise FgradValueError(
                message("einsum", f"{p!r} in {subscripts!r} is not made of letters and one '...'")
            )
    free = [c for c in string.ascii_uppercase + string.ascii_lowercase if c not in subscripts]
    widest = 0
    for p, a in zip(parts, arrays, strict=True):
        named = len(p.replace("...", ""))
        if named > a.ndim or ("..." not in p and named != a.ndim):
            raise FgradValueError(message("einsum", f"{p!r} names {named} axes, its operand is {a.type}"))
        if "..." in p:
            widest = max(widest, a.ndim - named)
    dots = "".join(free[:widest])
    inputs = []
    for p, a in zip(parts, arrays, strict=True):
        here = a.ndim - len(p.replace("...", ""))
        inputs.append(p.replace("...", dots[widest - here :] if here else ""))
    if arrow:
        output = right.replace("...", dots)
        if widest and "..." not in right and "..." in left:
            raise FgradValueError(
                message(
                    "einsum",
                    f"{subscripts!r}: the output lacks the '...' of the operands",
                    "add it to the right side",
                )
            )
    else:
        joined = left.replace("...", "").replace(",", "")
        output = dots + "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    known = set("".join(inputs))
    if len(set(output)) != len(output) or set(output) - known:
        raise FgradValueError(
            message(
                "einsum", f"{subscripts!r}: the output letters must be distinct and occur among the operands"
            )
        )
    return inputs, output


def _sizes(subscripts: str, inputs: Sequence[Labels], arrays: Sequence[Array]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for labels, a in zip(inputs, arrays, strict=True):
        for c, n in zip(labels, a.shape, strict=True):
            if n != 1 and sizes.get(c, 1) not in (1, n):
                shapes = ", ".join(str(x.type) for x in arrays)
                raise FgradShapeError(
                    message(
                        "einsum",
                        f"{subscripts!r}: letter {c!r} is {sizes[c]} in one place and {n} in another (operands {shapes})",
                    )
                )
            sizes[c] = n if n != 1 else sizes.get(c, 1)
    return sizes


Term = tuple[Array, Labels]


def _simple(x: Array, labels: Labels, sizes: dict[str, int]) -> Term:
    """Without stretched axes of length 1 and without repeated letters."""
    kept = [i for i, c in enumerate(labels) if x.shape[i] == sizes[c]]
    x, labels = st.reshape(x, [x.shape[i] for i in kept]), "".join(labels[i] for i in kept)
    for c in dict.fromkeys(labels):
        while labels.count(c) > 1:
            i = labels.index(c)
            j = labels.index(c, i + 1)
            x = diagonal_of(x, i, j)
            labels = labels[:i] + labels[i + 1 : j] + labels[j + 1 :] + c
    return x, labels


def _cheapest(terms: Sequence[Term], output: Labels, sizes: dict[str, int]) -> tuple[int, int]:
    """The pair whose product is smallest compared with its operands."""
    best, found = math.inf, (0, 1)
    if len(terms) == 2:
        return found
    for i in range(len(terms)):
        for j in range(i + 1, len(terms)):
            needed = set(output).union(*(t[1] for k, t in enumerate(terms) if k not in (i, j)))
            both = set(terms[i][1]) | set(terms[j][1])
            after = math.prod(sizes[c] for c in both & needed)
            cost = after - terms[i][0].size - terms[j][0].size + 1e-9 * math.prod(sizes[c] for c in both)
            if cost < best:
                best, found = cost, (i, j)
    return found


def _sum_out(x: Array, labels: Labels, needed: set[str]) -> Term:
    gone = tuple(i for i, c in enumerate(labels) if c not in needed)
    if not gone:
        return x, labels
    out = any_over(x, gone) if x.dtype.kind == "b" else sum_over(x, gone, dtype=x.dtype)
    return out, "".join(c for c in labels if c in needed)


def _pair(first: Term, second: Term, needed: set[str]) -> Term:
    (a, p), (b, q) = first, second
    a, p = _sum_out(a, p, needed | set(q))
    b, q = _sum_out(b, q, needed | set(p))
    shared = [c for c in p if c in q]
    batch = [c for c in shared if c in needed]
    summed = [c for c in shared if c not in needed]
    if not summed:  # an elementwise product
        out = p + "".join(c for c in q if c not in p)
        return multiply(_spread(a, p, out), _spread(b, q, out)), out

    def at(labels: Labels, letters: list[str]) -> tuple[int, ...]:
        return tuple(labels.index(c) for c in letters)

    result = contract(a, b, ((at(p, summed), at(q, summed)), (at(p, batch), at(q, batch))))
    return result, "".join([*batch, *(c for c in p if c not in shared), *(c for c in q if c not in shared)])


def _spread(x: Array, labels: Labels, target: Labels) -> Array:
    """Axes in the order of `target`, with length 1 where `labels` lacks a letter."""
    x = st.transpose(x, sorted(range(len(labels)), key=lambda i: target.index(labels[i])))
    lengths = iter(x.shape)
    return st.reshape(x, [next(lengths) if c in labels else 1 for c in target])


def _finish(x: Array, labels: Labels, output: Labels, sizes: dict[str, int]) -> Array:
    x, labels = _sum_out(x, labels, set(output))
    return stretch(_spread(x, labels, output), tuple(sizes[c] for c in output))
