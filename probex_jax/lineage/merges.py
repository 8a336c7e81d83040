"""Which models are merges of others, and with which weights.

A merge is a sum of its parents, each times its weight, with nothing left over: least squares on a
sample of the weights finds it. Models that were trained have a part of their own.

Letters: N models, D sampled entries, S parents, L layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

# Parents that are tried one set after the other, and the nearest models that these are of.
_SIZES = (2, 3, 4)
_NEAREST = {2: 16, 3: 14, 4: 9}
# What may be left of the distance to the nearest parent, before and after a fit of each layer.
_ROUGHLY, _LEFT = 0.35, 0.03
_LEAST_SHARE = 0.02
_LEAST_ENTRIES = 32  # of a layer whose shares are fitted
_LARGEST, _SMALLEST = 1.6, -1.2


@dataclass(frozen=True)
class Merge:
    """A model that is a sum of others.

    Args:
      parents: their numbers.
      coefficients: the weight of each; they add up to one.
      error: what is left, as a share of the distance to the nearest parent.
    """

    parents: tuple[int, ...]
    coefficients: tuple[float, ...]
    error: float


def find_merges(
    samples: np.ndarray,
    layers: Sequence[slice],
    weights: np.ndarray,
    nearest: Sequence[Sequence[int]],
    rounding: Sequence[float],
) -> dict[int, Merge]:
    """Finds the models that are merges of others.

    First sums with positive weights: of two, whose weights may differ from layer to layer, of three
    and four, and of as many as are near. Then, among models that are no merges, sums with one
    negative weight, as task arithmetic on a base makes.

    Args:
      samples: entries of the weights of all models at the same places [N, D].
      layers: where each layer's are.
      weights: how many entries each one stands for [D].
      nearest: of each model, those that may be its parents, the nearest first.
      rounding: of each model, the relative error of its dtype.

    Returns:
      The merges by number of the model.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> a, b, c = rng.normal(size=(3, 200))
      >>> models = np.stack([a, b, c, 0.3 * a + 0.7 * b])
      >>> others = [[k for k in range(4) if k != n] for n in range(4)]
      >>> found = find_merges(models, [slice(0, 200)], np.ones(200), others, [0] * 4)
      >>> {n: (m.parents, [round(c, 2) for c in m.coefficients]) for n, m in found.items()}
      {3: ((0, 1), [0.3, 0.7])}
    """
    scaled_ND = np.float64(samples) * np.sqrt(weights)
    found: dict[int, Merge] = {}
    for may_be_negative in (False, True):
        taken = set(found) if may_be_negative else set()
        more: dict[int, Merge] = {}
        for number in range(len(samples)):
            near = [other for other in nearest[number] if other not in taken]
            if number not in found:
                merge = _merge(scaled_ND, layers, number, near, rounding[number], may_be_negative)
                if merge is not None:
                    more[number] = merge
        found |= _one_a_relation(scaled_ND, more) if may_be_negative else more
    return found


def _merge(
    scaled_ND: np.ndarray,
    layers: Sequence[slice],
    number: int,
    near: Sequence[int],
    rounding: float,
    may_be_negative: bool,
) -> Merge | None:
    """The merge that a model is, of as few parents as explain it."""
    near = list(near[: max(_NEAREST.values())])
    if len(near) < 2:
        return None
    own_D = scaled_ND[number]
    apart_MD = scaled_ND[near] - own_D
    gram_MM = apart_MD @ apart_MD.T
    squared_M = np.diag(gram_MM)
    if not squared_M.min() > 0:
        return None
    # Rounding of the model and its parents is no part of any sum. What is left of a model that was
    # trained is most of its distance.
    rounded = rounding * float(np.linalg.norm(own_D)) / np.sqrt(squared_M.min())
    allowed = min(_LEFT + rounded, _ROUGHLY)
    for size in _SIZES:
        sets = np.array([*itertools.combinations(range(min(len(near), _NEAREST[size])), size)])
        if not sets.size:
            continue
        shares, left = _affine(gram_MM, sets)
        if size == 2:  # their shares may differ from layer to layer
            left = np.minimum(left, _by_layer(apart_MD, layers, sets))
        rough = np.sqrt(left / squared_M[sets].min(1)) < _ROUGHLY
        usable = rough & _plausible(shares, may_be_negative)
        best: Merge | None = None
        for place in np.flatnonzero(usable)[np.argsort(left[usable])][:8]:
            chosen = [near[each] for each in sets[place]]
            fitted = _fitted(scaled_ND, layers, number, chosen)
            is_better = best is None or fitted.error < best.error
            shares_KS = np.array([fitted.coefficients])
            if fitted.error < allowed and is_better and _plausible(shares_KS, may_be_negative)[0]:
                best = fitted
        if best is not None:
            return best
    return None if may_be_negative else _of_many(scaled_ND, layers, number, near, allowed)


def _by_layer(apart_MD: np.ndarray, layers: Sequence[slice], pairs_K2: np.ndarray) -> np.ndarray:
    """The square that pairs with the best shares in each layer leave over [K]."""
    left_K = np.zeros(len(pairs_K2))
    for layer in layers:
        gram_MM = apart_MD[:, layer] @ apart_MD[:, layer].T
        one, other = pairs_K2.T
        a, b, c = gram_MM[one, one], gram_MM[other, other], gram_MM[one, other]
        between = a + b - 2 * c
        share = np.where(between > 0, (b - c) / np.where(between > 0, between, 1), 0.0)
        left_K += share**2 * a + (1 - share) ** 2 * b + 2 * share * (1 - share) * c
    return np.maximum(left_K, 0)


def _of_many(
    scaled_ND: np.ndarray, layers: Sequence[slice], number: int, near: Sequence[int], allowed: float
) -> Merge | None:
    """The merge of more parents than are tried one by one, by non-negative least squares."""
    from scipy.optimize import nnls  # slow to import

    theirs_MD = scaled_ND[near]
    gram_MM = theirs_MD @ theirs_MD.T
    factor_MM = np.linalg.cholesky(gram_MM + 1e-9 * np.trace(gram_MM) * np.eye(len(near)))
    wanted_M = solve_triangular(factor_MM, theirs_MD @ scaled_ND[number], lower=True)
    shares_M, _ = nnls(factor_MM.T, wanted_M)
    parents = [one for one, share in zip(near, shares_M, strict=True) if share > _LEAST_SHARE]
    if len(parents) <= _SIZES[-1]:
        return None
    fitted = _fitted(scaled_ND, layers, number, parents)
    is_right = fitted.error < allowed and _plausible(np.array([fitted.coefficients]), False)[0]
    return fitted if is_right else None


def _affine(gram_MM: np.ndarray, sets_KS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares [K, S] that add up to one with the least left over, and its square [K]."""
    gram_KSS = gram_MM[sets_KS[:, :, None], sets_KS[:, None, :]]
    size = gram_KSS.shape[1]
    ridge = 1e-12 * np.trace(gram_KSS, axis1=1, axis2=2)[:, None, None] * np.eye(size)
    raw_KS = np.linalg.solve(gram_KSS + ridge, np.ones((len(sets_KS), size, 1)))[..., 0]
    total_K = raw_KS.sum(1)
    shares_KS = raw_KS / total_K[:, None]
    return shares_KS, np.maximum(np.einsum("ks,kst,kt->k", shares_KS, gram_KSS, shares_KS), 0)


