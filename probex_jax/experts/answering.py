"""What experts say of the models of a store, however many there are."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from probex_jax.experts.expert import Expert
from probex_jax.layer_store import LayerStore

# Matrices of one layer that are in memory at a time.
_BLOCK_BYTES = 256 * 2**20


def stored_logits(
    expert: Expert, store: LayerStore, split: str, texts_YD: Any = None
) -> np.ndarray:
    """Logits [N, Y] of the models of a split, a block of models at a time.

    Args:
      expert: of the store's tree.
      store: where the models are.
      split: name of the split.
      texts_YD: of an expert aligned with text, the candidates.

    Raises:
      ProbexError: as `LayerStore.matrices` and `Expert.logits`.
    """
    return _in_blocks(expert, store, split, lambda x: expert.logits(x, texts_YD))


def stored_vectors(expert: Expert, store: LayerStore, split: str) -> np.ndarray:
    """Representations [N, T] of the models of a split, in the same way."""
    return _in_blocks(expert, store, split, expert.encode)


def _in_blocks(
    expert: Expert, store: LayerStore, split: str, answer: Callable[[Any], Any]
) -> np.ndarray:
    n_models = len(store.split(split))
    largest = max(math.prod(shape) for shape in expert.layers.values())
    size = min(n_models, max(1, _BLOCK_BYTES // (4 * largest)))
    blocks = []
    for start in range(0, n_models, size):
        # The last block is filled up, so that there is one program.
        models = np.minimum(np.arange(start, start + size), n_models - 1)
        blocks.append(np.asarray(answer(store.by_layer(split, models))))
    return np.concatenate(blocks)[:n_models]
