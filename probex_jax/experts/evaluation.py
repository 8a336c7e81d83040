"""How well an expert answers for the models of a store, and how far it may be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from probex_jax.experts.alignment import class_texts
from probex_jax.experts.card_parts import Calibration
from probex_jax.experts.chance import chance, targets
from probex_jax.experts.expert import Expert
from probex_jax.experts.predictions import stored_logits
from probex_jax.fitting import Score, Task, calibration_error, share
from probex_jax.language import TextEncoder
from probex_jax.layer_store import LayerStore

HOLDOUT = "expert_val_holdout"
# Standard errors above 0 that one in two hundred means of nothing exceeds.
_TOLD = 2.58


class Answers(NamedTuple):
    """What an expert says of some models, and what they are.

    Args:
      logits: [N, Y].
      y: targets of the expert's task.
    """

    logits: np.ndarray
    y: np.ndarray


def answers(
    expert: Expert, store: LayerStore, splits: Sequence[str], encoder: TextEncoder | None = None
) -> dict[str, Answers]:
    """An expert's answers for the models of some splits; arguments and errors as of `evaluate`."""
    card = expert.card
    expert.check_fits(store.tree, store.classes)
    y = {split: targets(card.task, store, split, card.classes) for split in splits}
    texts_YD = None if card.text is None else class_texts(expert, store, card.classes, encoder)
    return {
        split: Answers(stored_logits(expert, store, split, texts_YD), y[split]) for split in splits
    }


def score(expert: Expert, store: LayerStore, split: str, found: Answers) -> Score:
    """Accuracy of an expert's answers beside chance, with its interval over the models."""
    task, classes = expert.card.task, expert.card.classes
    return replace(task.score(*found), chance=chance(task, store, split, classes))


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

    Example:
      >>> import pathlib, tempfile
      >>> from safetensors.numpy import save_file
      >>> from probex_jax import Dense, fit, pack, scan
      >>> folder, rng = pathlib.Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> for number in range(16):
      ...     x, path = rng.normal(size=(2, 3)).astype("f4"), folder / "zoo" / "train" / f"{number}"
      ...     path.mkdir(parents=True)
      ...     save_file({"fc.weight": x}, path / "model.safetensors",
      ...               {"dataset_chosen_targets": "['cat']" if x[0, 0] > 0 else "['dog']"})
      >>> store = pack(scan(folder / "zoo"), folder / "store").store
      >>> x, y = store.matrices("fc.weight", "train"), store.targets("train")
      >>> found = fit(Dense(rep_dim=2), x, y)
      >>> expert = Expert.of(found, tree="zoo", layer="fc.weight", classes=store.classes)
      >>> score, logits = evaluate(expert, store, "train")
      >>> score.value > score.chance, logits.shape
      (True, (16, 2))
    """
    found = answers(expert, store, (split,), encoder)[split]
    return score(expert, store, split, found), found.logits


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
      It, with `conformal` and `calibration` on its card: the temperature, and the expected
      calibration errors on `val`, and on `test` where there is such a split, at temperature 1
      (`before`) and at this one.

    Raises:
      ProbexError: as `evaluate`.

    References:
      Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017.
    """
    splits = ("val", "test") if store.has("test") else ("val",)
    return calibrated_by(expert, answers(expert, store, splits, encoder))


def calibrated_by(expert: Expert, found: Mapping[str, Answers], chosen_by: str = "val") -> Expert:
    """As `calibrated`, from the expert's answers by split, one of which decides."""

    task = expert.card.task

    def errors(temperature: float) -> dict[str, float]:
        return {
            split: calibration_error(*task.promises(task.predicted(logits_NY, temperature), y))
            for split, (logits_NY, y) in found.items()
        }

    best = task.best_temperature(*found[chosen_by])
    return expert.with_card(
        calibration=Calibration(best, chosen_by, errors(1.0), errors(best)),
        conformal=task.conformal(*found[chosen_by], best),
    )


def coverage(expert: Expert, found: Answers) -> Score | None:
    """The share of models whose interval or set holds the truth; None where there are none."""
    card = expert.card
    if card.conformal is None:
        return None
    region = card.task.region(found.logits, card.temperature, card.conformal)
    return share(card.task.covered(region, found.y))


def is_told(task: Task, found: Answers, known: Any) -> bool:
    """Whether answers are better than those of the prior, beyond chance.

    The mean over the models of how much lower the loss is, or how much higher the accuracy, must be
    above 0 by 2.58 standard errors: of what weights do not tell, one in a hundred passes.

    Args:
      task: what was asked.
      found: answers for models that were not fitted to.
      known: targets of the training models, whose prior it is.
    """
    logits_NY = np.asarray(found.logits, np.float64)
    prior_NY = np.broadcast_to(task.prior(known, logits_NY.shape[1]), logits_NY.shape)
    places = range(len(logits_NY))
    losses = [
        np.array([task.mean_loss(each[n : n + 1], found.y[n : n + 1]) for n in places])
        for each in (prior_NY, logits_NY)
    ]
    right = [np.asarray(task.accuracies(each, found.y)) for each in (prior_NY, logits_NY)]
    return _is_above_0(losses[0] - losses[1]) or _is_above_0(right[1] - right[0])


def _is_above_0(values_N: np.ndarray) -> bool:
    error = values_N.std(ddof=1) / len(values_N) ** 0.5 if len(values_N) > 1 else np.inf
    return bool(values_N.mean() > _TOLD * error)
