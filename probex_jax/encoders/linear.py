"""A linear layer initialised as in PyTorch, and the numeric settings of all modules."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.matrices import Matrices, batch_shape, standardise


def symmetric_uniform(fan_in: int) -> Callable[..., jax.Array]:
    """Initialiser: uniform in ±1/sqrt(fan_in).

    Args:
      fan_in: size of the dimension that is contracted with the input.

    Returns:
      A Linen initialiser `(key, shape, dtype) -> array`.

    Example:
      >>> import jax
      >>> draws = symmetric_uniform(fan_in=4)(jax.random.key(0), (1000,))
      >>> bool(abs(draws).max() <= 0.5)
      True
    """
    bound = fan_in**-0.5

    def initialise(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise


def cast(tree: Any, dtype: Any) -> Any:
    """Arrays in one dtype: factors and centres keep their form."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def common_dtype(dtype: Any, x: Any, *params: jax.Array) -> Any:
    """`dtype`, or what x and the parameters promote to if it is None."""
    return jnp.result_type(x.dtype, *params) if dtype is None else dtype


def promote(x: Any, *params: jax.Array, dtype: Any) -> Any:
    """x and parameters in `dtype`; None promotes them to a common one, as in Flax."""
    return cast((x, *params), common_dtype(dtype, x, *params))


def products_at(precision: Any) -> contextlib.AbstractContextManager:
    """Matrix products in this context have a precision; None keeps JAX's default."""
    if precision is None:
        return contextlib.nullcontext()
    if isinstance(precision, jax.lax.Precision):
        precision = precision.name.lower()
    return jax.default_matmul_precision(precision)


def entries(x: Matrices, standardised: bool) -> Matrices:
    """The entries of [N, H, W] matrices that a linear map takes: as they are, or standardised.

    A single entry, of which nothing would be left, stays as it is.
    """
    _, rows, columns = batch_shape(x)
    return standardise(x) if standardised and rows * columns > 1 else x


class Linear(nn.Module):
    """y = x W + b, with W and b uniform in ±1/sqrt(fan_in).

    Args:
      features: size of the output.
      dtype: of the computation; None promotes the input and the parameters, as in Flax.
      param_dtype: of the parameters at initialisation.
      precision: of the products, a `jax.lax.Precision` or its name; None for JAX's default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, _ = Linear(features=3).init_with_output(jax.random.key(0), jnp.ones([2, 5]))
      >>> y.shape
      (2, 3)
    """

    features: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., fan_in] -> [..., features]."""
        initialise = symmetric_uniform(x.shape[-1])
        dense = nn.Dense(
            self.features,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=initialise,
            bias_init=initialise,
            name="dense",
        )
        with products_at(self.precision):
            return dense(x)
