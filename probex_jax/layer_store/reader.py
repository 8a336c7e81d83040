"""Reads the layers of a store from their arrays, which are opened when they are first read."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import tensorstore as ts

from probex_jax.errors import ProbexError
from probex_jax.layer_store.arrays import (
    LayerArray,
    Place,
    array_sizes,
    cache,
    part_folder,
    parts,
    vectors_folder,
)
from probex_jax.matrices import LowRank
from probex_jax.model_files.layers import no_such_layer


class Reader:
    """Reads rows of layers; thread-safe.

    Args:
      path: the store's folder.
      layers: name to (H, W).
      ranks: name to R, for the layers that are kept as factors.
      places: of the vectors.

    Attributes:
      vector_arrays: number of each array of vectors, to its number of entries.
    """

    def __init__(
        self,
        path: Path,
        layers: Mapping[str, tuple[int, int]],
        ranks: Mapping[str, int],
        places: Mapping[str, Place],
    ):
        self._path, self._layers, self._ranks, self.places = path, layers, ranks, places
        self.vector_arrays = array_sizes({name: prod(layers[name]) for name in places}, places)
        self._cache = cache()
        self._opened: dict[Path, LayerArray] = {}

    def entries(self, layer: str) -> int:
        """Numbers stored for each model; a ProbexError if there is no such layer."""
        if layer not in self._layers:
            raise ProbexError(f"{self._path}: {no_such_layer([*self._layers], layer)}")
        return sum(map(prod, parts(self._layers[layer], self._ranks.get(layer)).values()))

    def read(self, layer: str, rows: np.ndarray) -> np.ndarray | LowRank:
        """Reads rows [n] of a layer, in the given order, as [n, H, W] float32 or as factors."""
        entries, shape = self.entries(layer), self._layers[layer]
        if layer in self.places:
            number, start = self.places[layer]
            folder, whole = vectors_folder(self._path, number), (1, self.vector_arrays[number])
            array = self._array(folder, whole, self._cache)
            values = array.read(rows, slice(start, start + entries))
            return values.reshape(len(rows), *shape)
        read = {
            part: self._array(part_folder(self._path, layer, part), form).read(rows)
            for part, form in parts(shape, self._ranks.get(layer)).items()
        }
        return read["matrices"] if "matrices" in read else LowRank(**read)

    def _array(
        self, folder: Path, shape: tuple[int, int], cache: ts.Context | None = None
    ) -> LayerArray:
        if folder not in self._opened:  # two threads may both open it, harmlessly
            self._opened[folder] = LayerArray.open(folder, shape, cache)
        return self._opened[folder]
