"""Downloads against a server on this machine that misbehaves as real ones do."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest

from fgrad_nn.data import DataError, download
from fgrad_nn.data.registry import Archive, RemoteFile

CONTENT = np.random.default_rng(0).integers(0, 256, 1_500_000, np.uint8).tobytes()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` at every path.

    ``cuts`` has, for each of the first answers, the number of bytes after which the connection is closed. ``log`` has
    each request's ``Range`` header.
    """

    daemon_threads = True

    def __init__(self, content: bytes = CONTENT):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.cuts: list[int] = []
        self.ranges = True
        self.status: int | None = None
        self.announce_length = True
        self.log: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.log.append(asked)
        if server.status is not None:
            self.send_error(server.status)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        body = server.content[start:]
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        if server.announce_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def serve():
    servers = []

    def start(content: bytes = CONTENT) -> Server:
        servers.append(Server(content))
        threading.Thread(
            target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def remote(*urls: str, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile("set/file.bin", len(content), hashlib.sha256(content).hexdigest(), urls)


def fetch(file, root, **options):
    return download.download(file, root, progress=False, pause=0.01, **options)


def test_plain_download(serve, tmp_path):
    server = serve()
    path = fetch(remote(server.url), tmp_path)
    assert path == tmp_path / "set" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["file.bin"]
    assert server.log == [None]


def test_progress_bar(serve, tmp_path, capsys):
    download.download(remote(serve().url), tmp_path)
    err = capsys.readouterr().err
    assert "file.bin: 100%" in err and "1.43M/1.43M" in err


def test_a_cut_connection_is_resumed(serve, tmp_path):
    server = serve()
    server.cuts = [400_000, 300_000]
    path = fetch(remote(server.url), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.log == [None, "bytes=400000-", "bytes=700000-"]


def test_a_cut_without_announced_length_is_resumed(serve, tmp_path):
    server = serve()
    server.announce_length, server.cuts = False, [123_457]
    assert fetch(remote(server.url), tmp_path).read_bytes() == CONTENT
    assert server.log == [None, "bytes=123457-"]


def test_resumed_in_a_later_call_and_from_another_mirror(serve, tmp_path):
    first, second = serve(), serve()
    first.cuts = [600_000]
    with pytest.raises(DataError) as caught:
        fetch(remote(first.url), tmp_path, rounds=1)
    text = str(caught.value)
    assert "connection closed after 600,000 of 1,500,000 bytes" in text
    assert "600,000 bytes are kept in" in text and "call again" in text
    assert not (tmp_path / "set" / "file.bin").exists()
    assert fetch(remote(second.url), tmp_path).read_bytes() == CONTENT
    assert second.log == ["bytes=600000-"]


def test_a_server_without_ranges_starts_over(serve, tmp_path):
    server = serve()
    server.ranges, server.cuts = False, [500_000]
    assert fetch(remote(server.url), tmp_path).read_bytes() == CONTENT
    assert server.log == [None, "bytes=500000-"]


def test_wrong_bytes_are_refused_and_said(serve, tmp_path):
    wrong = bytes(len(CONTENT))
    server = serve(wrong)
    file = remote(server.url)
    with pytest.warns(UserWarning, match="discarded"), pytest.raises(DataError) as caught:
        fetch(file, tmp_path)
    text = str(caught.value)
    assert hashlib.sha256(wrong).hexdigest() in text and file.sha256 in text
    assert server.url in text and str(tmp_path / "set" / "file.bin") in text
    assert os.listdir(tmp_path / "set") == []
    assert len(server.log) == 1  # a mirror that has the wrong file is not asked again


def test_wrong_mirror_then_right_mirror(serve, tmp_path):
    wrong, right = serve(bytes(len(CONTENT))), serve()
    with pytest.warns(UserWarning, match="discarded"):
        path = fetch(remote(wrong.url, right.url), tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_stale_part_is_found_out_and_replaced(serve, tmp_path):
    server = serve()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "file.bin.part").write_bytes(b"another version" * 1000)
    with pytest.warns(UserWarning, match="discarded"):
        path = fetch(remote(server.url), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.log == ["bytes=15000-", None]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 1])
def test_a_part_of_full_size_or_more(serve, tmp_path, length):
    server = serve()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "file.bin.part").write_bytes((CONTENT + b"!")[:length])
    assert fetch(remote(server.url), tmp_path).read_bytes() == CONTENT
    assert server.log == ([] if length == len(CONTENT) else [None])


@pytest.mark.parametrize("other", [CONTENT[:1000], CONTENT + b"more"])
def test_a_file_of_another_size_is_not_received(serve, tmp_path, other):
    server = serve(other)
    with pytest.raises(DataError, match=f"offers {len(other):,} bytes, expected 1,500,000"):
        fetch(remote(server.url), tmp_path, rounds=1)
    assert os.listdir(tmp_path / "set") == []


def test_endless_answer_stops(serve, tmp_path):
    server = serve(CONTENT * 4)
    server.announce_length = False
    with pytest.raises(DataError):
        fetch(remote(server.url), tmp_path, rounds=1)
    assert (tmp_path / "set" / "file.bin.part").stat().st_size < len(CONTENT) + 2 * download.BLOCK


def test_http_errors_and_dead_servers_are_named(serve, tmp_path):
    server = serve()
    server.status = 404
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    dead = f"http://127.0.0.1:{port}/file.bin"
    with pytest.raises(DataError) as caught:
        fetch(remote(dead, server.url), tmp_path, rounds=1)
    assert "refused" in str(caught.value) and "HTTP 404 Not Found" in str(caught.value)


def test_present_files_are_not_asked_for(serve, tmp_path):
    server = serve()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "file.bin").write_bytes(b"mine")
    assert fetch(remote(server.url), tmp_path).read_bytes() == b"mine"
    assert server.log == []


