"""Weights and checkpoints: read back as they were, by PyTorch too, and never half written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrad.array import Array, from_numpy
from fgrad_nn import atomic
from fgrad_nn.serialize import (
    DTYPES,
    CheckpointError,
    load,
    load_checkpoint,
    load_into,
    read_metadata,
    save,
    save_checkpoint,
)


class AdamState(NamedTuple):
    count: Any
    mu: Any
    nu: Any


def params(rng):
    return {
        "conv1": {
            "weight": rng.normal(size=(4, 1, 3, 3)).astype("f4"),
            "bias": rng.normal(size=4).astype("f4"),
        },
        "fc": [{"weight": rng.normal(size=(10, 8)).astype("f4")}, {"weight": np.float32(3)}],
    }


def assert_same(got: Any, expected: Any) -> None:
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        got, expected = list(got.values()), [expected[key] for key in got]
    if isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype and got.shape == expected.shape
        assert got.tobytes() == expected.tobytes()
    else:
        assert got == expected


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype(dtype, rng, tmp_path):
    tree = {
        "a": rng.integers(0, 2, (2, 3)).astype(dtype),
        "empty": np.zeros((0, 2), dtype),
        "s": np.ones((), dtype),
    }
    save(tmp_path / "w.safetensors", tree)
    assert_same(load(tmp_path / "w.safetensors"), dict(sorted(tree.items())) | tree)
    assert_same(load_into(tmp_path / "w.safetensors", tree), tree)


def test_structures(tmp_path, rng):
    tree = {
        "net": params(rng)["conv1"],
        "opt": (AdamState(7, {"w": np.arange(3.0)}, None), [np.arange(4, dtype="u4")], ()),
        "rate": 0.5,
        "flag": True,
    }
    path = tmp_path / "tree.safetensors"
    save(path, tree)
    assert_same(load_into(path, tree), tree)
    assert sorted(load(path, nested=False)) == [
        "flag",
        "net.bias",
        "net.weight",
        "opt.0.count",
        "opt.0.mu.w",
        "opt.1.0",
        "rate",
    ]
    assert load(path)["opt"]["1"]["0"].tolist() == [0, 1, 2, 3]


def test_layouts_that_are_not_contiguous(tmp_path):
    base = np.arange(24, dtype="f4").reshape(4, 6)
    tree = {
        "t": base.T,
        "step": base[::2, ::3],
        "reversed": base[::-1],
        "big": base.astype(">f4"),
        "x": np.float32(2),
    }
    save(tmp_path / "w", tree)
    for name, array in load(tmp_path / "w").items():
        np.testing.assert_array_equal(array, tree[name])
        assert array.flags.writeable and array.dtype == np.float32


def test_fgrad_arrays(tmp_path):
    tree = {
        "w": from_numpy(np.arange(6, dtype="f4").reshape(2, 3)),
        "b": from_numpy(np.ones(2, ml_dtypes.bfloat16)),
    }
    save(tmp_path / "w", tree)
    got = load_into(tmp_path / "w", tree)
    assert isinstance(got["w"], Array) and isinstance(got["b"], Array)
    np.testing.assert_array_equal(np.asarray(got["w"]), np.asarray(tree["w"]))
    assert got["b"].dtype == np.dtype(ml_dtypes.bfloat16)


names = st.text("abc_0", min_size=1, max_size=3)
arrays = st.integers(0, 3).map(lambda n: np.arange(n, dtype="f4"))
trees = st.recursive(
    arrays,
    lambda inner: st.one_of(
        st.dictionaries(names, inner, max_size=3), st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=6,
)


@given(tree=st.dictionaries(names, trees, max_size=3))
def test_any_tree_round_trips(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("trees") / "w"
    save(path, tree)
    assert_same(load_into(path, tree), tree)


def test_pytorch_reads_and_writes_the_same_files(torch, tmp_path):
    from safetensors.torch import load_file, save_file

    net = torch.nn.Sequential()
    net.add_module("conv1", torch.nn.Conv2d(1, 4, 3))
    net.add_module("norm", torch.nn.BatchNorm2d(4))
    net.add_module("fc", torch.nn.Sequential(torch.nn.Linear(4, 2)))
    save_file(net.state_dict(), tmp_path / "torch.safetensors")
    tree = load(tmp_path / "torch.safetensors")
    assert tree["conv1"]["weight"].shape == (4, 1, 3, 3) and tree["norm"]["num_batches_tracked"].shape == ()
    np.testing.assert_array_equal(tree["fc"]["0"]["bias"], net.fc[0].bias.detach().numpy())

    tree["conv1"]["weight"] = tree["conv1"]["weight"] + 1
    tree["fc"] = [tree["fc"]["0"]]
    save(tmp_path / "fgrad.safetensors", tree)
    before = net.conv1.weight.detach().numpy().copy()
    net.load_state_dict(load_file(tmp_path / "fgrad.safetensors"))
    np.testing.assert_array_equal(net.conv1.weight.detach().numpy(), before + 1)

    save(tmp_path / "half.safetensors", {"w": np.array([1.5, -2], ml_dtypes.bfloat16)})
    assert load_file(tmp_path / "half.safetensors")["w"].dtype == torch.bfloat16


def test_metadata_and_step(tmp_path):
    save(tmp_path / "w", {"a": np.zeros(1)}, step=12, metadata={"note": "ü"})
    assert read_metadata(tmp_path / "w") == {"note": "ü", "step": "12"}
    save(tmp_path / "w", {"a": np.zeros(1)})
    assert read_metadata(tmp_path / "w") == {}
    with pytest.raises(CheckpointError, match=r"'epoch': int 3"):
        save(tmp_path / "w", {"a": np.zeros(1)}, metadata={"epoch": 3})


def test_checkpoint(tmp_path, rng):
    net = params(rng)
    opt = AdamState(np.int32(5), params(rng), params(rng))
    key, running = np.array([1, 2], "u4"), {"norm": {"running_mean": np.zeros(4, "f4")}}
    path = tmp_path / "run" / "last.safetensors"
    save_checkpoint(
        path, params=net, opt_state=opt, state=running, key=key, step=900, metadata={"by": "test"}
    )
    got = load_checkpoint(path, params_like=net, opt_state_like=opt, state_like=running, key_like=key)
    assert_same(got.params["conv1"], net["conv1"])
    assert type(got.opt_state) is AdamState
    assert_same(got.opt_state.mu["conv1"], opt.mu["conv1"])
    assert_same(got.state, running)
    assert got.key.tolist() == [1, 2]
    assert got.step == 900 and got.metadata == {"by": "test"}
    assert {"params.conv1.weight", "opt_state.mu.fc.0.weight", "opt_state.count", "key", "step"} <= set(
        load(path, nested=False)
    )
    # Only the parameters, for inference.
    got = load_checkpoint(path, params_like=net)
    assert_same(got.params["conv1"], net["conv1"])
    assert got.opt_state is None and got.key is None
    # Other parameters than those saved.
    with pytest.raises(CheckpointError, match=r"missing in the file: params\.conv9: float64\[2\]"):
        load_checkpoint(path, params_like={**net, "conv9": np.zeros(2)})
    save(path, net)
    with pytest.raises(CheckpointError, match="read it with load_into"):
        load_checkpoint(path, params_like=net)


def test_checkpoint_without_optional_parts(tmp_path):
    save_checkpoint(tmp_path / "c", params={"w": np.zeros(2)})
    got = load_checkpoint(tmp_path / "c", params_like={"w": np.zeros(2)})
    assert got.step is None and got.opt_state is None and got.metadata == {}
    with pytest.raises(CheckpointError, match=r"missing in the file: key"):
        load_checkpoint(tmp_path / "c", params_like={"w": np.zeros(2)}, key_like=np.zeros(2, "u4"))


def test_what_does_not_fit_is_listed(tmp_path):
    path = tmp_path / "w"
    save(
        path,
        {
            "a": np.zeros((2, 3), "f4"),
            "b": np.zeros(3, "f4"),
            "c": {"d": np.zeros(1)},
            "e": np.zeros(2, "f4"),
        },
    )
    like = {
        "a": np.zeros((3, 2), "f4"),
        "b": np.zeros(3, "f8"),
        "x": {"y": np.zeros((4, 5), "f4")},
        "e": np.zeros(2, "f4"),
    }
    with pytest.raises(CheckpointError) as caught:
        load_into(path, like)
    text = str(caught.value)
    assert "load_into" in text and str(path) in text and "fix:" in text and "test_serialize.py" in text
    assert "missing in the file: x.y: float32[4,5]" in text
    assert "unexpected: c.d: float64[1]" in text
    assert "a: float32[2,3] in the file, expected float32[3,2]" in text
    assert "b: float32[3] in the file, expected float64[3]" in text
    assert "e: float32[2]" not in text


def test_many_misfits_are_counted(tmp_path):
    save(tmp_path / "w", {f"layer{i:03}": np.zeros(1) for i in range(100)})
    with pytest.raises(CheckpointError, match=r"layer007: float64\[1\] and 92 more"):
        load_into(tmp_path / "w", {})


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"a": {"b": np.zeros(1)}, "a.b": np.zeros(1)}, "two entries have the name 'a.b'"),
        (np.zeros(3), "has no name"),
        ({"net": {"act": "relu"}}, r"entry 'net.act' is str 'relu'"),
        ({"z": np.zeros(2, "c16")}, "convert it to complex64"),
        ({"o": np.array([None])}, "which safetensors cannot hold"),
    ],
)
def test_trees_that_cannot_be_saved(tree, problem, tmp_path):
    with pytest.raises(CheckpointError, match=problem):
        save(tmp_path / "w", tree)
    assert os.listdir(tmp_path) == []


def test_damaged_and_absent_files(tmp_path, rng):
    path = tmp_path / "w"
    save(path, params(rng))
    whole = path.read_bytes()
    for content in (b"", whole[:5], whole[:100], whole[:-1], whole + b"!", b"\x80\x04K\x01." * 9):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=rf"{len(content)} bytes\) is truncated or not a safetensors"
        ):
            load(path)
        assert path.read_bytes() == content
    with pytest.raises(CheckpointError, match="No such file"):
        load(tmp_path / "none")


def test_names_that_do_not_nest(tmp_path):
    from safetensors.numpy import save_file

    for names in (("a", "a.b"), ("a.b", "a.b.c.d")):
        save_file({name: np.zeros(1) for name in names}, tmp_path / "w")
        with pytest.raises(CheckpointError, match="nested=False"):
            load(tmp_path / "w")
        assert sorted(load(tmp_path / "w", nested=False)) == list(names)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w"
    save(path, {"a": np.zeros(3)})

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "sync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(path, {"a": np.ones(3)})
    assert os.listdir(tmp_path) == ["w"]
    assert load(path)["a"].tolist() == [0, 0, 0]


def test_a_link_stays_a_link(tmp_path):
    save(tmp_path / "epoch1", {"a": np.zeros(1)})
    (tmp_path / "latest").symlink_to("epoch1")
    save(tmp_path / "latest", {"a": np.ones(1)})
    assert (tmp_path / "latest").is_symlink()
    assert load(tmp_path / "epoch1")["a"].tolist() == [1]


KILLED = """
import sys, numpy as np
from fgrad_nn.serialize import save_checkpoint
step = 0
while True:
    step += 1
    save_checkpoint(sys.argv[1], params={f"w{i}": np.full(300_000, step, "f4") for i in range(4)}, step=step)
    print(step, flush=True)
