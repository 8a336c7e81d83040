"""How near unrelated models come to each other, and to the centre of a tree.

Permuting the hidden units of a model keeps its function but makes its weights unrelated to the
tree. So permuted models simulate unrelated ones: they keep what any model of the architecture
may share with the tree, such as the lengths and means of rows and columns, and lose what only a
common ancestor explains.
"""

from collections.abc import Callable, Sequence

import numpy as np

from probex_jax.forest.sketch import Sketch

_ORDERS = 64
# In squared distances: an unrelated model may be that many standard deviations closer than the mean
# of unrelated models, or that share of the way from there to the models of the tree.
_DEVIATIONS = 5.0
_SHARE = 0.25
# Among thousands of models are millions of pairs: their cosines may be that many standard
# deviations above the mean by chance.
_PAIR_DEVIATIONS = 6.0

Cosines = Callable[[Sketch, np.ndarray, np.ndarray], np.ndarray]


def unrelated_cosine(sketch: Sketch, models_MD: np.ndarray, cosines: Cosines) -> float:
    """The greatest cosine that two unrelated models are expected to have.

    Either the rows or the columns of one of them are permuted, whichever brings more.

    Args:
      sketch: of the models.
      models_MD: sketches of some of them.
      cosines: measures those [N, M] of two sets of sketches.

    Example:
      >>> models = np.random.default_rng(0).normal(size=(20, 512))
      >>> sketch = Sketch.of_layers({"a.weight": (8, 64)})
      >>> models /= np.linalg.norm(models, axis=1, keepdims=True)
      >>> found = unrelated_cosine(sketch, models, lambda _, x, y: x @ y.T)
      >>> 5 < found * 512**0.5 < 7  # the spread of their cosines is 512 ** -0.5
      True
    """
    rng = np.random.default_rng(0)
    orders = -(-_ORDERS // len(models_MD))
    found = []
    for axis in (0, 1):
        others = np.empty([len(models_MD), orders, sketch.size])
        for layer in sketch.layers:
            columns = sketch.columns(layer)
            for model_D, other in zip(models_MD, others, strict=True):
                layer_RW = model_D[columns].reshape(len(layer.rows), -1)
                other[:, columns] = _reordered(layer_RW, axis, rng, orders).reshape(orders, -1)
        alike_NM = cosines(sketch, models_MD, others.reshape(-1, sketch.size))
        found.append(float(np.mean(alike_NM) + _PAIR_DEVIATIONS * np.std(alike_NM)))
    return max(found)


def unrelated_limits(
    sketch: Sketch, centre_D: np.ndarray, sketches_ND: np.ndarray, apart_ND: np.ndarray
) -> tuple[float, np.ndarray]:
    """The least distances from a centre that are expected of unrelated models.

    Either the rows or the columns are permuted, whichever comes closer.

    Args:
      sketch: of the tree.
      centre_D: the centre.
      sketches_ND: of the training models around it.
      apart_ND: difference of each model from the mean of the others.

    Returns:
      The limit for whole sketches, and the limits [K] of single layers.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> sketch = Sketch.of_layers({"a.weight": (8, 64)})
      >>> root = rng.normal(size=512) / 512**0.5
      >>> apart = 0.01 * rng.normal(size=[20, 512])
      >>> limit, _ = unrelated_limits(sketch, root, root + apart, apart)
      >>> 1.0 < limit < 2**0.5  # unrelated unit vectors are about sqrt(2) apart
      True
    """
    rng = np.random.default_rng(0)
    sketches_ND = np.asarray(sketches_ND, np.float64)
    wholes, layers = [], []
    for axis in (0, 1):
        whole_NP = np.zeros([len(sketches_ND), _ORDERS])
        each = []
        for layer in sketch.layers:
            columns = sketch.columns(layer)
            centre_RW = np.float64(centre_D[columns]).reshape(len(layer.rows), -1)
            others_PD = _reordered(centre_RW, axis, rng, _ORDERS).reshape(_ORDERS, -1)
            part_ND = sketches_ND[:, columns]
            squares_N1 = np.sum(part_ND**2, axis=1, keepdims=True)
            strange_NP = squares_N1 + np.sum(centre_RW**2) - 2 * part_ND @ others_PD.T
            each.append(_least(strange_NP, apart_ND[:, columns]))
            whole_NP += strange_NP
        wholes.append(_least(whole_NP, apart_ND))
        layers.append(each)
    return min(wholes), np.min(np.reshape(layers, [2, -1]), axis=0)


def _reordered(
    matrix_RW: np.ndarray, axis: int, rng: np.random.Generator, count: int
) -> np.ndarray:
    """`count` permutations [P, R, W] of a matrix in which no row or column stays in place."""
    if matrix_RW.shape[axis] == 1:
        axis = 1 - axis
    orders: Sequence[np.ndarray] = [rng.permutation(matrix_RW.shape[axis]) for _ in range(count)]
    # Cyclic permutations have no fixed points.
    moved = [order[np.argsort(np.roll(order, 1))] for order in orders]
    return np.stack([np.take(matrix_RW, order, axis=axis) for order in moved])


def _least(squares_NP: np.ndarray, apart_ND: np.ndarray) -> float:
    """The limit, from squared distances of unrelated models and the models' own differences."""
    own = np.mean(np.sum(apart_ND**2, axis=1))
    nearer = max(_DEVIATIONS * np.std(squares_NP), _SHARE * (np.mean(squares_NP) - own))
    return float(np.sqrt(max(np.mean(squares_NP) - nearer, 0.0)))
