"""Numbers of one layer that tell usual models of a tree from unusual ones.

Each is computed on a sample of rows and columns, or on all of a small layer. The `rest` of a layer
is what remains when the nearest multiple of the tree's centre is taken off; of a layer in which the
models of a tree have little in common, as in LoRAs and heads, it is all of it.

    size      the multiple of the centre; or log of the length
    distance  log of the length of the rest, relative to the centre; or 1 - cosine with the centre
    spectrum  log of the share that the first singular direction has of the rest
    rows      log of the share of the rest outside the usual directions of columns, U
    columns   the same of rows, V
    foreign   log of the share that is outside both: of (1 - U Uᵀ) rest (1 - V Vᵀ)
    outside   log of the length of that, relative to the centre
    tails     log of the kurtosis of the rest
    values    log of the share of distinct values in a row

Letters: N models, H rows, W columns, D = H W entries, K directions, S statistics.
"""

import numpy as np

from probex_jax.matrices import LowRank

STATISTICS = (
    "size", "distance", "spectrum", "rows", "columns", "foreign", "outside", "tails", "values"
)  # fmt: skip

# Differences below these are no news, however alike the training models are.
LEAST_S = np.array([0.02, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.1, 0.3])

_MOST_DIRECTIONS = 32
_TINY = 1e-6  # relative to the layer; what is left is rounding


def statistics(
    x_NHW: np.ndarray,
    values_N: np.ndarray,
    centre_NHW: np.ndarray,
    is_centred: bool,
    left_HK: np.ndarray,
    right_WK: np.ndarray,
) -> np.ndarray:
    """The statistics of a layer of models.

    Args:
      x_NHW: the sampled entries, finite.
      values_N: `distinct` of the layers.
      centre_NHW: the mean of the tree's models [1, H, W], or for each model of the others.
      is_centred: whether models have more in common than by chance.
      left_HK: usual directions of columns, orthonormal.
      right_WK: usual directions of rows.

    Returns:
      [N, S] float64, in the order of `STATISTICS`; NaN where a statistic makes no sense, as those
      of the rest of a layer that is a multiple of the centre.

    Example:
      >>> x, centre = np.array([[[1.0, 0.0], [0.0, 2.0]]]), 2 * np.eye(2)[None]
      >>> none = np.zeros([2, 0])
      >>> found = statistics(x, np.ones(1), centre, True, none, none)
      >>> dict(zip(STATISTICS, found[0].round(2).tolist()))["size"]
      0.75
    """
    x_NHW = x_NHW.astype(np.float64)
    lengths_N, unit_N = _length(x_NHW), np.maximum(_length(centre_NHW), 1e-30)
    along_N = np.sum(x_NHW * centre_NHW, axis=(1, 2)) / unit_N
    rest_NHW = rest(x_NHW, centre_NHW, is_centred)
    rest_N = _length(rest_NHW)
    if is_centred:
        size_N, distance_N = along_N / unit_N, _log(np.maximum(rest_N / unit_N, _TINY))
    else:
        size_N, distance_N = _log(lengths_N), 1 - along_N / np.maximum(lengths_N, 1e-30)
        unit_N = np.ones(1)
    rest_NHW = rest_NHW / np.maximum(rest_N, 1e-30)[:, None, None]
    off_rows_NHW = rest_NHW - left_HK @ (left_HK.T @ rest_NHW)
    off_columns_NHW = rest_NHW - (rest_NHW @ right_WK) @ right_WK.T
    foreign_N = _length(off_rows_NHW - (off_rows_NHW @ right_WK) @ right_WK.T)
    of_rest_NX = np.stack(
        [
            _first_share(rest_NHW),
            _log(_length(off_rows_NHW)),
            _log(_length(off_columns_NHW)),
            _log(foreign_N),
            _log(foreign_N * rest_N / unit_N),
            _kurtosis(rest_NHW),
        ],
        axis=1,
    )
    there_N1 = (rest_N > _TINY * lengths_N)[:, None]
    of_rest_NX = np.where(there_N1, of_rest_NX, np.nan)
    return np.column_stack([size_N, distance_N, of_rest_NX, _log(values_N)])


