"""The threads that compiled programs share their work among: Numba's OpenMP layer, used without importing Numba.

`numba.np.ufunc.omppool` is an extension module that needs nothing of Numba: loaded by itself, it gives the address of a C function
`parallel_for`, which programs call (`codegen/team.py` says how). Where that module cannot be loaded (no OpenMP library on the
system, a Numba built without it) programs run on the calling thread.

The number of threads is FGRAD_NUM_THREADS, else NUMBA_NUM_THREADS, else the processors that this process may use; `set_num_threads` changes it.
Results do not depend on it. A forked child runs serially: GNU's OpenMP does not survive a fork, and whether the parent has used it
through another library cannot be known.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import sys
import threading
import warnings

from fgrad.errors import FgradValueError, message

# Words of a pool; the ninth, in a cache line of its own, says that it is in use. _ALWAYS: share without asking what is faster.
_PARALLEL_FOR, _THREADS, _YIELD, _ALWAYS = range(4)
_lock = threading.Lock()
_words: ctypes.Array[ctypes.c_size_t] | None = None
_memory: ctypes.Array[ctypes.c_char] | None = None  # holds the words and is never freed
_module: object | None = None
_chosen: int | None = None
_forked = False


def available() -> int:
    """Processors that this process may use, by affinity and by the limit of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        if quota != "max":
            count = min(count, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        pass
    return count


def _from_environment() -> int:
    for name in ("FGRAD_NUM_THREADS", "NUMBA_NUM_THREADS"):
        text = os.environ.get(name, "").strip()
        if not text:
            continue
        if text.isdigit() and int(text) > 0:
            return int(text)
        warnings.warn(f"fgrad: {name}={text!r} is not a positive number and is ignored", stacklevel=3)
    return available()


def get_num_threads() -> int:
    """How many threads compiled programs may use."""
    global _chosen
    if _chosen is None:
        _chosen = _from_environment()
    return _chosen


def set_num_threads(count: int) -> None:
    """Let compiled programs use `count` threads, from their next call on. Results are the same for any number.

    Raises:
        FgradValueError: `count` is not a positive integer.
    """
    global _chosen
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise FgradValueError(
            message("set_num_threads", f"expected a positive integer, got {count!r}", "1 means serial")
        )
    _chosen = count
    if _words is not None:
        _words[_THREADS] = count


def pool() -> int:
    """The address of the process's pool, made on first use."""
    global _words, _memory
    with _lock:
        if _words is None:
            memory = ctypes.create_string_buffer(256)
            start = -ctypes.addressof(memory) % 128
            words = (ctypes.c_size_t * 16).from_buffer(memory, start)
            words[_THREADS] = get_num_threads()
            words[_YIELD] = _yield_address()
            words[_PARALLEL_FOR] = 0 if _forked else _parallel_for()
            _memory, _words = memory, words
        return ctypes.addressof(_words)


def _in_child() -> None:
    global _lock, _forked
    _lock, _forked = threading.Lock(), True  # another thread may have held the old one
    if _words is not None:
        _words[_PARALLEL_FOR] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _parallel_for() -> int:
    """The address of `parallel_for`, or 0."""
    global _module
    try:
        found = importlib.util.find_spec("numba")
        origin = found.origin if found is not None else None
        if origin is None:
            return 0
        folder = os.path.join(os.path.dirname(origin), "np", "ufunc")
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = os.path.join(folder, f"omppool{suffix}")
            if os.path.exists(path):
                _module = _load(path)
                return int(_module.parallel_for)  # type: ignore[attr-defined]
    except (ImportError, OSError, AttributeError, ValueError):
        pass
    return 0


def _load(path: str) -> object:
    """The extension module. GNU's OpenMP reads how long its idle threads spin (14 ms, if nobody says) while it is loaded."""
    name = "GOMP_SPINCOUNT"
    mine = not any(n in os.environ for n in (name, "OMP_WAIT_POLICY"))
    if mine:
        os.environ[name] = "100"
    try:
        spec = importlib.util.spec_from_file_location("fgrad.runtime.omppool", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        if mine:
            del os.environ[name]


def _yield_address() -> int:
    """The C function by which a thread gives its processor away, or 0."""
    try:
        windows = sys.platform == "win32"
        library = ctypes.CDLL("kernel32" if windows else None)
        function = library.SwitchToThread if windows else library.sched_yield
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0
