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

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from probex_jax.fitting.ridge import Chosen, Kernel, Regression, centred, threads_for

_POWERS, _SHARPER = (0, 4), (2, 4, 8)


class Alone(NamedTuple):
    """What each layer tells by itself.

    Args:
      chosen: layer to what cross-validation chose for it.
      gains: layer to how much lower its loss is than that of the mean of the others' targets.
      without: layer to [F], the same without each part that is left out; None where they are not
        computed for every layer.
    """

    chosen: Mapping[str, Chosen]
    gains: Mapping[str, float]
    without: Mapping[str, np.ndarray] | None = None

    def best(self, most: int | None, sizes: Mapping[str, int], room: int) -> list[str]:
        """The best layers, the best first.

        Args:
          most: how many; None for all.
          sizes: layer to the number of its parameters.
          room: the number of parameters that they may have together; if none has so few, the best
            one is kept.
        """
        order, kept, taken = sorted(self.chosen, key=lambda n: self.chosen[n].loss)[:most], [], 0
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


def fit_alone(kernels: Mapping[str, Kernel], regression: Regression) -> Alone:
    """Fits a ridge regression to each layer.

    Args:
      kernels: layer to the inner products of its matrices.
      regression: of what.

    Raises:
      ProbexError: if the matrices of a layer are all the same, or not finite.
    """
    with threads_for(len(regression.y)):
        found = {layer: regression.choose_without(kernels[layer]) for layer in kernels}
        prior, priors_F = regression.prior_losses()
    chosen = {layer: each for layer, (each, _) in found.items()}
    gains = {layer: prior - each.loss for layer, each in chosen.items()}
    losses = {layer: of for layer, (_, of) in found.items() if of is not None}
    if priors_F is None or len(losses) < len(found):
        return Alone(chosen, gains)
    return Alone(chosen, gains, {layer: priors_F - losses_F for layer, losses_F in losses.items()})


def fit_together(
    kernels: Mapping[str, Kernel], layers: Sequence[str], alone: Alone, regression: Regression
) -> Together:
    """Fits one ridge regression to several layers.

    Args:
      kernels, regression: as `fit_alone` takes them.
      layers: those that take part.
      alone: what they tell by themselves.

    Example:
      >>> from probex_jax.fitting.ridge import folds
      >>> from probex_jax.fitting.task import SeveralClasses
      >>> rng, task = np.random.default_rng(0), SeveralClasses()
      >>> layers = {"told": rng.normal(size=(40, 6)), "noise": rng.normal(size=(40, 6))}
      >>> y = (layers["told"][:, :1] > 0).astype(float)
      >>> kernels = {name: Kernel(x @ x.T) for name, x in layers.items()}
      >>> regression = Regression(task, y, 2 * y - 1, [0.1, 1.0], folds(task, y))
      >>> found = fit_together(kernels, [*layers], fit_alone(kernels, regression), regression)
      >>> found.weights["told"] > found.weights["noise"]
      True
      >>> logits = sum(layers[k] @ (layers[k].T @ found.solution[k]) for k in layers) + found.bias
      >>> bool(((logits > 0) == y).mean() > 0.9)
      True
    """
    with threads_for(len(regression.y)):
        found = _weighed(kernels, layers, alone, regression, _POWERS)
        if alone.without is not None and len(layers) > 1:
            sharper = _weighed(kernels, layers, alone, regression, _SHARPER)
            if (_by_part(sharper.chosen, regression) < _by_part(found.chosen, regression)).all():
                found = sharper
        chosen = found.chosen
        alpha_NY, intercept_Y = regression.solve(found.kernel_NN, chosen.penalty)
    solution = {n: chosen.factor * scale * alpha_NY for n, scale in found.scales.items()}
    return Together(found.weights, chosen, solution, chosen.factor * intercept_Y)


class _Weighed(NamedTuple):
    weights: Mapping[str, float]
    scales: Mapping[str, float]
    kernel_NN: np.ndarray
    chosen: Chosen


def _weighed(
    kernels: Mapping[str, Kernel],
    layers: Sequence[str],
    alone: Alone,
    regression: Regression,
    powers: Sequence[int],
) -> _Weighed:
    """What cross-validation chooses for the sum with some powers."""
    n_models, n_parts = len(regression.y), len(regression.parts)
    share_K = _shares(np.array([alone.gains[layer] for layer in layers]), powers)
    share_FK, without_FNN = np.stack([share_K] * n_parts), None
    if alone.without is not None and len(layers) > 1:
        gain_KF = np.stack([alone.without[layer] for layer in layers])
        share_FK = np.stack([_shares(gain_K, powers) for gain_K in gain_KF.T])
        without_FNN = np.zeros([n_parts, n_models, n_models])
    whole_NN, weights, scales = np.zeros([n_models, n_models]), {}, {}
    for layer, share, share_F in zip(layers, share_K, share_FK.T, strict=True):
        kernel = kernels[layer]
        unit = _unit(kernel.whole)
        if without_FNN is None and kernel.without is not None:
            without_FNN = np.stack([whole_NN] * n_parts)
        whole_NN += share * unit * kernel.whole
        if without_FNN is not None:
            for part in range(n_parts):
                of_part = kernel.left_out(part)
                unit_of_part = unit if kernel.without is None else _unit(of_part)
                without_FNN[part] += share_F[part] * unit_of_part * of_part
        if share > 0:
            weights[layer], scales[layer] = float(share), share * unit
    chosen = regression.choose(Kernel(whole_NN, without_FNN))
    return _Weighed(weights, scales, whole_NN, chosen)


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


def _by_part(chosen: Chosen, regression: Regression) -> np.ndarray:
    """[F]: the losses of the parts that are left out."""
    y, fold_N = regression.y[regression.asked], regression.fold_N[regression.asked]
    parts = [np.flatnonzero(fold_N == part) for part in regression.parts]
    return np.array([regression.task.mean_loss(chosen.logits[part], y[part]) for part in parts])
