"""The driver for hardware over an API played by Python."""

import pytest

from fgrad.runtime.cuda import nvidia
from fgrad.runtime.cuda.cubins import Cubin
from tests.runtime.cuda.fake_driver import FakeDriver
from tests.runtime.cuda.fake_programs import scale, shift


@pytest.fixture
def fake(monkeypatch):
    """The fake API; kernels are compiled to nothing but their names."""
    monkeypatch.setattr(nvidia, "cubin_of", lambda kernel, capability: Cubin(b"code", kernel.name))
    made = FakeDriver()
    made.kernels = {"scale": scale, "shift": shift}
    return made


@pytest.fixture
def driver(fake):
    return nvidia.NvidiaDriver("test", fake)
