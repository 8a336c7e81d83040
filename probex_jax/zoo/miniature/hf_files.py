"""Models on disk as the ecosystem writes them, in Model-J's layout.

A model is `models--MiniZoo--<tree>__model_idx_0007/`, a folder of the Hugging Face cache: a
revision in `refs/main`, and `config.json` and `model.safetensors` in `snapshots/<revision>/`.
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

from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.vit import ViT

Tensors = Mapping[str, np.ndarray]


def model_folder(tree_folder: Path, split: str, index: int) -> Path:
    """Where a tree's model belongs."""
    name = f"models--MiniZoo--{tree_folder.name}__model_idx_{index:04d}"
    return tree_folder / split / name


def write_cached(folder: Path, config: Mapping[str, Any], weights: bytes) -> None:
    """Writes a model as a folder of the hub's cache, whole or not at all."""
    text = _json(config)
    revision = hashlib.sha1(text.encode() + weights).hexdigest()
    partial = folder.parent.parent / f".partial-{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)
    snapshot = partial / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (partial / "refs").mkdir()
    (partial / "refs" / "main").write_text(revision)
    (snapshot / "config.json").write_text(text)
    (snapshot / "model.safetensors").write_bytes(weights)
    folder.parent.mkdir(exist_ok=True)
    _move(partial, folder)


def write_plain(folder: Path, config: Mapping[str, Any], weights: bytes) -> None:
    """Writes a model as a plain folder, whole or not at all."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(_json(config))
    (partial / "model.safetensors").write_bytes(weights)
    _move(partial, folder)


def _move(partial: Path, folder: Path) -> None:
    """Moves a whole model into place, over what is left there of a damaged one."""
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
    """A safetensors file; metadata values are written as the text of Python literals.

    Equal contents give equal bytes, unlike safetensors' own `save`, which orders metadata anew
    in every process.
    """
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"} | {key: str(value) for key, value in metadata.items()}
    }
    payload = b""
    for name, value in sorted(tensors.items()):
        whole = name.endswith("num_batches_tracked")
        data = np.asarray(value, "<i8" if whole else "<f4").tobytes(order="C")
        header[name] = {
            "dtype": "I64" if whole else "F32",
            "shape": np.shape(value),
            "data_offsets": [len(payload), len(payload) + len(data)],
        }
        payload += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the payload is aligned
    return len(text).to_bytes(8, "little") + text + payload


def load(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that `serialise` made, as the models here compute with them."""
    return {name: value.astype(np.float32) for name, value in load_file(path).items()}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
