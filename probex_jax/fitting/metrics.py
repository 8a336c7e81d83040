"""Figures over models, with their intervals."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

_DRAWS = 2000  # of a bootstrap


@dataclass(frozen=True)
class Score:
    """A figure with its uncertainty.

    Args:
      value: mean over the models.
      low, high: 95 % interval, by bootstrap over the models but where `share` says otherwise.
      n_models: how many models.
      chance: of an accuracy, that of always giving the commonest answer; of an AUC one half; None
        where it is unknown.
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
    draws = np.random.default_rng(seed).integers(len(values_N), size=(_DRAWS, len(values_N)))
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


def macro_auc(logits: ArrayLike, y: ArrayLike) -> float:
    """Area under the ROC curve of each class against the rest, mean over the classes.

    It is the share of pairs of a model of the class and another in the right order, where ties
    count half. Classes that none or all of the models are of are left out.

    Args:
      logits: [N, Y] float, higher for models of a class.
      y: [N] int, the one class of each model, or [N, Y], 1 where it is of a class, else 0.

    Returns:
      The mean, of which one half is chance; NaN where no class can be told from the rest.

    Example:
      >>> macro_auc([[0.9, 0.1], [0.8, 0.7], [0.2, 0.6]], [0, 0, 1])
      0.75
    """
    areas = auc_by_class(logits, y)
    return float(np.mean(list(areas.values()))) if areas else float("nan")


def auc_by_class(logits: ArrayLike, y: ArrayLike) -> dict[int, float]:
    """What `macro_auc` is the mean of, by the place of the class."""
    logits_NY, positive_NY = _ranked(logits, y)
    ones_1N = np.ones([1, len(logits_NY)], np.float32)
    found = _areas(logits_NY, positive_NY, ones_1N)[:, 0]
    return {place: float(area) for place, area in enumerate(found) if np.isfinite(area)}


def auc_score(logits: ArrayLike, y: ArrayLike) -> Score | None:
    """`macro_auc` with its 95 % interval by bootstrap over the models.

    A draw weighs every model by how often it was drawn; a class without a drawn model, or with all
    of them, is left out of it.

    Args:
      logits, y: as `macro_auc` takes them.

    Returns:
      The figure beside its chance of one half; None where no class can be told from the rest.
    """
    value, (logits_NY, positive_NY) = macro_auc(logits, y), _ranked(logits, y)
    if np.isnan(value):
        return None
    draws_DN = np.random.default_rng(0).integers(len(logits_NY), size=(_DRAWS, len(logits_NY)))
    areas_YD = _areas(logits_NY, positive_NY, _counts(draws_DN))
    drawn_D = np.isfinite(areas_YD).any(axis=0)
    low, high = np.quantile(np.nanmean(areas_YD[:, drawn_D], axis=0), [0.025, 0.975])
    return Score(value, float(low), float(high), len(logits_NY), chance=0.5)


def _ranked(logits: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    logits_NY, y = np.asarray(logits), np.asarray(y)
    positive_NY = y > 0.5 if y.ndim == 2 else y[:, None] == np.arange(logits_NY.shape[1])
    return logits_NY, positive_NY


def _counts(draws_DN: np.ndarray) -> np.ndarray:
    """Number of times each model is in each draw, [D, N]."""
    n_draws, n = draws_DN.shape
    flat = draws_DN + n * np.arange(n_draws)[:, None]
    return np.bincount(flat.ravel(), minlength=n_draws * n).reshape(n_draws, n).astype(np.float32)


def _areas(logits_NY: np.ndarray, positive_NY: np.ndarray, counts_DN: np.ndarray) -> np.ndarray:
    """AUC of every class in every draw [Y, D]; NaN where a draw has none, or only models, of it."""
    areas_YD = np.full([logits_NY.shape[1], len(counts_DN)], np.nan)
    for of_class_N, column_N, areas_D in zip(positive_NY.T, logits_NY.T, areas_YD, strict=True):
        if of_class_N.all() or not of_class_N.any():
            continue
        inside_P1, outside_M = column_N[of_class_N][:, None], column_N[~of_class_N]
        right_PM = (inside_P1 > outside_M) + np.float32(0.5) * (inside_P1 == outside_M)
        inside_DP, outside_DM = counts_DN[:, of_class_N], counts_DN[:, ~of_class_N]
        # Counts and halves: exact in float32 up to 2^23 models.
        right_D = np.einsum("dp,dp->d", outside_DM @ right_PM.T, inside_DP, dtype=np.float64)
        pairs_D = inside_DP.sum(axis=1, dtype=np.float64) * outside_DM.sum(axis=1)
        np.divide(right_D, pairs_D, out=areas_D, where=pairs_D > 0)
    return areas_YD
