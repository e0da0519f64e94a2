"""Data sets, batches of them, and what is done to the images of a batch."""

from fgrad_nn.data.datasets import CIFAR10, MNIST, Digits, FashionMNIST, ImageDataset
from fgrad_nn.data.download import data_root
from fgrad_nn.data.errors import DataError
from fgrad_nn.data.formats import read_idx
from fgrad_nn.data.loader import DataLoader
from fgrad_nn.data.prefetch import Batches
from fgrad_nn.data.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToFloat

__all__ = [
    "CIFAR10",
    "Compose",
    "DataError",
    "Batches",
    "DataLoader",
    "Digits",
    "FashionMNIST",
    "ImageDataset",
    "MNIST",
    "Normalize",
    "RandomCrop",
    "RandomHorizontalFlip",
    "ToFloat",
    "data_root",
    "read_idx",
]
