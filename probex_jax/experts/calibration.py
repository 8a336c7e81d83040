"""How much outputs should be stretched to be the best logits they can be."""

import numpy as np

# Factors that are tried; neighbours are 5 % apart.
FACTORS = np.geomspace(0.1, 100.0, 142)


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
