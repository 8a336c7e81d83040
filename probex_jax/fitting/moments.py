"""Mean matrix and spread of a layer over models, accumulated block by block in float64."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from probex_jax.matrices import LowRank


@dataclass(frozen=True)
class Moments:
    """Mean and spread of the matrices of one layer.

    Args:
      n_models: number of matrices.
      mean: [H, W] float64, their mean.
      squares: sum of squared deviations from the mean, over all entries.
    """

    n_models: int
    mean: np.ndarray
    squares: float

    @property
    def std(self) -> float:
        """Standard deviation over all entries of all matrices."""
        return float(np.sqrt(self.centred_std**2 + self.mean.var()))

    @property
    def centred_std(self) -> float:
        """Standard deviation once `mean` is subtracted from each matrix."""
        return float(np.sqrt(self.squares / (self.n_models * self.mean.size)))

    def __add__(self, other: Moments) -> Moments:
        """Moments over the models of both."""
        n_models = self.n_models + other.n_models
        shift = other.mean - self.mean
        between = (shift**2).sum() * other.n_models * self.n_models / n_models
        return Moments(
            n_models,
            self.mean + shift * (other.n_models / n_models),
            self.squares + other.squares + float(between),
        )


def moments(blocks: Iterable[np.ndarray | LowRank]) -> Moments:
    """Moments of matrices that come in blocks [n, H, W]; each block is read once."""
    return reduce(operator.add, (_of_block(block) for block in blocks))


def _of_block(block: np.ndarray | LowRank) -> Moments:
    if not isinstance(block, LowRank):
        mean = block.mean(axis=0, dtype=np.float64)
        # Model by model: all deviations in float64 would be twice the block.
        deviations = (np.ravel(matrix - mean) for matrix in block)
        return Moments(len(block), mean, float(sum(np.dot(each, each) for each in deviations)))
    up, down = (np.asarray(factor, np.float64) for factor in (block.up, block.down))
    # The sum of all updates is one product of all factors side by side.
    total = np.concatenate(up, axis=1) @ np.concatenate(down, axis=0)
    squares = ((up.mT @ up) * (down @ down.mT)).sum()
    mean = total / len(up)
    return Moments(len(up), mean, float(max(squares - len(up) * (mean**2).sum(), 0.0)))
