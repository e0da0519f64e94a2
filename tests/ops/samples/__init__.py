"""One row or more a primitive: `SAMPLES[name]` is what `test_primitives` runs every check on."""

from . import elementwise, products, structure
from .common import SAMPLES

__all__ = ["SAMPLES", "elementwise", "products", "structure"]
