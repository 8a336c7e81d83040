"""Reading a layer store: the table of models, and the matrices of a layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.layer_store.arrays import LayerArray

FORMAT = "probex_jax layer store"
VERSION = 1


@dataclass(frozen=True)
class StoredModel:
    """One packed model: a line of models.jsonl.

    Args:
      id: name of the model.
      row: its row in every layer's array.
      split: "train", "val" or "test".
      labels: the classes it was trained on.
      source: the path it was packed from.
      content_hash: SHA-256 of its packed matrices.
    """

    id: str
    row: int
    split: str
    labels: tuple[str, ...]
    source: str
    content_hash: str


class LayerStore:
    """The packed matrices of one tree's models; opened with `LayerStore.open`.

    Every packed model has every layer of the store, in one shape.

    Attributes:
      path: the store's folder.
      tree: name of the tree.
      classes: the class names, in the order of the columns of `targets`.
      layers: name to (H, W).
      models: the packed models, in the order of their rows.
      skipped: id of every model left out, to the reason.

    Example:
      >>> import pathlib, tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> from probex_jax import pack, scan
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> (folder / "zoo" / "train").mkdir(parents=True)
      >>> save_file({"fc.weight": np.ones((2, 3), np.float32)},
      ...           folder / "zoo" / "train" / "a.safetensors",
      ...           {"dataset_chosen_targets": "['cat']"})
      >>> _ = pack(scan(folder / "zoo"), folder / "store")
      >>> store = LayerStore.open(folder / "store")
      >>> store.matrices("fc.weight", split="train").shape, store.targets("train").tolist()
      ((1, 2, 3), [[1.0]])
    """

    def __init__(self, path: Path, about: dict[str, Any], lines: Iterable[dict[str, Any]]):
        self.path = path
        self.tree = _of(str, about["tree"])
        self.classes = tuple(_of(str, name) for name in _of(list, about["classes"]))
        self.layers = {name: _shape(shape) for name, shape in _of(dict, about["layers"]).items()}
        self.block = _positive(about["block"])
        packed: dict[str, StoredModel] = {}
        skipped: dict[str, str] = {}
        for line in lines:
            if line["status"] == "skipped":
                skipped[line["id"]] = line["reason"]
                continue
            packed[line["id"]] = self._model(line)
        self.models = tuple(sorted(packed.values(), key=lambda model: model.row))
        self.skipped = {id: reason for id, reason in skipped.items() if id not in packed}

    def _model(self, line: dict[str, Any]) -> StoredModel:
        texts = {name: _of(str, line[name]) for name in ("id", "split", "source", "content_hash")}
        labels = tuple(_of(list, line["labels"]))
        if not set(labels) <= set(self.classes):
            raise ValueError(f"{texts['id']}: labels outside the class list")
        return StoredModel(**texts, row=_positive(line["row"] + 1) - 1, labels=labels)

    @classmethod
    def open(cls, path: str | Path) -> LayerStore:
        """Opens a store for reading; reads no weights.

        Raises:
          ProbexError: if there is no store, it is of another version, or its tables are damaged.
        """
        path = Path(path)
        about_path, models_path = path / "store.json", path / "models.jsonl"
        try:
            about = json.loads(about_path.read_text())
            lines = models_path.read_text().split("\n") if models_path.exists() else []
        except (FileNotFoundError, NotADirectoryError):
            raise ProbexError(
                f"{path}: no layer store here; make one with experiments.pack"
            ) from None
        except ValueError as error:
            raise ProbexError(f"{about_path}: not JSON: {error}") from error
        version = about.get("version") if isinstance(about, dict) else None
        if not isinstance(about, dict) or (about.get("format"), version) != (FORMAT, VERSION):
            raise ProbexError(
                f"{about_path}: store of version {version!r}, expected {VERSION}; pack it again"
            )
        try:
            # The last line is empty, or was cut short by a kill and is to be written again.
            return cls(path, about, [json.loads(line) for line in lines[:-1]])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProbexError(
                f"{path}: store.json or models.jsonl is damaged ({error}); pack it again"
            ) from error

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what is stored: layers, classes, and each model's split, labels, weights."""
        models = sorted((m.id, m.split, list(m.labels), m.content_hash) for m in self.models)
        content = [self.tree, self.classes, sorted(self.layers.items()), models]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def split(self, split: str) -> tuple[StoredModel, ...]:
        """The models of one split, in the order of `matrices` and `targets`.

        Raises:
          ProbexError: if there are none.
        """
        models = tuple(model for model in self.models if model.split == split)
        if not models:
            counts = {name: sum(m.split == name for m in self.models) for name in _splits(self)}
            raise ProbexError(f"{self.path}: no model in split {split!r}; there are {counts}")
        return models

    def matrices(self, layer: str, split: str = "train") -> np.ndarray:
        """One layer of every model of a split.

        Args:
          layer: one of `layers`.
          split: "train", "val" or "test".

        Returns:
          [N, H, W] float32.

        Raises:
          ProbexError: if there is no such layer or split, or the store is damaged.
        """
        if layer not in self.layers:
            raise ProbexError(f"{self.path}: no layer {layer!r}; it has {', '.join(self.layers)}")
        rows = np.array([model.row for model in self.split(split)])
        return LayerArray.open(self.path, layer, self.layers[layer]).read(rows)

    def targets(self, split: str = "train") -> np.ndarray:
        """Which classes each model of a split was trained on.

        Returns:
          [N, Y] float32 of zeros and ones; columns as in `classes`.

        Raises:
          ProbexError: if there is no such split.
        """
        column = {name: index for index, name in enumerate(self.classes)}
        models = self.split(split)
        targets = np.zeros([len(models), len(self.classes)], np.float32)
        for row, model in enumerate(models):
            targets[row, [column[label] for label in model.labels]] = 1.0
        return targets


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value


def _positive(value: Any) -> int:
    if _of(int, value) < 1:
        raise ValueError(f"{value} is less than 1")
    return value


def _shape(value: Any) -> tuple[int, int]:
    rows, columns = _of(list, value)
    return _positive(rows), _positive(columns)


def _splits(store: LayerStore) -> list[str]:
    return sorted({model.split for model in store.models})
