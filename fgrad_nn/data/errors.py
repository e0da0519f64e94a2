"""The error of everything that is wrong with data on disk or on the wire."""

from __future__ import annotations

from fgrad.errors import FgradError


class DataError(FgradError):
    """A data file is missing, truncated, damaged, of the wrong format, or cannot be downloaded."""
