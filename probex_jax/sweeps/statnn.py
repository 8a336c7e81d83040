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
from probex_jax.fitting.random_forest import forest_probabilities
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
