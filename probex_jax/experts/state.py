"""All that training changes: of one expert, or of several that are trained side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def initial_states(
    network: Network,
    recipe: Recipe,
    layers: int,
    evaluated: tuple[str, ...],
    one: OneModel,
    seeds: Sequence[int],
) -> State:
    """New networks of so many layers, each with a variant a seed, in host memory.

    Not one compiled program: what draws parameters is compiled once for each of their shapes, and
    layers of different shapes have most of these in common.
    """
    each = [_initial(network, recipe, evaluated, one, seed) for seed in seeds]

    def stacked(*leaves: Any) -> np.ndarray:
        leaf = np.stack([np.asarray(leaf) for leaf in leaves])
        return np.broadcast_to(leaf, (layers, *leaf.shape))

    return _counting(np.int32(0), jax.tree.map(stacked, *each))


def template(
    network: Network,
    recipe: Recipe,
    layers: int,
    evaluated: tuple[str, ...],
    one: OneModel,
    variants: int,
) -> State:
    """`initial_states` without values."""
    each = jax.eval_shape(lambda: _initial(network, recipe, evaluated, one, 0))

    def stacked(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((layers, variants, *leaf.shape), leaf.dtype)

    return _counting(jax.ShapeDtypeStruct((), jnp.int32), jax.tree.map(stacked, each))


def _initial(
    network: Network, recipe: Recipe, evaluated: tuple[str, ...], one: OneModel, seed: int
) -> dict[str, Any]:
    params = network.lazy_init(jax.random.key(seed), *one.arguments())["params"]
    history = np.zeros(recipe.n_evaluations, np.float32)
    best = Best(params, accuracy=np.float32(-1.0), epoch=np.int32(-1), accuracy_E=history)  # type: ignore[arg-type]
    return {
        "params": params,
        "opt_state": optimiser(Rates(0.0, 0.0)).init(params),
        "loss_E": history,
        "best": dict.fromkeys(evaluated, best),
    }


def _counting(zero: Any, each: Mapping[str, Any]) -> State:
    return State(epoch=zero, evaluation=zero, **each)
