"""How well an expert answers for the models of a store, and how far it may be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from probex_jax.experts.alignment import class_texts
from probex_jax.experts.answering import stored_logits
from probex_jax.experts.calibration import best_temperature, calibration_error
from probex_jax.experts.chance import chance
from probex_jax.experts.expert import Expert
from probex_jax.experts.metrics import Score, accuracy, top_accuracy
from probex_jax.language import TextEncoder
from probex_jax.layer_store import LayerStore

HOLDOUT = "expert_val_holdout"


class Answers(NamedTuple):
    """What an expert says of some models, and what they are.

    Args:
      logits: [N, Y].
      y: as `Split.y`: [N, Y] of zeros and ones, or [N] of an expert aligned with text.
    """

    logits: np.ndarray
    y: np.ndarray


def answers(
    expert: Expert, store: LayerStore, splits: Sequence[str], encoder: TextEncoder | None = None
) -> dict[str, Answers]:
    """An expert's answers for the models of some splits; arguments and errors as of `evaluate`."""
    if expert.card["head"] == "text":
        expert.check_fits(store.tree, None)
        classes = expert.card["classes"]
        targets = {split: store.class_indices(split, classes) for split in splits}
        texts_YD = class_texts(expert, store, classes, encoder)
    else:
        expert.check_fits(store.tree, store.classes)
        targets, texts_YD = {split: store.targets(split) for split in splits}, None
    return {
        split: Answers(stored_logits(expert, store, split, texts_YD), y)
        for split, y in targets.items()
    }


def score(found: Answers) -> Score:
    """Accuracy of answers, with its interval over the models."""
    return (top_accuracy if found.y.ndim == 1 else accuracy)(*found)


def chance_for(expert: Expert, store: LayerStore, split: str) -> float:
    """`chance` on a split of a store, of the kind of answers that an expert gives."""
    is_text = expert.card["head"] == "text"
    return chance(store, split, expert.card["classes"] if is_text else None)


def evaluate(
    expert: Expert, store: LayerStore, split: str = "test", encoder: TextEncoder | None = None
) -> tuple[Score, np.ndarray]:
    """Accuracy of an expert on a split of a store.

    Args:
      expert: the expert.
      store: matrices and labels of models of its tree.
      split: name of the split.
      encoder: of an expert aligned with text, its text encoder; None to find it by its card.

    Returns:
      The accuracy beside chance, and the logits [N, Y] of the models in the order of the split. Of
      an expert aligned with text it is the share of models given to their class, the candidates
      being the texts of the classes that it was trained on.

    Raises:
      ProbexError: if the store is of another tree or has other classes than the expert, no such
        layer, or no such split.
    """
    found = answers(expert, store, (split,), encoder)[split]
    return replace(score(found), chance=chance_for(expert, store, split)), found.logits


def load_experts(path: Path) -> dict[str, Expert]:
    """The chosen expert as it was best on either kind of classes.

    Args:
      path: a work directory of a training, or one expert.

    Returns:
      "val" and "val_holdout": the same expert where only one was kept.

    Raises:
      ProbexError: as `Expert.load`.
    """
    expert = Expert.load(path)
    held_out = Expert.load(path / HOLDOUT) if (path / HOLDOUT).is_dir() else expert
    return {"val": expert, "val_holdout": held_out}


def calibrated(expert: Expert, store: LayerStore, encoder: TextEncoder | None = None) -> Expert:
    """The expert with the temperature that suits the models of `val` best.

    Args:
      expert: any; what it had of calibration is replaced.
      store: of its tree.
      encoder: as `evaluate` takes it.

    Returns:
      It, with `calibration` on its card: the temperature, and the expected calibration errors on
      `val`, and on `test` where there is such a split, at temperature 1 (`before`) and at this one.

    Raises:
      ProbexError: as `evaluate`.

    References:
      Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017.
    """
    splits = ("val", "test") if store.has("test") else ("val",)
    return calibrated_by(expert, answers(expert, store, splits, encoder))


def calibrated_by(expert: Expert, found: Mapping[str, Answers]) -> Expert:
    """As `calibrated`, from the expert's answers by split; "val" decides."""

    def at(temperature: float, **about: Any) -> Expert:
        calibration = {"temperature": temperature, **about}
        return Expert(expert.variables, {**expert.card, "calibration": calibration})

    def errors(temperature: float) -> dict[str, float]:
        tempered = at(temperature)
        return {
            split: calibration_error(tempered.as_probabilities(logits_NY), y)
            for split, (logits_NY, y) in found.items()
        }

    best = best_temperature(*found["val"])
    return at(best, split="val", before=errors(1.0), after=errors(best))
