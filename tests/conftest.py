"""Settings that every test shares, and the fixtures that more than one folder uses."""

import os
import pathlib

# Read when JAX is first imported: the comparisons are with its CPU backend, also where it could see a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A first example may compile a program, so a deadline for each example says nothing; the same examples on
# every run keep a red test red.
settings.register_profile(
    "fgrad", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
# FGRAD_HYPOTHESIS_PROFILE=default searches anew on each run.
settings.load_profile(os.environ.get("FGRAD_HYPOTHESIS_PROFILE", "fgrad"))


@pytest.fixture
def rng() -> np.random.Generator:
    """The same stream of random numbers for each test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def torch():
    """PyTorch, to compare with; the test skips where it is not installed."""
    found = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    # The first vector function of a process may be computed by several threads before its library has settled on an accuracy: seen as
    # tanh with an error of 5e-5, in one process of six. On one thread the first time, it is exact ever after.
    threads = found.get_num_threads()
    found.set_num_threads(1)
    found.ones(1 << 16).tanh()
    found.set_num_threads(threads)
    return found


@pytest.fixture(scope="session")
def jax():
    """JAX, to compare with; the test skips where it is not installed."""
    return pytest.importorskip("jax", reason="compares with JAX, which is not installed")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder that FGRAD_DATA_DIR names, with the published data files; the test skips without one."""
    root = os.environ.get("FGRAD_DATA_DIR")
    if not root:
        pytest.skip("needs the real data sets: set FGRAD_DATA_DIR to the folder that holds them")
    return pathlib.Path(root)
