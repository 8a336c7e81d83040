"""Ridge regression: a dense network in closed form, for trees of hundreds or thousands of models.

A layer has many more entries than a tree has models, so the weights are a combination of the
training matrices, w = sum_n alpha_n x_n, and the solution follows from their inner products:

    alpha = (K + p tr(K)/N 1)^-1 (t - mean t),   K_nm = <x_n, x_m>

with targets t that are 2 y - 1 where classes are answered for themselves, one-hot where one class
is right, standardised where a number is. One eigendecomposition of K [N, N] gives the solution for
every penalty p. The penalty, and the one factor that turns outputs into logits, are those of the
lowest loss on validation models; without any, on training models that are left out in turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.encoders import Dense
from probex_jax.errors import ProbexError
from probex_jax.fitting.data import Split, check_splits
from probex_jax.fitting.network import Network
from probex_jax.fitting.task import Task
from probex_jax.matrices import combination, gram

# Without validation models, parts of the training models that are left out in turn.
_FOLDS = 5


@dataclass(frozen=True)
class ClosedForm:
    """A dense network fitted in closed form.

    Args:
      penalties: weights of the L2 penalty that are tried, in units of the mean of K's diagonal.

    Raises:
      ProbexError: if there is none, or one is not a number > 0.

    Example:
      >>> ClosedForm(penalties=(0.1, 1.0)).penalties
      (0.1, 1.0)
    """

    penalties: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)

    def __post_init__(self) -> None:
        given = self.penalties
        if not (isinstance(given, Sequence) and given and all(map(_is_penalty, given))):
            raise ProbexError(f"recipe.penalties: {given!r} are not numbers > 0")
        object.__setattr__(self, "penalties", tuple(map(float, given)))

    @property
    def epochs(self) -> int:
        """Steps of progress: it is one."""
        return 1


class Fitted(NamedTuple):
    """What `fit_closed_form` found.

    Args:
      params: of the network.
      penalty, factor: those chosen.
      loss: the task's own, on the models that chose.
      logits: [M, Y] float64 of these models; of training models by networks that did not see them.
    """

    params: Any
    penalty: float
    factor: float
    loss: float
    logits: np.ndarray


def fit_closed_form(
    network: Network, task: Task, recipe: ClosedForm, train: Split, val: Split | None = None
) -> Fitted:
    """Fits a network that is `Dense` alone.

    Args:
      network: an encoder `Dense` without a head.
      task: what is to be told.
      recipe: how.
      train: x [N, H, W], y targets of the task.
      val: the models that choose; None to choose by five-fold cross-validation.

    Returns:
      Its parameters, fitted to all of `train`, and what was chosen.

    Raises:
      ProbexError: if the network is another, an array does not fit the others, the training
        matrices are all zero, or some matrices are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from probex_jax.fitting import SeveralClasses, build_network
      >>> x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1, 1) * jnp.ones([8, 3, 2])
      >>> data = Split(x, (x[:, 0, :1] > 0).astype(jnp.float32))
      >>> network = build_network({"name": "dense"}, head="none", n_outputs=1)
      >>> params = fit_closed_form(network, SeveralClasses(), ClosedForm(), data, data).params
      >>> bool(((network.apply({"params": params}, x) > 0) == (data.y > 0)).all())
      True
    """
    encoder = check_closed_form(network, task)
    splits = {"train": train} if val is None else {"train": train, "val": val}
    check_splits(task, encoder.rep_dim, splits)
    if val is None and len(train.y) < 2:
        raise ProbexError("train: y of one model: none to leave out in turn; give val")
    x = encoder.read(train.x)
    size = x.shape[-2] * x.shape[-1]
    kernel_NN = np.asarray(gram(x, x), np.float64) / size
    mean_diagonal = np.trace(kernel_NN) / len(kernel_NN)
    if not 0 < mean_diagonal < np.inf:
        raise ProbexError("the training matrices are all zero, or not finite")
    targets_NY = task.regressed(train.y, encoder.rep_dim)
    if targets_NY.shape[1] != encoder.rep_dim:
        raise ProbexError(
            f"encoder.rep_dim: {encoder.rep_dim}, expected the task's {targets_NY.shape[1]}"
        )
    alpha, prior_Y = _solver(kernel_NN, targets_NY, mean_diagonal)
    if val is None:
        outputs_of, y = _left_out(kernel_NN, targets_NY, mean_diagonal), train.y
    else:
        kernel_MN = np.asarray(gram(encoder.read(val.x), x), np.float64) / size
        if not np.isfinite(kernel_MN).all():
            raise ProbexError("some validation matrices are not finite")
        outputs_of, y = lambda penalty: kernel_MN @ alpha(penalty) + prior_Y, val.y
    tried = [(*task.best_factor(outputs_of(p), np.asarray(y)), p) for p in recipe.penalties]
    factor, loss, penalty = min(tried, key=lambda found: found[1])
    weight_HWY = combination(x, jnp.asarray(factor / size * alpha(penalty), jnp.float32))
    bias_Y = jnp.asarray(factor * prior_Y, jnp.float32)
    params = {"encoder": {"weight": weight_HWY, "bias": bias_Y}}
    logits_MY = factor * outputs_of(penalty)
    return Fitted(jax.tree.map(np.asarray, params), penalty, factor, loss, logits_MY)


def _solver(
    kernel_NN: np.ndarray, targets_NY: np.ndarray, mean_diagonal: float
) -> tuple[Callable[[float], np.ndarray], np.ndarray]:
    """alpha [N, Y] as a function of the penalty, and the mean of the targets [Y]."""
    prior_Y = targets_NY.mean(axis=0)
    values_N, vectors_NN = np.linalg.eigh(kernel_NN)
    rotated_NY = vectors_NN.T @ (targets_NY - prior_Y)

    def alpha(penalty: float) -> np.ndarray:
        damped_N = np.maximum(values_N, 0.0) + penalty * mean_diagonal
        return vectors_NN @ (rotated_NY / damped_N[:, None])

    return alpha, prior_Y


def _left_out(
    kernel_NN: np.ndarray, targets_NY: np.ndarray, mean_diagonal: float
) -> Callable[[float], np.ndarray]:
    """Outputs [N, Y] of each model by the others' solution, as a function of the penalty."""
    fold_N = np.random.default_rng(0).permutation(len(kernel_NN)) % min(_FOLDS, len(kernel_NN))
    solved = []
    for fold in range(fold_N.max() + 1):
        rest, out = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
        found = _solver(kernel_NN[np.ix_(rest, rest)], targets_NY[rest], mean_diagonal)
        solved.append((out, kernel_NN[np.ix_(out, rest)], *found))

    def outputs(penalty: float) -> np.ndarray:
        outputs_NY = np.empty_like(targets_NY)
        for out, kernel_MN, alpha, prior_Y in solved:
            outputs_NY[out] = kernel_MN @ alpha(penalty) + prior_Y
        return outputs_NY

    return outputs


def check_closed_form(network: Network, task: Task) -> Dense:
    """The encoder of a network that `fit_closed_form` fits; a ProbexError for another."""
    if not isinstance(network.encoder, Dense) or network.head is not None or task.head == "text":
        raise ProbexError(
            'the closed form fits the encoder dense, with head "none", to classes or a number; '
            "other encoders, heads and texts need gradient descent"
        )
    return network.encoder


def _is_penalty(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")
