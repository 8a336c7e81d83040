"""Sketches of models: a small sample of the weights that does not depend on how they are stored.

Where a layer is sampled depends on its shape alone, so models in another dtype, container, sharding
or naming have the same sketch, up to rounding and the order of layers of one shape. A sketch reads
kilobytes of each layer: large models take little longer than small ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from probex_jax.model_files import LayerInfo, ModelFile

_ENTRIES = 8192  # of a sketch, about
_A_ROW = 16  # sampled entries of a row, unless a layer has too few rows
_A_LAYER = 16  # sampled entries of a layer, at least

# Layers of a sketch. Few models have more; of updates, each costs a product of its factors.
_MOST_LAYERS, _MOST_UPDATES = 512, 64

# A layer is read whole if it has fewer entries for each row that is sampled: one read costs less
# than many.
_OF_A_ROW = 2**12
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class SketchedLayer:
    """A layer in a sketch.

    Args:
      name: of the layer.
      shape: (H, W) of its canonical matrix.
      dtype: as in `LayerInfo`.
      is_update: whether it is to be added to the layer of another model.
      begin: where its entries begin in `Sketch.values`.
      end: where they end.
      stands_for: how many entries of the model each sampled one stands for.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    is_update: bool
    begin: int
    end: int
    stands_for: float


@dataclass(frozen=True)
class Layout:
    """What a sketch consists of; shared by sketches of models with the same header.

    Args:
      layers: the sampled layers by shape, those of one shape in the natural order of their names.
      count: how many layers the model has.
      kind: a hash of the shapes of all of them, whatever their names.
    """

    layers: tuple[SketchedLayer, ...]
    count: int
    kind: str

    @property
    def is_complete(self) -> bool:
        """Whether all layers of the model are sampled."""
        return len(self.layers) == self.count


@dataclass(frozen=True, eq=False)
class Sketch:
    """A sample of the weights of one model; made by `sketch`.

    Args:
      layout: its layers.
      values: the sampled entries [D], float32, layer after layer, as large as they are.
    """

    layout: Layout
    values: np.ndarray

    @property
    def layers(self) -> tuple[SketchedLayer, ...]:
        """The sampled layers, in canonical order."""
        return self.layout.layers

    @property
    def kind(self) -> str:
        """A hash of the shapes of all layers."""
        return self.layout.kind

    @property
    def stands_for(self) -> np.ndarray:
        """How many entries of the model each sampled entry stands for [D], float32.

        Example:
          >>> from probex_jax.model_files import open_params
          >>> found = sketch(open_params({"a.weight": np.ones((300, 400), "f4")}))
          >>> float(found.stands_for.sum().round())
          120000.0
        """
        sizes = [layer.end - layer.begin for layer in self.layers]
        return np.repeat([layer.stands_for for layer in self.layers], sizes).astype(np.float32)

    def of_layer(self, layer: SketchedLayer) -> np.ndarray:
        """The sampled entries [n] of one layer.

        Those of two layers of one shape are at the same places, in the same order. Where one model
        has fewer entries of each layer, they are the first of the other's.
        """
        return self.values[layer.begin : layer.end]


