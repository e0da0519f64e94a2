"""Programs whose loop nests run as CUDA kernels in Numba's simulator.

    python simulate.py nest_cases              every function `case_*` of nest_cases.py:  {"case_softmax": "", ...}
    python simulate.py samples 0 2             the first half of the primitives' sample table

prints what went wrong with each ("" if nothing) as JSON. `results(...)` does that in a process of its own, since one
that simulates the GPU can do nothing else with it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import traceback

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def case_names(name: str) -> list[str]:
    return re.findall(r"^def (case_\w+)", (HERE / f"{name}.py").read_text(), re.MULTILINE)


def module(name: str):
    """A module of the tests by its path from `tests`, or one that stands beside this file."""
    before = list(sys.path)
    sys.path[:0] = [str(ROOT / "tests"), str(HERE)]
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = before


def sample_names() -> list[str]:
    """The primitives of the sample table."""
    return sorted(module("ops.samples").SAMPLES)


@functools.cache
def results(*args: str) -> dict[str, str]:
    env = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "FGRAD_CUDASIM_RACES": "1"}
    command = [sys.executable, "-W", "ignore", str(HERE / "simulate.py"), *args]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------ in the simulator


def machine_class():
    from fgrad.codegen.cuda.nests import lower_kernel
    from fgrad.codegen.cuda.target import SIMULATED
    from fgrad.codegen.program import KernelStep
    from fgrad.runtime.cuda.simulator import run_simulated
    from fgrad.runtime.interpret import Interpreter

    class Machine(Interpreter):
        """The interpreter, with loop nests in the simulator. What may be computed in place is."""

        def __init__(self, program, target=SIMULATED):
            super().__init__(program)
            self.target = target
            self.launched = []
            self.shared = 0  # how many results were computed in place

        def _step(self, step):
            if not isinstance(step, KernelStep):
                super()._step(step)
                return
            launches = lower_kernel(step, self.target)
            self._share(step, launches)
            for launch in launches:
                self.launched.append(launch)
                run_simulated(launch.kernel, [self.array(a).reshape(-1) for a in launch.args])

        def _share(self, step, launches):
            """Put results into the memory of inputs that nothing else needs, as planning memory may."""
            steps = self.program.body.steps
            if step not in steps:
                return
            later = {r.root for s in steps[steps.index(step) + 1 :] for r in s.reads}
            taken = set()
            for launch in launches:
                for out, source in launch.in_place:
                    if out.kind == "output" and source.base is None:
                        if not {out, source, source.root} & (taken | later):
                            self.array(out).reshape(-1).view(np.uint8)[:] = (
                                self.array(source).reshape(-1).view(np.uint8)
                            )
                            self.memory[source] = self.memory[out]
                            taken |= {out, source}
                            self.shared += 1

    return Machine


def run(graph, inputs, target=None, shaped_for="cuda"):
    """The outputs, and the machine that computed them."""
    from fgrad.passes import compile_graph

    machine = machine_class()(compile_graph(graph, target=shaped_for), *([] if target is None else [target]))
    return machine.run(*inputs), machine


def check(graph, inputs=None, rtol=2e-5, target=None, shaped_for="cuda"):
    """Run, compare with the definition, and give back the machine."""
    from passes import helpers

    inputs = helpers.inputs_for(graph) if inputs is None else inputs
    got, machine = run(graph, inputs, target, shaped_for)
    for g, w in zip(got, helpers.evaluate(graph, inputs), strict=True):
        helpers.agree(g, w, rtol)
    return machine


def _cases(name: str) -> dict[str, str]:
    found = module(name)
    return {case: _attempt(getattr(found, case)) for case in case_names(name)}


def _samples(part: int, parts: int) -> dict[str, str]:
    from ops.samples import SAMPLES
    from passes.helpers import evaluate

    from fgrad.ir import REGISTRY
    from fgrad.testing import _traced, assert_close

    def one(name):
        for i, sample in enumerate(SAMPLES[name]):
            if sample.compiled:
                graph = _traced(REGISTRY[name], sample, sample.args)
                got, _ = run(graph, list(sample.args))
                for g, w in zip(got, evaluate(graph, list(sample.args)), strict=True):
                    assert_close(g, w, sample.rtol, sample.atol, f"{name}, sample {i}")

    return {name: _attempt(functools.partial(one, name)) for name in sample_names()[part::parts]}


def _attempt(f) -> str:
    try:
        with np.errstate(all="ignore"):
            f()
    except Exception:
        return traceback.format_exc()[-3000:]
    return ""


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(HERE)]
    what, *rest = sys.argv[1:]
    print(json.dumps(_samples(*map(int, rest)) if what == "samples" else _cases(what)))
