"""Figures over models, with their intervals."""

from dataclasses import dataclass, field, replace

import numpy as np

from probex_jax.errors import ProbexError


@dataclass(frozen=True)
class Score:
    """A figure with its uncertainty.

    Args:
      value: mean over the models.
      low, high: 95 % interval, by bootstrap over the models but where `share` says otherwise.
      n_models: how many models.
      chance: of an accuracy, what always giving the commonest answer has (`chance`); None where
        nobody has worked it out.
    """

    value: float
    low: float
    high: float
    n_models: int
    chance: float | None = field(default=None, compare=False)

    def __str__(self) -> str:
        beside = "" if self.chance is None else f", chance {self.chance:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]{beside}"


def accuracy(logits: np.ndarray, targets: np.ndarray) -> Score:
    """Share of (model, class) entries that are right at probability one half.

    Args:
      logits: [N, Y] float.
      targets: [N, Y] of zeros and ones.

    Returns:
      The share, and its interval.

    Raises:
      ProbexError: if their shapes differ, there are none, or values are not such.

    Example:
      >>> import numpy as np
      >>> print(accuracy(np.array([[2.0, -1.0], [3.0, 1.0]]), np.array([[1, 0], [1, 0]])))
      0.750 [0.500, 1.000]
    """
    logits_NY, targets_NY = np.asarray(logits), np.asarray(targets)
    _check(logits_NY, targets_NY, logits_NY.shape)
    if not np.isin(targets_NY, (0, 1)).all():
        raise ProbexError(f"targets of shape {targets_NY.shape} hold other values than 0 and 1")
    return share(np.mean((logits_NY > 0) == (targets_NY > 0.5), axis=1))


def top_accuracy(logits: np.ndarray, labels: np.ndarray) -> Score:
    """Share of the models whose highest logit is that of their class.

    Args:
      logits: [N, Y] float.
      labels: [N] int, places of the models' classes.

    Returns:
      The share with its interval.

    Raises:
      ProbexError: as `accuracy`.

    Example:
      >>> import numpy as np
      >>> top_accuracy(np.array([[2.0, -1.0], [3.0, 1.0]]), np.array([0, 1])).value
      0.5
    """
    logits_NY, labels_N = np.asarray(logits), np.asarray(labels)
    _check(logits_NY, labels_N, logits_NY.shape[:1])
    if not np.isin(labels_N, np.arange(logits_NY.shape[1])).all():
        raise ProbexError(
            f"labels of shape {labels_N.shape} are not all places of {logits_NY.shape[1]} classes"
        )
    return share(np.argmax(logits_NY, axis=1) == labels_N)


def _check(logits_NY: np.ndarray, y: np.ndarray, expected: tuple[int, ...]) -> None:
    if logits_NY.ndim != 2 or 0 in logits_NY.shape or y.shape != expected:
        raise ProbexError(
            f"logits of shape {logits_NY.shape} and targets of shape {y.shape} do not belong "
            "together"
        )
    if np.isnan(logits_NY).any():
        raise ProbexError(f"logits of shape {logits_NY.shape} hold NaN: nothing is told by them")


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
