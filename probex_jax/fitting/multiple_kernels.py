"""Layers together: ridge regression on a weighted sum of their kernels.

    K = sum_k w_k K_k,   K_k centred, of mean diagonal 1

is one kernel for all layers k, in which those count most that tell most by themselves. With l_k the
cross-validated loss of ridge regression on K_k alone and l_0 that of the mean of the targets,

    w_k = mean over e in (0, 1, 2, 4) of  max(0, l_0 - l_k)^e / sum_j max(0, l_0 - l_j)^e

from all layers alike (e = 0) to nearly the best alone. The penalty and the scale of the logits are
chosen by cross-validation as well, and the last fit uses every model.

References:
  Gönen, Alpaydın: Multiple Kernel Learning Algorithms, JMLR 2011 (section 3.2, heuristics).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from probex_jax.fitting.ridge import Chosen, Kernel, Regression, centred, threads_for

_EXPONENTS = (0, 1, 2, 4)


class Alone(NamedTuple):
    """What each layer tells by itself.

    Args:
      chosen: layer to what cross-validation chose for it.
      prior_loss: the loss of always answering the mean of the others' targets.
    """

    chosen: Mapping[str, Chosen]
    prior_loss: float

    def best(self, most: int | None, sizes: Mapping[str, int], room: int) -> dict[str, float]:
        """The best layers, the best first, and how much lower than the prior's their loss is.

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
        return {name: self.prior_loss - self.chosen[name].loss for name in kept or order[:1]}


class Together(NamedTuple):
    """What layers tell together.

    Args:
      weights: layer to its share of the kernel; they add up to one.
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
        chosen = {layer: regression.choose(kernels[layer]) for layer in kernels}
    return Alone(chosen, regression.prior_loss())


def fit_together(
    kernels: Mapping[str, Kernel], gains: Mapping[str, float], regression: Regression
) -> Together:
    """Fits one ridge regression to several layers.

    Args:
      kernels, regression: as `fit_alone` takes them.
      gains: layer to how much lower than the prior's its loss is (`Alone.best`).

    Example:
      >>> from probex_jax.fitting.ridge import folds
      >>> from probex_jax.fitting.task import SeveralClasses
      >>> rng, task = np.random.default_rng(0), SeveralClasses()
      >>> layers = {"told": rng.normal(size=(40, 6)), "noise": rng.normal(size=(40, 6))}
      >>> y = (layers["told"][:, :1] > 0).astype(float)
      >>> kernels = {name: Kernel(x @ x.T) for name, x in layers.items()}
      >>> regression = Regression(task, y, 2 * y - 1, [0.1, 1.0], folds(task, y))
      >>> gains = fit_alone(kernels, regression).best(None, {"told": 6, "noise": 6}, 100)
      >>> found = fit_together(kernels, gains, regression)
      >>> found.weights["told"] > 0.8
      True
      >>> logits = sum(layers[k] @ (layers[k].T @ found.solution[k]) for k in layers) + found.bias
      >>> bool(((logits > 0) == y).mean() > 0.9)
      True
    """
    weights = _weights(gains)
    n_models = len(regression.y)
    kernel, scales = Kernel(np.zeros((n_models, n_models))), {}
    for layer, weight in weights.items():
        of_layer = kernels[layer]
        scales[layer] = _scale(of_layer.whole, weight)
        kernel = _sum(kernel, of_layer, weight)
    with threads_for(n_models):
        chosen = regression.choose(kernel)
        alpha_NY, intercept_Y = regression.solve(kernel.whole, chosen.penalty)
    solution = {layer: chosen.factor * scale * alpha_NY for layer, scale in scales.items()}
    return Together(weights, chosen, solution, chosen.factor * intercept_Y)


def _scale(kernel_NN: np.ndarray, weight: float) -> float:
    """What gives a kernel, centred, the mean diagonal `weight`."""
    return weight * len(kernel_NN) / float(np.trace(centred(kernel_NN)))


def _sum(total: Kernel, of_layer: Kernel, weight: float) -> Kernel:
    whole_NN = total.whole + _scale(of_layer.whole, weight) * of_layer.whole
    by_targets = [each.without for each in (total, of_layer) if each.without is not None]
    if not by_targets:
        return Kernel(whole_NN)
    parts = [
        total.left_out(part) + _scale(kernel_NN, weight) * kernel_NN
        for part, kernel_NN in ((p, of_layer.left_out(p)) for p in range(len(by_targets[0])))
    ]
    return Kernel(whole_NN, np.stack(parts))


def _weights(gains: Mapping[str, float]) -> dict[str, float]:
    """Shares of the kernel."""
    gain_K = np.maximum(np.array([*gains.values()]), 0.0)
    if not gain_K.any():
        gain_K = np.ones(len(gain_K))
    powers_EK = np.stack([(gain_K / gain_K.max()) ** exponent for exponent in _EXPONENTS])
    share_K = (powers_EK / powers_EK.sum(axis=1, keepdims=True)).mean(axis=0)
    return dict(zip(gains, map(float, share_K), strict=True))
