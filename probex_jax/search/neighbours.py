"""Measures on neighbours in representation space: kNN, one-class scores, AUC, retrieval.

All are functions of arrays: N known models (the gallery), Q queries, C classes numbered from 0, M
models of the largest class.

scikit-learn's kNN breaks ties by class number; covariance is scikit-learn's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from probex_jax.errors import ProbexError
from probex_jax.fitting import Score, auc_score, share

# Distances held at once; more queries take turns.
_BYTES = 256 * 2**20


def knn(gallery_NT: ArrayLike, labels_N: ArrayLike, queries_QT: ArrayLike, k: int) -> np.ndarray:
    """The majority class of the k nearest models (L2).

    Between models at the same distance the earlier one is nearer; between classes with the same
    number of votes the one with the nearest model wins.

    Args:
      gallery_NT: [N, T] float, models of known class.
      labels_N: [N] int, their classes.
      queries_QT: [Q, T] float.
      k: number of neighbours that vote, at most N.

    Returns:
      [Q] int, the predicted classes.

    Raises:
      ProbexError: if k is out of range or the shapes do not fit.

    Example:
      >>> knn([[0.0], [1.0], [5.0]], [7, 7, 3], [[0.4], [4.0]], k=1)
      array([7, 3])

    References:
      docs/method.md, "Downstream".
    """
    gallery_NT, labels_N, queries_QT = _checked(gallery_NT, labels_N, queries_QT)
    _check_k(k, len(gallery_NT))
    nearest_QK = _nearest(*_centred(queries_QT, gallery_NT), k)
    labels_QK = labels_N[np.asarray(nearest_QK)]
    votes_QK = (labels_QK[:, :, None] == labels_QK[:, None, :]).sum(axis=2)
    # argmax takes the first of equals, which is the nearest.
    return labels_QK[np.arange(len(labels_QK)), votes_QK.argmax(axis=1)]


def one_class(
    train_NT: ArrayLike, labels_N: ArrayLike, queries_QT: ArrayLike, k: int = 2
) -> np.ndarray:
    """Anomaly score of each query for each class: mean distance to its k nearest models.

    The distance is Euclidean, not squared. A class with fewer than k models uses all of them.

    Args:
      train_NT: [N, T] float.
      labels_N: [N] int; every class from 0 to the largest has a model.
      queries_QT: [Q, T] float.
      k: number of neighbours.

    Returns:
      [Q, C] float32; low for members of the class.

    Raises:
      ProbexError: if k is below 1, a class has no model, or the shapes do not fit.

    Example:
      >>> one_class([[0.0], [2.0], [5.0]], [0, 0, 1], [[1.0], [5.0]]).round(3).tolist()
      [[1.0, 4.0], [4.0, 0.0]]
    """
    train_NT, labels_N, queries_QT = _checked(train_NT, labels_N, queries_QT)
    sizes_C = _class_sizes(labels_N, least=1)
    if k < 1:
        raise ProbexError(f"k is {k}: expected 1 or more")
    widest = int(sizes_C.max())
    member_CM = np.arange(widest) < sizes_C[:, None]
    index_CM = np.zeros(member_CM.shape, int)
    index_CM[member_CM] = np.argsort(labels_N, kind="stable")
    centred = _centred(queries_QT, train_NT)
    return np.asarray(_one_class(*centred, index_CM, member_CM, min(k, widest)))


def mahalanobis(train_NT: ArrayLike, labels_N: ArrayLike, queries_QT: ArrayLike) -> np.ndarray:
    """Squared Mahalanobis distance of each query to each class, covariance by Ledoit-Wolf.

    Args:
      train_NT: [N, T] float.
      labels_N: [N] int; every class from 0 to the largest has at least two models.
      queries_QT: [Q, T] float.

    Returns:
      [Q, C] float64; low for members of the class.

    Raises:
      ProbexError: if scikit-learn is missing (extra `search`), a class has fewer than two
        different models, or the shapes do not fit.

    Example:
      >>> d = mahalanobis([[0.0], [2.0], [9.0], [10.0]], [0, 0, 1, 1], [[1.0], [9.0]])
      >>> d.tolist()
      [[0.0, 289.0], [64.0, 1.0]]
    """
    ledoit_wolf = _ledoit_wolf()
    train_NT, labels_N, queries_QT = _checked(train_NT, labels_N, queries_QT)
    sizes_C = _class_sizes(labels_N, least=2)
    scores_QC = np.empty([len(queries_QT), len(sizes_C)])
    for number in range(len(sizes_C)):
        models_NT = train_NT[labels_N == number].astype(np.float64)
        if not np.ptp(models_NT, axis=0).any():
            raise ProbexError(f"class {number}: all its models have the same representation")
        fitted = ledoit_wolf(store_precision=False).fit(models_NT)
        # A shrunk covariance has an inverse, which is far cheaper than the pseudo-inverse.
        shrunk, covariance_TT = fitted.shrinkage_ > 1e-6, fitted.covariance_
        precision_TT = (
            np.linalg.inv(covariance_TT)
            if shrunk
            else np.linalg.pinv(covariance_TT, hermitian=True)
        )
        offset_QT = queries_QT - fitted.location_
        scores_QC[:, number] = ((offset_QT @ precision_TT) * offset_QT).sum(axis=1)
    return scores_QC


def auc(scores_QC: ArrayLike, labels_Q: ArrayLike) -> Score:
    """Area under the ROC curve of each class against all others, mean over classes.

    As `fitting.auc_score`, of distances.

    Args:
      scores_QC: [Q, C] float, from `one_class` or `mahalanobis`; low for members.
      labels_Q: [Q] int, the true classes.

    Returns:
      The mean AUC (chance is one half) with a 95 % bootstrap interval over the models.

    Raises:
      ProbexError: if a label has no column, all models are of one class, or the shapes do not fit.

    Example:
      >>> print(auc([[0.1, 0.9], [0.2, 0.3], [0.8, 0.4]], [0, 0, 1]).value)
      0.75
    """
    scores_QC, labels_Q = np.asarray(scores_QC), np.asarray(labels_Q)
    if scores_QC.ndim != 2 or labels_Q.shape != scores_QC.shape[:1]:
        raise ProbexError(f"scores {scores_QC.shape} and labels {labels_Q.shape} do not fit")
    if not np.isin(labels_Q, np.arange(scores_QC.shape[1])).all():
        raise ProbexError(f"labels: expected classes from 0 to {scores_QC.shape[1] - 1}")
    found = auc_score(-scores_QC, labels_Q)
    if found is None:
        raise ProbexError("AUC needs models of two classes or more")
    return found


@dataclass(frozen=True)
class Retrieval:
    """Figures of `retrieval`.

    Args:
      precision: share of the k nearest that have the class of the query.
      mean_average_precision: of the whole ranking, mean over queries.
    """

    precision: Score
    mean_average_precision: Score


def retrieval(
    gallery_NT: ArrayLike,
    gallery_labels_N: ArrayLike,
    queries_QT: ArrayLike,
    query_labels_Q: ArrayLike,
    k: int,
) -> Retrieval:
    """Precision at k and mean average precision of ranking a gallery by L2 distance.

    A model is relevant if it has the class of the query; queries without relevant models are left
    out. Queries may be text vectors: give unit vectors on both sides.

    Args:
      gallery_NT: [N, T] float.
      gallery_labels_N: [N] int.
      queries_QT: [Q, T] float.
      query_labels_Q: [Q] int.
      k: number of nearest models, at most N.

    Returns:
      Both figures with 95 % bootstrap intervals over the queries.

    Raises:
      ProbexError: if k is out of range, no query has a relevant model, or the shapes do not fit.

    Example:
      >>> found = retrieval([[0.0], [1.0], [4.0]], [0, 1, 1], [[0.2], [0.3]], [0, 1], k=1)
      >>> round(found.precision.value, 3), round(found.mean_average_precision.value, 3)
      (0.5, 0.792)
    """
    gallery_NT, gallery_labels_N, queries_QT = _checked(gallery_NT, gallery_labels_N, queries_QT)
    query_labels_Q = np.asarray(query_labels_Q)
    if query_labels_Q.shape != (len(queries_QT),):
        raise ProbexError(f"{len(queries_QT)} queries and labels {query_labels_Q.shape}")
    _check_k(k, len(gallery_NT))
    n_relevant_Q, precision_Q, average_Q = _precisions(
        *_centred(queries_QT, gallery_NT), gallery_labels_N, query_labels_Q, k
    )
    has_answer_Q = n_relevant_Q > 0
    if not has_answer_Q.any():
        raise ProbexError("retrieval: the gallery has no model of the class of any query")
    return Retrieval(share(precision_Q[has_answer_Q]), share(average_Q[has_answer_Q]))


def _checked(
    known_NT: ArrayLike, labels_N: ArrayLike, queries_QT: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    known_NT, queries_QT = np.asarray(known_NT, np.float32), np.asarray(queries_QT, np.float32)
    labels_N = np.asarray(labels_N)
    if known_NT.ndim != 2 or queries_QT.ndim != 2 or known_NT.shape[1] != queries_QT.shape[1]:
        raise ProbexError(
            f"representations {known_NT.shape} and {queries_QT.shape}: expected [N, T] and [Q, T]"
        )
    if labels_N.shape != known_NT.shape[:1] or not np.issubdtype(labels_N.dtype, np.integer):
        raise ProbexError(f"labels: expected {len(known_NT)} integers")
    if not (len(known_NT) and len(queries_QT)):
        raise ProbexError("no models or no queries")
    return known_NT, labels_N, queries_QT


def _check_k(k: int, most: int) -> None:
    if not 1 <= k <= most:
        raise ProbexError(f"k is {k}: expected 1 to {most}, the number of known models")


def _class_sizes(labels_N: np.ndarray, least: int) -> np.ndarray:
    sizes_C = np.bincount(labels_N) if labels_N.min() >= 0 else np.zeros(1)
    if sizes_C.min() < least:
        raise ProbexError(
            f"class {sizes_C.argmin()} has {sizes_C.min():.0f} models: expected {least} or more, "
            "and classes numbered from 0"
        )
    return sizes_C


def _ledoit_wolf() -> Any:
    try:
        from sklearn.covariance import LedoitWolf
    except ImportError:
        raise ProbexError("this measure needs scikit-learn: pip install scikit-learn") from None
    return LedoitWolf


def _centred(queries_QT: ArrayLike, gallery_NT: ArrayLike) -> tuple[jax.Array, jax.Array]:
    centre_T = np.mean(gallery_NT, axis=0, dtype=np.float64)
    queries_QT, gallery_NT = np.asarray(queries_QT) - centre_T, np.asarray(gallery_NT) - centre_T
    return jnp.asarray(queries_QT, jnp.float32), jnp.asarray(gallery_NT, jnp.float32)


@jax.jit
def _distances(queries_QT: jax.Array, gallery_NT: jax.Array) -> jax.Array:
    """Squared Euclidean distances by one product; exact enough since both sides are centred."""
    # Devices may otherwise multiply in fewer bits than float32.
    products_QN = jnp.matmul(queries_QT, gallery_NT.T, precision=jax.lax.Precision.HIGHEST)
    squares_Q1 = jnp.sum(queries_QT**2, axis=1)[:, None]
    squares_1N = jnp.sum(gallery_NT**2, axis=1)[None]
    return jnp.maximum(squares_Q1 - 2 * products_QN + squares_1N, 0)


def _map_queries(
    function: Callable[[jax.Array], Any], queries_QT: jax.Array, gallery_NT: jax.Array
) -> Any:
    """Maps a function of distances [N] over the queries, in batches that fit the memory."""
    batch = max(1, min(len(queries_QT), _BYTES // (4 * len(gallery_NT))))
    return jax.lax.map(
        lambda query_T: function(_distances(query_T[None], gallery_NT)[0]),
        queries_QT,
        batch_size=batch,
    )


@partial(jax.jit, static_argnames="k")
def _nearest(queries_QT: jax.Array, gallery_NT: jax.Array, k: int) -> jax.Array:
    # top_k prefers the earlier of equals.
    return _map_queries(
        lambda distances_N: jax.lax.top_k(-distances_N, k)[1], queries_QT, gallery_NT
    )


@partial(jax.jit, static_argnames="k")
def _one_class(
    queries_QT: jax.Array, train_NT: jax.Array, index_CM: Any, member_CM: Any, k: int
) -> jax.Array:
    def score(distances_N: jax.Array) -> jax.Array:
        distances_CM = jnp.where(member_CM, distances_N[index_CM], jnp.inf)
        nearest_CK = -jax.lax.top_k(-distances_CM, k)[0]
        there_CK = jnp.isfinite(nearest_CK)
        return jnp.mean(jnp.sqrt(nearest_CK), axis=1, where=there_CK)

    return _map_queries(score, queries_QT, train_NT)


def _precisions(
    queries_QT: jax.Array,
    gallery_NT: jax.Array,
    gallery_labels_N: np.ndarray,
    query_labels_Q: np.ndarray,
    k: int,
) -> np.ndarray:
    """Number of relevant models, precision at k and average precision of each query: [3, Q]."""
    n = len(gallery_NT)
    parts, batch = [], max(1, _BYTES // (16 * n))
    for start in range(0, len(queries_QT), batch):
        here = slice(start, start + batch)
        # Sorted by NumPy: XLA's sort on CPU takes four times as long.
        distances_QN = np.asarray(_distances(queries_QT[here], gallery_NT))
        relevant_QN = query_labels_Q[here, None] == gallery_labels_N
        order_QN = np.argsort(distances_QN, axis=1, kind="stable")
        relevant_QN = np.take_along_axis(relevant_QN, order_QN, axis=1)
        precision_QN = np.cumsum(relevant_QN, axis=1) / (1 + np.arange(n))
        n_relevant_Q = relevant_QN.sum(axis=1)
        average_Q = (precision_QN * relevant_QN).sum(axis=1) / np.maximum(n_relevant_Q, 1)
        parts.append(np.stack([n_relevant_Q, precision_QN[:, k - 1], average_Q]))
    return np.concatenate(parts, axis=1)
