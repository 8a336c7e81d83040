"""Ranked lists: what probability a score is, and where a list may be cut."""

from typing import NamedTuple

import numpy as np

_LEAST_FLOOR = -20.0  # log odds


class Curve(NamedTuple):
    """What probability a score is: floor + (1 - floor) / (1 + exp(-(slope · score + offset))).

    Args:
      slope, offset: of the logistic part.
      floor: what is right whatever its score.

    Example:
      >>> Curve(2.0, 0.0, 0.1)(np.array([-100.0, 0.0, 1.0])).round(3)
      array([0.1  , 0.55 , 0.893])
    """

    slope: float
    offset: float
    floor: float = 0.0

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """The probabilities of scores."""
        z = self.slope * np.asarray(scores, np.float64) + self.offset
        return self.floor + (1 - self.floor) * np.exp(-np.logaddexp(0, -z))


def fitted_curve(scores: np.ndarray, right: np.ndarray, *, floor: bool = False) -> Curve:
    """The most likely curve that says how probably something of a score is right.

    Args:
      scores: [M] float, not all the same.
      right: [M], 1 where it is right, else 0.
      floor: whether some are right whatever their score; else the floor is 0.

    Returns:
      The curve. The targets are smoothed as Platt does, so that there is one for scores that divide
      right from wrong without fault, too.

    Example:
      >>> slope, offset, _ = fitted_curve(np.array([0.0, 1, 2, 3]), np.array([0, 1, 0, 1]))
      >>> slope > 0, round(-offset / slope, 2)
      (True, 1.5)

    References:
      Platt: Probabilistic Outputs for Support Vector Machines, 1999.
    """
    from scipy.optimize import minimize  # slow to import

    x_M = np.asarray(scores, np.float64).ravel()
    right_M = np.asarray(right).ravel() > 0
    n_right, n_wrong = int(right_M.sum()), int((~right_M).sum())
    target_M = np.where(right_M, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    mean, spread = x_M.mean(), x_M.std()

    def curve(w: np.ndarray) -> Curve:
        lowest = float(np.exp(-np.logaddexp(0, -w[2]))) if floor else 0.0
        return Curve(float(w[0] / spread), float(w[1] - w[0] * mean / spread), lowest)

    def loss(w: np.ndarray) -> float:
        p_M = np.clip(curve(w)(x_M), 1e-12, 1 - 1e-12)
        return -float(np.mean(target_M * np.log(p_M) + (1 - target_M) * np.log1p(-p_M)))

    odds = float(np.log(target_M.mean() / (1 - target_M.mean())))
    start = [1.0, odds, *([odds - 2] if floor else [])]
    bounds = [(None, None)] * 2 + [(_LEAST_FLOOR, None)] * floor
    return curve(minimize(loss, start, bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-8}).x)


def lowest_cut(scores: np.ndarray, right: np.ndarray, wrong: float) -> float | None:
    """The lowest score from which on entries are shown, so that few of those shown are wrong.

    Of another model of the same kind, the expected share of wrong ones among what is shown is at
    most `wrong`; where nothing is shown it counts as 0. That holds whatever the scores are, if the
    models are exchangeable and the scores were not fitted to them.

    Args:
      scores: [N, V] of N models.
      right: [N, V], 1 where an entry is right, else 0.
      wrong: the share, between 0 and 1.

    Returns:
      The score; None if nothing may be shown.

    Example:
      >>> scores = np.tile([0.9, 0.5, 0.1], (20, 1))
      >>> lowest_cut(scores, np.tile([1, 1, 0], (20, 1)), wrong=0.2)
      0.5
      >>> lowest_cut(scores, np.tile([0, 1, 1], (20, 1)), wrong=0.2) is None
      True

    References:
      Angelopoulos, Bates, Fisch, Lei, Schuster: Conformal Risk Control, ICLR 2024. The loss of a
      model is the largest share of wrong ones at this cut or a higher one, which only grows as the
      cut falls.
    """
    scores_NV = np.asarray(scores, np.float64)
    order_NV = np.argsort(-scores_NV, axis=1, kind="stable")
    sorted_NV = np.take_along_axis(scores_NV, order_NV, axis=1)
    wrong_NV = 1 - (np.take_along_axis(np.asarray(right), order_NV, axis=1) > 0)
    share_NV = np.cumsum(wrong_NV, axis=1) / np.arange(1, wrong_NV.shape[1] + 1)
    loss_NV = np.maximum.accumulate(share_NV, axis=1)
    # What each entry adds to the loss of its model, from the highest score to the lowest.
    added = np.diff(loss_NV, axis=1, prepend=0.0).ravel()
    falling = np.argsort(-sorted_NV.ravel(), kind="stable")
    cuts, total = sorted_NV.ravel()[falling], np.cumsum(added[falling])
    last = np.append(cuts[1:] < cuts[:-1], True)  # of those of one score
    allowed = wrong * (len(scores_NV) + 1) - 1
    fits = cuts[last][total[last] <= allowed + 1e-9]
    return float(fits[-1]) if fits.size else None
