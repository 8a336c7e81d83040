"""Trains one small model; written to be mapped over many."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from probex_jax.zoo.miniature.params import Params

Loss = Callable[[Params, jax.Array], tuple[jax.Array, Params]]


@dataclasses.dataclass(frozen=True)
class Sgd:
    """SGD with momentum that learns at the learning rates of Adam.

    Attributes:
      gain: what its steps are multiplied by; weight decay is not.
      clip: the largest norm of a gradient; longer ones are shortened to it.
      momentum: share of the last step's direction that is kept.
    """

    gain: float = 10.0
    clip: float = 1.0
    momentum: float = 0.9


def fit(
    loss: Loss,
    params: Params,
    *,
    steps: jax.Array | int,
    learning_rate: jax.Array | float,
    weight_decay: jax.Array | float,
    is_sgd: jax.Array | None = None,
    sgd: Sgd = Sgd(),
) -> Params:
    """Adam or SGD with decoupled weight decay, the learning rate falling linearly to zero.

    The number of steps may be traced: under `vmap`, models that are done wait, unchanged, for
    the longest of their batch.

    Args:
      loss: (params, step) -> (loss to minimise, tensors that this step has set otherwise, such
        as running statistics).
      params: where to begin; matrices decay, vectors do not.
      steps: number of steps.
      learning_rate: at the first step.
      weight_decay: share of a weight taken off per step, times the learning rate.
      is_sgd: whether the optimiser is SGD; it may be traced. None for Adam alone.
      sgd: the settings of SGD.

    Returns:
      The trained parameters.
    """
    optimiser = optax.scale_by_adam() if is_sgd is None else _adam_or_sgd(is_sgd, sgd)

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


def _adam_or_sgd(is_sgd: jax.Array, sgd: Sgd) -> optax.GradientTransformation:
    """Both optimisers, side by side; only the updates of one count."""
    clipped = optax.clip_by_global_norm(sgd.clip), optax.trace(sgd.momentum), optax.scale(sgd.gain)
    both = optax.scale_by_adam(), optax.chain(*clipped)

    def init(params: optax.Params) -> tuple[optax.OptState, ...]:
        return tuple(one.init(params) for one in both)

    def update(gradient, states, params=None):
        of_adam, of_sgd = (one.update(gradient, s) for one, s in zip(both, states, strict=True))
        chosen = jax.tree.map(lambda a, b: jnp.where(is_sgd, b, a), of_adam[0], of_sgd[0])
        return chosen, (of_adam[1], of_sgd[1])

    return optax.GradientTransformation(init, update)


def cross_entropy(logits_YB: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_YB.T, labels_B).mean()
