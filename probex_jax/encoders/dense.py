"""Dense: one linear layer on the flattened matrix, the baseline of the ProbeX paper."""

import jax
from flax import linen as nn

from probex_jax.encoders.linear import symmetric_uniform
from probex_jax.matrices import Matrices, batch_shape, inner, standardise


class Dense(nn.Module):
    """A linear map of all the entries of a weight matrix.

        e_t = sum_hw A[h, w, t] · X[h, w] + b_t

    With as many outputs as classes and no head after it this is the paper's dense expert.

    Args:
      rep_dim: size T of the output.
      standardise: whether every matrix is first given mean 0 and standard deviation 1 over its
        entries. Of a matrix minus the tree's centre that takes off how far the model was trained.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, _ = Dense(rep_dim=10).init_with_output(jax.random.key(0), jnp.ones([4, 8, 6]))
      >>> y.shape
      (4, 10)

    References:
      arXiv 2410.13569, section 4.1.
    """

    rep_dim: int
    standardise: bool = False

    @nn.compact
    def __call__(self, x: Matrices) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T]."""
        _, rows, columns = batch_shape(x)
        initialise = symmetric_uniform(rows * columns)
        weight_HWT = self.param("weight", initialise, (rows, columns, self.rep_dim))
        bias_T = self.param("bias", initialise, (self.rep_dim,))
        return inner(self.read(x), weight_HWT) + bias_T[None]

    def read(self, x: Matrices) -> Matrices:
        """The [N, H, W] entries that the map is of."""
        return standardise(x) if self.standardise else x
