"""How good ranked tags are: of those shown, and of those that there are."""

import math
from collections.abc import Iterator

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.fitting import Score, share


def tag_figures(
    probabilities: np.ndarray, shown: np.ndarray, right: np.ndarray
) -> Iterator[tuple[str, str, Score, float]]:
    """Figures of the tags shown for models.

    Args:
      probabilities: [N, V] of N models and V tags.
      shown: [N, V] bool.
      right: [N, V] bool, whether the model has the tag.

    Yields:
      Key, what it is in words, the figure and its chance. Precision is the mean over the models for
      which tags are shown; recall, and precision of the first tag, shown or not, over those that
      have one of the tags. Chance is what showing the commonest tags has, whatever the model, as
      many as are shown on average.

    Raises:
      ProbexError: if no model has one of the tags.
    """
    some_N, has_N = shown.any(axis=1), right.any(axis=1)
    if not has_N.any():
        raise ProbexError("no model has one of these tags")
    each = float(shown.sum(axis=1).mean())
    n_tags = max(1, math.ceil(each))
    commonest = np.argsort(-right.mean(axis=0), kind="stable")[:n_tags]
    always = np.zeros_like(shown)
    always[:, commonest] = True
    if some_N.any():
        found = share(_share(shown & right, shown)[some_N])
        what = f"precision of tags shown, {each:.1f} a model"
        yield "precision", what, found, float(_share(always & right, always).mean())
    found = share(_share(shown & right, right)[has_N])
    chance = float(_share(always & right, right)[has_N].mean()) * each / n_tags
    yield "recall", "recall of tags shown", found, chance
    first = right[np.arange(len(right)), probabilities.argmax(axis=1)]
    chance = float(right[has_N, commonest[0]].mean())
    yield "precision_at_1", "precision of the first tag", share(first[has_N]), chance


def _share(some_NV: np.ndarray, of_NV: np.ndarray) -> np.ndarray:
    """[N]; 0 where there is nothing."""
    return some_NV.sum(axis=1) / np.maximum(of_NV.sum(axis=1), 1)
