"""Random numbers: published vectors, JAX's bits (as literals, and live where JAX is installed), and distributions."""

import math

import numpy as np
import pytest

import fgrad
from fgrad import random
from fgrad.errors import FgradTypeError, FgradValueError
from fgrad.ops.threefry import threefry2x32

# Threefry-2x32, 20 rounds: (counter, key, result), from kat_vectors of the Random123 distribution.
VECTORS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]

# What jax.random (0.10.2, default settings) gives for PRNGKey(42), flattened.
KNOWN = {
    "split": [1832780943, 270669613, 64467757, 2916123636],
    "split3": [1832780943, 270669613, 64467757, 2916123636, 2465931498, 255383827],
    "fold_in": [2547012911, 1371500959],
    "bits8": [162, 217, 249, 215, 21],
    "bits16": [5026, 12505, 63993, 49623],
    "bits32": [2098992034, 2919706841, 2646866425, 2409546199],
    "bits64": [7871734211187709741, 276886910877598708],
    "uniform64": ["0x1.b4f8123c40884p-2", "0x1.ebd996d6e8400p-7", "0x1.25f641d41e71ap-1"],
    "uniform": ["0x1.f47048p-2", "0x1.5c0e6p-1", "0x1.3b87fp-1", "0x1.1f3d8p-1"],
    "uniform_range": ["0x1.827a28p-3", "0x1.84e98cp-2", "0x1.43dcacp-2", "0x1.0b47ccp-2"],
    "uniform_half": ["0x1.38p-4", "0x1.86p-3", "0x1.f38p-1", "0x1.838p-1"],
    "bernoulli": [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0],
    "randint": [94, 49, 76, -1, 84, 19],
    "randint8": [196, 18, 183, 193, 141, 107],
    "permutation": [7, 4, 2, 5, 3, 6, 8, 9, 0, 1],
    "permutation2000": [1474, 815, 539, 874, 1693, 84, 995, 1191],
    "permutation_rows": [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5],
    "permutation_independent": [2, 0, 1, 4, 5, 3, 7, 6, 8, 10, 11, 9],
    "choice": [4, 14, 11, 9, 9, 19],
    "choice_distinct": [7, 4, 16, 19, 2, 5],
    "categorical": [3, 4, 2, 4, 3, 4, 3, 2],
}
KNOWN_ROUNDED = {
    "normal": ["-0x1.cfbe2ap-6", "0x1.de57dp-2", "0x1.2eccc2p-2", "0x1.3a7648p-3", "-0x1.fc09d6p-4"],
    "gumbel": ["0x1.561c94p-2", "0x1.e76f18p-1", "0x1.7378bep-1", "0x1.18a9fp-1"],
    "exponential": ["0x1.577564p-1", "0x1.23887p+0", "0x1.ea6762p-1", "0x1.a58698p-1"],
    "truncated_normal": ["0x1.2e7d5ep-3", "0x1.230b36p-1", "0x1.af2150p-2", "0x1.332b56p-2"],
}

DRAWS = {
    "split": lambda k: random.split(k),
    "split3": lambda k: random.split(k, 3),
    "fold_in": lambda k: random.fold_in(k, 7),
    "bits8": lambda k: random.bits(k, (5,), "uint8"),
    "bits16": lambda k: random.bits(k, (4,), "uint16"),
    "bits32": lambda k: random.bits(k, (2, 2)),
    "bits64": lambda k: random.bits(k, 2, "uint64"),
    "uniform64": lambda k: random.uniform(k, (3,), "float64"),
    "uniform": lambda k: random.uniform(k, (4,)),
    "uniform_range": lambda k: random.uniform(k, (4,), minval=-0.3, maxval=0.7),
    "uniform_half": lambda k: random.uniform(k, (4,), "float16"),
    "bernoulli": lambda k: random.bernoulli(k, 0.3, (12,)),
    "randint": lambda k: random.randint(k, (6,), -5, 100),
    "randint8": lambda k: random.randint(k, (6,), 0, 256, "uint8"),
    "permutation": lambda k: random.permutation(k, 10),
    "permutation2000": lambda k: random.permutation(k, 2000)[:8],
    "permutation_rows": lambda k: random.permutation(k, np.arange(12).reshape(4, 3)),
    "permutation_independent": lambda k: random.permutation(k, np.arange(12).reshape(4, 3), 1, True),
    "choice": lambda k: random.choice(k, 20, (6,)),
    "choice_distinct": lambda k: random.choice(k, 20, (6,), replace=False),
    "categorical": lambda k: random.categorical(k, np.log(np.arange(1, 6, dtype=np.float32)), shape=(8,)),
    "normal": lambda k: random.normal(k, (5,)),
    "gumbel": lambda k: random.gumbel(k, (4,)),
    "exponential": lambda k: random.exponential(k, (4,)),
    "truncated_normal": lambda k: random.truncated_normal(k, -1.0, 2.0, (4,)),
}


def numbers(values):
    return np.array([float.fromhex(v) if isinstance(v, str) else v for v in values])


