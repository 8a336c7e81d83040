"""Two models layer by layer: how far apart, how one may be made of the other, and which is which.

A child is its parent plus what training added. What is added is nearly at right angles to weights
of thousands of dimensions, so that the child is the longer one; and weight decay shortens all
matrices by one share. `Relation.direction` asks which of two models explains the other so. Pruned
and rounded copies give themselves away by their entries.

Letters: L layers, all arrays float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from probex_jax.matrices import LowRank
from probex_jax.model_files import ModelFile
from probex_jax.model_files.architecture import are_statistics, backbone

_ENTRIES = 2**22  # that are compared of a model, about, in whole rows

# Of entries, those that must be as pruning or rounding leaves them.
_NEARLY_ALL = 0.99
_BLOCK = 32  # entries of a row that share a scale, at least, in formats of quantised weights
_LEAST_BLOCK = 8
_REPEATED = 0.02  # share of equal neighbours in sorted blocks from which they look rounded
# Where the spectrum of a difference is looked at, and what may be left beyond its rank.
_PROBED, _PROBED_ROWS, _PROBED_COLUMNS = 8, 128, 256
_REST = 1e-4
REORDERED = 0.3  # distance, as a share of the length, from which units may be in another order
# Cosines below which units are looked for in another order, and above which they are found.
_FEATURES = 256  # of a unit that is looked for in another order
_FAR, _MATCHED, _MOSTLY = 0.5, 0.5, 0.9
_ROUNDED_ROWS = 64  # of a matrix that are looked at for rounding, about
_HALF_A_STEP = 0.5005

# What is known of directions by pruning or rounding, as a logit.
_CERTAIN = 5.0
# Logits of both kinds of evidence; fitted on families of seeds 100 and 300 (results/lineage.md).
_OF_FIT, _OF_LENGTH = 3.0, 3.6
# Standard deviation of a layer's misfit in units of its squared distance; most of it that counts.
_MISFIT, _MOST_MISFIT = 0.5, 3.0
_MOST_SHRUNK = 0.1


@dataclass(frozen=True, eq=False)
class Relation:
    """The layers that two models share, heads and statistics left out.

    Args:
      names: of the layers in the first model.
      sizes: how many entries of each layer were compared [L].
      entries: how many entries each layer has [L].
      is_matrix: whether it is no vector [L].
      one: squared lengths in the first model [L].
      other: squared lengths in the second [L].
      inner: inner products of both [L].
      pruned: 1 if the second model is the first one with entries set to zero, -1 if the first is
        the second one so, else 0.
      rounded: the same of entries that were rounded to a few values.
      unchanged: share of the layers that are equal.
      is_low_rank: whether all matrices that differ do so by a matrix of low rank.
      is_white: whether they do so by noise without directions.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    entries: np.ndarray
    is_matrix: np.ndarray
    one: np.ndarray
    other: np.ndarray
    inner: np.ndarray
    pruned: int
    rounded: int
    unchanged: float
    is_low_rank: bool
    is_white: bool

    @property
    def squared(self) -> np.ndarray:
        """Squared distances of all entries of the layers [L], as those compared estimate them."""
        return np.maximum(self.one + self.other - 2 * self.inner, 0) * self.entries / self.sizes

    @property
    def distance(self) -> float:
        """The L2 distance, as a share of the first model's length."""
        length = (self.one * self.entries / self.sizes).sum()
        return math.sqrt(self.squared.sum() / length) if length else 0.0

    @property
    def direction(self) -> float:
        """The log odds that the second is derived from the first, if one is of the other."""
        if explained := self.pruned or self.rounded:
            return _CERTAIN * explained
        forward, backward = self._misfits
        apart = (self.one + self.other - 2 * self.inner).sum()
        if not apart > 0:
            return 0.0
        # The inner product with what was added is random, too: in few entries it hides the rest.
        noise = 4 * min(self.one.sum(), self.other.sum()) / apart / self.sizes.sum()
        longer = math.tanh((self.other - self.one).sum() / apart) / math.sqrt(1 + noise)
        return float(_OF_FIT * (backward - forward) + _OF_LENGTH * longer)

    @property
    def _misfits(self) -> tuple[float, float]:
        """How badly the second fits as the first's child, and the first as the second's.

        A child differs from its parent at right angles to it. Means of squares over layers, 0 for
        a perfect fit; 1 is usual between children of one parent.
        """
        if self.pruned or self.rounded:
            return (0.0, 1.0) if self.pruned + self.rounded > 0 else (1.0, 0.0)
        differs = self.one + self.other - 2 * self.inner > 1e-10 * (self.one + self.other)
        if not differs.any():
            return 0.0, 0.0
        a, b, c, n, m = (
            x[differs] for x in (self.one, self.other, self.inner, self.sizes, self.is_matrix)
        )
        return _misfit(a, b, c, n, m), _misfit(b, a, c, n, m)

    @property
    def kind(self) -> str:
        """What makes the second model of the first, one of `lineage.KINDS`."""
        if self.pruned or self.rounded:
            return "pruned" if self.pruned else "quantised"
        return "LoRA merged" if self.is_low_rank else "noised" if self.is_white else "fine-tune"

    def farthest(self, count: int) -> tuple[str, ...]:
        """The layers that differ most, as a share of their length, the most first."""
        share = self.squared / np.maximum(self.one * self.entries / self.sizes, 1e-30)
        order = np.argsort(-share, kind="stable")[:count]
        return tuple(self.names[place] for place in order if share[place] > 0)


