"""Fitting experts: a compiled program from one evaluation to the next.

The data of a layer is on the devices once. `advance` runs any number of epochs and the evaluation
after them as one program; it is compiled once per network, schedule and shape of the data. Experts
on several layers of one shape, and variants of the recipe, are trained side by side in it. All that
a resumed run needs is in `State`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import PartitionSpec as P

from probex_jax.experts.devices import AXIS, ONE, Batches, Devices, Width, specs, widths
from probex_jax.experts.network import Network
from probex_jax.experts.objective import Split, as_read, loss_and_gradient, share_right
from probex_jax.experts.recipe import Recipe
from probex_jax.matrices import Centred, LowRank


class Rates(NamedTuple):
    """What an optimiser is told: `Recipe.learning_rate` and `Recipe.l2`."""

    learning_rate: Any
    l2: Any


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
_OF_EACH: Any = State(*[None] * 2, *[0] * 4)  # type: ignore[arg-type]


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
    together, stacked = _alone(network, recipe, splits)
    state = fit_together(
        together,
        jax.device_put(stacked),
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
    return squeezed(together.initial(stacked))


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


def squeezed(state: State) -> State:
    """The state of the one expert that was trained."""
    return select(state, 0, 0)


def select(state: State, layer: int, variant: int) -> State:
    """The state of one of the experts that are trained side by side."""
    whole = {name: getattr(state, name) for name in ("params", "opt_state", "loss_E", "best")}
    return state.replace(**jax.tree.map(lambda leaf: leaf[layer, variant], whole))


def expanded(state: State) -> State:
    """The state of one expert, as that of experts that are trained side by side."""
    whole = {name: getattr(state, name) for name in ("params", "opt_state", "loss_E", "best")}
    return state.replace(**jax.tree.map(lambda leaf: jnp.asarray(leaf)[None, None], whole))


@dataclass(frozen=True)
class Together:
    """Experts that are trained side by side: one program, whatever the values in their matrices.

    Args:
      network: of each.
      recipes: variants, which differ in `recipe.VARIED` alone.
      layers: how many layers, each with all variants.
      counts: models of "train", and of each split that is evaluated.
      devices: where.
    """

    network: Network
    recipes: tuple[Recipe, ...]
    layers: int
    counts: Mapping[str, int]
    devices: Devices = ONE

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
        """Orders of the training models [S, epochs, N]; S is 1 where all variants have one seed."""
        seeds = [recipe.seed for recipe in self.recipes]
        if len(set(seeds)) == 1:
            seeds = seeds[:1]
        n_models = self.counts["train"]
        each = [np.asarray(epoch_orders(seed, n_models, first_epoch, count)) for seed in seeds]
        return np.stack(each)

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

    def batches(self, first_epoch: int, width: Width) -> Batches:
        """The batches of the epochs up to the next evaluation, on the devices."""
        orders = self.orders(first_epoch, self._interval)
        return self.devices.batches(orders, self._batch, self.counts["train"], width)

    @property
    def _interval(self) -> int:
        return min(self.recipe.eval_every, self.recipe.epochs)

    @property
    def _batch(self) -> int:
        return min(self.recipe.batch_size, self.counts["train"])

    def initial(self, splits: Mapping[str, Split]) -> State:
        """New networks, before their first evaluation.

        Args:
          splits: those of `counts`, used for their shapes alone.
        """
        seeds = np.array([recipe.seed for recipe in self.recipes], np.uint32)
        one = one_model(splits["train"])
        return initial_states(self.network, self.recipe, self.layers, self.evaluated, one, seeds)


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
      splits: those of `together.counts`, x [L, N, H, W], on the devices.
      program: `compiled` of it; None to compile it now.
      state: where to go on from; None starts anew.
      on_evaluation: called with the state after each evaluation; the next step reuses its memory,
        so whoever wants to keep it copies it. The same holds for `state`.

    Returns:
      The final state.
    """
    devices, recipe = together.devices, together.recipe
    train = all_prepared(together.network, recipe, devices, splits["train"])
    evaluated = {name: splits[name] for name in together.evaluated}
    state = devices.replicated(together.initial(splits) if state is None else state)
    rates, width = devices.replicated(together.rates()), together.width()
    if program is None:
        program = partial(advance, together.network, recipe, devices)
    while int(state.evaluation) < recipe.n_evaluations:
        epoch = int(state.epoch)
        until = min(int(state.evaluation) * recipe.eval_every, recipe.epochs)
        batches = together.batches(epoch, width)
        n_epochs = devices.replicated(np.int32(until - epoch))
        state = program(state, rates, train, evaluated, batches, n_epochs)
        on_evaluation(state)
    return state


