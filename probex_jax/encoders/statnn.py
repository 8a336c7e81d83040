"""StatNN: simple statistics of weights, the features of Unterthiner et al. (2020)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.encoders.linear import products_at, promote, symmetric_uniform
from probex_jax.matrices import Matrices, batch_shape, dense

N_STATISTICS = 7


def statistics(x: jax.Array) -> jax.Array:
    """Seven statistics of each matrix: mean, variance, minimum, quartiles, maximum.

    Args:
      x: [N, H, W] float.

    Returns:
      [N, 7] float: mean, variance and the 0, 25, 50, 75 and 100 % quantiles of the entries.

    Raises:
      ValueError: if x does not have three axes.

    Example:
      >>> import jax.numpy as jnp
      >>> statistics(jnp.arange(5.0).reshape(1, 1, 5))
      Array([[2., 2., 0., 1., 2., 3., 4.]], dtype=float32)

    References:
      Unterthiner et al., "Predicting Neural Network Accuracy from Weights", arXiv 2002.11448.
    """
    n_models, _, _ = batch_shape(x)
    entries = x.reshape(n_models, -1)
    quantiles = jnp.quantile(entries, jnp.linspace(0.0, 1.0, 5), axis=1).T
    return jnp.column_stack([entries.mean(1), entries.var(1), quantiles])


class Statistics(nn.Module):
    """A linear map of a matrix's seven statistics, which no order of its entries changes.

        e_t = sum_s A[s, t] · statistics(X)[s] + b_t

    Args:
      rep_dim: size T of the output.
      dtype: of the computation; None promotes the input and the parameters, as in Flax.
      param_dtype: of the parameters at initialisation.
      precision: of the products, a `jax.lax.Precision` or its name; None for JAX's default.

    Example:
      >>> y, _ = Statistics(rep_dim=10).init_with_output(jax.random.key(0), jnp.ones([4, 8, 6]))
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
        initialise = symmetric_uniform(N_STATISTICS)
        shape = N_STATISTICS, self.rep_dim
        weight_ST = self.param("weight", initialise, shape, self.param_dtype)
        bias_T = self.param("bias", initialise, shape[-1:], self.param_dtype)
        entries, weight_ST, bias_T = promote(dense(x), weight_ST, bias_T, dtype=self.dtype)
        with products_at(self.precision):
            return statistics(dense(entries)) @ weight_ST + bias_T[None]
