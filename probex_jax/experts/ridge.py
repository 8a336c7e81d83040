"""Ridge regression: a dense expert in closed form, for trees of hundreds or thousands of models.

A layer has many more entries than a tree has models, so the weights are a combination of the
training matrices, w = sum_n alpha_n x_n, and the solution is had from their inner products:

    alpha = (K + p tr(K)/N 1)^-1 (t - mean t),   K_nm = <x_n, x_m>,   t = 2 y - 1

One eigendecomposition of K [N, N] gives the solution for every penalty p. The penalty, and the one
factor that turns outputs into logits, are those of the lowest loss on `val`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.encoders import Dense
from probex_jax.errors import ProbexError
from probex_jax.experts.calibration import best_factor
from probex_jax.experts.checking import check_splits
from probex_jax.experts.network import Network
from probex_jax.experts.objective import Split
from probex_jax.matrices import combination, gram

_WRONG = 'recipe "ridge" fits the encoder dense to classes, with head "none"'


@dataclass(frozen=True)
class Ridge:
    """How a dense expert is fitted in closed form.

    Args:
      penalties: weights of the L2 penalty that are tried, in units of the mean of K's diagonal.

    Raises:
      ProbexError: if there is none, or one is not a number > 0.

    Example:
      >>> Ridge(penalties=(0.1, 1.0)).penalties
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
    """What `fit_ridge` found.

    Args:
      params: of the network.
      penalty, factor: those chosen.
      loss: binary cross-entropy on `val`.
    """

    params: Any
    penalty: float
    factor: float
    loss: float


def fit_ridge(network: Network, recipe: Ridge, train: Split, val: Split) -> Fitted:
    """Fits a network that is `Dense` alone to classes.

    Args:
      network: an encoder `Dense` without a head.
      recipe: how.
      train, val: x [N, H, W], y [N, Y] of zeros and ones.

    Returns:
      Its parameters, and what was chosen on `val`.

    Raises:
      ProbexError: if the network is another, an array does not fit the others, labels are not zeros
        and ones, the training matrices are all zero, or some matrices are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from probex_jax.experts import build_network
      >>> x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1, 1) * jnp.ones([8, 3, 2])
      >>> data = Split(x, (x[:, 0, :1] > 0).astype(jnp.float32))
      >>> network = build_network({"name": "dense"}, head="none", n_classes=1)
      >>> params = fit_ridge(network, Ridge(), data, data).params
      >>> bool(((network.apply({"params": params}, x) > 0) == (data.y > 0)).all())
      True
    """
    encoder = check_fitted(network)
    if np.ndim(train.y) == 1:
        raise ProbexError(_WRONG)
    check_splits(network, {"train": train, "val": val})
    x, x_val = (encoder.read(split.x) for split in (train, val))
    size = x.shape[-2] * x.shape[-1]
    kernel_NN = np.asarray(gram(x, x), np.float64) / size
    kernel_MN = np.asarray(gram(x_val, x), np.float64) / size
    mean_diagonal = np.trace(kernel_NN) / len(kernel_NN)
    if not 0 < mean_diagonal < np.inf:
        raise ProbexError("the training matrices are all zero, or not finite")
    if not np.isfinite(kernel_MN).all():
        raise ProbexError("some validation matrices are not finite")
    targets_NY = 2 * np.asarray(train.y, np.float64) - 1
    prior_Y = targets_NY.mean(axis=0)
    values_N, vectors_NN = np.linalg.eigh(kernel_NN)
    rotated_NY = vectors_NN.T @ (targets_NY - prior_Y)

    def solved(penalty: float) -> np.ndarray:
        damped_N = np.maximum(values_N, 0.0) + penalty * mean_diagonal
        return vectors_NN @ (rotated_NY / damped_N[:, None])

    best: tuple[float, float, float, np.ndarray] | None = None
    for penalty in recipe.penalties:
        alpha_NY = solved(penalty)
        factor, loss = best_factor(kernel_MN @ alpha_NY + prior_Y, np.asarray(val.y))
        if best is None or loss < best[0]:
            best = loss, penalty, factor, alpha_NY
    assert best is not None
    loss, penalty, factor, alpha_NY = best
    weight_HWY = combination(x, jnp.asarray(factor / size * alpha_NY, jnp.float32))
    bias_Y = jnp.asarray(factor * prior_Y, jnp.float32)
    params = {"encoder": {"weight": weight_HWY, "bias": bias_Y}}
    return Fitted(jax.tree.map(np.asarray, params), penalty, factor, loss)


def check_fitted(network: Network) -> Dense:
    """The encoder of a network that `fit_ridge` fits; a ProbexError for another."""
    if not isinstance(network.encoder, Dense) or network.head is not None:
        raise ProbexError(_WRONG)
    return network.encoder


def _is_penalty(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")