@dataclass(frozen=True)
class OneModel:
    """The shapes of one model's matrix and of the texts: what a network is initialised by."""

    shapes: tuple[tuple[tuple[int, ...], Any], ...]
    structure: Any

    def arguments(self) -> Any:
        """Matrices [1, H, W], and texts or None, without values."""
        leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in self.shapes]
        return jax.tree.unflatten(self.structure, leaves)


def one_model(split: Split) -> OneModel:
    """Of a split x [L, N, H, W]."""
    x = jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[0], x)[:1], split.x)
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


def optimiser(rates: Rates | Recipe, *, decays: bool = True) -> optax.GradientTransformation:
    """Adam with the L2 term in the gradient, as PyTorch's Adam has it.

    Args:
      rates: values, which may be traced.
      decays: whether there is an L2 term at all; without, parameters are read less often.
    """
    l2 = optax.add_decayed_weights(rates.l2) if decays else optax.identity()
    return optax.chain(l2, optax.adam(rates.learning_rate))


@partial(jax.jit, static_argnums=(1, 3))
def epoch_orders(seed: Any, n_models: int, first_epoch: Any, count: int) -> jax.Array:
    """The orders of the training models in so many epochs, [E, N].

    A program of its own, so that drawing them is compiled once for all layers.
    """

    def order(epoch):
        return jax.random.permutation(jax.random.fold_in(key, epoch), n_models)

    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.lax.map(order, first_epoch + jnp.arange(count))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def advance(
    network: Network,
    recipe: Recipe,
    devices: Devices,
    state: State,
    rates: Rates,
    train: Split,
    evaluated: dict[str, Split],
    batches: Batches,
    n_epochs: jax.Array,
) -> State:
    """Trains every expert for `n_epochs`, at most as many as there are batches of, then evaluates.

    Args:
      state: of L layers and V variants of each.
      rates: [V] each.
      train, evaluated: x [L, N, H, W].
      batches: [D, S, E, ...] of D devices, of one alone [S, E, ...]; S is V or 1.
    """

    def part(state, rates, train, evaluated, batches, n_epochs):
        """What one device does."""
        if devices.mesh is not None:
            batches = jax.tree.map(lambda leaf: leaf[0], batches)
        n_layers, n_variants = state.loss_E.shape[:2]
        of_seed: int | None = 0
        if n_variants > len(batches.index):  # one seed for all of them
            batches, of_seed = jax.tree.map(lambda leaf: leaf[0], batches), None
        axis = None if devices.mesh is None else AXIS
        one = partial(_advance, network, recipe, axis)
        variants = _side_by_side(one, n_variants, (_OF_EACH, 0, None, None, of_seed, None))
        split = Split(x=0, y=None, texts=None, weight=None)  # type: ignore[arg-type]
        axes = (_OF_EACH, None, split, dict.fromkeys(evaluated, split), None, None)
        layers = _side_by_side(variants, n_layers, axes)
        return layers(state, rates, train, evaluated, batches, n_epochs)

    if devices.mesh is None:
        return part(state, rates, train, evaluated, batches, n_epochs)
    on_devices = jax.shard_map(
        part,
        mesh=devices.mesh,
        in_specs=(
            P(),
            P(),
            specs(train),
            {name: specs(split) for name, split in evaluated.items()},
            P(AXIS),
            P(),
        ),
        out_specs=P(),
        # Sums over devices are written out below, of losses and gradients at once.
        check_vma=False,
    )
    return on_devices(state, rates, train, evaluated, batches, n_epochs)


def _side_by_side(function: Callable[..., State], size: int, axes: tuple) -> Callable[..., State]:
    """Of one expert, a function of several; a single one has no axis more in its program."""
    if size > 1:
        return jax.vmap(function, in_axes=axes, out_axes=_OF_EACH)

    def at(index, axis, part):
        return part if axis is None else jax.tree.map(lambda leaf: leaf[index], part)

    def only(*arguments):
        inner = jax.tree.map(partial(at, 0), axes, arguments, is_leaf=lambda a: a is None)
        result = function(*inner)
        return jax.tree.map(partial(at, None), _OF_EACH, result, is_leaf=lambda a: a is None)

    return only