def test_two_processes_at_once(serve, tmp_path):
    server = serve()
    server.cuts = [700_000]
    file = remote(server.url)
    code = (
        "import pathlib, sys; from fgrad_nn.data import download, registry;"
        f"download.download(registry.{file!r}, pathlib.Path(sys.argv[1]), progress=False, pause=0.01)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert (tmp_path / "set" / "file.bin").read_bytes() == CONTENT
    assert server.log == [None, "bytes=700000-"]


def test_killed_download_is_resumed(serve, tmp_path):
    server = serve()
    slow = threading.Event()
    original = Handler.do_GET

    def half_then_wait(handler):
        handler.server.log.append(handler.headers["Range"])
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:800_000])
        handler.wfile.flush()
        slow.wait(30)

    file = remote(server.url)
    code = (
        "import pathlib, sys; from fgrad_nn.data import download, registry;"
        f"download.download(registry.{file!r}, pathlib.Path(sys.argv[1]), progress=False)"
    )
    part = tmp_path / "set" / "file.bin.part"
    Handler.do_GET = half_then_wait
    try:
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
    finally:
        slow.set()
        Handler.do_GET = original
    have = part.stat().st_size
    assert 0 < have <= 800_000
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.log == [None, f"bytes={have}-"]


def test_folder_that_cannot_be_made(serve, tmp_path):
    (tmp_path / "set").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="FGRAD_DATA_DIR"):
        fetch(remote(serve().url), tmp_path)


MEMBERS = {"set/a.bin": b"a" * 1000, "set/b.bin": b"b" * 2000}


def archive(url: str, content: bytes) -> Archive:
    members = tuple(
        RemoteFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in MEMBERS.items()
    )
    return Archive(
        RemoteFile("set.tar.gz", len(content), hashlib.sha256(content).hexdigest(), (url,)), members
    )


def packed(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, goal in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, goal
            tar.addfile(info)
    return buffer.getvalue()


def test_only_named_members_are_unpacked(serve, tmp_path):
    content = packed({"../evil.txt": b"x", "set/other.txt": b"y", **MEMBERS})
    root = tmp_path / "root"
    download.download_members(archive(serve(content).url, content), root, progress=False)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["root/set/a.bin", "root/set/b.bin"]
    assert (root / "set/b.bin").read_bytes() == MEMBERS["set/b.bin"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (packed({"set/a.bin": MEMBERS["set/a.bin"]}), "lacks set/b.bin"),
        (packed({**MEMBERS, "set/a.bin": b"c" * 1000}), "set/a.bin is not the published one"),
        (packed({"set/b.bin": b""}, links={"set/a.bin": "elsewhere"}), "is not the published one"),
        (packed(MEMBERS)[:-20], "cannot be unpacked"),
        (b"<html>not an archive</html>", "cannot be unpacked"),
    ],
)
def test_unfit_archives(serve, tmp_path, content, problem):
    with pytest.raises(DataError, match=problem) as caught:
        download.download_members(archive(serve(content).url, content), tmp_path, progress=False)
    assert f"delete {tmp_path / 'set.tar.gz'} and call again" in str(caught.value)


def test_tqdm_absent(serve, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"pip install 'fgrad\[data\]'"):
        download.download(remote(serve().url), tmp_path)
    assert fetch(remote(serve().url), tmp_path).read_bytes() == CONTENT
