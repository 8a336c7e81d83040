"""The centre and the spread of a layer over the models of a split, streamed from the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probex_jax.matrices import LowRank

if TYPE_CHECKING:
    from probex_jax.layer_store.store import LayerStore


@dataclass(frozen=True)
class Moments:
    """Of the matrices of one layer.

    Args:
      mean: [H, W] float64, the mean over the models.
      std: standard deviation over all entries of all matrices.
      centred_std: the same of what is left where `mean` is subtracted from each.
    """

    mean: np.ndarray
    std: float
    centred_std: float


def moments(store: LayerStore, layer: str, split: str) -> Moments:
    """One pass over the split, a block of models at a time, in float64."""
    mean = np.zeros(())
    n_models, squares = 0, 0.0  # squares: of the differences from the mean so far
    for block in store.blocks(layer, split):
        size = block.shape[0]
        block_mean, block_squares = _of_block(block)
        n_models += size
        shift = block_mean - mean
        mean = mean + shift * (size / n_models)
        squares += block_squares + (shift**2).sum() * size * (n_models - size) / n_models
    within = squares / (n_models * mean.size)
    return Moments(mean, float(np.sqrt(within + mean.var())), float(np.sqrt(within)))


def _of_block(block: np.ndarray | LowRank) -> tuple[np.ndarray, float]:
    """The mean matrix, and the sum of the squared differences from it."""
    if not isinstance(block, LowRank):
        mean = block.mean(axis=0, dtype=np.float64)
        return mean, float(((block - mean) ** 2).sum())
    up, down = (np.asarray(factor, np.float64) for factor in (block.up, block.down))
    # The sum of all updates is one product of all factors side by side.
    total = np.concatenate(up, axis=1) @ np.concatenate(down, axis=0)
    squares = ((up.mT @ up) * (down @ down.mT)).sum()
    mean = total / len(up)
    return mean, float(max(squares - len(up) * (mean**2).sum(), 0.0))
