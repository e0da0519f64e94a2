"""One function, written for `lib`, run by JAX, by fgrad eagerly, and by fgrad compiled: the three must agree."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

import fgrad
import fgrad.numpy as fnp
from fgrad.ir import check

_COMMON = (
    *("grad", "value_and_grad", "vjp", "jvp", "linearize", "vmap", "jit", "jacfwd", "jacrev", "hessian"),
    *("checkpoint", "custom_jvp", "custom_vjp"),
)
_LAX = ("cond", "switch", "while_loop", "fori_loop", "scan", "map", "stop_gradient")


def fgrad_lib() -> Any:
    names = {name: getattr(fgrad, name) for name in (*_COMMON, *_LAX, "linear_transpose")}
    return types.SimpleNamespace(np=fnp, name="fgrad", **names)


def jax_lib() -> Any:
    import jax
    import jax.numpy as jnp

    names = {name: getattr(jax, name) for name in _COMMON} | {name: getattr(jax.lax, name) for name in _LAX}
    return types.SimpleNamespace(np=jnp, name="jax", linear_transpose=jax.linear_transpose, **names)


def leaves(x: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in fgrad.tree.leaves(x)]


def assert_same(found: Any, expected: Any, rtol: float = 2e-5, atol: float = 2e-6, what: str = "") -> None:
    a, b = leaves(found), leaves(expected)
    assert len(a) == len(b), f"{what}: {len(a)} arrays, expected {len(b)}"
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert x.shape == y.shape, f"{what}, leaf {i}: shape {x.shape}, expected {y.shape}"
        assert x.dtype.kind == y.dtype.kind, f"{what}, leaf {i}: dtype {x.dtype}, expected {y.dtype}"
        scale = float(np.max(np.abs(y), initial=0)) if y.dtype.kind == "f" and np.isfinite(y).all() else 0.0
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol + rtol * scale, err_msg=f"{what}, leaf {i}")


def agree(
    f: Callable[..., Any], *args: Any, rtol: float = 2e-5, compiled: bool = True, eager: bool = True
) -> None:
    """`f(lib, *args)` with NumPy arguments: fgrad eager, fgrad compiled and JAX give the same numbers."""
    jax, ours = jax_lib(), fgrad_lib()
    # One compilation of the whole is faster than JAX's one for each operation.
    expected = jax.jit(lambda *a: f(jax, *a))(*[_to(jax.np, a) for a in args])
    given = [_to(fnp, a) for a in args]
    if eager:
        assert_same(f(ours, *given), expected, rtol, what="eager")
    if compiled:
        run = fgrad.jit(lambda *a: f(ours, *a))
        assert_same(run(*given), expected, rtol, what="compiled")
        check(fgrad.make_graph(lambda *a: f(ours, *a))(*given))


def _to(np_: Any, x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return np_.asarray(x)
    if isinstance(x, dict):
        return {k: _to(np_, v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(_to(np_, v) for v in x)
    return x


def vec(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 1.5, shape).astype(dtype)
