"""What tests of array code share: draws, relative errors, values with gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def draw(seed, *shape):
    """Normal draws, float32."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def error(actual, expected):
    """Relative error against what is expected, both taken in float64."""
    expected = np.asarray(expected, np.float64)
    return np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)


def start(encoder, x):
    """Parameters of an encoder."""
    return jax.jit(encoder.init)(jax.random.key(1), x)["params"]


@partial(jax.jit, static_argnames="encoder")
def value_and_gradient(encoder, params, x):
    """Representations, and the gradient of a fixed mix of them."""

    def total(params):
        e_NT = encoder.apply({"params": params}, x)
        return jnp.sum(draw(2, *e_NT.shape) * e_NT), e_NT

    gradient, value = jax.grad(total, has_aux=True)(params)
    return value, gradient
