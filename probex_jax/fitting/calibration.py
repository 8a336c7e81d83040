"""How far stated probabilities may be believed, and what logits are scaled by for that."""

from collections.abc import Callable
from functools import cache

import numpy as np

_BINS = 15
# Factors that are tried, 5 % apart, and the bounds of a temperature.
FACTORS = np.geomspace(0.1, 100.0, 142)
# Steps after which a factor is not near.
_FAR = 16
_LOG_TEMPERATURES, _TOLERANCE = (-10.0, 10.0), 1e-5


def best_factor(loss: Callable[[float], float], near: float | None = None) -> tuple[float, float]:
    """The factor from 0.1 to 100 of the lowest loss, which is convex, and that loss.

    Args:
      loss: of a factor.
      near: a factor that it may be near, so that it is found sooner.

    Example:
      >>> factor, loss = best_factor(lambda factor: (factor - 3.0) ** 2)
      >>> bool(2.9 < factor < 3.1), bool(loss < 0.01)
      (True, True)
      >>> best_factor(lambda factor: (factor - 3.0) ** 2, near=8.0) == (factor, loss)
      True
    """
    tried = cache(lambda place: loss(float(FACTORS[place])))

    def falls(place: int) -> bool:
        return tried(place + 1) < tried(place)

    # The first factor after which it no longer falls.
    low, high, step = 0, len(FACTORS) - 1, 1
    probe = (low + high) // 2 if near is None else int(np.argmin(np.abs(FACTORS - near)))
    while low < high:
        probe = min(max(probe, low), high - 1)
        low, high = (probe + 1, high) if falls(probe) else (low, probe)
        if near is None:
            probe = (low + high) // 2
        else:  # away from it, in steps that double, and back again
            probe = low + step - 1 if low > probe else high - step
            step *= 2
            near = None if step > _FAR else near
    return float(FACTORS[low]), tried(low)


def best_temperature(loss: Callable[[float], float]) -> float:
    """The temperature of the lowest loss, which has one minimum, between e^-10 and e^10.

    Example:
      >>> round(best_temperature(lambda temperature: (temperature - 3.0) ** 2), 2)
      3.0

    References:
      Platt: Probabilistic Outputs for Support Vector Machines, 1999. Guo, Pleiss, Sun, Weinberger:
      On Calibration of Modern Neural Networks, ICML 2017.
    """
    # By the golden section; scipy's does the same, and takes half a second to import.
    low, high = _LOG_TEMPERATURES
    ratio = (5**0.5 - 1) / 2
    while high - low > _TOLERANCE:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        is_left = loss(float(np.exp(left))) < loss(float(np.exp(right)))
        low, high = (low, right) if is_left else (left, high)
    return float(np.exp((low + high) / 2))


def calibration_error(promised: np.ndarray, held: np.ndarray) -> float:
    """Expected calibration error: how far probabilities are from the shares that they promise.

    Args:
      promised: [M] probabilities, as of `Task.promises`.
      held: [M], 1 where what was stated is so, else 0.

    Returns:
      Mean over the M, in 15 bins of equal width, of |mean probability - share that is so|.

    Example:
      >>> round(calibration_error(np.full(4, 0.9), np.array([1, 1, 1, 0])), 3)
      0.15

    References:
      Naeini, Cooper, Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning,
      AAAI 2015.
    """
    counts, promises, so = reliability(promised, held)
    return float(np.sum(np.abs(so - promises)) / np.sum(counts))


def reliability(promised: np.ndarray, held: np.ndarray) -> np.ndarray:
    """What the calibration error is made of: promises and what became of them, bin by bin.

    Args:
      promised, held: as `calibration_error` takes them.

    Returns:
      [3, 15]: of each bin the number of entries, the sum of their probabilities, and how many of
      them are so.

    Example:
      >>> counts, promises, so = reliability(np.array([0.9, 0.2]), np.array([1, 0]))
      >>> np.flatnonzero(counts), so[[3, 13]]
      (array([ 3, 13]), array([0., 1.]))
    """
    p_M = np.asarray(promised, np.float64)
    places = np.minimum((p_M * _BINS).astype(int), _BINS - 1)
    sums = [
        np.bincount(places, weights, minlength=_BINS)
        for weights in (None, p_M, np.asarray(held, np.float64))
    ]
    return np.stack([np.asarray(each, np.float64) for each in sums])


def seen_offset(
    of_seen: tuple[np.ndarray, np.ndarray], of_new: tuple[np.ndarray, np.ndarray], n_new: int
) -> float:
    """What to take off the logits of classes trained on, that new ones are told beside them.

    The harmonic mean is largest of the two accuracies, on models of either kind, among all classes.

    Args:
      of_seen: logits [N, Y] of models of the classes trained on, new classes first, and the places
        [N] of their classes.
      of_new: the same of models of new classes.
      n_new: how many of the Y are new.

    Returns:
      The offset, half-way between models that it divides.

    Example:
      >>> of_new = np.array([[2.0, 0, 3], [0, 4, 5]]), np.array([0, 1])
      >>> of_seen = np.array([[1.0, 0, 9]]), np.array([2])
      >>> seen_offset(of_seen, of_new, n_new=2)
      4.5

    References:
      Chao, Changpinyo, Gong, Sha: An Empirical Study and Analysis of Generalized Zero-Shot
      Learning for Object Recognition in the Wild, ECCV 2016 (calibrated stacking).
    """

    def lead(logits_NY: np.ndarray) -> np.ndarray:
        return logits_NY[:, n_new:].max(axis=1) - logits_NY[:, :n_new].max(axis=1)

    leads = lead(of_seen[0]), lead(of_new[0])
    told_seen_N = of_seen[0][:, n_new:].argmax(axis=1) + n_new == of_seen[1]
    told_new_N = of_new[0][:, :n_new].argmax(axis=1) == of_new[1]
    edges = np.unique(np.concatenate(leads).astype(np.float64))
    offset_E = np.concatenate([edges[:1], (edges[:-1] + edges[1:]) / 2, edges[-1:]])
    seen_E = np.mean(told_seen_N & (leads[0] > offset_E[:, None]), axis=1)
    new_E = np.mean(told_new_N & (leads[1] < offset_E[:, None]), axis=1)
    harmonic_E = 2 * seen_E * new_E / np.maximum(seen_E + new_E, 1e-9)
    return float(offset_E[np.argmax(harmonic_E)]) if harmonic_E.any() else 0.0
