"""What is known about an array before the program runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad import FgradDeviceError, TracerError


def known(x: Any) -> np.ndarray | None:
    """The values of `x`; None where it is traced without them (under `jit`, `vmap`, `scan`), or on a GPU, which is not waited for."""
    try:
        return np.asarray(x)
    except (TracerError, FgradDeviceError):
        return None
