"""The expert of one layer of a sweep, fitted in closed form."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from probex_jax.errors import ProbexError
from probex_jax.experts.expert import Expert
from probex_jax.experts.objective import logits, right
from probex_jax.experts.ridge import Ridge, fit_ridge
from probex_jax.experts.source import Source, expert_of


def solve(source: Source, layer: str, card: Mapping[str, Any], recipe: Ridge) -> Expert:
    """Fits an expert on one layer, which is in memory as a whole.

    Args:
      source: where its data is.
      layer: which layer.
      card: what the expert's card says before it is fitted.
      recipe: how.

    Raises:
      FrozenLayer: if the training matrices are all the same.
      ProbexError: as `fit_ridge`.
    """
    tree = source.tree(layer)
    train, val = (
        source.targets(name)._replace(x=jax.device_put(source.matrices(layer, tree, name)))
        for name in ("train", "val")
    )
    network = source.network(layer)
    try:
        found = fit_ridge(network, recipe, train, val)
    except ProbexError as error:
        raise ProbexError(f"{source.store.path}: {layer}: {error}") from None
    told = right(logits(network, {"params": found.params}, val.x), val.y)
    metrics = {
        "val_accuracy": float(jnp.mean(told)),
        "val_loss": found.loss,
        "penalty": found.penalty,
        "factor": found.factor,
    }
    return expert_of(found.params, tree, {**card, "selected_on": "val", "metrics": metrics})
