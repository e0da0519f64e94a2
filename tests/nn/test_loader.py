"""The data loader: what it gives, that it gives it again, and that its thread never outlives its use."""

import gc
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest

import fgrad
from fgrad import random
from fgrad_nn.data import Compose, DataLoader, RandomCrop, RandomHorizontalFlip, ToFloat
from fgrad_nn.data.prefetch import Batches

DEPTHS = pytest.mark.parametrize("prefetch", [0, 1, 3])


@pytest.fixture
def data(rng):
    return rng.integers(0, 256, (23, 1, 4, 4), np.uint8), np.arange(23)


@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    deadline = time.monotonic() + 10
    while any(t.name == "fgrad DataLoader" for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread of the loader is still running"
        time.sleep(0.01)


def collect(batches):
    xs, ys = zip(*[(np.asarray(x), np.asarray(y)) for x, y in batches])
    return np.concatenate(xs), np.concatenate(ys)


@DEPTHS
@pytest.mark.parametrize("drop_last, lengths", [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_in_order(data, prefetch, drop_last, lengths):
    images, labels = data
    loader = DataLoader(data, 5, drop_last=drop_last, prefetch=prefetch)
    batches = list(loader)
    assert len(loader) == len(batches) == len(lengths)
    assert [len(x) for x, _ in batches] == [len(y) for _, y in batches] == lengths
    assert all(isinstance(x, fgrad.Array) and isinstance(y, fgrad.Array) for x, y in batches)
    x, y = collect(batches)
    np.testing.assert_array_equal(x, images[: sum(lengths)])
    np.testing.assert_array_equal(y, labels[: sum(lengths)])
    assert x.dtype == np.uint8 and y.dtype == np.int64


@DEPTHS
def test_shuffled_epochs_differ_and_repeat(data, prefetch):
    images, labels = data
    loader = DataLoader(data, 4, shuffle=True, key=random.key(7), prefetch=prefetch)
    epochs = [collect(loader) for _ in range(3)]
    for x, y in epochs:
        assert sorted(y) == list(labels)
        np.testing.assert_array_equal(x, images[y])  # images and labels stay together
    assert len({tuple(y) for _, y in epochs}) == 3
    again = DataLoader(data, 4, shuffle=True, key=random.key(7), prefetch=0)
    np.testing.assert_array_equal(collect(again.batches(2))[1], epochs[2][1])
    again.epoch = 1
    np.testing.assert_array_equal(collect(again)[1], epochs[1][1])
    assert again.epoch == 2
    other = DataLoader(data, 4, shuffle=True, key=random.key(8))
    assert (collect(other)[1] != epochs[0][1]).any()


@DEPTHS
def test_transformed_by_one_program(data, prefetch):
    images, _ = data
    calls = []

    def transform(x):
        calls.append(x.shape)
        return ToFloat()(x) * 2

    loader = DataLoader(data, 5, shuffle=True, key=random.key(0), transform=transform, prefetch=prefetch)
    for _ in range(2):
        x, y = collect(loader)
        np.testing.assert_allclose(x, images[y] / np.float32(255) * 2, rtol=1e-6)
    assert calls == [(5, 1, 4, 4), (3, 1, 4, 4)]  # traced once for each shape


def test_random_transforms_draw_anew_for_each_batch_and_epoch(data):
    same = np.broadcast_to(data[0][:1], data[0].shape), data[1]
    transform = Compose([RandomCrop(4, padding=4), RandomHorizontalFlip(), ToFloat()])
    loader = DataLoader(same, 5, key=random.key(0), transform=transform, drop_last=True)
    first, second = (np.stack([np.asarray(x) for x, _ in loader]) for _ in range(2))
    assert len({batch.tobytes() for batch in [*first, *second]}) == 8
    inline = DataLoader(same, 5, key=random.key(0), transform=transform, drop_last=True, prefetch=0)
    np.testing.assert_array_equal(first, np.stack([np.asarray(x) for x, _ in inline]))


def test_a_program_reads_the_data_in_place_or_a_copy_of_the_batch(data):
    """Data that is no plain block of memory is gathered by NumPy first, with the same results."""
    images, labels = data
    wide = np.stack([images, images], 1)[:, 0]
    assert not wide.flags.c_contiguous
    transform = Compose([RandomCrop(4, padding=1), ToFloat()])
    one, other = (
        DataLoader((x, labels), 5, shuffle=True, key=random.key(3), transform=transform)
        for x in (images, wide)
    )
    for a, b in zip(collect(one), collect(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_order_of_an_epoch(data):
    loader = DataLoader(data, 5, shuffle=True, key=random.key(3))
    np.testing.assert_array_equal(collect(loader.batches(4))[1], loader.order(4))
    np.testing.assert_array_equal(DataLoader(data, 5).order(1), np.arange(23))


def test_how_many_batches_are_prepared_ahead():
    labels = np.zeros(100)
    assert DataLoader((np.zeros((100, 10)), labels), 64).prefetch == 0
    threads = fgrad.get_num_threads()
    try:
        for n in (1, 2):
            fgrad.set_num_threads(n)
            assert DataLoader((np.zeros((100, 4096)), labels), 64).prefetch == n - 1
    finally:
        fgrad.set_num_threads(threads)
    assert DataLoader([(1, 2), (3, 4), (5, 6)], 64).prefetch == 2


class Squares:
    def __len__(self):
        return 7

    def __getitem__(self, i):
        return {"x": np.full((2,), i, np.float32), "n": i, "square": np.float64(i * i)}


@DEPTHS
def test_examples_one_by_one(prefetch):
    loader = DataLoader(Squares(), 3, shuffle=True, key=random.key(0), prefetch=prefetch)
    batches = list(loader)
    assert [len(b["n"]) for b in batches] == [3, 3, 1] and len(loader) == 3
    assert sorted(int(n) for b in batches for n in b["n"]) == list(range(7))
    for b in batches:
        assert b["x"].type == fgrad.numpy.zeros((len(b["n"]), 2)).type and b["square"].dtype == np.float64
        np.testing.assert_array_equal(b["x"][:, 0], b["n"])
        np.testing.assert_array_equal(b["square"], np.asarray(b["n"]) ** 2)


def test_collate_makes_the_batch():
    texts = ["a", "bcd", "ef"]

    def padded(examples):
        width = max(map(len, examples))
        return np.array([list(e.encode()) + [0] * (width - len(e)) for e in examples], np.uint8), examples

    batches = list(DataLoader(texts, 2, collate=padded, transform=lambda x: x + 1))
    assert np.asarray(batches[0][0]).tolist() == [[98, 1, 1], [99, 100, 101]] and batches[0][1] == [
        "a",
        "bcd",
    ]
    assert np.asarray(batches[1][0]).tolist() == [[102, 103]]
    pair = DataLoader((np.arange(3), np.arange(3)), 1, collate=list)  # now two examples, not a pair of arrays
    assert len(pair) == 2


def test_examples_that_do_not_fit_together():
    for examples in ([(1, 2), (1, 2, 3), 4], [np.zeros(2), np.zeros(3), np.zeros(2)]):
        with pytest.raises(ValueError, match=r"the examples do not fit together[\s\S]*give collate="):
            list(DataLoader(examples, 3))


def test_batches_do_not_change_with_the_data(data):
    images, labels = (part.copy() for part in data)
    (x, y), *_ = DataLoader((images, labels), 5, prefetch=0)
    images[:], labels[:] = 0, 0
    np.testing.assert_array_equal(x, data[0][:5])
    np.testing.assert_array_equal(y, data[1][:5])


def test_batches_kept_by_the_caller_stay_as_they_were(data):
    """The memory of a program's results is used again, but only once nobody holds them."""
    loader = DataLoader(data, 1, transform=ToFloat(), prefetch=2)
    kept = [x for x, _ in loader]
    np.testing.assert_allclose(np.concatenate(kept), data[0] / np.float32(255), rtol=1e-6)


def test_data_sets_and_odd_sizes(data):
    class Pictures:
        images, labels = data

    assert len(DataLoader(Pictures(), 23)) == 1
    assert len(DataLoader(Pictures(), 100)) == 1
    assert len(DataLoader(Pictures(), 100, drop_last=True)) == 0
    assert list(DataLoader(Pictures(), 100, drop_last=True)) == []
    assert list(DataLoader((np.zeros((0, 1, 2, 2)), np.zeros(0, int)), 3)) == []


@DEPTHS
def test_abandoned_iteration(data, prefetch):
    loader = DataLoader(data, 2, shuffle=True, key=random.key(0), prefetch=prefetch)
    for i, _ in enumerate(loader):
        if i == 2:
            break
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    with pytest.raises(RuntimeError, match="in the step"):
        for _ in loader:
            raise RuntimeError("in the step")
    iter(loader)  # never started
    del iterator
    gc.collect()


def test_a_with_block_ends_an_iteration(data):
    with DataLoader(data, 2, prefetch=2).batches(0) as batches:
        assert len(batches) == 12
        next(batches)
    assert not any(t.name == "fgrad DataLoader" for t in threading.enumerate())
    assert list(batches) == []
    batches.close()  # twice is no harm


ABANDONED = """
import os, sys
import numpy as np
import fgrad
from fgrad_nn.data import DataLoader

batches = iter(DataLoader((np.zeros((9, 2)), np.arange(9)), 1, prefetch=2))
next(batches)
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        try:
            list(batches)
        except fgrad.FgradError as error:
            os._exit(7 * ("forked" in str(error)))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


def test_the_process_may_end_or_fork_with_an_iteration_open():
    subprocess.run([sys.executable, "-W", "ignore", "-c", ABANDONED], check=True, timeout=60)


def test_an_abandoned_thread_has_ended_when_the_iterator_is_closed():
    made = []

    def items():
        for i in range(1000):
            made.append(i)
            yield i

    iterator = Batches(items(), 3)
    assert next(iterator) == 0
    iterator.close()
    assert not any(t.name == "fgrad DataLoader" for t in threading.enumerate())
    assert len(made) <= 1 + 3 + 1


def test_two_iterations_at_once(data):
    loader = DataLoader(data, 5, shuffle=True, key=random.key(0), transform=ToFloat())
    pairs = list(zip(loader.batches(0), loader.batches(0)))
    assert len(pairs) == 5
    for (x, _), (other, _) in pairs:
        np.testing.assert_array_equal(x, other)


@DEPTHS
def test_an_error_arrives_where_the_batch_is_awaited(data, prefetch):
    def transform(x):
        return broken(x)

    def broken(x):
        if x.shape[0] == 3:
            raise ValueError("the last batch is no good")
        return x

    good = []
    with pytest.raises(ValueError, match="the last batch is no good") as caught:
        for x, _ in DataLoader(data, 5, transform=transform, prefetch=prefetch):
            good.append(x)
    assert len(good) == 4  # what was made before it is not lost
    assert "in broken" in "".join(traceback.format_tb(caught.value.__traceback__))


def test_gone_with_an_exit_of_the_thread(data):
    def transform(x):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(DataLoader(data, 5, transform=transform))


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"shuffle": True}, TypeError, r"shuffle=True needs a random key[\s\S]*key=fgrad\.random\.key\(0\)"),
        (
            {"transform": RandomHorizontalFlip()},
            TypeError,
            r"RandomHorizontalFlip\(p=0\.5\) needs a random key",
        ),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"batch_size": 2.5}, ValueError, "batch_size=2.5"),
        ({"batch_size": "2"}, ValueError, "batch_size='2'"),
        ({"key": 0, "shuffle": True}, TypeError, "key=int 0 is not a random key"),
        ({"transform": ToFloat}, TypeError, "ToFloat is a class"),
        ({"transform": 3}, TypeError, "int 3 is not a transform"),
        ({"prefetch": -1}, ValueError, "prefetch=-1"),
        (
            {"data": (np.zeros((3, 1)), np.zeros(4))},
            ValueError,
            r"float64\[3,1\] and labels float64\[4\] differ",
        ),
        ({"data": np.zeros(3)}, TypeError, "neither a data set nor a pair"),
        ({"data": (np.zeros(()), np.zeros(()))}, ValueError, "differ in length"),
        ({"data": iter(())}, TypeError, "neither a data set nor a pair"),
        ({"collate": 3}, TypeError, "collate=int 3"),
    ],
)
def test_bad_arguments(data, change, error, text):
    with pytest.raises(error, match=text) as caught:
        DataLoader(**{"data": data, "batch_size": 2, **change})
    assert isinstance(caught.value, fgrad.FgradError) and "test_loader.py" in str(caught.value)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(
    "transform, text",
    [
        (RandomCrop(9), "a window of"),
        (lambda images: images[:2], r"the transform made uint8\[2,1,4,4\] of 5 images"),
    ],
)
def test_errors_while_iterating_name_the_loop(data, prefetch, transform, text):
    with pytest.raises(fgrad.FgradError, match=text) as caught:
        for _ in DataLoader(data, 5, key=random.key(0), transform=transform, prefetch=prefetch):
            pass
    assert "test_loader.py" in str(caught.value)