def rest(x_NHW: np.ndarray, centre_NHW: np.ndarray, is_centred: bool) -> np.ndarray:
    """What remains when the nearest multiple of the centre is taken off, if there is one."""
    if not is_centred:
        return x_NHW
    shares_N = np.sum(x_NHW * centre_NHW, axis=(1, 2)) / np.sum(centre_NHW**2, axis=(1, 2))
    return x_NHW - shares_N[:, None, None] * centre_NHW


def directions(rest_NHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The usual directions of columns [H, K] and of rows [W, K], every model counting the same.

    K is half of all, and at most 32.
    """
    rest_NHW = rest_NHW / np.maximum(_length(rest_NHW), 1e-30)[:, None, None]
    grams = (np.einsum("nhw,ngw->hg", rest_NHW, rest_NHW, optimize=True),
             np.einsum("nhw,nhv->wv", rest_NHW, rest_NHW, optimize=True))  # fmt: skip
    left_HK, right_WK = (
        np.linalg.eigh(gram)[1][:, -max(1, min(_MOST_DIRECTIONS, len(gram) // 2)) :]
        for gram in grams
    )
    return left_HK, right_WK


def distinct(matrices: np.ndarray | LowRank) -> np.ndarray:
    """The share of distinct values [N] in the rows of matrices, or in the factors' directions.

    Weights that were rounded to few bits have few.

    Example:
      >>> distinct(np.array([[[1.0, 2.0, 3.0, 4.0]], [[0.5, 0.5, 1.0, 1.0]]]))
      array([1. , 0.5])
    """
    if isinstance(matrices, LowRank):
        both = _distinct(np.asarray(matrices.up).mT), _distinct(np.asarray(matrices.down))
        return np.minimum(*both)
    return _distinct(matrices)


def is_random(x_HW: np.ndarray) -> bool:
    """Whether a matrix has the singular values of random entries, as before training.

    The largest one of H W independent entries of variance v is near sqrt(v) (sqrt(H) + sqrt(W)).

    Example:
      >>> x = np.random.default_rng(0).normal(size=(40, 60))
      >>> is_random(x), is_random(x + 2)
      (True, False)
    """
    expected = x_HW.std(dtype=np.float64) * np.sum(np.sqrt(x_HW.shape))
    return bool(0.85 * expected < np.linalg.norm(x_HW, 2) < 1.15 * expected)


def _length(x_NHW: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.square(x_NHW, dtype=np.float64), axis=(1, 2)))


def _log(value: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(value, 1e-12))


def _first_share(x_NHW: np.ndarray) -> np.ndarray:
    wide_NHW = x_NHW if x_NHW.shape[1] <= x_NHW.shape[2] else x_NHW.mT
    values_NH = np.linalg.eigvalsh(wide_NHW @ wide_NHW.mT)
    return _log(values_NH[:, -1] / np.maximum(values_NH.sum(axis=1), 1e-300))


def _kurtosis(x_NHW: np.ndarray) -> np.ndarray:
    squares_NHW = np.square(x_NHW - x_NHW.mean(axis=(1, 2), keepdims=True))
    means_N = np.maximum(squares_NHW.mean(axis=(1, 2)), 1e-150)
    return _log(np.square(squares_NHW).mean(axis=(1, 2)) / np.square(means_N))


def _distinct(x_NHW: np.ndarray) -> np.ndarray:
    """Of rows that are not all zeros, as those are that fill up factors of a lower rank."""
    ordered_NHW = np.sort(x_NHW, axis=2)
    steps_NH = np.sum(ordered_NHW[..., 1:] != ordered_NHW[..., :-1], axis=2)
    there_NH = np.any(x_NHW != 0, axis=2)
    shares_NH = there_NH * (1 + steps_NH) / x_NHW.shape[2]
    return shares_NH.sum(axis=1) / np.maximum(there_NH.sum(axis=1), 1)
