"""What is usual of one layer in a tree, by a sample of its entries.

Letters: those of `layer_statistics`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from probex_jax.forest.layer_statistics import (
    STATISTICS,
    directions,
    distinct,
    is_random,
    rest,
    statistics,
)
from probex_jax.forest.soundness import Finding
from probex_jax.matrices import LowRank

_ROWS, _COLUMNS = 128, 128
_OF_A_ROW = 2**18  # entries in the rows of a sample, about
_FOLDS = 4
_IN_COMMON = 0.7  # median cosine of a model with the mean of the others
_UNLIKE = 0.3  # multiple of the centre, of what has little in common with it
_LARGEST = 1e36


class Sampled(NamedTuple):
    """What is looked at of a layer of models.

    Attributes:
      x_NHW: entries of some rows and columns.
      values_N: as of `distinct`.
    """

    x_NHW: np.ndarray
    values_N: np.ndarray

    @classmethod
    def of(cls, matrices: np.ndarray | LowRank, name: str, shape: tuple[int, int]) -> Sampled:
        """Of matrices [N, H, W]."""
        rows, columns = sample(name, *shape)
        if isinstance(matrices, LowRank):
            up, down = matrices.up[:, rows], matrices.down[..., columns]
            return cls(np.matmul(up, down, dtype=np.float64), distinct(matrices))
        return cls.of_rows(matrices[:, rows], columns)

    @classmethod
    def of_rows(cls, rows_NHW: np.ndarray, columns: np.ndarray) -> Sampled:
        """Of rows that were sampled already."""
        x_NHW = rows_NHW[..., columns]
        return cls(x_NHW, distinct(x_NHW))

    @classmethod
    def joined(cls, parts: Sequence[Sampled]) -> Sampled:
        """Of several lots of models."""
        return cls(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    @property
    def is_equal(self) -> bool:
        """Whether all entries are equal."""
        return bool(np.all(self.x_NHW == self.x_NHW.flat[0]))


@dataclass(frozen=True)
class UsualLayer:
    """What is usual of one layer.

    Args:
      name: of the layer.
      shape: (H, W) of its canonical matrix.
      is_centred: whether the models have more in common than by chance.
      may_vanish: whether it is all zeros in a training model.
      may_be_equal: whether all its entries are equal in a training model.
      centre_HW: mean of the sampled entries.
      left_HK: usual directions of columns.
      right_WK: usual directions of rows.
    """

    name: str
    shape: tuple[int, int]
    is_centred: bool
    may_vanish: bool
    may_be_equal: bool
    centre_HW: np.ndarray
    left_HK: np.ndarray
    right_WK: np.ndarray

    @classmethod
    def fit(
        cls, name: str, shape: tuple[int, int], sampled: Sampled
    ) -> tuple[UsualLayer, np.ndarray]:
        """The usual layer, and the statistics [N, S] of each training model without itself."""
        x_NHW = sampled.x_NHW.astype(np.float64)
        count, centre_HW = len(x_NHW), x_NHW.mean(axis=0)
        others_NHW = (count * centre_HW - x_NHW) / (count - 1)
        products_3N = [
            np.sum(a * b, axis=(1, 2))
            for a, b in ((x_NHW, others_NHW), (x_NHW, x_NHW), (others_NHW, others_NHW))
        ]
        cosines_N = products_3N[0] / np.sqrt(np.maximum(products_3N[1] * products_3N[2], 1e-60))
        is_centred = bool(np.median(cosines_N) > _IN_COMMON)
        rest_NHW = rest(x_NHW, centre_HW[None], is_centred)
        found_NS = np.empty([count, len(STATISTICS)])
        for fold in range(min(_FOLDS, count)):
            out_N = np.arange(count) % _FOLDS == fold
            found_NS[out_N] = statistics(
                x_NHW[out_N],
                sampled.values_N[out_N],
                others_NHW[out_N],
                is_centred,
                *directions(rest_NHW[~out_N]),
            )
        left_HK, right_WK = directions(rest_NHW)
        usual = cls(
            name,
            shape,
            is_centred,
            may_vanish=bool(np.any(np.all(x_NHW == 0, axis=(1, 2)))),
            may_be_equal=bool(np.any(np.ptp(x_NHW, axis=(1, 2)) == 0)),
            centre_HW=centre_HW.astype(np.float32),
            left_HK=left_HK.astype(np.float16),
            right_WK=right_WK.astype(np.float16),
        )
        return usual, found_NS

    @property
    def fits(self) -> bool:
        """Whether the arrays are of the sample's size."""
        height, width = map(len, sample(self.name, *self.shape))
        sides = self.left_HK.shape[:1] + self.right_WK.shape[:1]
        return self.centre_HW.shape == (height, width) and sides == (height, width)

    def measure(self, sampled: Sampled) -> np.ndarray:
        """The statistics [S] of a model's layer; NaN for one whose entries are all equal."""
        if sampled.is_equal:
            return np.full(len(STATISTICS), np.nan)
        x_NHW = np.clip(sampled.x_NHW, -_LARGEST, _LARGEST)  # so that no power overflows
        arrays = (a.astype(np.float64) for a in (self.centre_HW[None], self.left_HK, self.right_WK))
        centre_NHW, left_HK, right_WK = arrays
        [found_S] = statistics(
            x_NHW, sampled.values_N, centre_NHW, self.is_centred, left_HK, right_WK
        )
        return found_S

    def equal_entries(self, sampled: Sampled) -> Finding | None:
        """Says that entries are all zeros or all equal, if they are in no training model."""
        if not sampled.is_equal:
            return None
        value = float(sampled.x_NHW.flat[0])
        if not value:
            return None if self.may_vanish else Finding(self.name, "all zeros")
        return None if self.may_be_equal else Finding(self.name, "all equal", value)

    def finding(
        self,
        sampled: Sampled,
        found_S: np.ndarray,
        trained_NS: np.ndarray,
        scores_2S: np.ndarray,
    ) -> Finding:
        """The most unusual number of a model's layer.

        Args:
          sampled: of the model.
          found_S: its statistics.
          trained_NS: those of the training models.
          scores_2S: how unusual its statistics are, and how unusual beside those of other layers.
        """
        beside, statistic = divmod(int(np.argmax(scores_2S)), len(STATISTICS))
        fact, size = STATISTICS[statistic], found_S[STATISTICS.index("size")]
        is_unlike = not self.is_centred or abs(size) < _UNLIKE
        if is_unlike and is_random(sampled.x_NHW[0]) and not is_random(self.centre_HW):
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