@pytest.mark.parametrize("counter, key, expected", VECTORS)
def test_threefry_known_answers(counter, key, expected):
    arrays = [fgrad.numpy.array([w], dtype="uint32") for w in (*key, *counter)]
    assert tuple(int(np.asarray(w)[0]) for w in threefry2x32(*arrays)) == expected


@pytest.mark.parametrize("name", KNOWN)
def test_bits_of_jax(name):
    key = random.key(42)
    got = np.asarray(DRAWS[name](key))
    np.testing.assert_array_equal(got.ravel(), numbers(KNOWN[name]).astype(got.dtype))


@pytest.mark.parametrize("name", KNOWN_ROUNDED)
def test_numbers_of_jax(name):
    np.testing.assert_allclose(
        np.asarray(DRAWS[name](random.key(42))), numbers(KNOWN_ROUNDED[name]), rtol=5e-6, atol=1e-7
    )


@pytest.mark.parametrize("name", [*KNOWN, *KNOWN_ROUNDED])
def test_compiled_is_eager(name):
    key = random.key(3)
    eager, compiled = DRAWS[name](key), fgrad.jit(DRAWS[name])(key)
    assert compiled.type == eager.type
    if name in KNOWN:
        np.testing.assert_array_equal(np.asarray(compiled), np.asarray(eager))
    else:
        np.testing.assert_allclose(np.asarray(compiled), np.asarray(eager), rtol=5e-6, atol=1e-7)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31 + 5, 2**32 + 7, np.int32(5), np.uint8(200)])
def test_key_live(jax, seed):
    np.testing.assert_array_equal(np.asarray(random.key(seed)), np.asarray(jax.random.PRNGKey(seed)))


def test_key_of_a_traced_seed():
    np.testing.assert_array_equal(np.asarray(fgrad.jit(random.key)(9)), np.asarray(random.key(9)))


@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (0, 2), (2, 3, 4)])
def test_shapes_live(jax, shape):
    ours, theirs = random.key(1), jax.random.PRNGKey(1)
    np.testing.assert_array_equal(
        np.asarray(random.bits(ours, shape)), np.asarray(jax.random.bits(theirs, shape))
    )
    np.testing.assert_array_equal(
        np.asarray(random.uniform(ours, shape)), np.asarray(jax.random.uniform(theirs, shape))
    )
    np.testing.assert_array_equal(
        np.asarray(random.split(ours, shape)), np.asarray(jax.random.split(theirs, shape))
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("low, high", [(0, 1), (-1, 1), (2.1, 9.7), (-0.3, 0.7), (5.0, 5.0)])
def test_uniform_live(jax, dtype, low, high):
    ours = random.uniform(random.key(5), (20000,), dtype, low, high)
    # On processors with float16 arithmetic XLA rounds once after a product and a sum; elsewhere after each, as operation by operation.
    with jax.disable_jit(dtype == "float16"):
        theirs = jax.random.uniform(jax.random.PRNGKey(5), (20000,), dtype, low, high)
    assert str(ours.dtype) == dtype
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_uniform_array_bounds_live(jax, rng):
    low = rng.normal(size=(3, 1)).astype(np.float32)
    high = low + rng.random(size=(5,)).astype(np.float32)
    ours = random.uniform(random.key(5), (3, 5), minval=low, maxval=high)
    theirs = jax.random.uniform(jax.random.PRNGKey(5), (3, 5), minval=low, maxval=high)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


RANGES = [(0, 10, "int32"), (-5, 2**31 - 1, "int32"), (-(2**31), 2**31 - 1, "int32"), (0, 256, "uint8")]
RANGES += [
    (-128, 128, "int8"),
    (5, 5, "int32"),
    (7, 3, "int16"),
    (0, 2**31 - 1, "uint32"),
    (-300, 300, "int8"),
]


@pytest.mark.parametrize("low, high, dtype", RANGES)
def test_randint_live(jax, low, high, dtype):
    theirs = np.asarray(jax.random.randint(jax.random.PRNGKey(8), (3000,), low, high, dtype))
    ours = random.randint(random.key(8), (3000,), low, high, dtype)
    assert ours.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(ours), theirs)
    traced = random.randint(random.key(8), (3000,), np.asarray(low), np.asarray(high), dtype)
    np.testing.assert_array_equal(np.asarray(traced), theirs)


def test_randint_64_bits_live(jax):
    with jax.enable_x64(True):
        theirs = np.asarray(jax.random.randint(jax.random.PRNGKey(8), (100,), -5, 2**50, "int64"))
    np.testing.assert_array_equal(
        np.asarray(random.randint(random.key(8), (100,), -5, 2**50, "int64")), theirs
    )


def test_randint_array_bounds_live(jax):
    low = np.arange(5, dtype=np.int32)
    ours = random.randint(random.key(2), (3, 5), low, low * low)
    theirs = jax.random.randint(jax.random.PRNGKey(2), (3, 5), low, low * low)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("n", [1, 2, 100, 1625, 1626, 5000])
def test_permutation_live(jax, n):
    ours, theirs = random.permutation(random.key(n), n), jax.random.permutation(jax.random.PRNGKey(n), n)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert sorted(np.asarray(ours)) == list(range(n))


