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

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from probex_jax.fitting.ridge import Chosen, Ridge, centred, threads_for
from probex_jax.fitting.task import Task

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


def fit_alone(
    kernels: Mapping[str, np.ndarray],
    y: np.ndarray,
    task: Task,
    n_outputs: int,
    penalties: Sequence[float],
    fold_N: np.ndarray,
) -> Alone:
    """Fits a ridge regression to each layer.

    Args:
      kernels: layer to the inner products [N, N] of its matrices.
      y: targets of the task.
      task: what is to be told.
      n_outputs: Y.
      penalties: those tried, in units of the mean of the kernel's diagonal.
      fold_N: [N] int, the part of each model in cross-validation (`ridge.folds`).

    Raises:
      ProbexError: if the matrices of a layer are all the same, or not finite.
    """
    targets_NY = task.regressed(y, n_outputs)
    with threads_for(len(y)):
        chosen = {
            layer: Ridge(kernels[layer], targets_NY).choose(task, y, penalties, fold_N)
            for layer in kernels
        }
    means_NY = np.empty_like(targets_NY)
    for fold in np.unique(fold_N):
        means_NY[fold_N == fold] = targets_NY[fold_N != fold].mean(axis=0)
    return Alone(chosen, task.best_factor(means_NY, y)[1])


def fit_together(
    kernels: Mapping[str, np.ndarray],
    gains: Mapping[str, float],
    y: np.ndarray,
    task: Task,
    n_outputs: int,
    penalties: Sequence[float],
    fold_N: np.ndarray,
) -> Together:
    """Fits one ridge regression to several layers.

    Args:
      kernels, y, task, n_outputs, penalties, fold_N: as `fit_alone` takes them.
      gains: layer to how much lower than the prior's its loss is (`Alone.best`).

    Example:
      >>> from probex_jax.fitting.ridge import folds
      >>> from probex_jax.fitting.task import SeveralClasses
      >>> rng, task = np.random.default_rng(0), SeveralClasses()
      >>> layers = {"told": rng.normal(size=(40, 6)), "noise": rng.normal(size=(40, 6))}
      >>> y = (layers["told"][:, :1] > 0).astype(float)
      >>> kernels = {name: x @ x.T for name, x in layers.items()}
      >>> about = y, task, 1, [0.1, 1.0], folds(task, y)
      >>> gains = fit_alone(kernels, *about).best(None, {"told": 6, "noise": 6}, 100)
      >>> found = fit_together(kernels, gains, *about)
      >>> found.weights["told"] > 0.8
      True
      >>> logits = sum(layers[k] @ (layers[k].T @ found.solution[k]) for k in layers) + found.bias
      >>> bool(((logits > 0) == y).mean() > 0.9)
      True
    """
    targets_NY = task.regressed(y, n_outputs)
    weights = _weights(gains)
    kernel_NN, scales = np.zeros((len(y), len(y))), {}
    for layer, weight in weights.items():
        of_layer_NN = kernels[layer]
        scales[layer] = weight * len(y) / float(np.trace(centred(of_layer_NN)))
        kernel_NN += scales[layer] * of_layer_NN
    with threads_for(len(y)):
        ridge = Ridge(kernel_NN, targets_NY)
        chosen = ridge.choose(task, y, penalties, fold_N)
        alpha_NY, intercept_Y = ridge.solution(chosen.penalty)
    solution = {layer: chosen.factor * scale * alpha_NY for layer, scale in scales.items()}
    return Together(weights, chosen, solution, chosen.factor * intercept_Y)


def _weights(gains: Mapping[str, float]) -> dict[str, float]:
    """Shares of the kernel."""
    gain_K = np.maximum(np.array([*gains.values()]), 0.0)
    if not gain_K.any():
        gain_K = np.ones(len(gain_K))
    powers_EK = np.stack([(gain_K / gain_K.max()) ** exponent for exponent in _EXPONENTS])
    share_K = (powers_EK / powers_EK.sum(axis=1, keepdims=True)).mean(axis=0)
    return dict(zip(gains, map(float, share_K), strict=True))
