"""Heads: small modules that turn representations into what an expert answers."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.encoders.linear import Linear


class ClassHead(nn.Module):
    """One logit per class: was the model trained on it?

        y = T e + c

    Args:
      n_classes: number of classes Y.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, _ = ClassHead(n_classes=20).init_with_output(jax.random.key(0), jnp.ones([4, 16]))
      >>> y.shape
      (4, 20)
    """

    n_classes: int

    @nn.compact
    def __call__(self, representation: jax.Array) -> jax.Array:
        """[N, T] representations -> [N, Y] logits."""
        return Linear(self.n_classes, name="linear")(representation)


class TextHead(nn.Module):
    """One logit per text: does it say what the model was trained on?

        y_c = s · cos(e, A t_c + a)

    Args:
      rep_dim: size T of the representation.
      logit_scale: the scale s of the cosines.

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

    def setup(self) -> None:
        self.linear = Linear(self.rep_dim)

    def __call__(self, representation: jax.Array, texts: jax.Array) -> jax.Array:
        """[N, T] representations and [Y, D] text embeddings -> [N, Y] logits."""
        return self.logit_scale * unit(representation) @ self.place(texts).T

    def place(self, texts: jax.Array) -> jax.Array:
        """[Y, D] text embeddings -> [Y, T] unit vectors among the representations."""
        return unit(self.linear(texts))


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors at length one; those shorter than 1e-8 stay near zero.

    Args:
      vectors: [..., T] float.

    Returns:
      [..., T] float.
    """
    squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))
