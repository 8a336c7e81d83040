"""Trains one small model; written to be mapped over many."""

from collections.abc import Callable

import jax
import optax

from probex_jax.zoo.miniature.params import Params

Loss = Callable[[Params, jax.Array], tuple[jax.Array, Params]]


def fit(
    loss: Loss,
    params: Params,
    *,
    steps: jax.Array | int,
    learning_rate: jax.Array | float,
    weight_decay: jax.Array | float,
) -> Params:
    """Adam with decoupled weight decay, the learning rate falling linearly to zero.

    The number of steps may be traced: under `vmap`, models that are done wait, unchanged, for
    the longest of their batch.

    Args:
      loss: (params, step) -> (loss to minimise, tensors that this step has set otherwise, such
        as running statistics).
      params: where to begin; matrices decay, vectors do not.
      steps: number of steps.
      learning_rate: at the first step.
      weight_decay: share of a weight taken off per step, times the learning rate.

    Returns:
      The trained parameters.
    """
    optimiser = optax.scale_by_adam()

    def step(index: jax.Array, carry: tuple[Params, optax.OptState]):
        params, state = carry
        gradient, running = jax.grad(loss, has_aux=True)(params, index)
        update, state = optimiser.update(gradient, state)
        rate = learning_rate * (1 - index / steps)
        new = {
            name: value - rate * (update[name] + (weight_decay * value if value.ndim > 1 else 0))
            for name, value in params.items()
        }
        return new | running, state

    params, _ = jax.lax.fori_loop(0, steps, step, (params, optimiser.init(params)))
    return params


def cross_entropy(logits_YB: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_YB.T, labels_B).mean()
