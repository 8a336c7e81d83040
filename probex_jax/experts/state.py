"""All that training changes: of one expert, or of several that are trained side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from probex_jax.experts.network import Network
from probex_jax.experts.objective import Split
from probex_jax.experts.optimising import Rates, optimiser
from probex_jax.experts.recipe import Recipe
from probex_jax.matrices import Squared


class Best(struct.PyTreeNode):
    """The best evaluation on one split so far.

    Args:
      params: parameters of the network at that time.
      accuracy: its accuracy; -1 before the first evaluation.
      epoch: its epoch.
      accuracy_E: the accuracy at each evaluation.
    """

    params: Any
    accuracy: jax.Array
    epoch: jax.Array
    accuracy_E: jax.Array


class State(struct.PyTreeNode):
    """Everything that training changes.

    Of experts that are trained side by side all but `epoch` and `evaluation` have two more axes in
    front, layers and variants of the recipe.

    Args:
      epoch: epochs done, int32.
      evaluation: evaluations done, int32.
      params: parameters of the network.
      opt_state: state of the optimiser.
      loss_E: mean training loss over the epochs before each evaluation.
      best: of each split that is evaluated, "val" and perhaps "val_holdout", the best so far.
    """

    epoch: jax.Array
    evaluation: jax.Array
    params: Any
    opt_state: Any
    loss_E: jax.Array
    best: dict[str, Best]


# Which leaves of a state are of one expert, and which of all that are trained together.
OF_EACH: Any = State(*[None] * 2, *[0] * 4)  # type: ignore[arg-type]


def squeezed(state: State) -> State:
    """The state of the one expert that was trained."""
    return select(state, 0, 0)


def select(state: State, layer: int, variant: int) -> State:
    """The state of one of the experts that are trained side by side."""
    return _changed(state, lambda leaf: leaf[layer, variant])


def expanded(state: State) -> State:
    """The state of one expert, as that of experts that are trained side by side."""
    return _changed(state, lambda leaf: jnp.asarray(leaf)[None, None])


def _changed(state: State, change: Callable[[Any], Any]) -> State:
    """A state of its own: no step that takes the memory of the other takes this one's."""
    common: Any = {"epoch": jnp.array(state.epoch), "evaluation": jnp.array(state.evaluation)}
    names = ("params", "opt_state", "loss_E", "best")
    return State(**common, **{n: jax.tree.map(change, getattr(state, n)) for n in names})


@dataclass(frozen=True)
class OneModel:
    """The shapes of one model's matrix and of the texts: what a network is initialised by."""

    shapes: tuple[tuple[int, ...], ...]
    structure: Any

    def arguments(self) -> Any:
        """Matrices [1, H, W], and texts or None, without values."""
        leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in self.shapes]
        return jax.tree.unflatten(self.structure, leaves)


def one_model(split: Split) -> OneModel:
    """Of a split x [L, N, H, W]."""
    matrices: Any = split.x.matrices if isinstance(split.x, Squared) else split.x
    x = jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[0], x)[:1], matrices)
    leaves, structure = jax.tree.flatten((x, split.texts))
    return OneModel(tuple(leaf.shape for leaf in leaves), structure)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def initial_states(
    network: Network,
    recipe: Recipe,
    layers: int,
    evaluated: tuple[str, ...],
    one: OneModel,
    seeds_V: jax.Array,
) -> State:
    """New networks of so many layers, each with a variant a seed, before their first evaluation."""

    def initial(seed):
        params = network.lazy_init(jax.random.key(seed), *one.arguments())["params"]
        history = jnp.zeros(recipe.n_evaluations)
        best = Best(params, accuracy=jnp.float32(-1.0), epoch=jnp.int32(-1), accuracy_E=history)
        each = {
            "params": params,
            "opt_state": optimiser(Rates(0.0, 0.0)).init(params),
            "loss_E": history,
            "best": dict.fromkeys(evaluated, best),
        }
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (layers, *leaf.shape)), each)

    each = jax.vmap(initial, out_axes=1)(seeds_V)
    return State(epoch=jnp.int32(0), evaluation=jnp.int32(0), **each)
