"""What was found out about many models: who descends from whom, and which are the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# What makes a child of its parent, in words.
KINDS = ("fine-tune", "LoRA merged", "merge", "pruned", "quantised", "noised", "permuted", "LoRA")


@dataclass(frozen=True)
class Node:
    """A model.

    Args:
      id: its name.
      path: where it is.
      architecture: the fingerprint of its architecture.
      origin: "derived", with a parent among these models; "root", of which others here are derived;
        "unknown parent", of the same family as others here, though none of them is its parent;
        "alone", without kin here; or "copy", the same weights as `copy_of`.
      copy_of: the id of the model that it is a copy of, or "".
    """

    id: str
    path: str
    architecture: str
    origin: str
    copy_of: str = ""


@dataclass(frozen=True)
class Edge:
    """That a model is derived from another.

    Args:
      parent: its id.
      child: its id.
      kind: one of `KINDS`.
      p_value: of the test against independent training; 1 where none is possible.
      confidence: the probability that this is the child's parent, and not the other way round or
        another one; calibrated on families of known descent.
      distance: L2 distance of the weights as a share of the parent's length; 0 for adapters.
      coefficient: the parent's weight in a merge; None for the other kinds.
      error: what is left of a merge that its parents do not explain, as a share of its distance
        from the nearest of them; None for the other kinds.
      layers: those that differ most, at most five.
    """

    parent: str
    child: str
    kind: str
    p_value: float
    confidence: float
    distance: float
    coefficient: float | None = None
    error: float | None = None
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Copies:
    """Models with the same weights, whatever their dtype, container, names and sharding.

    Args:
      models: their ids; the first is the one that the others are said to be copies of.
      largest_difference: the largest difference of two entries among them; 0 for the same numbers.
    """

    models: tuple[str, ...]
    largest_difference: float


@dataclass(frozen=True)
class Lineage:
    """The family tree of many models.

    Args:
      nodes: the models that could be read, in the given order.
      edges: parents of those that have some; several for a merge.
      copies: groups of models with the same weights.
      failed: id of each other model to the reason why it could not be read.

    Example:
      >>> nodes = (Node("a", "a.safetensors", "f0", "root"), Node("b", "b", "f0", "derived"))
      >>> found = Lineage(nodes, (Edge("a", "b", "fine-tune", 1e-4, 0.98, 0.05),))
      >>> [edge.parent for edge in found.parents("b")], found.parents("a")
      (['a'], [])
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()
    copies: tuple[Copies, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    def parents(self, id: str) -> list[Edge]:
        """The edges that lead to a model."""
        return [edge for edge in self.edges if edge.child == id]

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"format": "probex_jax lineage 1", **asdict(self)}
