"""Other methods that find a tree of models by their weights: MoTHer's, and two simpler ones.

All are told which models are kin, and that these have one root. They know no merges: each model but
the root has one parent.

Letters: K models, L layers.

References:
  Horwitz et al., "Unsupervised Model Tree Heritage Recovery", ICLR 2025 (arXiv 2405.18432).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.stats import kurtosis

from probex_jax.lineage.tree import arborescence
from probex_jax.model_files import open_model
from probex_jax.model_files.architecture import is_head

# What a wrong direction costs, as a share of the mean distance: MoTHer's own.
_DIRECTION = 0.3

Parents = dict[int, int]  # child to parent


@dataclass(frozen=True)
class Measured:
    """What the methods know of models.

    Args:
      distance_KK: L2 distance of two models' layers, mean over layers.
      rank_KK: rank of the layers' differences, mean over layers.
      kurtosis_K: of the entries of a layer, summed over layers.
      norm_K: L2 norm of all layers.
    """

    distance_KK: np.ndarray
    rank_KK: np.ndarray
    kurtosis_K: np.ndarray
    norm_K: np.ndarray


def measured(paths: Sequence[Path]) -> Measured:
    """Reads models of one architecture, all of their matrices but classifiers."""
    layers_K = [_layers(path) for path in paths]
    n_models, names = len(paths), list(layers_K[0])
    distance_KK, rank_KK = np.zeros((2, n_models, n_models))
    for one in range(n_models):
        for other in range(one):
            changes = [layers_K[one][name] - layers_K[other][name] for name in names]
            distances = [np.linalg.norm(change) for change in changes]
            ranks = [np.linalg.matrix_rank(change) for change in changes]
            distance_KK[one, other] = distance_KK[other, one] = np.mean(distances)
            rank_KK[one, other] = rank_KK[other, one] = np.mean(ranks)
    kurtosis_K = [sum(float(kurtosis(x, axis=None)) for x in m.values()) for m in layers_K]
    norm_K = [np.sqrt(sum(np.square(x).sum() for x in model.values())) for model in layers_K]
    return Measured(distance_KK, rank_KK, np.array(kurtosis_K), np.array(norm_K))


def mother(known: Measured, *, specialising: bool = True, by_rank: bool = False) -> Parents:
    """MoTHer: the cheapest directed tree by distance, plus a penalty for a wrong direction.

    The penalty is a share of the mean distance. Fine-tuning to a special task takes outliers off,
    so that kurtosis falls from parent to child; training for generality adds some.

    Args:
      known: of the models.
      specialising: whether kurtosis falls from parent to child, or rises.
      by_rank: whether distances are ranks of differences, as for LoRAs that were merged.
    """
    distance_KK = known.rank_KK if by_rank else known.distance_KK
    falls_KK = known.kurtosis_K[:, None] > known.kurtosis_K  # from row, the parent, to column
    wrong_KK = ~falls_KK if specialising else falls_KK
    cost_KK = distance_KK + _DIRECTION * distance_KK.mean() * wrong_KK
    arcs = {
        (parent, child): float(cost_KK[parent, child])
        for parent, child in np.ndindex(cost_KK.shape)
        if parent != child
    }
    return arborescence(len(cost_KK), arcs, {})


def spanning(known: Measured) -> Parents:
    """The minimum spanning tree of L2 distances, its root the model nearest to all others."""
    medoid = int(known.distance_KK.sum(1).argmin())
    tree = minimum_spanning_tree(np.maximum(known.distance_KK, 1e-12))
    _, before_K = breadth_first_order(tree, medoid, directed=False)
    return {child: int(parent) for child, parent in enumerate(before_K) if parent >= 0}


def nearest(known: Measured, *, growing: bool = True) -> Parents:
    """Each model's parent is the nearest of those with a smaller norm, or with a larger one."""
    sign = 1 if growing else -1
    norm_K, found = sign * known.norm_K, {}
    for child in range(len(norm_K)):
        before = np.flatnonzero(norm_K < norm_K[child])
        if before.size:
            found[child] = int(before[known.distance_KK[child, before].argmin()])
    return found


def without(known: Measured, left_out_K: np.ndarray) -> Measured:
    """What is known of all models but some."""
    kept = ~left_out_K
    return Measured(
        known.distance_KK[kept][:, kept],
        known.rank_KK[kept][:, kept],
        known.kurtosis_K[kept],
        known.norm_K[kept],
    )


# Variants by method; those of one method differ in the sign of its direction, or in the distance.
METHODS: Mapping[str, Mapping[str, Callable[[Measured], Parents]]] = {
    "MoTHer": {
        "MoTHer, kurtosis falls": mother,
        "MoTHer, kurtosis rises": partial(mother, specialising=False),
        "MoTHer by rank, kurtosis falls": partial(mother, by_rank=True),
        "MoTHer by rank, kurtosis rises": partial(mother, by_rank=True, specialising=False),
    },
    "L2 tree": {"L2 tree": spanning},
    "nearest": {
        "nearest, norm grows": nearest,
        "nearest, norm shrinks": partial(nearest, growing=False),
    },
}


def _layers(path: Path) -> Mapping[str, np.ndarray]:
    with open_model(path) as model:
        return {
            name: np.asarray(model.matrix(name), np.float64)
            for name in model.layers
            if not is_head(name)
        }
