"""The primitives' sample table on the GPU: each sample's function compiled there, against its NumPy definition in float64 on the CPU."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fgrad
from fgrad import dtypes
from fgrad.array import from_numpy
from fgrad.ir import REGISTRY
from fgrad.testing import Sample, assert_close
from fgrad.trace import bind

TESTS = Path(__file__).resolve().parents[1] / "tests"
OUTCOMES = ("float64", "own type", "no kernel", "failed")


@functools.cache
def samples() -> dict[str, list[Sample]]:
    sys.path.insert(0, str(TESTS))
    try:
        from ops.samples import SAMPLES
    finally:
        sys.path.remove(str(TESTS))
    return SAMPLES


def primitive(name: str) -> dict[str, Any]:
    """How many samples had which outcome, and what went wrong.

    Where a definition itself depends on the type (bits, neighbouring numbers, overflow), a result that is not that of float64 may
    be that of its own type: these are counted apart.
    """
    answer: dict[str, Any] = dict.fromkeys(OUTCOMES, 0)
    failures: list[str] = []
    without: set[str] = set()
    for n, sample in enumerate(samples()[name]):
        if not sample.compiled:
            continue
        with np.errstate(all="ignore"):
            outcome, text = _outcome(name, sample)
        answer[outcome] += 1
        if outcome == "no kernel":
            without.add(text)
        elif text:
            failures.append(
                f"{name}, sample {n} ({', '.join(f'{a.dtype}{list(a.shape)}' for a in sample.args)}): {text}"
            )
    return answer | {"failures": failures, "without": sorted(without)}


def _outcome(name: str, sample: Sample) -> tuple[str, str]:
    def f(*xs: Any) -> list[Any]:
        found = bind(REGISTRY[name], *xs, **sample.params)
        return list(found) if REGISTRY[name].multiple else [found]

    def defined(args: Any) -> list[np.ndarray]:
        return [np.asarray(y) for y in f(*(from_numpy(a) for a in args))]

    try:
        got = [
            np.asarray(fgrad.device_get(y))
            for y in fgrad.jit(f, device="cuda")(*map(from_numpy, sample.args))
        ]
    except NotImplementedError as error:
        return "no kernel", str(error).splitlines()[0].partition(f"{name} of ")[2]
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    try:
        for g, want in zip(got, defined([_wide(a) for a in sample.args]), strict=True):
            assert_close(g, want.astype(g.dtype), sample.rtol, sample.atol)
        return "float64", ""
    except Exception:
        pass  # the definition depends on the type, or refuses float64; or the result is wrong
    try:
        for g, want in zip(got, defined(sample.args), strict=True):
            assert_close(g, want, sample.rtol, sample.atol)
        return "own type", ""
    except AssertionError as error:
        return "failed", " ".join(str(error).split())[:300]


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if dtypes.is_float(x.dtype) else x
