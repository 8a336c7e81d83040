"""What fuzzers run: bytes become a model on disk, and everything that is read of a model is read.

An input is four bytes and a body. The first byte says what the body is (`KINDS`, counted from the
digit 0 on, so that seeds are legible). The others repeat a piece of the body up to a million bytes,
since mutations alone never make a long one: a letter from `a` on for twice, four times and so on,
where the piece begins (in 256ths of the body), and its length; `0...` repeats nothing.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from probex_jax.errors import ProbexError
from probex_jax.files import layer_folder
from probex_jax.model_files import (
    ModelFile,
    fingerprint,
    open_model,
    read_stated,
    select_layers,
    stated_base,
)
from probex_jax.model_files.architecture import same_base
from probex_jax.zoo.label_files import Labels
from probex_jax.zoo.model_j import stated_in_metadata
from probex_jax.zoo.tables import Names, find_labels

KINDS = (
    *("file", "header", "index", "adapter", "config", "card", "labels", "scales", "revision"),
    *("gguf", "msgpack", "npz", "hdf5", "keras", "tree", "zarr", "tags", "sidecar"),
    *("table", "rows"),
)
SECONDS, PEAK_BYTES = 1.0, 64_000_000
CONTROL_BYTES = 4
_MAX_BODY = 1_000_000
_MAX_ZEROS = 1_000_000

_END = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d{1,7}\s*,\s*(\d{1,7})\s*\]')
_SINGLE = "model.safetensors"


def ones(*shape: int, dtype: Any = "f4") -> np.ndarray:
    return np.ones(shape, dtype)


PEFT = {
    f"base_model.model.conv_in.lora_{half}.weight": ones(*shape)
    for half, shape in {"A": (2, 3, 3, 3), "B": (4, 2, 1, 1)}.items()
} | {
    f"base_model.model.mid_block.attentions.0.to_q.lora_{half}.weight": ones(*shape)
    for half, shape in {"A": (2, 3), "B": (3, 2)}.items()
}
SHARDS = {"m-1.safetensors": {"a": ones(2, 2)}, "m-2.safetensors": {"b": ones(3, 2), "c": ones(2)}}
GOOD = save({"layer.0.weight": ones(3, 4), "layer.0.bias": ones(3)})


# A checkpoint of Orbax: an array, in one chunk, and the keys of its tree.
TREE = json.dumps(
    {
        "tree_metadata": {
            "('a', 'kernel')": {
                "key_metadata": [{"key": "a", "key_type": 2}, {"key": "kernel", "key_type": 2}],
                "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
            }
        }
    }
).encode()
ZARR = (
    b'{"chunks":[2,3],"compressor":null,"dimension_separator":".","dtype":"<f4","fill_value":null,'
    b'"filters":null,"order":"C","shape":[2,3],"zarr_format":2}'
)
CHUNK = {"a.kernel/0.0": ones(2, 3).tobytes()}


def wrapped(header: bytes) -> bytes:
    """A header with its length and as many zero bytes of data as it asks for."""
    zeros = max((int(end) for end in _END.findall(header)), default=0)
    return len(header).to_bytes(8, "little") + header + bytes(min(zeros, _MAX_ZEROS))


def with_metadata(tensors: dict[str, np.ndarray], *keys: str) -> Callable[[bytes], bytes]:
    """A file that has one text under some keys of its metadata; of several keys a part of it."""
    data = save(tensors)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])

    def make(body: bytes) -> bytes:
        text = body[: _MAX_BODY // len(keys)].decode(errors="ignore")
        entries = {"__metadata__": dict.fromkeys(keys, text), **header}
        return wrapped(json.dumps(entries, ensure_ascii=False).encode())

    return make


def _as_it_is(body: bytes) -> bytes:
    return body


# Of each kind: the file that the body becomes, how, and the good files beside it.
_MADE: dict[str, tuple[str, Callable[[bytes], bytes], dict[str, bytes]]] = {
    "file": (_SINGLE, _as_it_is, {}),
    "header": (_SINGLE, wrapped, {}),
    "index": (f"{_SINGLE}.index.json", _as_it_is, {k: save(v) for k, v in SHARDS.items()}),
    "adapter": ("adapter_config.json", _as_it_is, {"adapter_model.safetensors": save(PEFT)}),
    "config": ("config.json", _as_it_is, {_SINGLE: GOOD}),
    "card": ("README.md", _as_it_is, {_SINGLE: GOOD}),
    "labels": (
        _SINGLE,
        with_metadata({"w": ones(2, 2)}, "dataset_chosen_targets", "base_model"),
        {},
    ),
    "scales": (_SINGLE, with_metadata(PEFT, "lora_adapter_metadata"), {}),
    "tags": (
        _SINGLE,
        with_metadata(
            {"w": ones(2, 2)},
            "ss_tag_frequency",
            "ss_dataset_dirs",
            "ss_datasets",
            "ot_config",
            "ss_steps",
            "modelspec.tags",
        ),
        {},
    ),
    "sidecar": ("model.civitai.info", _as_it_is, {_SINGLE: GOOD}),
    "table": ("labels.csv", _as_it_is, {_SINGLE: GOOD}),
    "rows": ("labels.json", _as_it_is, {_SINGLE: GOOD}),
    "revision": ("refs/main", _as_it_is, {f"snapshots/0123abcd/{_SINGLE}": GOOD}),
    "gguf": ("a.gguf", _as_it_is, {}),
    "msgpack": ("flax_model.msgpack", _as_it_is, {}),
    "npz": ("a.npz", _as_it_is, {}),
    "hdf5": ("a.weights.h5", _as_it_is, {}),
    "keras": ("a.keras", _as_it_is, {}),
    "tree": ("_METADATA", _as_it_is, {"a.kernel/.zarray": ZARR, **CHUNK}),
    "zarr": ("a.kernel/.zarray", _as_it_is, {"_METADATA": TREE, **CHUNK}),
}


class Target:
    """A folder a kind, made once; an input rewrites one file of one of them.

    Args:
      root: where the folders are to be; on a disk in memory it is quicker.
    """

    def __init__(self, root: Path):
        self._root = root
        for kind, (made, _, others) in _MADE.items():
            for name, content in {made: b"", **others}.items():
                path = root / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def write(self, data: bytes) -> Path:
        """Turns an input into a model; returns its folder."""
        control, body = data[:CONTROL_BYTES].ljust(CONTROL_BYTES, b"0"), data[CONTROL_BYTES:]
        kind = kind_of(data)
        name, make, _ = _MADE[kind]
        (self._root / kind / name).write_bytes(make(_swollen(body, *control[1:])))
        return self._root / kind


def kind_of(data: bytes) -> str:
    """What the body of an input is."""
    return KINDS[(data[0] - ord("0")) % len(KINDS)] if data else KINDS[0]


def _swollen(body: bytes, doublings: int, where: int, length: int) -> bytes:
    at = where * len(body) // 256
    piece = body[at : at + length + 1]
    if not (ord("a") <= doublings <= ord("p") and piece):
        return body
    times = min(2 ** (doublings - ord("a") + 1), (_MAX_BODY - len(body)) // len(piece))
    return body[:at] + times * piece + body[at:]


def read_all(folder: Path) -> str:
    """Everything that the library reads of one model; each error is one line of a ProbexError.

    Returns:
      "opened" or "refused".
    """
    refusals = []

    def attempt(read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except ProbexError as error:
            refusals.append(str(error))
            return None

    labels, _ = attempt(find_labels, folder, Names(["a", "b"])) or (Labels({}), {})
    assert all(message.startswith(str(folder)) for message in refusals), refusals
    named = {name: column for name, column in labels.columns.items() if name}
    json.dumps([named, labels.numbers], ensure_ascii=False, allow_nan=False).encode()
    model = attempt(open_model, folder)
    if model is not None:
        with model:
            for name in model.all_layers:
                _read_layer(model, name, attempt)
            for name in model.tensors:
                assert ".." not in name.split("/"), name
                attempt(model.tensor, name)
            attempt(fingerprint, model)
            base = attempt(stated_base, model)
            assert len(base) <= 200, base
            assert base.isprintable(), base
            assert same_base(base, base)
            attempt(stated_in_metadata, model)
            said = dataclasses.asdict(read_stated(model))
            json.dumps(said, allow_nan=False).encode()
            assert all(map(str.isprintable, texts_in(said))), said
            assert sum(map(len, texts_in(said))) < 500_000
            attempt(lambda: model.unscaled)
            attempt(lambda: model.config)
            attempt(select_layers, model.all_layers, 0, model.vectors)
            attempt(select_layers, model.all_layers, [*model.all_layers][:2])
            attempt(model.matrix, "layer.0.wieght")
            attempt(model.check_unchanged)
    else:
        assert refusals[-1].startswith(str(folder)), refusals
    for message in refusals:
        assert message.isprintable(), message
        assert len(message) < 1500, message
    return "refused" if model is None else "opened"


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.items() for text in texts_in(item))
    elif isinstance(value, tuple | list):
        yield from (text for item in value for text in texts_in(item))


def _read_layer(model: ModelFile, name: str, attempt: Callable[..., Any]) -> None:
    shape = model.all_layers[name].shape
    matrix = attempt(model.matrix, name)
    assert matrix is None or matrix.shape == shape
    rows = attempt(model.rows, name, [shape[0] - 1, 0])
    assert rows is None or (rows.shape == (2, shape[1]) and np.isfinite(rows).all())
    if isinstance(matrix, np.ndarray):
        np.testing.assert_array_equal(rows, matrix[[-1, 0]])
    assert ".." not in name.split("/"), name
    folder = attempt(layer_folder, Path("layers"), name)
    assert folder is None or (folder.parent == Path("layers") and folder.name != "..")


def check_reference(folder: Path) -> None:
    """What we open, the safetensors library opens, and finds the same tensors in it."""
    try:
        with open_model(folder) as model:
            ours = {name: [info.dtype, *info.shape] for name, info in model.tensors.items()}
    except ProbexError:
        return
    data = (folder / _SINGLE).read_bytes()
    try:
        found = deserialize(data)
    except SafetensorError as error:
        if b"-0" in data:
            return  # as a size: nothing in Python, of the wrong type in Rust
        raise AssertionError(f"the reference refuses it: {error}") from error
    assert ours == {name: [entry["dtype"], *entry["shape"]] for name, entry in found}


def run(target: Target, data: bytes) -> tuple[str, float]:
    """Reads what an input becomes; returns how that ended, and the seconds of the processor."""
    folder = target.write(data)
    began = time.process_time()
    outcome = read_all(folder)
    seconds = time.process_time() - began
    if kind_of(data) in ("file", "header"):
        check_reference(folder)
    return outcome, seconds