def _plausible(shares_KS: np.ndarray, may_be_negative: bool) -> np.ndarray:
    counts = (np.abs(shares_KS) > _LEAST_SHARE).all(1) & (shares_KS < _LARGEST).all(1)
    negative_K = (shares_KS < 0).sum(1)
    if not may_be_negative:
        return counts & (negative_K == 0)
    return counts & (negative_K == 1) & (shares_KS > _SMALLEST).all(1)


def _fitted(
    scaled_ND: np.ndarray, layers: Sequence[slice], number: int, parents: Sequence[int]
) -> Merge:
    """The weights of parents fitted layer by layer; on an arc they add up to a little over one."""
    totals, left, mass = np.zeros(len(parents)), 0.0, 0.0
    for layer in layers:
        own, theirs = scaled_ND[number, layer], scaled_ND[parents, layer]
        apart = np.square(theirs - own).sum(1).max()
        if len(own) < _LEAST_ENTRIES or not apart > 0:
            continue
        shares = np.linalg.lstsq(theirs.T, own, rcond=None)[0]
        totals += apart * shares
        left += np.square(own - shares @ theirs).sum()
        mass += apart
    nearest = np.square(scaled_ND[parents] - scaled_ND[number]).sum(1).min()
    total = totals.sum()
    if not mass > 0 or not total > 0:
        return Merge(tuple(parents), (0.0,) * len(parents), np.inf)
    shares = totals / total
    return Merge(tuple(parents), tuple(shares.tolist()), float(np.sqrt(left / nearest)))


def _one_a_relation(scaled_ND: np.ndarray, merges: Mapping[int, Merge]) -> dict[int, Merge]:
    """Of a sum that makes each of its models one of the others, that whose base is the shortest.

    Each has another parent with a negative weight, its base. Training adds to the length, so the
    true base, from which all of them descend, is the shortest.
    """
    lengths_N = np.square(scaled_ND).sum(1)

    def of_base(number: int) -> float:
        merge = merges[number]
        return float(lengths_N[merge.parents[int(np.argmin(merge.coefficients))]])

    by_models: dict[frozenset[int], int] = {}
    for number, merge in merges.items():
        models = frozenset({number, *merge.parents})
        known = by_models.get(models)
        if known is None or of_base(number) < of_base(known):
            by_models[models] = number
    kept = {*by_models.values()}
    return {number: merge for number, merge in merges.items() if number in kept}
