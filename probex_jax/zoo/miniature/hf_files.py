"""Models on disk as the ecosystem writes them.

A folder of the Hugging Face cache holds a revision in `refs/main`, and `config.json` and
`model.safetensors` in `snapshots/<revision>/`; a plain folder holds the last two.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from probex_jax.files import disk_errors
from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.vit import ViT

Tensors = Mapping[str, np.ndarray]

# safetensors' names of formats: by NumPy's, which stay as they are; and what others are made.
_HALVES = {"float16": "F16", "bfloat16": "BF16"}
_NUMPY = {"F32": "<f4", "I64": "<i8"}


def plain(config: Mapping[str, Any], weights: bytes) -> dict[str, bytes]:
    """The files of a model's own folder, by name."""
    return {"config.json": _json(config), "model.safetensors": weights}


def sharded(config: Mapping[str, Any], tensors: Tensors) -> dict[str, bytes]:
    """The files of a model's own folder, its weights in two files and an index."""
    names = sorted(tensors)
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    files = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    where = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    weights = {
        file: serialise({name: tensors[name] for name in part}, {})
        for file, part in zip(files, parts, strict=True)
    }
    index = _json({"metadata": {}, "weight_map": where})
    return {"config.json": _json(config), "model.safetensors.index.json": index, **weights}


def cached(config: Mapping[str, Any], weights: bytes) -> dict[str, bytes]:
    """The files of a model's folder in the hub's cache, by path."""
    revision = hashlib.sha1(_json(config) + weights).hexdigest()
    snapshot = {f"snapshots/{revision}/{name}": x for name, x in plain(config, weights).items()}
    return {"refs/main": revision.encode(), **snapshot}


def write(tree_folder: Path, folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes a model's folder whole or not at all, over what is left there of a damaged one.

    Args:
      tree_folder: where a folder `.partial-…` stays behind if the process is killed.
      folder: the model's, in `tree_folder`.
      files: contents by path.

    Raises:
      ProbexError: if the folder cannot be written.
    """
    partial = tree_folder / f".partial-{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(folder):
        for name, contents in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(contents)
        folder.parent.mkdir(exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


def config_json(model: ViT | ResNet, class_names: Sequence[str]) -> dict[str, Any]:
    """The contents of config.json, from which transformers builds the model."""
    return {
        **model.config(),
        "id2label": {str(index): name for index, name in enumerate(class_names)},
        "label2id": {name: index for index, name in enumerate(class_names)},
    }


def serialise(tensors: Tensors, metadata: Mapping[str, Any]) -> bytes:
    """A safetensors file; metadata values are written as `str` makes them.

    Half precision stays; other numbers are float32.

    Equal contents give equal bytes, unlike safetensors' own `save`, which orders metadata anew
    in every process.
    """
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"} | {key: str(value) for key, value in metadata.items()}
    }
    payload = b""
    for name, value in sorted(tensors.items()):
        dtype = _HALVES.get(np.asarray(value).dtype.name, "F32")
        dtype = "I64" if name.endswith("num_batches_tracked") else dtype
        data = np.asarray(value, _NUMPY.get(dtype)).tobytes(order="C")
        header[name] = {
            "dtype": dtype,
            "shape": np.shape(value),
            "data_offsets": [len(payload), len(payload) + len(data)],
        }
        payload += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the payload is aligned
    return len(text).to_bytes(8, "little") + text + payload


def load(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file made by `serialise`, as the models here compute with them."""
    return {name: value.astype(np.float32) for name, value in load_file(path).items()}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
