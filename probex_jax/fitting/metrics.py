"""Figures over models, with their intervals."""

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Score:
    """A figure with its uncertainty.

    Args:
      value: mean over the models.
      low, high: 95 % interval, by bootstrap over the models but where `share` says otherwise.
      n_models: how many models.
      chance: of an accuracy, that of always giving the commonest answer; None where it is unknown.
    """

    value: float
    low: float
    high: float
    n_models: int
    chance: float | None = field(default=None, compare=False)

    def __str__(self) -> str:
        beside = "" if self.chance is None else f", chance {self.chance:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]{beside}"


def mean_score(values: np.ndarray, *, seed: int = 0) -> Score:
    """Mean of a figure over the models, with its 95 % interval by bootstrap over them.

    Args:
      values: [N], one figure a model.
      seed: of the bootstrap.

    Returns:
      The mean with its interval.

    Example:
      >>> print(mean_score(np.array([0.0, 1.0, 1.0, 1.0])))
      0.750 [0.250, 1.000]
    """
    values_N = np.asarray(values, float)
    draws = np.random.default_rng(seed).integers(len(values_N), size=(2000, len(values_N)))
    low, high = np.quantile(values_N[draws].mean(axis=1), [0.025, 0.975])
    return Score(float(values_N.mean()), float(low), float(high), len(values_N))


def share(values: np.ndarray) -> Score:
    """Mean of what lies between 0 and 1 for each model, such as whether its class was told.

    Where all of N models are right, every draw of the bootstrap is, too, and its interval would be
    a point. The exact one of Clopper and Pearson (1934) then reaches down to .025^(1/N); where none
    is right, up to one less that.

    Args:
      values: [N], one figure a model, from 0 to 1.

    Returns:
      The mean with its 95 % interval.

    Example:
      >>> print(share(np.ones(64)))
      1.000 [0.944, 1.000]
      >>> print(share(np.array([0.0, 1.0, 1.0, 1.0])))
      0.750 [0.250, 1.000]
    """
    score = mean_score(values)
    reach = 0.025 ** (1 / score.n_models)
    if score.low == 1:
        return replace(score, low=reach)
    if score.high == 0:
        return replace(score, high=1 - reach)
    return score
