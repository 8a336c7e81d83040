"""Layers together: ridge regression on a weighted sum of their kernels.

    K = sum_k w_k K_k,   K_k centred, of mean diagonal 1

is one kernel for all layers k, in which those count most that tell most by themselves. With l_k the
cross-validated loss of ridge regression on K_k alone and l_0 that of the mean of the targets,

    w_k = mean over e of  max(0, l_0 - l_k)^e / sum_j max(0, l_0 - l_j)^e

with the powers e = 0 and 4, or 2, 4 and 8 where that lowers the loss in every part that is left
out. So weights are computed for each part without it, from losses of the other parts: weights that
know a part's labels promise more of it than they keep, the sharper ones most. Such outputs also
choose the penalty and the scale of the logits; the last fit uses every model. With fewer than three
parts, with more than `MOST_PAIRED` models, and where features of a layer are chosen, e is 0 and 4,
and weights for every part are those of all.

References:
  Gönen, Alpaydın: Multiple Kernel Learning Algorithms, JMLR 2011 (section 3.2, heuristics).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from probex_jax.fitting.ridge import Chosen, Kernel, Regression, centred, choose_each, threads_for

_POWERS, _SHARPER = (0, 4), (2, 4, 8)
# Sums of kernels, and kernels that are read, that are in memory at a time.
_SUM_BYTES, _BLOCK_BYTES = 2**29, 2**26


class Alone(NamedTuple):
    """What each layer tells by itself.

    Args:
      chosen: layer to what cross-validation chose for it.
      gains: layer to how much lower its loss is than that of the mean of the others' targets.
      units: layer to what gives its kernel, centred, the mean diagonal 1: [1 + F], of features that
        know all targets, and without those of each part.
      without: layer to [F], the gains without each part that is left out; None where they are not
        computed for every layer.
    """

    chosen: Mapping[str, Chosen]
    gains: Mapping[str, float]
    units: Mapping[str, np.ndarray]
    without: Mapping[str, np.ndarray] | None = None


def best(each: Sequence[Alone], most: int | None, sizes: Mapping[str, int], room: int) -> list[str]:
    """The layers that tell most by themselves, the best first.

    Args:
      each: what they tell, of one thing or of several.
      most: how many; None for all.
      sizes: layer to the number of its parameters.
      room: the number of parameters that they may have together; if none has so few, the best one
        is kept.
    """

    def loss(layer: str) -> float:  # as a share of what is lost without the layer
        losses = [(alone.chosen[layer].loss, alone.gains[layer]) for alone in each]
        return sum(loss / max(loss + gain, 1e-12) for loss, gain in losses)

    order, kept, taken = sorted(each[0].chosen, key=loss)[:most], [], 0
    for layer in order:
        if taken + sizes[layer] <= room:
            kept.append(layer)
            taken += sizes[layer]
    return kept or order[:1]


class Together(NamedTuple):
    """What layers tell together.

    Args:
      weights: layer to its share of the kernel, of those that have any; they add up to one.
      chosen: what cross-validation chose.
      solution: layer to [N, Y] float64: the logits are sums over layers and over the N models of
        the inner products with their matrices, times these, and a bias.
      bias: [Y] float64.
    """

    weights: Mapping[str, float]
    chosen: Chosen
    solution: Mapping[str, np.ndarray]
    bias: np.ndarray


def fit_alone(kernels: Mapping[str, Kernel], regressions: Sequence[Regression]) -> list[Alone]:
    """Fits ridge regressions to each layer, of each of which the kernel is read once.

    Args:
      kernels: layer to the inner products of its matrices.
      regressions: of what; of their models those of the same models and parts share their
        factorisations.

    Raises:
      ProbexError: if the matrices of a layer are all the same, or not finite.
    """
    groups: dict[Any, list[int]] = {}
    for number, each in enumerate(regressions):
        known = None if each.models is None else each.models.tobytes()
        groups.setdefault((known, each.fold_N.tobytes(), each.refit), []).append(number)
    found: list[dict[str, tuple[Chosen, np.ndarray | None]]] = [{} for _ in regressions]
    units: list[dict[str, np.ndarray]] = [{} for _ in regressions]
    with threads_for(max(len(each.y) for each in regressions)):
        for layer in kernels:
            kernel = kernels[layer]
            for group in groups.values():
                members = [regressions[number] for number in group]
                own = kernel.of(members[0].models)
                unit = np.array([_unit(each) for each in (own.whole, *_or_none(own.without))])
                for number, told in zip(group, choose_each(own, members), strict=True):
                    found[number][layer], units[number][layer] = told, unit
        return list(map(_alone, found, units, regressions))


def _or_none(without_FNN: np.ndarray | None) -> Sequence[np.ndarray]:
    return () if without_FNN is None else [*without_FNN]


def _alone(
    found: Mapping[str, tuple[Chosen, np.ndarray | None]],
    units: Mapping[str, np.ndarray],
    regression: Regression,
) -> Alone:
    prior, priors_F = regression.prior_losses()
    chosen = {layer: each for layer, (each, _) in found.items()}
    gains = {layer: prior - each.loss for layer, each in chosen.items()}
    losses = {layer: of for layer, (_, of) in found.items() if of is not None}
    if priors_F is None or len(losses) < len(found):
        return Alone(chosen, gains, units)
    without = {layer: priors_F - losses_F for layer, losses_F in losses.items()}
    return Alone(chosen, gains, units, without)


def fit_together(
    kernels: Mapping[str, Kernel],
    layers: Sequence[str],
    each: Sequence[Alone],
    regressions: Sequence[Regression],
) -> list[Together]:
    """Fits one ridge regression of each kind to several layers.

    Args:
      kernels, regressions: as `fit_alone` takes them.
      layers: those that take part.
      each: what they tell by themselves.

    Example:
      >>> from probex_jax.fitting.ridge import folds
      >>> from probex_jax.fitting.task import SeveralClasses
      >>> rng, task = np.random.default_rng(0), SeveralClasses()
      >>> layers = {"told": rng.normal(size=(40, 6)), "noise": rng.normal(size=(40, 6))}
      >>> y = (layers["told"][:, :1] > 0).astype(float)
      >>> kernels = {name: Kernel(x @ x.T) for name, x in layers.items()}
      >>> asked = [Regression(task, y, 2 * y - 1, [0.1, 1.0], folds(task, y))]
      >>> [found] = fit_together(kernels, [*layers], fit_alone(kernels, asked), asked)
      >>> found.weights["told"] > found.weights["noise"]
      True
      >>> logits = sum(layers[k] @ (layers[k].T @ found.solution[k]) for k in layers) + found.bias
      >>> bool(((logits > 0) == y).mean() > 0.9)
      True
    """
    tried = [
        (number, _weighing(layers, alone, regression, powers))
        for number, (alone, regression) in enumerate(zip(each, regressions, strict=True))
        for powers in ((_POWERS, _SHARPER) if _is_paired(alone, layers) else (_POWERS,))
    ]
    found: dict[int, tuple[Chosen, _Weighing, tuple[np.ndarray, np.ndarray]]] = {}
    with threads_for(max(len(one.y) for one in regressions)):
        for (number, weighing), kernel in zip(
            tried, _sums(kernels, layers, [weighing for _, weighing in tried]), strict=True
        ):
            regression = regressions[number]
            own = kernel.of(regression.models)
            chosen = regression.choose(own)
            if number not in found or _is_better(chosen, found[number][0], regression):
                solved = regression.solve(own.whole, chosen.penalty)
                found[number] = chosen, weighing, solved
    return [_together(layers, *found[number]) for number in range(len(regressions))]


def _together(
    layers: Sequence[str],
    chosen: Chosen,
    weighing: _Weighing,
    solved: tuple[np.ndarray, np.ndarray],
) -> Together:
    alpha_NY, intercept_Y = solved
    share_K, scale_K = weighing.shares, weighing.whole
    weights = {n: float(share) for n, share in zip(layers, share_K, strict=True) if share > 0}
    scales = dict(zip(layers, scale_K, strict=True))
    solution = {layer: chosen.factor * scales[layer] * alpha_NY for layer in weights}
    return Together(weights, chosen, solution, chosen.factor * intercept_Y)


def merged(each: Sequence[Together], regressions: Sequence[Regression]) -> Together:
    """Solutions of several regressions side by side, as one; the layers' weights are their mean.

    What was chosen is that of the first one.
    """
    if len(each) == 1 and regressions[0].models is None:
        return each[0]
    n_models = max(
        len(one.y) if one.models is None else one.models.max() + 1 for one in regressions
    )
    weights = {
        layer: float(np.mean([found.weights.get(layer, 0.0) for found in each]))
        for layer in dict.fromkeys(layer for found in each for layer in found.weights)
    }
    solution: dict[str, list[np.ndarray]] = {layer: [] for layer in weights}
    for found, one in zip(each, regressions, strict=True):
        own = slice(None) if one.models is None else one.models
        for layer, columns in solution.items():
            whole_NY = np.zeros([n_models, one.targets_NY.shape[1]])
            if layer in found.solution:
                whole_NY[own] = found.solution[layer]
            columns.append(whole_NY)
    together = {layer: np.concatenate(columns, axis=1) for layer, columns in solution.items()}
    bias_Y = np.concatenate([found.bias for found in each])
    return Together(weights, each[0].chosen, together, bias_Y)


class _Weighing(NamedTuple):
    """Coefficients of K kernels in a sum.

    Args:
      shares: [K]: their shares of it.
      whole: [K]: what they are multiplied by.
      without: [F, K]: the same without each part; None where that is no other sum.
    """

    shares: np.ndarray
    whole: np.ndarray
    without: np.ndarray | None


def _is_paired(alone: Alone, layers: Sequence[str]) -> bool:
    return alone.without is not None and len(layers) > 1


def _weighing(
    layers: Sequence[str], alone: Alone, regression: Regression, powers: Sequence[int]
) -> _Weighing:
    unit_K1F = [alone.units[layer] for layer in layers]
    unit_K = np.array([unit_1F[0] for unit_1F in unit_K1F])
    share_K = _shares(np.array([alone.gains[layer] for layer in layers]), powers)
    if _is_paired(alone, layers):
        assert alone.without is not None
        gain_KF = np.stack([alone.without[layer] for layer in layers])
        share_FK = np.stack([_shares(gain_K, powers) for gain_K in gain_KF.T])
        return _Weighing(share_K, share_K * unit_K, share_FK * unit_K)
    if all(len(unit_1F) == 1 for unit_1F in unit_K1F):
        return _Weighing(share_K, share_K * unit_K, None)
    n_parts = len(regression.parts)
    unit_KF = np.stack([np.resize(unit_1F[-n_parts:], n_parts) for unit_1F in unit_K1F])
    return _Weighing(share_K, share_K * unit_K, share_K * unit_KF.T)


def _sums(
    kernels: Mapping[str, Kernel], layers: Sequence[str], weighings: Sequence[_Weighing]
) -> Iterator[Kernel]:
    """The sum of the kernels of layers for each weighing: of several at once, as one product."""
    n_models = len(kernels[layers[0]].whole)
    rows = [np.stack([one.whole, *_or_none(one.without)]) for one in weighings]
    most = max(1, _SUM_BYTES // (8 * n_models**2 * max(map(len, rows))))
    for start in range(0, len(rows), most):
        chunk = rows[start : start + most]
        part_S = np.concatenate([np.arange(len(row_RK)) for row_RK in chunk]) - 1
        total_SNN = _summed(kernels, layers, np.concatenate(chunk), part_S)
        for whole_NN, *without in np.split(total_SNN, np.flatnonzero(part_S < 0)[1:]):
            yield Kernel(whole_NN, np.stack(without) if without else None)


def _summed(
    kernels: Mapping[str, Kernel],
    layers: Sequence[str],
    coefficient_SK: np.ndarray,
    part_S: np.ndarray,
) -> np.ndarray:
    """[S, N, N]: sums of kernels, those without a part where there is one, below 0 of all."""
    n_models = len(kernels[layers[0]].whole)
    total_SM = np.zeros([len(coefficient_SK), n_models**2])
    size = max(1, _BLOCK_BYTES // (8 * n_models**2))
    for start in range(0, len(layers), size):
        block = [kernels[layer] for layer in layers[start : start + size]]
        own_SB = coefficient_SK[:, start : start + size]
        if all(kernel.without is None for kernel in block):
            total_SM += own_SB @ np.stack([kernel.whole.ravel() for kernel in block])
            continue
        for part in np.unique(part_S):
            own = np.flatnonzero(part_S == part)
            chosen = [kernel.whole if part < 0 else kernel.left_out(part) for kernel in block]
            total_SM[own] += own_SB[own] @ np.stack([each.ravel() for each in chosen])
    return total_SM.reshape(-1, n_models, n_models)


def _unit(kernel_NN: np.ndarray) -> float:
    """What gives a kernel, centred, the mean diagonal 1."""
    return len(kernel_NN) / float(np.trace(centred(kernel_NN)))


def _shares(gain_K: np.ndarray, powers: Sequence[int]) -> np.ndarray:
    """[K]: shares of the kernel."""
    gain_K = np.maximum(gain_K, 0.0)
    if not gain_K.any():
        gain_K = np.ones(len(gain_K))
    powers_EK = np.stack([(gain_K / gain_K.max()) ** power for power in powers])
    return (powers_EK / powers_EK.sum(axis=1, keepdims=True)).mean(axis=0)


def _is_better(chosen: Chosen, before: Chosen, regression: Regression) -> bool:
    """Whether its loss is lower in every part that is left out."""
    return bool((_by_part(chosen, regression) < _by_part(before, regression)).all())


def _by_part(chosen: Chosen, regression: Regression) -> np.ndarray:
    """[F]: the losses of the parts that are left out."""
    y, fold_N = regression.y[regression.asked], regression.fold_N[regression.asked]
    parts = [np.flatnonzero(fold_N == part) for part in regression.parts]
    return np.array([regression.task.mean_loss(chosen.logits[part], y[part]) for part in parts])
