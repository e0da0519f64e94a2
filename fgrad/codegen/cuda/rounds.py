"""The number of threads of a launch is known when its text is written: what follows for loops over the whole grid.

    while i < 1000:                        while i < 1000:                      if i < 1000:
        y[i] = x[i]                   =>       y[i] = x[i]                or        y[i] = x[i]
        i += cuda.gridsize(1)                  i += 512

with 512 threads, and with 1024, whose first round is the only one. (The compiler would divide by a size that it does not
know, and unroll a loop that hardly ever goes round.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LOOP = re.compile(r"(\s*)while (\w+) < (\d+):(.*)")
_STEP = re.compile(r"(\s*)(\w+) \+= (?:(\d+) ?\* ?)?cuda\.gridsize\(1\)")


def with_grid(lines: Sequence[str], threads: int) -> list[str]:
    """The lines of a kernel of `threads` threads in all."""
    out = list(lines)
    opened: dict[str, int] = {}  # by variable: the line of its loop
    for n, line in enumerate(lines):
        loop, step = _LOOP.match(line), _STEP.match(line)
        if loop:
            opened[loop[2]] = n
        if step is None or step[2] not in opened:
            continue
        begun = _LOOP.match(lines[opened[step[2]]])
        assert begun is not None
        stride = int(step[3] or 1) * threads
        if stride >= int(begun[3]):
            out[opened[step[2]]] = f"{begun[1]}if {begun[2]} < {begun[3]}:{begun[4]}"
            out[n] = ""
        else:
            out[n] = f"{step[1]}{step[2]} += {stride}"
    return [line for line, before in zip(out, lines) if line or not before]
