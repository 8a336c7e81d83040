"""Ridge regression: a dense network in closed form, for trees of hundreds or thousands of models.

A layer has many more entries than a tree has models, so the weights are a combination of the
training matrices, w = sum_n alpha_n x_n, and the solution follows from their inner products
(`ridge`), with targets t that are 2 y - 1 where classes are answered for themselves, one-hot where
one class is right, standardised where a number is. The penalty, and the one factor that turns
outputs into logits, are those of the lowest loss on validation models; without any, on training
models that are left out in turn. Several layers together: `multiple_kernels`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.encoders import Dense
from probex_jax.errors import ProbexError
from probex_jax.fitting.data import Split, check_splits
from probex_jax.fitting.network import Network
from probex_jax.fitting.ridge import Chosen, Ridge, folds
from probex_jax.fitting.task import Task
from probex_jax.matrices import combination, gram


@dataclass(frozen=True)
class ClosedForm:
    """A dense network fitted in closed form.

    Args:
      penalties: weights of the L2 penalty that are tried, in units of the mean of K's diagonal.
      most_parameters: of an expert on several layers, the most that all of them may have together;
        what tells least is left out.

    Raises:
      ProbexError: if there is no penalty, or a value is not a number > 0.

    Example:
      >>> ClosedForm(penalties=(0.1, 1.0)).penalties
      (0.1, 1.0)
    """

    penalties: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
    most_parameters: int = 2**26

    def __post_init__(self) -> None:
        given = self.penalties
        if not (isinstance(given, Sequence) and given and all(map(_is_penalty, given))):
            raise ProbexError(f"recipe.penalties: {given!r} are not numbers > 0")
        if type(self.most_parameters) is not int or self.most_parameters < 1:
            raise ProbexError(
                f"recipe.most_parameters: {self.most_parameters!r} is not a whole number > 0"
            )
        object.__setattr__(self, "penalties", tuple(map(float, given)))


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
    targets_NY = task.regressed(train.y, encoder.rep_dim)
    if targets_NY.shape[1] != encoder.rep_dim:
        raise ProbexError(
            f"encoder.rep_dim: {encoder.rep_dim}, expected the task's {targets_NY.shape[1]}"
        )
    ridge = Ridge(kernel_NN, targets_NY)
    if val is None:
        y = np.asarray(train.y)
        chosen = ridge.choose(task, y, recipe.penalties, folds(task, y))
    else:
        kernel_MN = np.asarray(gram(encoder.read(val.x), x), np.float64) / size
        if not np.isfinite(kernel_MN).all():
            raise ProbexError("some validation matrices are not finite")
        found = []
        for penalty in recipe.penalties:
            alpha_NY, intercept_Y = ridge.solution(penalty)
            outputs_MY = kernel_MN @ alpha_NY + intercept_Y
            factor, loss = task.best_factor(outputs_MY, np.asarray(val.y))
            found.append(Chosen(penalty, factor, loss, factor * outputs_MY))
        chosen = min(found, key=lambda each: each.loss)
    alpha_NY, intercept_Y = ridge.solution(chosen.penalty)
    weight_HWY = combination(x, jnp.asarray(chosen.factor / size * alpha_NY, jnp.float32))
    bias_Y = jnp.asarray(chosen.factor * intercept_Y, jnp.float32)
    params = {"encoder": {"weight": weight_HWY, "bias": bias_Y}}
    return Fitted(jax.tree.map(np.asarray, params), *chosen)


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
