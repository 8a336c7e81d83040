"""Finding models with a common ancestor: clusters of sketches, cut where chance ends.

Fine-tuning keeps a part of the root's weights, so the sketches of two models of one tree have a
cosine above zero, however far both were trained. Those of unrelated models do not, but for what all
models of an architecture share: `unrelated_cosine` measures on permuted models what such pairs
reach by chance. The two clusters with the greatest cosine of their means are joined, then the next
two, until no pair exceeds that. So the number of trees need not be known, and no pair is left
untested. The layer in which two clusters are most alike does not count: models of different trees
may share one, such as frozen embeddings.
"""

from dataclasses import dataclass

import numpy as np

from probex_jax.forest.sketch import Sketch
from probex_jax.forest.unrelated import unrelated_cosine

# Models clustered at once; memory is quadratic in their number.
MODELS_AT_ONCE = 1024
_MEASURED = 64  # models on which the cosine of unrelated ones is measured


@dataclass
class Cluster:
    """Models of one tree.

    Args:
      centre: [D], their mean.
      members: numbers of the models, in the given order.
    """

    centre: np.ndarray
    members: list[int]

    def join(self, other: "Cluster") -> None:
        """Merges another cluster into this one."""
        ours, theirs = len(self.members), len(other.members)
        self.centre = (ours * self.centre + theirs * other.centre) / (ours + theirs)
        self.members += other.members


class Clusters:
    """Finds trees in a stream of sketches of one architecture, in bounded memory.

    The first models are clustered together. Every later model joins the nearest centre if it is
    related; the others wait until there are enough of them to cluster again.

    Args:
      sketch: what the models' sketches consist of.
      one_tree: whether all models form one tree, as LoRAs do, whose weights share no ancestor.
      models_at_once: number of models that are clustered at once.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> roots = rng.normal(size=(2, 512))
      >>> found = Clusters(Sketch.of_layers({"a.weight": (8, 64)}))
      >>> for number in range(20):
      ...     found.add(number, roots[number % 2] + rng.normal(size=512))
      >>> [cluster.members[:3] for cluster in found.finish()]
      [[0, 2, 4], [1, 3, 5]]
    """

    def __init__(
        self, sketch: Sketch, *, one_tree: bool = False, models_at_once: int = MODELS_AT_ONCE
    ):
        self._sketch, self._one_tree, self._at_once = sketch, one_tree, models_at_once
        self._clusters: list[Cluster] = []
        self._centres_CD = np.empty([0, sketch.size], np.float32)
        self._waiting: list[Cluster] = []
        self._limit = np.inf

    def add(self, number: int, sketch: np.ndarray) -> None:
        """Adds a model by its number and sketch [D]."""
        model = Cluster(np.asarray(sketch, np.float64), [number])
        if self._one_tree and self._clusters:
            self._clusters[0].join(model)
        elif self._one_tree:
            self._clusters = [model]
        elif (home := self._home(model)) is not None:
            self._clusters[home].join(model)
            self._centres_CD[home] = self._clusters[home].centre
        else:
            self._waiting.append(model)
            if len(self._waiting) == self._at_once:
                self._settle()

    def take_in(self, other: "Clusters") -> None:
        """Merges another stream; both must have a single tree."""
        for cluster in other.finish():
            self._clusters[0].join(cluster)

    def finish(self) -> list[Cluster]:
        """The clusters, ordered by their first model."""
        self._settle()
        for cluster in self._clusters:
            cluster.members.sort()
        return sorted(self._clusters, key=lambda cluster: cluster.members[0])

    def _home(self, model: Cluster) -> int | None:
        """The number of the settled cluster that a model is related to, if any."""
        if not self._clusters:
            return None
        alike_C = _cosines(self._sketch, model.centre[None], self._centres_CD)[0]
        home = int(np.argmax(alike_C))
        return home if alike_C[home] > self._limit else None

    def _settle(self) -> None:
        """Clusters the waiting models, and joins settled clusters that they connect."""
        if self._limit == np.inf and len(self._waiting) > 1:
            some_MD = np.stack([model.centre for model in self._waiting[:_MEASURED]])
            self._limit = unrelated_cosine(self._sketch, some_MD, _cosines)
        trees, homes = self._joined(self._waiting), list(self._clusters)
        if trees and homes:
            centres_ND = np.stack([tree.centre for tree in trees])
            related_NC = _cosines(self._sketch, centres_ND, self._centres_CD) > self._limit
        else:
            related_NC = np.zeros([len(trees), 0], bool)
        for tree, related_C in zip(trees, related_NC, strict=True):
            connected = [tree, *(homes[number] for number in np.flatnonzero(related_C))]
            first, *others = {id(cluster): cluster for cluster in connected[::-1]}.values()
            for other in others:
                first.join(other)
                homes = [first if home is other else home for home in homes]
            if first is tree:
                homes.append(tree)
        self._clusters = list({id(home): home for home in homes}.values())
        if len(self._clusters) <= self._at_once:  # their centres have moved
            self._clusters = self._joined(self._clusters)
        self._centres_CD = np.array([cluster.centre for cluster in self._clusters], np.float32)
        self._waiting = []

    def _joined(self, clusters: list[Cluster]) -> list[Cluster]:
        """Joins the two nearest clusters as long as they are related."""
        if len(clusters) < 2:
            return clusters
        centres_ND = np.stack([cluster.centre for cluster in clusters]).astype(np.float32)
        # Inner products of the centres by layer, updated as clusters are joined.
        inner_KNN = _inner(self._sketch, centres_ND, centres_ND)
        squares_N = np.einsum("knn->n", inner_KNN)
        alike_NN = _without_the_most(inner_KNN, squares_N[:, None], squares_N)
        np.fill_diagonal(alike_NN, -np.inf)
        every, nearest_N = np.arange(len(clusters)), np.argmax(alike_NN, axis=1)
        left_N = np.ones(len(clusters), bool)
        while True:
            one = int(np.argmax(alike_NN[every, nearest_N]))
            other = int(nearest_N[one])
            if not alike_NN[one, other] > self._limit:
                return [cluster for cluster, left in zip(clusters, left_N, strict=True) if left]
            ours, theirs = (len(clusters[number].members) for number in (one, other))
            clusters[one].join(clusters[other])
            for view_KNN in (inner_KNN, inner_KNN.mT):
                both_KN = ours * view_KNN[:, one] + theirs * view_KNN[:, other]
                view_KNN[:, one] = both_KN / (ours + theirs)
            squares_N[one] = np.sum(inner_KNN[:, one, one])
            left_N[other] = False
            alike_N = _without_the_most(inner_KNN[:, one], squares_N[one], squares_N)
            alike_N[one] = alike_N[~left_N] = -np.inf
            alike_NN[other] = alike_NN[:, other] = -np.inf
            alike_NN[one] = alike_NN[:, one] = alike_N
            stale_N = np.isin(nearest_N, (one, other)) | (every == one)
            nearest_N[stale_N] = np.argmax(alike_NN[stale_N], axis=1)
            nearest_N[alike_N > alike_NN[every, nearest_N]] = one


