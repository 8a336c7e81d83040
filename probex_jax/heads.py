"""Heads: small modules that turn representations into what an expert answers."""

import jax
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
