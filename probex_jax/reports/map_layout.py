"""Layouts of models on a map: similar representations lie close together."""

import numpy as np

from probex_jax.errors import ProbexError

# More points take long to lay out and hide one another.
MAX_POINTS = 1000
_MAX_PERPLEXITY = 15
# Models whose neighbourhoods are too few for t-SNE.
_FEW = 3 * _MAX_PERPLEXITY + 5
# Neighbours that decide where a new model belongs.
_NEAREST = 5
# Squared distances between directions below this are rounding errors.
_SAME = 1e-6


def sample_for_map(n_models: int) -> np.ndarray:
    """Indices of the models that a map shows: all, or a fixed sample of a thousand.

    Args:
      n_models: how many there are.

    Returns:
      [M] int, increasing; M is at most `MAX_POINTS`.

    Example:
      >>> sample_for_map(3), len(sample_for_map(5000))
      (array([0, 1, 2]), 1000)
    """
    if n_models <= MAX_POINTS:
        return np.arange(n_models)
    return np.sort(np.random.default_rng(0).choice(n_models, MAX_POINTS, replace=False))


def layout_2d(vectors: np.ndarray) -> np.ndarray:
    """Lays models out in the plane by the directions of their representations.

    Uses t-SNE with a fixed seed. Of few models the two principal components are shown, which keep
    the true distances of representations of at most two dimensions.

    Args:
      vectors: [N, T] float representations; N may be 0.

    Returns:
      [N, 2] float64 positions with mean (0, 0); their scale means nothing.

    Raises:
      ProbexError: if scikit-learn is missing (extra `search`), or a representation is not finite.

    Example:
      >>> layout_2d(np.array([[3.0, 0.0], [5.0, 0.0], [0.0, 2.0]])).shape
      (3, 2)

    References:
      van der Maaten, Hinton: Visualizing Data using t-SNE, JMLR 2008.
    """
    units_NT = _directions(vectors)
    if not len(units_NT):
        return np.zeros([0, 2])
    centred_NT = units_NT - units_NT.mean(axis=0)
    if np.max(np.sum(centred_NT**2, axis=1)) < _SAME:
        return np.zeros([len(units_NT), 2])
    if len(units_NT) > _FEW and units_NT.shape[1] > 2:
        points_N2 = _by_tsne(units_NT)
        return points_N2 - points_N2.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred_NT, full_matrices=False)
    places = (left * sizes)[:, :2]
    return np.pad(places, [(0, 0), (0, 2 - places.shape[1])])


def _by_tsne(units_NT: np.ndarray) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise ProbexError("maps need scikit-learn: pip install scikit-learn") from None
    perplexity = min(_MAX_PERPLEXITY, (len(units_NT) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=0)
    # On busy cores its threads would wait for one another at each of a thousand small steps.
    with threadpool_limits(1):
        return tsne.fit_transform(units_NT.astype(np.float32)).astype(np.float64)


def position_among(
    points: np.ndarray, vectors: np.ndarray, vector: np.ndarray
) -> tuple[float, float]:
    """The position of a new model among models that are laid out already.

    It is the mean of its five nearest neighbours, weighted by the inverse squared distance of the
    directions, so that a model that is on the map already gets its own position.

    Args:
      points: [N, 2] positions from `layout_2d`; N is at least 1.
      vectors: [N, T] their representations.
      vector: [T] the representation of the new model.

    Returns:
      x and y.

    Raises:
      ProbexError: if a representation is not finite, or there are no models.

    Example:
      >>> points, vectors = np.array([[0.0, 0.0], [1.0, 1.0]]), np.eye(2)
      >>> x, y = position_among(points, vectors, np.array([0.0, 7.0]))
      >>> round(x, 3), round(y, 3)
      (1.0, 1.0)
    """
    if not len(points):
        raise ProbexError("a map without models has no position for a new one")
    gaps_N = 2 - 2 * _directions(vectors) @ _directions(vector[None])[0]
    nearest = np.argsort(gaps_N, kind="stable")[:_NEAREST]
    weights = 1 / np.maximum(gaps_N[nearest], _SAME)
    x, y = weights @ np.asarray(points, np.float64)[nearest] / weights.sum()
    return float(x), float(y)


def _directions(vectors: np.ndarray) -> np.ndarray:
    vectors_NT = np.asarray(vectors, np.float64)
    if not np.all(np.isfinite(vectors_NT)):
        raise ProbexError("a representation is not finite: its model has no position on a map")
    lengths_N = np.linalg.norm(vectors_NT, axis=1, keepdims=True)
    return vectors_NT / np.where(lengths_N > 0, lengths_N, 1)
