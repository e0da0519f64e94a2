"""Getting published files onto the disk: resumed after a broken connection, checked by SHA-256, all or nothing.

A download grows in ``NAME.part`` and takes its real name only when it is complete and its SHA-256 is right. What a
broken connection has left in ``NAME.part`` is continued by the next attempt (an HTTP ``Range`` request), from
any mirror, also in a later process: the final SHA-256 vouches for the whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import pathlib
import sys
import tarfile
import time
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Iterator

from fgrad.errors import message, missing_extra
from fgrad_nn.atomic import replacing, sync
from fgrad_nn.data.errors import DataError
from fgrad_nn.data.registry import Archive, RemoteFile

if sys.platform != "win32":
    import fcntl

BLOCK = 1 << 18
TIMEOUT = 30.0  # seconds without a byte


def data_root(root: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The folder that holds the data sets: ``root``, else ``$FGRAD_DATA_DIR``, else ``~/.cache/fgrad``."""
    if root is None:
        root = os.environ.get("FGRAD_DATA_DIR") or pathlib.Path.home() / ".cache" / "fgrad"
    return pathlib.Path(root).expanduser()


def download(
    file: RemoteFile,
    root: pathlib.Path,
    *,
    progress: bool = True,
    rounds: int = 3,
    pause: float = 1.0,
) -> pathlib.Path:
    """Get ``file`` from the first mirror that delivers it; returns its path ``root / file.name``.

    A file that is there already is left as it is, unread. Each round tries every mirror; ``pause`` seconds
    lie between the first two rounds and twice as many between the next. A mirror that delivers wrong bytes is not
    asked again.

    Raises:
        DataError: no mirror delivered the right bytes; the message has each mirror's reason.
        ImportError: a progress bar is wanted and tqdm is not installed.
    """
    path = root / file.name
    part = path.with_name(path.name + ".part")
    failures: list[str] = []
    urls = list(file.urls)
    with _alone_in(path.parent):
        if path.exists():
            return path  # by another process, while this one waited
        for attempt in range(rounds):
            if attempt and urls:
                time.sleep(pause * 2 ** (attempt - 1))
            for url in tuple(urls):
                try:
                    fresh = _receive(url, part, file, progress)
                    wrong = difference(part, file)
                except (OSError, http.client.HTTPException) as error:
                    failures.append(f"{url}: {_reason(error)}")
                    continue
                if wrong is None:
                    sync(part)
                    os.replace(part, path)
                    return path
                part.unlink()
                failures.append(f"{url}: {wrong}; these bytes were discarded")
                warnings.warn(f"download of {path}: {failures[-1]}", stacklevel=2)
                if fresh:  # otherwise the bytes that were there before may be the wrong ones
                    urls.remove(url)
    reasons = "".join(f"\n    {failure}" for failure in failures)
    kept = f" ({part.stat().st_size:,} bytes are kept in {part} and continued)" if part.exists() else ""
    fix = f"check the connection and call again{kept}, or put the published file at {path} yourself"
    raise DataError(message("download", f"{path} could not be downloaded:{reasons}", fix))


def download_members(
    archive: Archive, root: pathlib.Path, *, progress: bool = True, rounds: int = 3, pause: float = 1.0
) -> None:
    """Get an archive and take its named members out of it, each checked by SHA-256; the archive is removed then.

    Nothing else in the archive is written, and no name from inside it is used as a path. Members that are on
    the disk already are left as they are.

    Raises:
        DataError: the archive cannot be downloaded, or lacks a member or has it with other bytes.
    """
    path = download(archive.file, root, progress=progress, rounds=rounds, pause=pause)
    wanted = {member.name: member for member in archive.members}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for entry in tar:
                member = wanted.pop(entry.name, None)
                if member is None or (root / member.name).exists():
                    continue
                stream = tar.extractfile(entry) if entry.isreg() and entry.size == member.size else None
                data = stream.read() if stream else b""
                if len(data) != member.size or hashlib.sha256(data).hexdigest() != member.sha256:
                    raise tarfile.ReadError(f"its member {member.name} is not the published one")
                with replacing(root / member.name) as temporary:
                    temporary.write_bytes(data)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        problem = f"{path} cannot be unpacked: {error}"
        raise DataError(message("download", problem, f"delete {path} and call again")) from error
    if wanted:
        problem = f"{path} lacks {', '.join(sorted(wanted))}"
        raise DataError(message("download", problem, f"delete {path} and call again"))
    path.unlink()


