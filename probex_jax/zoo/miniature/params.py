"""Parameters as the model's file holds them: a dict from tensor name to array."""

import math

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]
Shapes = dict[str, tuple[int, ...]]


def initialise(shapes: Shapes, key: jax.Array) -> Params:
    """Fresh parameters: weights normal(1/sqrt(fan_in)), biases zero, scales and variances one.

    Args:
      shapes: shape of every tensor by name, in PyTorch's layout (the first axis is the output).
      key: a random key; each tensor's is folded in by its position.
    """
    return {
        name: _initial(name, shape, jax.random.fold_in(key, index))
        for index, (name, shape) in enumerate(shapes.items())
    }


def _initial(name: str, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    if len(shape) > 1:
        return jax.random.normal(key, shape) / math.sqrt(math.prod(shape[1:]))
    if name.endswith((".bias", ".running_mean", ".num_batches_tracked")):
        return jnp.zeros(shape)
    return jnp.ones(shape)


def is_head(name: str) -> bool:
    """Whether the tensor belongs to the classifier, which fine-tuning replaces."""
    return name.startswith("classifier.")


def linear(weight_OI: jax.Array, x: jax.Array) -> jax.Array:
    """weight @ x over the first axis of x [I, ..., B]; returns [O, ..., B]."""
    return (weight_OI @ x.reshape(x.shape[0], -1)).reshape(-1, *x.shape[1:])


def per_feature(vector_O: jax.Array, like: jax.Array) -> jax.Array:
    """A vector over the first axis, shaped to broadcast against `like`."""
    return vector_O.reshape(-1, *[1] * (like.ndim - 1))
