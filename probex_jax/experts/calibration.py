"""How much outputs should be stretched, and how far probabilities may be believed."""

import numpy as np
from scipy.optimize import minimize_scalar

# Factors that are tried; neighbours are 5 % apart.
FACTORS = np.geomspace(0.1, 100.0, 142)

# Bins of the calibration error, and bounds of a temperature.
_BINS = 15
_LOG_TEMPERATURES = (-10.0, 10.0)


def best_factor(outputs: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The one factor that makes the best logits of outputs.

    Args:
      outputs: [N, Y] float.
      y: what the models are, as `Split.y`.

    Returns:
      The factor, between 0.1 and 100, and the mean loss of the outputs times it: a cross-entropy
      per class, or over the candidates, as in training.

    Example:
      >>> outputs = np.array([[0.1], [-0.1], [0.1], [0.1]])
      >>> factor, loss = best_factor(outputs, np.array([[1.0], [0.0], [1.0], [0.0]]))
      >>> 10 < factor < 12, 0.56 < loss < 0.57
      (True, True)
    """
    outputs_NY = np.asarray(outputs, np.float64)
    losses = [mean_loss(factor * outputs_NY, y) for factor in FACTORS]
    best = int(np.argmin(losses))
    return float(FACTORS[best]), losses[best]


def mean_loss(logits: np.ndarray, y: np.ndarray) -> float:
    """The loss that training has, in float64: mean over the models, and over their classes.

    Args:
      logits: [N, Y] float.
      y: as `best_factor` takes it.

    Example:
      >>> round(mean_loss(np.zeros([3, 8]), np.array([0, 1, 7])), 4) == round(float(np.log(8)), 4)
      True
    """
    logits_NY, y = np.asarray(logits, np.float64), np.asarray(y)
    if y.ndim == 2:
        return float(np.mean(np.logaddexp(0.0, logits_NY) - y * logits_NY))
    right_N = np.take_along_axis(logits_NY, y[:, None], axis=1)[:, 0]
    return float(np.mean(np.logaddexp.reduce(logits_NY, axis=1) - right_N))


def best_temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """The temperature T that makes the best probabilities of logits / T.

    Targets are smoothed as Platt does for his scaling: of n entries that are all answered rightly
    nobody can tell whether the next one will be, so that they count as right at (n + 1) / (n + 2);
    of candidates, the likeliest of the others gets what is left.
    Without that, models that are told apart without a mistake would ask for a temperature of zero.

    Args:
      logits: [N, Y] float.
      y: what the models are, as `Split.y`.

    Example:
      >>> logits = np.tile([[30.0], [-30.0]], [50, 1])
      >>> p = 1 / (1 + np.exp(-30.0 / best_temperature(logits, logits > 0)))
      >>> round(float(p), 3) == round(51 / 52, 3)
      True

    References:
      Platt: Probabilistic Outputs for Support Vector Machines, 1999. Guo, Pleiss, Sun, Weinberger:
      On Calibration of Modern Neural Networks, ICML 2017.
    """
    logits_NY, y = np.asarray(logits, np.float64), np.asarray(y)
    targets_NY = _smoothed(logits_NY, y)

    def loss(log_temperature: float) -> float:
        scaled_NY = logits_NY * np.exp(-log_temperature)
        if y.ndim == 2:
            return float(np.mean(np.logaddexp(0.0, scaled_NY) - targets_NY * scaled_NY))
        inner_N = np.sum(targets_NY * scaled_NY, axis=1)
        return float(np.mean(np.logaddexp.reduce(scaled_NY, axis=1) - inner_N))

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x))


def _smoothed(logits_NY: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Targets of probabilities, short of 0 and 1 by what their number cannot tell."""
    if y.ndim == 2:
        n_positive = np.count_nonzero(y)
        positive, negative = (n_positive + 1) / (n_positive + 2), 1 / (y.size - n_positive + 2)
        return np.where(y > 0.5, positive, negative)
    models, classes = logits_NY.shape
    targets_NY = np.zeros([models, classes])
    if classes > 1:
        # What is doubtful is whether it is not the likeliest of the others: far ones do not count.
        others_NY = logits_NY.copy()
        np.put_along_axis(others_NY, y[:, None], -np.inf, axis=1)
        np.put_along_axis(targets_NY, others_NY.argmax(axis=1)[:, None], 1 / (models + 2), axis=1)
    np.put_along_axis(targets_NY, y[:, None], 1 - targets_NY.sum(axis=1, keepdims=True), axis=1)
    return targets_NY


def calibration_error(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Expected calibration error: how far probabilities are from the shares that they promise.

    Args:
      probabilities: [N, Y], of each class for itself where `y` is [N, Y], else of the candidates.
      y: what the models are, as `Split.y`. Of candidates the most probable one counts.

    Returns:
      Mean over the entries, in 15 bins of equal width, of |mean probability - share that is so|.

    Example:
      >>> p = np.array([[0.9], [0.9], [0.9], [0.9]])
      >>> round(calibration_error(p, np.array([[1], [1], [1], [0]])), 3)
      0.15

    References:
      Naeini, Cooper, Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning,
      AAAI 2015.
    """
    counts, promised, held = reliability(probabilities, y)
    return float(np.sum(np.abs(held - promised)) / np.sum(counts))


def reliability(probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What the calibration error is made of: promises and what became of them, bin by bin.

    Args:
      probabilities, y: as `calibration_error` takes them.

    Returns:
      [3, 15]: of each bin the number of entries, the sum of their probabilities, and how many of
      them are so.

    Example:
      >>> counts, promised, held = reliability(np.array([[0.9, 0.2]]), np.array([[1, 0]]))
      >>> np.flatnonzero(counts), held[[3, 13]]
      (array([ 3, 13]), array([0., 1.]))
    """
    p_NY, y = np.asarray(probabilities, np.float64), np.asarray(y)
    if y.ndim == 2:
        promised, held = p_NY.ravel(), np.asarray(y, np.float64).ravel()
    else:
        promised, held = p_NY.max(axis=1), (np.argmax(p_NY, axis=1) == y).astype(np.float64)
    places = np.minimum((promised * _BINS).astype(int), _BINS - 1)
    sums = [np.bincount(places, weights, minlength=_BINS) for weights in (None, promised, held)]
    return np.stack([np.asarray(each, np.float64) for each in sums])
