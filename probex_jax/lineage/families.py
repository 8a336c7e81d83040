"""Models of one architecture that are kin, by samples of their weights.

Letters: N models, D sampled entries, K other models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from probex_jax.lineage.difference import rounding_of
from probex_jax.lineage.pairs import pair_sketched
from probex_jax.lineage.sketch import Sketch, SketchedLayer
from probex_jax.lineage.tree import misplaced
from probex_jax.model_files.architecture import are_positions, are_statistics, backbone

_KIN = 0.3  # cosine of the matrices of two models from which they are taken for kin untested
_NEIGHBOURS, _OF_MANY, _MANY = 8, 4, 1000  # models that each is compared with in full
_NEAREST = 16  # among which parents of merges are looked for
_DENSE = 2048  # models of which all distances are looked at
_BLOCK = 512
_ANCHORS = 256


@dataclass(frozen=True, eq=False)
class Family:
    """Models of one architecture, their samples in one order of layers.

    Args:
      members: numbers of the models.
      samples_ND: entries of their weights at the same places [N, D].
      weights_D: how many entries each stands for [D].
      layers: where each layer's are.
      is_matrix_D: whether they are of matrices [D].
      rounding: the relative error of each model's dtype [N].
      are_adapters: whether they are updates of another model.
    """

    members: list[int]
    samples_ND: np.ndarray
    weights_D: np.ndarray
    layers: list[slice]
    is_matrix_D: np.ndarray
    rounding: list[float]
    are_adapters: bool

    def of(self, places: Sequence[int]) -> Family:
        """Some of the models, by their places in the family."""
        return replace(
            self,
            members=[self.members[place] for place in places],
            samples_ND=self.samples_ND[list(places)],
            rounding=[self.rounding[place] for place in places],
        )


def families(sketches: Mapping[int, Sketch]) -> list[Family]:
    """Groups models by the shapes of their layers, heads left out.

    Args:
      sketches: of the models, by their numbers.

    Returns:
      The families of two or more.
    """
    kept = {number: _kept(found) for number, found in sketches.items()}
    groups: dict[object, list[int]] = {}
    for number, layers in kept.items():
        shapes = tuple(sorted((*layer.shape, layer.is_update) for layer in layers.values()))
        groups.setdefault(shapes, []).append(number)
    return [
        _sampled({number: sketches[number] for number in group}, kept)
        for group in groups.values()
        if len(group) > 1
    ]


def _kept(found: Sketch) -> dict[str, SketchedLayer]:
    """The layers of a sketch that are compared, by name."""
    by_name = {layer.name: layer for layer in found.layers}
    names = backbone(name for name in by_name if not are_statistics(name))
    return {name: by_name[name] for name in names if not are_positions(name)}


def _sampled(
    sketches: Mapping[int, Sketch], kept: Mapping[int, Mapping[str, SketchedLayer]]
) -> Family:
    """The samples of models, in the first one's order of layers, whatever they name them."""
    first, *_ = sketches
    own = kept[first]
    layers_of: dict[int, dict[str, SketchedLayer]] = {}
    for number, found in sketches.items():
        theirs = {layer.name: layer for layer in found.layers}
        is_alike = kept[number].keys() == own.keys()
        pairs = {} if is_alike else pair_sketched(sketches[first], found)
        layers_of[number] = {
            name: theirs[other] for name in own if (other := pairs.get(name, name)) in theirs
        }
    # Of a layer some models may have sampled more; the first entries are the same.
    counts = {
        name: min(
            layers[name].end - layers[name].begin for layers in layers_of.values() if name in layers
        )
        for name in own
    }
    samples = [
        np.concatenate(
            [
                sketches[number].of_layer(layers[name])[:count]
                if name in layers
                else np.zeros(count, np.float32)
                for name, count in counts.items()
            ]
        )
        for number, layers in layers_of.items()
    ]
    ends = np.cumsum([*counts.values()]).tolist()
    stands_for = [own[n].stands_for * (own[n].end - own[n].begin) / counts[n] for n in counts]
    sizes = [*counts.values()]
    return Family(
        members=[*sketches],
        samples_ND=np.stack(samples),
        weights_D=np.repeat(stands_for, sizes).astype(np.float32),
        layers=[slice(end - count, end) for count, end in zip(sizes, ends, strict=True)],
        is_matrix_D=np.repeat([min(layer.shape) > 1 for layer in own.values()], sizes),
        rounding=[
            max(2.0 ** -rounding_of(layer.dtype)[0] for layer in layers.values())
            for layers in layers_of.values()
        ],
        are_adapters=any(layer.is_update for layer in own.values()),
    )


@dataclass(frozen=True)
class Neighbours:
    """Who is near to whom.

    Args:
      near: of each model its kin, the nearest first, at most 16 or so.
      distances: of the nearest, as a share of the model's length; infinite if there is none.
      groups: models that are kin of each other, each model in one.
    """

    near: list[list[int]]
    distances: list[float]
    groups: list[list[int]]


