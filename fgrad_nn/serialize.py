"""Weights and checkpoints as safetensors files, written atomically.

The leaves of a pytree are stored under their dotted paths: ``{"conv1": {"weight": w}}`` becomes ``conv1.weight``, as in
PyTorch's ``state_dict``, so that ``safetensors.torch.load_file`` reads what `save` writes and the other way round.
A checkpoint is the same with a prefix for each part: ``params.conv1.weight``, ``opt_state.mu.conv1.weight``, ``step``.
The format is described at https://github.com/huggingface/safetensors; nothing in it is executed when it is read.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fgrad import FgradDeviceError, device_put
from fgrad import tree as pytree
from fgrad.array import Array, from_numpy
from fgrad.errors import FgradError, describe, message, missing_extra
from fgrad_nn.atomic import replacing

# The format's names of element types.
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "C64": np.dtype("complex64"),
}

# So many entries are listed in an error.
LISTED = 8


class CheckpointError(FgradError):
    """A file of weights is absent, damaged, or does not fit; or a tree cannot be saved."""


class Checkpoint(NamedTuple):
    """What `load_checkpoint` returns; a part that was not asked for, or not saved, is None."""

    params: Any
    opt_state: Any
    state: Any
    key: Any
    step: int | None
    metadata: dict[str, str]


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    step: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the arrays of a pytree to a safetensors file; ``path`` is replaced at once or not at all.

    Leaves are anything with ``__array__`` (fgrad, NumPy, bfloat16 included) and Python numbers. ``step`` goes into
    the file's metadata, which are strings.

    Raises:
        CheckpointError: a leaf that the format cannot hold, two leaves of one name, metadata that are not strings,
            a file that cannot be written.
        FgradDeviceError: an array on a GPU: save what `fgrad.device_get(tree)` returns.
        ImportError: safetensors is not installed (extra ``data``).
    """
    _write("save", path, _named_arrays("save", tree), step, metadata)


def load(path: str | os.PathLike[str], *, nested: bool = True) -> dict[str, Any]:
    """The arrays of a safetensors file, as NumPy arrays in nested dicts: ``conv1.weight`` is ``["conv1"]["weight"]``.

    Lists and tuples come back as dicts with the keys ``"0"``, ``"1"``, …; `load_into` restores them as they were.
    With ``nested=False`` the dict has the dotted names.

    Raises:
        CheckpointError: the file is absent, truncated or damaged, or has both ``a`` and ``a.b`` (if ``nested``).
    """
    flat = _read("load", path)[0]
    if not nested:
        return flat
    result: dict[str, Any] = {}
    for name, array in flat.items():
        *folders, last = name.split(".")
        node = result
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            problem = f"{os.fspath(path)} has both {name!r} and a name that begins or continues it"
            raise CheckpointError(message("load", problem, "pass nested=False to get the names as they are"))
        node[last] = array
    return result


def load_into(path: str | os.PathLike[str], like: Any, *, strict: bool = True) -> Any:
    """The arrays of a safetensors file in the structure of ``like``, each with the kind of the leaf it takes the place of.

    A leaf that is an fgrad array gives an fgrad array (on the device where the leaf is), a Python number gives a Python number, anything else with a
    shape and a dtype gives a NumPy array. With ``strict=False`` entries that ``like`` has no place for are left out.
    A PyTorch ``state_dict`` with batch norm holds our params and our state under one set of names:

        params = nn.load_into(path, net.init(key), strict=False)
        state = nn.load_into(path, net.init_state(), strict=False)

    Raises:
        CheckpointError: lists every entry that is missing, unexpected (if ``strict``), or of another shape or dtype.
    """
    flat = _read("load_into", path)[0]
    if not strict:
        places = {name for name, _ in pytree.leaves_with_path(like)}
        flat = {name: array for name, array in flat.items() if name in places}
    return _fill("load_into", path, flat, {"": like})[""]


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The strings that were saved beside the arrays (``step`` among them, if it was given to `save`)."""
    return _read("read_metadata", path)[1]


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    params: Any,
    opt_state: Any = None,
    state: Any = None,
    key: Any = None,
    step: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write all that training needs to go on to one file, atomically: see `save`.

    ``state`` is what the network keeps besides its parameters (running statistics), ``key`` a random key.
    """
    parts = {"params": params, "opt_state": opt_state, "state": state, "key": key}
    tree: dict[str, Any] = {name: part for name, part in parts.items() if part is not None}
    if step is not None:
        tree["step"] = np.asarray(step, np.int64)
    _write("save_checkpoint", path, _named_arrays("save_checkpoint", tree), None, metadata)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    params_like: Any,
    opt_state_like: Any = None,
    state_like: Any = None,
    key_like: Any = None,
) -> Checkpoint:
    """Read what `save_checkpoint` wrote; each part takes the structure of its ``…_like``, as in `load_into`.

    A part whose ``…_like`` is None is not restored (its entries may be in the file or not).

    Raises:
        CheckpointError: as `load_into`, with the full names (``params.conv1.weight``).
    """
    flat, metadata = _read("load_checkpoint", path)
    likes = {"params": params_like, "opt_state": opt_state_like, "state": state_like, "key": key_like}
    likes = {name: like for name, like in likes.items() if like is not None}
    step = flat.pop("step", None)
    wanted = {name: array for name, array in flat.items() if name.split(".")[0] in likes}
    if flat and not any(name.split(".")[0] == "params" for name in flat):
        problem = f"{os.fspath(path)} has no entries under 'params.'; it has {_shorten(sorted(flat))}"
        fix = "this is a file of weights without prefixes: read it with load_into"
        raise CheckpointError(message("load_checkpoint", problem, fix))
    parts = _fill("load_checkpoint", path, wanted, likes)
    return Checkpoint(
        params=parts["params"],
        opt_state=parts.get("opt_state"),
        state=parts.get("state"),
        key=parts.get("key"),
        step=None if step is None else int(step),
        metadata=metadata,
    )


