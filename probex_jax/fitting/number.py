"""The task of telling a number."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.fitting.task import Task


@dataclass(frozen=True)
class Number(Task):
    """How much of something: a number for each model, such as its learning rate.

    Targets are [N] float, trained standardised by the training models, with the squared error. The
    accuracy is R²: 1 less the squared error in units of the training variance, so that always
    answering the training mean has about 0. Predictions are [N, 2], the number and the standard
    deviation of its error.

    Args:
      mean, std: of the training targets; set by `fitted`.

    Example:
      >>> task = Number().fitted(np.array([1.0, 3.0]))
      >>> task.predictions(np.array([[0.0], [2.0]]), temperature=0.5).tolist()
      [[2.0, 0.5], [4.0, 0.5]]
    """

    name = "number"
    predicts = "numbers"
    promised = "probability that a number lies within 1.96 standard deviations"
    mean: float = 0.0
    std: float = 1.0

    def n_outputs(self, y):
        return 1

    def check(self, where, y, n_models, n_outputs):
        y = np.asarray(y)
        if y.shape != (n_models,) or y.dtype.kind not in "iuf" or not np.isfinite(y).all():
            raise ProbexError(
                f"{where} has shape {y.shape} of {y.dtype}, expected finite numbers of {n_models} "
                "models"
            )

    def fitted(self, y):
        if not np.ptp(y := np.asarray(y, np.float64)) > 0:
            raise ProbexError("y is the same number for all training models: nothing to tell")
        return replace(self, mean=float(y.mean()), std=float(y.std()))

    def encoded(self, y):
        return ((np.asarray(y, np.float64) - self.mean) / self.std).astype(np.float32)

    def loss(self, logits, y):
        return (logits[:, 0] - y) ** 2

    def correct(self, logits, y):
        return 1 - (logits[:, 0] - y) ** 2

    def predictions(self, logits, temperature=1.0):
        value_N = self.mean + self.std * jnp.asarray(logits)[:, 0]
        return jnp.stack([value_N, jnp.full_like(value_N, self.std * temperature)], axis=1)

    def targets(self, y, n_outputs):
        return np.asarray(self.encoded(y), np.float64)[:, None]

    def chance(self, known, asked):
        return float(np.mean(1 - ((np.asarray(asked) - np.mean(known)) / self.std) ** 2))

    def best_temperature(self, logits, y):
        """The standard deviation of the errors, in units of that of the training targets."""
        return max(self.mean_loss(logits, y) ** 0.5, 1e-6)

    def mean_loss(self, logits, y):
        return float(np.mean((np.asarray(logits, np.float64) - self.targets(y, 1)) ** 2))

    def best_factor(self, outputs, y):
        return 1.0, self.mean_loss(outputs, y)

    def promises(self, predictions, y):
        held_N = np.abs(np.asarray(y) - predictions[:, 0]) <= 1.96 * predictions[:, 1]
        return np.full(len(held_N), 0.95), held_N.astype(np.float64)
