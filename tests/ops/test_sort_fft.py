"""Sorting, running extremes, Fourier transforms and complex parts: gradients against PyTorch and JAX."""

import numpy as np
import pytest

import fgrad
from fgrad.array import from_numpy
from fgrad.ops import complex as cx
from fgrad.ops import fft
from fgrad.ops.cumulative import cummax, cummin, cumprod
from fgrad.ops.sort import sort

_rng = np.random.default_rng(8)


def test_sort_is_stable_and_lexicographic():
    a, b = np.array([2, 1, 2, 1, 1]), np.array([0.5, 3.0, 0.1, 2.0, 3.0])
    order = np.arange(5)
    first, second, along = sort([from_numpy(a), from_numpy(b), from_numpy(order)], 0, 2)
    np.testing.assert_array_equal(np.asarray(along), [3, 1, 4, 2, 0])
    np.testing.assert_array_equal(np.asarray(first), a[[3, 1, 4, 2, 0]])
    np.testing.assert_array_equal(np.asarray(second), b[[3, 1, 4, 2, 0]])


def test_nan_sorts_last():
    got = sort([from_numpy(np.array([np.nan, np.inf, -1.0, np.nan, 0.0], np.float32))], 0)[0]
    np.testing.assert_array_equal(np.asarray(got), np.array([-1, 0, np.inf, np.nan, np.nan], np.float32))


@pytest.mark.parametrize(("ours", "name"), [(cummax, "cummax"), (cummin, "cummin"), (cumprod, "cumprod")])
def test_running_gradients(ours, name, torch):
    x = np.array([[1.0, 3.0, 3.0, 2.0, 0.0, 4.0], [0.0, -1.0, 0.0, -1.0, 5.0, 5.0]])
    ct = _rng.normal(size=x.shape)
    t = torch.tensor(x, requires_grad=True)
    y = getattr(torch, name)(t, 1)
    (y if name == "cumprod" else y.values).backward(torch.tensor(ct))
    _, pull = fgrad.vjp(lambda x: ours(x, 1), from_numpy(x))
    np.testing.assert_allclose(np.asarray(pull(from_numpy(ct))[0]), t.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize("n", [4, 5])
def test_gradients_through_the_spectrum(n, jax):
    """A real function of a real signal, through rfft, complex products and irfft."""
    x, h = _rng.normal(size=(2, n)), _rng.normal(size=(2, n))

    def ours(x, h):
        y = fft.irfft(fft.rfft(x, [1]) * cx.conj(fft.rfft(h, [1])), [1], n)
        z = fft.fft(cx.complex_(x, y), [0, 1])
        return (y**3).sum() + (cx.complex_abs(z) ** 2 * cx.imag(z)).sum() + cx.real(fft.ifft(z, [1])).sum()

    with jax.enable_x64(True):
        import jax.numpy as jnp

        def theirs(x, h):
            y = jnp.fft.irfft(jnp.fft.rfft(x) * jnp.conj(jnp.fft.rfft(h)), n)
            z = jnp.fft.fft(jnp.fft.fft(x + 1j * y, axis=0), axis=1)
            return (y**3).sum() + (jnp.abs(z) ** 2 * z.imag).sum() + jnp.fft.ifft(z, axis=1).real.sum()

        want = jax.jit(jax.value_and_grad(theirs, (0, 1)))(x, h)
    got = fgrad.value_and_grad(ours, (0, 1))(from_numpy(x), from_numpy(h))
    for a, b in zip(fgrad.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-9)


def test_single_precision_stays_single():
    assert fft.rfft(from_numpy(np.ones(4, np.float32)), [0]).dtype == np.complex64
    assert fft.irfft(from_numpy(np.ones(3, np.complex64)), [0], 4).dtype == np.float32


def test_errors():
    with pytest.raises(fgrad.FgradTypeError, match="complex"):
        fft.fft(from_numpy(np.ones(4)), [0])
    with pytest.raises(fgrad.FgradValueError, match="6 real values come from 4"):
        fft.irfft(from_numpy(np.ones(3, np.complex128)), [0], 6)
    with pytest.raises(fgrad.FgradTypeError, match="float16"):
        cx.complex_(from_numpy(np.ones(2, np.float16)), from_numpy(np.ones(2, np.float16)))
