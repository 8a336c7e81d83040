"""Sketches of models: a few rows of a few layers, to estimate the distance of two models.

The rows are a random sample, so up to a factor the squared distance of two sketches estimates the
squared L2 distance of the weights, with the entries of all layers scaled to one size. They are a
few kilobytes of a file: large models take no longer than small ones.
"""

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.layer_store import LayerStore
from probex_jax.matrices import LowRank
from probex_jax.model_files import ModelFile
from probex_jax.model_files.architecture import are_positions, backbone

_ENTRIES = 1024  # of a layer at least, in whole rows
# Layers of a sketch: as many as it takes to have four times the entries above, within limits.
_LEAST_LAYERS, _MOST_LAYERS = 4, 8


@dataclass(frozen=True)
class SketchLayer:
    """The rows of one layer in a sketch.

    Args:
      name: of the layer.
      shape: (H, W) of its canonical matrix.
      rows: indices of the rows.
    """

    name: str
    shape: tuple[int, int]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Sketch:
    """The layers and rows of a sketch.

    Args:
      layers: the sampled layers.

    Example:
      >>> Sketch.of_layers({"a.weight": (2, 600), "classifier.weight": (10, 600)})
      Sketch(layers=(SketchLayer(name='a.weight', shape=(2, 600), rows=(0, 1)),))
    """

    layers: tuple[SketchLayer, ...]

    @classmethod
    def of_layers(
        cls, layers: Mapping[str, tuple[int, int]], also: Collection[str] = ()
    ) -> "Sketch":
        """The sketch of an architecture; equal for all models with these layers.

        Args:
          layers: name to (H, W). Four are taken, or up to eight small ones, spread over the sorted
            names; classifier heads, position embeddings and vectors only if there is nothing else.
          also: names of further layers, except those kinds.
        """
        names = sorted(backbone(layers))
        names = [name for name in names if not are_positions(name)] or names
        names = [name for name in names if 1 not in layers[name]] or names
        mean = np.mean([min(math.prod(layers[name]), _ENTRIES) for name in names])
        count = np.clip(np.ceil(_LEAST_LAYERS * _ENTRIES / mean), _LEAST_LAYERS, _MOST_LAYERS)
        places = np.linspace(0, len(names) - 1, min(int(count), len(names))).round().astype(int)
        chosen = {names[place] for place in places} | (set(names) & set(also))
        return cls.of_all({name: layers[name] for name in sorted(chosen)})

    @classmethod
    def of_all(cls, layers: Mapping[str, tuple[int, int]]) -> "Sketch":
        """The sketch of exactly these layers, name to (H, W)."""
        return cls(
            tuple(SketchLayer(name, shape, _sample(name, *shape)) for name, shape in layers.items())
        )

    def __add__(self, other: "Sketch") -> "Sketch":
        """The sketch of the layers of both, in order."""
        return Sketch(self.layers + other.layers)

    def fitting(self, model: ModelFile) -> "Sketch":
        """The sketch of the layers that a model has in the same shape."""
        shapes = {name: layer.shape for name, layer in model.all_layers.items()}
        return Sketch(tuple(one for one in self.layers if shapes.get(one.name) == one.shape))

    @property
    def size(self) -> int:
        """The size D of the sketches."""
        return sum(len(layer.rows) * layer.shape[1] for layer in self.layers)

    def columns(self, layer: SketchLayer) -> slice:
        """Where the entries of one layer are, from 0 to D - 1."""
        sizes = [len(each.rows) * each.shape[1] for each in self.layers]
        place = self.layers.index(layer)
        return slice(sum(sizes[:place]), sum(sizes[: place + 1]))

    def of_model(self, model: ModelFile) -> tuple[np.ndarray, np.ndarray]:
        """The sketch of one model.

        Returns:
          The sketch [D], float32, and the lengths [K] of the K layers before scaling.

        Raises:
          ProbexError: if a layer is missing, has another shape, or cannot be read.
        """
        parts, lengths = [], []
        for name, shape, rows in ((layer.name, layer.shape, layer.rows) for layer in self.layers):
            if name in model.all_layers and model.all_layers[name].shape != shape:
                height, width = model.all_layers[name].shape
                raise ProbexError(
                    f"{model.path}: layer {name} is {height}x{width}, that of the tree's models is "
                    f"{shape[0]}x{shape[1]}"
                )
            part_1D = model.rows(name, rows).reshape(1, -1)
            lengths.append(_lengths(part_1D))
            parts.append(_scaled(part_1D, lengths[-1], model.all_layers[name].is_update))
        return np.concatenate(parts, axis=1)[0], np.concatenate(lengths, axis=1)[0]

    def of_store(self, store: LayerStore, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """The sketches [N, D] of the models of a split, float32, and lengths [N, K]."""
        parts, lengths = [], []
        for layer in self.layers:
            blocks = store.blocks(layer.name, split)
            part_ND = np.concatenate([_rows(block, layer.rows) for block in blocks])
            lengths.append(_lengths(part_ND))
            parts.append(_scaled(part_ND, lengths[-1], layer.name in store.ranks))
        return np.concatenate(parts, axis=1), np.concatenate(lengths, axis=1)


def _sample(name: str, height: int, width: int) -> tuple[int, ...]:
    count = min(height, -(-_ENTRIES // width))
    # Seeded by the layer alone, independent of other layers.
    rng = np.random.default_rng([zlib.crc32(name.encode()), height, width])
    return tuple(sorted(map(int, rng.choice(height, count, replace=False))))


def _lengths(part_ND: np.ndarray) -> np.ndarray:
    """Lengths [N, 1] in float64, where squares of float32 cannot overflow."""
    return np.linalg.norm(np.float64(part_ND), axis=1, keepdims=True)


def _scaled(part_ND: np.ndarray, lengths_N1: np.ndarray, is_lora: bool) -> np.ndarray:
    """Scales the entries of one layer to one mean square, so that layers count by their entries.

    Updates are not scaled, since their length matters.
    """
    if is_lora:
        return part_ND
    length = (part_ND.shape[1] / _ENTRIES) ** 0.5
    return (part_ND * (length / np.where(lengths_N1 > 0, lengths_N1, 1.0))).astype(np.float32)


def _rows(block_NHW: np.ndarray | LowRank, rows: Sequence[int]) -> np.ndarray:
    if isinstance(block_NHW, LowRank):
        picked_NKW = block_NHW.up[:, list(rows)] @ block_NHW.down
    else:
        picked_NKW = block_NHW[:, list(rows)]
    return picked_NKW.reshape(len(picked_NKW), -1)