def read_checked(path: pathlib.Path, file: RemoteFile) -> bytes:
    """The bytes of a data file, if they are the published ones.

    Raises:
        DataError: the file is missing, unreadable, or has another size or SHA-256. It is left as it is.
    """
    if not path.exists():
        fix = "pass download=True, or set FGRAD_DATA_DIR (or root=) to the folder that has the data sets"
        raise DataError(message("read data", f"{path} does not exist", fix))
    try:
        data = path.read_bytes()
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror or error}"
        raise DataError(message("read data", problem, "put the published file there")) from error
    wrong = _compare(len(data), hashlib.sha256(data).hexdigest(), file)
    if wrong is not None:
        kind = "truncated" if len(data) < file.size else "damaged or another file"
        fix = f"delete {path} (it was left as it is) and call again with download=True"
        raise DataError(message("read data", f"{path} is {kind}: {wrong}", fix))
    return data


def difference(path: pathlib.Path, file: RemoteFile) -> str | None:
    """What tells the file at ``path`` from the published one, or None."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return _compare(path.stat().st_size, digest.hexdigest(), file)


def _compare(size: int, sha256: str, file: RemoteFile) -> str | None:
    if size == file.size and sha256 == file.sha256:
        return None
    return f"it has {size:,} bytes, SHA-256 {sha256}; expected {file.size:,} bytes, SHA-256 {file.sha256}"


def _receive(url: str, part: pathlib.Path, file: RemoteFile, progress: bool) -> bool:
    """Bring ``part`` to the full size from ``url``; True if every byte of it came in this call.

    Raises:
        OSError, HTTPException: no, a broken, or an unfit answer. What has been received stays in ``part``.
    """
    have = part.stat().st_size if part.exists() else 0
    if have == file.size:
        return False  # complete, but its process was stopped before the check
    if have > file.size:
        part.unlink()
        have = 0
    headers = {"User-Agent": "fgrad", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.status == 200:
            have = 0  # no Range here: the whole file comes again
        elif answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise OSError(
                f"answers {answer.status} {answer.headers.get('Content-Range', '')} to byte {have:,}"
            )
        length = answer.headers.get("Content-Length")
        if length is not None and have + int(length) != file.size:
            # An error page or another version: nothing of it gets into the file.
            raise OSError(f"offers {have + int(length):,} bytes, expected {file.size:,}")
        with open(part, "ab" if have else "wb") as out, _progress_bar(file, have, progress) as bar:
            size = have
            while size <= file.size and (block := answer.read(BLOCK)):
                out.write(block)
                size += len(block)
                bar.update(len(block))
    if size != file.size:
        raise OSError(f"connection closed after {size:,} of {file.size:,} bytes")
    return have == 0


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", "") or error) or type(error).__name__


def _progress_bar(file: RemoteFile, have: int, progress: bool):
    try:
        from tqdm import tqdm
    except ImportError as error:
        if progress:
            raise missing_extra("tqdm", "data", "the progress bar of a download") from error
        return contextlib.nullcontext(_NoBar())
    return tqdm(
        desc=pathlib.PurePosixPath(file.name).name,
        total=file.size,
        initial=have,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not progress,
    )


class _NoBar:
    def update(self, count: int) -> None:
        """tqdm's method."""


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Make ``folder`` and hold off other processes that download into it, where the system has ``flock``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "set FGRAD_DATA_DIR (or root=) to a folder that may be written to"
        raise DataError(message("download", f"cannot make the folder {folder}: {error}", fix)) from error
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network file system may have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
