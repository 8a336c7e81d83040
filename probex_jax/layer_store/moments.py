"""The centre and the spread of a layer over the models of a split, streamed from the store."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from probex_jax.matrices import LowRank

if TYPE_CHECKING:
    from probex_jax.layer_store.store import LayerStore, Models


@dataclass(frozen=True)
class Moments:
    """Of the matrices of one layer.

    Args:
      n_models: how many there are.
      mean: [H, W] float64, the mean over the models.
      squares: sum of the squared differences from it, over all entries.
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
        """The same of what is left where `mean` is subtracted from each."""
        return float(np.sqrt(self.squares / (self.n_models * self.mean.size)))

    def __add__(self, other: Moments) -> Moments:
        """Of the models of both."""
        n_models = self.n_models + other.n_models
        shift = other.mean - self.mean
        between = (shift**2).sum() * other.n_models * self.n_models / n_models
        return Moments(
            n_models,
            self.mean + shift * (other.n_models / n_models),
            self.squares + other.squares + float(between),
        )


def moments(store: LayerStore, layer: str, split: str, models: Models | None = None) -> Moments:
    """One pass over the split, a block of models at a time, in float64."""
    blocks = store.blocks(layer, split, models)
    return reduce(operator.add, (_of_block(block) for block in blocks))


def _of_block(block: np.ndarray | LowRank) -> Moments:
    if not isinstance(block, LowRank):
        mean = block.mean(axis=0, dtype=np.float64)
        return Moments(len(block), mean, float(((block - mean) ** 2).sum()))
    up, down = (np.asarray(factor, np.float64) for factor in (block.up, block.down))
    # The sum of all updates is one product of all factors side by side.
    total = np.concatenate(up, axis=1) @ np.concatenate(down, axis=0)
    squares = ((up.mT @ up) * (down @ down.mT)).sum()
    mean = total / len(up)
    return Moments(len(up), mean, float(max(squares - len(up) * (mean**2).sum(), 0.0)))