def _named_arrays(call: str, tree: Any) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    for name, leaf in pytree.leaves_with_path(tree):
        if not name:
            problem = f"{describe(leaf)} has no name to be stored under"
            raise CheckpointError(message(call, problem, "put it into a dict: {'weight': array}"))
        if name in result:
            problem = f"two entries have the name {name!r}"
            raise CheckpointError(message(call, problem, "use keys without dots, or rename one of them"))
        if isinstance(leaf, Array) and getattr(leaf, "device", "cpu") != "cpu":
            problem = f"entry {name!r}, {describe(leaf)}, is on {leaf.device}, and nothing is copied from there silently"
            raise FgradDeviceError(message(call, problem, "save what fgrad.device_get(tree) returns"))
        # Not ascontiguousarray, which gives an array without axes one.
        array = np.asarray(leaf, order="C")
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if array.dtype not in DTYPES.values():
            fix = "leave it out, convert it to a supported dtype, or put text into metadata="
            if array.dtype.kind == "c":
                fix = "convert it to complex64, or save its real and imaginary parts"
            problem = (
                f"entry {name!r} is {describe(leaf)} of dtype {array.dtype}, which safetensors cannot hold"
            )
            raise CheckpointError(message(call, problem, fix))
        result[name] = array
    return result


def _write(
    call: str,
    path: str | os.PathLike[str],
    arrays: dict[str, np.ndarray],
    step: int | None,
    metadata: Mapping[str, str] | None,
) -> None:
    texts = dict(metadata or {})
    if step is not None:
        texts["step"] = str(int(step))
    for key, text in texts.items():
        if not isinstance(key, str) or not isinstance(text, str):
            problem = f"metadata must map strings to strings, got {key!r}: {describe(text)}"
            raise CheckpointError(message(call, problem, "convert it with str() or json.dumps()"))
    safetensors = _safetensors(call)
    try:
        with replacing(path) as temporary:
            safetensors.numpy.save_file(arrays, str(temporary), metadata=texts or None)
    except (OSError, safetensors.SafetensorError) as error:
        problem = f"cannot write {os.fspath(path)}: {getattr(error, 'strerror', None) or error}"
        fix = "give the path of a file in a folder that may be written to; what was there before is as it was"
        raise CheckpointError(message(call, problem, fix)) from error


def _read(call: str, path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    safetensors = _safetensors(call)
    name = os.fspath(path)
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        problem = f"cannot read {name}: {error.strerror or error}"
        raise CheckpointError(
            message(call, problem, "give the path of a file that save has written")
        ) from error
    try:
        entries = safetensors.deserialize(data)
        with safetensors.safe_open(name, framework="np") as opened:
            metadata = dict(opened.metadata() or {})
    except safetensors.SafetensorError as error:
        problem = f"{name} ({len(data):,} bytes) is truncated or not a safetensors file: {error}"
        raise CheckpointError(message(call, problem, "use an undamaged copy of it")) from error
    arrays = {}
    for entry, view in entries:
        if view["dtype"] not in DTYPES:
            problem = f"entry {entry!r} of {name} has the element type {view['dtype']}"
            raise CheckpointError(message(call, problem, f"convert it to one of {', '.join(DTYPES)}"))
        # A copy of its own: aligned, writable, and not keeping the whole file in memory.
        arrays[entry] = np.frombuffer(view["data"], DTYPES[view["dtype"]]).reshape(view["shape"]).copy()
    return arrays, metadata


def _fill(
    call: str, path: str | os.PathLike[str], arrays: dict[str, np.ndarray], likes: dict[str, Any]
) -> dict[str, Any]:
    """Each of ``likes`` with its leaves taken from ``arrays``, under the like's own name as a prefix."""
    result, missing, different = {}, [], []
    left = dict(arrays)
    for prefix, like in likes.items():
        leaves = []
        for name, leaf in pytree.leaves_with_path(like):
            name = ".".join(filter(None, (prefix, name)))
            array = left.pop(name, None)
            expected = leaf if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else np.asarray(leaf)
            if array is None:
                missing.append(f"{name}: {describe(expected)}")
                continue
            if array.shape != tuple(expected.shape) or array.dtype != expected.dtype:
                different.append(f"{name}: {describe(array)} in the file, expected {describe(expected)}")
            leaves.append(_as_leaf(array, leaf))
        if not missing:
            result[prefix] = pytree.unflatten(pytree.structure(like), leaves)
    unexpected = [f"{name}: {describe(array)}" for name, array in left.items()]
    problems = {"missing in the file": missing, "unexpected": sorted(unexpected), "different": different}
    if any(problems.values()):
        listed = "".join(f"\n    {title}: {_shorten(items)}" for title, items in problems.items() if items)
        fix = "build the structure with the network that was saved"
        if unexpected and not missing and not different and call == "load_into":
            fix += ", or leave them out with strict=False"
        raise CheckpointError(message(call, f"{os.fspath(path)} does not fit:{listed}", fix))
    return result


def _as_leaf(array: np.ndarray, leaf: Any) -> Any:
    if isinstance(leaf, (bool, int, float, complex)) and array.ndim == 0:
        return array.item()
    if not isinstance(leaf, Array):
        return array
    return device_put(from_numpy(array), getattr(leaf, "device", "cpu"))


def _shorten(items: list[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return "; ".join(items[:LISTED]) + more


def _safetensors(call: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise missing_extra("safetensors", "data", f"fgrad_nn.{call}") from error
    return safetensors
