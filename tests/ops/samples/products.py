"""Contractions, pooling, sorting, linear algebra, Fourier transforms."""

from __future__ import annotations

import numpy as np

from fgrad.testing import Sample

from .common import HALF, SPECIAL, complex_normal, integers, normal, row

# ------------------------------------------------------------------------------------------------ contract, pool


def dot(a: np.ndarray, b: np.ndarray, contract, batch=((), ()), **options) -> None:
    row("dot_general", Sample([a, b], {"dims": (contract, batch)}, **options))


dot(normal(3, 4), normal(4, 5), ((1,), (0,)))
dot(normal(4, 3), normal(5, 4), ((0,), (1,)))
dot(normal(2, 3, 4), normal(2, 4, 5), ((2,), (1,)), ((0,), (0,)))
dot(normal(3, 2, 4), normal(4, 5, 2), ((2,), (0,)), ((1,), (2,)))
dot(normal(2, 3, 4), normal(4, 3, 5), ((1, 2), (1, 0)))
dot(normal(3, 4, 2), normal(2, 5, 3), ((2, 0), (0, 2)))
dot(normal(3), normal(4), ((), ()))
dot(normal(3), normal(3), ((0,), (0,)))
dot(normal(3, 0), normal(0, 2), ((1,), (0,)))
dot(normal(0, 3), normal(3, 2), ((1,), (0,)))
dot(normal(17, 33, dtype=np.float32), normal(33, 19, dtype=np.float32), ((1,), (0,)), grad=False)
dot(integers(-5, 5, 3, 4), integers(-5, 5, 4, 2), ((1,), (0,)))
dot(complex_normal(3, 4), complex_normal(4, 2), ((1,), (0,)))
for _d in HALF:
    dot(normal(3, 4).astype(_d), normal(4, 2).astype(_d), ((1,), (0,)), grad=False)


