"""Cases that run on a simulated GPU, each file of them in a process of its own, which can do nothing else with Numba.

    python -m tests.runtime.cuda.simulated tests/runtime/cuda/eager_cases.py

runs every function `case_*` of a file and prints what went wrong with each ("" if nothing) as JSON. The file's test is

    pytestmark = simulated.needed

    @pytest.mark.parametrize("case", simulated.names(CASES))
    def test_on_the_device(case):
        simulated.check(CASES, case)

A function `before_each` of the file runs before each case.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]

needed = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None,
    reason="the GPU is simulated by numba-cuda, which is not installed",
)


def beside(file: str, name: str) -> pathlib.Path:
    """The file of cases `name` in the folder of the test `file`."""
    return pathlib.Path(file).resolve().with_name(name)


def names(path: pathlib.Path) -> list[str]:
    """The cases of a file, which is not imported."""
    return re.findall(r"^def (case_\w+)", path.read_text(), re.MULTILINE)


def check(path: pathlib.Path, case: str) -> None:
    """Fail with the traceback of the case, if it failed."""
    found = _results(path)[case]
    if found:
        pytest.fail(found, pytrace=False)


def _results(path: pathlib.Path) -> dict[str, str]:
    return outcome("-m", "tests.runtime.cuda.simulated", str(path))


@functools.cache
def outcome(*arguments: str) -> dict[str, str]:
    """What `python` with these arguments prints last, run once on a simulated GPU that reports races: what went wrong, by case."""
    command = [sys.executable, "-W", "ignore", *arguments]
    env = {
        **os.environ,
        "NUMBA_ENABLE_CUDASIM": "1",
        "FGRAD_CUDASIM_RACES": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def _run(path: pathlib.Path, wanted: list[str]) -> dict[str, str]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = getattr(module, "before_each", None)
    return {name: _attempt(getattr(module, name), before) for name in wanted or names(path)}


def report(cases: Mapping[str, Callable[[], None]]) -> None:
    """Run cases that a test's own file holds, as its `outcome`."""
    print(json.dumps({name: _attempt(case) for name, case in cases.items()}))


def _attempt(case: Callable[[], None], before: Callable[[], None] | None = None) -> str:
    try:
        if before is not None:
            before()
        case()
    except BaseException:  # pytest.fail among them
        return traceback.format_exc()[-4000:]
    return ""


if __name__ == "__main__":
    print(json.dumps(_run(pathlib.Path(sys.argv[1]), sys.argv[2:])))
