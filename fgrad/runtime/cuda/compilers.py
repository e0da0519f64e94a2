"""Many kernels compiled at once, by processes beside this one: `python -m fgrad.runtime.cuda.compilers`.

Numba holds Python's lock while it compiles, so threads would take turns; a training step has tens of kernels, of which each
takes from a tenth of a second to one. A process is given kernels as lines of JSON and answers with the machine code of each; it
imports nothing of the user's. What goes wrong there is compiled again here, where the error belongs.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from fgrad import dtypes
from fgrad.codegen.cuda.launch import CudaKernel, Param
from fgrad.runtime.cuda.cubins import Cubin, compiled, known, remember

WORTH = 6  # kernels, from which on the start of processes pays
MOST = 16  # processes
_SECONDS = 600.0  # a process that says nothing for so long is given up


def to_json(kernel: CudaKernel) -> str:
    """A kernel as one line."""
    params = [(p.name, p.dtype.name, p.size, p.role) for p in kernel.params]
    return json.dumps([kernel.name, kernel.source, params, kernel.grid, kernel.block])


def from_json(line: str) -> CudaKernel:
    name, source, params, grid, block = json.loads(line)
    named = {d.name: d for d in dtypes.ALL}
    found = tuple(Param(n, np.dtype(named[d]), size, role) for n, d, size, role in params)
    return CudaKernel(name, source, found, tuple(grid), tuple(block))


def compile_beside(
    kernels: Sequence[CudaKernel], capability: tuple[int, int], processes: int | None = None
) -> int:
    """Compile what no process has compiled before, several at once; how many that were. They are then found by `cubin_of`."""
    missing = list({k.text: k for k in kernels if not k.functions and known(k, capability) is None}.values())
    count = min(processes or os.cpu_count() or 1, len(missing) // 2, MOST)
    if len(missing) < WORTH or count < 2:
        return 0
    # The long texts first, and dealt out in turn: each process gets about the same work.
    missing.sort(key=lambda k: -len(k.source))
    shares = [missing[n::count] for n in range(count)]
    command = [sys.executable, "-m", "fgrad.runtime.cuda.compilers", *map(str, capability)]
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = 0
    with contextlib.ExitStack() as stack:
        # Files rather than pipes: a process that writes much must not wait for its turn to be read.
        running = []
        for share in shares:
            questions, answers = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
            questions.write("".join(to_json(k) + "\n" for k in share))
            questions.seek(0)
            process = subprocess.Popen(
                command, stdin=questions, stdout=answers, stderr=subprocess.DEVNULL, env=environment
            )
            running.append((process, share, answers))
        for process, share, answers in running:
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            answers.seek(0)
            for kernel, line in zip(share, answers.read().splitlines()):
                with contextlib.suppress(ValueError):  # the last line of a process that was killed
                    entry, code = json.loads(line)
                    if entry:
                        remember(kernel, capability, Cubin(base64.b64decode(code), entry))
                        done += 1
    return done


def _serve(capability: tuple[int, int]) -> None:
    for kernel in map(from_json, list(sys.stdin)):
        try:
            cubin = compiled(kernel, capability)
            answer = [cubin.entry, base64.b64encode(cubin.code).decode()]
        except Exception:  # reported where it is compiled again
            answer = ["", ""]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve((int(sys.argv[1]), int(sys.argv[2])))