def _cosines(sketch: Sketch, ones_ND: np.ndarray, others_MD: np.ndarray) -> np.ndarray:
    """Cosines [N, M] without the layer that adds most."""
    squares_N, squares_M = (np.sum(x**2, axis=1) for x in (ones_ND, others_MD))
    inner_KNM = _inner(sketch, ones_ND, others_MD)
    return _without_the_most(inner_KNM, squares_N[:, None], squares_M)


def _inner(sketch: Sketch, ones_ND: np.ndarray, others_MD: np.ndarray) -> np.ndarray:
    """Inner products [K, N, M] of the K layers."""
    parts = [(ones_ND[:, c], others_MD[:, c]) for c in map(sketch.columns, sketch.layers)]
    return np.stack([np.float32(one_ND @ other_MD.T) for one_ND, other_MD in parts])


def _without_the_most(
    inner_KM: np.ndarray, square: np.ndarray, squares_M: np.ndarray
) -> np.ndarray:
    """Cosines without the layer that adds most, from inner products; 0 for zeros.

    Args:
      inner_KM: by layer, [K, ..., M].
      square: squared lengths of the ones.
      squares_M: of the others.
    """
    total_M = np.sum(inner_KM, axis=0)
    if len(inner_KM) > 1:
        total_M -= np.max(inner_KM, axis=0)
    lengths_M = np.sqrt(square * squares_M)
    return np.where(lengths_M > 0, total_M / np.maximum(lengths_M, 1e-30), 0.0)