@pytest.mark.parametrize("axis, independent", [(0, False), (1, False), (-1, True), (0, True)])
def test_permutation_of_arrays_live(jax, rng, axis, independent):
    x = rng.normal(size=(6, 4)).astype(np.float32)
    ours = random.permutation(random.key(4), x, axis, independent)
    theirs = jax.random.permutation(jax.random.PRNGKey(4), x, axis, independent)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("replace", [True, False])
def test_weighted_choice_live(jax, rng, replace):
    p = rng.random(30).astype(np.float32)
    x = rng.normal(size=(2, 30)).astype(np.float32)
    ours = random.choice(random.key(4), x, (3, 2), replace, p / p.sum(), axis=1)
    theirs = jax.random.choice(jax.random.PRNGKey(4), x, (3, 2), replace, p / p.sum(), axis=1)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_categorical_live(jax, rng):
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    ours, theirs = random.key(4), jax.random.PRNGKey(4)
    for axis, shape in [(-1, None), (0, None), (0, (9, 4)), (1, (5, 6))]:
        np.testing.assert_array_equal(
            np.asarray(random.categorical(ours, logits, axis, shape)),
            np.asarray(jax.random.categorical(theirs, logits, axis, shape)),
        )


CONTINUOUS = ["normal", "gumbel", "exponential", "laplace", "logistic", "cauchy"]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_live(jax, name):
    ours = np.asarray(getattr(random, name)(random.key(6), (5000,)))
    theirs = np.asarray(getattr(jax.random, name)(jax.random.PRNGKey(6), (5000,)))
    np.testing.assert_allclose(ours, theirs, rtol=5e-6, atol=2e-7)


def test_rademacher_live(jax):
    theirs = jax.random.rademacher(jax.random.PRNGKey(6), (50,))
    np.testing.assert_array_equal(np.asarray(random.rademacher(random.key(6), (50,))), np.asarray(theirs))


def test_vmap_over_keys_is_a_loop():
    keys = random.split(random.key(0), 4)
    for draw in (
        lambda k: random.uniform(k, (3, 2)),
        lambda k: random.split(k),
        lambda k: random.randint(k, (5,), 0, 9),
    ):
        together = fgrad.vmap(draw)(keys)
        np.testing.assert_array_equal(
            np.asarray(together), np.stack([np.asarray(draw(keys[i])) for i in range(4)])
        )


def test_moments():
    """Mean and variance of a hundred thousand draws, within five standard errors."""
    n = 100_000
    expected = {
        "uniform": (0.5, 1 / 12),
        "normal": (0.0, 1.0),
        "exponential": (1.0, 1.0),
        "laplace": (0.0, 2.0),
        "gumbel": (0.57721566, math.pi**2 / 6),
        "logistic": (0.0, math.pi**2 / 3),
    }
    for name, (mean, variance) in expected.items():
        x = np.asarray(getattr(random, name)(random.key(11), (n,))).astype(np.float64)
        assert abs(x.mean() - mean) < 5 * math.sqrt(variance / n), name
        fourth = ((x - mean) ** 4).mean()
        assert abs(((x - mean) ** 2).mean() - variance) < 5 * math.sqrt((fourth - variance**2) / n), name


def test_truncated_normal_stays_inside():
    x = np.asarray(random.truncated_normal(random.key(1), -0.01, 0.01, (5000,)))
    assert (x > -0.01).all() and (x < 0.01).all()


def test_gradients_flow_through_parameters():
    key = random.key(0)
    u = np.asarray(random.uniform(key, (4,)))
    slope = fgrad.grad(lambda high: random.uniform(key, (4,), minval=0.0, maxval=high).sum())(3.0)
    np.testing.assert_allclose(float(slope), u.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: random.uniform(0, (3,)), FgradTypeError, "expected a key"),
        (lambda: random.uniform(random.split(random.key(0)), (3,)), FgradTypeError, "fgrad.vmap"),
        (lambda: random.uniform(np.zeros(2, np.float32)), FgradTypeError, "a key is uint32"),
        (lambda: random.uniform(random.key(0), (2.5,)), FgradTypeError, "tuple of ints"),
        (lambda: random.uniform(random.key(0), (-1,)), FgradValueError, "negative"),
        (lambda: random.normal(random.key(0), (2,), "int32"), FgradTypeError, "floating point"),
        (lambda: random.key(1.5), FgradTypeError, "integer"),
        (lambda: random.bits(random.key(0), (2,), "int32"), FgradTypeError, "unsigned"),
        (lambda: random.randint(random.key(0), (2,), 0.0, 5.0), FgradTypeError, "integers"),
        (lambda: random.bernoulli(random.key(0), np.ones(3, np.float32), (2,)), FgradTypeError, "broadcast"),
        (lambda: random.choice(random.key(0), 3, (5,), replace=False), FgradValueError, "cannot draw 5"),
        (lambda: random.choice(random.key(0), 0, (5,)), FgradValueError, "nothing to draw"),
    ],
)
def test_errors_say_what_to_do(call, error, text):
    with pytest.raises(error, match=text) as info:
        call()
    assert "test_random.py" in str(info.value)
