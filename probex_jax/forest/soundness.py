"""What is unusual about a model, as facts: of its entries alone, and beside its tree's models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One fact about a layer.

    Args:
      layer: its name; that of a tensor for values that are not finite; "" for all together.
      fact: "not finite", "all zeros", "all equal", "random", "root" (of all layers: its distance
        from the tree's root, relative to its length) or one of `STATISTICS`.
      value: how many entries are not finite or, of a statistic, what it is in the model.
      low: least value in the tree's models, where they count.
      high: greatest value.
      usual: their median.
      beside: whether the value is unusual only beside the model's other layers.
      centred: whether the tree's models have something in common there, from which it differs.
      n_entries: how many entries were looked at, where some are not finite.
    """

    layer: str
    fact: str
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    usual: float = 0.0
    beside: bool = False
    centred: bool = False
    n_entries: int = 0


@dataclass(frozen=True)
class Soundness:
    """How usual a model is.

    Args:
      tree: the tree that it was compared with; "" for none.
      n_models: number of training models of the tree that it was compared with.
      n_layers: number of layers that were looked at.
      of_layers: number of layers that could have been.
      whole: whether all entries of these were looked at, instead of a sample of rows and columns.
      p_value: the share of models of the tree that are as unusual, by the most unusual number of
        any layer: 1 / (n + 1) if none of n is. None if the tree has too few models to say.
      findings: the facts, by layer; statistics only if they are rare enough. Empty if there is
        nothing unusual.
    """

    tree: str
    n_models: int
    n_layers: int
    of_layers: int
    whole: bool
    p_value: float | None
    findings: tuple[Finding, ...] = ()

    @property
    def is_spoilt(self) -> bool:
        """Whether some weights are not finite: then nothing can be predicted."""
        return any(finding.fact == "not finite" for finding in self.findings)
