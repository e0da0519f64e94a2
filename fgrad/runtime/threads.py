"""The threads that compiled programs share their work among: helpers, started when the first program that shares work is called.

A helper is a Python thread that spends its life in a small function of compiled code (`codegen/team.py`), without the interpreter's
lock: it looks for pieces of work in the pool, and after some 100 microseconds without any sleeps on a semaphore of the system's.
Where there is no such semaphore, programs run on the calling thread.

The number of threads is FGRAD_NUM_THREADS, else NUMBA_NUM_THREADS, else the processors that this process may use; `set_num_threads` changes it.
Results do not depend on it. A forked child, which has no helpers, runs serially.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fgrad.codegen import team
from fgrad.codegen.pieces import MOST_PIECES
from fgrad.errors import FgradValueError, message
from fgrad.runtime.native import compile_function

# Words of a pool.
_HELPERS, _THREADS, _YIELD, _WAIT, _POST, _SEMAPHORE, _ALWAYS, _RUNNING = (
    at // 8
    for at in (
        team.HELPERS,
        team.THREADS,
        team.YIELD,
        team.WAIT,
        team.POST,
        team.SEMAPHORE,
        team.ALWAYS,
        team.RUNNING,
    )
)
_lock = threading.Lock()
_changed = threading.Condition()  # the number of threads
_words: ctypes.Array[ctypes.c_size_t] | None = None
_help: Callable[[int, int], None] | None = None  # where helpers spend their lives
_started = 0
_chosen: int | None = None
_forked = False


def _keep(thing: object) -> None:
    """Never free memory or code that helpers use: they are there until the process ends, when modules are gone already."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


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
        with _lock:
            _start_helpers()
        with _changed:
            _words[_THREADS] = count
            _changed.notify_all()


def pool() -> int:
    """The address of the process's pool, made on first use."""
    global _words
    with _lock:
        if _words is None:
            memory = ctypes.create_string_buffer(team.POOL_BYTES + 128)
            words = (ctypes.c_size_t * (team.POOL_BYTES // 8)).from_buffer(
                memory, -ctypes.addressof(memory) % 128
            )
            words[_THREADS] = get_num_threads()
            words[_YIELD] = _yield_address()
            _keep(memory)
            _words = words
            _start_helpers()
        return ctypes.addressof(_words)


@contextmanager
def taken() -> Iterator[bool]:
    """Within: no program uses the pool, if what is given is true. (Programs take it themselves, this is for measuring.)"""
    pool()
    assert _words is not None
    free = bool(_words[_HELPERS]) and not _words[_RUNNING]
    if free:
        _words[_RUNNING] = 1
    try:
        yield free
    finally:
        if free:
            _words[_RUNNING] = 0


def _start_helpers() -> None:
    """As many helpers as `get_num_threads` asks for beside the caller; those that are there stay. Under `_lock`."""
    global _started, _help
    wanted = min(get_num_threads(), MOST_PIECES) - 1
    if _forked or _words is None or wanted <= _started:
        return
    if not _words[_SEMAPHORE]:
        found = _semaphore()
        if found is None:
            return
        _words[_SEMAPHORE], _words[_WAIT], _words[_POST] = found
        address, engine = compile_function(team.help_text(), "help")
        _keep(engine)
        _help = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_int64)(address)
    try:
        while _started < wanted:
            worker = _started + 1
            threading.Thread(
                target=_serve, args=(worker,), name=f"fgrad-helper-{worker}", daemon=True
            ).start()
            _started = worker
    except RuntimeError:  # no more threads, or the interpreter is about to end
        pass
    _words[_HELPERS] = _started


def _serve(worker: int) -> None:
    """Help whenever more than `worker` threads are wanted."""
    assert _words is not None and _help is not None
    words, help_ = _words, _help
    address = ctypes.addressof(words)
    while True:
        with _changed:
            while worker >= words[_THREADS]:
                _changed.wait()
        help_(address, worker)


def _in_child() -> None:
    global _lock, _changed, _forked
    _lock, _changed, _forked = (
        threading.Lock(),
        threading.Condition(),
        True,
    )  # another thread may have held the old ones
    if _words is not None:
        _words[_HELPERS] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _semaphore() -> tuple[int, int, int] | None:
    """A semaphore, and the addresses of functions `wait(it, -1)` and `post(it, 1, null)`; None where there is none.

    POSIX functions take the first argument alone, Apple's a timeout too, and Windows' all of them.
    """
    try:
        if sys.platform == "win32":
            kernel = ctypes.CDLL("kernel32")
            kernel.CreateSemaphoreW.restype = ctypes.c_void_p
            made, wait, post = (
                kernel.CreateSemaphoreW(None, 0, 1 << 30, None),
                kernel.WaitForSingleObject,
                kernel.ReleaseSemaphore,
            )
        else:
            library = ctypes.CDLL(None)
            if sys.platform == "darwin":
                library.dispatch_semaphore_create.restype = ctypes.c_void_p
                made = library.dispatch_semaphore_create(ctypes.c_long(0))
                wait, post = library.dispatch_semaphore_wait, library.dispatch_semaphore_signal
            else:
                memory = ctypes.create_string_buffer(128)
                _keep(memory)
                made = ctypes.addressof(memory) + -ctypes.addressof(memory) % 64
                if library.sem_init(ctypes.c_void_p(made), 0, 0):
                    return None
                wait, post = library.sem_wait, library.sem_post
        addresses = [ctypes.cast(f, ctypes.c_void_p).value for f in (wait, post)]
    except (OSError, AttributeError):
        return None
    return (made, addresses[0] or 0, addresses[1] or 0) if made else None


def _yield_address() -> int:
    """The C function by which a thread gives its processor away, or 0."""
    try:
        windows = sys.platform == "win32"
        library = ctypes.CDLL("kernel32" if windows else None)
        function = library.SwitchToThread if windows else library.sched_yield
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0
