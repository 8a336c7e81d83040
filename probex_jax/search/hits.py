"""What an index answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """A search result.

    Args:
      similarity: cosine of the representations.
      id, path, tree, split, labels, text: as stored; the text describes the labels.
    """

    similarity: float
    id: str
    path: str
    tree: str
    split: str
    labels: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class AddSummary:
    """The result of `Index.add_models`.

    Args:
      added, updated, unchanged: how many models.
      failed: id to reason, for models that could not be embedded.
    """

    added: int
    updated: int
    unchanged: int
    failed: dict[str, str]
