"""Data sets."""

from fgrad_nn.data.datasets import CIFAR10, MNIST, Digits, FashionMNIST, ImageDataset
from fgrad_nn.data.download import data_root
from fgrad_nn.data.errors import DataError
from fgrad_nn.data.formats import read_idx

__all__ = ["CIFAR10", "MNIST", "DataError", "Digits", "FashionMNIST", "ImageDataset", "data_root", "read_idx"]
