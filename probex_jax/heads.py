"""Heads: small modules that turn representations into logits."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.encoders.linear import Linear, products_at, promote
from probex_jax.matrices.batch import at_least_float32


class ClassHead(nn.Module):
    """One logit per class: was the model trained on it?

        y = T e + c

    Args:
      n_classes: number of classes Y.
      dtype: of the computation; None promotes the input and the parameters, as in Flax.
      param_dtype: of the parameters at initialisation.
      precision: of the products, a `jax.lax.Precision` or its name; None for JAX's default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, _ = ClassHead(n_classes=20).init_with_output(jax.random.key(0), jnp.ones([4, 16]))
      >>> y.shape
      (4, 20)
    """

    n_classes: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, representation: jax.Array) -> jax.Array:
        """[N, T] representations -> [N, Y] logits."""
        numeric = self.dtype, self.param_dtype, self.precision
        return Linear(self.n_classes, *numeric, name="linear")(representation)


class TextHead(nn.Module):
    """One logit per text: does it say what the model was trained on?

        y_c = s · cos(e, A t_c + a)

    Args:
      rep_dim: size T of the representation.
      logit_scale: the scale s of the cosines.
      dtype: of the computation; None promotes the inputs and the parameters, as in Flax.
      param_dtype: of the parameters at initialisation.
      precision: of the products, a `jax.lax.Precision` or its name; None for JAX's default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> head = TextHead(rep_dim=16, logit_scale=20.0)
      >>> e_NT, t_YD = jnp.ones([4, 16]), jnp.ones([3, 8])
      >>> y, _ = head.init_with_output(jax.random.key(0), e_NT, t_YD)
      >>> y.shape
      (4, 3)

    References:
      arXiv 2410.13569, section 4.3.
    """

    rep_dim: int
    logit_scale: float
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    def setup(self) -> None:
        self.linear = Linear(self.rep_dim, self.dtype, self.param_dtype, self.precision)

    def __call__(self, representation: jax.Array, texts: jax.Array) -> jax.Array:
        """[N, T] representations and [Y, D] text embeddings -> [N, Y] logits."""
        e_NT, t_YT = promote(unit(representation), self.place(texts), dtype=self.dtype)
        with products_at(self.precision):
            return self.logit_scale * e_NT @ t_YT.T

    def place(self, texts: jax.Array) -> jax.Array:
        """[Y, D] text embeddings -> [Y, T] unit vectors in the space of the representations."""
        return unit(self.linear(texts))


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors scaled to length one; those shorter than 1e-8 stay near zero.

    Args:
      vectors: [..., T] float.

    Returns:
      [..., T] of the same dtype; lengths are computed in float32 at least.
    """
    exact = at_least_float32(vectors)
    squares = jnp.sum(exact**2, axis=-1, keepdims=True)
    return (exact * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))).astype(vectors.dtype)