def neighbours(family: Family) -> Neighbours:
    """Finds the kin of each model by the cosines of their samples.

    Args:
      family: the models.

    Returns:
      Their neighbours. Those of a group are connected by the nearest that `most_compared` counts.
    """
    weights_D = family.weights_D * (family.is_matrix_D if family.is_matrix_D.any() else 1)
    scaled_ND = family.samples_ND * np.sqrt(weights_D).astype(np.float32)
    lengths_N = np.sqrt(np.square(scaled_ND, dtype=np.float64).sum(1))
    unit_ND = scaled_ND / np.maximum(lengths_N, 1e-30)[:, None].astype(np.float32)
    scaled_ND = scaled_ND - scaled_ND.mean(0)  # of numbers nearer to each other
    squares_N = np.square(scaled_ND, dtype=np.float64).sum(1)
    count = len(scaled_ND)
    near: list[list[int]] = []
    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    distances: list[float] = []
    for begin in range(0, count, _BLOCK):
        own_M = np.arange(begin, min(begin + _BLOCK, count))
        apart_MN = squares_N[own_M, None] + squares_N - 2 * (scaled_ND[own_M] @ scaled_ND.T)
        is_kin_MN = unit_ND[own_M] @ unit_ND.T > _KIN
        is_kin_MN[np.arange(len(own_M)), own_M] = False
        apart_MN = np.where(is_kin_MN, np.maximum(apart_MN, 1e-30), np.inf)
        order_MK = np.argsort(apart_MN, axis=1)[:, : min(count - 1, _NEAREST)]
        sorted_MK = np.take_along_axis(apart_MN, order_MK, axis=1)
        near += [o[np.isfinite(a)].tolist() for o, a in zip(order_MK, sorted_MK, strict=True)]
        nearest_M = np.sqrt(sorted_MK[:, 0])
        distances += (nearest_M / np.maximum(lengths_N[own_M], 1e-30)).tolist()
        if count > _DENSE:  # of so many, the kin of all would not fit in memory
            rows, columns = np.repeat(own_M, order_MK.shape[1]), order_MK.ravel()
            apart = sorted_MK.ravel()
        else:
            rows, columns = np.nonzero(is_kin_MN)
            apart, rows = apart_MN[rows, columns], rows + begin
        edges.append(
            (apart[np.isfinite(apart)], rows[np.isfinite(apart)], columns[np.isfinite(apart)])
        )
    apart, rows, columns = map(np.concatenate, zip(*edges, strict=True))
    graph = coo_array((apart, (rows, columns)), shape=(count, count)).tocsr()
    spanning = minimum_spanning_tree(graph).tocoo()
    for a, b in zip(spanning.row.tolist(), spanning.col.tolist(), strict=True):
        for one, other in ((a, b), (b, a)):
            if other not in near[one][: most_compared(count)]:
                near[one].insert(0, other)
    _, labels = connected_components(graph, directed=False)
    groups = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    return Neighbours(near, distances, groups)


def most_compared(count: int) -> int:
    """With how many of its neighbours a model is compared in full, in a family of some models."""
    return _NEIGHBOURS if count <= _MANY else _OF_MANY


class Anchors:
    """Models from which the distances of others tell whether an edge fits.

    Args:
      family: the models.
      numbers: those that may be anchors, by their places; of many, some are drawn.
    """

    def __init__(self, family: Family, numbers: Sequence[int]):
        if len(numbers) > _ANCHORS:
            rng = np.random.default_rng(0)
            numbers = sorted(rng.choice(numbers, _ANCHORS, replace=False).tolist())
        self._numbers = np.array(numbers, int)
        scaled_ND = family.samples_ND * np.sqrt(family.weights_D)
        self._scaled_ND = scaled_ND - scaled_ND.mean(0)
        anchors_KD = self._scaled_ND[self._numbers].astype(np.float64)
        squares_K = np.square(anchors_KD).sum(1)
        blocks = []
        for begin in range(0, len(scaled_ND), _BLOCK):
            block_MD = self._scaled_ND[begin : begin + _BLOCK].astype(np.float64)
            squares_M = np.square(block_MD).sum(1)
            blocks.append(squares_M[:, None] + squares_K - 2 * (block_MD @ anchors_KD.T))
        self._squared_NK = np.concatenate(blocks)

    def __len__(self) -> int:
        return len(self._scaled_ND)

    def misplaced(self, parent: int, child: int) -> float | None:
        """`misplaced` of an edge, by the anchors that are not its ends."""
        others = (self._numbers != parent) & (self._numbers != child)
        apart_D = self._scaled_ND[parent] - self._scaled_ND[child]
        return misplaced(
            self._squared_NK[parent, others],
            self._squared_NK[child, others],
            float(np.square(apart_D, dtype=np.float64).sum()),
        )

    def is_beyond(self, parent: int, child: int, below: Collection[int]) -> bool:
        """Whether the child of an edge is nearer to other models than its parent is.

        Then it is the parent that is derived from the child. What is below the parent is no other.
        """
        others = ~np.isin(self._numbers, [*below])
        nearer = self._squared_NK[child, others] < self._squared_NK[parent, others]
        return bool(others.any() and nearer.mean() > 0.5)
