"""Linear maps of a few numbers of each matrix, which subclasses compute."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.encoders.linear import products_at, promote, symmetric_uniform
from probex_jax.matrices import Matrices


class OfFeatures(nn.Module):
    """A linear map of features of each matrix.

        e_t = sum_f A[f, t] · features(X)[f] + b_t

    Args:
      rep_dim: size T of the output.
      dtype: of the computation; None promotes the input and the parameters, as in Flax.
      param_dtype: of the parameters at initialisation.
      precision: of the products, a `jax.lax.Precision` or its name; None for JAX's default.
    """

    rep_dim: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    n_features: ClassVar[int]

    @nn.compact
    def __call__(self, x: Matrices) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T]."""
        initialise = symmetric_uniform(self.n_features)
        shape = self.n_features, self.rep_dim
        weight_FT = self.param("weight", initialise, shape, self.param_dtype)
        bias_T = self.param("bias", initialise, shape[-1:], self.param_dtype)
        x, weight_FT, bias_T = promote(x, weight_FT, bias_T, dtype=self.dtype)
        with products_at(self.precision):
            return self.features(x) @ weight_FT + bias_T[None]

    def features(self, x: Matrices) -> jax.Array:
        """[N, H, W] weight matrices -> [N, F]."""
        raise NotImplementedError
