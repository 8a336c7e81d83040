"""Chance: how accurate it is to give every model the answer that is commonest in training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probex_jax.fitting import Task
from probex_jax.layer_store import LayerStore

# Of means of the same numbers in another order.
_ROUNDING = 1e-9


def targets(task: Task, store: LayerStore, split: str, classes: Sequence[str]) -> np.ndarray:
    """The targets of a split's models, as a task takes them.

    Raises:
      ProbexError: if there is no such split, or its models are of other classes.
    """
    if store.is_number:
        return store.values(split)
    return store.class_indices(split, classes) if task.exclusive else store.targets(split)


def chance(task: Task, store: LayerStore, split: str, classes: Sequence[str]) -> float:
    """The accuracy on a split of always giving the commonest answer of the training models.

    Args:
      task: what is asked.
      store: the models. Where no training model is of the candidates, the commonest answer is that
        of the split.
      split: what the accuracy is of.
      classes: the candidates, where one of them is right.

    Raises:
      ProbexError: as `targets`.
    """
    return task.chance(*_known_and_asked(task, store, split, classes))


def chance_by_class(
    task: Task, store: LayerStore, split: str, classes: Sequence[str]
) -> np.ndarray:
    """`chance` of each class [Y]; where one is right, how common each is among training models."""
    return task.chance_by_class(*_known_and_asked(task, store, split, classes))


def _known_and_asked(
    task: Task, store: LayerStore, split: str, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    known, asked = "train" if store.has("train") else split, targets(task, store, split, classes)
    if not task.exclusive:
        return targets(task, store, known, classes), asked
    # Training models of other classes than the candidates tell nothing of these.
    places = {name: place for place, name in enumerate(classes)}
    labels = [model.labels[0] for model in store.split(known)]
    known_N = [places[label] for label in labels if label in places]
    return (np.array(known_N) if known_N else asked), asked


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