def _misfit(
    parent: np.ndarray, child: np.ndarray, inner: np.ndarray, sizes: np.ndarray, matrix: np.ndarray
) -> float:
    """How badly layers fit `child = share · parent + something at right angles`, matrices shrunk by
    one share and vectors not at all; a mean of squares, in units of what is usual."""
    apart = parent + child - 2 * inner
    along, length = (inner - parent) / apart, parent / apart
    weights = 1 / (_MISFIT**2 + length / sizes)
    shrunk = 0.0
    if matrix.any():
        w, x, y = weights[matrix], along[matrix], length[matrix]
        shrunk = float(np.clip(-(w * x * y).sum() / (w * y * y).sum(), 0, _MOST_SHRUNK))
    rest = along + np.where(matrix, shrunk, 0) * length
    return float((weights * np.minimum(rest**2, _MOST_MISFIT**2)).mean())


def relate(
    one: ModelFile,
    other: ModelFile,
    pairs: Mapping[str, str],
    *,
    kinds: bool = True,
    permuted: bool = False,
) -> Relation:
    """Compares two models layer by layer, of large ones some millions of entries.

    Args:
      one: a model, open.
      other: another one.
      pairs: name of each layer in `one` to its name in `other`.
      kinds: whether to look at the spectra of differences, by which `kind` tells LoRAs and noise.
      permuted: whether to find the order of units in which matrices of `other` that are far from
        those of `one` are near to them; vectors are left out then.

    Returns:
      How they relate.

    Raises:
      ProbexError: if a layer cannot be read.

    Example:
      >>> from probex_jax.model_files import open_params
      >>> rng = np.random.default_rng(0)
      >>> parent = rng.normal(size=(200, 100))
      >>> child = parent + 0.1 * rng.normal(size=(200, 100))
      >>> models = [open_params({"a.weight": x}) for x in (parent, child)]
      >>> found = relate(*models, {"a.weight": "a.weight"})
      >>> round(found.distance, 2), bool(found.direction > 0)
      (0.1, True)
    """
    names = backbone(name for name in pairs if not are_statistics(name))
    if permuted:
        names = [name for name in names if name in one.layers]
    each = max(1, _ENTRIES // max(len(names), 1))
    counts = _Counts(_PROBED if kinds else 0)
    rows = []
    for name in names:
        a, b = _entries(one, name, each), _entries(other, pairs[name], each)
        if isinstance(a, LowRank) and isinstance(b, LowRank):
            moments = _inner(a, a), _inner(b, b), _inner(a, b)
            size = a.up.shape[0] * a.down.shape[1]
            equal = moments[0] == moments[1] == moments[2]
        else:
            a_HW, b_HW = np.asarray(a, np.float32), np.asarray(b, np.float32)
            moments = _moments(a_HW, b_HW)
            if permuted and moments[2] < _FAR * math.sqrt(moments[0] * moments[1]):
                # Units can be found again in whole layers only.
                a_HW, b_HW = (
                    np.asarray(x, np.float32) for x in (one.matrix(name), other.matrix(pairs[name]))
                )
                b_HW = in_order_of(a_HW, b_HW)
                moments = _moments(a_HW, b_HW)
            size, equal = a_HW.size, bool((a_HW == b_HW).all())
            if name in one.layers:
                counts.add(a_HW, b_HW)
        rows.append((size, math.prod(one.all_layers[name].shape), *moments, equal))
    size_L, entries_L, one_L, other_L, inner_L, equal_L = (
        np.array(rows, np.float64).reshape(-1, 6).T
    )
    return Relation(
        names=tuple(names),
        sizes=size_L,
        entries=entries_L,
        is_matrix=np.array([name in one.layers for name in names], bool),
        one=one_L,
        other=other_L,
        inner=inner_L,
        pruned=counts.pruned,
        rounded=counts.rounded,
        is_low_rank=counts.is_low_rank,
        is_white=counts.is_white,
        unchanged=float(equal_L.mean()) if rows else 0.0,
    )


def _entries(model: ModelFile, name: str, most: int) -> np.ndarray | LowRank:
    """A layer, or some of its rows, spread over it."""
    height, width = model.all_layers[name].shape
    if model.all_layers[name].is_update or height * width <= most:
        return model.matrix(name)
    return model.rows(name, [*range(0, height, -(-height * width // most))])


def _moments(a_HW: np.ndarray, b_HW: np.ndarray) -> tuple[float, float, float]:
    # Not by BLAS, whose threads cost more than such short products.
    aa, bb, ab = (
        float(np.einsum("i,i->", x.ravel(), y.ravel(), dtype=np.float64))
        for x, y in ((a_HW, a_HW), (b_HW, b_HW), (a_HW, b_HW))
    )
    return aa, bb, ab


def _inner(a: LowRank, b: LowRank) -> float:
    """The inner product of two updates that are not multiplied out."""
    a_up, a_down, b_up, b_down = (np.asarray(x, np.float64) for x in (a.up, a.down, b.up, b.down))
    return float(((a_up.T @ b_up) * (a_down @ b_down.T)).sum())


class _Counts:
    """Whether entries of matrices are as pruning or rounding one of them leaves them."""

    def __init__(self, most_spectra: int) -> None:
        self._most_spectra = most_spectra
        self._total = 0
        self._zeros = np.zeros(2)
        self._kept = np.zeros(2)
        self._near = np.zeros(2)
        self._asked = 0
        self._differ = 0
        self._low_ranks: list[bool] = []
        self._whites: list[bool] = []

    def add(self, a_HW: np.ndarray, b_HW: np.ndarray) -> None:
        self._total += a_HW.size
        differ = int((a_HW != b_HW).sum())
        self._differ += differ
        if differ and len(self._whites) < self._most_spectra and min(a_HW.shape) >= _LEAST_BLOCK:
            is_low_rank, is_white = _spectrum(a_HW[:_PROBED_ROWS] - b_HW[:_PROBED_ROWS])
            self._low_ranks.append(is_low_rank)
            self._whites.append(is_white)
        some = slice(None, None, -(-len(a_HW) // _ROUNDED_ROWS))
        self._asked += a_HW[some].size
        for side, (origin, copy) in enumerate(((a_HW, b_HW), (b_HW, a_HW))):
            zeros = copy == 0
            self._zeros[side] += zeros.sum()
            self._kept[side] += ((copy == origin) | zeros).sum() if differ else copy.size
            self._near[side] += _within_half_a_step(origin[some], copy[some])

    @property
    def pruned(self) -> int:
        more = self._zeros - self._zeros[::-1] > 0.02 * self._total
        return self._side(self._kept / max(self._total, 1), more)

    @property
    def rounded(self) -> int:
        return self._side(self._near / max(self._asked, 1), self._near > 0)

    @property
    def is_low_rank(self) -> bool:
        return bool(self._low_ranks) and all(self._low_ranks)

    @property
    def is_white(self) -> bool:
        return bool(self._whites) and all(self._whites)

    def _side(self, share: np.ndarray, which: np.ndarray) -> int:
        holds = which & (share > _NEARLY_ALL) & (self._differ > 0)
        return int(holds[0]) - int(holds[1])


def _spectrum(x_HW: np.ndarray) -> tuple[bool, bool]:
    """Whether a difference has a low rank, and whether it is noise, by its singular values."""
    values = np.linalg.svd(np.float64(x_HW[:, :_PROBED_COLUMNS]), compute_uv=False)
    squares = values**2
    rank = int(np.searchsorted(np.cumsum(squares), (1 - _REST) * squares.sum())) + 1
    # The largest of noise (Marchenko and Pastur, 1967).
    height, width = x_HW[:, :_PROBED_COLUMNS].shape
    edge = math.sqrt(squares.sum() / (height * width)) * (math.sqrt(height) + math.sqrt(width))
    return rank <= len(values) // 4, bool(values[0] < 1.2 * edge)


def in_order_of(like_HW: np.ndarray, x_HW: np.ndarray) -> np.ndarray:
    """A matrix with its rows, or else its columns, in the order in which they match another's.

    Args:
      like_HW: the other one.
      x_HW: the matrix.

    Returns:
      The reordered matrix; `x_HW` if neither rows nor columns can be matched one to one.

    Example:
      >>> like = np.random.default_rng(0).normal(size=(6, 4))
      >>> bool((in_order_of(like, like[[3, 1, 0, 5, 2, 4]]) == like).all())
      True
    """
    for transposed in (False, True):
        a, b = (like_HW.T, x_HW.T) if transposed else (like_HW, x_HW)
        unit_a, unit_b = (_units(x[:, :: -(-x.shape[1] // _FEATURES)]) for x in (a, b))
        cosines = unit_a @ unit_b.T
        order = cosines.argmax(1)
        matched = cosines[np.arange(len(a)), order] > _MATCHED
        if len(np.unique(order)) == len(order) and matched.mean() > _MOSTLY:
            return b[order].T if transposed else b[order]
    return x_HW


def _units(x_NF: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return x_NF / np.maximum(np.linalg.norm(x_NF, axis=1, keepdims=True), 1e-30)


def _within_half_a_step(origin: np.ndarray, copy: np.ndarray) -> int:
    """How many entries are no farther than rounding to the copy's own values takes them."""
    columns = copy.shape[1]
    width = next(w for w in range(min(_BLOCK, columns), 0, -1) if columns % w == 0)
    width = width if width >= _LEAST_BLOCK else columns
    blocks = copy.reshape(-1, width)
    least = 1e-6 * np.abs(blocks).max(1, keepdims=True)
    gaps = np.diff(np.sort(blocks, axis=1), axis=1)
    # Zeros may be pruned ones.
    if not gaps.size or (gaps <= least).mean() < _REPEATED:
        return 0
    steps = np.where(gaps > least, gaps, np.inf).min(1, keepdims=True)
    apart = np.abs(origin.reshape(-1, width) - blocks)
    return int((apart <= _HALF_A_STEP * np.where(np.isfinite(steps), steps, 0)).sum())
