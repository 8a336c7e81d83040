"""How parameters are trained by gradient descent, and variants that are tried side by side."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import optax

from probex_jax.errors import ProbexError

# What products are computed in; of "tensorfloat32" on hardware that has it.
COMPUTE = ("float32", "tensorfloat32", "bfloat16")
# What the matrices of a layer are kept in on a device.
STORAGE = ("float32", "bfloat16")
# Fields that may differ between networks that one compiled program trains.
VARIED = ("learning_rate", "l2", "seed")


@dataclass(frozen=True)
class Adam:
    """Training by Adam; the defaults are those of the ProbeX paper.

    Args:
      learning_rate: of Adam.
      l2: weight of the L2 term, added to the gradient (not decoupled).
      batch_size: models a step; the last, short batch of an epoch is kept.
      epochs: passes over the training split.
      eval_every: epochs between two evaluations on the validation split; it is evaluated before
        training, after every so many epochs, and at the end.
      seed: of the initialisation and of the order of the models.
      compute: what the encoder's products are computed in: "float32", "tensorfloat32" (faster on
        NVIDIA GPUs, on a CPU the same as float32) or "bfloat16". Parameters, their gradients' sums,
        the head and the loss are float32 in any case.
      storage: what the training matrices are kept in: "float32" or "bfloat16", which halves them.

    Raises:
      ProbexError: if a field is of another type or out of its range.

    Example:
      >>> Adam(epochs=100).n_evaluations
      5
    """

    learning_rate: float = 1e-3
    l2: float = 1e-5
    batch_size: int = 128
    epochs: int = 500
    eval_every: int = 25
    seed: int = 0
    compute: str = "float32"
    storage: str = "float32"

    def __post_init__(self):
        for name, least in (("batch_size", 1), ("epochs", 1), ("eval_every", 1), ("seed", 0)):
            value = getattr(self, name)
            if not (type(value) is int and least <= value < 2**31):
                raise ProbexError(f"recipe.{name}: {value!r} is not a whole number >= {least}")
        for name in ("learning_rate", "l2"):
            value = getattr(self, name)
            if not (type(value) in (int, float) and 0 <= value < float("inf")):
                raise ProbexError(f"recipe.{name}: {value!r} is not a number >= 0")
        for name, known in (("compute", COMPUTE), ("storage", STORAGE)):
            value = getattr(self, name)
            if value not in known:
                raise ProbexError(f"recipe.{name}: {value!r} is not one of {', '.join(known)}")

    @property
    def n_evaluations(self) -> int:
        """Evaluations of a whole training, the one before it included."""
        return 1 + -(-self.epochs // self.eval_every)


def variants(recipe: Adam, grid: Mapping[str, Sequence[Any]]) -> tuple[Adam, ...]:
    """A recipe with every combination of some values of some of its fields.

    Args:
      recipe: the recipe.
      grid: values of `learning_rate`, `l2` or `seed` to try.

    Returns:
      The recipes, the last field varying fastest; of an empty grid the one recipe.

    Raises:
      ProbexError: if a field is another, has no value, or a value that it cannot have.

    Example:
      >>> [(r.l2, r.seed) for r in variants(Adam(), {"l2": [0.0, 0.1], "seed": [7]})]
      [(0.0, 7), (0.1, 7)]
    """
    for field, values in grid.items():
        if field not in VARIED:
            raise ProbexError(f"grid.{field}: a grid can be of {', '.join(VARIED)} alone")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ProbexError(f"grid.{field}: {values!r} is not a list of values to try")
        if len(set(values)) < len(values):
            raise ProbexError(f"grid.{field}: {values!r} has a value twice")
    return tuple(
        dataclasses.replace(recipe, **dict(zip(grid, values, strict=True)))
        for values in itertools.product(*grid.values())
    )


class Rates(NamedTuple):
    """What an optimiser is told: `Adam.learning_rate` and `Adam.l2`."""

    learning_rate: Any
    l2: Any


def adam(rates: Rates, *, decays: bool = True) -> optax.GradientTransformation:
    """Adam with the L2 term in the gradient, as PyTorch's Adam has it.

    Args:
      rates: values, which may be traced.
      decays: whether there is an L2 term at all; without, parameters are read less often.
    """
    l2 = optax.add_decayed_weights(rates.l2) if decays else optax.identity()
    return optax.chain(l2, optax.adam(rates.learning_rate))
