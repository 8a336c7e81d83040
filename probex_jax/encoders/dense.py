"""Dense: one linear layer on the flattened matrix, the baseline of the ProbeX paper."""

import jax
from flax import linen as nn

from probex_jax.encoders.linear import symmetric_uniform
from probex_jax.matrices import Matrices, inner


class Dense(nn.Module):
    """A linear map of all the entries of a weight matrix.

        e_t = sum_hw A[h, w, t] · X[h, w] + b_t

    With as many outputs as classes and no head after it this is the paper's dense expert.

    Args:
      rep_dim: size T of the output.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, _ = Dense(rep_dim=10).init_with_output(jax.random.key(0), jnp.ones([4, 8, 6]))
      >>> y.shape
      (4, 10)

    References:
      arXiv 2410.13569, section 4.1.
    """

    rep_dim: int

    @nn.compact
    def __call__(self, x: Matrices) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T]."""
        rows, columns = x.shape[-2:]
        initialise = symmetric_uniform(rows * columns)
        weight_HWT = self.param("weight", initialise, (rows, columns, self.rep_dim))
        bias_T = self.param("bias", initialise, (self.rep_dim,))
        return inner(x, weight_HWT) + bias_T[None]
