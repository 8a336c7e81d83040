"""How far stated probabilities may be believed, and what logits are scaled by for that."""

from collections.abc import Callable
from functools import cache

import numpy as np

_BINS = 15
# Factors that are tried, 5 % apart, and the bounds of a temperature.
FACTORS = np.geomspace(0.1, 100.0, 142)
_LOG_TEMPERATURES, _TOLERANCE = (-10.0, 10.0), 1e-5


def best_factor(loss: Callable[[float], float]) -> tuple[float, float]:
    """The factor from 0.1 to 100 of the lowest loss, which is convex, and that loss.

    Example:
      >>> factor, loss = best_factor(lambda factor: (factor - 3.0) ** 2)
      >>> bool(2.9 < factor < 3.1), bool(loss < 0.01)
      (True, True)
    """
    tried = cache(lambda place: loss(float(FACTORS[place])))
    # The first factor after which it no longer falls.
    low, high = 0, len(FACTORS) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if tried(middle + 1) < tried(middle) else (low, middle)
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
