"""Reads a layer store: the table of models, and the matrices of a layer."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.bucket_paths import as_path
from probex_jax.errors import ProbexError
from probex_jax.files import parse_json
from probex_jax.fitting.moments import Moments, moments
from probex_jax.layer_store import fields
from probex_jax.layer_store.about import read_about
from probex_jax.layer_store.by_layer import ByLayer
from probex_jax.layer_store.reader import Reader
from probex_jax.layer_store.stored_model import StoredModel
from probex_jax.layer_store.tables import (
    check_held_out,
    is_exclusive,
    one_each,
    read_tables,
    viewed,
)
from probex_jax.matrices import LowRank
from probex_jax.prefetch import prefetch
from probex_jax.zoo.model_j import HELD_OUT_SPLITS
from probex_jax.zoo.tables import Tables

_BLOCK_BYTES = 64 * 2**20  # that `blocks` reads at once
Models = slice | Sequence[int] | np.ndarray  # positions in their split


class LayerStore:
    """The packed matrices of one tree's models; opened with `LayerStore.open`.

    Every packed model has every layer of the store, in one shape. `view` takes labels and splits
    from other tables.

    Attributes:
      path: the store's folder.
      tree: name of the tree.
      classes: the class names, in the order of the columns of `targets`; of a view of numbers, the
        name of their column.
      is_number: whether the store is a view of a column of numbers; `values` gives them.
      texts: class to the words for it, for classes whose name is an id.
      layers: name to (H, W); a vector has one column or one row.
      ranks: name to R, for the layers that are kept as factors.
      selection: how the layers were asked for, a list of texts; None for all, or if unknown.
      models: the packed models, in the order of their rows.
      skipped: id of every skipped model, to the reason.
      tables: the label columns and splits that there are.
      label_set, split_set: the column and the split of a view; "" for what the folders say.

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

    def __init__(
        self,
        path: Path,
        about: dict[str, Any],
        lines: Iterable[dict[str, Any]],
        tables: Tables | None = None,
    ):
        self.path = path
        self.tree = fields.text(about["tree"])
        self.classes = tuple(fields.text(name) for name in fields.listed(about["classes"]))
        self._own_classes = self.classes
        self.layers = fields.table(about["layers"], fields.shape)
        self.texts = fields.table(about["texts"], fields.text)
        self.ranks = fields.table(about["ranks"], fields.positive)
        places = fields.table(about.get("vectors", {}), fields.place)
        self.reader = Reader(path, self.layers, self.ranks, places)
        self.block = fields.positive(about["block"])
        self.selection = about.get("selection")
        self.label_set, self.split_set, self.is_number = "", "", False
        self._calls: tuple[tuple[Any, ...], ...] = ()  # that made a view of the whole store
        self.tables = read_tables(path) if tables is None else tables
        packed: dict[str, StoredModel] = {}
        self.folders: dict[str, str] = {}  # model to the split that its folder says
        skipped: dict[str, str] = {}
        for line in lines:
            if line["status"] == "skipped":
                skipped[line["id"]] = line["reason"]
                continue
            packed[line["id"]] = StoredModel.from_json(line, self.classes)
            self.folders[line["id"]] = line["split"]
        self.packed = self.models = tuple(sorted(packed.values(), key=lambda model: model.row))
        self.skipped = {id: reason for id, reason in skipped.items() if id not in packed}

    @classmethod
    def open(cls, path: str | Path) -> LayerStore:
        """Opens a store for reading; reads no weights.

        Raises:
          ProbexError: if there is no store, it is of another version, or its tables are damaged.
        """
        path = as_path(path)
        about, models_path = read_about(path), path / "models.jsonl"
        lines = models_path.read_bytes().split(b"\n") if models_path.exists() else []
        try:
            # The last line is empty, or was cut short by a kill and is to be written again.
            where = str(models_path)
            return cls(path, about, (parse_json(line, where) for line in lines[:-1]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProbexError(
                f"{path}: store.json or models.jsonl is damaged ({error}); pack it again"
            ) from error

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the layers that are vectors: biases, norms, statistics, scalars."""
        return tuple(self.reader.places)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the content: layers, classes, models with what is said of them."""
        said = {m.id: list(m.labels) if m.value is None else m.value for m in self.models}
        models = sorted((m.id, m.split, said[m.id], m.content_hash) for m in self.models)
        layers = [sorted(self.layers.items()), sorted(self.ranks.items())]
        content = [self.tree, self.classes, sorted(self.texts.items()), layers, models]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def split(self, split: str) -> tuple[StoredModel, ...]:
        """The models of one split, in the order of `matrices` and `targets`.

        Raises:
          ProbexError: if there are none.
        """
        models = tuple(model for model in self.models if model.split == split)
        if not models:
            counts = dict(sorted(Counter(model.split for model in self.models).items()))
            raise ProbexError(f"{self.path}: no model in split {split!r}; there are {counts}")
        return models

    @cached_property
    def seen_classes(self) -> tuple[str, ...]:
        """The classes of the training models, in the order of `classes`."""
        return self._classes_of("train")

    @cached_property
    def held_out_classes(self) -> tuple[str, ...]:
        """The classes of the held-out splits, in the order of `classes`; none without these splits.

        Raises:
          ProbexError: if a model of another split has one of them.
        """
        check_held_out(self.path, [(m.id, m.split, m.labels) for m in self.models])
        return self._classes_of(*HELD_OUT_SPLITS)

    def _classes_of(self, *splits: str) -> tuple[str, ...]:
        found = {label for m in self.models if m.split in splits for label in m.labels}
        return tuple(name for name in self.classes if name in found)

    def has(self, split: str) -> bool:
        """Whether the split has models."""
        return any(model.split == split for model in self.models)

    def limited(self, n_models: int, split: str = "train") -> LayerStore:
        """The same store with only the first `n_models` models of a split; the disk is unchanged.

        Raises:
          ProbexError: if there are fewer.
        """
        models = self.split(split)
        if not 0 < n_models <= len(models):
            raise ProbexError(f"{self.path}: {n_models} of {len(models)} models of split {split}")
        left_out = set(models[n_models:])
        kept = tuple(model for model in self.models if model not in left_out)
        return self._with("limited", n_models, split, models=kept)

    def __reduce__(self) -> Any:
        """A store is pickled as its path and the calls that made the view; it is opened again."""
        return _reopened, (self.path, self.path.absolute(), self._calls, self.hash)

    def _with(self, *call: Any, **changes: Any) -> LayerStore:
        """The same store with other attributes."""
        store = LayerStore.__new__(LayerStore)
        derived = ("hash", "seen_classes", "held_out_classes")
        kept = {name: value for name, value in self.__dict__.items() if name not in derived}
        store.__dict__ = kept | changes | {"_calls": (*self._calls, call)}
        return store

    def with_tables(self, tables: Tables) -> LayerStore:
        """The same store, whose views may also be of other tables; these come first."""
        return self._with("with_tables", tables, tables=self.tables.under(tables))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of classes that `view` may be asked for."""
        return tuple(self.tables.columns)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The columns that have a name, of classes and of numbers, sorted."""
        return self.tables.attributes

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that `view` may be asked for, beside what the folders say."""
        return tuple(self.tables.splits)

    @property
    def exclusive(self) -> bool:
        """Whether every model of a split has exactly one class.

        Raises:
          ProbexError: if all have one but those that have none of the classes; one is named.
        """
        return is_exclusive(self.path, self.models)

    def view(self, column: str = "", split: str = "", number: bool = False) -> LayerStore:
        """The same store with the labels of one column, and the models divided as one split says.

        Models that have no label or number there, or are in no part of the split, are left out.

        Args:
          column: one of `columns` or `attributes`; "" for what headers say or a `labels.json` that
            names no column.
          split: one of `splits`; "" for the folders that the models were packed from.
          number: whether a column of classes that are all numbers is read as one of numbers.

        Raises:
          ProbexError: if there is no such column or split, no model of a part has a label, or a
            class is no number.
        """
        own = column == "" and "" not in self.tables.columns and not number
        is_number = number or column in self.tables.numbers
        known = {model.id: model.labels for model in self.packed if model.split}
        read = self.tables.number if is_number else self.tables.column
        said: Mapping[str, Any] = known if own else read(column, self.path)
        parts = self.tables.parts(split, self.path) if split else self.folders
        where = f"{self.path}: column {column!r}, split {split!r}"
        models = viewed(self.packed, said, parts, self.splits, where)
        classes = tuple(sorted({label for model in models for label in model.labels}))
        return self._with(
            "view",
            column,
            split,
            number,
            models=models,
            classes=self._own_classes if own else (column,) if is_number else classes,
            is_number=is_number,
            label_set=column,
            split_set=split,
        )

    def view_of_any(self, columns: Sequence[tuple[str, bool]], split: str = "") -> LayerStore:
        """The models that are in the view of any of some columns, without labels.

        Args:
          columns: each with whether it is read as numbers.
          split: as `view` takes it.

        Raises:
          ProbexError: as `view`.
        """
        views = [self.view(column, split, number) for column, number in columns]
        part = {model.id: model.split for view in views for model in view.models}
        models = tuple(m.told((), part[m.id]) for m in self.packed if m.id in part)
        call = "view_of_any", tuple(columns), split
        return self._with(*call, models=models, classes=(), is_number=False, split_set=split)

    def matrices(
        self, layer: str, split: str = "train", models: Models | None = None
    ) -> np.ndarray | LowRank:
        """One layer of the models of a split; thread-safe.

        Args:
          layer: one of `layers`.
          split: "train", "val", "test", "val_holdout" or "test_holdout".
          models: positions in the split of the models to read, in this order; None for all.

        Returns:
          [N, H, W] float32; for a layer in `ranks` the factors, as `LowRank` of such arrays
          [N, H, R] and [N, R, W].

        Raises:
          ProbexError: if there is no such layer, split or model, or the store is damaged.
        """
        return self.reader.read(layer, self._rows(split, models))

    def _rows(self, split: str, models: Models | None = None) -> np.ndarray:
        rows = np.array([model.row for model in self.split(split)], np.int64)
        if isinstance(models, slice):
            rows = rows[models]
        elif models is not None:
            places = np.asarray(models, np.int64)
            wrong = places[(places < 0) | (places >= len(rows))]
            if wrong.size:
                of = f"in split {split!r}, which has {len(rows)}"
                raise ProbexError(f"{self.path}: no model {wrong[0]} {of}")
            rows = rows[places]
        return rows

    def blocks(
        self, layer: str, split: str = "train", models: Models | None = None
    ) -> Iterator[np.ndarray | LowRank]:
        """As `matrices`, block by block, so that memory does not grow with the number of models.

        Yields:
          [n, H, W] float32, or `LowRank` of it, about 64 MB each, in the order of the split.
        """
        rows = self._rows(split, models)
        size = max(1, _BLOCK_BYTES // (4 * self.reader.entries(layer)))
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        if len(parts) == 1:
            yield self.reader.read(layer, parts[0])
        else:  # one is read while another is used
            for _, block in prefetch(partial(self.reader.read, layer), parts, workers=1, beyond=1):
                yield block

    def moments(self, layer: str, split: str = "train", models: Models | None = None) -> Moments:
        """Mean matrix and spread of a layer over models of a split, in one pass.

        Raises:
          ProbexError: as `matrices`.
        """
        return moments(self.blocks(layer, split, models))

    def by_layer(
        self, split: str = "train", models: Models | None = None
    ) -> Mapping[str, np.ndarray | LowRank]:
        """`matrices` by layer; each is read on access and not kept."""
        return ByLayer(self.layers, lambda layer: self.matrices(layer, split, models))

    def targets(self, split: str = "train") -> np.ndarray:
        """The classes that each model of a split was trained on.

        Returns:
          [N, Y] float32 of zeros and ones, with the columns of `classes`.

        Raises:
          ProbexError: if there is no such split, or the store is a view of numbers.
        """
        if self.is_number:
            raise ProbexError(f"{self.path}: column {self.label_set!r} holds numbers, no classes")
        column = {name: index for index, name in enumerate(self.classes)}
        models = self.split(split)
        targets = np.zeros([len(models), len(self.classes)], np.float32)
        for row, model in enumerate(models):
            targets[row, [column[label] for label in model.labels]] = 1.0
        return targets

    def values(self, split: str = "train") -> np.ndarray:
        """The numbers of the models of a split, [N] float64, in a view of a column of numbers.

        Raises:
          ProbexError: if there is no such split, or the store is no such view.
        """
        if not self.is_number:
            raise ProbexError(f"{self.path}: column {self.label_set!r} holds classes, no numbers")
        return np.array([model.value for model in self.split(split)], np.float64)

    def class_indices(self, split: str, classes: Sequence[str]) -> np.ndarray:
        """The one class, among candidates, that each model of a split was trained on.

        Args:
          split: name of the split.
          classes: the candidates.

        Returns:
          [N] int32, positions in `classes`.

        Raises:
          ProbexError: if there is no such split, or a model has several classes, or one that is
            not among the candidates.
        """
        return np.array(one_each(self.path, self.split(split), classes), np.int32)


def _reopened(
    path: Path, absolute: Path, calls: Sequence[Sequence[Any]], content: str
) -> LayerStore:
    """A store that was pickled, in whatever process and folder; it is called as it was."""
    store = LayerStore.open(absolute)
    store.path = path
    for name, *arguments in calls:
        store = getattr(store, name)(*arguments)
    if store.hash != content:
        raise ProbexError(f"{path}: the store changed meanwhile; run the same command again")
    return store
