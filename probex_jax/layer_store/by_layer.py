"""The layers of a store as a mapping that reads on access."""

from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from probex_jax.matrices import LowRank


class ByLayer(Mapping[str, np.ndarray | LowRank]):
    """Layers by name, each read when it is asked for and not kept.

    Args:
      layers: their names.
      read: reads one.
    """

    def __init__(self, layers: Collection[str], read: Callable[[str], np.ndarray | LowRank]):
        self._layers, self._read = layers, read

    def __getitem__(self, layer: str) -> np.ndarray | LowRank:
        return self._read(layer)

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
