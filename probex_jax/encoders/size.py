"""Size and rank: how large a matrix is, and of how many directions, whatever its entries are."""

import jax
import jax.numpy as jnp

from probex_jax.encoders.features import OfFeatures
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


class Size(OfFeatures):
    """A linear map of `log_size`; fields as of `OfFeatures`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, _ = Size(rep_dim=10).init_with_output(jax.random.key(0), jnp.ones([4, 8, 6]))
      >>> y.shape
      (4, 10)
    """

    n_features = 1

    def features(self, x):
        return log_size(x)


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


class Rank(OfFeatures):
    """A linear map of `log_rank`; fields as of `OfFeatures`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, _ = Rank(rep_dim=10).init_with_output(jax.random.key(0), jnp.ones([4, 8, 6]))
      >>> y.shape
      (4, 10)
    """

    n_features = 2

    def features(self, x):
        return log_rank(x)