def convolution(spatial, kernel, strides, padding, dilation, groups, n=2, c=4, o=6, dtype=np.float64) -> None:
    params = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    out = tuple(
        (s + lo + hi - d * (k - 1) - 1) // st + 1
        for s, k, st, (lo, hi), d in zip(spatial, kernel, strides, padding, dilation, strict=True)
    )
    x, w, g = (
        normal(n, c, *spatial, dtype=dtype),
        normal(o, c // groups, *kernel, dtype=dtype),
        normal(n, o, *out, dtype=dtype),
    )
    grad = dtype == np.float64
    row("conv", Sample([x, w], params, grad=grad))
    row("conv_input_grad", Sample([g, w], {"spatial": spatial, **params}, grad=grad))
    row("conv_weight_grad", Sample([x, g], {"kernel": kernel, **params}, grad=grad))


convolution((7,), (3,), (1,), ((0, 0),), (1,), 1)
convolution((7,), (3,), (2,), ((1, 2),), (2,), 2)
convolution((6, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
convolution((6, 5), (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2)
convolution((5, 5), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
convolution((5, 6), (1, 1), (2, 2), ((0, 0), (1, 1)), (1, 1), 1, n=1)
convolution((5, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4, c=4, o=4)
convolution((5, 5), (2, 2), (3, 3), ((0, 0), (0, 0)), (1, 1), 1, c=1, o=1)
convolution((4, 3, 5), (2, 2, 3), (1, 1, 2), ((0, 1), (1, 0), (1, 1)), (1, 1, 1), 1, c=2, o=3)
convolution((3, 3), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
convolution((5, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, n=0)
convolution((9, 11), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, n=3, c=5, o=17, dtype=np.float32)


def pooling(spatial, window, strides, padding, n=2, c=3) -> None:
    params = {"window": window, "strides": strides, "padding": padding}
    out = tuple(
        (s + lo + hi - k) // st + 1
        for s, k, st, (lo, hi) in zip(spatial, window, strides, padding, strict=True)
    )
    x, g = normal(n, c, *spatial), normal(n, c, *out)
    padded = np.pad(x, ((0, 0), (0, 0), *padding), constant_values=-np.inf)
    view = np.lib.stride_tricks.sliding_window_view(padded, window, axis=tuple(range(2, x.ndim)))
    view = view[(slice(None), slice(None), *[slice(None, None, s) for s in strides])]
    offset = (
        view.reshape(n, c, *out, -1).argmax(-1).astype(np.int32)
        if x.size
        else np.zeros((n, c, *out), np.int32)
    )
    # An offset belongs to the place where it was found: batches differ in values only.
    vary = {"vary": lambda a, k: a if a.dtype == np.int32 else np.roll(a.ravel(), k).reshape(a.shape)}
    row("max_pool", Sample([x], params), Sample([x.astype(np.float32)], params, grad=False))
    row("pool_take", Sample([x, offset], params, **vary))
    row("pool_put", Sample([g, offset], {"spatial": spatial, **params}, **vary))
    row("sum_pool", Sample([x], params))
    row("sum_pool_grad", Sample([g], {"spatial": spatial, **params}))


pooling((6,), (2,), (2,), ((0, 0),))
pooling((6, 7), (2, 2), (2, 2), ((0, 0), (0, 0)))
pooling((6, 7), (3, 2), (2, 1), ((1, 1), (0, 1)))
pooling((5, 5), (3, 3), (1, 1), ((1, 1), (1, 1)))
pooling((5, 5), (1, 1), (2, 2), ((0, 0), (0, 0)))
pooling((4, 5, 3), (2, 2, 2), (2, 1, 2), ((0, 0), (1, 0), (1, 0)))
pooling((4, 4), (2, 2), (2, 2), ((0, 0), (0, 0)), n=0)
_same = {"window": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0))}
row("max_pool", Sample([np.array([[[[1, 1, np.nan, 2], [1, 1, 3, np.nan]]]], np.float32)], _same, grad=False))
_lowest = np.full((1, 2, 5, 5), -np.inf, np.float32)
_lowest[0, 0, 2, 2], _lowest[0, 1, 4, 4] = 1, np.nan
for _window, _strides in (((3, 3), (1, 1)), ((3, 3), (2, 2)), ((2, 2), (2, 2)), ((2, 2), (3, 3))):
    _padded = {"window": _window, "strides": _strides, "padding": ((1, 2), (1, 1))}
    row("max_pool", Sample([_lowest], _padded, grad=False))
row("max_pool", Sample([integers(-9, 9, 1, 2, 4, 4, dtype=np.int32)], _same))


# ------------------------------------------------------------------------------------------------ opaque

row(
    "sort",
    Sample([normal(3, 5)], {"axis": 1, "num_keys": 1}),
    Sample([normal(4, 2)], {"axis": 0, "num_keys": 1}),
)
row("sort", Sample([integers(0, 2, 3, 5), normal(3, 5), normal(3, 5)], {"axis": 1, "num_keys": 2}))
row(
    "sort",
    Sample([integers(0, 2, 6), integers(0, 9, 6)], {"axis": 0, "num_keys": 1}),
    Sample([normal(2, 0)], {"axis": 1, "num_keys": 1}),
)
row("sort", Sample([SPECIAL], {"axis": 0, "num_keys": 1}, grad=False))
row("sort", *[Sample([normal(6).astype(d)], {"axis": 0, "num_keys": 1}, grad=False) for d in HALF])


def scaled(x: np.ndarray, k: int) -> np.ndarray:
    """Batches of matrices stay positive definite, triangular, or well conditioned."""
    return x * (1 + 0.25 * k)


def regular(*shape: int) -> np.ndarray:
    return normal(*shape) + 3 * np.eye(shape[-1])


def positive(*shape: int) -> np.ndarray:
    a = normal(*shape)
    return a @ a.swapaxes(-1, -2) + np.eye(shape[-1])


_loose = {"vary": scaled, "rtol": 1e-9}
row(
    "solve",
    Sample([regular(3, 3), normal(3, 2)], **_loose),
    Sample([regular(2, 4, 4), normal(2, 4, 1)], **_loose),
)
row("solve", Sample([regular(2, 2) + 1j * normal(2, 2), complex_normal(2, 2)], **_loose))
for _lower in (False, True):
    for _transposed in (False, True):
        for _unit in (False, True):
            _p = {"lower": _lower, "transpose_a": _transposed, "unit_diagonal": _unit}
            row("triangular_solve", Sample([regular(2, 3, 3), normal(2, 3, 2)], _p, **_loose))
row(
    "inv",
    Sample([regular(3, 3)], **_loose),
    Sample([regular(2, 2, 2)], **_loose),
    Sample([np.zeros((0, 3, 3))], **_loose),
)
row(
    "det",
    Sample([regular(3, 3)], **_loose),
    Sample([normal(2, 4, 4)], **_loose),
    Sample([normal(1, 1)], **_loose),
)
row("det", Sample([np.array([[1.0, 2.0], [2.0, 4.0]])], order=1, **_loose))  # singular
row("cofactor", Sample([regular(3, 3)], **_loose), Sample([normal(2, 2, 2)], **_loose))
row("slogdet", Sample([regular(3, 3)], **_loose), Sample([normal(2, 4, 4)], **_loose))
row(
    "cholesky",
    Sample([positive(3, 3)], **_loose),
    Sample([positive(2, 4, 4)], **_loose),
    Sample([positive(1, 1)], **_loose),
)
for _shape in ((3, 3), (5, 3), (2, 4, 2)):
    row("qr", Sample([normal(*_shape)], {"full_matrices": False}, **_loose))
row("qr", Sample([normal(2, 4)], {"full_matrices": False}, grad=False, **_loose))
row("qr", Sample([normal(5, 3)], {"full_matrices": True}, grad=False, **_loose))
for _shape in ((3, 3), (5, 3), (2, 5), (2, 4, 2)):
    row("svd", Sample([normal(*_shape)], {"full_matrices": False}, **_loose))
row("svd", Sample([normal(5, 3)], {"full_matrices": True}, grad=False, **_loose))
row("svd", Sample([normal(3, 3)], {"full_matrices": True}, **_loose))
row(
    "svdvals",
    Sample([normal(3, 3)], **_loose),
    Sample([normal(2, 5, 3)], **_loose),
    Sample([normal(2, 5)], **_loose),
)
row(
    "eigh",
    Sample([positive(3, 3)], **_loose),
    Sample([normal(2, 4, 4)], **_loose),
    Sample([normal(1, 1)], **_loose),
)

for _name in ("fft", "ifft"):
    row(_name, Sample([complex_normal(3, 5)], {"axis": 1}), Sample([complex_normal(4, 3)], {"axis": 0}))
    row(
        _name,
        Sample([complex_normal(8, dtype=np.complex64)], {"axis": 0}, grad=False),
        Sample([complex_normal(1)], {"axis": 0}),
    )
for _n in (1, 2, 5, 8):
    row(
        "rfft",
        Sample([normal(2, _n)], {"axis": 1}),
        Sample([normal(_n, 2, dtype=np.float32)], {"axis": 0}, grad=False),
    )
    row("irfft", Sample([complex_normal(2, _n // 2 + 1)], {"axis": 1, "n": _n}))
row(
    "complex",
    Sample([normal(2, 3), normal(2, 3)]),
    Sample([normal(3, dtype=np.float32), normal(3, dtype=np.float32)], grad=False),
)
for _name in ("real", "imag", "conj", "complex_abs"):
    row(
        _name,
        Sample([complex_normal(2, 3)]),
        Sample([complex_normal(4, dtype=np.complex64)], grad=False),
        Sample([complex_normal()]),
    )
