"""`simulated_cases.py`, in a process of its own: one that simulates the GPU can do nothing else with it."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("numba_cuda", reason="the simulator is part of numba-cuda, which is not installed")

ROOT = pathlib.Path(__file__).resolve().parents[3]
CASES = re.findall(
    r"^def (case_\w+)", pathlib.Path(__file__).with_name("simulated_cases.py").read_text(), re.M
)


@functools.cache
def results() -> dict[str, str]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.runtime.cuda.simulated_cases"]
    env = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_in_the_simulator(case):
    assert not results()[case], results()[case]
