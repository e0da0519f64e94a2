"""What is known about an array before the program runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgrad import TracerError


def known(x: Any) -> np.ndarray | None:
    """The values of `x`; None where it is traced without them (under `jit`, `vmap`, `scan`)."""
    try:
        return np.asarray(x)
    except TracerError:
        return None
