"""What is usual of one layer in a tree, by a sample of its entries.

Letters: those of `layer_statistics`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from probex_jax.forest.layer_statistics import STATISTICS, directions, is_random, statistics
from probex_jax.forest.soundness import Finding
from probex_jax.matrices import LowRank

_ROWS, _COLUMNS, _ENTRIES = 128, 128, 1024
_OF_A_ROW = 2**18  # entries in the rows of a sample, about
_DIRECTIONS, _PER_DIRECTION = 32, 4  # models that there are for each
_FOLDS = 4
_IN_COMMON = 0.7  # median cosine of a model with the mean of the others
_LARGEST = 1e36
_UNLIKE = 0.3  # multiple of the centre, of what has little in common with it


@dataclass(frozen=True)
class UsualLayer:
    """What is usual of one layer.

    Args:
      name: of the layer.
      shape: (H, W) of its canonical matrix.
      is_centred: whether the models have more in common than by chance.
      may_vanish: whether it is all zeros in a training model.
      may_be_equal: whether all its entries are equal in a training model.
      centre_D: mean of the sampled entries.
      basis_KE: directions in which training models differ.
    """

    name: str
    shape: tuple[int, int]
    is_centred: bool
    may_vanish: bool
    may_be_equal: bool
    centre_D: np.ndarray
    basis_KE: np.ndarray

    @classmethod
    def fit(
        cls, name: str, shape: tuple[int, int], x_NHW: np.ndarray
    ) -> tuple[UsualLayer, np.ndarray]:
        """The usual layer, and the statistics [N, S] of each training model without itself."""
        x_ND = np.float64(x_NHW).reshape(len(x_NHW), -1)
        count, centre_D = len(x_ND), x_ND.mean(axis=0)
        others_ND = (count * centre_D - x_ND) / (count - 1)
        lengths_N = np.linalg.norm(x_ND, axis=1) * np.linalg.norm(others_ND, axis=1)
        cosines_N = np.vecdot(x_ND, others_ND) / np.maximum(lengths_N, 1e-30)
        is_centred = bool(np.median(cosines_N) > _IN_COMMON)
        entries_E = _entries(x_ND.shape[1])
        rest_NE = (x_ND - centre_D if is_centred else x_ND)[:, entries_E]
        n_directions = min(_DIRECTIONS, max(1, count // _PER_DIRECTION))
        found_NS = np.empty([count, len(STATISTICS)])
        for fold in range(min(_FOLDS, count)):
            out_N = np.arange(count) % _FOLDS == fold
            basis_KE = directions(rest_NE[~out_N], n_directions)
            found_NS[out_N] = statistics(
                x_NHW[out_N], others_ND[out_N], is_centred, basis_KE, entries_E
            )
        usual = cls(
            name,
            shape,
            is_centred,
            may_vanish=bool(np.any(np.all(x_ND == 0, axis=1))),
            may_be_equal=bool(np.any(np.ptp(x_ND, axis=1) == 0)),
            centre_D=centre_D.astype(np.float32),
            basis_KE=directions(rest_NE, n_directions).astype(np.float16),
        )
        return usual, found_NS

    @property
    def fits(self) -> bool:
        """Whether the arrays are of the sample's size."""
        size = int(np.prod([len(places) for places in sample(self.name, *self.shape)]))
        return self.centre_D.shape == (size,) and self.basis_KE.shape[1:] == (len(_entries(size)),)

    def measure(self, x_HW: np.ndarray) -> np.ndarray:
        """The statistics [S] of a model's sample; NaN for one whose entries are all equal."""
        if _all_equal(x_HW):
            return np.full(len(STATISTICS), np.nan)
        centre_D, basis_KE = (a.astype(np.float64) for a in (self.centre_D, self.basis_KE))
        entries_E = _entries(x_HW.size)
        x_HW = np.clip(x_HW, -_LARGEST, _LARGEST)  # so that no power overflows
        [found_S] = statistics(x_HW[None], centre_D, self.is_centred, basis_KE, entries_E)
        return found_S

    def equal_entries(self, x_HW: np.ndarray) -> Finding | None:
        """Says that entries are all zeros or all equal, if they are in no training model."""
        if not _all_equal(x_HW):
            return None
        if not np.any(x_HW):
            return None if self.may_vanish else Finding(self.name, "all zeros")
        return None if self.may_be_equal else Finding(self.name, "all equal", float(x_HW.flat[0]))

    def finding(
        self, x_HW: np.ndarray, found_S: np.ndarray, trained_NS: np.ndarray, scores_2S: np.ndarray
    ) -> Finding:
        """The most unusual number of a model's layer.

        Args:
          x_HW: its sample.
          found_S: its statistics.
          trained_NS: those of the training models.
          scores_2S: how unusual its statistics are, and how unusual beside those of other layers.
        """
        place = int(np.argmax(scores_2S))
        beside, statistic = divmod(place, len(STATISTICS))
        fact, size = STATISTICS[statistic], found_S[STATISTICS.index("size")]
        is_unlike = not self.is_centred or abs(size) < _UNLIKE
        if is_unlike and is_random(x_HW) and not is_random(self.centre_D.reshape(x_HW.shape)):
            return Finding(self.name, "random", centred=self.is_centred)
        of_N = trained_NS[:, statistic]
        numbers = (found_S[statistic], np.nanmin(of_N), np.nanmax(of_N), np.nanmedian(of_N))
        value, low, high, usual = (self._plain(fact, float(number)) for number in numbers)
        low, high = min(low, high), max(low, high)
        return Finding(self.name, fact, value, low, high, usual, bool(beside), self.is_centred)

    def _plain(self, fact: str, value: float) -> float:
        """A statistic as people would say it: no logarithms, cosines instead of 1 - cosine."""
        if fact == "size" and self.is_centred:
            return value
        if fact == "distance" and not self.is_centred:
            return 1 - value
        return float(np.exp(value))


@lru_cache(4096)
def sample(name: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of a layer that are looked at: all of a small one."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), height, width])
    n_rows = min(height, _ROWS, max(16, _OF_A_ROW // width))
    rows = np.sort(rng.choice(height, n_rows, replace=False))
    return rows, np.sort(rng.choice(width, min(width, _COLUMNS), replace=False))


def sampled(matrices: np.ndarray | LowRank, name: str, shape: tuple[int, int]) -> np.ndarray:
    """The entries of matrices [..., H, W] that are looked at."""
    rows, columns = sample(name, *shape)
    if isinstance(matrices, LowRank):
        up, down = matrices.up[..., rows, :], matrices.down[..., columns]
        return np.matmul(up, down, dtype=np.float64)
    return matrices[..., rows[:, None], columns]


def _all_equal(x_HW: np.ndarray) -> bool:
    return bool(np.all(x_HW == x_HW.flat[0]))


@lru_cache(256)
def _entries(size: int) -> np.ndarray:
    """The entries of a sample that directions are of."""
    if size <= _ENTRIES:
        return np.arange(size)
    return np.sort(np.random.default_rng(size).choice(size, _ENTRIES, replace=False))
