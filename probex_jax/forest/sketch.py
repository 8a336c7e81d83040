"""A sketch of a model: a few rows of a few layers, which tell how far models are apart.

The squared distance between two sketches is, but for a factor, an estimate of the squared L2
distance between the weights, each layer scaled to length one: the rows are a random sample. They
are a few kilobytes of a file, so that a model of hundreds of megabytes is told apart as fast as a
small one.
"""

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.layer_store import LayerStore
from probex_jax.matrices import LowRank
from probex_jax.model_files import ModelFile
from probex_jax.model_files.architecture import backbone

_LAYERS = 4
_ENTRIES = 1024  # of a layer, at least; and one row of it

# What pre-trained models have alike though they share no ancestor: sines, for example.
_ALIKE = re.compile(
    r".*(?:position_embed|pos_embed|embed_positions|positional_embed|position_ids|"
    r"relative_position|wpe|A_log|inv_freq).*"
)


@dataclass(frozen=True)
class SketchLayer:
    """What of a layer is in a sketch.

    Args:
      name: of the layer.
      shape: (H, W) of its canonical matrix.
      rows: numbers of the rows that are taken.
    """

    name: str
    shape: tuple[int, int]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Sketch:
    """Which rows of which layers a sketch is made of.

    Args:
      layers: those it is made of.

    Example:
      >>> Sketch.of_layers({"a.weight": (2, 600), "classifier.weight": (10, 600)})
      Sketch(layers=(SketchLayer(name='a.weight', shape=(2, 600), rows=(0, 1)),))
    """

    layers: tuple[SketchLayer, ...]

    @classmethod
    def of_layers(
        cls, layers: Mapping[str, tuple[int, int]], also: Collection[str] = ()
    ) -> "Sketch":
        """The sketch of an architecture; equal for all models that have these layers.

        Args:
          layers: name to (H, W), one or more. Up to four are taken, spread over the sorted names;
            none of a classifier head or of embeddings of positions, where there are others.
          also: names of further ones to take, except for those kinds.
        """
        names = sorted(backbone(layers))
        names = [name for name in names if not _ALIKE.fullmatch(name)] or names
        places = np.linspace(0, len(names) - 1, min(_LAYERS, len(names))).round().astype(int)
        chosen = {names[place] for place in places} | (set(names) & set(also))
        return cls.of_all({name: layers[name] for name in sorted(chosen)})

    @classmethod
    def of_all(cls, layers: Mapping[str, tuple[int, int]]) -> "Sketch":
        """The sketch of exactly these layers, name to (H, W), whatever they are."""
        return cls(
            tuple(SketchLayer(name, shape, _sample(name, *shape)) for name, shape in layers.items())
        )

    def __add__(self, other: "Sketch") -> "Sketch":
        """The sketch of the layers of both, one after the other."""
        return Sketch(self.layers + other.layers)

    def fitting(self, model: ModelFile) -> "Sketch":
        """The sketch of those of its layers that a model has, in the same shape."""
        shapes = {name: layer.shape for name, layer in model.layers.items()}
        return Sketch(tuple(one for one in self.layers if shapes.get(one.name) == one.shape))

    @property
    def size(self) -> int:
        """Size D of the sketches."""
        return sum(len(layer.rows) * layer.shape[1] for layer in self.layers)

    def columns(self, layer: SketchLayer) -> np.ndarray:
        """Where the entries of one of its layers are in a sketch: numbers from 0 to D - 1."""
        sizes = [len(each.rows) * each.shape[1] for each in self.layers]
        place = self.layers.index(layer)
        return sum(sizes[:place]) + np.arange(sizes[place])

    def of_model(self, model: ModelFile) -> tuple[np.ndarray, np.ndarray]:
        """The sketch of one model.

        Returns:
          The sketch [D], float32, and the lengths [K] of its K layers before they were scaled.

        Raises:
          ProbexError: if a layer is missing, of another shape, or cannot be read.
        """
        parts, lengths = [], []
        for name, shape, rows in ((layer.name, layer.shape, layer.rows) for layer in self.layers):
            if name in model.layers and model.layers[name].shape != shape:
                height, width = model.layers[name].shape
                raise ProbexError(
                    f"{model.path}: layer {name} is {height}x{width}, that of the tree's models is "
                    f"{shape[0]}x{shape[1]}"
                )
            part_1D = model.rows(name, rows).reshape(1, -1)
            lengths.append(_lengths(part_1D))
            parts.append(_scaled(part_1D, lengths[-1], model.layers[name].kind == "lora"))
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
    # A generator of its own, whatever other layers there are.
    rng = np.random.default_rng([zlib.crc32(name.encode()), height, width])
    return tuple(sorted(map(int, rng.choice(height, count, replace=False))))


def _lengths(part_ND: np.ndarray) -> np.ndarray:
    """[N, 1], in float64, which no square of a float32 overflows."""
    return np.linalg.norm(np.float64(part_ND), axis=1, keepdims=True)


def _scaled(part_ND: np.ndarray, lengths_N1: np.ndarray, is_lora: bool) -> np.ndarray:
    """The entries of one layer at length one, so that no layer outweighs the others.

    Updates, whose lengths say how far they go, as they are.
    """
    if is_lora:
        return part_ND
    return (part_ND / np.where(lengths_N1 > 0, lengths_N1, 1.0)).astype(np.float32)


def _rows(block_NHW: np.ndarray | LowRank, rows: Sequence[int]) -> np.ndarray:
    if isinstance(block_NHW, LowRank):
        picked_NKW = block_NHW.up[:, list(rows)] @ block_NHW.down
    else:
        picked_NKW = block_NHW[:, list(rows)]
    return picked_NKW.reshape(len(picked_NKW), -1)
