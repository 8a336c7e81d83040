"""Size and rank: how large a matrix is, and of how many directions, whatever its entries are."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.encoders.linear import products_at, promote, symmetric_uniform
from probex_jax.matrices import Centred, LowRank, Matrices, batch_shape, dense, inner

# Below it sizes are rounding.
TINY = 1e-9


def log_size(x: Matrices) -> jax.Array:
    """The logarithm of the root of the mean square of each matrix's entries.

    Of matrices that were centred by their tree it says how far a model was trained.

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`; factors are not multiplied out.

    Returns:
      [N, 1] float.

    Raises:
      ValueError: if x does not have three axes.

    Example:
      >>> import jax.numpy as jnp
      >>> [[round(float(size), 2)] for size in log_size(jnp.full([1, 2, 3], 100.0))[0]]
      [[4.61]]
    """
    _, rows, columns = batch_shape(x)
    mean_N = jnp.maximum(_squares(x), 0.0) / (rows * columns)
    return jnp.log(jnp.sqrt(mean_N) + TINY)[:, None]


def _squares(x: Matrices) -> jax.Array:
    """[N]: sums of the squares of all entries."""
    if isinstance(x, Centred):
        centre_HW = dense(x.centre)
        both_N = inner(x.factors, centre_HW[..., None])[:, 0]
        return _squares(x.factors) - 2 * both_N + jnp.sum(centre_HW**2)
    if isinstance(x, LowRank):
        return jnp.sum((x.up.mT @ x.up) * (x.down @ x.down.mT), axis=(1, 2))
    return jnp.sum(jnp.square(x), axis=(1, 2))


class Size(nn.Module):
    """A linear map of `log_size`.

        e_t = a_t · log_size(X) + b_t

    Args:
      rep_dim: size T of the output.
      dtype: of the computation; None promotes the input and the parameters, as in Flax.
      param_dtype: of the parameters at initialisation.
      precision: of the products, a `jax.lax.Precision` or its name; None for JAX's default.

    Example:
      >>> y, _ = Size(rep_dim=10).init_with_output(jax.random.key(0), jnp.ones([4, 8, 6]))
      >>> y.shape
      (4, 10)
    """

    rep_dim: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x: Matrices) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T]."""
        initialise = symmetric_uniform(1)
        weight_1T = self.param("weight", initialise, (1, self.rep_dim), self.param_dtype)
        bias_T = self.param("bias", initialise, (self.rep_dim,), self.param_dtype)
        x, weight_1T, bias_T = promote(x, weight_1T, bias_T, dtype=self.dtype)
        with products_at(self.precision):
            return log_size(x) @ weight_1T + bias_T[None]


def log_rank(x: Matrices) -> jax.Array:
    """The binary logarithm of the number of directions that factors have, and its square.

    Directions of zeros, which fill up factors to one rank, do not count; of no direction it is 0.

    Args:
      x: [N, H, W] float; of a dense matrix the directions are its rows or columns.

    Returns:
      [N, 2] float.

    Raises:
      ValueError: if x does not have three axes.

    Example:
      >>> import jax.numpy as jnp
      >>> up = jnp.ones([1, 5, 4]).at[:, :, 2:].set(0.0)
      >>> log_rank(LowRank(up, jnp.ones([1, 4, 3]))).tolist()
      [[1.0, 1.0]]
    """
    n_models, rows, columns = batch_shape(x)
    if isinstance(x, Centred):
        return log_rank(x.factors)
    if isinstance(x, LowRank):
        there_NR = jnp.any(x.up != 0, axis=1) & jnp.any(x.down != 0, axis=2)
        rank_N = jnp.maximum(there_NR.sum(axis=1), 1).astype(x.up.dtype)
    else:
        rank_N = jnp.full([n_models], min(rows, columns), x.dtype)
    log_N = jnp.log2(rank_N)
    return jnp.stack([log_N, log_N**2], axis=1)


class Rank(nn.Module):
    """A linear map of `log_rank`: fields as those of `Size`.

    Example:
      >>> y, _ = Rank(rep_dim=10).init_with_output(jax.random.key(0), jnp.ones([4, 8, 6]))
      >>> y.shape
      (4, 10)
    """

    rep_dim: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x: Matrices) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T]."""
        initialise = symmetric_uniform(2)
        weight_2T = self.param("weight", initialise, (2, self.rep_dim), self.param_dtype)
        bias_T = self.param("bias", initialise, (self.rep_dim,), self.param_dtype)
        x, weight_2T, bias_T = promote(x, weight_2T, bias_T, dtype=self.dtype)
        with products_at(self.precision):
            return log_rank(x) @ weight_2T + bias_T[None]
