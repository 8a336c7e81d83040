"""The StatNN baseline: statistics of the weights, into a random forest."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from probex_jax.claims import claim
from probex_jax.encoders import statistics
from probex_jax.errors import ProbexError
from probex_jax.experts.card import versions
from probex_jax.experts.chance import chance, targets
from probex_jax.experts.predictions import Predictions
from probex_jax.files import one_writer, read_json, write_json
from probex_jax.integrity import sealed, unsealed
from probex_jax.layer_store import LayerStore
from probex_jax.sweeps.settings import told_task


def statnn_answers(store: LayerStore, *, n_trees: int = 500, seed: int = 0) -> np.ndarray:
    """What a random forest on seven statistics of every layer says of the test models.

    The forest is fitted on the training split; nothing is selected, so validation is not used.

    Args:
      store: matrices and labels; all of its layers are used.
      n_trees: trees of the forest.
      seed: of the forest.

    Returns:
      [N, Y] probabilities less one half; where one class is right the largest is the answer.

    Raises:
      ProbexError: if scikit-learn is missing (extra `zoo`), or the store holds factors: quantiles
        of an update cannot be had from its factors.

    References:
      Unterthiner et al., arXiv 2002.11448.
    """
    if store.ranks:
        raise ProbexError(f"{store.path}: StatNN reads dense layers, this store holds factors")
    y_NY = store.targets("train").astype(int)
    known, asked = _features(store, "train"), _features(store, "test")
    return forest_probabilities(known, y_NY, asked, n_trees=n_trees, seed=seed) - 0.5


def forest_probabilities(
    x_NF: np.ndarray,
    y_NY: np.ndarray,
    asked_MF: np.ndarray,
    *,
    n_trees: int = 500,
    seed: int = 0,
    min_samples_leaf: int = 1,
) -> np.ndarray:
    """What a random forest says of models by their features.

    Where one class is right, the columns of y are those of one-hot vectors: the impurity that a
    tree reduces is then the same as for the one class.

    Args:
      x_NF: [N, F] features of training models.
      y_NY: [N, Y] int, 1 where a model is of a class.
      asked_MF: [M, F] of the others.
      n_trees, seed, min_samples_leaf: of the forest.

    Returns:
      [M, Y] probabilities.

    Raises:
      ProbexError: if scikit-learn is missing (extra `zoo`).
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError:
        raise ProbexError("StatNN needs scikit-learn: pip install scikit-learn") from None
    forest = RandomForestClassifier(
        n_trees, min_samples_leaf=min_samples_leaf, random_state=seed, n_jobs=-1
    )
    forest.fit(x_NF, y_NY)
    # A list over classes of [M, 2]; a class that all or no training models have gives one column.
    probabilities, classes = forest.predict_proba(asked_MF), forest.classes_
    if y_NY.shape[1] == 1:  # then scikit-learn leaves the lists out
        probabilities, classes = [probabilities], [classes]
    columns: Any = zip(probabilities, classes, strict=True)
    positive_YM = [p[:, list(c).index(1)] if 1 in c else np.zeros(len(p)) for p, c in columns]
    return np.stack(positive_YM, axis=1)


def run_statnn(
    store: LayerStore, workdir: Path, *, n_trees: int = 500, seed: int = 0
) -> dict[str, Any]:
    """Measures StatNN on the test split, its metrics kept in a work directory as a sweep's are.

    Args:
      store: the models.
      workdir: made where it is missing.
      n_trees, seed: as `statnn_answers` takes them.

    Returns:
      The metrics; read from `workdir` where they are there already.

    Raises:
      ProbexError: as `statnn_answers`, or if the work directory belongs to another config or is
        being written.
    """
    for name, value, least in (("encoder.n_trees", n_trees, 1), ("recipe.seed", seed, 0)):
        if not (type(value) is int and least <= value < 2**31):
            raise ProbexError(f"{name}: {value!r} is not a whole number >= {least}")
    encoder, task = {"name": "statnn", "n_trees": n_trees}, told_task(store)
    settings = {
        "encoder": encoder,
        "recipe": {"seed": seed},
        "tree": store.tree,
        "store_hash": store.hash,
    }
    with one_writer(workdir):
        claim(workdir, settings)
        path = workdir / "metrics.json"
        if not path.exists():
            logits_NY, y = (
                statnn_answers(store, n_trees=n_trees, seed=seed),
                targets(task, store, "test", store.classes),
            )
            Predictions.of(store, store.classes, task, (logits_NY, y)).write(workdir)
            score, auc = task.score(logits_NY, y), task.auc(logits_NY, y)
            score = dataclasses.replace(score, chance=chance(task, store, "test", store.classes))
            figures = {
                "task": task.name,
                "n_models": {split: len(store.split(split)) for split in ("train", "test")},
                "test_accuracy": dataclasses.asdict(score),
                **({"test_auc": dataclasses.asdict(auc)} if auc else {}),
                "versions": versions(),
            }
            write_json(path, sealed(settings | figures))
        return unsealed(read_json(path), path)


def _features(store: LayerStore, split: str) -> np.ndarray:
    """[N, 7 · layers]: the statistics of every layer side by side."""
    compiled = jax.jit(statistics)
    return np.concatenate(
        [np.asarray(compiled(store.matrices(layer, split))) for layer in store.layers], axis=1
    )
