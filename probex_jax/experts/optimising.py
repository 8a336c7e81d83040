"""The optimiser of experts."""

from typing import Any, NamedTuple

import optax

from probex_jax.experts.recipe import Recipe


class Rates(NamedTuple):
    """What an optimiser is told: `Recipe.learning_rate` and `Recipe.l2`."""

    learning_rate: Any
    l2: Any


def optimiser(rates: Rates | Recipe, *, decays: bool = True) -> optax.GradientTransformation:
    """Adam with the L2 term in the gradient, as PyTorch's Adam has it.

    Args:
      rates: values, which may be traced.
      decays: whether there is an L2 term at all; without, parameters are read less often.
    """
    l2 = optax.add_decayed_weights(rates.l2) if decays else optax.identity()
    return optax.chain(l2, optax.adam(rates.learning_rate))


def stepped(
    recipe: Recipe, rates: Rates, params: Any, opt_state: Any, gradient: Any
) -> tuple[Any, Any]:
    """Parameters and the optimiser's state after a step."""
    adam = optimiser(rates, decays=recipe.l2 > 0)
    updates, opt_state = adam.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
