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
import json
import os
import platform
import struct
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

_MAGIC = b"FGRADC01"
_HEADER = struct.Struct("<8sQ32s")
_SUFFIX = ".fgrad"
_ABANDONED = 3600.0  # seconds after which an unfinished file has no writer any more
MAX_BYTES = 1 << 30


@dataclass
class Entry:
    meta: dict[str, Any]
    object_code: bytes


def enabled() -> bool:
    return os.environ.get("FGRAD_CACHE", "1") not in ("0", "off", "no", "false")


def directory() -> Path:
    chosen = os.environ.get("FGRAD_CACHE_DIR")
    return Path(chosen) if chosen else Path(os.path.expanduser("~")) / ".cache" / "fgrad" / "programs"


@lru_cache(maxsize=1)
def environment() -> str:
    """Everything besides the program that decides its object code: tools, Python, and fgrad's own code generator."""
    digest = hashlib.sha256()
    for name in ("numba", "llvmlite", "numpy", "ml_dtypes"):
        digest.update(f"{name} {metadata.version(name)}\n".encode())
    digest.update(f"{platform.python_version()} {platform.system()} {platform.machine()}\n".encode())
    package = Path(__file__).resolve().parents[1]
    for path in [*sorted((package / "codegen").glob("*.py")), package / "runtime" / "native.py"]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
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
    path = directory() / (key + _SUFFIX)
    try:
        data = path.read_bytes()
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
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(_HEADER.pack(_MAGIC, len(payload), hashlib.sha256(payload).digest()))
            file.write(payload)
        os.replace(temporary, folder / (key + _SUFFIX))
    except OSError:
        if temporary is not None:
            _remove(Path(temporary))
        return False
    trim(folder, MAX_BYTES)
    return True


def trim(folder: Path, limit: int) -> None:
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
                        _remove(Path(item.path))
                elif item.name.endswith(_SUFFIX):
                    entries.append((info.st_mtime, info.st_size, item.path))
    except OSError:
        return
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        _remove(Path(path))
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


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