def _advance(
    network: Network,
    recipe: Recipe,
    axis: str | None,
    state: State,
    rates: Rates,
    train: Split,
    evaluated: dict[str, Split],
    batches: Batches,
    n_epochs: jax.Array,
) -> State:
    """`advance` of one expert, on one device of the axis."""

    def epoch(index, carry):
        params, opt_state, total = carry
        of_epoch = jax.tree.map(lambda leaf: leaf[index], batches)
        params, opt_state, loss = _epoch(
            network, recipe, rates, axis, params, opt_state, train, of_epoch
        )
        return params, opt_state, total + loss

    carry = (state.params, state.opt_state, jnp.float32(0.0))
    params, opt_state, total = jax.lax.fori_loop(0, n_epochs, epoch, carry)
    done = (state.epoch + n_epochs).astype(jnp.int32)
    best = {}
    for name, split in evaluated.items():
        told, of = summed(share_right(network, params, split, recipe.compute), axis)
        best[name] = updated(state.best[name], params, told / of, done, state.evaluation)
    return state.replace(
        epoch=done,
        evaluation=state.evaluation + 1,
        params=params,
        opt_state=opt_state,
        loss_E=state.loss_E.at[state.evaluation].set(total / jnp.maximum(n_epochs, 1)),
        best=best,
    )


def updated(best: Best, params: Any, accuracy: Any, epoch: Any, evaluation: Any) -> Best:
    """With one more evaluation; a tie does not replace an earlier one."""
    better = accuracy > best.accuracy
    return Best(
        params=jax.tree.map(partial(jnp.where, better), params, best.params),
        accuracy=jnp.where(better, accuracy, best.accuracy),
        epoch=jnp.where(better, epoch, best.epoch),
        accuracy_E=best.accuracy_E.at[evaluation].set(accuracy),
    )


def train_epoch(
    network: Network, recipe: Recipe, params: Any, opt_state: Any, train: Split, order_N: jax.Array
) -> tuple[Any, Any, jax.Array]:
    """One pass over the training models of one expert, in the order given, on one device.

    Returns:
      params, opt_state, and the mean loss over the models.
    """
    size = min(recipe.batch_size, len(order_N))
    n_full, rest = divmod(len(order_N), size)
    full, last = order_N[: n_full * size].reshape(n_full, size), order_N[n_full * size :]
    batches = Batches(full, None, last if rest else None, None, size, rest)
    rates = Rates(recipe.learning_rate, recipe.l2)
    return _epoch(network, recipe, rates, None, params, opt_state, train, batches)


def _epoch(
    network: Network,
    recipe: Recipe,
    rates: Rates,
    axis: str | None,
    params: Any,
    opt_state: Any,
    train: Split,
    batches: Batches,
) -> tuple[Any, Any, jax.Array]:
    """One pass over the training models, in the batches of one epoch."""

    def step(carry, batch, size):
        params, opt_state = carry
        found = loss_and_gradient(
            network, params, train, *batch, n_models=size, compute=recipe.compute
        )
        loss, gradient = summed(found, axis)
        return stepped(recipe, rates, params, opt_state, gradient), loss

    carry, full = (params, opt_state), (batches.index, batches.weight)
    n_full = len(batches.index)
    total = jnp.float32(0.0)
    if n_full:
        carry, losses = jax.lax.scan(partial(step, size=batches.size), carry, full)
        total += losses.sum() * batches.size
    if batches.rest:
        last = batches.rest_index, batches.rest_weight
        carry, loss = step(carry, last, batches.rest)
        total += loss * batches.rest
    return *carry, total / (n_full * batches.size + batches.rest)


def stepped(
    recipe: Recipe, rates: Rates, params: Any, opt_state: Any, gradient: Any
) -> tuple[Any, Any]:
    """Parameters and the optimiser's state after a step."""
    adam = optimiser(rates, decays=recipe.l2 > 0)
    updates, opt_state = adam.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def summed(tree: Any, axis: str | None) -> Any:
    """The sum over all devices of an axis."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def prepared(network: Network, train: Split) -> Split:
    """The training models of one layer as the encoder reads them fastest, again and again."""
    if network.normalise != "none" or not hasattr(network.encoder, "prepare"):
        return train
    return train._replace(x=network.encoder.prepare(train.x))


def all_prepared(network: Network, recipe: Recipe, devices: Devices, train: Split) -> Split:
    """`prepared` of several layers; in bfloat16 now, not in each step, if that computes."""

    def prepare(x):
        if not isinstance(x, LowRank | Centred):  # these are small
            x = jax.vmap(lambda x: prepared(network, train._replace(x=x)).x)(x)
        return as_read(x, recipe.compute) if recipe.compute == "bfloat16" else x

    if devices.mesh is not None:
        of_x = specs(train).x
        prepare = jax.shard_map(
            prepare,
            mesh=devices.mesh,
            in_specs=(of_x,),
            out_specs=of_x if isinstance(train.x, LowRank | Centred) else P(None, AXIS),
            check_vma=False,
        )
    return train._replace(x=prepare(train.x))