"""


def test_kill_in_the_middle_of_a_save_loses_nothing(tmp_path, rng):
    path = tmp_path / "checkpoint.safetensors"
    like = {f"w{i}": np.zeros(300_000, "f4") for i in range(4)}
    interrupted = 0
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        reported = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.02))
        # The last attempt waits for a file that is being written, so that one kill is in the middle for certain.
        deadline = time.monotonic() + 30
        while attempt == 5 and not list(tmp_path.glob(".*.tmp")) and time.monotonic() < deadline:
            pass
        process.kill()
        reported = max([reported, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        interrupted += len(list(tmp_path.glob(".*.tmp")))
        for left in tmp_path.glob(".*.tmp"):
            left.unlink()
        got = load_checkpoint(path, params_like=like)
        assert got.step in (reported, reported + 1)
        assert all((array == got.step).all() for array in got.params.values())
    assert interrupted


def test_one_file_of_params_and_state(tmp_path):
    params, state = {"bn": {"weight": np.ones(3, "f4")}}, {"bn": {"mean": np.zeros(3, "f4")}}
    save(tmp_path / "w", {"bn": {**params["bn"], **state["bn"]}})
    for part in (params, state):
        got = load_into(tmp_path / "w", part, strict=False)
        assert got.keys() == part.keys() and got["bn"].keys() == part["bn"].keys()
    with pytest.raises(CheckpointError, match=r"unexpected: bn\.mean[\s\S]*strict=False"):
        load_into(tmp_path / "w", params)
    with pytest.raises(CheckpointError, match=r"missing in the file: bn\.bias"):
        load_into(tmp_path / "w", {"bn": {"bias": np.ones(3, "f4")}}, strict=False)


def test_a_folder_cannot_be_overwritten(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write") as caught:
        save(tmp_path, {"a": np.zeros(1)})
    assert "test_serialize.py" in str(caught.value) and not list(tmp_path.parent.glob(".*.tmp"))


def test_safetensors_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'fgrad\[data\]'"):
        save(tmp_path / "w", {"a": np.zeros(1)})
