"""The StatNN baseline: statistics of the weights, into a random forest."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from probex_jax.encoders import statistics
from probex_jax.errors import ProbexError
from probex_jax.experts.card import versions
from probex_jax.experts.chance import chance
from probex_jax.experts.predictions import Predictions
from probex_jax.files import claim, one_writer, read_json, write_json
from probex_jax.fitting import Score, SeveralClasses
from probex_jax.layer_store import LayerStore

_TASK = SeveralClasses()


def _score(logits_NY: np.ndarray, store: LayerStore) -> Score:
    score = _TASK.score(logits_NY, store.targets("test"))
    return dataclasses.replace(score, chance=chance(_TASK, store, "test", store.classes))


def statnn_answers(store: LayerStore, *, n_trees: int = 500, seed: int = 0) -> np.ndarray:
    """What a random forest on seven statistics of every layer says of the test models.

    The forest is fitted on the training split; nothing is selected, so validation is not used.

    Args:
      store: matrices and labels; all of its layers are used.
      n_trees: trees of the forest.
      seed: of the forest.

    Returns:
      [N, Y] probabilities less one half.

    Raises:
      ProbexError: if scikit-learn is missing (extra `zoo`), or the store holds factors: quantiles
        of an update cannot be had from its factors.

    References:
      Unterthiner et al., arXiv 2002.11448.
    """
    if store.ranks:
        raise ProbexError(f"{store.path}: StatNN reads dense layers, this store holds factors")
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError:
        raise ProbexError("StatNN needs scikit-learn: pip install scikit-learn") from None
    forest = RandomForestClassifier(n_trees, random_state=seed, n_jobs=-1)
    forest.fit(_features(store, "train"), store.targets("train").astype(int))
    # A list over classes of [N, 2]; a class that all or no training models have gives one column.
    probabilities, classes = forest.predict_proba(_features(store, "test")), forest.classes_
    if len(store.classes) == 1:  # then scikit-learn leaves the lists out
        probabilities, classes = [probabilities], [classes]
    columns: Any = zip(probabilities, classes, strict=True)
    positive_YN = [p[:, list(c).index(1)] if 1 in c else np.zeros(len(p)) for p, c in columns]
    return np.stack(positive_YN, axis=1) - 0.5


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
    encoder = {"name": "statnn", "n_trees": n_trees}
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
            logits_NY, y = statnn_answers(store, n_trees=n_trees, seed=seed), store.targets("test")
            Predictions.of(store, store.classes, _TASK, (logits_NY, y)).write(workdir)
            score, auc = _score(logits_NY, store), _TASK.auc(logits_NY, y)
            figures = {
                "n_models": {split: len(store.split(split)) for split in ("train", "test")},
                "test_accuracy": dataclasses.asdict(score),
                **({"test_auc": dataclasses.asdict(auc)} if auc else {}),
                "versions": versions(),
            }
            write_json(path, settings | figures)
        return read_json(path)


def _features(store: LayerStore, split: str) -> np.ndarray:
    """[N, 7 · layers]: the statistics of every layer side by side."""
    compiled = jax.jit(statistics)
    return np.concatenate(
        [np.asarray(compiled(store.matrices(layer, split))) for layer in store.layers], axis=1
    )
