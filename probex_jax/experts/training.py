"""Fitting experts: a compiled program from one evaluation to the next.

The data of a layer is on the devices once. `advance` runs any number of epochs and the evaluation
after them as one program; it is compiled once per network, schedule and shape of the data. Experts
on several layers of one shape, and variants of the recipe, are trained side by side in it. All that
a resumed run needs is in `State`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np

from probex_jax.experts.advancing import advance, all_prepared, epoch_orders
from probex_jax.experts.checking import check_finite, check_splits, check_together
from probex_jax.experts.devices import ONE, Batches, Devices, Width, widths
from probex_jax.experts.network import Network
from probex_jax.experts.objective import Split
from probex_jax.experts.optimising import Rates
from probex_jax.experts.recipe import Recipe
from probex_jax.experts.state import State, expanded, initial_states, one_model, squeezed, template


def fit(
    network: Network,
    recipe: Recipe,
    train: Split,
    val: Split,
    *,
    val_holdout: Split | None = None,
    state: State | None = None,
    on_evaluation: Callable[[State], None] = lambda state: None,
) -> State:
    """Trains to the end of the recipe, keeping the parameters that are best on `val`.

    Classification is trained with a binary cross-entropy per class, alignment with text (splits
    that have `texts`) with the softmax cross-entropy over the candidates.

    Args:
      network: what is trained.
      recipe: how.
      train, val: data of the two splits; put on the device here, if it is not there.
      val_holdout: models of classes that are not trained on, among themselves; the parameters that
        are best on it are kept as well.
      state: where to go on from; None starts anew. Whether training was interrupted or not, the
        result is the same to the bit on the same machine.
      on_evaluation: called with the state after each evaluation.

    Returns:
      The final state.

    Raises:
      ProbexError: if an array does not fit the others or the network, matrices are not finite, or
        labels are not zeros and ones (aligned with text: places in `texts`).

    Example:
      >>> import jax.numpy as jnp
      >>> from probex_jax.experts import build_network
      >>> x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1, 1) * jnp.ones([8, 3, 2])
      >>> data = Split(x, (x[:, 0, :1] > 0).astype(jnp.float32))
      >>> network = build_network({"name": "dense"}, head="none", n_classes=1)
      >>> recipe = Recipe(learning_rate=0.1, epochs=50, eval_every=10)
      >>> float(fit(network, recipe, data, data).best["val"].accuracy)
      1.0
    """
    evaluated = {"val": val} | ({} if val_holdout is None else {"val_holdout": val_holdout})
    splits = {"train": train, **evaluated}
    check_splits(network, splits)
    together, stacked = _alone(network, recipe, splits)
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused next
        stacked = jax.device_put(stacked)
    check_finite(stacked)
    stacked["train"] = all_prepared(network, together.recipe, ONE, stacked["train"])
    state = fit_together(
        together,
        stacked,
        state=None if state is None else expanded(state),
        on_evaluation=lambda state: on_evaluation(squeezed(state)),
    )
    return squeezed(state)


def initial_state(
    network: Network, recipe: Recipe, train: Split, evaluated: tuple[str, ...] = ("val",)
) -> State:
    """What `fit` begins with.

    Args:
      network, recipe: as `fit` takes them.
      train: used for its shapes alone.
      evaluated: names of the splits that will be evaluated.
    """
    together, stacked = _alone(network, recipe, dict.fromkeys(("train", *evaluated), train))
    return squeezed(together.initial(stacked["train"]))


def _alone(
    network: Network, recipe: Recipe, splits: Mapping[str, Split]
) -> tuple["Together", dict[str, Split]]:
    """One expert as those that are trained side by side."""
    stacked = {
        name: split._replace(x=jax.tree.map(lambda leaf: leaf[None], split.x))
        for name, split in splits.items()
    }
    counts = {name: split.x.shape[0] for name, split in splits.items()}
    return Together(network, (recipe,), 1, counts), stacked


@dataclass(frozen=True)
class Together:
    """Experts that are trained side by side: one program, whatever the values in their matrices.

    Args:
      network: of each.
      recipes: variants, which differ in `recipe.VARIED` alone.
      layers: how many layers, each with all variants.
      counts: models of "train", and of each split that is evaluated.
      devices: where.
      one_order: whether all variants see the models in one order, having one seed.
    """

    network: Network
    recipes: tuple[Recipe, ...]
    layers: int
    counts: Mapping[str, int]
    devices: Devices = ONE
    one_order: bool = True

    @property
    def recipe(self) -> Recipe:
        """What all variants have in common; `l2` says whether one of them has any."""
        any_l2 = float(any(recipe.l2 > 0 for recipe in self.recipes))
        return dataclasses.replace(self.recipes[0], learning_rate=0.0, l2=any_l2, seed=0)

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The splits that are evaluated."""
        return tuple(name for name in self.counts if name != "train")

    def rates(self) -> Rates:
        """[variants] each."""
        return Rates(
            np.array([recipe.learning_rate for recipe in self.recipes], np.float32),
            np.array([recipe.l2 for recipe in self.recipes], np.float32),
        )

    def orders(self, first_epoch: int, count: int) -> np.ndarray:
        """Orders of the training models [S, epochs, N]: one, or one for each variant."""
        seeds = [recipe.seed for recipe in self.recipes]
        if self.one_order:
            seeds = seeds[:1]
        n_models = self.counts["train"]
        each = [np.asarray(epoch_orders(seed, n_models, first_epoch, count)) for seed in seeds]
        return np.stack(each)

    @cached_property
    def width(self) -> Width:
        """Models of a batch that a device takes."""
        if self.devices.count == 1:
            return Width(0, 0)
        n_models, parts = self.counts["train"], range(0, self.recipe.epochs, self.recipe.eval_every)
        found = [
            widths(self.orders(first, self._interval), self._batch, n_models, self.devices.count)
            for first in parts
        ]
        return Width(max(w.full for w in found), max(w.rest for w in found))

    def batches(self, first_epoch: int) -> Batches:
        """The batches of the epochs up to the next evaluation, on the devices."""
        orders = self.orders(first_epoch, self._interval)
        return self.devices.batches(orders, self._batch, self.counts["train"], self.width)

    @property
    def _interval(self) -> int:
        return min(self.recipe.eval_every, self.recipe.epochs)

    @property
    def _batch(self) -> int:
        return min(self.recipe.batch_size, self.counts["train"])

    def initial(self, train: Split) -> State:
        """New networks, before their first evaluation, in host memory.

        Args:
          train: used for its shapes alone.
        """
        seeds = [recipe.seed for recipe in self.recipes]
        return initial_states(
            self.network, self.recipe, self.layers, self.evaluated, one_model(train), seeds
        )

    def template(self, train: Split) -> State:
        """`initial` without values."""
        return template(
            self.network,
            self.recipe,
            self.layers,
            self.evaluated,
            one_model(train),
            len(self.recipes),
        )


