"""Object code on disk, shared by processes.

One file an entry, `<key>.fgrad`: a magic number, the payload's length and SHA-256, then the payload: meta data as JSON and the
object code. A file is written under another name and moved into place, so readers see all of it or nothing, however many
processes write at once and whenever they are killed. A file that is not what its header says is reported, removed and
made again. A cache that cannot be written (read-only home, full disk) is no error: programs are then compiled each time.

`FGRAD_CACHE_DIR` is the directory (default `~/.cache/fgrad/programs`); `FGRAD_CACHE=0` turns the cache off.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import struct
import sys
import time
import warnings
from functools import lru_cache
from typing import Any, NamedTuple

_MAGIC = b"FGRADC01"
_HEADER = struct.Struct("<8sQ32s")
_SUFFIX = ".fgrad"
_ABANDONED = 3600.0  # seconds after which an unfinished file has no writer any more
MAX_BYTES = 1 << 30


class Entry(NamedTuple):
    meta: dict[str, Any]
    object_code: bytes


def enabled() -> bool:
    return os.environ.get("FGRAD_CACHE", "1") not in ("0", "off", "no", "false")


def directory() -> str:
    chosen = os.environ.get("FGRAD_CACHE_DIR")
    return chosen or os.path.join(os.path.expanduser("~"), ".cache", "fgrad", "programs")


def _version_file(package: str) -> bytes:
    """The file that says which version of a package is installed. Neither importing Numba nor `importlib.metadata` (an
    e-mail parser) is quick enough for every start."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        raise ModuleNotFoundError(f"fgrad needs {package}: pip install {package}", name=package)
    folder = os.path.dirname(spec.origin)
    for name in ("_version.py", "version.py", "__init__.py"):
        try:
            with open(os.path.join(folder, name), "rb") as file:
                return file.read()
        except OSError:
            continue
    return spec.origin.encode()


@lru_cache(maxsize=1)
def environment() -> str:
    """Everything besides the program that decides its object code: tools, Python, and fgrad's own code generator."""
    digest = hashlib.sha256()
    for name in ("numba", "llvmlite", "numpy", "ml_dtypes"):
        digest.update(name.encode() + b"\0" + _version_file(name))
    machine = os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")
    digest.update(f"{sys.version} {sys.platform} {machine}\n".encode())
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folder = os.path.join(package, "codegen")
    sources = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".py")]
    for path in [*sources, os.path.join(package, "runtime", "native.py")]:
        with open(path, "rb") as file:
            digest.update(os.path.basename(path).encode() + b"\0" + file.read())
    return digest.hexdigest()


def entry_key(*parts: str) -> str:
    """The name of the entry for these texts (program, target, options) in this environment."""
    digest = hashlib.sha256(environment().encode())
    for part in parts:
        digest.update(f"\0{len(part)}\0".encode())
        digest.update(part.encode())
    return digest.hexdigest()


def load(key: str) -> Entry | None:
    """The entry, or None if there is none (or none that is whole: then a warning names the file)."""
    if not enabled():
        return None
    path = os.path.join(directory(), key + _SUFFIX)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    try:
        entry = _decode(data)
    except ValueError as problem:
        warnings.warn(
            f"fgrad: the cached program {path} is damaged ({problem}); it is compiled again", stacklevel=2
        )
        _remove(path)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used now: eviction goes by age
    return entry


def store(key: str, meta: dict[str, Any], object_code: bytes) -> bool:
    """Write an entry; False if the cache is off or cannot be written."""
    if not enabled():
        return False
    folder = directory()
    text = json.dumps(meta, sort_keys=True).encode()
    payload = struct.pack("<I", len(text)) + text + object_code
    temporary = os.path.join(folder, f".writing-{os.getpid()}-{os.urandom(8).hex()}")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(_HEADER.pack(_MAGIC, len(payload), hashlib.sha256(payload).digest()))
            file.write(payload)
        os.replace(temporary, os.path.join(folder, key + _SUFFIX))
    except OSError:
        _remove(temporary)
        return False
    trim(folder, MAX_BYTES)
    return True


def trim(folder: str | os.PathLike[str], limit: int) -> None:
    """Remove the entries used longest ago until the rest fits into `limit` bytes, and what killed writers left behind."""
    entries: list[tuple[float, int, str]] = []
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                try:
                    info = item.stat()
                except OSError:
                    continue  # another process was faster
                if item.name.startswith(".writing-"):
                    if time.time() - info.st_mtime > _ABANDONED:
                        _remove(item.path)
                elif item.name.endswith(_SUFFIX):
                    entries.append((info.st_mtime, info.st_size, item.path))
    except OSError:
        return
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        _remove(path)
        total -= size


def _decode(data: bytes) -> Entry:
    if len(data) < _HEADER.size:
        raise ValueError(f"it has {len(data)} bytes, less than a header")
    magic, length, expected = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if magic != _MAGIC:
        raise ValueError("it does not begin as a cached program does")
    if len(payload) != length:
        raise ValueError(f"it holds {len(payload)} of {length} bytes")
    if hashlib.sha256(payload).digest() != expected:
        raise ValueError("its content does not have the SHA-256 in its header")
    (text,) = struct.unpack_from("<I", payload)
    return Entry(json.loads(payload[4 : 4 + text]), payload[4 + text :])


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)
