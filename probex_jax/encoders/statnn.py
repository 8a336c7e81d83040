"""StatNN: simple statistics of weights, the features of Unterthiner et al. (2020)."""

import jax
import jax.numpy as jnp

from probex_jax.encoders.features import OfFeatures
from probex_jax.matrices import batch_shape, dense

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


class Statistics(OfFeatures):
    """A linear map of a matrix's seven `statistics`, which no order of its entries changes.

    Fields are those of `OfFeatures`.

    Example:
      >>> y, _ = Statistics(rep_dim=10).init_with_output(jax.random.key(0), jnp.ones([4, 8, 6]))
      >>> y.shape
      (4, 10)
    """

    n_features = N_STATISTICS

    def features(self, x):
        return statistics(dense(x))
