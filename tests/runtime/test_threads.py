"""Programs on several threads: the same bits for any number, from several Python threads at once, and after a fork."""

import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import lax
from fgrad.codegen.parallel import pieces_of
from fgrad.codegen.program import ContractStep, CopyStep, KernelStep, walk
from fgrad.errors import FgradValueError
from fgrad.runtime import threads
from fgrad.runtime.profile import profile


@pytest.fixture(autouse=True)
def same_number_afterwards():
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


def conv_loss(w, v, x):
    h = fnp.maximum(lax.conv(x, w, padding=((1, 1), (1, 1))), 0.0)
    h = lax.conv(h, v, strides=(2, 2))
    return fnp.mean(h * h)


def elementwise(a, x):
    return fnp.mean(fnp.tanh(a * x) * fnp.exp(-x * x))


def inputs(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s).astype(np.float32) for s in shapes]


CASES = {
    "product, rows": (lambda a, b: a @ b, inputs((3200, 128), (128, 96)), ContractStep),
    "product, odd sizes": (lambda a, b: a @ b, inputs((1495, 117), (117, 129)), ContractStep),
    "product, long sum": (lambda a, b: a.T @ b, inputs((96000, 11), (96000, 13)), ContractStep),
    "batched product": (lambda a, b: a @ b, inputs((48, 96, 64), (48, 64, 80)), ContractStep),
    "float64 product": (
        lambda a, b: a @ b,
        [x.astype(np.float64) for x in inputs((2400, 96), (96, 96))],
        ContractStep,
    ),
    "convolution and gradients": (
        fgrad.value_and_grad(conv_loss, argnums=(0, 1, 2)),
        inputs((12, 3, 3, 3), (16, 12, 3, 3), (32, 3, 24, 24)),
        ContractStep,
    ),
    "sum in blocks": (
        fgrad.value_and_grad(elementwise, argnums=(0, 1)),
        [np.float32(0.7), *inputs((900_001,))],
        KernelStep,
    ),
    "softmax": (lambda x: fgrad.special.softmax(x, axis=-1), inputs((5600, 333)), KernelStep),
    "sums of rows": (lambda x: (x * x).sum(1), inputs((16000, 500)), KernelStep),
    "copy": (lambda x: (x.reshape(1500, 2000), x + 1.0), inputs((3_000_000,)), CopyStep),
}


@pytest.mark.parametrize("name", CASES)
def test_same_bits_for_any_number_of_threads(name):
    f, args, kind = CASES[name]
    jitted = fgrad.jit(f)
    executable = jitted.lower(*args).compile()
    steps = list(walk(executable.program.body))
    assert executable.shares_work
    assert any(isinstance(s, kind) and pieces_of(s) for s in steps), "nothing of this kind is shared"
    results = {}
    for count in (1, 2, 3, 8):
        threads.set_num_threads(count)
        for _ in range(3):
            found = [np.asarray(x) for x in fgrad.tree.leaves(jitted(*args))]
            results.setdefault(count, found)
            for a, b in zip(results[1], found, strict=True):
                assert a.tobytes() == b.tobytes()
    eager = [np.asarray(x) for x in fgrad.tree.leaves(f(*map(fnp.asarray, args)))]
    for a, b in zip(eager, results[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * max(1.0, np.abs(a).max()))


@pytest.mark.parametrize("size", [22, 23])
def test_pieces_are_vectorised_as_the_whole(size, capfd, monkeypatch):
    """LLVM warns where it was asked for vectors and gave up; it needs to know the range of the outermost loop."""
    monkeypatch.setenv("FGRAD_CACHE", "0")

    def loss(x):
        return fnp.mean(lax.max_pool(x * x, (2, 2)))

    (x,) = inputs((64, 32, size, size))
    step = fgrad.jit(fgrad.grad(loss))
    assert step.lower(x).compile().shares_work
    step(x)
    assert "not vectorized" not in capfd.readouterr().err


def test_pieces_do_not_depend_on_the_number_of_threads():
    f, args, _ = CASES["convolution and gradients"]
    texts = []
    for count in (1, 7):
        threads.set_num_threads(count)
        texts.append(fgrad.jit(f).lower(*args).show("llvm").split("\n", 3)[-1].replace("fgrad_shown", ""))
    first, second = (re.sub(r"_\d+\"", '"', t) for t in texts)
    assert first == second


def test_the_choice_between_serial_and_shared_changes_no_bits():
    """Every 64th call is made the other way; the choice itself depends on the time that runs took."""
    f, args, _ = CASES["product, long sum"]
    jitted = fgrad.jit(f)
    threads.set_num_threads(2)
    expected = np.asarray(jitted(*args)).tobytes()
    assert all(np.asarray(jitted(*args)).tobytes() == expected for _ in range(200))


def test_a_pool_in_use_leaves_the_caller_serial():
    f, args, _ = CASES["product, rows"]
    jitted = fgrad.jit(f)
    threads.set_num_threads(2)
    expected = np.asarray(jitted(*args))
    threads.pool()
    threads._words[threads._RUNNING] = 1
    try:
        np.testing.assert_array_equal(np.asarray(jitted(*args)), expected)
    finally:
        threads._words[threads._RUNNING] = 0


def test_without_helpers():
    f, args, _ = CASES["product, rows"]
    jitted = fgrad.jit(f)
    expected = np.asarray(jitted(*args))
    threads.pool()
    start = threads._words[0]
    try:
        threads._words[0] = 0
        np.testing.assert_array_equal(np.asarray(jitted(*args)), expected)
    finally:
        threads._words[0] = start


def test_eight_python_threads_at_once():
    threads.set_num_threads(2)
    f, args, _ = CASES["convolution and gradients"]
    jitted = fgrad.jit(f)
    expected = [np.asarray(x) for x in fgrad.tree.leaves(jitted(*args))]
    wrong = []
    gate = threading.Barrier(8)

    def work():
        gate.wait()
        for _ in range(15):
            found = fgrad.tree.leaves(jitted(*args))
            if not all(np.array_equal(np.asarray(a), b) for a, b in zip(found, expected, strict=True)):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong
    assert threads._words[threads._RUNNING] == 0


def run(code, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("FGRAD_NUM_THREADS", "NUMBA_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[-2], done.stderr


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"NUMBA_NUM_THREADS": "3"}, "3"),
        ({"NUMBA_NUM_THREADS": "3", "FGRAD_NUM_THREADS": "5"}, "5"),
        ({}, str(threads.available())),
    ],
)
def test_number_from_the_environment(environment, expected):
    code = "from fgrad.runtime import threads; print(threads.get_num_threads())"
    assert run(code, **environment)[0] == expected


