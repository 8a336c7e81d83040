"""Layers together: ridge regression on a weighted sum of their kernels.

    K = sum_k w_k K_k,   K_k centred, of mean diagonal 1

is one kernel for all layers k, in which those count most that tell most by themselves. With l_k the
cross-validated loss of ridge regression on K_k alone and l_0 that of the mean of the targets,

    w_k = mean over e of  max(0, l_0 - l_k)^e / sum_j max(0, l_0 - l_j)^e

with the powers e = 0 and 4, or 2, 4 and 8 where that lowers the loss in every part that is left
out. So weights are computed for each part without it, from losses of the other parts: weights that
know a part's labels promise more of it than they keep, the sharper ones most. Such outputs also
choose the penalty and the scale of the logits; the last fit uses every model.

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
      without: layer to [F], the same without each part that is left out; that of all parts where
        no pairs of them are left out.
    """

    chosen: dict[str, Chosen]
    gains: dict[str, float]
    without: dict[str, np.ndarray]

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
    alone = Alone({}, {}, {})
    for layer, (chosen, losses_F) in found.items():
        alone.chosen[layer], alone.gains[layer] = chosen, prior - chosen.loss
        if losses_F is None or priors_F is None:
            alone.without[layer] = np.full(len(regression.parts), prior - chosen.loss)
        else:
            alone.without[layer] = priors_F - losses_F
    return alone


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
        if regression.pairs and len(layers) > 1:
            sharper = _weighed(kernels, layers, alone, regression, _SHARPER)
            if (_losses(sharper.chosen, regression) < _losses(found.chosen, regression)).all():
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
    share_FK = np.stack(
        [
            _shares(np.array([alone.without[layer][part] for layer in layers]), powers)
            for part in range(n_parts)
        ]
    )
    without = np.zeros([n_parts, n_models, n_models]) if regression.pairs else None
    total, weights, scales = Kernel(np.zeros([n_models, n_models]), without), {}, {}
    for layer, share, share_F in zip(layers, share_K, share_FK.T, strict=True):
        of_layer = kernels[layer]
        scale = share * _unit(of_layer.whole)
        total = _sum(total, of_layer, scale, share_F)
        if share > 0:
            weights[layer], scales[layer] = float(share), scale
    return _Weighed(weights, scales, total.whole, regression.choose(total))


def _sum(total: Kernel, of_layer: Kernel, scale: float, share_F: np.ndarray) -> Kernel:
    whole_NN = total.whole + scale * of_layer.whole
    if total.without is None and of_layer.without is None:
        return Kernel(whole_NN)
    left_out = (of_layer.left_out(part) for part in range(len(share_F)))
    parts = [
        total.left_out(part) + share * _unit(kernel_NN) * kernel_NN
        for part, (share, kernel_NN) in enumerate(zip(share_F, left_out, strict=True))
    ]
    return Kernel(whole_NN, np.stack(parts))


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


def _losses(chosen: Chosen, regression: Regression) -> np.ndarray:
    """[F]: those of the parts that are left out."""
    y, fold_N = regression.y[regression.asked], regression.fold_N[regression.asked]
    parts = [np.flatnonzero(fold_N == part) for part in regression.parts]
    return np.array([regression.task.mean_loss(chosen.logits[part], y[part]) for part in parts])
