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
      >>> store = LayerStore.open("out/demo/stores/MiniSupViT")  # doctest: +SKIP
      >>> store.matrices("vit.encoder.layer.0.intermediate.dense.weight").shape  # doctest: +SKIP
      (420, 128, 32)
    """

    def __init__(self, path: Path, about: dict[str, Any], lines: Iterable[dict[str, Any]]):
        self.path = path
        self.tree: str = about["tree"]
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.layers = {name: (shape[0], shape[1]) for name, shape in about["layers"].items()}
        self.block: int = about["block"]
        packed: dict[str, StoredModel] = {}
        skipped: dict[str, str] = {}
        for line in lines:
            if line["status"] == "skipped":
                skipped[line["id"]] = line["reason"]
                continue
            fields = {name: line[name] for name in StoredModel.__dataclass_fields__}
            packed[line["id"]] = StoredModel(**{**fields, "labels": tuple(line["labels"])})
        self.models = tuple(sorted(packed.values(), key=lambda model: model.row))
        self.skipped = {id: reason for id, reason in skipped.items() if id not in packed}

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
        except FileNotFoundError:
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
        except (ValueError, KeyError, TypeError, IndexError) as error:
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
        return LayerArray.open(self.path, layer).read(rows)

    def targets(self, split: str = "train") -> np.ndarray:
        """Which classes each model of a split was trained on.

        Returns:
          [N, Y] float32 of zeros and ones; columns as in `classes`.
        """
        column = {name: index for index, name in enumerate(self.classes)}
        models = self.split(split)
        targets = np.zeros([len(models), len(self.classes)], np.float32)
        for row, model in enumerate(models):
            targets[row, [column[label] for label in model.labels]] = 1.0
        return targets


def _splits(store: LayerStore) -> list[str]:
    return sorted({model.split for model in store.models})
