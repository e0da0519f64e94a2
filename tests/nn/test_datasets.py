"""The data sets: on small files of the same formats, on damaged ones, and on the real ones where they are at hand."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
import sys

import numpy as np
import pytest

from fgrad_nn.data import CIFAR10, MNIST, DataError, Digits, FashionMNIST, data_root, read_idx
from fgrad_nn.data.formats import decode_cifar, decode_idx
from fgrad_nn.data.registry import RemoteFile

# The first labels of the two parts of Digits.
FIRST_TRAIN = [2, 8, 2, 6, 6, 7, 1, 9, 8, 5]
FIRST_TEST = [7, 9, 4, 7, 0, 2, 6, 1, 3, 1]

CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}


def idx(array: np.ndarray) -> bytes:
    code = next(code for kind, code in CODES.items() if np.dtype(kind) == array.dtype)
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_idx_round_trip(kind, shape, rng, tmp_path):
    array = rng.integers(0, 100, shape).astype(kind)
    for data in (idx(array), gzip.compress(idx(array))):
        (tmp_path / "file").write_bytes(data)
        got = read_idx(tmp_path / "file")
        np.testing.assert_array_equal(got, array, strict=False)
        assert got.dtype == array.dtype.newbyteorder("=") and got.flags.writeable


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "nothing"),
        (b"PK\x03\x04....", "50 4b 03 04"),
        (b"\0\0\x07\x01....", "not an IDX file"),
        (b"\0\0\x08\x03\0\0", "end within the header"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"17 bytes, but the header says \(2, 3\) of uint8, 18 bytes"),
        (idx(np.zeros((2, 3), np.uint8)) + b"!", "19 bytes"),
        (gzip.compress(idx(np.zeros(100, np.uint8)), mtime=0)[:-9], "truncated or damaged"),
        (b"\x1f\x8b\x08\0garbage", "truncated or damaged"),
    ],
)
def test_bad_idx_files_are_named(data, problem):
    with pytest.raises(DataError, match=problem) as caught:
        decode_idx(data, "some/file")
    assert "some/file" in str(caught.value)


def test_cifar_records(rng):
    images, labels = rng.integers(0, 256, (5, 3, 32, 32), np.uint8), np.array([0, 9, 3, 3, 1])
    data = b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))
    got = decode_cifar(data, "batch.bin")
    np.testing.assert_array_equal(got[0], images)
    np.testing.assert_array_equal(got[1], labels)
    with pytest.raises(DataError, match="not a whole number of 3073-byte records"):
        decode_cifar(data[:-1], "batch.bin")
    with pytest.raises(DataError, match="record 1 has the label 200"):
        decode_cifar(data[:3073] + b"\xc8" + data[3074:], "batch.bin")


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("FGRAD_DATA_DIR", "/from/env")
    assert str(data_root()) == "/from/env"
    assert data_root(tmp_path) == tmp_path
    monkeypatch.delenv("FGRAD_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root() == tmp_path / ".cache" / "fgrad"
    assert data_root("~/sets") == tmp_path / "sets"


@pytest.fixture
def small_mnist(tmp_path, monkeypatch, rng):
    """Five training images in MNIST's layout, known to the registry; gives the folder and the arrays."""
    images, labels = rng.integers(0, 256, (5, 28, 28), np.uint8), np.array([5, 0, 4, 1, 9], np.uint8)
    files = {}
    (tmp_path / "mnist").mkdir()
    for name, array in {"images-idx3": images, "labels-idx1": labels}.items():
        data, name = gzip.compress(idx(array)), f"train-{name}-ubyte.gz"
        (tmp_path / "mnist" / name).write_bytes(data)
        files[name] = RemoteFile(f"mnist/{name}", len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(MNIST, "files", files)
    return tmp_path, images, labels


def test_mnist_layout(small_mnist, monkeypatch):
    root, images, labels = small_mnist
    monkeypatch.setenv("FGRAD_DATA_DIR", str(root))
    data = MNIST()
    assert data.images.shape == (5, 1, 28, 28) and data.images.dtype == np.uint8
    assert data.labels.dtype == np.int64 and len(data) == 5
    np.testing.assert_array_equal(data.images[:, 0], images)
    image, label = data[2]
    np.testing.assert_array_equal(image[0], images[2])
    assert label == 4 and data.classes[label] == "4"
    batch, targets = data[np.array([3, 0])]
    np.testing.assert_array_equal(batch[:, 0], images[[3, 0]])
    np.testing.assert_array_equal(targets, labels[[3, 0]])
    assert repr(data) == "MNIST(train: 5 images 1×28×28, 10 classes)"


def test_damaged_files_are_refused_and_kept(small_mnist):
    root, _, _ = small_mnist
    path = root / "mnist" / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    for content, kind in ((whole[:1000], "truncated"), (flipped, "damaged"), (b"", "truncated")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=kind) as caught:
            MNIST(root)
        text = str(caught.value)
        assert str(path) in text and f"delete {path}" in text
        assert hashlib.sha256(content).hexdigest() in text and hashlib.sha256(whole).hexdigest() in text
        assert f"{len(content):,} bytes" in text and f"{len(whole):,} bytes" in text
        assert path.read_bytes() == content


@pytest.mark.parametrize("dataset", [MNIST, FashionMNIST, CIFAR10])
def test_absent_files(dataset, tmp_path):
    with pytest.raises(DataError, match="FGRAD_DATA_DIR") as caught:
        dataset(tmp_path, download=False)
    assert "does not exist" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_every_file_has_an_encrypted_mirror():
    for file in (*MNIST.files.values(), *FashionMNIST.files.values()):
        assert file.urls[0].startswith("https://") and file.urls[0].endswith(file.name.split("/")[-1])


def test_digits():
    train, test = Digits(), Digits(train=False)
    assert train.images.shape == (1437, 1, 8, 8) and test.images.shape == (360, 1, 8, 8)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int64
    assert train.images.max() == 255 and train.images.min() == 0
    # Together they are scikit-learn's set, each image once.
    from sklearn.datasets import load_digits

    def rows(images, labels):
        return sorted(zip(map(bytes, images.reshape(len(images), -1)), labels.tolist(), strict=True))

    levels = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    both = np.concatenate([train.images, test.images]), np.concatenate([train.labels, test.labels])
    assert rows(*both) == rows(levels, load_digits().target)
    # The split is the same on every machine.
    assert train.labels[:10].tolist() == FIRST_TRAIN and test.labels[:10].tolist() == FIRST_TEST
    assert np.bincount(test.labels).min() >= 28


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'fgrad\[examples\]'"):
        Digits()


@pytest.mark.parametrize("train", [True, False])
def test_real_mnist_and_fashion(data_dir, train):
    for dataset, first in ((MNIST, [5, 0, 4, 1, 9] if train else [7, 2, 1, 0, 4]), (FashionMNIST, None)):
        data = dataset(data_dir, train=train, download=False)
        assert data.images.shape == (60_000 if train else 10_000, 1, 28, 28)
        if first:
            assert data.labels[:5].tolist() == first
        else:
            assert (np.bincount(data.labels) == len(data) // 10).all()
    if train:
        # The mean and deviation that every tutorial normalises MNIST with.
        mnist = MNIST(data_dir, download=False).images / 255
        assert round(mnist.mean(), 4) == 0.1307 and round(mnist.std(), 4) == 0.3081


def test_real_cifar10(data_dir):
    data = CIFAR10(data_dir, train=False, download=False)
    assert data.images.shape == (10_000, 3, 32, 32)
    assert (np.bincount(data.labels) == 1000).all()
    assert [data.classes[i] for i in data.labels[:4]] == ["cat", "ship", "ship", "airplane"]


def test_real_truncated_file(data_dir, tmp_path):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(DataError, match="truncated: it has 1,000,000 bytes"):
        MNIST(tmp_path, train=False)


def test_a_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot be read: [\s\S]*test_datasets\.py[\s\S]*published file"):
        MNIST(tmp_path, train=False, download=False)
