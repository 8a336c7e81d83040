"""Dense: one linear layer on the flattened matrix, the baseline of the ProbeX paper."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.encoders.linear import entries, products_at, promote, symmetric_uniform
from probex_jax.matrices import Matrices, batch_shape, inner


class Dense(nn.Module):
    """A linear map of all entries of a weight matrix.

        e_t = sum_hw A[h, w, t] · X[h, w] + b_t

    With one output per class and no head, this is the paper's dense expert.

    Args:
      rep_dim: size T of the output.
      standardise: whether every matrix is first given mean 0 and standard deviation 1 over its
        entries. If the tree's centre was subtracted, this removes how far the model was trained.
        A single entry, of which nothing would be left, stays as it is.
      dtype: of the computation; None promotes the input and the parameters, as in Flax.
      param_dtype: of the parameters at initialisation.
      precision: of the products, a `jax.lax.Precision` or its name; None for JAX's default.

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
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x: Matrices) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T]."""
        _, rows, columns = batch_shape(x)
        initialise = symmetric_uniform(rows * columns)
        shape = rows, columns, self.rep_dim
        weight_HWT = self.param("weight", initialise, shape, self.param_dtype)
        bias_T = self.param("bias", initialise, shape[-1:], self.param_dtype)
        x, weight_HWT, bias_T = promote(x, weight_HWT, bias_T, dtype=self.dtype)
        with products_at(self.precision):
            return inner(self.read(x), weight_HWT) + bias_T[None]

    def read(self, x: Matrices) -> Matrices:
        """[N, H, W] weight matrices -> the [N, H, W] entries that the map takes."""
        return entries(x, self.standardise)
