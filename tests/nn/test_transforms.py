"""Transforms of whole batches against NumPy, one image at a time; and compiled against eager."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import random
from fgrad_nn.data import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToFloat
from fgrad_nn.data.transforms import takes_key

AUGMENT = Compose(
    [RandomCrop(8, padding=2), RandomHorizontalFlip(), ToFloat(), Normalize((0.5, 0.4, 0.3), 0.2)]
)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (6, 3, 8, 8), np.uint8)


def test_to_float_scales_by_the_largest_value_of_the_dtype(images):
    np.testing.assert_allclose(ToFloat()(images), images / np.float32(255), rtol=1e-6)
    assert ToFloat("float64")(images).dtype == np.float64
    sixteen = np.array([[0, 65535]], np.uint16)
    np.testing.assert_array_equal(ToFloat()(sixteen), [[0.0, 1.0]])
    half = ToFloat("float16")(np.array([0, 255], np.uint8))
    assert half.dtype == np.float16 and half.tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(ToFloat()(np.array([2.5], np.float64)), np.array([2.5], np.float32))


@pytest.mark.parametrize("mean, std", [(0.5, 0.25), ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)), ([0.5, 0.4, 0.3], 2)])
def test_normalize(images, mean, std):
    x = (images / 255).astype(np.float32)
    column = lambda v: np.asarray(v, np.float32).reshape(-1, 1, 1)
    expected = (x - column(mean)) / column(std)
    np.testing.assert_allclose(Normalize(mean, std)(x), expected, rtol=1e-6, atol=1e-6)


def test_to_float_and_normalize_as_torch_computes_them(images, torch):
    x = torch.from_numpy(images).float().div(255)
    expected = x.sub(torch.tensor([0.5, 0.4, 0.3]).view(-1, 1, 1)).div(
        torch.tensor([0.1, 0.2, 0.3]).view(-1, 1, 1)
    )
    got = fgrad.jit(Compose([ToFloat(), Normalize((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))]))(images)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-6, atol=1e-6)


def padded_by_numpy(image, padding, fill=0, mode="constant"):
    how = {"constant_values": fill} if mode == "constant" else {}
    return np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode, **how)


def windows(image, size, padding, fill, mode):
    """Every window of the padded image, by its corner."""
    padded = padded_by_numpy(image, padding, fill, mode)
    rows, columns = (n - s + 1 for n, s in zip(padded.shape[1:], size))
    return {(r, c): padded[:, r : r + size[0], c : c + size[1]] for r in range(rows) for c in range(columns)}


@pytest.mark.parametrize(
    "size, padding, fill, mode",
    [(8, 2, 0, "constant"), (5, 0, 0, "constant"), ((6, 9), 1, 7, "constant"), (10, 1, 3, "constant")]
    + [(8, 2, 0, "reflect"), ((6, 18), 5, 0, "reflect")],
)
def test_random_crop_is_a_window_of_the_padded_image(images, size, padding, fill, mode):
    pair = (size, size) if isinstance(size, int) else size
    many = np.concatenate([images] * 20)
    got = np.asarray(fgrad.jit(RandomCrop(size, padding, fill, mode))(many, random.key(3)))
    assert got.shape == (120, 3, *pair) and got.dtype == np.uint8
    corners = set()
    for image, crop in zip(many, got):
        here = [
            corner for corner, w in windows(image, pair, padding, fill, mode).items() if (w == crop).all()
        ]
        assert len(here) == 1
        corners.update(here)
    rows, columns = (8 + 2 * padding - s + 1 for s in pair)
    # The places are drawn, for each image on its own: of few possible ones each occurs.
    assert len(corners) == rows * columns if rows * columns <= 10 else len(corners) > 10


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_augmentation_step_by_step(rng, mode):
    """A batch of CIFAR-10's shape out of a data set, as NumPy does it with the same draws."""
    data, index, key = (
        rng.integers(0, 256, (40, 3, 32, 32), np.uint8),
        rng.permutation(40)[:16],
        random.key(11),
    )
    mean, std = np.float32([0.49, 0.48, 0.44]), np.float32([0.25, 0.24, 0.26])
    augment = Compose(
        [RandomCrop(32, 4, mode=mode), RandomHorizontalFlip(), ToFloat(), Normalize(tuple(mean), tuple(std))]
    )
    got = fgrad.jit(lambda data, index, key: augment(data[index], key))(data, index, key)
    crop_key, flip_key = random.fold_in(key, 0), random.fold_in(key, 1)
    rows, columns = (np.asarray(random.randint(k, (16, 1), 0, 9))[:, 0] for k in random.split(crop_key))
    mirrored = np.asarray(random.bernoulli(flip_key, 0.5, (16,)))
    assert len(set(rows)) > 3 and len(set(columns)) > 3 and 0 < mirrored.sum() < 16
    for n, x in enumerate(data[index]):
        window = padded_by_numpy(x, 4, 0, mode)[:, rows[n] :, columns[n] :][:, :32, :32]
        window = window[..., ::-1] if mirrored[n] else window
        expected = (window / np.float32(255) - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(got[n], expected, rtol=1e-6, atol=1e-6)


def test_a_batch_is_made_in_one_pass_over_its_pixels():
    """Gathered, cropped, mirrored and normalised by one loop nest; the others draw numbers, one an image."""
    data, crop = np.zeros((100, 3, 32, 32), np.uint8), RandomCrop(32, padding=4)
    augment = Compose([crop, *AUGMENT.transforms[1:]])
    step = fgrad.jit(lambda x, index, key: augment(x[index], key))
    text = step.lower(data, np.arange(64), random.key(0)).show("kernels")
    nests = [k for k in text.split("def ") if k.count("for i") > 1]
    assert len(nests) == 1
    code = [line for line in nests[0].splitlines() if not line.lstrip().startswith("#")]
    assert sum("] = " in line for line in code) == 1 and not any("status" in line for line in code)


def test_random_flip_mirrors_whole_images(images):
    many = np.concatenate([images] * 50)
    got = np.asarray(RandomHorizontalFlip(0.25)(many, random.key(0)))
    mirrored = np.array([(a == b[..., ::-1]).all() for a, b in zip(got, many)])
    kept = np.array([(a == b).all() for a, b in zip(got, many)])
    assert (mirrored ^ kept).all()
    assert 0.17 < mirrored.mean() < 0.33
    np.testing.assert_array_equal(mirrored, random.bernoulli(random.key(0), 0.25, (300,)))
    np.testing.assert_array_equal(RandomHorizontalFlip(1)(images, random.key(0)), images[..., ::-1])


@pytest.mark.parametrize(
    "transform", [AUGMENT, RandomCrop(5), RandomHorizontalFlip(), AUGMENT.transforms[0]], ids=repr
)
def test_compiled_equals_eager(images, transform):
    for n in (6, 1):  # a smaller last batch is a second program
        eager = np.asarray(transform(images[:n], random.key(5)))
        compiled = np.asarray(fgrad.jit(transform)(images[:n], random.key(5)))
        np.testing.assert_allclose(compiled, eager, rtol=1e-6, atol=1e-6)
        assert compiled.dtype == eager.dtype


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("width", [3, 13, 28, 37, 64])
def test_compiled_equals_eager_at_any_width(rng, width, mode):
    """Rows of whole vectors, and rows that end in part of one, read forwards and backwards."""
    images = rng.integers(0, 256, (9, 2, 5, width), np.uint8)
    transform = Compose([RandomCrop((5, width), 2, mode=mode), RandomHorizontalFlip()])
    for x in (images, images.astype(np.float32)):
        eager = np.asarray(transform(x, random.key(1)))
        np.testing.assert_array_equal(fgrad.jit(transform)(x, random.key(1)), eager)


def test_equal_keys_give_equal_batches_and_other_keys_others(images):
    one, same, other = (np.asarray(AUGMENT(images, random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_compose_gives_each_random_transform_a_key_of_its_own(images):
    seen = []

    def draw(x, key):
        seen.append(np.asarray(key).tolist())
        return x

    Compose([draw, ToFloat(), draw])(images, random.key(0))
    assert len(seen) == 2 and seen[0] != seen[1]
    first = list(seen)
    Compose([draw, ToFloat(), draw, draw])(images, random.key(0))
    assert seen[2:4] == first  # what comes later changes nothing


def test_which_transforms_take_a_key():
    assert takes_key(AUGMENT) and takes_key(RandomCrop(3)) and takes_key(lambda x, key: x)
    assert (
        not takes_key(Compose([ToFloat(), fnp.negative]))
        and not takes_key(ToFloat())
        and not takes_key(lambda x: x)
    )
    assert takes_key(Compose([ToFloat(), Compose([RandomHorizontalFlip()])]))
    assert takes_key(fgrad.jit(lambda x, key: x))


def test_transforms_are_values():
    assert RandomCrop(32, padding=4) == RandomCrop(32, padding=4)
    assert Compose([ToFloat()]) == Compose((ToFloat(),)) and hash(AUGMENT) == hash(AUGMENT)
    assert repr(Normalize([0.5], 1)) == "Normalize(mean=(0.5,), std=1.0)"
    with pytest.raises(AttributeError):
        RandomCrop(32).size = 3


@pytest.mark.parametrize(
    "transform, shape, text",
    [
        (
            RandomCrop(9),
            (2, 3, 8, 8),
            r"RandomCrop: a window of \(9, 9\) does not fit images of \(8, 8\) with padding 0",
        ),
        (
            RandomCrop(3),
            (3, 8, 8),
            r"takes a batch of images \(N, C, H, W\), got float32\[3,8,8\][\s\S]*images\[None\]",
        ),
        (RandomCrop(8, 8, mode="reflect"), (2, 3, 8, 9), r"\(8, 9\) cannot be mirrored 8 pixels wide"),
        (RandomHorizontalFlip(), (8, 8), r"RandomHorizontalFlip: takes a batch"),
        (Normalize((0.5, 0.5), 1), (2, 3, 8, 8), r"2 numbers in mean for images of shape \(2, 3, 8, 8\)"),
        (Normalize(0.5, (1, 1)), (2, 3, 8, 8), r"2 numbers in std"),
    ],
)
def test_errors_of_shape(transform, shape, text):
    x = np.zeros(shape, np.float32)
    with pytest.raises(fgrad.FgradError, match=text) as caught:
        transform(x, random.key(0)) if takes_key(transform) else transform(x)
    assert "test_transforms.py" in str(caught.value)


def test_other_errors(images):
    with pytest.raises(TypeError, match=r"put ToFloat\(\) before it"):
        Normalize(0.5, 0.5)(images)
    with pytest.raises(TypeError, match="RandomCrop: draws random numbers and got no key"):
        AUGMENT(images)
    with pytest.raises(ValueError, match="divide by zero"):
        Normalize(0.5, (1, 0, 1))
    with pytest.raises(ValueError, match=r"p=1\.5 is not a probability"):
        RandomHorizontalFlip(1.5)
    with pytest.raises(TypeError, match=r"ToFloat is a class[\s\S]*give an instance"):
        Compose([ToFloat])
    with pytest.raises(TypeError, match="int 3 is not a transform"):
        Compose([3])
    with pytest.raises(TypeError, match="not a list of transforms"):
        Compose(ToFloat())
    with pytest.raises(TypeError, match="dtype='int32'"):
        ToFloat("int32")
    with pytest.raises(TypeError, match="mean=str 'a'"):
        Normalize("a", 0.5)
    with pytest.raises(ValueError, match="2 numbers in mean and 3 in std"):
        Normalize((0.5, 0.5), (1, 1, 1))
    with pytest.raises(ValueError, match="mode='edge'"):
        RandomCrop(3, mode="edge")
    for wrong in ({"size": -1}, {"size": 2.5}, {"size": (1, 2, 3)}, {"size": 2, "padding": -1}):
        with pytest.raises(ValueError, match="RandomCrop"):
            RandomCrop(**wrong)
