"""Where models stand on a map: representations in the plane, near ones near."""

import numpy as np

from probex_jax.errors import ProbexError

# Models that one map shows: more take long to lay out, and hide one another.
MOST_SHOWN = 1000
_MOST_PERPLEXITY = 15
# How many laid-out models say where a new one belongs.
_NEAREST = 5
# Squared distances of directions below this are rounding.
_SAME = 1e-6


def shown_on_a_map(n_models: int) -> np.ndarray:
    """Which models a map shows: all, or of more than a thousand a sample, always the same.

    Args:
      n_models: how many there are.

    Returns:
      [M] int, their places, in order; M is at most `MOST_SHOWN`.

    Example:
      >>> shown_on_a_map(3), len(shown_on_a_map(5000))
      (array([0, 1, 2]), 1000)
    """
    if n_models <= MOST_SHOWN:
        return np.arange(n_models)
    return np.sort(np.random.default_rng(0).choice(n_models, MOST_SHOWN, replace=False))


def in_the_plane(vectors: np.ndarray) -> np.ndarray:
    """Lays models out in the plane by the directions of their representations.

    They are laid out by t-SNE, the same way at each call; three models or fewer, or directions of
    two numbers or fewer, lie in a plane anyway, and keep their true distances.

    Args:
      vectors: [N, T] float representations, N any number.

    Returns:
      [N, 2] float64 places, of no scale in particular; their mean is at (0, 0).

    Raises:
      ProbexError: if scikit-learn is missing (extra `search`), or a representation is not finite.

    Example:
      >>> in_the_plane(np.array([[3.0, 0.0], [5.0, 0.0], [0.0, 2.0]])).shape
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
    if len(units_NT) > 3 and units_NT.shape[1] > 2:
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
    perplexity = min(_MOST_PERPLEXITY, (len(units_NT) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=0)
    # On cores that others use its threads wait for one another at each of a thousand small steps.
    with threadpool_limits(1):
        return tsne.fit_transform(units_NT.astype(np.float32)).astype(np.float64)


def placed_beside(
    points: np.ndarray, vectors: np.ndarray, vector: np.ndarray
) -> tuple[float, float]:
    """Where a new model belongs among models that are laid out already.

    It stands at the mean of its five nearest, each weighed by one over the squared distance of the
    directions: a model that is on the map already stands where it is.

    Args:
      points: [N, 2] places, as `in_the_plane` gives them; N is one or more.
      vectors: [N, T] the representations that were laid out.
      vector: [T], that of the new model.

    Returns:
      Its place.

    Raises:
      ProbexError: if a representation is not finite, or there are no models.

    Example:
      >>> points, vectors = np.array([[0.0, 0.0], [1.0, 1.0]]), np.eye(2)
      >>> x, y = placed_beside(points, vectors, np.array([0.0, 7.0]))
      >>> round(x, 3), round(y, 3)
      (1.0, 1.0)
    """
    if not len(points):
        raise ProbexError("a model cannot be placed on a map of none")
    gaps_N = 2 - 2 * _directions(vectors) @ _directions(vector[None])[0]
    nearest = np.argsort(gaps_N, kind="stable")[:_NEAREST]
    weights = 1 / np.maximum(gaps_N[nearest], _SAME)
    x, y = weights @ np.asarray(points, np.float64)[nearest] / weights.sum()
    return float(x), float(y)


def _directions(vectors: np.ndarray) -> np.ndarray:
    vectors_NT = np.asarray(vectors, np.float64)
    if not np.all(np.isfinite(vectors_NT)):
        raise ProbexError("a representation is not finite: its model has no place on a map")
    lengths_N = np.linalg.norm(vectors_NT, axis=1, keepdims=True)
    return vectors_NT / np.where(lengths_N > 0, lengths_N, 1)
