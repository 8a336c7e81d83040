"""Finding models with a common ancestor: Ward clustering of their sketches, with a cut.

Fine-tuning changes weights little: two models of one tree share most of their weights, while models
trained from scratch share nothing. So for the means c and c' of two clusters

    |c - c'|^2 / (|c|^2 + |c'|^2)

is near 0 within a tree and near 1 between trees, whatever their sizes. Clusters that Ward's method
joins form one tree while this is below one half, so the number of trees need not be known.
"""

from dataclasses import dataclass

import numpy as np

# Two models at half the squared distance of unrelated ones have a cosine of one half.
_RELATED = 0.5
# Models clustered at once; memory is quadratic in their number.
WARD_MODELS = 2048


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

    The first models are clustered by Ward's method. Every later model joins the nearest centre if
    it is related; the others wait until there are enough of them to cluster again.

    Args:
      one_tree: whether all models form one tree, as LoRAs do, whose weights share no ancestor.
      ward_models: number of models that are clustered at once.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> roots = rng.normal(size=(2, 64))
      >>> found = Clusters()
      >>> for number in range(20):
      ...     found.add(number, roots[number % 2] + 0.1 * rng.normal(size=64))
      >>> [cluster.members[:3] for cluster in found.finish()]
      [[0, 2, 4], [1, 3, 5]]
    """

    def __init__(self, *, one_tree: bool = False, ward_models: int = WARD_MODELS):
        self._one_tree, self._ward_models = one_tree, ward_models
        self._clusters: list[Cluster] = []
        self._centres_CD = np.empty([0, 0])
        self._waiting: list[Cluster] = []

    def add(self, number: int, sketch: np.ndarray) -> None:
        """Adds a model by its number and sketch [D]."""
        model = Cluster(np.asarray(sketch, np.float64), [number])
        if self._one_tree and self._clusters:
            self._clusters[0].join(model)
        elif self._one_tree:
            self._clusters = [model]
        elif (home := self._home(model)) is not None:
            home.members.append(number)  # the centre is already a mean of many models
        else:
            self._waiting.append(model)
            if len(self._waiting) == self._ward_models:
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

    def _home(self, model: Cluster) -> Cluster | None:
        """The settled cluster that a model belongs to, if any."""
        if not len(self._centres_CD):
            return None
        inner_C = self._centres_CD @ model.centre
        squares_C = np.sum(self._centres_CD**2, axis=1)
        home = _related(inner_C, squares_C, float(np.sum(model.centre**2)))
        return None if home is None else self._clusters[home]

    def _settle(self) -> None:
        """Clusters the waiting models."""
        for tree in _trees(self._waiting):
            home = self._home(tree)
            if home is None:
                self._clusters.append(tree)
            else:
                home.join(tree)
        self._waiting = []
        if self._clusters:
            self._centres_CD = np.stack([cluster.centre for cluster in self._clusters])


def _trees(models: list[Cluster]) -> list[Cluster]:
    """Clusters models by Ward's joins, skipping those of unrelated clusters."""
    from scipy.cluster.hierarchy import linkage  # half a second

    if len(models) < 2:
        return models
    centres_ND = np.stack([model.centre for model in models])
    # Inner products of the centres, updated as clusters are joined.
    inner_NN = centres_ND @ centres_ND.T
    found = {number: [number] for number in range(len(models))}
    for step, pair in enumerate(linkage(_distances(centres_ND), "ward")[:, :2].astype(int)):
        trees, others = sorted((found.pop(number) for number in pair), key=len, reverse=True)
        for other in others:
            home = _related(
                inner_NN[other, trees], np.diag(inner_NN)[trees], inner_NN[other, other]
            )
            if home is None:
                trees.append(other)
                continue
            ours, theirs = (len(models[number].members) for number in (trees[home], other))
            models[trees[home]].join(models[other])
            for view_NN in (inner_NN, inner_NN.T):
                both_N = ours * view_NN[trees[home]] + theirs * view_NN[other]
                view_NN[trees[home]] = both_N / (ours + theirs)
        found[len(models) + step] = trees
    [trees] = found.values()
    return [models[number] for number in trees]


def _related(inner_C: np.ndarray, squares_C: np.ndarray, square: float) -> int | None:
    """The nearest centre, if it shares more than half of the weights.

    Args:
      inner_C: inner products with the centres.
      squares_C: squared lengths of the centres.
      square: squared length of the model.
    """
    if not len(inner_C):
        return None
    apart_C = squares_C + square - 2 * inner_C
    nearest = int(np.argmin(apart_C))
    return nearest if apart_C[nearest] < _RELATED * (squares_C[nearest] + square) else None


def _distances(sketches_ND: np.ndarray) -> np.ndarray:
    """Distances [N (N - 1) / 2] of all pairs, in SciPy's order."""
    # Centred, so that differences of squares lose no digits.
    centred_ND = sketches_ND - sketches_ND.mean(axis=0)
    squares_N = np.sum(centred_ND**2, axis=1)
    squared_NN = squares_N[:, None] + squares_N - 2 * (centred_ND @ centred_ND.T)
    pairs = np.triu_indices(len(sketches_ND), 1)
    return np.sqrt(np.maximum(squared_NN[pairs], 0.0))
