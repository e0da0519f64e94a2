"""The environment variable that allows Winograd's convolution: what it may say. (Autotune's is in `test_autotune.py`.)"""

import os
import subprocess
import sys

import pytest

SHOW = "from fgrad.runtime.options import winograd_allowed; print(winograd_allowed())"


def winograd_with(value):
    """Run by a process whose FGRAD_WINOGRAD is `value`."""
    environment = os.environ | {"FGRAD_WINOGRAD": value}
    return subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("value", "allowed"), [("0", "False"), ("OFF", "False"), ("1", "True"), ("", "True")]
)
def test_winograds_variable(value, allowed):
    assert winograd_with(value).stdout.strip() == allowed


def test_winograds_variable_is_yes_or_no():
    done = winograd_with("maybe")
    assert done.returncode != 0
    assert "the environment variable FGRAD_WINOGRAD is 'maybe'" in done.stderr and "fix:" in done.stderr
