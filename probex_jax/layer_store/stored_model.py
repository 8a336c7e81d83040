"""A packed model, as a line of a store's models.jsonl has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

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
    """

    id: str
    row: int
    split: str
    labels: tuple[str, ...]
    source: str
    fingerprint: str
    base: str
    content_hash: str

    @classmethod
    def from_json(cls, line: Mapping[str, Any], classes: Collection[str]) -> StoredModel:
        """The model of a line; other errors than ProbexError if it is damaged.

        Args:
          line: of models.jsonl.
          classes: of the store.
        """
        texts = {name: of_kind(str, line[name]) for name in _TEXTS}
        is_known = line["labels"] is not None
        texts["split"] *= is_known
        labels = tuple(of_kind(list, line["labels"])) if is_known else ()
        if not set(labels) <= set(classes):
            raise ValueError(f"{texts['id']}: labels outside the class list")
        return cls(**texts, row=positive(line["row"] + 1) - 1, labels=labels)


def of_kind(kind: type, value: Any) -> Any:
    """A value of JSON, if it is of a kind; a TypeError otherwise."""
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value


def positive(value: Any) -> int:
    """A number of JSON that is 1 or more; a TypeError or ValueError otherwise."""
    if of_kind(int, value) < 1:
        raise ValueError(f"{value} is less than 1")
    return value
