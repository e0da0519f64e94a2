"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives a new file's path beside ``path``; when the block ends well, that file becomes ``path``.

    The bytes are on the disk before the name changes, so a crash, ``kill -9`` or power cut leaves the old
    ``path`` or the new one, never a mixture. A block that raises leaves ``path`` alone. A killed process
    leaves its ``.NAME.*.tmp`` behind, which nothing reads.
    """
    # Through a symbolic link the file that it points to is replaced, not the link.
    path = pathlib.Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name, so that two processes that write the same file cannot mix their bytes.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    # Windows flushes only what is open for writing; POSIX opens a folder only for reading.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
