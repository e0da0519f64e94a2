"""The second kernel of a contraction whose k is cut into parts: adds them, always in the same order, and does the epilogue.

@cuda.jit
def conv_weight_grad_64x64x16_sum(out, parts):
    i = 4*cuda.grid(1)
    while i < 18432:
        s = load4(parts, i)
        for part in range(1, 24):
            s = add(s, load4(parts, 18432*part + i))
        put(out, i, s)
        i += 4*cuda.gridsize(1)
"""

from __future__ import annotations

from dataclasses import replace

from fgrad.codegen.cuda.launch import CudaKernel, LaunchStep
from fgrad.codegen.cuda.rounds import with_grid
from fgrad.codegen.cuda.sink import Place, Sink
from fgrad.codegen.cuda.staging import DEVICE
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.program import ContractStep


def add_parts(
    name: str,
    count: int,
    parts: Place,
    sink: Sink,
    step: ContractStep,
    notes: tuple[str, ...],
    target: CudaTarget,
) -> LaunchStep:
    """Launch that adds `count` arrays of the output's size, which lie one after another in `parts`."""
    size = step.out.size
    group = 4 if sink.group == 4 and size % 4 == 0 else 1
    load = "load4(parts, {})" if group == 4 else "(parts[{}],)"
    params = (
        *(p.param for p in sink.places),
        replace(parts.param, role="in"),
    )
    threads = min(128, target.threads)
    blocks = min(-(-size // (group * threads)), 16 * target.multiprocessors)
    terms = ", ".join(f"a[{v}] + b[{v}]" for v in range(group))
    text = [
        *sink.function(),
        "",
        *(DEVICE, "def add(a, b):", f"    return ({terms}{',' if group == 1 else ''})"),
        "",
        *("@cuda.jit", f"def {name}({', '.join(p.name for p in params)}):"),
        *(f"    # {note}" for note in notes),
        f"    i = {group}*cuda.grid(1)",
        f"    while i < {size}:",
        f"        s = {load.format('i')}",
        f"        for part in range(1, {count}):",
        f"            s = add(s, {load.format(f'{size}*part + i')})",
        f"        {sink.call('i', 's')}",
        f"        i += {group}*cuda.gridsize(1)",
    ]
    features = frozenset({"vector"} if group == 4 else ())
    source = "\n".join(with_grid(text, max(1, blocks) * threads)) + "\n"
    kernel = CudaKernel(name, source, params, (max(1, blocks), 1, 1), (threads, 1, 1), notes, features)
    args = (*(p.buf for p in sink.places), parts.buf)
    return LaunchStep(kernel, args, step.eqns, step.in_place)
