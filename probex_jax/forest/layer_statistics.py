"""Numbers of one layer that tell usual models of a tree from unusual ones.

Each is computed on a sample of rows and columns, or on all of a small layer. The `rest` of a layer
is what remains when the nearest multiple of the tree's centre is taken off; of a layer in which the
models of a tree have little in common, as in LoRAs and heads, it is all of it.

    size      the multiple of the centre; or log of the length
    distance  log of the length of the rest, relative to the centre; or 1 - cosine with the centre
    spectrum  log of the share that the first singular direction has of the rest
    outside   log of the length of the rest outside the directions in which training models differ,
              relative to the centre
    foreign   the same relative to the rest
    tails     log of the kurtosis of the rest
    values    log of the share of distinct values in a row

Letters: N models, H rows, W columns, D = H W entries, E of them, K directions, S statistics.
"""

import zlib

import numpy as np

STATISTICS = ("size", "distance", "spectrum", "outside", "foreign", "tails", "values")

# Differences below these are no news, however alike the training models are.
LEAST_S = np.array([0.02, 0.05, 0.05, 0.05, 0.05, 0.1, 0.3])

# Unusual only if large: a training model lies less outside of its own directions than others do.
ONE_SIDED_S = np.array([name in ("outside", "foreign") for name in STATISTICS])

_TINY = 1e-6  # relative to the centre; what is left is rounding


def statistics(
    x_NHW: np.ndarray,
    centre_ND: np.ndarray,
    is_centred: bool,
    basis_KE: np.ndarray,
    entries_E: np.ndarray,
) -> np.ndarray:
    """The statistics of a layer of models.

    Args:
      x_NHW: the sampled entries, finite.
      centre_ND: the mean of the tree's models, or for each model of the others.
      is_centred: whether models have more in common than by chance.
      basis_KE: orthonormal directions in which training models differ.
      entries_E: the entries, of D, that the directions are of.

    Returns:
      [N, S] float64, in the order of `STATISTICS`; NaN where a statistic makes no sense, as those
      of the rest of a layer that is a multiple of the centre.

    Example:
      >>> x = np.array([[[1.0, 0.0], [0.0, 2.0]]])
      >>> found = statistics(x, np.array([[2.0, 0, 0, 2]]), True, np.zeros([0, 4]), np.arange(4))
      >>> dict(zip(STATISTICS, found[0].round(2).tolist()))["size"]
      0.75
    """
    x_ND = np.float64(x_NHW).reshape(len(x_NHW), -1)
    lengths_N = np.linalg.norm(x_ND, axis=1)
    centre_lengths_N = np.maximum(np.linalg.norm(np.float64(centre_ND), axis=-1), 1e-30)
    along_N = np.vecdot(x_ND, centre_ND) / centre_lengths_N
    if is_centred:
        size_N, unit_N = along_N / centre_lengths_N, centre_lengths_N
        rest_ND = x_ND - size_N[:, None] * centre_ND
        rest_N = np.linalg.norm(rest_ND, axis=1)
        distance_N = _log(rest_N / unit_N)
    else:
        size_N, unit_N = _log(lengths_N), 1.0
        rest_ND, rest_N = x_ND, lengths_N
        distance_N = 1 - along_N / np.maximum(lengths_N, 1e-30)
    rest_NE = rest_ND[:, entries_E]
    outside_NE = rest_NE - (rest_NE @ basis_KE.T) @ basis_KE
    outside_N = np.linalg.norm(outside_NE, axis=1)
    of_rest_NX = np.stack(
        [
            _first_share(rest_ND.reshape(x_NHW.shape)),
            _log(outside_N / unit_N),
            _log(outside_N / np.maximum(np.linalg.norm(rest_NE, axis=1), 1e-30)),
            _kurtosis(rest_ND),
        ],
        axis=1,
    )
    there_N1 = (rest_N > _TINY * lengths_N)[:, None]
    of_rest_NX = np.where(there_N1, of_rest_NX, np.nan)
    return np.column_stack([size_N, distance_N, of_rest_NX, _different(x_NHW)])


def signature(x_NHW: np.ndarray) -> np.ndarray:
    """A checksum [N] of the signs of the entries, below 2**24; rounding the entries keeps it."""
    bits = np.packbits(np.signbit(x_NHW).reshape(len(x_NHW), -1), axis=1)
    return np.array([zlib.crc32(one.tobytes()) & 0xFFFFFF for one in bits], np.float32)


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


def directions(rest_NE: np.ndarray, count: int) -> np.ndarray:
    """The first principal directions [K, E] of models, orthonormal; K is at most `count`."""
    gram_NN = rest_NE @ rest_NE.T
    values_N, vectors_NN = np.linalg.eigh(gram_NN)
    kept = np.flatnonzero(values_N > 1e-12 * max(values_N[-1], 0.0))[::-1][:count]
    return (vectors_NN[:, kept] / np.sqrt(values_N[kept])).T @ rest_NE


def _log(value: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(value, 1e-12))


def _first_share(x_NHW: np.ndarray) -> np.ndarray:
    wide_NHW = x_NHW if x_NHW.shape[1] <= x_NHW.shape[2] else x_NHW.mT
    values_NH = np.linalg.eigvalsh(wide_NHW @ wide_NHW.mT)
    return _log(values_NH[:, -1] / np.maximum(values_NH.sum(axis=1), 1e-300))


def _kurtosis(x_ND: np.ndarray) -> np.ndarray:
    squares_ND = np.square(x_ND - x_ND.mean(axis=1, keepdims=True))
    means_N = np.maximum(squares_ND.mean(axis=1), 1e-150)
    return _log(np.square(squares_ND).mean(axis=1) / np.square(means_N))


def _different(x_NHW: np.ndarray) -> np.ndarray:
    ordered_NHW = np.sort(x_NHW, axis=2)
    steps_NH = np.sum(ordered_NHW[..., 1:] != ordered_NHW[..., :-1], axis=2)
    return _log((1 + steps_NH).mean(axis=1) / x_NHW.shape[2])