def fit_together(
    together: Together,
    splits: Mapping[str, Split],
    *,
    program: Callable[..., State] | None = None,
    state: State | None = None,
    on_evaluation: Callable[[State], None] = lambda state: None,
) -> State:
    """Trains several experts to the end of their recipes, each as `fit` would.

    Args:
      together: what is trained.
      splits: those of `together.counts`, x [L, N, H, W], on the devices; "train" from
        `all_prepared`.
      program: `compiled` of it; None to compile it now.
      state: where to go on from; None starts anew.
      on_evaluation: called with the state after each evaluation; the next step reuses its memory,
        so whoever wants to keep it copies it. The same holds for `state`.

    Returns:
      The final state.

    Raises:
      ProbexError: if a split is of other layers, or has other numbers of matrices and labels.
    """
    check_together(together.layers, {name: splits[name] for name in together.counts})
    devices, recipe = together.devices, together.recipe
    train, evaluated = splits["train"], {name: splits[name] for name in together.evaluated}
    state = devices.replicated(together.initial(train) if state is None else state)
    rates = devices.replicated(together.rates())
    if program is None:
        program = partial(advance, together.network, recipe, devices)
    while int(state.evaluation) < recipe.n_evaluations:
        epoch = int(state.epoch)
        until = min(int(state.evaluation) * recipe.eval_every, recipe.epochs)
        batches = together.batches(epoch)
        n_epochs = devices.replicated(np.int32(until - epoch))
        state = program(state, rates, train, evaluated, batches, n_epochs)
        on_evaluation(state)
    return state