def sketch(model: ModelFile, *, every_layer: bool = False) -> Sketch:
    """Samples the weights of a model.

    About 8,192 entries, the same number of each layer (or all that it has), at random places that
    depend on its shape alone. Of models with more than 512 layers, or updates of more than 64,
    some are sampled, which are spread over the model.

    Args:
      model: the model, open.
      every_layer: whether all layers are sampled, however many there are.

    Returns:
      The sketch.

    Raises:
      ProbexError: if a sampled layer cannot be read, or has values that are not finite.

    Example:
      >>> from probex_jax.model_files import open_params
      >>> weights = np.arange(200, dtype="f4").reshape(10, 20)
      >>> one = sketch(open_params({"body.9.weight": weights, "body.10.weight": -weights}))
      >>> [layer.name for layer in one.layers], one.values.shape
      (['body.9.weight', 'body.10.weight'], (400,))
      >>> other = sketch(open_params({"a": weights.astype("f2"), "b": -weights.astype("f2")}))
      >>> one.kind == other.kind, bool((one.values == other.values).all())
      (True, True)
    """
    layout = _layout(tuple(model.all_layers.items()), every_layer)
    wanted = {layer.name: None if _is_whole(layer) else _rows(layer) for layer in layout.layers}
    with model.fetched(wanted):
        parts = [_sampled(model, layer) for layer in layout.layers]
    values = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return Sketch(layout, values)


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts names with the numbers in them as numbers.

    Example:
      >>> sorted(["layer.10.b", "layer.9.b", "layer.9.a"], key=natural_order)
      ['layer.9.a', 'layer.9.b', 'layer.10.b']
    """
    # Of digits, the longer number is larger; int() refuses those with thousands of them.
    parts = enumerate(_DIGITS.split(name))
    bare = ((number % 2, part.lstrip("0") if number % 2 else part) for number, part in parts)
    return (*((len(part) if is_number else 0, part) for is_number, part in bare), (0, name))


def kind_of(layers: Mapping[str, LayerInfo]) -> str:
    """A hash of the shapes of layers, whatever their names and dtypes.

    Args:
      layers: all of a model, vectors too.

    Returns:
      16 hexadecimal digits.

    Example:
      >>> one = {"a": LayerInfo((2, 3), "F32", "linear"), "b": LayerInfo((2, 1), "F32", "vector")}
      >>> kind_of(one) == kind_of({"y": one["b"], "x": one["a"]})
      True
    """
    shapes = sorted([*layer.shape, layer.is_update] for layer in layers.values())
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]


@lru_cache(maxsize=256)
def _layout(layers: tuple[tuple[str, LayerInfo], ...], every_layer: bool) -> Layout:
    ordered = sorted(layers, key=lambda item: (item[1].shape, natural_order(item[0])))
    most = _MOST_UPDATES if any(layer.is_update for _, layer in layers) else _MOST_LAYERS
    count = len(ordered) if every_layer else min(len(ordered), most)
    places = np.linspace(0, max(len(ordered) - 1, 0), count).round().astype(int)
    chosen = [ordered[place] for place in places]
    entries = _entries([math.prod(layer.shape) for _, layer in chosen])
    there = Counter(layer.shape for _, layer in layers)
    taken = Counter(layer.shape for _, layer in chosen)
    sketched, begin = [], 0
    for name, layer in chosen:
        size = math.prod(layer.shape)
        end = begin + min(size, entries)
        stands_for = size / (end - begin) * there[layer.shape] / taken[layer.shape]
        sketched.append(
            SketchedLayer(name, layer.shape, layer.dtype, layer.is_update, begin, end, stands_for)
        )
        begin = end
    return Layout(tuple(sketched), len(ordered), kind_of(dict(layers)))


def _entries(sizes: Iterable[int]) -> int:
    """How many entries of each layer are sampled: a power of two, so that it seldom differs."""
    sizes, entries = list(sizes), _A_LAYER
    while entries < _ENTRIES and sum(min(size, 2 * entries) for size in sizes) <= _ENTRIES:
        entries *= 2
    return entries


def _is_whole(layer: SketchedLayer) -> bool:
    most = _OF_A_ROW * len(_rows(layer))
    return not layer.is_update and math.prod(layer.shape) <= most


def _rows(layer: SketchedLayer) -> list[int]:
    return _places(*layer.shape, layer.end - layer.begin)[0]


def _sampled(model: ModelFile, layer: SketchedLayer) -> np.ndarray:
    rows, at, columns = _places(*layer.shape, layer.end - layer.begin)
    if _is_whole(layer):
        matrix = model.matrix(layer.name)
        assert isinstance(matrix, np.ndarray)
        return matrix[np.take(rows, at), columns]
    return model.rows(layer.name, rows)[at, columns]


@lru_cache(maxsize=1024)
def _places(height: int, width: int, count: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The rows to read, and which of them and which column each entry is from.

    A few entries of one random row after the other; once no row is left, a few more of each. The
    first places are the same for any count.
    """
    a_row = min(width, _A_ROW)
    rows = _distinct([height, width], height, -(-count // a_row))
    wanted = a_row * -(-count // (a_row * len(rows)))
    if width <= a_row:
        columns_RC = np.broadcast_to(np.arange(width), (len(rows), width))
    else:
        columns_RC = np.stack(
            [_distinct([height, width, number], width, wanted) for number in range(len(rows))]
        )
    passes = [columns_RC[:, begin : begin + a_row] for begin in range(0, wanted, a_row)]
    order = np.concatenate([np.repeat(np.arange(len(rows)), part.shape[1]) for part in passes])
    columns = np.concatenate([part.ravel() for part in passes])
    sorted_rows, place = np.unique(rows, return_inverse=True)
    return sorted_rows.tolist(), place[order[:count]], columns[:count]


def _distinct(seed: list[int], size: int, count: int) -> np.ndarray:
    """Distinct numbers below `size`, at most `count`; the first are the same for any count."""
    rng = np.random.default_rng(seed)
    if size <= 2**16:
        return rng.permutation(size)[:count]
    # Of so few among so many, half are new at least.
    _, first = np.unique(drawn := rng.integers(size, size=2 * count + 64), return_index=True)
    return drawn[np.sort(first)[:count]]
