"""The scripts in examples/ as a user runs them: small here, in full under the marker `slow`."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ["digits", "mnist", "fashion_mnist", "cifar10"]


def run(name, *options, cwd, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", *options],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=3000,
    )


def accuracy(done):
    """The figure in the last line, which is promised to look like this."""
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"test accuracy: (\d+\.\d\d) %", last)
    assert found, last
    return float(found[1])


def test_digits(tmp_path):
    done = run("digits", cwd=tmp_path)
    assert accuracy(done) >= 97
    assert "Conv2d(1, 32" in done.stdout  # the network
    assert re.search(r"\d+ fused kernels, \d+ contractions", done.stdout)  # what was compiled
    assert "training" in done.stderr and "100%" in done.stderr  # the progress bar
    assert (tmp_path / "runs" / "digits.safetensors").exists()


def test_equal_seeds_give_equal_runs(tmp_path):
    options = ("--epochs", "1", "--limit", "3")
    runs = [
        run("digits", *options, "--seed", seed, "--save", f"{i}.safetensors", cwd=tmp_path)
        for i, seed in enumerate("112")
    ]
    assert accuracy(runs[0]) == accuracy(runs[1])
    files = [(tmp_path / f"{i}.safetensors").read_bytes() for i in range(3)]
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("name", NAMES)
def test_help_and_devices(name, tmp_path):
    done = run(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    for option in ("--epochs", "--seed", "--device", "--batch-size", "--data-dir", "--save", "--limit"):
        assert option in done.stdout
    done = run(name, "--device", "tpu", cwd=tmp_path)
    assert done.returncode == 2
    assert "'tpu' is no device: use cpu or cuda" in done.stderr


def weights(path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="reads the weights that examples save")
    return safetensors.load_file(path)


@pytest.mark.parametrize("name", NAMES)
def test_on_a_simulated_gpu(name, request, tmp_path):
    """The whole script at a tiny size: a step of two examples, saving, loading and a batch of the test, as on the CPU."""
    pytest.importorskip("numba_cuda", reason="needs numba-cuda, for its simulator")
    if name != "digits":
        request.getfixturevalue("data_dir")
    options = ("--epochs", "1", "--limit", "1", "--batch-size", "2")
    found = {}
    for device in ("cpu", "cuda"):
        done = run(
            *(name, *options, "--device", device, "--save", f"{device}.safetensors"),
            cwd=tmp_path,
            NUMBA_ENABLE_CUDASIM="1",
            FGRAD_WINOGRAD="0",  # which only the CPU has, and which rounds otherwise
        )
        loss = re.search(r"loss (\d+\.\d+)", done.stdout + done.stderr)
        found[device] = accuracy(done), loss and float(loss[1]), weights(tmp_path / f"{device}.safetensors")
    (right, loss, ours), (right_there, loss_there, theirs) = found["cpu"], found["cuda"]
    assert right == right_there and loss == pytest.approx(loss_there, abs=2e-4)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        # Adam's first step is the sign of a gradient, whatever its size: of a few that are all rounding it may differ.
        away = np.abs(value - theirs[key])
        assert np.quantile(away, 0.99) < 1e-5 and away.max() < 1e-2, key


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_few_batches_of_real_data(name, data_dir, tmp_path):
    options = ["--plot", "plots"] if name == "cifar10" else []
    done = run(
        name, "--epochs", "1", "--limit", "20", "--save", "weights.safetensors", *options, cwd=tmp_path
    )
    assert 5 < accuracy(done) < 95
    assert (tmp_path / "weights.safetensors").stat().st_size > 100_000
    assert "epoch 1: loss" in done.stdout
    if name == "cifar10":
        assert len(re.findall(r"accuracy for \w+: +[\d.]+ %", done.stdout)) == 10
        for picture in ("loss.png", "predictions.png"):
            assert (tmp_path / "plots" / picture).read_bytes().startswith(b"\x89PNG")


def test_data_that_cannot_be_had(tmp_path):
    nowhere = {f"{p}_proxy": "http://127.0.0.1:9" for p in ("http", "https")}
    done = run("mnist", "--data-dir", "nothing", cwd=tmp_path, no_proxy="", **nowhere)
    assert done.returncode == 1
    assert "DataError" in done.stderr and "train-images-idx3-ubyte.gz" in done.stderr


@pytest.mark.slow
# The last steps of CIFAR-10, four images at a time, move the accuracy by a point and a half either way (PyTorch's too).
@pytest.mark.parametrize("name, least", [("mnist", 98.5), ("cifar10", 51.5), ("fashion_mnist", 60.0)])
def test_full_training_on_real_data(name, least, data_dir, tmp_path):
    assert accuracy(run(name, cwd=tmp_path)) >= least