def test_a_wrong_number_in_the_environment_is_reported(monkeypatch):
    monkeypatch.setenv("FGRAD_NUM_THREADS", "many")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "4")
    with pytest.warns(UserWarning, match="FGRAD_NUM_THREADS='many'"):
        assert threads._from_environment() == 4


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_numbers_that_make_no_sense(count):
    with pytest.raises(FgradValueError, match="set_num_threads"):
        threads.set_num_threads(count)


PROGRAM = """
import json, sys
import numpy as np
import fgrad
from fgrad.runtime import threads
threads.set_num_threads(2)
x = np.random.default_rng(0).normal(size=(1536, 128)).astype(np.float32)
f = fgrad.jit(lambda a: a @ a.T)
def value():
    return [float(v) for v in np.asarray(f(x)).sum(0)[:5]]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_use():
    code = (
        PROGRAM
        + """
import multiprocessing
expected = [value() for _ in range(5)][-1]
context = multiprocessing.get_context("fork")
def work(queue):
    queue.put([value() for _ in range(5)][-1])
for _ in range(2):
    queue = context.Queue()
    child = context.Process(target=work, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join(60)
    assert child.exitcode == 0
    assert value() == expected        # the parent goes on with its threads
print(bool(threads._words[0]))
"""
    )
    assert run(code)[0] == "True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_while_another_thread_compiles():
    code = (
        PROGRAM
        + """
import os, signal, threading, time
stop = []
def compile_on():
    while not stop:
        fgrad.jit(lambda a: fnp.sin(a) * len(stop))(x[0])
import fgrad.numpy as fnp
expected = value()
thread = threading.Thread(target=compile_on)
thread.start()
codes = []
for n in range(4):
    time.sleep(0.02 * n)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        same = value() == expected and float(fgrad.jit(lambda a: a + n)(1.0)) == 1 + n
        os._exit(0 if same else 1)
    codes.append(os.waitpid(child, 0)[1])
stop.append(1)
thread.join()
print(codes)
"""
    )
    assert run(code, FGRAD_CACHE="0")[0] == "[0, 0, 0, 0]"


def test_warm_start_has_threads_but_not_numba(tmp_path):
    code = PROGRAM + "print(json.dumps([value(), 'numba' in sys.modules, bool(threads._words[0])]))"
    cold = json.loads(run(code, FGRAD_CACHE_DIR=str(tmp_path))[0])
    warm = json.loads(run(code, FGRAD_CACHE_DIR=str(tmp_path))[0])
    assert warm[0] == cold[0]
    assert warm[1] is False
    assert warm[2] is cold[2] is True


def test_profile_of_shared_steps():
    f, args, _ = CASES["convolution and gradients"]
    executable = fgrad.jit(f).lower(*args).compile()
    threads.set_num_threads(2)
    found = profile(executable, args, repeat=2)
    assert any("pieces" in r.to_dict()["plan"] for r in found.rows)
