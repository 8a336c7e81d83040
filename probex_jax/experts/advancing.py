"""The compiled program of training: from one evaluation to the next, on one device or on several.

`advance` runs any number of epochs and the evaluation after them; it is compiled once per network,
recipe and shape of the data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from probex_jax.experts.devices import AXIS, Batches, Devices, specs
from probex_jax.experts.network import Network
from probex_jax.experts.objective import (
    Split,
    as_read,
    loss_and_gradient,
    products,
    share_right,
)
from probex_jax.experts.optimising import Rates, stepped
from probex_jax.experts.recipe import Recipe
from probex_jax.experts.state import OF_EACH, Best, State
from probex_jax.matrices import Centred, LowRank


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
        variants = _side_by_side(one, n_variants, (OF_EACH, 0, None, None, of_seed, None))
        split = Split(x=0, y=None, texts=None, weight=None)  # type: ignore[arg-type]
        axes = (OF_EACH, None, split, dict.fromkeys(evaluated, split), None, None)
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
        return jax.vmap(function, in_axes=axes, out_axes=OF_EACH)

    def at(index, axis, part):
        return part if axis is None else jax.tree.map(lambda leaf: leaf[index], part)

    def only(*arguments):
        inner = jax.tree.map(partial(at, 0), axes, arguments, is_leaf=lambda a: a is None)
        result = function(*inner)
        return jax.tree.map(partial(at, None), OF_EACH, result, is_leaf=lambda a: a is None)

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


def summed(tree: Any, axis: str | None) -> Any:
    """The sum over all devices of an axis."""
    return tree if axis is None else jax.lax.psum(tree, axis)


@partial(jax.jit, static_argnums=(1, 3))
def epoch_orders(seed: Any, n_models: int, first_epoch: Any, count: int) -> jax.Array:
    """The orders of the training models in so many epochs, [E, N].

    A program of its own, so that drawing them is compiled once for all layers.
    """

    def order(epoch):
        return jax.random.permutation(jax.random.fold_in(key, epoch), n_models)

    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.lax.map(order, first_epoch + jnp.arange(count))


def prepared(network: Network, train: Split) -> Split:
    """The training models of one layer as the encoder reads them fastest, again and again."""
    with products("float32"):
        return train._replace(x=network.encoder.prepare(train.x)) if _prepares(network) else train


def _prepares(network: Network) -> bool:
    # What the network itself takes a centre off is not yet what the encoder reads.
    return network.normalise == "none" and hasattr(network.encoder, "prepare")


def all_prepared(network: Network, recipe: Recipe, devices: Devices, train: Split) -> Split:
    """`prepared` of several layers; in bfloat16 now, not in each step, if that computes."""
    x: Any = train.x
    if _prepares(network) and not isinstance(x, LowRank | Centred):  # these are small
        x = _all_prepared(network, devices, x)
    if recipe.compute == "bfloat16":
        x = _cast(x, recipe.compute)
    return train._replace(x=x)


def _all_prepared(network: Network, devices: Devices, x: Any) -> Any:
    with products("float32"):
        if devices.mesh is None:  # not in one program, whose results would hold a copy of x
            return jax.vmap(network.encoder.prepare)(x)
        return _prepared_on_devices(network, devices, x)


@partial(jax.jit, static_argnums=(0, 1))
def _prepared_on_devices(network: Network, devices: Devices, x: Any) -> Any:
    prepare, divided = jax.vmap(network.encoder.prepare), P(None, AXIS)
    return jax.shard_map(
        prepare, mesh=devices.mesh, in_specs=divided, out_specs=divided, check_vma=False
    )(x)


@partial(jax.jit, static_argnums=1)
def _cast(x: Any, compute: str) -> Any:
    return as_read(x, compute)
