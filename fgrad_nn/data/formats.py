"""The two file formats that the data sets are published in, decoded from bytes: IDX and CIFAR's binary records.

Nothing is unpickled: both are plain headers and bytes.
"""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import zlib

import numpy as np

from fgrad.errors import message
from fgrad_nn.data.errors import DataError

# http://yann.lecun.com/exdb/mnist: the third byte of the magic number names the element type.
IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

CIFAR_SHAPE = (3, 32, 32)


def decode_idx(data: bytes, name: str) -> np.ndarray:
    """The array in an IDX file's bytes: two zero bytes, a type code, the number of axes, their sizes, elements.

    ``data`` may be gzip-compressed. ``name`` stands for the file in error messages. The array has the
    machine's byte order and may be written to.

    Raises:
        DataError: compressed data that is damaged, a wrong magic number, too few or too many bytes.
    """

    def wrong(problem: str) -> DataError:
        return DataError(message("read_idx", f"{name}: {problem}", "replace the file by an undamaged copy"))

    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise wrong(f"the gzip data is truncated or damaged ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_DTYPES:
        raise wrong(f"not an IDX file: it starts with {data[:4].hex(' ') or 'nothing'}, expected 00 00 08 ..")
    dtype, ndim = np.dtype(IDX_DTYPES[data[2]]), data[3]
    start = 4 + 4 * ndim
    if len(data) < start:
        raise wrong(f"{len(data):,} bytes end within the header, which is {start} bytes for {ndim} axes")
    shape = tuple(np.frombuffer(data, ">u4", ndim, 4).tolist())
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise wrong(f"{len(data):,} bytes, but the header says {shape} of {dtype.name}, {expected:,} bytes")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, such as those of MNIST and its relatives, plain or gzip-compressed.

    Raises:
        DataError: the file is truncated, damaged, or not an IDX file.
        FileNotFoundError: there is no such file.
    """
    return decode_idx(pathlib.Path(path).read_bytes(), os.fspath(path))


def decode_cifar(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``(N, 3, 32, 32)`` and labels int64 ``(N,)`` from the records of CIFAR-10's binary version.

    A record is one label byte and 3072 pixel bytes, the red, green and blue planes
    (https://www.cs.toronto.edu/~kriz/cifar.html).

    Raises:
        DataError: not a whole number of records, or a label above 9.
    """
    size = 1 + math.prod(CIFAR_SHAPE)
    fix = "replace the file by an undamaged copy of CIFAR-10's binary version"
    if len(data) % size:
        problem = f"{name}: {len(data):,} bytes are not a whole number of {size}-byte records"
        raise DataError(message("decode_cifar", problem, fix))
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    labels = records[:, 0].astype(np.int64)
    if labels.size and labels.max() > 9:
        row = int(labels.argmax())
        problem = f"{name}: record {row} has the label {labels[row]}; CIFAR-10 has 0 to 9"
        raise DataError(message("decode_cifar", problem, fix))
    return records[:, 1:].reshape(-1, *CIFAR_SHAPE).copy(), labels
