"""A random forest of scikit-learn, for one class of several as for several at once."""

from typing import Any

import numpy as np

from probex_jax.errors import ProbexError


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
