"""What an index answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from probex_jax.search.attributes import Attribute, several


@dataclass(frozen=True)
class Hit:
    """A search result.

    Args:
      similarity: cosine of the representations; 0 if nothing similar was asked for.
      id, path, tree, split, labels, text: as stored; the text describes the labels.
      attributes: what experts predict of it: a number, a class or several by name.
    """

    similarity: float
    id: str
    path: str
    tree: str
    split: str
    labels: tuple[str, ...]
    text: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


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


def sorted_by(hits: Sequence[Hit], name: str, *, falling: bool) -> list[Hit]:
    """Hits by an attribute, those without it last; equal ones stay in their order.

    Raises:
      ProbexError: if it holds several classes.
    """
    having = [hit for hit in hits if name in hit.attributes]
    if any(isinstance(hit.attributes[name], tuple) for hit in having):
        raise several(name)
    found = sorted(having, key=lambda hit: hit.attributes[name], reverse=falling)
    return found + [hit for hit in hits if name not in hit.attributes]
