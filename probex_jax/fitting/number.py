"""The task of telling a number."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.fitting.conformal import conformal
from probex_jax.fitting.task import Task

# Ratio of the largest to the smallest number from which they are wide.
_WIDE = 5
# Beyond it float32 has no numbers, in which predictions are.
_LARGEST = 1e36


@dataclass(frozen=True)
class Number(Task):
    """How much of something: a number for each model, such as its learning rate.

    Targets are [N] float, trained standardised by the training models, with the squared error. The
    accuracy is R²: 1 less the squared error in units of the training variance, so that always
    answering the training mean has about 0. Predictions are [N, 2], the number and the standard
    deviation of its error.

    Args:
      mean, std: of the training targets, or of their logarithms; set by `fitted`.
      least, most: bounds of its intervals; `fitted` makes them 0 where no training target is below,
        and 1 where all are shares; None for none.
      log: whether it is told on a logarithmic scale: then targets are positive, R² is that of the
        logarithms, and the standard deviation that of the error of the (natural) logarithm.

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
    log: bool = False
    least: float | None = None
    most: float | None = None

    def n_outputs(self, y):
        return 1

    def check(self, where, y, n_models, n_outputs):
        y = np.asarray(y)
        if y.shape != (n_models,) or y.dtype.kind not in "iuf" or not np.isfinite(y).all():
            raise ProbexError(
                f"{where} has shape {y.shape} of {y.dtype}, expected finite numbers of {n_models} "
                "models"
            )
        if self.log and not y.min() > 0:
            raise ProbexError(f"{where} goes down to {y.min()}, expected numbers above 0")

    def fitted(self, y):
        given = np.asarray(y, np.float64)
        if (most := np.abs(given).max()) > _LARGEST:
            raise ProbexError(f"y goes up to {most:.3g}, expected numbers up to {_LARGEST:.0e}")
        if not np.ptp(y := self._scaled(given)) > 0:
            raise ProbexError("y is the same number for all training models: nothing to tell")
        low, high = np.min(given), np.max(given)
        least, most = 0.0 if low >= 0 else None, 1.0 if low >= 0 and high <= 1 else None
        return replace(self, mean=float(y.mean()), std=float(y.std()), least=least, most=most)

    def _scaled(self, y: Any) -> np.ndarray:
        exact = np.asarray(y, np.float64)
        return np.log(exact) if self.log else exact

    def encoded(self, y):
        return ((self._scaled(y) - self.mean) / self.std).astype(np.float32)

    def loss(self, logits, y):
        return (logits[:, 0] - y) ** 2

    def correct(self, logits, y):
        return 1 - (logits[:, 0] - y) ** 2

    def predictions(self, logits, temperature=1.0):
        value_N = self.mean + self.std * jnp.asarray(logits)[:, 0]
        spread_N = jnp.full_like(value_N, self.std * temperature)
        return jnp.stack([jnp.exp(value_N) if self.log else value_N, spread_N], axis=1)

    def predicted(self, logits, temperature=1.0):
        """As `Task`, exactly and within the bounds of intervals."""
        value_N = self._told(np.asarray(logits, np.float64)[:, 0])
        return np.stack([value_N, np.full_like(value_N, self.std * temperature)], axis=1)

    def targets(self, y, n_outputs):
        return np.asarray(self.encoded(y), np.float64)[:, None]

    def chance(self, known, asked):
        off = self._scaled(asked) - self._scaled(known).mean()
        return float(np.mean(1 - (off / self.std) ** 2))

    def best_temperature(self, logits, y):
        """The standard deviation of the errors, in units of that of the training targets."""
        return max(self.mean_loss(logits, y) ** 0.5, 1e-6)

    def mean_loss(self, logits, y):
        return float(np.mean((np.asarray(logits, np.float64) - self.targets(y, 1)) ** 2))

    def best_factor(self, outputs, y, near=None):
        return 1.0, self.mean_loss(outputs, y)

    def prior(self, y, n_outputs):
        return self.targets(y, 1).mean(axis=0)

    def conformal(self, logits, y, temperature=1.0):
        return conformal(np.abs(np.asarray(logits, np.float64) - self.targets(y, 1))[:, 0])

    def region(self, logits, temperature, by):
        off_N2 = np.asarray(logits, np.float64)[:, :1] + by.score * np.array([[-1.0, 1.0]])
        return self._told(off_N2)

    def _told(self, logits: np.ndarray) -> np.ndarray:
        told = self.mean + self.std * logits
        told = np.exp(told) if self.log else told
        least = -np.inf if self.least is None else self.least
        return np.clip(told, least, np.inf if self.most is None else self.most)

    def covered(self, region, y):
        y = np.asarray(y, np.float64)
        return ((region[:, 0] <= y) & (y <= region[:, 1])).astype(np.float64)

    def promises(self, predictions, y):
        off_N = self._scaled(y) - self._scaled(predictions[:, 0])
        held_N = np.abs(off_N) <= 1.96 * predictions[:, 1]
        return np.full(len(held_N), 0.95), held_N.astype(np.float64)


def is_wide(y: np.ndarray) -> bool:
    """Whether numbers are better told on a logarithmic scale: positive, wide, a third as skewed.

    Example:
      >>> rates, shares = np.geomspace(1e-4, 1e-2, 9), np.linspace(0.05, 0.95, 9)
      >>> is_wide(rates), is_wide(shares), is_wide(-rates)
      (True, False, False)
    """
    y = np.asarray(y, np.float64)
    if not y.min() > 0 or y.max() < _WIDE * y.min():
        return False
    return 3 * abs(_skewness(np.log(y))) < abs(_skewness(y / y.max()))


def _skewness(y: np.ndarray) -> float:
    return float(np.mean(((y - y.mean()) / y.std()) ** 3))
