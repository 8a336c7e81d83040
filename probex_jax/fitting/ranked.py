"""Ranked lists: what probability a score is, and where a list may be cut."""

import numpy as np

_STEPS, _TOLERANCE = 100, 1e-9


def logistic(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """The logistic curve that says how probably something of a score is right.

    Args:
      scores: [M] float.
      right: [M], 1 where it is right, else 0.

    Returns:
      Slope a and offset b of 1 / (1 + exp(-(a·score + b))). The targets are smoothed as Platt does,
      so that there is such a curve for scores that divide right from wrong without fault, too.

    Example:
      >>> slope, offset = logistic(np.array([0.0, 1, 2, 3]), np.array([0, 1, 0, 1]))
      >>> bool(slope > 0), round(-offset / slope, 3)
      (True, 1.5)

    References:
      Platt: Probabilistic Outputs for Support Vector Machines, 1999.
    """
    x_M = np.asarray(scores, np.float64).ravel()
    right_M = np.asarray(right).ravel() > 0
    n_right, n_wrong = int(right_M.sum()), int((~right_M).sum())
    target_M = np.where(right_M, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    x_M2 = np.stack([x_M, np.ones_like(x_M)], axis=1)

    def loss(w_2: np.ndarray) -> float:
        z_M = x_M2 @ w_2
        return float(np.sum(np.logaddexp(0, z_M) - target_M * z_M))

    mean = target_M.mean()
    w_2, ridge_22 = np.array([0.0, np.log(mean / (1 - mean))]), 1e-9 * np.eye(2)
    for _ in range(_STEPS):  # Newton's, halved where they go too far
        p_M = probability(x_M, w_2)
        hessian_22 = (x_M2 * (p_M * (1 - p_M))[:, None]).T @ x_M2 + ridge_22
        step_2 = np.linalg.solve(hessian_22, x_M2.T @ (p_M - target_M))
        while loss(w_2 - step_2) > loss(w_2) and np.abs(step_2).max() > _TOLERANCE:
            step_2 = step_2 / 2
        if np.abs(step_2).max() <= _TOLERANCE:
            break
        w_2 = w_2 - step_2
    return float(w_2[0]), float(w_2[1])


def probability(scores: np.ndarray, curve: tuple[float, float] | np.ndarray) -> np.ndarray:
    """What a curve of `logistic` says of scores.

    Example:
      >>> probability(np.array([0.0, 1.0]), (2.0, 0.0)).round(3)
      array([0.5  , 0.881])
    """
    slope, offset = curve
    return np.exp(-np.logaddexp(0, -(slope * np.asarray(scores, np.float64) + offset)))


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
