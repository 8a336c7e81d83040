"""A packed model, as a line of a store's models.jsonl has it."""

from dataclasses import dataclass


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
