"""The disk cache: shared by processes, and no damage to it does harm."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fgrad.runtime import cache

ROOT = Path(__file__).resolve().parents[2]

# Compiles y = x * 2 + 1 and prints whether Numba was needed.
SCRIPT = """
import sys
import numpy as np
from fgrad import dtypes
from fgrad.codegen.loops import Buffer, Const, Kernel, Load, Loop, LoopVar, Op, Store
from fgrad.codegen.program import Block, Buf, KernelStep, Program
from fgrad.runtime.executable import compile_program

f4 = dtypes.float32
x, y, i = Buffer("x", f4, 100), Buffer("y", f4, 100, "out"), LoopVar("i", 100)
value = Op("add", (Op("mul", (Load(x, i), Const(2.0, f4)), f4), Const(1.0, f4)), f4)
kernel = Kernel("k", (y, x), [Loop(i, [Store(y, i, value)], "vector")])
xb, yb = Buf("x", (100,), f4, "input"), Buf("y", (100,), f4, "output")
call = compile_program(Program("p", (xb,), (yb,), Block([KernelStep(kernel, (yb, xb))])))
a = np.arange(100, dtype=np.float32)
np.testing.assert_array_equal(call([a])[0], a * 2 + 1)
print("compiled" if "numba" in sys.modules else "loaded")
"""


def start(folder, **env):
    env = {**os.environ, "FGRAD_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip(), err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FGRAD_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FGRAD_CACHE", "1")
    return tmp_path


def entries(folder):
    return sorted(folder.glob("*.fgrad"))


def test_two_processes_at_once_and_a_third_that_does_not_import_numba(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    assert "compiled" in {finish(p)[0] for p in both}
    assert len(entries(tmp_path)) == 1
    assert not list(tmp_path.glob(".writing-*"))
    assert finish(start(tmp_path)) == ("loaded", "")


def test_a_damaged_entry_is_reported_and_made_again(tmp_path):
    finish(start(tmp_path))
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    out, err = finish(start(tmp_path))
    assert out == "compiled"
    assert str(path) in err and "damaged" in err
    assert path.exists()
    assert finish(start(tmp_path)) == ("loaded", "")


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    assert finish(start(blocked)) == ("compiled", "")
    assert finish(start(tmp_path / "unused", FGRAD_CACHE="0")) == ("compiled", "")
    assert not (tmp_path / "unused").exists()


def test_round_trip(folder):
    key = cache.entry_key("a program", "options")
    assert cache.load(key) is None
    assert cache.store(key, {"symbol": "f"}, b"code" * 100)
    entry = cache.load(key)
    assert entry.meta == {"symbol": "f"}
    assert entry.object_code == b"code" * 100


def test_keys_differ_by_every_part_and_where_it_ends():
    keys = {
        cache.entry_key(*parts) for parts in [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("c", "ab")]
    }
    assert len(keys) == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"X" + data[1:],
        lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
        lambda data: data[:-1] + bytes([data[-1] ^ 128]),
    ],
)
def test_every_kind_of_damage_is_found(folder, damage):
    cache.store("k", {"symbol": "f"}, bytes(range(256)))
    (path,) = entries(folder)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"k\.fgrad is damaged"):
        assert cache.load("k") is None
    assert not path.exists()


def test_the_oldest_entries_go_first_and_abandoned_files_too(folder):
    for n in range(5):
        cache.store(f"k{n}", {}, bytes(1000))
        os.utime(folder / f"k{n}.fgrad", (n + 1, n + 1))
    cache.load("k0")  # used now
    abandoned, fresh = folder / ".writing-old", folder / ".writing-new"
    for path in (abandoned, fresh):
        path.write_bytes(b"half")
    os.utime(abandoned, (1, 1))
    size = (folder / "k0.fgrad").stat().st_size
    cache.trim(folder, 2 * size)
    assert [p.stem for p in entries(folder)] == ["k0", "k4"]
    assert not abandoned.exists()
    assert fresh.exists()


def test_turned_off(folder, monkeypatch):
    monkeypatch.setenv("FGRAD_CACHE", "0")
    assert not cache.store("k", {}, b"code")
    assert cache.load("k") is None
    assert not entries(folder)


def test_reading_marks_an_entry_as_used(folder):
    cache.store("k", {}, b"code")
    os.utime(folder / "k.fgrad", (1, 1))
    cache.load("k")
    assert time.time() - (folder / "k.fgrad").stat().st_mtime < 60
