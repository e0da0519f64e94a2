"""Loop nests as launches of `numba.cuda` kernels: the entry. `plan.py` cuts a nest into launches, here each gets its form.

    every iteration stores elements of its own      a map: one flat index, strided over the grid         maps.py
    rows with loops inside                          threads share rows                                   rows.py
    iterations that depend on each other            those loops that do not over threads, the others     rows.py
                                                    in order; scatter by who receives                    scatter.py
    several loops that need one another             one block, barriers between                          rows.py

Sizes of launches follow from shapes and target alone, so results are the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

from fgrad.codegen.cuda import analysis
from fgrad.codegen.cuda.launch import CudaKernel, LaunchStep, Param
from fgrad.codegen.cuda.layout import Team, block_size, count, power_of_two, team_for
from fgrad.codegen.cuda.maps import vector_map
from fgrad.codegen.cuda.plan import plan
from fgrad.codegen.cuda.rounds import with_grid
from fgrad.codegen.cuda.rows import RESERVED, RowsText, independent_rows
from fgrad.codegen.cuda.scatter import gather_form, print_gather_form
from fgrad.codegen.cuda.target import CudaTarget
from fgrad.codegen.cuda.vectors import WIDTH, Fours
from fgrad.codegen.loops import Buffer, Check, Init, Kernel, Loop, Stmt, Store, statements
from fgrad.codegen.program import Buf, KernelStep
from fgrad.codegen.substitute import Substitution

ALIGNMENT = 16  # bytes, of every buffer's beginning
BLOCKS = 32  # of an element-wise kernel, for each multiprocessor at the most


def lower_kernel(step: KernelStep, target: CudaTarget) -> list[LaunchStep]:
    """The launches that do what the loop nest of `step` does. Temporaries between them are new `Buf`s."""
    kernel = _renamed(step.kernel)
    args: dict[Buffer, Buf] = dict(zip(kernel.buffers, step.args, strict=True))
    taken = {b.name for b in kernel.buffers}
    number = 0

    def name() -> str:
        nonlocal number
        while f"part{number}" in taken:
            number += 1
        taken.add(f"part{number}")
        return f"part{number}"

    planned = plan(kernel.body, target, name)
    for t in planned.temporaries:
        args[t] = Buf(f"{kernel.name}_{t.name}", (t.size,), t.dtype)
    many = len(planned.launches) > 1
    steps = []
    for n, stmts in enumerate(planned.launches):
        buffers = _used(stmts, args)
        own = Kernel(f"{kernel.name}_{n + 1}" if many else kernel.name, buffers, stmts, kernel.notes)
        unaligned = {b for b in buffers if not _is_aligned(args[b])}
        bound = tuple(args[b] for b in buffers)
        pairs = tuple(p for p in step.in_place if p[0] in bound and p[1] in bound)
        over = {
            b: {c for c in buffers if any(p[0] is args[b] and p[1] is args[c] for p in pairs)}
            for b in buffers
        }
        launched = _print(own, target, unaligned, over)
        steps.append(LaunchStep(launched, bound, step.eqns, pairs))
    return steps


def _renamed(kernel: Kernel) -> Kernel:
    """The kernel before its loops were cut for a CPU, with no buffer called as something else is in the text."""
    body = kernel.meta.get("nest") or kernel.body
    new = {b: Buffer(f"{b.name}_", b.dtype, b.size, b.role) for b in kernel.buffers if b.name in RESERVED}
    if new:
        body = Substitution({}, lambda b, index: (new.get(b, b), index)).block(body)
    return Kernel(kernel.name, tuple(new.get(b, b) for b in kernel.buffers), body, kernel.notes)


def _used(stmts: Sequence[Stmt], args: dict[Buffer, Buf]) -> tuple[Buffer, ...]:
    """The buffers of one launch with their roles in it, those written first. Kept: the objects that expressions name."""
    loads, stores = analysis.loaded(stmts), analysis.stored(stmts)
    checks = {s.status for s in statements(stmts) if isinstance(s, Check)}
    return tuple(
        sorted((b for b in args if b in loads | stores | checks), key=lambda b: b not in stores | checks)
    )


def _role(b: Buffer, stmts: Sequence[Stmt]) -> str:
    if any(isinstance(s, Check) and s.status is b for s in statements(stmts)):
        return "inout"
    if b not in analysis.stored(stmts):
        return "in"
    partial = any(isinstance(s, Store) and s.buffer is b and s.mask is not None for s in statements(stmts))
    return "inout" if partial or b in analysis.loaded(stmts) else "out"


def _is_aligned(buf: Buf) -> bool:
    while buf.base is not None:
        if buf.byte_offset % ALIGNMENT or buf.byte_stride % ALIGNMENT:
            return False
        buf = buf.base
    return True


# ------------------------------------------------------------------------------------------------ the form of one launch


def _print(
    kernel: Kernel, target: CudaTarget, unaligned: set[Buffer], over: dict[Buffer, set[Buffer]]
) -> CudaKernel:
    """The kernel for `kernel.body`. `over`: for a buffer that is stored, those loaded that may be the same memory."""
    stmts = kernel.body
    text = RowsText(kernel, target, unaligned)
    text.over = over
    last = stmts[-1]
    grid = (
        isinstance(last, Loop)
        and all(isinstance(s, Init) for s in stmts[:-1])
        and not analysis.carried([last])
    )
    if grid:
        assert isinstance(last, Loop)
        text.body(stmts[:-1], "    ", {}, 0)
        blocks, threads = _grid(text, last, target)
    elif not analysis.has_loops(stmts):
        text.body(stmts, "    ", {}, 0)
        blocks, threads = 1, 1
    else:
        most = max(analysis.work([s]) for s in stmts if isinstance(s, Loop))
        threads = min(target.threads, max(target.warp, power_of_two(most)))
        blocks = 1
        text.together(stmts, "    ", {}, Team(threads, 1), "tid")
    head = ["@cuda.jit", f"def {kernel.name}({', '.join(b.name for b in kernel.buffers)}):"]
    head += [f"    # {n}" for n in kernel.notes]
    head += [f"    {n} = cuda.shared.array({size}, {kind})" for n, (size, kind) in text.shared.items()]
    if any("tid" in line for line in text.lines):
        head.append("    tid = cuda.threadIdx.x")
    params = tuple(Param(b.name, b.dtype, b.size, _role(b, stmts)) for b in kernel.buffers)
    source = "\n".join([*head, *with_grid(text.lines, blocks * threads)]) + "\n"
    return CudaKernel(
        kernel.name, source, params, (blocks, 1, 1), (threads, 1, 1), kernel.notes, frozenset(text.features)
    )


def _grid(text: RowsText, loop: Loop, target: CudaTarget) -> tuple[int, int]:
    """Print `loop` for the whole grid: blocks, and threads of each."""
    chained, body = analysis.chain(loop)
    rows = independent_rows(loop)
    leaf = not analysis.has_loops(body)
    if leaf and len(rows) == len(chained):
        total = count(rows)
        m = Fours(rows, body, text.unaligned)
        if total >= WIDTH * target.threads and m.fits():
            vector_map(text, m, "    ")
            total //= WIDTH
        else:
            text.row_loop(rows, body, "    ", {}, Team(1, 1), True)
        threads = block_size(total, target)
        return max(1, min(-(-total // threads), BLOCKS * target.multiprocessors)), threads
    form = gather_form(loop, rows) if leaf else None
    if form is not None and form.worth_it(target):
        return print_gather_form(text, form, target)
    rest = analysis.nested([c.var for c in chained if c.var not in rows], body)
    if not rows:
        text.body([loop], "    ", {}, 0)
        return 1, 1
    team = team_for(rows, rest, target)
    text.row_loop(rows, rest, "    ", {}, team, True)
    many = count(rows)
    if team.lanes == 1:
        return min(-(-many // team.rows), BLOCKS * target.multiprocessors), team.rows
    return -(-many // team.rows), team.threads
