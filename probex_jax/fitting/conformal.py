"""Intervals and sets that hold what they promise: split conformal prediction.

Of n models that were not fitted to, the score of a model says how far its answer is off. With k =
⌈c (n + 1)⌉, the k-th smallest score is not exceeded by a new model of the same tree with
probability c or more, whatever the distribution. What scores no worse is the interval, or the set.

References:
  Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005. Sadinle, Lei, Wasserman:
  Least Ambiguous Set-Valued Classifiers with Bounded Error Levels, JASA 2019 (sets by class).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

import numpy as np

COVERAGE = 0.9
# Fewest models of a class for a threshold of its own: of fewer one score more or less is too much.
_OF_A_CLASS = 20


@dataclass(frozen=True)
class Conformal:
    """How far answers may be off.

    Args:
      coverage: share of new models whose interval or set holds the truth.
      score: the largest score of what is in: of a number the error of its logit, of a class one
        less its probability.
      n_models: that they are from.
      by_class: place of a class to the score for models of that class, where there were enough;
        `score` is then of the models of the other classes, if there are any.

    Example:
      >>> Conformal(0.9, 0.25, 40, {"1": 0.5}).scores(3)
      array([0.25, 0.5 , 0.25])
    """

    coverage: float
    score: float
    n_models: int
    by_class: Mapping[str, float] = field(default_factory=dict)

    def scores(self, n_classes: int) -> np.ndarray:
        """[Y] float64: the largest score of each class."""
        return np.array([self.by_class.get(str(place), self.score) for place in range(n_classes)])


def conformal_score(scores: np.ndarray) -> float | None:
    """The score that a new one exceeds no more often than promised; None if too few are known.

    Args:
      scores: [N] float.

    Example:
      >>> conformal_score(np.arange(1, 20) / 20), conformal_score(np.ones(8))
      (0.9, None)
    """
    # Less a little: 0.9 · 10 is no more than 9, however it is rounded.
    rank = ceil(COVERAGE * (len(scores) + 1) - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else None


def conformal(scores: np.ndarray, of_class: np.ndarray | None = None) -> Conformal | None:
    """What scores of models that were not fitted to say; None if they are too few.

    Args:
      scores: [N] float.
      of_class: [N] int, the place of the class that each is of; None where there are none.

    Example:
      >>> found = conformal(np.arange(40) / 40, np.arange(40) % 2)
      >>> found.score, found.by_class
      (0.9, {'0': 0.9, '1': 0.925})
    """
    score = conformal_score(scores)
    if score is None:
        return None
    by_class, is_left_N = {}, np.ones(len(scores), bool)
    for place in np.unique(of_class) if of_class is not None else ():
        own = scores[of_class == place]
        if len(own) >= _OF_A_CLASS and (of_one := conformal_score(own)) is not None:
            by_class[str(place)] = of_one
            is_left_N &= of_class != place
    if by_class and is_left_N.any():
        # Each group has to be covered by itself: what of all makes up for others does not here.
        of_left = conformal_score(scores[is_left_N])
        score, by_class = (score, {}) if of_left is None else (of_left, by_class)
    return Conformal(COVERAGE, score, len(scores), by_class)
