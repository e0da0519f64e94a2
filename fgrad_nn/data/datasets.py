"""Small image data sets, each held whole in two arrays, so that a batch is one gather.

Files are looked for under ``root``, else ``$FGRAD_DATA_DIR``, else ``~/.cache/fgrad``, in the layout in which they
are published (``mnist/train-images-idx3-ubyte.gz``, ``fashion-mnist/…``, ``cifar-10-batches-bin/data_batch_1.bin``),
downloaded when absent, and checked by SHA-256 every time they are read. Nothing is unpickled.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fgrad.errors import missing_extra
from fgrad_nn.data import registry
from fgrad_nn.data.download import data_root, download, download_members, read_checked
from fgrad_nn.data.formats import decode_cifar, decode_idx


class ImageDataset:
    """Images and their labels.

    Attributes:
        images: uint8 array ``(N, C, H, W)``.
        labels: int64 array ``(N,)`` of indices into ``classes``.
        classes: the names of the classes.

    ``dataset[i]`` is ``(images[i], labels[i])`` for whatever NumPy takes as an index of the first axis: an
    integer, a slice, an array of indices.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, train: bool):
        self.images = images
        self.labels = labels
        self.train = train

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.images[index], self.labels[index]

    def __repr__(self) -> str:
        split = "train" if self.train else "test"
        shape = "×".join(map(str, self.images.shape[1:]))
        return f"{type(self).__name__}({split}: {len(self):,} images {shape}, {len(self.classes)} classes)"


class _IdxDataset(ImageDataset):
    files: dict[str, registry.RemoteFile] = {}

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        download: bool = True,
        progress: bool = True,
    ):
        prefix = "train" if train else "t10k"
        images = self._read(f"{prefix}-images-idx3-ubyte.gz", root, download, progress)
        labels = self._read(f"{prefix}-labels-idx1-ubyte.gz", root, download, progress)
        super().__init__(images[:, None], labels.astype(np.int64), train=train)

    def _read(self, name: str, root: Any, fetch: bool, progress: bool) -> np.ndarray:
        file, folder = self.files[name], data_root(root)
        path = folder / file.name
        if fetch and not path.exists():
            download(file, folder, progress=progress)
        return decode_idx(read_checked(path, file), os.fspath(path))


class MNIST(_IdxDataset):
    """Handwritten digits, 60,000 for training and 10,000 for testing, ``(N, 1, 28, 28)``.

    Y. LeCun, C. Cortes, C. J. C. Burges, http://yann.lecun.com/exdb/mnist.

    Args:
        root: the folder that has ``mnist/``; by default ``$FGRAD_DATA_DIR``, else ``~/.cache/fgrad``.
        train: the training images, or the test images.
        download: get absent files; otherwise they are an error.
        progress: show a progress bar while downloading (needs tqdm, extra ``data``).

    Raises:
        DataError: a file is absent, truncated, damaged, or cannot be downloaded.
    """

    files = registry.MNIST
    classes = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


class FashionMNIST(_IdxDataset):
    """Pictures of clothing, 60,000 for training and 10,000 for testing, ``(N, 1, 28, 28)``.

    H. Xiao, K. Rasul, R. Vollgraf 2017, arXiv:1708.07747. Arguments and errors as for `MNIST`; the folder is
    ``fashion-mnist/``.
    """

    files = registry.FASHION_MNIST
    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )


class CIFAR10(ImageDataset):
    """Colour photographs of ten kinds of things, 50,000 for training and 10,000 for testing, ``(N, 3, 32, 32)``.

    A. Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html, the binary version. Arguments and errors as
    for `MNIST`; the folder is ``cifar-10-batches-bin/``. The download is 170 MB.
    """

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        download: bool = True,
        progress: bool = True,
    ):
        folder = data_root(root)
        files = [file for file in registry.CIFAR10.members if ("test" in file.name) != train]
        if download and not all((folder / file.name).exists() for file in files):
            download_members(registry.CIFAR10, folder, progress=progress)
        images, labels = [], []
        for file in files:
            path = folder / file.name
            batch = decode_cifar(read_checked(path, file), os.fspath(path))
            images.append(batch[0])
            labels.append(batch[1])
        super().__init__(np.concatenate(images), np.concatenate(labels), train=train)


class Digits(ImageDataset):
    """Handwritten digits that scikit-learn brings along, 1,437 for training and 360 for testing, ``(N, 1, 8, 8)``.

    E. Alpaydin, C. Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI. Needs no network. The grey
    levels 0 to 16 are scaled to 0 to 255, as in the other data sets; the split is a fixed permutation.

    Raises:
        ImportError: scikit-learn is not installed (extra ``examples``).
    """

    classes = MNIST.classes
    test_size = 360

    def __init__(self, train: bool = True):
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise missing_extra("scikit-learn", "examples", "Digits") from error
        bundle = load_digits()
        levels = np.asarray(bundle.images)
        # RandomState, since its stream is frozen for good (NEP 19); that of default_rng is not.
        order = np.random.RandomState(0).permutation(len(levels))
        rows = order[: -self.test_size] if train else order[-self.test_size :]
        images = np.rint(levels[rows] * (255 / 16)).astype(np.uint8)
        super().__init__(images[:, None], np.asarray(bundle.target)[rows].astype(np.int64), train=train)
