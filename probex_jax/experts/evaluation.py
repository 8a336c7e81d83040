"""How well an expert answers for the models of a store, and how far it may be believed."""

from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.experts.alignment import text_logits
from probex_jax.experts.calibration import best_temperature, calibration_error
from probex_jax.experts.expert import Expert
from probex_jax.experts.metrics import Score, accuracy, top_accuracy
from probex_jax.language import TextEncoder
from probex_jax.layer_store import LayerStore

HOLDOUT = "expert_val_holdout"


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
      The accuracy, and the logits [N, Y] of the models in the order of the split. Of an expert
      aligned with text it is the share of models given to their class, the candidates being the
      texts of the classes that it was trained on.

    Raises:
      ProbexError: if the store is of another tree or has other classes than the expert, no such
        layer, or no such split.
    """
    logits_NY, y = _answers(expert, store, split, encoder)
    score = top_accuracy if y.ndim == 1 else accuracy
    return score(logits_NY, y), logits_NY


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
    splits = ["val", *(["test"] if store.has("test") else [])]
    answers = {split: _answers(expert, store, split, encoder) for split in splits}

    def at(temperature: float, **about: Any) -> Expert:
        calibration = {"temperature": temperature, **about}
        return Expert(expert.variables, {**expert.card, "calibration": calibration})

    def errors(temperature: float) -> dict[str, float]:
        tempered = at(temperature)
        return {
            split: calibration_error(tempered.as_probabilities(logits_NY), y)
            for split, (logits_NY, y) in answers.items()
        }

    best = best_temperature(*answers["val"])
    return at(best, split="val", before=errors(1.0), after=errors(best))


def _answers(
    expert: Expert, store: LayerStore, split: str, encoder: TextEncoder | None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, Y] of a split, and what its models are: [N, Y], or [N] of text candidates."""
    if expert.card["head"] == "text":
        expert.check_fits(store.tree, None)
        classes = expert.card["classes"]
        labels_N = store.class_indices(split, classes)
        return text_logits(expert, store, split, classes, encoder), labels_N
    expert.check_fits(store.tree, store.classes)
    return np.asarray(expert.logits(store.by_layer(split))), store.targets(split)
