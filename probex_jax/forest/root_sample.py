"""How far a model is from the root of its tree, where the root's weights are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probex_jax.buckets import address_of
from probex_jax.forest.soundness import Finding
from probex_jax.forest.usual_layer import Sampled
from probex_jax.matrices import stack
from probex_jax.model_files import open_model

# Models nearer to the root than this share of the nearest training model's distance are named.
_NEAR = 0.5


@dataclass(frozen=True)
class RootSample:
    """A sample of the root's layers, of which letters are those of `layer_statistics`.

    Args:
      layers: name to the sampled entries [H, W].
      distances_N: of the training models, relative to the length of the sample.
    """

    layers: Mapping[str, np.ndarray]
    distances_N: np.ndarray

    @classmethod
    def fit(
        cls, path: str, samples: Mapping[str, Sampled], shapes: Mapping[str, tuple[int, int]]
    ) -> RootSample | None:
        """Learns from training models.

        Args:
          path: of the root on this machine; anything else, such as a hub id, is no root at hand.
          samples: of the training models, by layer.
          shapes: of the layers.

        Raises:
          ProbexError: if the root cannot be read.
        """
        if not path or address_of(path) or not Path(path).exists():
            return None
        with open_model(path) as model:
            layers = {
                name: Sampled.of(stack([model.matrix(name)]), name, shapes[name]).x_NHW[0]
                for name in samples
                if name in model.layers and model.layers[name].shape == shapes[name]
            }
        if not layers:
            return None
        return cls(layers, _distances(layers, {name: samples[name].x_NHW for name in layers}))

    def finding(self, samples: Mapping[str, Sampled]) -> Finding | None:
        """Says that a model is nearer to the root than training left any other."""
        if not self.layers.keys() <= samples.keys():
            return None
        [apart] = _distances(self.layers, {name: samples[name].x_NHW for name in self.layers})
        low, usual, high = np.quantile(self.distances_N, [0, 0.5, 1])
        if apart >= _NEAR * low:
            return None
        return Finding("", "root", float(apart), float(low), float(high), float(usual))


def _distances(layers: Mapping[str, np.ndarray], x: Mapping[str, np.ndarray]) -> np.ndarray:
    """Distances [N] of models, by layer [N, H, W], relative to the length of all layers."""
    length = sum(float(np.sum(np.square(root, dtype=np.float64))) for root in layers.values())
    squares_LN = [
        np.sum(np.square(x[name].astype(np.float64) - root_HW), axis=(1, 2))
        for name, root_HW in layers.items()
    ]
    return np.sqrt(np.sum(squares_LN, axis=0) / max(length, 1e-30))
