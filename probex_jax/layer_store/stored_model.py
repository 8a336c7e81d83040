"""A packed model, as a line of a store's models.jsonl has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from probex_jax.layer_store import fields

_TEXTS = ("id", "split", "source", "fingerprint", "base", "content_hash")


@dataclass(frozen=True)
class StoredModel:
    """One packed model: a line of models.jsonl.

    Args:
      id: name of the model.
      row: its row in every layer's array.
      split: "train", "val", "test", "val_holdout" or "test_holdout"; "" if the model is in none, or
        its labels are unknown.
      labels: the classes that it was trained on.
      source: the path that it was packed from.
      fingerprint: of its architecture (`model_files.fingerprint`).
      base: the model that it was fine-tuned from, as its file or folder states; or "".
      content_hash: SHA-256 of names, shapes and CRC-32C checksums of its stored arrays.
      value: its number, in a view of a column of numbers.
    """

    id: str
    row: int
    split: str
    labels: tuple[str, ...]
    source: str
    fingerprint: str
    base: str
    content_hash: str
    value: float | None = None

    def told(self, said: tuple[str, ...] | float, split: str) -> StoredModel:
        """The model in a part of a split, with its classes, or with its number."""
        if isinstance(said, float):
            return replace(self, labels=(), value=said, split=split)
        return replace(self, labels=said, value=None, split=split)

    @classmethod
    def from_json(cls, line: Mapping[str, Any], classes: Collection[str]) -> StoredModel:
        """The model of a line; other errors than ProbexError if it is damaged.

        Args:
          line: of models.jsonl.
          classes: of the store.
        """
        texts = {name: fields.text(line[name]) for name in _TEXTS}
        is_known = line["labels"] is not None
        labels = tuple(fields.listed(line["labels"])) if is_known else ()
        if not set(labels) <= set(classes):
            raise ValueError(f"{texts['id']}: labels outside the class list")
        texts["split"] *= is_known
        return cls(**texts, row=fields.positive(line["row"] + 1) - 1, labels=labels, value=None)
