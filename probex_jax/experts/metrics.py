"""Accuracy of class predictions, with an interval."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """A figure with its uncertainty.

    Args:
      value: mean over the models.
      low, high: 95 % interval by bootstrap over the models.
      n_models: how many models.
    """

    value: float
    low: float
    high: float
    n_models: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def accuracy(logits: np.ndarray, targets: np.ndarray, *, seed: int = 0) -> Score:
    """Share of (model, class) entries that are right at probability one half.

    Args:
      logits: [N, Y] float.
      targets: [N, Y] of zeros and ones.
      seed: of the bootstrap.

    Returns:
      The share, and its interval.

    Example:
      >>> import numpy as np
      >>> print(accuracy(np.array([[2.0, -1.0], [3.0, 1.0]]), np.array([[1, 0], [1, 0]])))
      0.750 [0.500, 1.000]
    """
    right_N = np.mean((np.asarray(logits) > 0) == (np.asarray(targets) > 0.5), axis=1)
    draws = np.random.default_rng(seed).integers(len(right_N), size=(2000, len(right_N)))
    low, high = np.quantile(right_N[draws].mean(axis=1), [0.025, 0.975])
    return Score(float(right_N.mean()), float(low), float(high), len(right_N))
