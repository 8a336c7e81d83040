"""Features in units of their spread over the models, and linear maps of them as they were."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Spread of a statistic over the models, in units of its size, below which it is rounding.
_CONSTANT = 1e-6


class Standardised(NamedTuple):
    """Statistics of a layer in units of their spread over the models.

    Args:
      values: [N, 7] float64; 0 where all models have the same.
      mean, spread: [7] of what they were; the spread infinite there.
    """

    values: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, statistics_NS: np.ndarray) -> Standardised:
        """Standardises [N, 7] statistics."""
        mean, spread = statistics_NS.mean(axis=0), statistics_NS.std(axis=0)
        spread = np.where(spread > _CONSTANT * np.abs(statistics_NS).max(axis=0), spread, np.inf)
        return cls((statistics_NS - mean) / spread, mean, spread)

    def linear(self, solution_NY: np.ndarray, bias_Y: np.ndarray) -> dict[str, np.ndarray]:
        """The map of statistics as they are, for coefficients of the models."""
        weight_SY = (self.values.T @ solution_NY) / self.spread[:, None]
        return {"weight": weight_SY, "bias": bias_Y - self.mean @ weight_SY}
