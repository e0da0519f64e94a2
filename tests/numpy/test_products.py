"""Products, einsum, linear algebra and Fourier transforms against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fgrad
import fgrad.numpy as fnp

RNG = np.random.default_rng(3)


def array(*shape, dtype=np.float64):
    x = RNG.standard_normal(shape)
    return (x * 3).astype(dtype) if np.dtype(dtype).kind in "iu" else x.astype(dtype)


def same(ours, theirs, tolerance=1e-10):
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


SHAPES = [
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3,)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((7, 1, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((2, 0), (0, 4)),
]


@pytest.mark.parametrize("a, b", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "int64", "bool", "complex128"])
def test_matmul(a, b, dtype):
    x, y = array(*a), array(*b)
    x, y = (x > 0, y > 0) if dtype == "bool" else ((x * 3).astype(dtype), (y * 3).astype(dtype))
    same(fnp.matmul(x, y), x @ y)
    assert fnp.matmul(x, y).dtype == dtype
    if a != () and len(b) <= 3:
        same(fnp.dot(x, y), np.dot(x, y))


def test_products():
    a, b = array(2, 3, 4), array(5, 4)
    same(fnp.inner(a, b), np.inner(a, b))
    same(fnp.outer(a, b), np.outer(a, b))
    same(fnp.vdot(a, a), np.vdot(a, a))
    same(fnp.tensordot(a, b, (2, 1)), np.tensordot(a, b, (2, 1)))
    c = array(3, 4, 2)
    same(fnp.tensordot(a, c), np.tensordot(a, c))
    same(fnp.tensordot(a, c, ([0, 1], [2, 0])), np.tensordot(a, c, ([0, 1], [2, 0])))
    same(fnp.tensordot(a, b, 0), np.tensordot(a, b, 0))
    same(fnp.kron(a[0], b), np.kron(a[0], b))
    same(fnp.kron(a, b), np.kron(a, b))
    same(fnp.cross(array(2, 3) * 0 + a[:, :, 0], a[:, :, 1]), np.cross(a[:, :, 0], a[:, :, 1]))
    same(fnp.cross(a[:, :, 0].T, a[:, :, 1].T, axis=0), np.cross(a[:, :, 0].T, a[:, :, 1].T, axis=0))
    same(fnp.vecdot(a, a), np.vecdot(a, a))
    same(fnp.matvec(a, array(4) * 0 + 1), np.matvec(a, np.ones(4)))
    same(fnp.vecmat(np.ones(3), a), np.vecmat(np.ones(3), a))


EINSUMS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("ji,kj->ik", (3, 2), (4, 3)),
    ("ij,ij->", (2, 3), (2, 3)),
    ("ij,ij->ij", (2, 3), (2, 3)),
    ("i,j->ij", (2,), (3,)),
    ("i,j->ji", (2,), (3,)),
    ("ii", (3, 3)),
    ("ii->i", (3, 3)),
    ("iij->ji", (3, 3, 2)),
    ("iii->i", (3, 3, 3)),
    ("ijij->ij", (2, 3, 2, 3)),
    ("ij->ji", (2, 3)),
    ("ba", (2, 3)),
    ("ij->", (2, 3)),
    ("ij->j", (2, 3)),
    ("bij,bjk->bik", (5, 2, 3), (5, 3, 4)),
    ("bij,bjk->ikb", (5, 2, 3), (5, 3, 4)),
    ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("...ij,...jk->...ik", (5, 2, 3), (5, 3, 4)),
    ("...ij,...jk->...ik", (7, 1, 2, 3), (5, 3, 4)),
    ("...ij,jk->i...k", (5, 2, 3), (3, 4)),
    ("...ii->...i", (4, 3, 3)),
    ("...", (2, 3)),
    ("...i->i...", (2, 3, 4)),
    ("i...->...", (2, 3, 4)),
    ("i,i,i->i", (4,), (4,), (4,)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 5)),
    ("ij,jk,kl,lm->im", (2, 9), (9, 3), (3, 8), (8, 2)),
    ("ij,kj,lj->ikl", (2, 3), (4, 3), (5, 3)),
    ("ijk,ilm,njm,nlk,abc->", (2, 3, 4), (2, 5, 6), (7, 3, 6), (7, 5, 4), (1, 2, 3)),
    ("a,ab,abc->abc", (2,), (2, 3), (2, 3, 4)),
    ("ij,jk->ik", (2, 1), (3, 4)),
    ("ij,ij->ij", (2, 1), (1, 3)),
    ("iJ,Jk->ik", (2, 3), (3, 4)),
    (" i j , j k -> i k ", (2, 3), (3, 4)),
    ("ij,k->ij", (2, 3), (4,)),
    (",i->i", (), (3,)),
]


@pytest.mark.parametrize("subscripts, shapes", [(e[0], e[1:]) for e in EINSUMS])
def test_einsum(subscripts, shapes):
    operands = [array(*s) for s in shapes]
    expected = np.einsum(subscripts, *operands)
    same(fnp.einsum(subscripts, *operands), expected)
    w = array(*expected.shape)
    got = fgrad.grad(lambda xs: (fnp.einsum(subscripts, *xs) * w).sum())([fnp.asarray(o) for o in operands])
    for k, (g, o) in enumerate(
        zip(got, operands, strict=True)
    ):  # linear in each operand: one difference is exact
        direction = array(*o.shape)
        moved = [x + direction if i == k else x for i, x in enumerate(operands)]
        slope = ((np.einsum(subscripts, *moved) - expected) * w).sum()
        if len({c for c in subscripts if subscripts.count(c)}):
            np.testing.assert_allclose((np.asarray(g) * direction).sum(), slope, rtol=1e-8, atol=1e-8)


@given(st.data())
def test_einsum_of_random_subscripts(data):
    sizes = dict(zip("abcde", (2, 3, 1, 4, 2), strict=True))
    terms = data.draw(st.lists(st.text("abcde", min_size=0, max_size=4), min_size=1, max_size=4))
    letters = sorted(set("".join(terms)))
    output = "".join(data.draw(st.permutations(letters)))[: data.draw(st.integers(0, len(letters)))]
    subscripts = ",".join(terms) + "->" + output
    operands = [np.random.default_rng(len(t)).standard_normal([sizes[c] for c in t]) for t in terms]
    same(fnp.einsum(subscripts, *operands), np.einsum(subscripts, *operands))


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: fnp.einsum("ij,jk", np.ones((2, 3)), np.ones((4, 5))), "letter 'j' is 3 in one place and 4"),
        (lambda: fnp.einsum("ij,jk", np.ones((2, 3))), "describes 2 operands, 1"),
        (lambda: fnp.einsum("ijk", np.ones((2, 3))), "names 3 axes"),
        (lambda: fnp.einsum("ij->k", np.ones((2, 3))), "output letters"),
        (lambda: fnp.einsum(np.ones(2), "i"), "subscripts string"),
        (lambda: fnp.ones((2, 3)) @ fnp.ones((2, 3)), "transpose the second operand"),
        (lambda: fnp.ones((2, 3)) @ 2, "0-dimensional operand"),
        (lambda: fnp.dot(fnp.ones((2, 3)), fnp.ones(2)), "must be equal"),
        (lambda: fnp.tensordot(fnp.ones((2, 3)), fnp.ones((2, 3))[:, :2]), "must be equal"),
        (lambda: fnp.linalg.inv(fnp.ones((2, 3))), "square matrix"),
        (lambda: fnp.linalg.norm(fnp.ones((2, 3)), "nope"), "not a matrix norm"),
    ],
)
def test_errors(call, text):
    with pytest.raises((ValueError, TypeError), match=text):
        call()


# ------------------------------------------------------------------------------------------------ linear algebra

M = array(4, 4) + 4 * np.eye(4)
S = M @ M.T
TALL, WIDE = array(6, 3), array(2, 3, 5)

LINALG = {
    "solve": lambda np: np.linalg.solve(M, S),
    "solve a vector": lambda np: np.linalg.solve(M, S[0]),
    "inv": lambda np: np.linalg.inv(M),
    "det": lambda np: np.linalg.det(M),
    "slogdet": lambda np: np.linalg.slogdet(-M)[1],
    "cholesky": lambda np: np.linalg.cholesky(S),
    "qr": lambda np: abs(np.linalg.qr(TALL)[1]),
    "qr complete": lambda np: abs(np.linalg.qr(TALL, "complete").R),
    "qr r": lambda np: abs(np.linalg.qr(TALL, "r")),
    "svd": lambda np: np.linalg.svd(WIDE).S,
    "svd without vectors": lambda np: np.linalg.svd(WIDE, compute_uv=False),
    "svdvals": lambda np: np.linalg.svdvals(WIDE),
    "eigh": lambda np: np.linalg.eigh(S).eigenvalues,
    "eigvalsh": lambda np: np.linalg.eigvalsh(S),
    "matrix_power": lambda np: np.linalg.matrix_power(M, 5),
    "matrix_power negative": lambda np: np.linalg.matrix_power(M, -3),
    "matrix_power zero": lambda np: np.linalg.matrix_power(M, 0),
    "pinv": lambda np: np.linalg.pinv(WIDE),
    "lstsq": lambda np: np.linalg.lstsq(TALL, array_6())[0],
    "matrix_rank": lambda np: np.linalg.matrix_rank(np.outer(M[0], M[1])),
    "multi_dot": lambda np: np.linalg.multi_dot([M[0], M, M[:, :2], M[:2]]),
    "multi_dot of two": lambda np: np.linalg.multi_dot([M, M[:, 0]]),
    "cond": lambda np: np.linalg.cond(M),
    "cond 1": lambda np: np.linalg.cond(M, 1),
    "trace": lambda np: np.linalg.trace(M),
    "diagonal": lambda np: np.linalg.diagonal(WIDE, offset=1),
    "outer": lambda np: np.linalg.outer(M[0], M[1]),
    "norm": lambda np: np.linalg.norm(WIDE),
    "vector_norm": lambda np: np.linalg.vector_norm(WIDE, axis=1, ord=3),
    "matrix_norm": lambda np: np.linalg.matrix_norm(WIDE, keepdims=True),
}
LINALG.update(
    {
        f"vector norm {p}": (lambda np, p=p: np.linalg.norm(WIDE, p, 1))
        for p in (None, 2, 1, 0, 3, 0.5, np.inf, -np.inf)
    }
)
LINALG.update(
    {
        f"matrix norm {p}": (lambda np, p=p: np.linalg.norm(WIDE, p, (0, 2), keepdims=True))
        for p in (None, "fro", "nuc", 2, -2, 1, -1, np.inf, -np.inf)
    }
)


def array_6():
    return np.arange(6.0)


@pytest.mark.parametrize("case", LINALG.values(), ids=LINALG.keys())
def test_linalg(case):
    same(case(fnp), case(np), 1e-9)


@pytest.mark.parametrize("name", ["det", "inv", "cholesky", "pinv", "norm", "eigvalsh", "svdvals"])
def test_derivatives_of_linalg_are_those_of_jax(name, jax):
    x = S.astype(np.float32) / 10
    f = getattr(fnp.linalg, name)
    ours = fgrad.grad(lambda x: fnp.sin(f((x + x.T) / 2)).sum())(fnp.array(x))
    g = getattr(jax.numpy.linalg, name)
    theirs = jax.grad(lambda x: jax.numpy.sin(g((x + x.T) / 2)).sum())(x)
    np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-3)


# ------------------------------------------------------------------------------------------------ Fourier transforms

Z = array(4, 6) + 1j * array(4, 6)
R = array(4, 7)

FFT = {
    "fftfreq": lambda np: np.fft.fftfreq(9, 0.5) + 5,
    "fftfreq even": lambda np: np.fft.fftfreq(8) + 5,
    "rfftfreq": lambda np: np.fft.rfftfreq(9, 0.5) + 5,
    "fftshift": lambda np: np.fft.fftshift(R),
    "ifftshift": lambda np: np.fft.ifftshift(R, 1),
    "hfft": lambda np: np.fft.hfft(Z, 9),
    "ihfft": lambda np: np.fft.ihfft(R),
}
for _norm in ("backward", "ortho", "forward"):
    for _name in ("fft", "ifft", "fft2", "ifft2", "fftn", "ifftn"):
        FFT[f"{_name} {_norm}"] = lambda np, n=_name, norm=_norm: getattr(np.fft, n)(Z, norm=norm)
    for _name in ("rfft", "rfft2", "rfftn"):
        FFT[f"{_name} {_norm}"] = lambda np, n=_name, norm=_norm: getattr(np.fft, n)(R, norm=norm)
    for _name in ("irfft", "irfft2", "irfftn"):
        FFT[f"{_name} {_norm}"] = lambda np, n=_name, norm=_norm: getattr(np.fft, n)(Z, norm=norm)
for _n in (3, 9):
    for _name in ("fft", "ifft", "irfft"):
        FFT[f"{_name} of length {_n}"] = lambda np, n=_n, name=_name: getattr(np.fft, name)(Z, n, axis=0)
    FFT[f"rfft of length {_n}"] = lambda np, n=_n: np.fft.rfft(R, n, axis=0)


@pytest.mark.parametrize("case", FFT.values(), ids=FFT.keys())
def test_fft(case):
    same(case(fnp), case(np), 2e-7)
