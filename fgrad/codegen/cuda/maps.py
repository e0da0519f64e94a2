"""Maps: every iteration computes elements of its own, four neighbours a thread where memory allows.

    @cuda.jit
    def tanh(y, x):                                        # y[i] = tanh(x[i]) for 1001 elements
        i = 4 * cuda.grid(1)
        while i < 1000:
            x_0, x_1, x_2, x_3 = load4(x, i)
            store4(y, i, tanh(x_0), tanh(x_1), tanh(x_2), tanh(x_3))
            i += 4 * cuda.gridsize(1)
        i = 1000 + cuda.grid(1)  # the rest
        if i < 1001:
            y[i] = tanh(x[i])

What is loaded and stored by fours, and what one by one, is decided in `vectors.py`.
"""

from __future__ import annotations

from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.rows import RowsText
from fgrad.codegen.cuda.text import Scope
from fgrad.codegen.cuda.vectors import WIDTH, Fours, copies_of, print_copies
from fgrad.codegen.loops import Loop


def vector_map(text: RowsText, m: Fours, pad: str) -> None:
    """Print the map for the whole grid."""
    scope: Scope = {}
    text.hoist(Loop(m.variables[0], analysis.nested(m.variables[1:], m.body)), pad, scope)
    even = m.total - m.total % WIDTH
    single = len(m.variables) == 1
    i = text.var(m.variables[0]) if single else text.fresh("i")
    text.features.add("vector")
    text.line(pad, f"{i} = {WIDTH} * cuda.grid(1)")
    text.line(pad, f"while {i} < {even}:")
    inner = pad + "    "
    copies = copies_of(text, m, i, inner)
    print_copies(text, m, copies, inner, dict(scope))
    text.line(inner, f"{i} += {WIDTH} * cuda.gridsize(1)")
    if even == m.total:
        return
    text.line(pad, f"{i} = {even} + cuda.grid(1)  # the rest")
    text.line(pad, f"if {i} < {m.total}:")
    if not single:
        text.unravel(i, m.variables, inner)
    text.body(m.body, inner, dict(scope), 0)
