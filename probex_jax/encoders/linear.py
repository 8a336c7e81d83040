"""A linear layer that starts as those of the PyTorch implementations do."""

from collections.abc import Callable

import jax
from flax import linen as nn


def symmetric_uniform(fan_in: int) -> Callable[..., jax.Array]:
    """Initialiser: uniform in ±1/sqrt(fan_in).

    Args:
      fan_in: the size of the dimension that is contracted with the input.

    Returns:
      A Linen initialiser `(key, shape, dtype) -> array`.

    Example:
      >>> import jax
      >>> draws = symmetric_uniform(fan_in=4)(jax.random.key(0), (1000,))
      >>> bool(abs(draws).max() <= 0.5)
      True
    """
    bound = fan_in**-0.5

    def initialise(key, shape, dtype=jax.numpy.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise


class Linear(nn.Module):
    """y = x W + b, with W and b uniform in ±1/sqrt(fan_in).

    Args:
      features: size of the output.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, _ = Linear(features=3).init_with_output(jax.random.key(0), jnp.ones([2, 5]))
      >>> y.shape
      (2, 3)
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., fan_in] -> [..., features]."""
        initialise = symmetric_uniform(x.shape[-1])
        dense = nn.Dense(self.features, kernel_init=initialise, bias_init=initialise, name="dense")
        return dense(x)
