"""Chance: how accurate it is to give every model the answer that is commonest in training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probex_jax.layer_store import LayerStore

# Of means of the same numbers in another order.
_ROUNDING = 1e-9


def chance(store: LayerStore, split: str, classes: Sequence[str] | None = None) -> float:
    """The accuracy on a split of always giving the commonest answer of the training models.

    Args:
      store: the models. Without training models the commonest answer is that of the split.
      split: what the accuracy is of.
      classes: where one class is chosen, the candidates; None where each class is answered for
        itself.

    Raises:
      ProbexError: if there is no such split, or its models are of other classes.
    """
    if classes is None:
        return float(chance_by_class(store, split).mean())
    places = {name: place for place, name in enumerate(classes)}
    labels = [model.labels[0] for model in store.split(_known(store, split))]
    known_N = [places[label] for label in labels if label in places]
    if not known_N:
        return 1 / len(classes)
    return commonest_share(np.array(known_N), store.class_indices(split, classes))


def chance_by_class(store: LayerStore, split: str) -> np.ndarray:
    """[Y]: of each class, the share of a split's models that are right if all get one answer.

    It is "yes" where more than half of the training models are of the class, else "no".
    """
    usual_Y = np.asarray(store.targets(_known(store, split))).mean(axis=0) > 0.5
    return np.mean((np.asarray(store.targets(split)) > 0.5) == usual_Y, axis=0)


def commonest_share(known: np.ndarray, asked: np.ndarray) -> float:
    """The share of models that are of the commonest class of others.

    Args:
      known: [N] int, the classes of those others.
      asked: [M] int, the classes of the models.

    Returns:
      The share; of several classes that are as common the mean of theirs.

    Example:
      >>> commonest_share(np.array([0, 1, 1]), np.array([0, 0, 1, 2]))
      0.25
      >>> commonest_share(np.array([0, 1]), np.array([0, 0, 1, 2]))
      0.375
    """
    counts = np.bincount(known)
    commonest = np.flatnonzero(counts == counts.max())
    return float(np.isin(asked, commonest).mean() / len(commonest))


def chance_of(accuracy: Mapping[str, Any]) -> float | None:
    """The chance that stands beside an accuracy on a card; None on one of an earlier version."""
    found = accuracy.get("chance")
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found)


def shortfall(accuracy: Mapping[str, Any]) -> str:
    """How an accuracy falls short of being above chance.

    Args:
      accuracy: `value`, `low` and `chance`, as of a `Score`.

    Returns:
      "not above", "not clearly above" where its interval reaches down to chance, or "".

    Example:
      >>> shortfall({"value": 0.871, "low": 0.84, "chance": 0.875})
      'not above'
      >>> shortfall({"value": 0.9, "low": 0.88, "chance": 0.875})
      ''
    """
    found = chance_of(accuracy)
    if found is None or accuracy["low"] > found + _ROUNDING:
        return ""
    return "not above" if accuracy["value"] <= found + _ROUNDING else "not clearly above"


def _known(store: LayerStore, split: str) -> str:
    return "train" if store.has("train") else split
